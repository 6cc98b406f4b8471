"""An engine out of a folder, or of a model: sizes that fit this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.core.memory import kv_cache_bytes_per_token
from labkit.nn.model import Transformer
from labkit.serve.engine.runner import Runner, TorchRunner
from labkit.serve.scheduler.limits import Limits
from labkit.serve.tokenizer import read

if TYPE_CHECKING:
    from labkit.serve.engine.engine import Engine

_BLOCK = 16
_CPU_CACHE = 1 << 30  # bytes
_CUDA_SHARE = 0.9  # of what is free, after what a step computes with
_CUDA_ROOM = 4 << 30  # bytes for that
_PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")  # classes that are what tokenizer.json says


def load(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    limits: Limits | Callable[[Transformer], Limits] | None = None,
    tokenizer: Any = None,
    implementation: str = "auto",
    on_progress: Callable[[float, str], object] | None = None,
    **options: Any,
) -> Engine:
    """An engine for a Hugging Face folder, its tokenizer and its end-of-sequence tokens with it.

    Args:
        folder: with config.json, safetensors and, if there is one, a tokenizer.
        device: None: a GPU if there is one. dtype: None: as stored on a GPU, float32 on the CPU, where it is faster.
        limits: or what makes them of the model once it is loaded; None: `default_limits`.
        tokenizer: None: the folder's, of transformers where tokenizer.json alone does not say all.
        implementation: of the experts. options: of `Engine`.
        on_progress: called with a share (0 to 1) and what was loaded last.

    Raises ValueError as `nn.interop.load` does.
    """
    from labkit.core import runtime
    from labkit.serve.engine.engine import Engine

    device = runtime.device() if device is None else torch.device(device)
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    tell = on_progress or (lambda share, what: None)
    tell(0.0, "libraries")
    model = Transformer.from_pretrained(
        folder,
        dtype=dtype,
        device=device,
        implementation=implementation,
        on_progress=lambda share: tell(0.9 * share, "weights"),
    )
    tell(0.95, "tokenizer")
    eos = eos_of(Path(folder))
    if not eos or tokenizer is None:
        theirs = (plain_tokenizer(Path(folder)) if eos else None) or tokenizer_of(folder)
        tokenizer, eos = tokenizer or theirs, eos or eos_of(Path(folder), theirs)
    limits = limits(model) if callable(limits) else limits
    return Engine(model, tokenizer, limits, **{"eos_token_ids": eos, "name": Path(folder).name, **options})


def plain_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder whose tokenizer.json says all; None if its class may add to that.

    An engine wants no more of it, and transformers takes seconds to import.
    """
    file, beside = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not (file.is_file() and beside.is_file()):
        return None
    words = json.loads(beside.read_text("utf-8"))
    if words.get("tokenizer_class") not in _PLAIN or words.get("add_bos_token") or words.get("add_eos_token"):
        return None
    return read(folder)


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer of a folder, or None if it has none."""
    if not (Path(folder) / "tokenizer.json").is_file() and not (Path(folder) / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def eos_of(folder: Path, tokenizer: Any = None) -> tuple[int, ...]:
    """The tokens that end an answer: generation_config.json's, else config.json's, else the tokenizer's."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
            if found is not None:
                return tuple(found) if isinstance(found, list) else (found,)
    found = getattr(tokenizer, "eos_token_id", None)
    return () if found is None else (found,)


def default_limits(model: Transformer, max_context: int | None = None) -> Limits:
    """Limits for this model where it is: as many blocks as can be of use, and have room.

    Args:
        max_context: prompt and answer together; None: the model's, up to 8192.
    """
    context = min(model.config.max_context, 8192) if max_context is None else max_context
    slow = model.device.type == "cpu"
    sequences = 64 if slow else 256
    fit = _cache_bytes(model) // (_BLOCK * _bytes_per_token(model))
    useful = sequences * -(-context // _BLOCK)
    return Limits(
        num_blocks=max(min(fit, useful), -(-context // _BLOCK)),
        block_size=_BLOCK,
        max_context=context,
        max_tokens_per_step=256 if slow else 2048,
        max_sequences=sequences,
    )


def _cache_bytes(model: Transformer) -> int:
    if model.device.type != "cuda":
        return _CPU_CACHE
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(int((free - _CUDA_ROOM) * _CUDA_SHARE), 0)


def _bytes_per_token(model: Transformer) -> int:
    return int(kv_cache_bytes_per_token(model.config, model.dtype.itemsize))


def runner_of(model: Transformer, limits: Limits | None, graphs: bool | None) -> tuple[Runner, Limits]:
    """What computes a model's chunks, and the limits it was made for.

    Raises ValueError for limits beyond the model's context, and for graphs where there can be none.
    """
    limits = default_limits(model) if limits is None else limits
    if limits.max_context > model.config.max_context:
        raise ValueError(
            f"limits.max_context is {limits.max_context}, the model was made for {model.config.max_context}; lower it"
        )
    model.eval()
    if graphs is False:
        return TorchRunner(model, limits), limits
    from labkit.serve.engine.graphs import GraphRunner, refuses

    why_not = refuses(model)
    if graphs and why_not:
        raise ValueError(f"graphs is True, and cannot be: {why_not}")
    return (TorchRunner if why_not else GraphRunner)(model, limits), limits
