"""A run's state that any number of ranks can go on from: whole tensors, and a file for each routed expert.

`step-00000100/` holds `model.safetensors` and `optimizer.safetensors` for what is no expert, `experts-0003.safetensors`
with everything of expert 3 in all layers (weights and optimiser), `state.json`, and `manifest.json` with the size and
SHA-256 of each. Nothing in it depends on how many ranks wrote it: the same state gives the same bytes. One process with
a plain model reads and writes it too (`mesh=None`). All ranks must see the same folder. Left out on purpose: states of
random generators, which belong to ranks (`parallel.loop` seeds each step instead).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from labkit.nn.experts import Experts
from labkit.train.checkpoint import (
    MANIFEST,
    Damaged,
    Loaded,
    checkpoints,
    compare,
    fingerprint,
    read_tensors,
    remove,
    remove_unfinished,
    sync,
    write_tensors,
    write_text,
)
from labkit.train.parallel.shard import expert_parameters, local

FORMAT = "labkit experts 1"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def expert_file(expert: int) -> str:
    """The file of one expert.

    >>> expert_file(3)
    'experts-0003.safetensors'
    """
    return f"experts-{expert:04d}.safetensors"


def save(
    folder: Path | str,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    rest: dict[str, Any],
    mesh: DeviceMesh | None = None,
    *,
    keep: int = 3,
) -> Path:
    """Write `folder/step-NNNNNNNN`; all ranks together, each its experts. Then remove all but the newest `keep`.

    Args:
        folder: of all checkpoints of a run. step: how many steps are done.
        model, optimizer: as trained, after `parallelize` or plain. rest: JSON-able.
        mesh: of the ranks; None is one process alone. keep: 1 or more.

    Returns the new folder. Raises ValueError for keep below 1, and OSError on every rank if one could not write.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; give 1 or more, the number of checkpoints that stay")
    folder = Path(folder)
    whole = folder / f"step-{step:08d}"
    part = folder / f".unfinished-{whole.name}"
    first = mesh is None or dist.get_rank() == 0
    common, shares = _gathered(model, optimizer, mesh)

    def begin() -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        part.mkdir()
        return {}

    def write() -> dict[str, Any]:
        if first:
            shares.update(common)
            write_text(part / STATE, json.dumps({"step": step, "rest": rest}))
        for name, tensors in shares.items():
            write_tensors(part / name, tensors)
        return {name: fingerprint(part / name) for name in [*shares, *([STATE] if first else [])]}

    def finish() -> dict[str, Any]:
        manifest = {"format": FORMAT, "step": step, "files": dict(sorted(files.items()))}
        write_text(part / MANIFEST, json.dumps(manifest, indent=1))
        sync(part)
        if whole.exists():
            remove(whole)
        os.rename(part, whole)
        sync(folder)
        for old in checkpoints(folder)[:-keep]:
            remove(old)
        return {}

    _all(begin if first else dict, mesh)
    files = _all(write, mesh)
    _all(finish if first else dict, mesh)
    return whole


def load(
    path: Path | str,
    model: nn.Module,
    optimizer: Optimizer,
    mesh: DeviceMesh | None = None,
    *,
    approve: Callable[[dict[str, Any]], None] | None = None,
) -> Loaded:
    """Verify a checkpoint and take this rank's part of it, whatever number of ranks wrote it.

    Args:
        path: of `save`. model, optimizer: built as when it was saved, for as many ranks as there are now.
        mesh: of the ranks; None is one process alone. approve: called with `rest` before anything changes; may raise.

    Raises `checkpoint.Damaged`, naming the file, if one that this rank needs is missing, cut or altered, and ValueError
    if the tensors are those of another model. With a mesh, an error of one rank is raised on all before any changes.
    """
    path = Path(path)

    def read() -> dict[str, Any]:
        files = _manifest(path)
        found = _read(path, files, model)
        state = json.loads((path / STATE).read_text("utf-8"))
        if approve is not None:
            approve(state["rest"])
        return {"put": _prepare(path, model, optimizer, found), "state": state}

    told = _all(read, mesh, share=False)
    told["put"]()
    return Loaded(told["state"]["step"], told["state"]["rest"])


def _all(action: Callable[[], dict[str, Any]], mesh: DeviceMesh | None, *, share: bool = True) -> dict[str, Any]:
    """Do it on every rank, wait for all, and fail on all if one failed; with `share`, all answers together."""
    if mesh is None:
        return action()
    mine, error = {}, None
    try:
        mine = action()
    except Exception as caught:
        error = caught
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (mine if share else {}, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    failed = [(rank, text) for rank, (_, text) in enumerate(told) if text is not None]
    if failed:
        raise OSError(f"rank {failed[0][0]} could not do its part of the checkpoint: {failed[0][1]}")
    return {name: value for part, _ in told for name, value in part.items()} if share else mine


# What there is to save


def _numbering(model: nn.Module) -> tuple[range, int]:
    """The experts of this rank, and how many there are; one count for all layers."""
    found = set()
    for module in model.modules():
        if isinstance(getattr(module, "experts", None), Experts):
            E, mine = module.config.num_experts, module.experts.config.num_experts
            found.add((getattr(module, "rank", 0) * mine, mine, E))
    if len(found) != 1:
        raise ValueError(f"a checkpoint by expert needs sparse layers with one number of experts, not {sorted(found)}")
    ((start, mine, E),) = found
    return range(start, start + mine), E


def _gathered(
    model: nn.Module, optimizer: Optimizer, mesh: DeviceMesh | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Files of what all share, and files of this rank's experts (empty where another copy of them writes)."""
    experts, (numbers, _) = expert_parameters(model), _numbering(model)
    writes = mesh is None or mesh.get_local_rank("dp") == 0
    common: dict[str, dict[str, Tensor]] = {MODEL: _buffers(model), OPTIMIZER: {}}
    shares: dict[str, dict[str, Tensor]] = {expert_file(e): {} for e in numbers} if writes else {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for key, tensor in {name: parameter.detach(), **{f"{field}/{name}": v for field, v in state.items()}}.items():
            value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if parameter not in experts or value.ndim == 0:
                common[OPTIMIZER if "/" in key else MODEL][key] = value
                continue
            for e, row in zip(numbers, value, strict=True):
                if writes:
                    shares[expert_file(e)][key] = row
    return common, shares


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


# Reading it back


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        files, written = manifest["files"], manifest["format"]
    except FileNotFoundError:
        raise Damaged(f"{path / MANIFEST} is missing, so nothing tells whether this checkpoint is whole") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path / MANIFEST} is not a manifest ({type(error).__name__}); it was altered or cut") from None
    if written != FORMAT:
        raise Damaged(f"{path / MANIFEST} is of format {written!r}; expected {FORMAT!r}, which `parallel` writes")
    return files


def _read(path: Path, files: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Verified tensors under the names of `_gathered`; an expert parameter is this rank's rows, stacked."""
    numbers, E = _numbering(model)
    wanted = {MODEL, OPTIMIZER, STATE, *(expert_file(e) for e in range(E))}
    if set(files) != wanted:
        odd = sorted(set(files) ^ wanted)[0]
        raise ValueError(f"{path} and a model of {E} experts differ in {odd}; build the model that was saved")
    mine = [expert_file(e) for e in numbers]
    for name in (MODEL, OPTIMIZER, STATE, *mine):
        compare(path / name, files[name])
    found = read_tensors(path / MODEL) | read_tensors(path / OPTIMIZER)
    rows = [read_tensors(path / name) for name in mine]
    if any(row.keys() != rows[0].keys() for row in rows):
        raise Damaged(f"{path}: the experts' files hold different tensors")
    return found | {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def _prepare(path: Path, model: nn.Module, optimizer: Optimizer, found: dict[str, Tensor]) -> Callable[[], None]:
    """Check that everything fits; the function that is given back then puts it in place."""
    parameters = dict(model.named_parameters())
    places: list[tuple[Tensor, Tensor]] = []
    states: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in found.items():
        field, _, name = key.rpartition("/")
        target = parameters[name] if name in parameters else _buffers(model).get(key)
        if target is None:
            raise ValueError(f"{path} has {key!r}, which this model has no place for; build the model that was saved")
        if field and value.ndim == 0:
            states.setdefault(target, {})[field] = value.to(target.device)
            continue
        if value.shape != target.shape or (not field and value.dtype != target.dtype):
            raise ValueError(
                f"{path}: {key} is {tuple(value.shape)} {value.dtype}, this model's {tuple(target.shape)} "
                f"{target.dtype}; build the model that was saved"
            )
        place = target.detach()
        if field:
            place = torch.empty_like(place, dtype=value.dtype)
            states.setdefault(target, {})[field] = place
        places.append((local(place), part_of(value, target)))
    missing = sorted({*parameters, *_buffers(model)} - found.keys())
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}: it is of another model; build the one that was saved")

    def put() -> None:
        with torch.no_grad():
            for place, value in places:
                place.copy_(value)
        optimizer.state.clear()
        optimizer.state.update(states)

    return put


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The rows of a whole tensor that a shard such as `like` holds: FSDP2 cuts the first dimension as `torch.chunk`."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    parts, mine = whole.chunk(mesh.size(), dim=0), mesh.get_local_rank()
    return parts[mine] if mine < len(parts) else whole[:0]


def digest(path: Path | str) -> dict[str, str]:
    """Every file's SHA-256, as its manifest has it: equal for equal states, whatever number of ranks wrote them."""
    return {name: entry["sha256"] for name, entry in _manifest(Path(path)).items()}
