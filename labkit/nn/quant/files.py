"""Quantised models on disk: packed tensors in safetensors, as small as in memory; nothing is ever unpickled.

A folder holds `config.json`, which says how every module was packed, and the tensors with a checksum each. Loading
makes the model anew without weights, packs what the configuration names, and fills it: what is missing, left over, of
another shape or format, or altered is refused. Left out on purpose: other projects' quantised folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.nn import shards
from labkit.nn.model import Transformer
from labkit.nn.quant.dynamic import DynamicExperts
from labkit.nn.quant.modules import Held, held_of
from labkit.nn.quant.rooms import room_of
from labkit.nn.quant.schemes import Scheme
from labkit.nn.quant.schemes import scheme as find_scheme
from labkit.nn.quant.targets import target_of
from labkit.nn.skeleton import skeleton

METHOD = "labkit"
VERSION = 1
_CONFIG = "config.json"


def save(model: nn.Module, folder: str | Path, *, tokenizer: Any = None, max_shard_bytes: int = 5_000_000_000) -> Path:
    """Write a quantised model: one of ours, or of transformers.

    Args:
        folder: made if it is not there; files of an earlier save are replaced.
        tokenizer: of transformers, written beside it. max_shard_bytes: above that, several files and an index.

    Returns the folder. Raises ValueError for a model without packed weights, with `DynamicExperts`, or that is neither.
    """
    folder, modules = Path(folder), dict(_packed_modules(model))
    if not modules:
        raise ValueError(f"{type(model).__name__} has no packed weights; quantize it first, or use its save_pretrained")
    if any(isinstance(module, DynamicExperts) for module in model.modules()):
        raise ValueError("experts in two precisions are not stored; save the plain model and call dynamic on it anew")
    how = {"quant_method": METHOD, "version": VERSION, "modules": {p: _how(m) for p, m in modules.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        shards.Entry(name, tensor.numel() * tensor.element_size(), lambda tensor=tensor: tensor)
        for name, tensor in _saved(model)
    ]
    shards.write(folder, entries, max_shard_bytes, {_CONFIG: {**_config(model), "quantization_config": how}})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """The model of a folder that `save` wrote, in evaluation mode.

    Raises ValueError, naming it, for what is missing, left over, of another shape or format, damaged or altered.
    """
    folder = Path(folder)
    config = _read(folder / _CONFIG)
    how = config.get("quantization_config")
    if not isinstance(how, dict) or how.get("quant_method") != METHOD or how.get("version") != VERSION:
        method = how.get("quant_method") if isinstance(how, dict) else None
        raise ValueError(f"{folder} holds {method or 'no'} quantisation that is read here; quantize a plain model anew")
    model = _skeleton(config, folder)
    made: dict[int, tuple[Tensor, Held]] = {}  # by the identity of a plain weight, which is kept alive beside it
    for path, settings in how["modules"].items():
        _pack(model, path, settings, folder, made)
    _fill(model, folder, device)
    return model.to(device).eval()


def bytes_on_disk(folder: str | Path) -> int:
    """Bytes of a folder's safetensors files, headers included."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _packed_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(getattr(module, "scheme", None), Scheme):
            yield path, module


def _how(module: nn.Module) -> dict[str, Any]:
    scheme: Scheme = module.scheme
    options = {**dict(scheme.pack_options), **dict(scheme.product_options)}
    dtype = getattr(module, "dtype", None)
    return {"scheme": scheme.name, **options, **({"dtype": str(dtype).removeprefix("torch.")} if dtype else {})}


def _saved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that are part of the state, each once."""
    kept = model.state_dict(keep_vars=True).keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in kept:
            yield name, tensor


def _config(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, Transformer):
        return {"labkit": model.config.to_dict(), "dtype": str(model.norm.weight.dtype).removeprefix("torch.")}
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string") or not hasattr(config, "model_type"):
        raise ValueError(f"{type(model).__name__} is neither a labkit Transformer nor a model of transformers")
    return {**json.loads(config.to_json_string(use_diff=False)), "architectures": [type(model).__name__]}


def _skeleton(config: dict[str, Any], folder: Path) -> nn.Module:
    """The plain model of a configuration: ours without memory, that of transformers with what it draws."""
    if "labkit" in config:
        return skeleton(ModelConfig.from_dict(config["labkit"]))
    import transformers

    values = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        (name,) = values["architectures"]
        made = transformers.AutoConfig.for_model(**values)
        if not issubclass(getattr(transformers, name), transformers.PreTrainedModel):
            raise ValueError(f"{name} is no model")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG} names no model that transformers has: {error!r}") from None
    return getattr(transformers, name)(made)


def _pack(
    model: nn.Module, path: str, settings: dict[str, Any], folder: Path, made: dict[int, tuple[Tensor, Held]]
) -> None:
    """Put a packed module without values in the place of a plain one."""
    try:
        options = {key: value for key, value in settings.items() if key not in ("scheme", "dtype")}
        scheme = find_scheme(settings["scheme"], **options)
        target = target_of(path, room_of(model, f"{path}.weight"), model.get_submodule(path))
        if target is None or scheme.pack is None:
            raise ValueError(f"{settings['scheme']} packs nothing there")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG}: {path} cannot be packed as it says: {error}") from None
    for weight in target.weights.values():
        if id(weight) not in made:
            made[id(weight)] = weight, Held(scheme.packed(weight.detach().to("meta")))
    held = {name: made[id(weight)][1] for name, weight in target.weights.items()}
    module = target.build(held, scheme)
    if "dtype" in settings:
        module.dtype = getattr(torch, settings["dtype"])
    model.set_submodule(path, module)


def _fill(model: nn.Module, folder: Path, device: torch.device | str) -> None:
    """Read every tensor into its place."""
    wanted = dict(_saved(model))
    places: dict[int, list[tuple[dict, str]]] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for leaf, tensor in store.items():
                places.setdefault(id(tensor), []).append((store, leaf))
    packed = {f"{path}.{name}" for path, held in held_of(model).items() for name in held._buffers}
    with shards.Shards(folder) as files:
        for word, names in (("lacks", wanted.keys() - files.names), ("has", files.names - wanted.keys())):
            if names:
                raise ValueError(f"{folder} {word} {min(names)}, unlike what its config.json says; save it again")
        for name, like in wanted.items():
            tensor = files.read(name)
            if tensor.shape != like.shape or (name in packed and tensor.dtype != like.dtype):
                raise ValueError(
                    f"{folder}: {name} is {tuple(tensor.shape)} {tensor.dtype}, but config.json says "
                    f"{tuple(like.shape)} {like.dtype}; are both of the same model?"
                )
            tensor = tensor.to(device, copy=True)  # memory of its own: a mapped file's is not aligned
            new = nn.Parameter(tensor) if isinstance(like, nn.Parameter) else tensor
            for store, leaf in places[id(like)]:
                store[leaf] = new


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a folder that `save` wrote") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no configuration of a model")
    return values
