"""A job gives every rank's result, or says in time which rank failed and why; nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist

from labkit.train.parallel import RankFailed, RanksTimedOut, launch

TIMEOUT = 30.0


def test_results_come_by_rank_and_closures_travel():
    base = 10

    def job(x, *, add):
        total = torch.tensor([dist.get_rank()])
        dist.all_reduce(total)
        return base * dist.get_rank() + x + add, int(total)

    assert launch(job, 3, 1, add=0.5, timeout=TIMEOUT) == [(1.5, 3), (11.5, 3), (21.5, 3)]


def test_a_rank_that_is_killed_is_named_and_the_others_end():
    def job():
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    with pytest.raises(RankFailed, match="rank 1 of 2 was killed by SIGKILL") as caught:
        launch(job, 2, timeout=TIMEOUT)
    assert caught.value.rank == 1


def test_a_rank_that_raises_is_named_with_its_own_words_not_the_others_complaints():
    def job():
        if dist.get_rank() == 2:
            raise KeyError("the one that counts")
        dist.barrier()

    with pytest.raises(RankFailed, match="rank 2 of 3 raised KeyError: 'the one that counts'") as caught:
        launch(job, 3, timeout=TIMEOUT)
    assert "in job" in caught.value.detail


def test_a_rank_that_leaves_is_no_success():
    def job():
        os._exit(3)

    with pytest.raises(RankFailed, match="rank 0 of 1 ended with exit code 3 before it had a result"):
        launch(job, 1, timeout=TIMEOUT)


def test_a_rank_that_hangs_ends_the_job_in_time():
    def job():
        if dist.get_rank() == 1:
            time.sleep(600)
        dist.barrier()

    with pytest.raises(RanksTimedOut, match="rank 1 of 2 did not end within 4 s") as caught:
        launch(job, 2, timeout=4)
    assert re.fullmatch(r"rank 0 stands in job \(.*\); rank 1 stands in job \(.*\)", caught.value.detail)


def test_ranks_on_the_cpu_see_no_gpu():
    def job():
        return os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.is_available()

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert launch(job, 1, timeout=TIMEOUT) == [(given or "", False)]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 0}, "ranks"),
        ({"ranks": 2, "backend": "mpi"}, "choose 'gloo'"),
        ({"ranks": 1000, "backend": "nccl"}, "needs a GPU for each of 1000 ranks"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        launch(print, **settings)
