"""Whose logits these are: a digest of a model's weights, so that one teacher is not taken for another."""

from __future__ import annotations

import hashlib

from torch import nn

from labkit.nn.shards import checksum
from labkit.train.checkpoint import model_state


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, over every tensor's name, shape, number format and bytes; the device does not matter.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> before = fingerprint(layer)
    >>> layer.bias.data[0] += 1
    >>> before == fingerprint(layer)
    False
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(model_state(model).items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {checksum(tensor)}\n".encode())
    return sha.hexdigest()
