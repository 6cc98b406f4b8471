"""What in a model can be packed, and how: linear layers, embeddings, our SwiGLU, and experts in fused tensors.

A matrix of a chosen room that is none of these is an error, not an exception: whoever knows that it is small names it
in `keep`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from labkit.kernels.variant import PLAIN, activate
from labkit.nn.experts import Experts, SwiGLU
from labkit.nn.hf_experts import faults
from labkit.nn.quant.experts import OurActivation, QuantExperts, TheirActivation
from labkit.nn.quant.modules import Held, QuantEmbedding, QuantLinear, QuantSwiGLU
from labkit.nn.quant.rooms import ROOMS, room_of, storage_key
from labkit.nn.quant.schemes import Scheme


@dataclass(frozen=True, eq=False)
class Target:
    """A module that can be replaced by a packed one.

    Args:
        path: where it stands. room: see `rooms`.
        weights: [..., R, C], views in the orientation of a product, by their names in the module.
        build: from a packed weight each, and the scheme, to the module that takes its place.
        activation: of experts and SwiGLU, what stands between their two matrices; else None.
        bias: of experts, what is added before it, [E, U]; else None.
    """

    path: str
    room: str
    module: nn.Module
    weights: dict[str, Tensor]
    build: Callable[[dict[str, Held], Scheme], nn.Module]
    activation: Callable[[Tensor], Tensor] | None = None
    bias: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that will be packed, in full."""
        return tuple(f"{self.path}.{name}" if self.path else name for name in self.weights)


@dataclass(frozen=True)
class Kept:
    """A parameter that stays as it is, and why."""

    name: str
    room: str
    why: str


class Refused(ValueError):
    """A module that holds matrices in a way that cannot be packed; says why."""


def find(model: nn.Module, rooms: Sequence[str], keep: Sequence[str] = ()) -> tuple[list[Target], list[Kept]]:
    """Everything in these rooms that can be packed, and every parameter that stays, with the reason.

    Args:
        rooms: of `ROOMS`. keep: names of parameters or modules that stay, or patterns such as "*layers.0.*".

    Raises ValueError for a room that does not exist, a `keep` that matches nothing, and matrices in the chosen rooms
    that cannot be packed, naming them.
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if unknown := [room for room in rooms if room not in ROOMS]:
        raise ValueError(f"rooms has {unknown[0]!r}; choose from {', '.join(ROOMS)}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if unused := [one for one in keep if not any(_asked(name, (one,)) for name in parameters)]:
        raise ValueError(f"keep has {unused[0]!r}, which matches no parameter and no module of {type(model).__name__}")
    targets, problems = [], []
    for path, module in model.named_modules():
        names = [f"{path}.{name}".removeprefix(".") for name, _ in module.named_parameters(recurse=False)]
        maker = _maker(module)
        if maker and names and room_of(model, names[0]) in rooms and not any(_asked(name, keep) for name in names):
            try:
                targets.append(maker(path, room_of(model, names[0]), module))
            except Refused as refusal:
                problems.append(f"{path}: {refusal}")
    packed, kept = {name for target in targets for name in target.names}, []
    problems += _shared(parameters, packed)
    for name, parameter in parameters.items():
        room = room_of(model, name)
        if name not in packed and not any(name.startswith(problem.split(": ")[0]) for problem in problems):
            why = "asked for" if _asked(name, keep) else _why(model, name, parameter, room in rooms)
            kept += [Kept(name, room, why)] if why else []
            problems += [] if why else [f"{name}: a matrix {tuple(parameter.shape)} of {_owner(model, name)}"]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{len(problems)} of what was to be packed cannot be: {'; '.join(problems[:3])}{more}. Leave it out with "
            "keep=[…], names or patterns; the report will tell"
        )
    return targets, kept


def target_of(path: str, room: str, module: nn.Module) -> Target | None:
    """How this module is packed; None if it is none that can be. Raises `Refused` (a ValueError) where it says why."""
    maker = _maker(module)
    return maker(path, room, module) if maker else None


def _asked(name: str, keep: Sequence[str]) -> bool:
    words = name.split(".")
    paths = [".".join(words[: i + 1]) for i in range(len(words))]
    return any(fnmatchcase(path, pattern) for path in paths for pattern in keep)


def _why(model: nn.Module, name: str, parameter: Tensor, chosen: bool) -> str:
    """Why a parameter stays; empty where there is no reason."""
    if not chosen:
        return "its room stays"
    if parameter.ndim < 2:
        return "a vector"
    if "bias" in name.rsplit(".", 1)[-1]:
        return "a bias"
    return "a convolution" if "Conv" in _owner(model, name) else ""


def _owner(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__


def _shared(parameters: dict[str, Tensor], packed: set[str]) -> list[str]:
    by_storage: dict[tuple[str, int], list[str]] = {}
    for name, parameter in parameters.items():
        by_storage.setdefault(storage_key(parameter), []).append(name)
    return [
        f"{inside[0]}: shares its memory with {outside[0]}; choose the rooms of both or of neither"
        for names in by_storage.values()
        if (inside := [n for n in names if n in packed]) and (outside := [n for n in names if n not in packed])
    ]


def _maker(module: nn.Module) -> Callable[[str, str, nn.Module], Target] | None:
    """How a module of this kind is packed; None: it is not."""
    if type(module) in _MAKERS:
        return _MAKERS[type(module)]
    down = getattr(module, "down_proj", None)
    return _their_experts if isinstance(down, nn.Parameter) and down.ndim == 3 else None


def _linear(path: str, room: str, module: nn.Linear) -> Target:
    def build(held: dict[str, Held], scheme: Scheme) -> nn.Module:
        return QuantLinear(held["weight"], scheme, module.bias, module.weight.dtype)

    return Target(path, room, module, {"weight": module.weight}, build)


def _embedding(path: str, room: str, module: nn.Embedding) -> Target:
    if module.max_norm is not None:
        raise Refused("an embedding with max_norm changes its weights")

    def build(held: dict[str, Held], scheme: Scheme) -> nn.Module:
        return QuantEmbedding(held["weight"], scheme, module.weight.dtype)

    return Target(path, room, module, {"weight": module.weight}, build)


def _swiglu(path: str, room: str, module: SwiGLU) -> Target:
    weights = {"gate_up_2FD": module.gate_up_2FD, "down_DF": module.down_DF}
    build = lambda held, scheme: QuantSwiGLU(held["gate_up_2FD"], held["down_DF"], scheme)  # noqa: E731
    return Target(path, room, module, weights, build, lambda up: activate(up, PLAIN))


def _our_experts(path: str, room: str, module: Experts) -> Target:
    activation = OurActivation(module.config)

    def build(held: dict[str, Held], scheme: Scheme) -> nn.Module:
        biases = module.gate_up_bias_E2F, module.down_bias_ED
        return QuantExperts(held["gate_up_E2FD"], held["down_EDF"], activation, scheme, *biases)

    weights = {"gate_up_E2FD": module.gate_up_E2FD, "down_EDF": module.down_EDF}
    return Target(path, room, module, weights, build, activation, module.gate_up_bias_E2F)


def _their_experts(path: str, room: str, module: nn.Module) -> Target:
    """Experts of transformers in fused tensors, [E, U, D] and [E, D, F] or transposed."""
    kind = type(module).__name__
    if not hasattr(module, "is_transposed"):
        raise Refused(f"{kind} is called otherwise than with tokens, ids and scores")
    if getattr(module, "has_post_expert_norm", False):
        raise Refused(f"{kind} normalises what its experts give")
    first = "gate_up_proj" if module.has_gate else "up_proj"
    if not hasattr(module, first):
        raise Refused(f"{kind} has no {first}")
    names, turned = (first, "down_proj"), module.is_transposed
    weights = {name: getattr(module, name).mT if turned else getattr(module, name) for name in names}
    activation = TheirActivation(module, not faults(module))

    def build(held: dict[str, Held], scheme: Scheme) -> nn.Module:
        biases = [getattr(module, f"{name}_bias", None) for name in names]
        for name in (*names, *(f"{name}_bias" for name in names)):
            module._parameters.pop(name, None)
        return QuantExperts(held[first], held["down_proj"], activation, scheme, *biases)

    return Target(path, room, module, weights, build, activation, getattr(module, f"{first}_bias", None))


_MAKERS = {nn.Linear: _linear, nn.Embedding: _embedding, SwiGLU: _swiglu, Experts: _our_experts}
