"""Hugging Face folders in and out: a config.json, safetensors, a tokenizer; what transformers' `from_pretrained` reads.

Weights are copied a tensor at a time into a model that has no memory of its own yet, so that loading takes little more
than the model itself. Left out on purpose: downloads, quantised formats, pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.core.config import ModelConfig
from labkit.core.names import family_of, from_hf_config, to_hf_config, undescribed
from labkit.core.positions import older_rope
from labkit.nn import shards
from labkit.nn.model import Transformer, filled
from labkit.nn.skeleton import skeleton
from labkit.nn.tensor_names import UNUSED, WORDS, Piece, pieces

KEPT_WIDE = ".expert_bias_E"  # the selection bias moves by thousandths: transformers keeps it in float32 too


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    implementation: str = "auto",
    on_progress: Callable[[float], object] | None = None,
) -> Transformer:
    """The model of a folder, in evaluation mode.

    Args:
        folder: with config.json of Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V2, DeepSeek-V3 or GPT-OSS, and safetensors.
        dtype: a floating-point format; None: as stored, which the embedding decides for all. The selection bias stays
            in float32 or wider. device: None: the CPU.
        implementation: of the experts, see `nn.Experts`.
        on_progress: called after each tensor with the share of them that are read.

    Multi-token modules that the configuration names and the folder lacks (transformers does not write them) are left
    out. Published files repeat the embedding and the head in them: such copies, and a head beside tied embeddings, must
    equal what they repeat. Raises ValueError for what is missing, left over, of another shape or damaged, naming it.
    """
    folder = Path(folder)
    if dtype not in (None, *shards.DTYPES.values()):
        raise ValueError(f"dtype is {dtype!r}; give torch.float32, bfloat16, float16 or float64, or None: as stored")
    config, family = read_config(folder)
    with shards.Shards(folder) as files:
        config = _without_absent_modules(config, files.names)
        model = skeleton(config, implementation)
        wanted = _wanted(model, family)
        _check_names(files, config, {piece.name for found in wanted.values() for piece in found})
        dtype = dtype or files.stored("model.embed_tokens.weight").dtype
        state = {}
        for name, tensor in model.state_dict().items():
            if name in wanted:
                state[name] = _filled(name, tensor, wanted[name], files, dtype, device)
                if on_progress is not None:
                    on_progress(len(state) / len(wanted))
    return filled(model, state)


def save(
    model: Transformer, folder: str | Path, *, tokenizer: Any = None, max_shard_bytes: int = 5_000_000_000
) -> Path:
    """Write a model as a folder that `load` and transformers' `AutoModelForCausalLM.from_pretrained` read.

    Args:
        model: in the number format to be stored.
        folder: made if it is not there; files of an earlier save are replaced.
        tokenizer: of transformers, or a `tokenizers.Tokenizer`; written so that `AutoTokenizer` reads it, its end and
            padding tokens noted in the configuration (a `tokenizers.Tokenizer` does not know which they are).
        max_shard_bytes: above that, several files and an index.

    Returns the folder. Raises ValueError if no family of transformers can express the model, its weights are packed, or
    the tokenizer has more tokens than the model.
    """
    folder, config = Path(folder), model.config
    family = family_of(config)
    _need_plain(model)
    entries = _entries(model, family)
    tokenizer = _of_transformers(tokenizer)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; do they belong?")
    folder.mkdir(parents=True, exist_ok=True)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")}
    values = {
        "architectures": [WORDS[family].architecture], "dtype": str(model.dtype).removeprefix("torch."),
        "_name_or_path": config.name, **to_hf_config(config, family), **older_rope(config), **special,
    }  # fmt: skip
    generation = {key: value for key, value in special.items() if value is not None}
    beside = {"config.json": values, "generation_config.json": generation}
    shards.write(folder, entries, max_shard_bytes, beside)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def to_hf(model: Transformer) -> dict[str, Tensor]:
    """All tensors of a model under the names and in the layout of its family's files. Raises ValueError as `save`."""
    _need_plain(model)
    return {entry.name: entry.make() for entry in _entries(model, family_of(model.config))}


def layout(config: ModelConfig, family: str) -> dict[str, tuple[int, ...]]:
    """Every tensor that a folder of such a model holds, and its shape there; `family` is a key of `WORDS`."""
    with torch.device("meta"):
        wanted, model = {}, skeleton(config)
        state = model.state_dict()
        for name, found in _wanted(model, family).items():
            for piece in found:
                part = state[name][piece.where] if piece.where else state[name]
                wanted[piece.name] = tuple(piece.theirs(part).shape)
    return wanted


def read_config(folder: str | Path) -> tuple[ModelConfig, str]:
    """The configuration of a folder and its family. Raises ValueError where there is none that we can express."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; give the folder of one model (names of a hub are not read here)")
    try:
        values = json.loads(path.read_text("utf-8"))
        family = values["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a model: {error!r}") from None
    if undescribed(values).get("quantization_config"):
        raise ValueError(
            f"{path} says that the weights are quantised; only plain ones are read. Where transformers can undo that, "
            "its save_pretrained writes such a folder"
        )
    return from_hf_config(values), family


def _need_plain(model: Transformer) -> None:
    from labkit.nn.quant.modules import held_of  # which loads kernels that a plain model never needs

    packed = list(held_of(model))
    if packed:
        raise ValueError(
            f"{_some(packed)} hold packed weights, which files of transformers have no place for; save the plain "
            "model, or keep it packed with labkit.nn.quant.save"
        )


def _wanted(model: Transformer, family: str) -> dict[str, tuple[Piece, ...]]:
    """For every tensor of ours that files hold, its pieces there."""
    return {
        name: pieces(name, tensor.shape, model.config, family)
        for name, tensor in model.state_dict().items()
        if not (name == "head.weight" and model.config.tie_embeddings)
    }


def _entries(model: Transformer, family: str) -> list[shards.Entry]:
    state = model.state_dict()
    return [_entry(state[name], piece) for name, found in _wanted(model, family).items() for piece in found]


def _entry(tensor: Tensor, piece: Piece) -> shards.Entry:
    part = tensor[piece.where] if piece.where else tensor
    return shards.Entry(piece.name, part.numel() * part.element_size(), lambda: piece.theirs(part))


def _filled(
    name: str, like: Tensor, found: tuple[Piece, ...], files: shards.Shards, dtype: torch.dtype, device: Any
) -> Tensor:
    """Our tensor, made once in its final place, then filled piece by piece."""
    dtype = torch.promote_types(dtype, torch.float32) if name.endswith(KEPT_WIDE) else dtype
    ours = torch.empty(like.shape, dtype=dtype, device=device)
    for piece in found:
        part, is_there = ours[piece.where] if piece.where else ours, files.stored(piece.name).shape
        expected = tuple(piece.theirs(like[piece.where] if piece.where else like).shape)
        if is_there != expected:
            raise ValueError(
                f"{files.folder}: {piece.name} has shape {is_there}, but config.json says {expected}; are both of the "
                "same model?"
            )
        part.copy_(piece.ours(files.read(piece.name)))
    return ours


def _without_absent_modules(config: ModelConfig, names: frozenset[str]) -> ModelConfig:
    if config.num_mtp_layers and not any(name.startswith(f"model.layers.{config.num_layers}.") for name in names):
        return config.replace(num_mtp_layers=0)
    return config


def _check_names(files: shards.Shards, config: ModelConfig, wanted: set[str]) -> None:
    missing, extra = sorted(wanted - files.names), sorted(files.names - wanted)
    if missing:
        raise ValueError(
            f"{files.folder} lacks {_some(missing)}; is the download whole, and config.json of this model?"
        )
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}
    head = "model.embed_tokens" if config.tie_embeddings else "lm_head"
    for i in range(config.num_mtp_layers):  # published files repeat what the modules share with the model
        layer = f"model.layers.{config.num_layers + i}"
        copies[f"{layer}.embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"{layer}.shared_head.head.weight"] = f"{head}.weight"
    for name in [name for name in extra if name in copies]:
        if not torch.equal(files.read(name), files.read(copies[name])):
            raise ValueError(
                f"{files.folder}: {name} should repeat {copies[name]}, but its values differ; there is one tensor for "
                "both in a ModelConfig"
            )
    unknown = [name for name in extra if name not in copies and not UNUSED.search(name)]
    if unknown:
        raise ValueError(
            f"{files.folder} has {_some(unknown)}, which its config.json has no place for; are both of the same model?"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _of_transformers(tokenizer: Any) -> Any:
    if tokenizer is None or hasattr(tokenizer, "save_pretrained"):
        return tokenizer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; give one of transformers, or a tokenizers.Tokenizer"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
