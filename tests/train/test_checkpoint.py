"""A checkpoint is whole or refused, and what comes back is what was saved, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil

import numpy as np
import pytest
import small_runs
import torch

from labkit.train import checkpoint, optim


def trained(name="adamw", seed=0, **changes):
    """A model and an optimiser with a state that is not trivial."""
    model = small_runs.model(seed, **changes)
    optimizer = optim.build_optimizer(model, name, lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    for module in model.modules():
        if getattr(module, "expert_bias_E", None) is not None:
            module.expert_bias_E.copy_(torch.arange(4.0) + seed)
    return model, optimizer


def state_of(model, optimizer):
    return model.state_dict(), [optimizer.state[p] for p in model.parameters()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_everything_comes_back(tmp_path, name, tied):
    first, a = trained(name, tie_embeddings=tied)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002 (leaves half a pair behind, which must be saved too)
    path = checkpoint.save(tmp_path, 7, first, a, {"data": {"at": 12}})
    drawn = [random.random(), np.random.randn(), torch.rand(3).tolist()]  # noqa: NPY002
    second, b = trained(name, seed=1, tie_embeddings=tied)
    loaded = checkpoint.load(path, second, b)
    assert (loaded.step, loaded.rest) == (7, {"data": {"at": 12}})
    torch.testing.assert_close(state_of(second, b), state_of(first, a), rtol=0, atol=0)
    assert (second.head.weight is second.embed.weight) == tied
    assert [random.random(), np.random.randn(), torch.rand(3).tolist()] == drawn  # noqa: NPY002


def test_the_folder_holds_safetensors_and_json_alone(tmp_path):
    path = checkpoint.save(tmp_path, 1, *trained(), {})
    assert sorted(file.name for file in path.iterdir()) == sorted([*checkpoint.FILES, checkpoint.MANIFEST])
    assert list(tmp_path.iterdir()) == [path]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["state.json"]["bytes"] == (path / "state.json").stat().st_size
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", "pt") as file:
        assert "layers.1.ffn.router.expert_bias_E" in file.keys()  # noqa: SIM118 (no mapping)


def test_the_newest_stay(tmp_path):
    model, optimizer = trained()
    for step in (1, 2, 10, 9):
        checkpoint.save(tmp_path, step, model, optimizer, {}, keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000009", "step-00000010"]
    assert checkpoint.checkpoints(tmp_path / "nowhere") == []


def test_the_same_step_may_be_saved_again(tmp_path):
    model, optimizer = trained()
    checkpoint.save(tmp_path, 1, model, optimizer, {"time": 1})
    path = checkpoint.save(tmp_path, 1, model, optimizer, {"time": 2})
    assert checkpoint.load(path, model, optimizer).rest == {"time": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not tell a handle's file")
def test_everything_is_durable_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b)))
    checkpoint.save(tmp_path, 1, *trained(), {})
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert {os.path.basename(path) for path in before} >= {*checkpoint.FILES, checkpoint.MANIFEST}
    assert before[-1] == str(tmp_path / ".unfinished-step-00000001")
    assert after == [str(tmp_path)]


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_save_that_dies_leaves_the_last_one_whole(tmp_path, monkeypatch, name):
    model, optimizer = trained()
    good = checkpoint.save(tmp_path, 1, model, optimizer, {})
    sync = checkpoint.sync

    def die(path):
        if path.name == name:
            raise OSError("no space left on device")
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", die)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, 2, model, optimizer, {})
    monkeypatch.undo()
    assert checkpoint.checkpoints(tmp_path) == [good]
    checkpoint.verify(good)
    checkpoint.save(tmp_path, 2, model, optimizer, {})
    assert not list(tmp_path.glob(".*"))


class Bomb:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def truncate(file, tmp_path):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file, tmp_path):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def remove(file, tmp_path):
    file.unlink()


def pickled(file, tmp_path):
    file.write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))))


def torch_pickled(file, tmp_path):
    torch.save({"weights": torch.zeros(10_000)}, file)


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "is cut off"),
        (flip, "was altered"),
        (remove, "is missing"),
        (pickled, "never unpickles"),
        (torch_pickled, "never unpickles"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, damage, words):
    first, a = trained()
    path = checkpoint.save(tmp_path, 1, first, a, {})
    damage(path / name, tmp_path)
    second, b = trained(seed=1)
    before = state_of(*trained(seed=1))
    with pytest.raises(checkpoint.Damaged, match=words) as caught:
        checkpoint.load(path, second, b)
    assert str(path / name) in str(caught.value)
    torch.testing.assert_close(state_of(second, b), before, rtol=0, atol=0)
    assert not (tmp_path / "exploded").exists()


def rewrite_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("[1]"), "is not a manifest"),
        (lambda path: (path / "manifest.json").write_text('{"files"'), "is not a manifest"),
        (lambda path: (path / "manifest.json").write_bytes(pickle.dumps({})), "is not a manifest"),
        (lambda path: rewrite_manifest(path, files={}), "manifest.json lists"),
        (lambda path: rewrite_manifest(path, files=[1]), "manifest.json lists 1"),
        (lambda path: rewrite_manifest(path, files=dict.fromkeys(checkpoint.FILES)), "was altered"),
        (lambda path: rewrite_manifest(path, format=99), "of format 99"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, damage, words):
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {})
    damage(path)
    with pytest.raises(checkpoint.Damaged, match=words):
        checkpoint.load(path, model, optimizer)


def test_a_pickle_with_a_right_checksum_is_refused_as_well(tmp_path):
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {})
    pickled(path / "model.safetensors", tmp_path)
    files = {name: checkpoint.fingerprint(path / name) for name in checkpoint.FILES}
    rewrite_manifest(path, files=files)
    with pytest.raises(checkpoint.Damaged, match=r"is not a safetensors file .*never unpickles"):
        checkpoint.load(path, model, optimizer)
    assert not (tmp_path / "exploded").exists()


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(checkpoint.Damaged, match="a checkpoint is a folder; it looks pickled"):
        checkpoint.load(tmp_path / "model.pt", *trained())


def test_another_models_checkpoint_is_refused_and_changes_nothing(tmp_path):
    path = checkpoint.save(tmp_path, 1, *trained(), {})
    for changes, words in (
        ({"num_layers": 3}, "lacks 'layers.2"),
        ({"num_layers": 1}, "too many"),
        ({"d_dense": 8}, r"layers.0.ffn.down_DF is \(16, 24\)"),
    ):
        model, optimizer = trained(seed=1, **changes)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            checkpoint.load(path, model, optimizer)
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_set_aside_counts_no_more_and_overwrites_nothing(tmp_path):
    model, optimizer = trained()
    for name in ("damaged-step-00000001", "damaged-step-00000001-2"):
        path = checkpoint.save(tmp_path, 1, model, optimizer, {})
        assert checkpoint.set_aside(path).name == name
    assert checkpoint.checkpoints(tmp_path) == []


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="give 1 or more"):
        checkpoint.save(tmp_path, 1, *trained(), {}, keep=0)


def test_a_copied_folder_loads_elsewhere(tmp_path):
    first, a = trained()
    path = checkpoint.save(tmp_path / "here", 1, first, a, {})
    shutil.copytree(path, tmp_path / "there")
    second, b = trained(seed=1)
    checkpoint.load(tmp_path / "there", second, b)
    torch.testing.assert_close(state_of(second, b), state_of(first, a), rtol=0, atol=0)
