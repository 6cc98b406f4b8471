"""The numbers of the ablation view: what each removal costs, who takes over, and which tokens suffer most.

Legend: T tokens, E experts, K experts per token, G domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core import metrics
from labkit.core.routing import Routing
from labkit.show.widgets.layers import evenly, neighbours

EVERYTHING = "all tokens"


@dataclass(frozen=True)
class Change:
    """What a removal does to the mean loss, in nats: positive is worse. The bounds are None where none is known."""

    change: float
    low: float | None
    high: float | None

    @property
    def told(self) -> str:
        """In words, and whether the interval leaves out zero."""
        if self.low is None or self.high is None:
            return _minus(f"{self.change:+.3g} nats, with no interval (a single sequence)")
        clear = "" if self.low > 0 or self.high < 0 else ", which leaves room for no change at all"
        return _minus(f"{self.change:+.3g} nats (95 %: {self.low:+.3g} to {self.high:+.3g}{clear})")


@dataclass(frozen=True)
class Suffering:
    """A token after which the prediction got worse: what stands before, the token, what follows, and by how much."""

    position: int
    before: str
    token: str
    after: str
    domain: str
    rise: float


def removed_from(baseline: Sequence[Routing], ablated: Mapping[int, Sequence[Routing]]) -> int:
    """Which layer the experts were removed from: the only one in which none of them takes a token any more.

    Raises ValueError if that is no layer or more than one.
    """
    empty = [
        i for i in range(len(baseline))
        if all(len(r) == len(baseline) and int(r[i].tokens_per_expert_E[e]) == 0 for e, r in ablated.items())
    ]  # fmt: skip
    if len(empty) != 1:
        raise ValueError(
            f"ablation: in {len(empty)} of {len(baseline)} layers the removed experts take no token, so it is not "
            "clear where they were removed; give layer=, a position in the records"
        )
    return empty[0]


def effects(baseline: Routing, ablated: Routing, rounds: int = 200) -> dict[str, Change]:
    """The change of the loss over all tokens and by domain. Raises what `metrics.ablation_effect` raises."""
    effect = metrics.ablation_effect(baseline, ablated, rounds=rounds)
    found = {EVERYTHING: Change(effect.change, *_bounds(effect.low, effect.high))}
    if baseline.domains is not None:
        rows = zip(effect.domains, *(x.tolist() for x in (effect.change_G, effect.low_G, effect.high_G)), strict=True)
        found |= {name: Change(mean, *_bounds(low, high)) for name, mean, low, high in rows}
    return found


def sample_of(record: Routing, limit: int) -> Tensor:
    """At most about `limit` tokens, in whole sequences where the record says which, evenly spaced; [T], bool."""
    T = record.num_tokens
    _, unit_T = (torch.arange(T) if record.sequence_T is None else record.sequence_T).unique(return_inverse=True)
    U = int(unit_T.max()) + 1
    return torch.isin(unit_T, evenly(U, max(2, U * limit // T)))


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _bounds(low: float, high: float) -> tuple[float | None, float | None]:
    return (None, None) if low != low else (low, high)


def heirs(baseline: Routing, ablated: Routing, expert: int) -> tuple[Tensor, int]:
    """Where the tokens of an expert went: the share of them that each other expert took over, and how many there are.

    An expert takes a token over if it has it now and had not before. [E], float64; the shares sum to one, or to less
    where a token got fewer experts than before, or to more where other choices of it changed too.
    """
    mine_T = (baseline.topk_ids_TK == expert).any(1)
    count = int(mine_T.sum())
    before_TE, after_TE = (metrics.choices(r.keep(mine_T)) if count else torch.zeros(0, r.num_experts)
                           for r in (baseline, ablated))  # fmt: skip
    return ((after_TE - before_TE).clamp_min(0).sum(0).double() / max(1, count)), count


def next_best(baseline: Routing, expert: int) -> tuple[Tensor, int]:
    """Who takes over if the logits alone decide: of its tokens, the share whose best other expert is each; [E]."""
    mine_T = (baseline.topk_ids_TK == expert).any(1)
    count = int(mine_T.sum())
    left_TE = baseline.logits_TE[mine_T].float().scatter(1, baseline.topk_ids_TK[mine_T], float("-inf"))
    if count == 0 or baseline.top_k == baseline.num_experts:
        return torch.zeros(baseline.num_experts, dtype=torch.float64), count
    return torch.bincount(left_TE.argmax(1), minlength=baseline.num_experts).double() / count, count


def by_load(baseline: Routing, expert: int) -> Tensor:
    """Who takes over if load alone decides: an expert that the token has not, with chances as the loads; [E]."""
    mine_T = (baseline.topk_ids_TK == expert).any(1)
    if not mine_T.any():
        return torch.zeros(baseline.num_experts, dtype=torch.float64)
    free_TE = (1 - metrics.choices(baseline.keep(mine_T)).double()) * metrics.load(baseline)
    return (free_TE / free_TE.sum(1, keepdim=True).clamp_min(1e-12)).mean(0)


def suffering(
    baseline: Routing, ablated: Routing, domain: str, *, limit: int = 6, context: int = 14
) -> list[Suffering]:
    """The tokens after which the loss rose most, the worst first, each with its neighbours in its sequence."""
    rise_T = (ablated.loss_T - baseline.loss_T).double()
    counts_T = ~rise_T.isnan()
    if domain != EVERYTHING:
        counts_T &= torch.tensor([d == domain for d in baseline.domains])
    rise_T = rise_T.masked_fill(~counts_T, float("-inf"))
    worst = rise_T.topk(min(limit, int(counts_T.sum()))).indices.tolist()
    return [_described(baseline, t, float(rise_T[t]), context) for t in worst if rise_T[t] > 0]


def _described(record: Routing, t: int, rise: float, context: int) -> Suffering:
    domain = record.domains[t] if record.domains else ""
    return Suffering(t, *neighbours(record, t, context, context // 2), domain, rise)
