"""What goes into every weight, measured on text: also for experts to which hardly a token is routed.

An expert that the calibration text does not reach would get scales chosen by nothing. So either every expert sees every
token, or each sees a floor of tokens, or only those routed to it; and whoever was not reached is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.nn.model import evaluating
from labkit.nn.quant.experts import decided
from labkit.nn.quant.rooms import QUANTISED
from labkit.nn.quant.targets import Target, find

Reach = Literal["every", "floor", "routed"]
REACHES = ("every", "floor", "routed")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Mean squares of the inputs of every weight.

    Args:
        moments: by the weight's name, [C] float32, of experts [E, C].
        routed: by the path of experts, [E] int64: tokens routed to each. seen: the same, tokens that each was shown.
        reach: how experts were shown tokens.
    """

    moments: dict[str, Tensor]
    routed: dict[str, Tensor]
    seen: dict[str, Tensor]
    reach: Reach

    @property
    def unreached(self) -> dict[str, tuple[int, ...]]:
        """Experts that saw no token, by the path of their layer; layers where all did are left out."""
        found = {path: tuple((count_E == 0).nonzero().flatten().tolist()) for path, count_E in self.seen.items()}
        return {path: experts for path, experts in found.items() if experts}

    def check(self, target: Target) -> None:
        """Raise ValueError unless a target's weights were measured, at these sizes."""
        for name, weight in zip(target.names, target.weights.values(), strict=True):
            wanted = (*weight.shape[:-2], weight.shape[-1])
            if name not in self.moments or self.moments[name].shape != wanted:
                raise ValueError(f"{name} was not calibrated at {wanted}; calibrate this model, with the same rooms")

    def moment(self, target: Target, name: str) -> Tensor:
        """The mean square of what goes into one weight of a target."""
        return self.moments[f"{target.path}.{name}"].to(target.weights[name].device)

    def __repr__(self) -> str:
        lines = [f"calibrated {len(self.moments)} weights; experts saw {_WORDS[self.reach]}"]
        for path, seen_E in self.seen.items():
            routed_E = self.routed[path]
            lines.append(
                f"{path}: {int(seen_E.min())} to {int(seen_E.max())} tokens an expert "
                f"(routed: {int(routed_E.min())} to {int(routed_E.max())}); "
                f"not reached: {', '.join(map(str, self.unreached.get(path, ()))) or 'none'}"
            )
        return "\n".join(lines)


_WORDS = {"every": "every token", "floor": "a floor of tokens", "routed": "the tokens routed to them"}


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    reach: Reach = "every",
    floor: int = 64,
    rooms: Sequence[str] = QUANTISED,
    keep: Sequence[str] = (),
    seed: int = 0,
) -> Calibration:
    """Run a plain model on text and note the mean square of what goes into each weight.

    Args:
        model: as for `quantize`, before it. batches: [B, S] token ids, or anything with `ids_BS`; padding counts.
        reach: "every": each expert computes every token (E/K times the work); "routed": those routed to it; "floor":
            those, and where they are fewer than `floor`, further tokens of the text, drawn by `seed`, until they are.
        rooms, keep: as for `quantize`.

    Raises ValueError for another reach, a floor below 1, no batches, and as `quantize` for what cannot be packed.
    """
    if reach not in REACHES:
        raise ValueError(f"reach is {reach!r}; choose one of {', '.join(REACHES)}")
    if floor < 1:
        raise ValueError(f"floor is {floor}; give the least tokens of an expert, 1 or more")
    ids = ids_of(batches)
    if not ids:
        raise ValueError("calibrate was given no batch of text")
    targets, _ = find(model, (rooms,) if isinstance(rooms, str) else tuple(rooms), keep)
    notes = {target.path: _Notes.of(target) for target in targets}
    _run(model, ids, {target: _hear(notes[target.path], reach) for target in targets})
    experts = [target for target in targets if notes[target.path].routed_E is not None]
    short = [target for target in experts if reach == "floor" and int(notes[target.path].seen_E.min()) < floor]
    if short:
        draw = torch.Generator().manual_seed(seed)
        _run(model, ids, {target: _fill(notes[target.path], floor, draw) for target in short})
    moments = {name: moment for note in notes.values() for name, moment in note.moments().items()}
    routed = {target.path: notes[target.path].routed_E for target in experts}
    return Calibration(moments, routed, {target.path: notes[target.path].seen_E for target in experts}, reach)


@dataclass(eq=False)
class _Notes:
    """Sums of squares of a target's inputs while the text passes."""

    target: Target
    sums: dict[str, Tensor]
    seen_E: Tensor
    routed_E: Tensor | None
    first: str
    second: str

    @classmethod
    def of(cls, target: Target) -> _Notes:
        names = list(target.weights)
        weight = target.weights[names[0]]
        experts = weight.ndim == 3
        sums = {n: w.new_zeros(*w.shape[:-2], w.shape[-1], dtype=torch.float32) for n, w in target.weights.items()}
        counts = torch.zeros(len(weight) if experts else 1, dtype=torch.int64)
        return cls(target, sums, counts, counts.clone() if experts else None, names[0], names[-1])

    def add(self, x_TD: Tensor, expert: int | None = None) -> None:
        """What one expert (or a layer without experts) is given."""
        if x_TD.numel() == 0:
            return
        where = ... if expert is None else expert
        self.sums[self.first][where] += x_TD.float().square().sum(0)
        self.seen_E[expert or 0] += len(x_TD)
        if self.target.activation is not None:
            weight = self.target.weights[self.first][where].to(x_TD.dtype)
            bias = None if self.target.bias is None else self.target.bias[expert].to(x_TD.dtype)
            hidden = self.target.activation(F.linear(x_TD, weight, bias))
            self.sums[self.second][where] += hidden.float().square().sum(0)

    def moments(self) -> dict[str, Tensor]:
        """Mean squares by the weights' full names; an embedding, which is looked up, has ones."""
        if isinstance(self.target.module, nn.Embedding):
            return {self.target.names[0]: torch.ones_like(self.sums[self.first])}
        count = self.seen_E.clamp_min(1)
        return {
            name: total / (count[:, None] if total.ndim == 2 else count[0]).to(total.device)
            for name, total in zip(self.target.names, self.sums.values(), strict=True)
        }


def _hear(note: _Notes, reach: Reach) -> Callable[..., None]:
    def hear(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, *decision = (*given, *named.values())
        if note.routed_E is None:
            if x.is_floating_point():
                note.add(x.reshape(-1, x.shape[-1]))
            return
        ids_TK, _ = decided(tuple(decision), len(note.routed_E))
        for expert in range(len(note.routed_E)):
            mine_T = (ids_TK == expert).any(-1)
            note.routed_E[expert] += int(mine_T.sum())
            note.add(x if reach == "every" else x[mine_T], expert)

    return hear


def _fill(note: _Notes, floor: int, draw: torch.Generator) -> Callable[..., None]:
    """Experts below the floor are shown further tokens, at random; never the same twice in a batch."""

    def hear(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, *decision = (*given, *named.values())
        ids_TK, _ = decided(tuple(decision), len(note.routed_E))
        for expert in (note.seen_E < floor).nonzero().flatten().tolist():
            others = (ids_TK != expert).all(-1).nonzero().flatten().cpu()
            taken = others[torch.randperm(len(others), generator=draw)[: floor - int(note.seen_E[expert])]]
            note.add(x[taken.to(x.device)], expert)

    return hear


def _run(model: nn.Module, ids: list[Tensor], hooks: dict[Target, Callable[..., None]]) -> None:
    with evaluating(model):
        listen(model, ids, {target.module: hook for target, hook in hooks.items()})


def ids_of(batches: Iterable[Any]) -> list[Tensor]:
    """The token ids of batches, which are such tensors or have them as `ids_BS`."""
    return [batch if isinstance(batch, Tensor) else batch.ids_BS for batch in batches]


def listen(model: nn.Module, ids: list[Tensor], hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    """Run a model on text while each hook hears what its module is given: (module, positional, named)."""
    device = next(model.parameters()).device
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        for ids_BS in ids:
            model(ids_BS.to(device))
    finally:
        for handle in handles:
            handle.remove()
