"""Training on 1, 2 and 4 ranks, whole or in shards, is the training of one process; it goes on with other ranks."""

from __future__ import annotations

import json
from pathlib import Path

import parallel_runs
import pytest
import torch

from labkit.train import checkpoint as plain_checkpoint
from labkit.train.optim import adamw
from labkit.train.parallel import RankFailed, digest, launch, load, save

GRIDS = {1: [(1, True)], 2: [(2, True), (1, False)], 4: [(2, True), (4, False), (1, True)]}
TIMEOUT = 120.0


@pytest.fixture(scope="module")
def alone():
    return parallel_runs.run_alone(parallel_runs.config())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(ranks, ep, shard) → the log of rank 0 and the newest checkpoint."""
    folder, found = str(tmp_path_factory.mktemp("runs")), {}
    for ranks, grids in GRIDS.items():
        by_rank = launch(parallel_runs.run_all, ranks, parallel_runs.config(), grids, folder, timeout=TIMEOUT)
        found |= {(ranks, *grid): result for grid, result in zip(grids, by_rank[0], strict=True)}
    return found


def test_losses_and_norms_are_those_of_one_process(alone, runs):
    """Among them losses of routers, accumulated gradients, clipping and AdamW with decay, over four steps."""
    rows, _ = alone
    for grid, (ours, _) in runs.items():
        for mine, theirs in zip(ours, rows, strict=True):
            for name in ("loss", "grad_norm", "learning_rate"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-5), (grid, mine["step"], name)
            assert mine["max_violation"] == pytest.approx(theirs["max_violation"][: len(mine["max_violation"])])


def test_trained_weights_are_those_of_one_process(alone, runs):
    _, weights = alone
    for grid, (_, path) in runs.items():
        model = parallel_runs.model(seed=3)
        load(path, model, adamw(model, lr=1e-3))
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                p, weights[name], rtol=1e-4, atol=2e-5, msg=lambda text, n=name, g=grid: f"{g} {n}: {text}"
            )


def test_a_checkpoint_has_the_same_bytes_whatever_ranks_read_and_write_it(runs, tmp_path):
    """4 ranks in shards → 2 → 1 → 4 → a plain model in one process, weights and optimiser."""
    _, path = runs[4, 2, True]
    first = digest(path)
    for turn, (ranks, ep, shard) in enumerate([(2, 2, False), (1, 1, False), (4, 2, True)]):
        folder = tmp_path / str(turn)
        sums = launch(parallel_runs.resave, ranks, path, folder, ep, shard, timeout=TIMEOUT)
        assert all(one == first for one in sums), (ranks, ep, shard)
        path = folder / path.name
    model = parallel_runs.model(seed=9)
    optimizer = adamw(model, lr=1e-3)
    loaded = load(path, model, optimizer)
    assert digest(save(tmp_path / "plain", loaded.step, model, optimizer, loaded.rest)) == first
    assert sum(name.startswith("experts-") for name in first) == parallel_runs.MOE.num_experts


def test_a_killed_rank_ends_the_job_and_fewer_ranks_go_on_as_if_nothing_had_been(tmp_path):
    settings = parallel_runs.config(steps=5, save_every=2)
    with pytest.raises(RankFailed, match="rank 3 of 4 was killed by SIGKILL"):
        launch(parallel_runs.die_at, 4, settings, str(tmp_path / "2-2-False"), 4, 3, timeout=TIMEOUT)
    found = launch(parallel_runs.run_all, 2, settings, [(2, False)], str(tmp_path), timeout=TIMEOUT)
    rows, newest = found[0][0]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["ranks"] for row in rows] == [4, 4, 2, 2, 2]
    theirs, _ = parallel_runs.run_alone(settings)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert newest.name == "step-00000005"


def test_what_cannot_work_is_refused_on_every_rank_alike(tmp_path):
    first, second = launch(parallel_runs.refusals, 2, str(tmp_path), timeout=TIMEOUT)
    expected = [
        "ValueError: ep is 3, which does not divide the 2 ranks",
        "ValueError: ep is 0",
        "ValueError: ranks_per_node is 3, which does not divide the 2 ranks of ep",
        "ValueError: optimizer is 'muon'; on several ranks only 'adamw' is supported",
        "ValueError: batch is 3 sequences, which 2 ranks cannot share evenly",
        "ValueError: keep is 0",
        "nothing",
        f"ValueError: the run in {tmp_path} has steps=None",
        "OSError: ",
        "FloatingPointError: step 2 has loss",
        "RuntimeError: not all ranks came to the meeting: ",
    ]
    for ours, theirs, wanted in zip(first, second, expected, strict=True):
        assert ours.startswith(wanted)
        assert theirs.startswith(wanted)
    assert "rank 1 could not do its part of the checkpoint: OSError: no space left on device" in first[8]
    assert "1" in first[10].removeprefix(expected[10])
    assert [path.name for path in plain_checkpoint.checkpoints(tmp_path)] == ["step-00000001"]


def altered(path: Path) -> str:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    return "altered"


def cut(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-5])
    return "cut off"


def gone(path: Path) -> str:
    path.unlink()
    return "missing"


@pytest.mark.parametrize("harm", [altered, cut, gone])
@pytest.mark.parametrize("name", ["experts-0002.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_file_is_named_and_nothing_changes(tmp_path, harm, name):
    model = parallel_runs.model()
    optimizer = adamw(model, lr=1e-3)
    path = save(tmp_path, 1, model, optimizer, {})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    word = harm(path / name)
    if name == "manifest.json" and harm is altered:
        pytest.skip("the last byte of the manifest is a bracket; cut covers it")
    with pytest.raises(plain_checkpoint.Damaged, match=name):
        load(path, model, optimizer)
    assert word
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    from labkit.nn import Transformer

    model = parallel_runs.model()
    path = save(tmp_path, 1, model, adamw(model, lr=1e-3), {})
    wider = Transformer(parallel_runs.MODEL.replace(moe=parallel_runs.MOE.replace(d_expert=12)))
    with pytest.raises(ValueError, match=r"down_DF is \(16, 8\) .* this model's \(16, 12\)"):
        load(path, wider, adamw(wider, lr=1e-3))
    more = Transformer(parallel_runs.MODEL.replace(moe=parallel_runs.MOE.replace(num_experts=8)))
    with pytest.raises(ValueError, match="a model of 8 experts differ in experts-0004"):
        load(path, more, adamw(more, lr=1e-3))
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(p.name for p in path.iterdir() if p.name != "manifest.json")
