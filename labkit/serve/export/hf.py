"""A model as a folder in Hugging Face's layout, checked and compared: vLLM, SGLang, transformers load it as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.nn import interop
from labkit.nn.model import Transformer
from labkit.nn.shards import INDEX, write_json
from labkit.serve.export.compare import Compared, farthest, shared
from labkit.serve.export.folder import TOKENIZER_FILES, FolderReport, check_folder, read_json

Progress = Callable[[float, str], None]
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class HfReport:
    """What was written.

    Args:
        check: what `check_folder` says of it. nbytes: of its tensors' files.
        compared: transformers' logits with ours; None where they were not.
    """

    check: FolderReport
    nbytes: int
    compared: Compared | None = None

    def __str__(self) -> str:
        words = f"transformers' {self.compared}" if self.compared else "logits not compared"
        return f"{self.check.folder}: {self.nbytes:,} bytes of weights; {words}\n{self.check}"


def to_hf(
    model: Transformer | str | Path,
    out: str | Path,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    untie: bool = False,
    check: bool = True,
    max_shard_bytes: int = 5_000_000_000,
    on_progress: Progress = lambda share, what: None,
) -> HfReport:
    """Write a model as a folder that other servers load unchanged, where they know its layout.

    Args:
        model: one of ours, or a folder of one, whose tokenizer, chat template and settings of generation come along.
        out: another folder; made if it is not there.
        tokenizer: of transformers, in place of the folder's.
        dtype: of the stored weights; None: as they are.
        untie: store the head beside the embedding where the two are tied: some servers read no tied head.
        check: load the folder with transformers and hold its logits, cached steps included, against ours in float32.
        max_shard_bytes: above that, several files and an index.
        on_progress: told how far it is, from 0 to 1, and what is being done.

    Files appear in `out` only when all is well. Raises ValueError for a model that no layout expresses, packed weights,
    a folder that contradicts itself, and an `out` that is the source; RuntimeError if transformers computes something
    else.
    """
    source, out = (None if isinstance(model, Transformer) else Path(model)), Path(out)
    if source is not None and out.resolve() == source.resolve():
        raise ValueError(f"out is {out}, the folder that is read; give another one")
    if source is not None:
        model = interop.load(source)
        on_progress(0.2, "model loaded")
    model = _as_asked(model, dtype, untie)
    with _room(out) as room:
        interop.save(model, room, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes)
        if source is not None:
            _bring_along(source, room, with_tokenizer=tokenizer is None)
        _name_class_that_all_know(room)
        on_progress(0.6, "folder written")
        report = check_folder(room)
        if not report.ok:
            raise ValueError(f"the folder could not be served as it is, so nothing was written:\n{report}")
        on_progress(0.7, "folder checked")
        found = compare(model, room) if check else None
        on_progress(1.0, "logits compared" if check else "logits not compared")
        _place(room, out)
    nbytes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return HfReport(replace(report, folder=out), nbytes, found)


def compare(model: Transformer, folder: Path) -> Compared:
    """How far transformers' logits of a folder are from a model's. Raises RuntimeError if too far."""
    from transformers import AutoModelForCausalLM

    with _quietly():
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="eager", attn_implementation="eager"
        ).eval()
    cache = None

    def step(ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        nonlocal cache
        positions_BS = (mask_BS.cumsum(1) - 1).clamp_min(0)[:, -ids_BS.shape[1] :]
        found = theirs(ids_BS, mask_BS, position_ids=positions_BS, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        return found.logits

    return farthest(model, step).need_close()


def _as_asked(model: Transformer, dtype: torch.dtype | None, untie: bool) -> Transformer:
    untie = untie and model.config.tie_embeddings
    if not untie and dtype in (None, model.dtype):
        return model

    def take(tensor: Tensor) -> Tensor:
        return tensor.detach() if dtype is None else tensor.detach().to(dtype)

    made = shared(model, take, **({"tie_embeddings": False} if untie else {}))
    for name, tensor in model.state_dict().items():
        if name.endswith(interop.KEPT_WIDE):  # as `interop.load` keeps it
            module = made.get_submodule(name.rpartition(".")[0])
            module.expert_bias_E = tensor.detach().to(torch.promote_types(made.dtype, torch.float32))
    return made


@contextmanager
def _room(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone at the end."""
    place = out.resolve()
    room = place.with_name(f".{place.name}.new")
    shutil.rmtree(room, ignore_errors=True)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _place(room: Path, out: Path) -> None:
    """Move what was made into its folder; what an earlier export left there and this one has not is removed."""
    out.mkdir(parents=True, exist_ok=True)
    made = {path.name for path in room.iterdir()}
    for name in sorted(made, key=lambda name: name == "config.json"):  # the configuration last
        os.replace(room / name, out / name)
    old = [*out.glob("model*.safetensors"), out / INDEX, *(out / name for name in TOKENIZER_FILES)]
    for path in old:
        if path.name not in made:
            path.unlink(missing_ok=True)


def _bring_along(source: Path, out: Path, with_tokenizer: bool) -> None:
    """The tokenizer's files and what the source says of special tokens and generation."""
    if with_tokenizer:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
    theirs = {**read_json(source / "config.json"), **read_json(source / "generation_config.json")}
    known = {key: theirs[key] for key in _KEPT if theirs.get(key) is not None and with_tokenizer}
    for name, old in (("config.json", {}), ("generation_config.json", read_json(source / "generation_config.json"))):
        _replace_json(out / name, {**old, **read_json(out / name), **known})


def _name_class_that_all_know(out: Path) -> None:
    """transformers 5 calls a fast tokenizer's class by a name that transformers 4 does not know; both know this one."""
    path = out / "tokenizer_config.json"
    said = read_json(path)
    if said.get("tokenizer_class") == "TokenizersBackend":
        _replace_json(path, {**said, "tokenizer_class": "PreTrainedTokenizerFast"})


def _replace_json(path: Path, values: dict[str, Any]) -> None:
    new = path.with_name(f".{path.name}.new")
    write_json(new, values)
    os.replace(new, path)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
