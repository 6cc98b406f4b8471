"""What routing looks like in numbers: pure functions of a `Routing`, all on its device, none with gradients.

Legend: T tokens, E experts, K experts per token, G domains. M is the T × E matrix of choices: 1 where a token chose an
expert, else 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.routing import Routing


def _need_tokens(r: Routing, who: str) -> Routing:
    if not isinstance(r, Routing):
        raise ValueError(f"{who} takes a Routing, got {type(r).__name__}; `Routing.of` builds one")
    if r.num_tokens == 0:
        raise ValueError(f"{who} needs at least one token; this Routing has none")
    return r


def choices(r: Routing) -> Tensor:
    """M_TE: 1.0 where a token chose an expert, else 0.0; float32.

    >>> choices(Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2))).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    ids_TK = _need_tokens(r, "choices").topk_ids_TK
    M_TE = torch.zeros(r.num_tokens, r.num_experts, device=ids_TK.device)
    return M_TE.scatter_(1, ids_TK, 1.0)


def load(r: Routing) -> Tensor:
    """Each expert's share of all T·K choices: f_e = tokens_per_expert_e / (T·K); [E], float32, sums to one.

    >>> load(Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2))).tolist()
    [0.5, 0.25, 0.25]
    """
    counts_E = _need_tokens(r, "load").tokens_per_expert_E
    return counts_E.float() / counts_E.sum()


def entropy(r: Routing, *, normalised: bool = False) -> float:
    """Entropy of the load, −Σ f_e ln f_e, in nats: ln E when even, ln K when K experts take everything.

    Args:
        normalised: divide by ln E, so that an even load gives 1. With one expert that is 1 as well.

    >>> entropy(Routing.of(torch.zeros(2, 2), torch.tensor([[0], [1]]), torch.ones(2, 1)), normalised=True)
    1.0
    """
    f_E = load(r).double()
    nats = float(torch.special.entr(f_E).sum())
    if not normalised:
        return nats
    return nats / math.log(r.num_experts) if r.num_experts > 1 else 1.0


def max_violation(r: Routing) -> float:
    """How far the busiest expert is above the mean: (max load − mean load) / mean load; 0 when even, at most E/K − 1.

    MaxVio of Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy" (arXiv 2408.15664), section 4.1.

    >>> max_violation(Routing.of(torch.zeros(2, 4), torch.tensor([[0], [0]]), torch.ones(2, 1)))
    3.0
    """
    counts_E = _need_tokens(r, "max_violation").tokens_per_expert_E.double()
    return float(counts_E.max() / counts_E.mean() - 1)


def coactivation(r: Routing) -> Tensor:
    """How often two experts are chosen for the same token: MᵀM; [E, E], int64, with the loads on the diagonal.

    >>> coactivation(Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2))).tolist()
    [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    M_TE = choices(r).double()  # exact whatever T: a count below 2⁵³
    return (M_TE.T @ M_TE).round().long()


@dataclass(frozen=True, eq=False)
class Lift:
    """A domain × expert table; `domains` names the rows, in alphabetical order."""

    domains: tuple[str, ...]
    lift_GE: Tensor


@dataclass(frozen=True, eq=False)
class PermutedLift:
    """The same table when the labels mean nothing: the range that chance alone gives, `low_GE` to `high_GE`."""

    domains: tuple[str, ...]
    low_GE: Tensor
    high_GE: Tensor

    def exceeded_by(self, lift: Lift) -> Tensor:
        """Where a table lies outside the range; [G, E], bool. Raises ValueError if it has other domains or experts."""
        if lift.domains != self.domains or lift.lift_GE.shape != self.low_GE.shape:
            raise ValueError(
                f"the baseline is about {self.domains} and {self.low_GE.shape[1]} experts, the table about "
                f"{lift.domains} and {lift.lift_GE.shape[1]}; make both from the same Routing"
            )
        return (lift.lift_GE < self.low_GE) | (lift.lift_GE > self.high_GE)


def _domain_ids(r: Routing, who: str) -> tuple[tuple[str, ...], Tensor]:
    if _need_tokens(r, who).domains is None:
        raise ValueError(f"{who} needs the domain of each token; build the Routing with domains=…")
    names = tuple(sorted(set(r.domains)))
    index = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([index[name] for name in r.domains], device=r.topk_ids_TK.device)


def _lift(M_TE: Tensor, domain_T: Tensor, groups: int) -> Tensor:
    counts_GE = torch.zeros(groups, M_TE.shape[1], dtype=torch.float64, device=M_TE.device)
    counts_GE.index_add_(0, domain_T, M_TE)
    share_GE = counts_GE / counts_GE.sum(1, keepdim=True)
    overall_E = counts_GE.sum(0) / counts_GE.sum()
    return torch.where(overall_E > 0, share_GE / overall_E, torch.ones_like(share_GE)).float()


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
    return Lift(names, _lift(choices(r).double(), domain_T, len(names)))


def permuted_lift(r: Routing, rounds: int = 200, seed: int = 0, *, coverage: float = 0.95) -> PermutedLift:
    """The interval of lifts that appears when the domain labels are shuffled among the tokens.

    A permutation test: whatever lies inside is what chance gives for this many tokens. The interval is per cell, so
    with G·E cells about (1 − coverage)·G·E of them lie outside by chance alone.

    Args:
        rounds: how often to shuffle, at least 20.
        seed: of the shuffles; the same seed gives the same interval.
        coverage: the share of shuffles inside the interval, in (0, 1).

    Raises ValueError if the Routing has no domains or a number is out of range.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0], [1]]), torch.ones(2, 1), domains=("code", "code"))
    >>> permuted_lift(r, rounds=20).high_GE.tolist()
    [[1.0, 1.0]]
    """
    names, domain_T = _domain_ids(r, "permuted_lift")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 20:
        raise ValueError(f"permuted_lift: rounds is {rounds!r}; give a whole number of 20 or more")
    if not 0 < coverage < 1:
        raise ValueError(f"permuted_lift: coverage is {coverage}; give a share between 0 and 1")
    draw, M_TE = torch.Generator().manual_seed(seed), choices(r).double()
    orders = (torch.randperm(r.num_tokens, generator=draw).to(domain_T.device) for _ in range(rounds))
    lifts = torch.stack([_lift(M_TE, domain_T[order], len(names)) for order in orders])
    tail = (1 - coverage) / 2
    low, high = torch.quantile(lifts, torch.tensor([tail, 1 - tail], device=lifts.device), dim=0)
    return PermutedLift(names, low, high)


def router_confidence(r: Routing) -> Tensor:
    """The softmax probability of each token's likeliest expert, from the raw logits; [T], float32, in [1/E, 1].

    It reads the logits as a distribution whatever score function the router has, so that routers compare.

    >>> router_confidence(Routing.of(torch.zeros(1, 4), torch.tensor([[0]]), torch.ones(1, 1))).tolist()
    [0.25]
    """
    return _need_tokens(r, "router_confidence").logits_TE.float().softmax(-1).amax(-1).detach()


def decision_margin(r: Routing) -> Tensor:
    """How close each decision was: the lowest logit among the chosen experts minus the highest among the others; [T].

    Small means that little noise (another precision, another kernel) changes the choice. Negative means that something
    else than the logits chose: a selection bias or a limit on groups. With K = E nothing is left out: infinity.

    >>> r = Routing.of(torch.tensor([[3.0, 1.0, 0.5]]), torch.tensor([[0, 1]]), torch.ones(1, 2))
    >>> decision_margin(r).tolist()
    [0.5]
    """
    logits_TE = _need_tokens(r, "decision_margin").logits_TE.detach().float()
    lowest_T = logits_TE.gather(1, r.topk_ids_TK).amin(-1)
    others_TE = logits_TE.scatter(1, r.topk_ids_TK, float("-inf"))
    return lowest_T - others_TE.amax(-1)
