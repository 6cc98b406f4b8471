"""What goes together more often than chance: experts with experts, domains with experts, and what chance alone gives.

Legend: T tokens, E experts, K experts per token, G domains, U units that are shuffled (sequences or tokens), R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.load import choices, label_ids, need_tokens
from labkit.core.routing import Routing

_LABELS_AT_ONCE = 2**24  # 64 MB of float32


def coactivation(r: Routing) -> Tensor:
    """How often two experts are chosen for the same token: MᵀM; [E, E], int64, with the loads on the diagonal.

    >>> coactivation(Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2))).tolist()
    [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    M_TE = choices(r).double()  # exact whatever T: a count below 2⁵³
    return (M_TE.T @ M_TE).round().long()


def coactivation_lift(r: Routing, *, steps: int = 500) -> Tensor:
    """How much more often two experts are chosen together than their loads alone explain; [E, E], float32.

    lift(i, j) = pairs(i, j) / expected(i, j), where expected(i, j) = u_i u_j for i ≠ j and the u are such that every
    expert is in as many pairs as it really is. Dividing by P(i) P(j) instead would call every pair rare, since an
    expert is never chosen twice: with even loads that ratio is (K − 1) E / (K (E − 1)), not 1. The model is
    quasi-independence (Goodman 1968, JASA 63); the u are found by iterative proportional fitting.

    The diagonal is no pair and is 1, as is every pair with an expert that nobody chose.

    Args:
        steps: of the fit.

    >>> ids = torch.tensor([[0, 1], [0, 1], [2, 3], [2, 3], [0, 2], [1, 3]])
    >>> coactivation_lift(Routing.of(torch.zeros(6, 4), ids, torch.ones(6, 2)))[0].tolist()
    [1.0, 2.0, 1.0, 0.0]
    """
    pairs_EE = coactivation(r).double().fill_diagonal_(0)
    row_E = pairs_EE.sum(1)
    u_E = row_E / row_E.sum().sqrt().clamp_min(1)
    for _ in range(steps):
        u_E = (u_E * row_E / (u_E.sum() - u_E).clamp_min(1e-300)).sqrt()
    expected_EE = u_E[:, None] * u_E
    seen_EE = (expected_EE > 0).fill_diagonal_(False)
    return torch.where(seen_EE, pairs_EE / expected_EE.where(seen_EE, 1.0), 1.0).float()


@dataclass(frozen=True, eq=False)
class Lift:
    """A domain × expert table; `domains` names the rows, in alphabetical order."""

    domains: tuple[str, ...]
    lift_GE: Tensor


@dataclass(frozen=True, eq=False)
class PermutedLift:
    """The same table when the labels mean nothing: what chance alone gives.

    Args:
        domains: names of the rows.
        low_GE, high_GE: the interval of each cell by itself.
        mean_GE, deviation_GE: mean and standard deviation of each cell over the rounds.
        largest_R: of each shuffled table the cell that is furthest out, in its standard deviations; ascending.
        unit: what was shuffled, "sequence" or "token".
    """

    domains: tuple[str, ...]
    low_GE: Tensor
    high_GE: Tensor
    mean_GE: Tensor
    deviation_GE: Tensor
    largest_R: Tensor
    unit: str

    def exceeded_by(self, lift: Lift) -> Tensor:
        """Where a table lies outside the interval of its cell; [G, E], bool.

        Of G·E cells some lie outside by chance: `exceeded_anywhere_by` corrects for that. Raises ValueError if the
        table has other domains or experts.
        """
        self._same(lift)
        return (lift.lift_GE < self.low_GE) | (lift.lift_GE > self.high_GE)

    def exceeded_anywhere_by(self, lift: Lift, error: float = 0.05) -> Tensor:
        """The cells that stand out even among all G·E of them; [G, E], bool.

        If the labels mean nothing, a table has any such cell with probability `error` at most: a cell counts if it is
        further out than the furthest cell of all but that share of the shuffled tables. This is the max-T procedure of
        Westfall and Young 1993, "Resampling-Based Multiple Testing", in standard deviations of each cell.

        Raises ValueError if the table has other domains or experts, or if the rounds are too few for this `error`.
        """
        rounds = len(self.largest_R)
        if not 1 / (rounds + 1) <= error < 1:
            raise ValueError(f"error is {error}; with {rounds} rounds give a share from {1 / (rounds + 1):.3g} to 1")
        return self._p_value(self._distance(lift)) <= error

    def p_value(self, lift: Lift) -> float:
        """How probable a table with a cell this far out is if the labels mean nothing, (1 + more extreme) / (R + 1)."""
        return float(self._p_value(self._distance(lift).max()))

    def _p_value(self, distance: Tensor) -> Tensor:
        below = torch.searchsorted(self.largest_R, distance.contiguous() * (1 - 1e-9))
        return (1 + len(self.largest_R) - below) / (len(self.largest_R) + 1)

    def _distance(self, lift: Lift) -> Tensor:
        self._same(lift)
        return _distance(lift.lift_GE.double(), self.mean_GE, self.deviation_GE)

    def _same(self, lift: Lift) -> None:
        if lift.domains != self.domains or lift.lift_GE.shape != self.low_GE.shape:
            raise ValueError(
                f"the baseline is about {self.domains} and {self.low_GE.shape[1]} experts, the table about "
                f"{lift.domains} and {lift.lift_GE.shape[1]}; make both from the same Routing"
            )


def lift_by_domain(r: Routing) -> Lift:
    """How much more often a domain goes to an expert than all tokens do.

    lift(d, e) = P(e | d) / P(e), over choices: 1 means no preference, 2 twice as often. An expert that nobody chose has
    lift 1. The ratio is the lift of association rules (Brin et al. 1997, doi 10.1145/253260.253325); OLMoE's domain
    specialisation is its numerator (Muennighoff et al. 2024, arXiv 2409.02060, section 5.3).

    Raises ValueError if the Routing has no domains.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0], [1]]), torch.ones(2, 1), domains=("code", "text"))
    >>> lift_by_domain(r).lift_GE.tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    names, domain_T = _domain_ids(r, "lift_by_domain")
    counts_GE = torch.zeros(len(names), r.num_experts, dtype=torch.float64, device=domain_T.device)
    return Lift(names, _lift(counts_GE.index_add_(0, domain_T, choices(r).double())).float())


def permuted_lift(
    r: Routing, rounds: int = 200, seed: int = 0, *, coverage: float = 0.95, unit: str = "auto"
) -> PermutedLift:
    """The interval of lifts that appears when the domain labels are shuffled.

    A permutation test: whatever lies inside is what chance gives for this much text. Neighbouring tokens resemble each
    other, so they are not independent draws: where the record says which sequence a token is of, whole sequences are
    shuffled, each keeping its tokens together; otherwise single tokens, and the interval is too narrow for text.
    The interval is per cell, so with G·E cells about (1 − coverage)·G·E of them lie outside by chance alone.

    Args:
        rounds: how often to shuffle, at least 20.
        seed: of the shuffles; the same seed gives the same interval.
        coverage: the share of shuffles inside the interval, in (0, 1).
        unit: what is shuffled: "sequence", "token", or "auto": sequences if `r.sequence_T` is there and every sequence
            has one domain. The answer's `unit` says which.

    Raises ValueError if the Routing has no domains, a number is out of range, or sequences are asked for and not there.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0], [1]]), torch.ones(2, 1), domains=("code", "code"))
    >>> permuted_lift(r, rounds=20).high_GE.tolist()
    [[1.0, 1.0]]
    """
    names, domain_T = _domain_ids(r, "permuted_lift")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 20:
        raise ValueError(f"permuted_lift: rounds is {rounds!r}; give a whole number of 20 or more")
    if not 0 < coverage < 1:
        raise ValueError(f"permuted_lift: coverage is {coverage}; give a share between 0 and 1")
    unit, domain_U, counts_UE = _units(r, domain_T, unit)
    lifts_RGE = _shuffled(counts_UE, domain_U, len(names), rounds, seed)
    mean_GE, deviation_GE = lifts_RGE.mean(0), lifts_RGE.std(0)
    largest_R = _distance(lifts_RGE, mean_GE, deviation_GE).flatten(1).amax(1).sort().values
    tails = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], device=lifts_RGE.device)
    low_high = [torch.quantile(lifts_RGE[:, g].float(), tails, dim=0) for g in range(len(names))]
    low_GE, high_GE = torch.stack(low_high, 1)
    return PermutedLift(names, low_GE, high_GE, mean_GE, deviation_GE, largest_R, unit)


def _domain_ids(r: Routing, who: str) -> tuple[tuple[str, ...], Tensor]:
    if need_tokens(r, who).domains is None:
        raise ValueError(f"{who} needs the domain of each token; build the Routing with domains=…")
    names, domain_T = label_ids(r.domains)
    return names, domain_T.to(r.topk_ids_TK.device)


def _units(r: Routing, domain_T: Tensor, unit: str) -> tuple[str, Tensor, Tensor]:
    """What is shuffled: its name, the domain of each unit, and how often each unit chose each expert."""
    if unit not in ("auto", "sequence", "token"):
        raise ValueError(f"permuted_lift: unit is {unit!r}; choose 'auto', 'sequence' or 'token'")
    if unit == "sequence" and r.sequence_T is None:
        raise ValueError("permuted_lift: unit is 'sequence' but the Routing does not say which; give it sequence_T=…")
    M_TE = choices(r)
    if unit == "token" or r.sequence_T is None:
        return "token", domain_T, M_TE
    _, unit_T = r.sequence_T.unique(return_inverse=True)
    U = int(unit_T.max()) + 1
    domain_U = torch.zeros(U, dtype=torch.int64, device=domain_T.device).scatter_(0, unit_T, domain_T)
    if (domain_U[unit_T] != domain_T).any():
        if unit == "sequence":
            raise ValueError("permuted_lift: a sequence has tokens of several domains; shuffle with unit='token'")
        return "token", domain_T, M_TE
    return "sequence", domain_U, M_TE.new_zeros(U, r.num_experts).index_add_(0, unit_T, M_TE)


def _shuffled(counts_UE: Tensor, domain_U: Tensor, groups: int, rounds: int, seed: int) -> Tensor:
    """The tables of shuffled labels; [R, G, E], float64. One product of matrices does many rounds."""
    U, E = counts_UE.shape
    if int(counts_UE.sum(0).max()) >= 2**24:  # beyond this float32 cannot count
        counts_UE = counts_UE.double()
    draw, group_G1 = torch.Generator().manual_seed(seed), torch.arange(groups, device=domain_U.device)[:, None]
    at_once = max(1, _LABELS_AT_ONCE // (groups * U))
    tables = []
    for start in range(0, rounds, at_once):
        orders = [torch.randperm(U, generator=draw) for _ in range(min(at_once, rounds - start))]
        labels_R1U = domain_U[torch.stack(orders).to(domain_U.device)][:, None]
        member_XU = (labels_R1U == group_G1).to(counts_UE.dtype).flatten(0, 1)
        tables.append(_lift((member_XU @ counts_UE).double().view(-1, groups, E)))
    return torch.cat(tables)


def _lift(counts_GE: Tensor) -> Tensor:
    share_GE = counts_GE / counts_GE.sum(-1, keepdim=True)
    overall_E = counts_GE.sum(-2, keepdim=True) / counts_GE.sum((-2, -1), keepdim=True)
    return torch.where(overall_E > 0, share_GE / overall_E, torch.ones_like(share_GE))


def _distance(lift_GE: Tensor, mean_GE: Tensor, deviation_GE: Tensor) -> Tensor:
    """How many standard deviations from the mean; where shuffling changes nothing, 0 at the mean and else infinity."""
    away_GE = (lift_GE - mean_GE).abs()
    away_GE = away_GE.where(away_GE > 1e-6, torch.zeros_like(away_GE))
    return torch.where(away_GE > 0, away_GE / deviation_GE, away_GE)
