"""Modules whose weights are packed: what stands in a model where a linear layer, an embedding or a SwiGLU stood.

Their tensors are buffers, which no optimizer sees. `.half()` and `.to(dtype)` leave them as they are: their formats are
what they mean. Devices change as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from labkit.kernels.quant import Packed
from labkit.nn.quant.schemes import Scheme


class Held(nn.Module):
    """The tensors of one packed weight, as buffers of their own names.

    Args:
        packed: the record. `.packed` gives it back, wherever the tensors are by then.
    """

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.format, self.settings, self._record = type(packed), packed.settings, None
        for name, tensor in packed.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def packed(self) -> Packed:
        """The record, made once for as long as the tensors stay the same ones."""
        tensors = dict(self._buffers)
        if self._record is None or any(self._record.tensors[name] is not tensor for name, tensor in tensors.items()):
            self._record = self.format(**tensors, **self.settings)
        return self._record

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: tensor.dtype for name, tensor in self._buffers.items()}
        moved = {name: fn(tensor) for name, tensor in self._buffers.items()}
        for name, tensor in moved.items():
            same = tensor.dtype == kept[name]
            self._buffers[name] = tensor if same else self._buffers[name].to(tensor.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.format.__name__} {tuple(self.packed.shape)}, {self.packed.nbytes:,} bytes"


class QuantLinear(nn.Module):
    """A linear layer with a packed weight.

    Args:
        packed: [R, C]. scheme: says the product. bias: [R] or None, as it was. dtype: of `.weight`.
    """

    def __init__(self, held: Held, scheme: Scheme, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.held, self.scheme, self.dtype = held, scheme, dtype
        self.out_features, self.in_features = held.packed.shape
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The weight made whole, anew at every look: for code that reads it beside calling the layer."""
        return self.held.packed.dequantize(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., R] in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.scheme.multiply(x, self.held.packed, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme.name!r}"


class QuantEmbedding(nn.Module):
    """A table of packed rows, made whole as they are looked up.

    Args:
        held: [V, D]. dtype: of what comes out, and of `.weight`.
    """

    def __init__(self, held: Held, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        self.held, self.scheme, self.dtype = held, scheme, dtype
        self.num_embeddings, self.embedding_dim = held.packed.shape

    @property
    def weight(self) -> Tensor:
        """The table made whole, anew at every look."""
        return self.held.packed.dequantize(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] whole numbers to [..., D]."""
        return self.held.packed.rows(ids, self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype  # `.to(dtype)` says what the model computes in
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.scheme.name!r}"


class QuantSwiGLU(nn.Module):
    """Our dense feed-forward layer with packed matrices [2F, D] and [D, F]."""

    def __init__(self, up: Held, down: Held, scheme: Scheme) -> None:
        super().__init__()
        self.up, self.down, self.scheme = up, down, scheme

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        gate, up = self.scheme.multiply(x, self.up.packed).chunk(2, dim=-1)
        return self.scheme.multiply(nn.functional.silu(gate) * up, self.down.packed)

    def extra_repr(self) -> str:
        return f"scheme={self.scheme.name!r}"


def held_of(module: nn.Module) -> dict[str, Held]:
    """Every packed weight below a module, by its path."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Held)}
