"""What `quantize` can be asked for: a format for the weights, and what its product does with the activations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.kernels import fp8, nf4, quant
from labkit.kernels.quant import Packed

Product = Callable[..., Tensor]


@dataclass(frozen=True)
class Scheme:
    """One way to store weights and to multiply by them.

    Args:
        name: how it is asked for. what: one line about it.
        pack: from weights [..., R, C] to a record; None: they are cast to `dtype`.
        product: from x, a packed [R, C] and a bias (or None) to [..., R].
        format: the class of the records.
        options: what `quantize` may change, with the values it takes; each is an argument of `pack` or of `product`.
        clips: whether `pack` takes `absmax`, so that calibration can choose it.
    """

    name: str
    what: str
    pack: Callable[..., Packed] | None = None
    product: Product = quant.weight_only
    format: type[Packed] | None = None
    dtype: torch.dtype | None = None
    pack_options: tuple[tuple[str, Any], ...] = ()
    product_options: tuple[tuple[str, Any], ...] = ()
    clips: bool = False

    def packed(self, w: Tensor, **more: Any) -> Packed:
        """The record of a weight."""
        return self.pack(w, **dict(self.pack_options), **more)

    def multiply(self, x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
        """x times the transposed weight."""
        return self.product(x, packed, bias, **dict(self.product_options))

    def with_options(self, **options: Any) -> Scheme:
        """The same with other values. Raises ValueError for options that it does not have."""
        given = {name: value for name, value in options.items() if value is not None}
        known = {**dict(self.pack_options), **dict(self.product_options)}
        if unknown := sorted(given.keys() - known.keys()):
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"scheme {self.name!r} has no option {unknown[0]!r}; {has}")
        changed = {
            kind: tuple((name, given.get(name, value)) for name, value in getattr(self, kind))
            for kind in ("pack_options", "product_options")
        }
        return Scheme(**{**self.__dict__, **changed})


def _int8(per: str) -> dict[str, Any]:
    return {"pack": functools.partial(quant.int8, per=per), "format": quant.Int8, "clips": True}


_BLOCK = {"pack_options": (("block", nf4.BLOCK),), "clips": True}
_FP8 = {"pack": fp8.fp8, "format": fp8.Fp8}
_ALL = (
    Scheme("int8", "INT8, a scale for every row; products in the activations' format", **_int8("row")),
    Scheme("int8_tensor", "INT8, a scale for every matrix", **_int8("tensor")),
    Scheme("int8_group", "INT8, a scale for 128 neighbours", **_int8("group"), pack_options=(("group", 128),)),
    Scheme(
        "llm_int8", "INT8 times INT8, columns of outliers apart", **_int8("row"), product=quant.int8_product,
        product_options=(("threshold", 6.0),),
    ),
    Scheme("w8a8", "INT8 times INT8, a scale for every row and token", **_int8("row"), product=quant.int8_product),
    Scheme("nf4", "4 bits, a scale for 64 neighbours", pack=nf4.nf4, format=nf4.NF4, **_BLOCK),
    Scheme("nf4_double", "NF4 with scales in 8 bits", pack=nf4.nf4_double, format=nf4.NF4Double, **_BLOCK),
    Scheme("fp8", "E4M3, a scale for 128 × 128; products in the activations' format", **_FP8),
    Scheme("fp8_block", "E4M3 times E4M3, tokens by blocks of 128", **_FP8, product=fp8.fp8_product),
    Scheme("fp16", "every weight and activation in float16", dtype=torch.float16),
    Scheme("bf16", "every weight and activation in bfloat16", dtype=torch.bfloat16),
)  # fmt: skip
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in _ALL}
"""Every scheme by its name."""


def scheme(name: str | Scheme, **options: Any) -> Scheme:
    """The scheme of a name, with options.

    Raises ValueError for a name that does not exist and for options that the scheme does not have.

    >>> scheme("nf4", block=32).pack_options
    (('block', 32),)
    """
    if isinstance(name, Scheme):
        return name.with_options(**options)
    if name not in SCHEMES:
        raise ValueError(f"scheme is {name!r}; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name].with_options(**options)
