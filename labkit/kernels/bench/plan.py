"""What will be measured and how, decided and checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from labkit.core import runtime
from labkit.core.runtime import Unavailable
from labkit.kernels.bench import attention, moe, quant, topk
from labkit.kernels.bench.calls import BOTH, FORWARD, GRAPH
from labkit.kernels.bench.peers import Make, Peers
from labkit.kernels.bench.result import Absent
from labkit.kernels.bench.shapes import SHAPES, Shape

HOMES = {"moe": moe, "decode": moe, "quant": quant, "topk": topk, "attention": attention}
DIRECTIONS = ("forward", "both")
DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Plan:
    """What will be measured, and how.

    Args:
        shapes: by subject.
        device, dtype: of the tensors.
        rounds: that count; repeats: calls in a turn.
        direction: "forward", or "both" to time forward and backward too (not in decode and quant).
        graph: time the forward pass of experts and attention as a CUDA graph too; decode, quant and topk do so anyway.
        seed: of the inputs.
        peers: contestants besides the built-in ones; failed: those whose file could not be read.
        without: names to leave out.

    Raises ValueError for a name to leave out that nobody has, a peer with the name of a built-in one, and numbers and
    words out of range; Unavailable for large shapes and for graphs on a CPU.
    """

    shapes: Mapping[str, Sequence[Shape]]
    device: torch.device
    dtype: torch.dtype
    rounds: int
    repeats: int
    direction: str = "both"
    graph: bool = False
    seed: int = 0
    peers: Peers = field(default_factory=dict)
    failed: Sequence[Absent] = ()
    without: Sequence[str] = ()

    def __post_init__(self) -> None:
        if min(self.rounds, self.repeats) < 1:
            raise ValueError(f"rounds is {self.rounds} and repeats is {self.repeats}; give 1 or more")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction is {self.direction!r}; choose one of {', '.join(DIRECTIONS)}")
        if self.graph and self.device.type != "cuda":
            raise Unavailable("CUDA graphs were asked for, and there is no GPU in use. Instead: leave them out")
        large = [shape.name for subject, shapes in self.shapes.items() for shape in shapes if _large(subject, shape)]
        if large and self.device.type != "cuda":
            raise Unavailable(
                f"{', '.join(dict.fromkeys(large))}: on a CPU kernels are interpreted, and a GPU's sizes take far too "
                "long. Instead: name no shape, and tiny ones are taken"
            )
        built_in = {name for home in HOMES.values() for name in home.CONTESTANTS}
        taken = sorted(built_in & set(self.peers))
        if taken:
            raise ValueError(f"a file of peers defines {', '.join(taken)}, which is built in; rename it")
        unknown = sorted(set(self.without) - built_in - set(self.peers))
        if unknown:
            known = ", ".join(repr(name) for name in (*sorted(built_in), *self.peers))
            raise ValueError(f"nobody is called {', '.join(map(repr, unknown))}, to be left out; there are {known}")

    @property
    def interpreted(self) -> bool:
        """Whether our kernels are interpreted, so that times say nothing."""
        if self.device.type != "cuda":
            return True
        from labkit.kernels.language import INTERPRETED  # it loads Triton

        return INTERPRETED

    def modes(self, subject: str) -> tuple[str, ...]:
        """In which ways a subject's contestants are called."""
        if subject == "decode":
            return (GRAPH,) if self.device.type == "cuda" else (FORWARD,)
        if subject == "quant":
            return (FORWARD, GRAPH) if self.device.type == "cuda" else (FORWARD,)
        graph = self.graph or (subject == "topk" and self.device.type == "cuda")
        return FORWARD, *((GRAPH,) if graph else ()), *((BOTH,) if self.direction == "both" else ())

    def contestants(self, subject: str) -> dict[str, Make]:
        """Who competes, ours first."""
        mine = {name: makes[subject] for name, makes in self.peers.items() if subject in makes}
        return {**HOMES[subject].CONTESTANTS, **mine}

    def settings(self) -> dict[str, Any]:
        """How it was measured, in plain values."""
        return {
            "dtype": plain(self.dtype), "rounds": self.rounds, "repeats": self.repeats, "direction": self.direction,
            "graph": self.graph, "seed": self.seed, "skew": moe.SKEW, "interpreted": self.interpreted,
            "without": list(self.without),
        }  # fmt: skip


def settle(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that two words mean; "auto" is the GPU if there is one, and what it computes fastest in.

    Raises ValueError for another word, Unavailable for "cuda" without a GPU.

    >>> settle("cpu")
    (device(type='cpu'), torch.float32)
    """
    for name, word, words in (("device", device, DEVICES), ("dtype", dtype, DTYPES)):
        if word not in words:
            raise ValueError(f"{name} is {word!r}; choose one of {', '.join(words)}")
    if device == "cuda":
        found = runtime.capability("cuda")
        if not found.available:
            raise Unavailable(f"device is 'cuda', but {found.reason}. Instead: 'cpu', where tiny shapes show what runs")
    found = runtime.device() if device == "auto" else torch.device(device)
    if dtype == "auto":
        return found, runtime.dtype() if found.type == "cuda" else torch.float32
    return found, getattr(torch, dtype)


def plain(dtype: torch.dtype) -> str:
    """A dtype's name without its package."""
    return str(dtype).removeprefix("torch.")


def _large(subject: str, shape: Shape) -> bool:
    return SHAPES[subject].get(shape.name) == shape
