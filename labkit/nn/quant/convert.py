"""Quantise a model where it stands, fused experts included, and tell what became of every byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labkit.nn.quant.modules import Held, held_of
from labkit.nn.quant.report import Change, Report
from labkit.nn.quant.rooms import QUANTISED, room_of, sizes, storage_key
from labkit.nn.quant.schemes import Scheme
from labkit.nn.quant.schemes import scheme as find_scheme
from labkit.nn.quant.targets import Kept, Target, find

if TYPE_CHECKING:
    from labkit.nn.quant.calibrate import Calibration


def quantize(
    model: nn.Module,
    scheme: str | Scheme = "int8",
    *,
    rooms: Sequence[str] = QUANTISED,
    keep: Sequence[str] = (),
    block: int | None = None,
    group: int | None = None,
    threshold: float | None = None,
    calibration: Calibration | None = None,
) -> Report:
    """Pack a model's weights in place.

    Args:
        model: ours or any of transformers with experts; a second call packs what the first left.
        scheme: of `SCHEMES`. rooms: which parts, see `rooms.ROOMS`. keep: names or patterns of what stays.
        block, group, threshold: options of schemes that have them.
        calibration: of `calibrate`, for schemes that can clip: scales are then chosen by the squared error of what
            comes out, on the inputs that were seen, in place of the largest weight.

    Returns a `Report`. "fp16" and "bf16" cast all parameters but selection biases, whatever the rooms.
    Raises ValueError, before anything is changed, for what cannot be packed, would not shrink, is not finite, has no
    values yet, or was not calibrated.

    >>> from labkit.nn import MoE
    >>> from labkit.core.config import MoEConfig
    >>> report = quantize(MoE(MoEConfig(d_model=64, d_expert=32, num_experts=4, top_k=2)), "int8")
    >>> report.rooms["experts"]
    (98304, 26624)
    """
    rooms = (rooms,) if isinstance(rooms, str) else tuple(rooms)
    chosen = find_scheme(scheme, block=block, group=group, threshold=threshold)
    before = sizes(model)
    if chosen.dtype is not None:
        if keep or rooms != QUANTISED or calibration is not None:
            raise ValueError(f"{chosen.name} casts the whole model; leave out rooms, keep and calibration")
        kept = _cast(model, chosen.dtype)
        after, schemes = sizes(model), {name: chosen.name for name in before if name not in {one.name for one in kept}}
        return _report(model, chosen, before, after, schemes, kept)
    earlier = {name: room_of(model, name) for name in before}
    targets, kept = find(model, rooms, keep)
    check(model, targets, chosen, rooms, calibration)
    schemes = _replace(model, targets, chosen, calibration)
    missed = {} if calibration is None else calibration.unreached
    notes = tuple(f"not reached by calibration, so not clipped: {path}, experts {who}" for path, who in missed.items())
    return _report(model, chosen, before, sizes(model), schemes, kept, earlier, notes)


def check(
    model: nn.Module, targets: list[Target], scheme: Scheme, rooms: Sequence[str], calibration: Calibration | None
) -> None:
    """Everything that can go wrong, before anything changes."""
    if not targets:
        there = "it is quantised already" if held_of(model) else "there is no linear layer and no fused expert in it"
        raise ValueError(f"{type(model).__name__} has nothing to pack in {', '.join(rooms)}: {there}")
    if any(target.path == "" for target in targets):
        raise ValueError(f"a {type(model).__name__} alone has no place to be replaced in; give a module that holds it")
    if calibration is not None and not scheme.clips:
        raise ValueError(f"{scheme.name} chooses no scales by what it sees; leave out calibration")
    for target in targets:
        if calibration is not None:
            calibration.check(target)
        for name, weight in zip(target.names, target.weights.values(), strict=True):
            if weight.is_meta:
                raise ValueError(f"{name} has no values (it is on the meta device); load the model first")
            after, now = scheme.packed(weight.to("meta")).nbytes, weight.numel() * weight.element_size()
            if after >= now:
                raise ValueError(
                    f"{name} {tuple(weight.shape)} {weight.dtype} would not shrink: {now:,} bytes now, {after:,} in "
                    f"{scheme.name}; leave it out with keep=[{name!r}], or choose larger blocks"
                )
            if not weight.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinite values, which no scale can hold; mend them first")


def _replace(
    model: nn.Module, targets: list[Target], scheme: Scheme, calibration: Calibration | None
) -> dict[str, str]:
    """Pack and swap one module after another; the new tensors' names, with their scheme."""
    shared: dict[tuple, Held] = {}
    schemes: dict[str, str] = {}
    targets.reverse()
    while targets:  # what is done is let go, so that only one module is there twice
        target, held = targets.pop(), {}
        for name, weight in target.weights.items():
            key = (*storage_key(weight), weight.storage_offset(), weight.shape, weight.stride())
            if key not in shared:
                shared[key] = Held(_packed(target, name, weight, scheme, calibration))
            held[name] = shared[key]
        model.set_submodule(target.path, target.build(held, scheme))
        names = (name for name, _ in model.get_submodule(target.path).named_buffers())
        schemes |= {f"{target.path}.{name}": scheme.name for name in names if _is_held(name)}
    return schemes


@torch.no_grad()
def _packed(target: Target, name: str, weight: Tensor, scheme: Scheme, calibration: Calibration | None):
    if calibration is None:
        return scheme.packed(weight)
    from labkit.nn.quant.clip import clipped

    return clipped(weight, scheme, calibration.moment(target, name))


def _is_held(name: str) -> bool:
    return bool({"held", "up", "down"} & set(name.split(".")))


def _cast(model: nn.Module, dtype: torch.dtype) -> list[Kept]:
    kept = []
    for name, parameter in model.named_parameters():
        if "correction_bias" in name or not parameter.is_floating_point():
            kept.append(Kept(name, room_of(model, name), "a selection bias moves by thousandths"))
        else:
            parameter.data = parameter.data.to(dtype)
    return kept


def _report(
    model: nn.Module, scheme: Scheme, before: dict[str, int], after: dict[str, int], schemes: dict[str, str],
    kept: list[Kept], earlier: dict[str, str] | None = None, notes: tuple[str, ...] = (),
) -> Report:  # fmt: skip
    """One line for each tensor that is or was there: a packed one replaces its plain one under new names."""
    changes = []
    for name in dict.fromkeys([*before, *after]):
        room = (earlier or {}).get(name) or room_of(model, name)
        changes.append(Change(name, room, before.get(name, 0), after.get(name, 0), schemes.get(name, "")))
    return Report(scheme.name, tuple(changes), tuple(kept), notes)
