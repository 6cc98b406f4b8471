"""A run that stops, is stopped or is damaged goes on as if it had not, or says why it cannot."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
import small_runs
import torch

from labkit.train import checkpoint, journal, loop
from labkit.train.interrupt import interruptible


def run(folder, *, stop_after=None, seed=0, on_step=None, resume=True, **changes):
    config = small_runs.config(**{"steps": 9, "save_every": 2, "accumulate": 2, **changes})

    def stop(step):
        if step.step == stop_after:
            raise KeyboardInterrupt
        if on_step is not None:
            on_step(step)

    moe = small_runs.model_config().moe.replace(noise_std=0.3)
    model = small_runs.model(seed, moe=moe)
    result = loop.train(
        model, small_runs.Source(), config, folder=folder, on_step=stop, resume=resume,
        validation=small_runs.Source(split="validation"),
    )  # fmt: skip
    return result, model


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "log_every": 4}, {"bias_rate": 0.01, "schedule": "wsd",
                                                                                  "decay": 4}])  # fmt: skip
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, changes):
    whole, model = run(tmp_path / "whole", **changes)
    first, _ = run(tmp_path / "parts", stop_after=3, **changes)
    assert (first.stopped, first.step, first.checkpoint.name) == ("interrupted", 3, "step-00000003")
    second, _ = run(tmp_path / "parts", stop_after=7, seed=1, **changes)  # other weights at first: they are replaced
    assert (second.stopped, second.step) == ("interrupted", 7)
    last, other = run(tmp_path / "parts", seed=2, **changes)
    assert (last.stopped, last.step) == ("finished", 9)
    assert small_runs.told(last) == small_runs.told(whole)
    assert last.validation == whole.validation
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_real_signal_stops_after_the_step_and_leaves_the_handler_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def press(step):
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    result, _ = run(tmp_path, on_step=press)
    assert (result.stopped, result.step, result.checkpoint.name) == ("interrupted", 4, "step-00000004")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_interrupts_at_once():
    # a shell starts what runs in its background with this signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path)[0]))
    thread.start()
    thread.join()
    assert results[0].stopped == "finished"


def test_a_finished_run_is_not_done_again(tmp_path):
    first, model = run(tmp_path)
    again, other = run(tmp_path, seed=1, on_step=lambda step: pytest.fail("a step was made"))
    assert again == first
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = run(None)
    assert result.checkpoint is None
    assert list(tmp_path.iterdir()) == []


def test_the_log_and_the_checkpoints_are_in_the_folder(tmp_path):
    result, _ = run(tmp_path, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl", "step-00000008", "step-00000009"]
    assert journal.read(tmp_path / "log.jsonl") == list(result.rows)


def damage(folder, *steps):
    for step in steps:
        file = folder / f"step-{step:08d}" / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-1])


def test_a_damaged_checkpoint_is_an_error_that_says_how_to_go_on(tmp_path):
    run(tmp_path, stop_after=5)
    damage(tmp_path, 5)
    with pytest.raises(checkpoint.Damaged, match=r"step-00000005.optimizer.safetensors is cut off.*latest-good"):
        run(tmp_path)


def test_the_latest_good_one_is_taken_where_asked_for_and_told(tmp_path, capsys):
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=5)
    damage(tmp_path / "parts", 4, 5)
    result, _ = run(tmp_path / "parts", resume="latest-good")
    assert small_runs.told(result) == small_runs.told(whole)
    assert [note.split(":")[0] for note in result.notes] == [
        "passed over step-00000005, now damaged-step-00000005",
        "passed over step-00000004, now damaged-step-00000004",
    ]
    told = capsys.readouterr().err
    assert all(note in told for note in result.notes)
    assert run(tmp_path / "parts")[0].step == 9  # what was set aside is in nobody's way


def test_nothing_whole_is_an_error(tmp_path):
    run(tmp_path, stop_after=2)
    damage(tmp_path, 2)
    with pytest.raises(checkpoint.Damaged, match=r"no checkpoint in .* is whole: passed over step-00000002"):
        run(tmp_path, resume="latest-good")


def test_another_run_is_refused_and_the_model_untouched(tmp_path):
    run(tmp_path, stop_after=2)
    with pytest.raises(ValueError, match=r"learning_rate=0.003; give the same configuration"):
        run(tmp_path, learning_rate=0.1)
    config = small_runs.config(steps=9, save_every=2, accumulate=2)
    model = small_runs.model(5)  # without noise in its router
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="a model of another configuration"):
        loop.train(model, small_runs.Source(), config, folder=tmp_path)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_what_changes_no_update_may_change(tmp_path):
    run(tmp_path, stop_after=2)
    result, _ = run(tmp_path, log_every=3, save_every=0, keep=1, validate_every=3)
    assert [row["step"] for row in result.rows] == [1, 2, 3, 6, 9]


def test_resume_takes_three_answers(tmp_path):
    run(tmp_path, stop_after=2)
    with pytest.raises(ValueError, match="holds step-00000002 of an earlier run"):
        run(tmp_path, resume=False)
    with pytest.raises(ValueError, match="give True, False or 'latest-good'"):
        run(tmp_path, resume="yes")
    assert run(tmp_path / "new", resume=False)[0].stopped == "finished"


def test_the_journal_forgets_what_will_be_written_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = journal.Journal(path, last_step=2)
    log.write({"step": 3, "inner": {"loss": float("inf"), "list": [float("nan"), 1]}})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == log.rows == [{"step": 1}, {"step": 2}, {"step": 3, "inner": {"loss": None, "list": [None, 1]}}]


@pytest.mark.parametrize("line", ["half a li", "[1]", "3", '{"loss": 1}'])
def test_a_log_that_is_none_is_refused(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match="line 2 is no row"):
        journal.Journal(tmp_path / "log.jsonl", last_step=5)
