"""A run's whole state on disk: written beside, made durable, then renamed, so that a folder is whole or not there.

`step-00000100/` holds `model.safetensors`, `optimizer.safetensors` and `random.safetensors`, the rest in `state.json`,
and `manifest.json` with the size and SHA-256 of each. Nothing here is ever pickled or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from labkit.train import randomness

MANIFEST = "manifest.json"
TENSORS = ("model", "optimizer", "random")
FILES = (*(f"{name}.safetensors" for name in TENSORS), "state.json")
FORMAT = 1


class Damaged(ValueError):
    """A checkpoint that must not be used; the message names the file and says what is wrong with it."""


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint held beside tensors: the step it was made after, and whatever was given to `save`."""

    step: int
    rest: dict[str, Any]


def save(
    folder: Path | str, step: int, model: nn.Module, optimizer: Optimizer, rest: dict[str, Any], *, keep: int = 3
) -> Path:
    """Write `folder/step-NNNNNNNN`, then remove all but the newest `keep`.

    Args:
        folder: of all checkpoints of a run; made if it is not there.
        step: how many steps are done.
        model, optimizer: whose tensors are saved; random states of Python, NumPy and torch go along.
        rest: JSON-able: data position, configuration.
        keep: how many checkpoints stay, 1 or more.

    Returns the new folder. Raises ValueError for keep below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; give 1 or more, the number of checkpoints that stay")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    whole = folder / f"step-{step:08d}"
    part = folder / f".unfinished-{whole.name}"
    part.mkdir()
    random_tensors, random_rest = randomness.capture()
    optimizer_tensors, optimizer_rest = optimizer_state(model, optimizer)
    tensors = {"model": model_state(model), "optimizer": optimizer_tensors, "random": random_tensors}
    for name, values in tensors.items():
        write_tensors(part / f"{name}.safetensors", values)
    state = {"step": step, "random": random_rest, "optimizer": optimizer_rest, "rest": rest}
    write_text(part / "state.json", json.dumps(state))
    manifest = {"format": FORMAT, "step": step, "files": {name: fingerprint(part / name) for name in FILES}}
    write_text(part / MANIFEST, json.dumps(manifest, indent=1))
    sync(part)
    if whole.exists():
        remove(whole)
    os.rename(part, whole)
    sync(folder)
    for old in checkpoints(folder)[:-keep]:
        remove(old)
    return whole


def checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoints of a run, oldest first, unfinished ones left out. Nothing is read or verified."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"step-\d{8,}", path.name))


def load(
    path: Path | str,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    approve: Callable[[dict[str, Any]], None] | None = None,
) -> Loaded:
    """Verify a checkpoint, then put model, optimiser and random states back as they were.

    Args:
        path: one of `checkpoints`.
        model, optimizer: built as when it was saved; nothing of them changes unless everything fits.
        approve: called with what `save` was given as `rest`, before anything changes; it may raise.

    Raises Damaged, naming the file, if one is missing, truncated, altered or no safetensors file, and ValueError if
    the tensors are those of another model.
    """
    path = Path(path)
    verify(path)
    state = json.loads((path / "state.json").read_text("utf-8"))
    if approve is not None:
        approve(state["rest"])
    tensors = {name: read_tensors(path / f"{name}.safetensors") for name in TENSORS}
    put_model = _prepare_model(path, model, tensors["model"])
    put_optimizer = _prepare_optimizer(path, model, optimizer, tensors["optimizer"], state["optimizer"])
    put_model()
    put_optimizer()
    randomness.restore(tensors["random"], state["random"])
    return Loaded(state["step"], state["rest"])


def verify(path: Path | str) -> None:
    """Raise Damaged unless every file of a checkpoint is there and as it was written."""
    path = Path(path)
    if path.is_file():
        raise Damaged(f"{path} is a file, but a checkpoint is a folder; {_looks_like(path)}")
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        files, written = manifest["files"], manifest["format"]
    except FileNotFoundError:
        raise Damaged(f"{path / MANIFEST} is missing, so nothing tells whether this checkpoint is whole") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"{path / MANIFEST} is not a manifest ({type(error).__name__}); it was altered or cut") from None
    if written != FORMAT:
        raise Damaged(f"{path / MANIFEST} is of format {written!r}; this labkit reads format {FORMAT}")
    if not isinstance(files, dict) or set(files) != set(FILES):
        raise Damaged(f"{path / MANIFEST} lists {', '.join(map(str, files))}; expected {', '.join(FILES)}")
    for name in FILES:
        compare(path / name, files[name])


def set_aside(path: Path | str) -> Path:
    """Rename a damaged checkpoint, so that it counts no more and can still be looked at; gives its new place."""
    path = Path(path)
    number, aside = 1, path.with_name(f"damaged-{path.name}")
    while aside.exists():
        number, aside = number + 1, path.with_name(f"damaged-{path.name}-{number + 1}")
    return path.rename(aside)


def remove_unfinished(folder: Path | str) -> None:
    """Remove what a save that was killed left behind."""
    for rest in Path(folder).glob(".unfinished-*"):
        shutil.rmtree(rest)


def remove(path: Path) -> None:
    """Rename first, so that a kill in between leaves no half-emptied checkpoint under a whole one's name."""
    gone = path.with_name(f".unfinished-old-{path.name}")
    os.rename(path, gone)
    shutil.rmtree(gone)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once: a tied tensor goes by its first name."""
    kept = model.state_dict(keep_vars=True)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    return {name: own[name].detach() for name in kept if name in own}


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's tensors as `field/parameter name`, and its plain numbers."""
    tensors, rest = {}, {}
    for name, parameter in model.named_parameters():
        for field, value in optimizer.state.get(parameter, {}).items():
            (tensors if isinstance(value, Tensor) else rest)[f"{field}/{name}"] = value
    return tensors, rest


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file, on disk when this returns."""
    from safetensors.torch import save_file

    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    sync(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises Damaged if it is none; a pickled file is not opened as one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path} is not a safetensors file ({error}); {_looks_like(path)}") from None


def write_text(path: Path, text: str) -> None:
    """A text file, on disk when this returns."""
    path.write_text(text, "utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Return once a file, or a folder's list of files, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a manifest keeps them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(path: Path, expected: Any) -> None:
    """Raise Damaged unless a file has the fingerprint that its manifest keeps."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    found = fingerprint(path)
    if found == expected:
        return
    size = expected.get("bytes") if isinstance(expected, dict) else None
    if isinstance(size, int) and found["bytes"] < size:
        raise Damaged(f"{path} is cut off: {found['bytes']:,} of {size:,} bytes; {_looks_like(path)}")
    raise Damaged(f"{path} was altered after it was written: its SHA-256 is another; {_looks_like(path)}")


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"\x80\x02" or start[:1] == b"\x80" or start == b"PK\x03\x04":
        return "it looks pickled, and labkit never unpickles: loading such a file can run any code"
    return "restore it from a copy, or go back to an older checkpoint"


def _prepare_model(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> Any:
    own = model_state(model)
    _same_names(path / "model.safetensors", own, tensors)
    for name, value in tensors.items():
        _same_kind(path / "model.safetensors", name, own[name], value)
    return lambda: [own[name].copy_(value) for name, value in tensors.items()]


def _prepare_optimizer(path, model, optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> Any:
    parameters = dict(model.named_parameters())
    state: dict[Tensor, dict[str, Any]] = {}
    for key, value in {**tensors, **rest}.items():
        field, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(f"{path / 'optimizer.safetensors'} has {key!r}, but this model has no parameter {name!r}")
        owner = parameters[name]
        state.setdefault(owner, {})[field] = value.to(owner.device) if isinstance(value, Tensor) else value

    def put() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)

    return put


def _same_names(path: Path, own: Iterable[str], found: Iterable[str]) -> None:
    missing, extra = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    if missing or extra:
        told = [f"lacks {missing[0]!r}"] if missing else []
        told += [f"has {extra[0]!r} too many"] if extra else []
        raise ValueError(f"{path} {' and '.join(told)}: it is of another model; build the one that was saved")


def _same_kind(path: Path, name: str, own: Tensor, found: Tensor) -> None:
    if own.shape != found.shape or own.dtype != found.dtype:
        raise ValueError(
            f"{path}: {name} is {tuple(found.shape)} {found.dtype}, this model's {tuple(own.shape)} {own.dtype}; "
            "build the model that was saved"
        )
