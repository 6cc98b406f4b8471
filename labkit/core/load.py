"""Who gets the work: how evenly a router spreads tokens over experts, and how sure it is.

Legend: T tokens, E experts, K experts per token. M is the T × E matrix of choices: 1 where a token chose an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from labkit.core.routing import Routing


def need_tokens(r: Routing, who: str) -> Routing:
    """The record itself, if it is one and has tokens; ValueError, in the name of `who`, otherwise."""
    if not isinstance(r, Routing):
        raise ValueError(f"{who} takes a Routing, got {type(r).__name__}; `Routing.of` builds one")
    if r.num_tokens == 0:
        raise ValueError(f"{who} needs at least one token; this Routing has none")
    return r


def label_ids(labels: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The names in alphabetical order, and which of them each label is; [T], int64, on the CPU.

    >>> label_ids(("b", "a", "b"))
    (('a', 'b'), tensor([1, 0, 1]))
    """
    names = tuple(sorted(set(labels)))
    index = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([index[label] for label in labels], dtype=torch.int64)


def choices(r: Routing) -> Tensor:
    """M_TE: 1.0 where a token chose an expert, else 0.0; float32.

    >>> choices(Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2))).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    ids_TK = need_tokens(r, "choices").topk_ids_TK
    M_TE = torch.zeros(r.num_tokens, r.num_experts, device=ids_TK.device)
    return M_TE.scatter_(1, ids_TK, 1.0)


def load(r: Routing) -> Tensor:
    """Each expert's share of all T·K choices: f_e = tokens_per_expert_e / (T·K); [E], float32, sums to one.

    >>> load(Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2))).tolist()
    [0.5, 0.25, 0.25]
    """
    counts_E = need_tokens(r, "load").tokens_per_expert_E
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

    MaxVio of Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy" (arXiv 2408.15664), section 4.1. Of one
    batch it is their MaxVio_batch.

    >>> max_violation(Routing.of(torch.zeros(2, 4), torch.tensor([[0], [0]]), torch.ones(2, 1)))
    3.0
    """
    return _violation(need_tokens(r, "max_violation").tokens_per_expert_E)


def global_max_violation(records: Iterable[Routing]) -> float:
    """`max_violation` of many batches taken together: their loads are summed first, so swings that cancel do not count.

    MaxVio_global of Wang et al. 2024 (arXiv 2408.15664), section 4.1. It is never above the mean of the batches' own
    violations where they are equally large.

    Args:
        records: one layer's records, one a batch.

    Raises ValueError without a record, or if they differ in layer or in the number of experts.

    >>> batches = [Routing.of(torch.zeros(2, 2), torch.tensor([[e], [e]]), torch.ones(2, 1)) for e in (0, 1)]
    >>> [max_violation(r) for r in batches], global_max_violation(batches)
    ([1.0, 1.0], 0.0)
    """
    if isinstance(records, Routing):
        records = (records,)
    records = tuple(need_tokens(r, "global_max_violation") for r in records)
    if not records:
        raise ValueError("global_max_violation needs at least one record; give one of each batch")
    for what, values in (("experts", {r.num_experts for r in records}), ("layer", {r.layer for r in records})):
        if len(values) > 1:
            raise ValueError(
                f"global_max_violation was given records whose {what} differ: {sorted(values, key=str)}; "
                "give one layer's records, one a batch"
            )
    return _violation(torch.stack([r.tokens_per_expert_E for r in records]).sum(0))


def _violation(counts_E: Tensor) -> float:
    counts_E = counts_E.double()
    return float(counts_E.max() / counts_E.mean() - 1)


def drop_rate(kept_TK: Tensor) -> float:
    """The share of a batch's T·K choices that no expert computed, because it was full.

    Args:
        kept_TK: [T, K] bool, true where the chosen expert had room (`core.capacity.kept`).

    Raises ValueError for another shape or dtype, and for no tokens.

    >>> drop_rate(torch.tensor([[True, False], [True, True]]))
    0.25
    """
    if not isinstance(kept_TK, Tensor) or kept_TK.ndim != 2 or kept_TK.dtype != torch.bool:
        what = (tuple(kept_TK.shape), kept_TK.dtype) if isinstance(kept_TK, Tensor) else type(kept_TK).__name__
        raise ValueError(f"drop_rate takes kept_TK, bool [tokens, experts per token], got {what}")
    if kept_TK.numel() == 0:
        raise ValueError("drop_rate needs at least one choice; kept_TK has none")
    return float((~kept_TK).double().mean())


def router_confidence(r: Routing) -> Tensor:
    """The softmax probability of each token's likeliest expert, from the raw logits; [T], float32, in [1/E, 1].

    It reads the logits as a distribution whatever score function the router has, so that routers compare.

    >>> router_confidence(Routing.of(torch.zeros(1, 4), torch.tensor([[0]]), torch.ones(1, 1))).tolist()
    [0.25]
    """
    return need_tokens(r, "router_confidence").logits_TE.detach().float().softmax(-1).amax(-1)


def decision_margin(r: Routing) -> Tensor:
    """How close each decision was: the lowest logit among the chosen experts minus the highest among the others; [T].

    Small means that little noise (another precision, another kernel) changes the choice. Negative means that something
    else than the logits chose: a selection bias or a limit on groups. With K = E nothing is left out: infinity.

    >>> r = Routing.of(torch.tensor([[3.0, 1.0, 0.5]]), torch.tensor([[0, 1]]), torch.ones(1, 2))
    >>> decision_margin(r).tolist()
    [0.5]
    """
    logits_TE = need_tokens(r, "decision_margin").logits_TE.detach().float()
    lowest_T = logits_TE.gather(1, r.topk_ids_TK).amin(-1)
    others_TE = logits_TE.scatter(1, r.topk_ids_TK, float("-inf"))
    return lowest_T - others_TE.amax(-1)
