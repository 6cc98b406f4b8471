"""What differs between two records of the same text: an earlier and a later checkpoint, a whole and an ablated model.

Legend: T tokens, K experts per token, G domains, R rounds of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.load import label_ids, need_tokens
from labkit.core.routing import Routing


def saturation(early: Routing, late: Routing, *, top_k: int | None = None) -> float:
    """How much of a late checkpoint's routing is there early: the mean share of a token's experts that both chose.

    Router saturation of OLMoE (Muennighoff et al. 2024, arXiv 2409.02060, section 5.1): 1 when every token goes to the
    same experts, K/E for two that have nothing to do with each other and spread evenly. Order and scores do not count.

    Args:
        early, late: records of one layer at two checkpoints, of the same tokens in the same order.
        top_k: compare only this many experts of each token, the best first; by default all K.

    Raises ValueError for records of different tokens, layers or sizes, and for a `top_k` beyond K.

    >>> records = [Routing.of(torch.zeros(1, 4), torch.tensor([ids]), torch.ones(1, 2)) for ids in ([0, 1], [1, 3])]
    >>> saturation(*records)
    0.5
    """
    _same_tokens(early, late, "saturation")
    sizes = [(r.num_experts, r.top_k, r.layer) for r in (early, late)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"saturation: (experts, top_k, layer) are {sizes[0]} and {sizes[1]}; compare one layer")
    k = early.top_k if top_k is None else top_k
    if not 1 <= k <= early.top_k:
        raise ValueError(f"saturation: top_k is {top_k}; these records have {early.top_k} experts a token")
    early_Tk, late_Tk = early.topk_ids_TK[:, :k], late.topk_ids_TK[:, :k].to(early.topk_ids_TK.device)
    return float((early_Tk[:, :, None] == late_Tk[:, None, :]).sum() / early_Tk.numel())


@dataclass(frozen=True, eq=False)
class Effect:
    """What a change does to the loss, in nats a token: positive where the changed model is worse.

    Args:
        domains: names of the rows, in alphabetical order; ("all",) for a record without domains.
        change_G, low_G, high_G: the mean change in each domain and its interval; float64. NaN bounds where a domain
            has a single unit, whose spread nobody knows.
        change, low, high: the same over all tokens.
        unit: what the bootstrap drew, "sequence" or "token".
    """

    domains: tuple[str, ...]
    change_G: Tensor
    low_G: Tensor
    high_G: Tensor
    change: float
    low: float
    high: float
    unit: str


def ablation_effect(
    baseline: Routing | Sequence[Routing],
    ablated: Routing | Sequence[Routing],
    *,
    rounds: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> Effect:
    """How much worse the model predicts without what was removed, by domain, with an interval.

    The change is the mean over tokens of ablated loss minus baseline loss. The interval is a percentile bootstrap of
    that mean (Efron 1979, doi 10.1214/aos/1176344552): sequences are drawn with replacement where the record says which
    they are, since the tokens of one sequence resemble each other; otherwise tokens, and the interval is too narrow for
    text. It says how the change would vary over other text of this kind, not over other training runs.

    Args:
        baseline, ablated: records with `loss_T`, of the same tokens; a whole trace will do, all its layers share it.
        rounds: of the bootstrap, at least 20; seed: of its draws; coverage: of the interval, in (0, 1).

    Raises ValueError for records without losses or of different tokens, for losses known at different places or nowhere
    in a domain, and for numbers out of range.

    >>> r = Routing.of(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), domains=("a",) * 4)
    >>> from dataclasses import replace
    >>> before, after = (replace(r, loss_T=torch.tensor(x)) for x in ([1.0, 2.0, 1.0, 2.0], [1.5, 2.5, 1.5, 2.5]))
    >>> effect = ablation_effect(before, after)
    >>> effect.domains, effect.change, effect.low, effect.high
    (('a',), 0.5, 0.5, 0.5)
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 20:
        raise ValueError(f"ablation_effect: rounds is {rounds!r}; give a whole number of 20 or more")
    if not 0 < coverage < 1:
        raise ValueError(f"ablation_effect: coverage is {coverage}; give a share between 0 and 1")
    before, after = (_one(r) for r in (baseline, ablated))
    change_T, known_T = _loss_change(before, after)
    names, domain_T = label_ids(before.domains or ("all",) * before.num_tokens)
    sequence_T = torch.arange(before.num_tokens) if before.sequence_T is None else before.sequence_T.cpu()
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for g in range(-1, len(names)):
        here_T = known_T & ((domain_T == g) | (g < 0))
        if not here_T.any():
            raise ValueError(f"ablation_effect: no loss is known in domain {names[g]!r}; trace longer sequences")
        rows.append(_bootstrap(change_T[here_T], sequence_T[here_T], rounds, draw, coverage))
    (change, low, high), *by_domain = rows
    change_G, low_G, high_G = torch.tensor(by_domain, dtype=torch.float64).T
    return Effect(
        names, change_G, low_G, high_G, change, low, high, "token" if before.sequence_T is None else "sequence"
    )


def _one(records: Routing | Sequence[Routing]) -> Routing:
    if isinstance(records, (tuple, list)) and records:
        records = records[0]
    return need_tokens(records, "ablation_effect")


def _loss_change(before: Routing, after: Routing) -> tuple[Tensor, Tensor]:
    _same_tokens(before, after, "ablation_effect")
    if before.loss_T is None or after.loss_T is None:
        raise ValueError("ablation_effect needs loss_T in both records; `nn.trace` fills it for a language model")
    losses = [r.loss_T.detach().double().cpu() for r in (before, after)]
    known_T = ~losses[0].isnan()
    if not torch.equal(known_T, ~losses[1].isnan()):
        raise ValueError("ablation_effect: the losses are known at different tokens; trace the same batch twice")
    if not known_T.any():
        raise ValueError("ablation_effect: no loss is known; sequences of one token have nothing to predict")
    return losses[1] - losses[0], known_T


def _same_tokens(a: Routing, b: Routing, who: str) -> None:
    need_tokens(a, who), need_tokens(b, who)
    if a.num_tokens != b.num_tokens:
        raise ValueError(f"{who}: records of {a.num_tokens} and {b.num_tokens} tokens; trace the same batch twice")
    for name in ("tokens", "domains"):
        if None not in (ours := getattr(a, name), theirs := getattr(b, name)) and ours != theirs:
            raise ValueError(f"{who}: the records' {name} differ; trace the same batch twice")


def _bootstrap(
    x_N: Tensor, unit_N: Tensor, rounds: int, draw: torch.Generator, coverage: float
) -> tuple[float, float, float]:
    """The mean of x and the interval of the mean when units, each with all its values, are drawn with replacement."""
    _, index_N = unit_N.unique(return_inverse=True)
    U = int(index_N.max()) + 1
    sum_U = torch.zeros(U, dtype=x_N.dtype).index_add_(0, index_N, x_N)
    size_U = torch.bincount(index_N, minlength=U).to(x_N.dtype)
    mean = float(x_N.mean())
    if U == 1:
        return mean, float("nan"), float("nan")
    means = []
    for _ in range(rounds):
        drawn_U = torch.randint(U, (U,), generator=draw)
        means.append(sum_U[drawn_U].sum() / size_U[drawn_U].sum())
    tails = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=x_N.dtype)
    low, high = torch.quantile(torch.stack(means), tails).tolist()
    return mean, low, high
