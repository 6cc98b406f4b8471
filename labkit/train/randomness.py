"""The state of every random generator that a run may draw from: Python's, NumPy's, torch's on the CPU and on GPUs."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states as tensors and as plain values: what `restore` takes.

    >>> state = capture()
    >>> first = torch.rand(2)
    >>> restore(*state)
    >>> bool((torch.rand(2) == first).all())
    True
    """
    import numpy as np

    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (the global generator is meant)
    numpy = [kind, keys.tolist(), int(position), int(has_gauss), float(cached)]
    return tensors, {"python": [version, list(words), gauss], "numpy": numpy}


def restore(tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Put captured states back; those of GPUs that this machine lacks are left out."""
    import numpy as np

    torch.set_rng_state(tensors["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{i}"], i)
    version, words, gauss = rest["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = rest["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
