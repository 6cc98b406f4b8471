"""Folders of safetensors: only what is asked for is opened, what is damaged or dangerous is refused by name."""

import json
import os
import pickle
import struct
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit.nn import shards
from labkit.nn.shards import INDEX, SINGLE, Entry, Shards


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randn(4, 5, generator=generator) for i in range(5)}


def entries(values: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(name, tensor.nbytes, lambda tensor=tensor: tensor) for name, tensor in values.items()]


def sharded(folder: Path, limit: int = 160) -> Path:
    """Five tensors of 80 bytes, two to a shard."""
    shards.write(folder, entries(tensors()), limit)
    return folder


def refused(folder: Path, says: str, name: str = "t0") -> None:
    with pytest.raises(ValueError, match=says), Shards(folder) as files:
        files.read(name)


@pytest.mark.parametrize(("limit", "count"), [(10**9, 1), (400, 1), (399, 2), (160, 3), (1, 5)])
def test_what_is_written_is_read(tmp_path: Path, limit: int, count: int) -> None:
    names = shards.write(tmp_path, entries(tensors()), limit)
    assert len(names) == count
    files_there = {path.name for path in tmp_path.iterdir()}
    assert files_there == set(names) | ({INDEX} if count > 1 else set())
    with Shards(tmp_path) as files:
        assert files.names == set(tensors())
        for name, tensor in tensors().items():
            assert torch.equal(files.read(name), tensor)
            assert files.stored(name) == shards.Stored((4, 5), torch.float32)
    plain = {name: tensor for file in names for name, tensor in load_file(tmp_path / file).items()}
    assert plain.keys() == tensors().keys()


def test_the_index_is_the_ecosystems(tmp_path: Path) -> None:
    index = json.loads((sharded(tmp_path) / INDEX).read_text())
    assert index["metadata"] == {"total_size": 400}
    assert index["weight_map"]["t2"] == "model-00002-of-00003.safetensors"
    for path in tmp_path.glob("*.safetensors"):
        size = struct.unpack("<Q", path.read_bytes()[:8])[0]
        assert json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["format"] == "pt"
        assert sum(tensor.nbytes for tensor in load_file(path).values()) <= 160


def test_only_the_shards_needed_are_opened(tmp_path: Path) -> None:
    with Shards(sharded(tmp_path)) as files:
        assert files.opened == ()
        files.read("t3")
        files.stored("t2")
        assert files.opened == ("model-00002-of-00003.safetensors",)
        files.read("t4")
        assert len(files.opened) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_format_and_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "columns": torch.randn(3, 4).T}
    values = {name: tensor.to(dtype) for name, tensor in values.items()}
    shards.write(tmp_path, entries(values), 10**9)
    with Shards(tmp_path) as files:
        for name, tensor in values.items():
            assert torch.equal(files.read(name), tensor)
            assert files.stored(name) == shards.Stored(tuple(tensor.shape), dtype)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    save_file({"t0": torch.zeros(2, dtype=torch.int8)}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match="t0 is stored as I8"), Shards(tmp_path) as files:
        files.stored("t0")


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / SINGLE)
    with Shards(tmp_path) as files:
        assert torch.equal(files.read("t1"), tensors()["t1"])


@pytest.mark.parametrize("where", ["single", "shard"])
def test_one_changed_bit_is_told(tmp_path: Path, where: str) -> None:
    sharded(tmp_path, 10**9 if where == "single" else 160)
    path = tmp_path / (SINGLE if where == "single" else "model-00002-of-00003.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    last = "t4" if where == "single" else "t3"
    refused(tmp_path, f"{path.name}: tensor {last} was altered", last)
    with Shards(tmp_path) as files:
        assert torch.equal(files.read("t0"), tensors()["t0"])


@pytest.mark.parametrize("kept", [0, 7, 8, 50, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = sharded(tmp_path) / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(tmp_path, f"{path.name} is no whole safetensors file .*save it again")


@pytest.mark.parametrize("at", [0, 9, 20])
def test_a_damaged_header_is_refused(tmp_path: Path, at: int) -> None:
    path = sharded(tmp_path, 10**9) / SINGLE
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    refused(tmp_path, "safetensors file")


class Bomb:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", [SINGLE, "pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    refused(folder, "no whole safetensors file" if name == SINGLE else f"{name}: pickles")
    assert not trace.exists()


def test_a_pickle_named_by_the_index_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t0": "pytorch_model.bin"}}))
    refused(tmp_path, "pytorch_model.bin is no whole safetensors file")
    assert not trace.exists()


@pytest.mark.parametrize(
    "shard", ["../out.safetensors", "/out.safetensors", "a/b.safetensors", "..", "", "a\\b", "C:x"]
)
def test_an_index_never_leads_out_of_the_folder(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors(), tmp_path / "out.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t0": shard}}))
    refused(folder, "places t0 in .*outside the folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": null}', "{"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path, "is no index of shards")


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index = json.loads((sharded(tmp_path) / INDEX).read_text())
    places = index["weight_map"]

    def say(changed: dict[str, str]) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": changed}))

    say({**places, "t9": places["t0"]})
    refused(tmp_path, "model-00001-of-00003.safetensors holds t9, but it does not")
    say({name: place for name, place in places.items() if name != "t1"})
    refused(tmp_path, "model-00001-of-00003.safetensors holds t1, which")
    say(places)
    (tmp_path / places["t0"]).unlink()
    refused(tmp_path, "lacks model-00001-of-00003.safetensors, which its index names", "t4")


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no folder")
    refused(tmp_path, "neither model.safetensors nor")
    sharded(tmp_path)
    refused(tmp_path, "has no tensor t9", "t9")
    save_file(tensors(), tmp_path / SINGLE)
    refused(tmp_path, "holds both")


def test_a_save_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    others = {"model_ema.safetensors", "model-best.safetensors", "notes.txt"}
    for name in others:
        (tmp_path / name).write_text("kept")
    for limit, count in ((1, 5), (10**9, 1), (160, 3), (1, 5)):
        names = shards.write(tmp_path, entries(tensors(limit % 7)), limit)
        assert len(names) == count
        assert {path.name for path in tmp_path.iterdir()} == others | set(names) | ({INDEX} if count > 1 else set())
        with Shards(tmp_path) as files:
            assert all(torch.equal(files.read(name), tensor) for name, tensor in tensors(limit % 7).items())


def test_an_interrupted_save_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise KeyboardInterrupt

    before = {path.name: path.read_bytes() for path in sharded(tmp_path).iterdir()}
    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path, [*entries(tensors(1))[:4], Entry("t4", 80, fail)], 160, {"config.json": {}})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_shard_at_a_time_is_in_memory(tmp_path: Path) -> None:
    alive, most = [], 0

    def make(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        made = tensor.numpy().copy()  # a tensor's storage has no weak reference, an array has
        alive.append(weakref.ref(made))
        most = max(most, sum(80 for ref in alive if ref() is not None))
        return torch.from_numpy(made)

    shards.write(tmp_path, [Entry(n, 80, lambda t=t: make(t)) for n, t in tensors().items()], 160)
    assert most == 160


def test_a_shard_size_below_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        shards.write(tmp_path, entries(tensors()), 0)
