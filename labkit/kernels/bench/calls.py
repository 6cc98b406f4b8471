"""The ways in which a contestant is called: its forward pass, with its gradients, or as a CUDA graph.

Each gives (output, gradients by the case's names), so that what is timed is also what is checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from labkit.core.runtime import Unavailable
from labkit.kernels.bench.peers import Call

FORWARD, BOTH, GRAPH = "forward", "forward + backward", "graph"
MODES = (FORWARD, BOTH, GRAPH)
Timed = Callable[[], tuple[Any, dict[str, Tensor]]]


def timed(call: Call, case: Any, mode: str) -> Timed:
    """What will be timed; on a GPU compiled, tuned and run twice already.

    Raises Unavailable if the contestant has no such mode, and whatever the contestant raises.
    """
    run = {FORWARD: _forward, BOTH: _both, GRAPH: _graph}[mode](call, case)
    if case.device.type == "cuda":
        run()
        run()
        torch.cuda.synchronize()
    return run


def restored(call: Call, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients in the layout of the case's leaves."""
    return {name: call.restore.get(name, lambda grad: grad)(grad) for name, grad in gradients.items()}


def saved(call: Call, device: torch.device) -> int | None:
    """Bytes that a forward pass leaves allocated for its backward, without its output; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    output = call.forward()
    kept = torch.cuda.memory_allocated(device) - before
    storages = [leaf.untyped_storage() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return max(0, kept - sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))


def compile_on_gpu(fn: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` for fixed shapes. Raises Unavailable on a CPU, where it would measure a C++ compiler."""
    if device.type != "cuda":
        raise Unavailable("compiled code is measured on a GPU only")
    return torch.compile(fn, dynamic=False)


def _forward(call: Call, case: Any) -> Timed:
    def run() -> tuple[Any, dict[str, Tensor]]:
        with torch.no_grad():
            return call.forward(), {}

    return run


def _both(call: Call, case: Any) -> Timed:
    if not call.leaves:
        raise Unavailable("it has no backward pass")
    unknown = set(call.leaves) - set(case.leaves)
    if unknown:
        raise ValueError(f"it has leaves {sorted(unknown)}; the case's are {', '.join(case.leaves)}")
    names, leaves = tuple(call.leaves), tuple(call.leaves.values())
    grad = functools.cache(case.grad.to)  # in the output's dtype, which the first run tells

    def run() -> tuple[Any, dict[str, Tensor]]:
        output = call.forward()
        value = case.value(output)
        gradients = torch.autograd.grad(value, leaves, grad(value.dtype))
        return output, dict(zip(names, gradients, strict=True))

    return run


def _graph(call: Call, case: Any) -> Timed:
    if case.device.type != "cuda":
        raise Unavailable("CUDA graphs need a GPU")
    if not call.graphs:
        raise Unavailable("it waits for the device, which no CUDA graph can record")
    forward = _forward(call, case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward()
        forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = forward()

    def run() -> tuple[Any, dict[str, Tensor]]:
        graph.replay()
        return kept

    return run
