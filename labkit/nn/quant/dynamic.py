"""Precision chosen while a model runs: every experts layer holds its weights twice, and decides for a token or batch.

What is saved is bytes read, not memory: both copies stay. Whether the choice is worth anything is told by the same
share of tokens chosen at random, which costs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from labkit.kernels.quant import Packed
from labkit.nn.quant.calibrate import ids_of, listen
from labkit.nn.quant.convert import check
from labkit.nn.quant.experts import QuantExperts, decided
from labkit.nn.quant.modules import Held
from labkit.nn.quant.schemes import scheme as find_scheme
from labkit.nn.quant.targets import find

By = Literal["outliers", "margin", "random"]
Per = Literal["token", "batch"]


def outliers(x_TD: Tensor, scores_TK: Tensor) -> Tensor:
    """How far a token's largest value stands out: max |x| over the root mean square, [T] float32.

    >>> outliers(torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.ones(2, 1)).tolist()
    [1.0, 1.414...]
    """
    x_TD = x_TD.float()
    return x_TD.abs().amax(-1) / x_TD.square().mean(-1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def margin(x_TD: Tensor, scores_TK: Tensor) -> Tensor:
    """How undecided the router was: the second score less the first, [T] float32; zero is a tie, and the most.

    >>> margin(torch.ones(2, 1), torch.tensor([[0.25, 0.75], [0.5, 0.5]])).tolist()
    [-0.5, 0.0]
    """
    two = scores_TK.float().topk(min(2, scores_TK.shape[1]), dim=-1).values
    return two[:, -1] - two[:, 0] if two.shape[1] == 2 else -two[:, 0]


_FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "outliers": outliers,
    "margin": margin,
    "random": lambda x_TD, scores_TK: torch.rand(len(x_TD), device=x_TD.device),
}


class DynamicExperts(nn.Module):
    """Routed experts in two precisions.

    Args:
        low, high: the same experts, packed twice.
        by: what decides, see `dynamic`. per: "token", or "batch": all tokens of a call by their mean.
        threshold: what decides above this value gets `high`; infinity: nothing does.

    `counts` says how many tokens got low and high since `reset()`.
    """

    def __init__(
        self, low: QuantExperts, high: QuantExperts, by: By, per: Per, threshold: float = float("inf")
    ) -> None:
        super().__init__()
        self.low, self.high, self.by, self.per, self.threshold = low, high, by, per, threshold
        self.counts = [0, 0]

    def forward(self, x_TD: Tensor, *decision: Any, **named: Any) -> Tensor:
        """As `QuantExperts`, whose arguments it takes."""
        ids_TK, scores_TK = decided((*decision, *named.values()), self.low.num_experts)
        high_T = self.feature(x_TD, scores_TK) > self.threshold
        number = int(high_T.sum())
        self.counts = [self.counts[0] + len(x_TD) - number, self.counts[1] + number]
        if number in (0, len(x_TD)):
            return (self.high if number else self.low)(x_TD, ids_TK, scores_TK)
        out_TD = torch.empty_like(x_TD)
        for mask_T, experts in ((high_T, self.high), (~high_T, self.low)):
            out_TD = out_TD.index_put((mask_T,), experts(x_TD[mask_T], ids_TK[mask_T], scores_TK[mask_T]))
        return out_TD

    def feature(self, x_TD: Tensor, scores_TK: Tensor) -> Tensor:
        """What is compared with the threshold, [T]."""
        value_T = _FEATURES[self.by](x_TD, scores_TK)
        return value_T if self.per == "token" or not len(value_T) else value_T.mean().expand(len(value_T))

    def reset(self) -> None:
        """Count anew."""
        self.counts = [0, 0]

    @property
    def share(self) -> float:
        """The share of tokens that got the high precision since `reset()`; NaN before any."""
        return self.counts[1] / sum(self.counts) if sum(self.counts) else float("nan")

    @property
    def bits(self) -> float:
        """Bits read for a weight of a token's experts, on average since `reset()`, scales included."""
        low, high = (_bits(experts) for experts in (self.low, self.high))
        return low + self.share * (high - low)

    def extra_repr(self) -> str:
        high, low = self.high.scheme.name, self.low.scheme.name
        return f"{high} where {self.by} > {self.threshold:.4g} per {self.per}, else {low}"


@torch.no_grad()
def dynamic(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    low: str = "nf4",
    high: str = "int8",
    by: By = "outliers",
    per: Per = "token",
    share: float = 0.25,
) -> list[DynamicExperts]:
    """Hold every experts layer in two precisions, and set its threshold so that a share of this text gets the high one.

    Args:
        model: as for `quantize`, with plain experts; changed in place. Other rooms stay.
        batches: [B, S] token ids, or anything with `ids_BS`: text that is not the test's.
        low, high: schemes that pack.
        by: "outliers", "margin" (undecided tokens), or "random", the control at equal cost; see these functions.
        share: from 0 to 1, in every layer.

    Returns the new modules, in order: their `bits` and `share` tell what a run has cost. Raises ValueError for other
    words, schemes that cast, no text, and as `quantize`.
    """
    if by not in _FEATURES or per not in ("token", "batch"):
        raise ValueError(f"by is {by!r} and per {per!r}; choose {', '.join(_FEATURES)}, and 'token' or 'batch'")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; give the part of tokens that get {high}, from 0 to 1")
    schemes = [find_scheme(name) for name in (low, high)]
    if cast := [scheme.name for scheme in schemes if scheme.pack is None]:
        raise ValueError(f"{cast[0]} casts a whole model; dynamic takes two schemes that pack")
    ids = ids_of(batches)
    if not ids:
        raise ValueError("dynamic was given no batch of text to set its thresholds by")
    targets, _ = find(model, ("experts",))
    for scheme in schemes:
        check(model, targets, scheme, ("experts",), None)
    made = []
    for target in targets:
        held = [{name: Held(s.packed(w)) for name, w in target.weights.items()} for s in schemes]
        cheap = target.build(held[0], schemes[0])
        up, down = held[1].values()
        dear = QuantExperts(up, down, cheap.activation, schemes[1], cheap.up_bias, cheap.down_bias)
        made.append(DynamicExperts(cheap, dear, by, per))
        model.set_submodule(target.path, made[-1])
    _set_thresholds(model, made, ids, share)
    return made


def _set_thresholds(model: nn.Module, made: list[DynamicExperts], ids: list[Tensor], share: float) -> None:
    """One run in low precision; then each layer's quantile of what it saw."""
    found: dict[DynamicExperts, list[Tensor]] = {module: [] for module in made}

    def hear(module: DynamicExperts, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x_TD, *decision = (*given, *named.values())
        found[module].append(module.feature(x_TD, decided(tuple(decision), module.low.num_experts)[1]))

    listen(model, ids, dict.fromkeys(made, hear))
    for module, values in found.items():
        sorted_T = torch.cat(values).sort().values
        above = round(share * len(sorted_T))
        inf = float("inf")
        module.threshold = {0: inf, len(sorted_T): -inf}.get(above) or float(sorted_T[len(sorted_T) - above - 1])
        module.reset()


def _bits(experts: QuantExperts) -> float:
    packed: list[Packed] = [experts.up.packed, experts.down.packed]
    return 8 * sum(p.nbytes for p in packed) / sum(p.shape.numel() for p in packed)
