"""A process that trains in children, kills them with signal 9 at random points, and lets others go on.

It warms up once and forks, so that a kill costs no start. Half of the children die at a random function call, so
at any line of Python; half after a random time, while the files of checkpoints are written slowly, in halves.
Run as `python killed_runs.py FOLDER KILLS`; prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import small_runs
import torch

from labkit.train import checkpoint, loop

STEPS = 24


def train(folder: Path) -> None:
    moe = small_runs.model_config().moe.replace(noise_std=0.1)  # draws random numbers in every step
    config = small_runs.config(
        steps=STEPS, save_every=2, keep=2, accumulate=2, bias_rate=1e-3, balance_loss=0.01, optimizer="muon",
        log_every=3, validate_every=6,
    )  # fmt: skip
    validation = small_runs.Source(split="validation")
    loop.train(small_runs.model(moe=moe), small_runs.Source(), config, folder=folder, validation=validation)


def forked(work) -> int:
    """Do the work in a child; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)


def ended(child: int) -> str:
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL else f"signal {os.WTERMSIG(status)}"
    return "finished" if os.WEXITSTATUS(status) == 0 else "failed"


def counted(folder: Path, result: Path) -> None:
    """Train, and say how many function calls it took."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    train(folder)
    sys.setprofile(None)
    result.write_text(str(calls))


def dying_at_a_call(folder: Path, last: int) -> None:
    left = last

    def count(frame, event, argument):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    train(folder)


def writing_slowly(folder: Path) -> None:
    write = checkpoint.write_tensors

    def slow(path: Path, tensors: dict) -> None:
        write(path, tensors)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        time.sleep(0.01)
        path.write_bytes(data)

    checkpoint.write_tensors = slow
    train(folder)


def story(folder: Path) -> dict:
    """What a finished run left: its log, and the checksums of its last model and optimiser."""
    rows = [json.loads(line) for line in (folder / loop.LOG).read_text().splitlines()]
    for row in rows:
        del row["tokens_per_s"], row["memory_bytes"]
    files = json.loads((checkpoint.checkpoints(folder)[-1] / checkpoint.MANIFEST).read_text())["files"]
    return {"rows": rows, "sums": [files[f"{name}.safetensors"]["sha256"] for name in checkpoint.TENSORS]}


def main(folder: Path, kills: int) -> dict:
    torch.set_num_threads(1)
    rng = random.Random(0)
    train(folder / "warm")  # what is imported late is imported here, once
    assert ended(forked(lambda: counted(folder / "whole", folder / "calls"))) == "finished"
    calls = int((folder / "calls").read_text())
    began = time.perf_counter()
    assert ended(forked(lambda: writing_slowly(folder / "slow"))) == "finished"
    seconds = time.perf_counter() - began
    stories, killed, within_a_save, damaged, number = [], 0, 0, [], 0
    while killed < kills:
        run = folder / f"run-{number}"
        if rng.random() < 0.5:
            last = rng.randrange(1, calls // 2)
            child = forked(lambda run=run, last=last: dying_at_a_call(run, last))
        else:
            child = forked(lambda run=run: writing_slowly(run))
            time.sleep(rng.uniform(0, seconds / 2))
            os.kill(child, signal.SIGKILL)
        how = ended(child)
        assert how in ("killed", "finished"), how
        killed += how == "killed"
        within_a_save += bool(list(run.glob(".unfinished-*")))
        for path in checkpoint.checkpoints(run):
            try:
                checkpoint.verify(path)
            except checkpoint.Damaged as error:
                damaged.append(str(error))
        if how == "finished":
            stories.append(story(run))
            number += 1
    assert ended(forked(lambda: train(folder / f"run-{number}"))) == "finished"
    stories.append(story(folder / f"run-{number}"))
    return {
        "whole": story(folder / "whole"), "stories": stories, "killed": killed, "within_a_save": within_a_save,
        "damaged": damaged,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
