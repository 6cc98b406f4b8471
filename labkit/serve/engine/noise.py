"""Noise by number, not by history: the same key gives the same noise on every machine and in any company.

SplitMix64 (Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators): output i of a generator is a
hash of its key and i, so that any of them can be had without those before. Integers wrap at 64 bits, in torch as here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALL = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def mixed(key: int, word: int) -> int:
    """A new key out of a key and a word, both taken modulo 2⁶⁴.

    >>> mixed(0, 1) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0
    True
    """
    z = (key + word * _STEP) & _ALL
    for shift, factor in _MIX:
        z = ((z ^ (z >> shift)) * factor) & _ALL
    return z ^ (z >> 31)


def stream_key(seed: int, index: int) -> int:
    """The key of one continuation of a request."""
    return mixed(mixed(seed & _ALL, 1), index + 1)


def draw_key(stream: int, token: int) -> int:
    """The key of the draw of its token number `token`."""
    return mixed(stream, token + 1)


def gumbel(keys_R: Tensor, width: int) -> Tensor:
    """Standard Gumbel noise: the largest of logits + noise is a draw from their softmax (Gumbel 1954).

    Args:
        keys_R: [R] int64, the keys' 64 bits; width: V.

    Returns [R, V] float64, always finite: 52 bits of each hash.
    """
    words_V = torch.arange(1, width + 1, device=keys_R.device)
    z_RV = keys_R[:, None] + words_V * _signed(_STEP)
    for shift, factor in _MIX:
        z_RV = (z_RV ^ _shifted(z_RV, shift)) * _signed(factor)
    uniform_RV = (_shifted(z_RV ^ _shifted(z_RV, 31), 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform_RV))


def signed(keys: Sequence[int]) -> list[int]:
    """The same 64 bits as whole numbers that a tensor of int64 takes."""
    return [_signed(key) for key in keys]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in."""
    return (z >> by) & ((1 << (64 - by)) - 1)
