"""The engine of a folder as `labkit serve` wants it, built in the worker's process; no torch before it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from labkit.serve.tokenizer import read

DTYPES = ("auto", "float32", "bfloat16", "float16")
WARM_TOKENS = 2


@dataclass(frozen=True)
class Model:
    """What to serve, and where; plain data, so that it travels to another process.

    Args:
        folder: of Hugging Face's format.
        device: auto (a GPU if there is one), cpu, cuda, or one such as cuda:1.
        dtype: auto (as stored on a GPU, float32 on the CPU), or one of DTYPES.
        max_context, max_sequences, max_waiting, num_blocks: see `Limits`; None: what fits the model and the machine.

    Raises ValueError for a dtype that is none of them, FileNotFoundError for a folder that holds no model.
    """

    folder: str
    device: str = "auto"
    dtype: str = "auto"
    max_context: int | None = None
    max_sequences: int | None = None
    max_waiting: int | None = None
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose from {', '.join(DTYPES)}")
        folder = Path(self.folder)
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"there is no {name} in {folder}; give a folder that `save_pretrained` wrote, tokenizer and all"
                )

    @property
    def name(self) -> str:
        """Of the folder."""
        return Path(self.folder).resolve().name

    def context(self) -> int | None:
        """The longest context, where config.json says it."""
        return json.loads((Path(self.folder) / "config.json").read_text("utf-8")).get("max_position_embeddings")


def build(model: Model, on_progress: Callable[[float, str], object] = lambda share, what: None) -> Any:
    """The engine, warm: it has answered once.

    Args:
        on_progress: called with a share, 0 to 1, and what is being done.

    Raises ValueError for what cannot be loaded or served, `core.runtime.Unavailable` for a device that is not there.
    """
    on_progress(0.05, "starting torch")
    from labkit.serve.engine import SamplingParams
    from labkit.serve.engine.loading import load

    device, dtype = _device(model.device), _dtype(model.dtype)
    engine = load(
        model.folder, device=device, dtype=dtype, limits=partial(_limits, model), tokenizer=read(model.folder),
        name=model.name, on_progress=lambda share, what: on_progress(0.25 + 0.6 * share, f"reading the {what}"),
    )  # fmt: skip
    on_progress(0.9, "the first answer")
    engine.generate([[0]], SamplingParams(max_tokens=WARM_TOKENS, ignore_eos=True))
    on_progress(1.0, "ready")
    return engine


def _limits(model: Model, network: Any) -> Any:
    from labkit.serve.engine.loading import default_limits

    wanted = {"max_sequences": model.max_sequences, "max_waiting": model.max_waiting, "num_blocks": model.num_blocks}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    limits = default_limits(network, model.max_context)
    room = max(limits.max_tokens_per_step, wanted.get("max_sequences", 0))
    return replace(limits, **wanted, max_tokens_per_step=room)


def _device(name: str) -> Any:
    import torch

    from labkit.core import runtime

    if name == "auto":
        return runtime.device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; give auto, cpu, cuda or one such as cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r} and there is no GPU here; give cpu")
    return device


def _dtype(name: str) -> Any:
    import torch

    return None if name == "auto" else getattr(torch, name)
