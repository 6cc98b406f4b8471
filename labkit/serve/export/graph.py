"""An ONNX graph while it is written: nodes, constants and weights under readable names, nothing about models.

Only operators of the standard set are used (`OPSET`), so that any runtime of that age can run the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.serve.export.need import need

OPSET = 18
"""The version of the operators; ONNX Runtime has had it since 1.14 (2023)."""
IR_VERSION = 9
"""The version of the file format; a newer one would shut older runtimes out for nothing."""


@dataclass(frozen=True)
class Value:
    """An input or output of a graph: its name, element type ("INT64", "FLOAT", "BOOL") and dimensions by name or size.

    `dims` None leaves even their number open.
    """

    name: str
    kind: str
    dims: tuple[str | int, ...] | None

    def proto(self) -> Any:
        """The same in ONNX's words."""
        onnx = need("onnx")
        return onnx.helper.make_tensor_value_info(self.name, getattr(onnx.TensorProto, self.kind), self.dims)


class Graph:
    """Nodes in the order in which they were added.

    Args:
        outer: the graph whose names this one may use, for the body of a loop; its constants and weights stand there.

    `weights` are tensors of the model, kept by reference and converted only when the file is written; `constants` are
    small arrays. Every method that adds something returns the name of the result.
    """

    def __init__(self, outer: Graph | None = None) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Tensor] = outer.weights if outer else {}
        self.constants: dict[str, np.ndarray] = outer.constants if outer else {}
        self._counts: dict[str, int] = outer._counts if outer else {}
        self.room = outer.room if outer else ""

    @contextlib.contextmanager
    def inside(self, room: str) -> Iterator[None]:
        """Names of what is added meanwhile begin with this, as those of a module's parts do."""
        before, self.room = self.room, f"{self.room}{room}."
        try:
            yield
        finally:
            self.room = before

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; an empty name leaves an optional input out."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = self._fresh(kind)
        results = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(need("onnx").helper.make_node(kind, list(inputs), results, name=name, **attributes))
        return results

    def weight(self, name: str, tensor: Tensor) -> str:
        """A tensor of the model by a name of its own; the same tensor may be named again."""
        name = self.room + name
        if self.weights.setdefault(name, tensor) is not tensor:
            raise ValueError(f"there are two weights called {name}")
        return name

    def constant(self, value: float | int | bool | Sequence[int] | Tensor) -> str:
        """A small array: whole numbers become int64, others float32."""
        if isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
        else:
            array = np.asarray(value)
            array = array.astype({"i": np.int64, "f": np.float32, "b": np.bool_}[array.dtype.kind])
        for name, known in self.constants.items():
            if known.dtype == array.dtype and known.shape == array.shape and known.tobytes() == array.tobytes():
                return name
        name = f"constant.{len(self.constants)}"
        self.constants[name] = array
        return name

    def rename(self, result: str, name: str) -> str:
        """The same value under a name that the graph's caller will know."""
        self.nodes.append(need("onnx").helper.make_node("Identity", [result], [name], name=self._fresh("Identity")))
        return name

    def linear(self, x_TD: str, name: str, weight: Tensor, bias: Tensor | None = None) -> str:
        """x @ weightᵀ + bias, for x [T, D] and weight [R, D] as torch keeps it."""
        more = [] if bias is None else [self.weight(f"{name}.bias", bias)]
        return self.op("Gemm", x_TD, self.weight(f"{name}.weight", weight), *more, transB=1)

    def split(self, x: str, sizes: Sequence[int], axis: int = -1) -> list[str]:
        """Parts of these sizes along an axis."""
        return self.ops("Split", len(sizes), x, self.constant(list(sizes)), axis=axis)

    def reshape(self, x: str, *sizes: int | str) -> str:
        """Another shape: numbers as in ONNX (−1: what is left, 0: as it was), names: tensors of one number."""
        if not any(isinstance(size, str) for size in sizes):
            return self.op("Reshape", x, self.constant(list(sizes)))
        parts = [size if isinstance(size, str) else self.constant([size]) for size in sizes]
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))

    def transpose(self, x: str, *order: int) -> str:
        """The dimensions in another order."""
        return self.op("Transpose", x, perm=order)

    def size(self, x: str, axis: int) -> str:
        """How long a dimension is, as a tensor of one number."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def rms_norm(self, x: str, name: str, weight: Tensor, eps: float) -> str:
        """x over the root of the mean of its squares, times the weight, along the last dimension."""
        mean = self.op("ReduceMean", self.op("Pow", x, self.constant(2.0)), self.constant([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(float(eps))))
        return self.op("Mul", self.op("Div", x, root), self.weight(f"{name}.weight", weight))

    def _fresh(self, kind: str) -> str:
        key = f"{self.room}{kind}"
        self._counts[key] = self._counts.get(key, 0) + 1
        return f"{key}.{self._counts[key]}"


def array(tensor: Tensor) -> np.ndarray:
    """A weight as the file holds it: float32, contiguous, on the CPU."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
