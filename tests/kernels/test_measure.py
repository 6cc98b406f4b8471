"""Measurements say what was done: how often a call ran, what a rate is made of. No time is asserted."""

from __future__ import annotations

import pytest
import torch

from labkit.kernels import measure


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1


def test_a_timing_is_a_median_between_its_extremes():
    call = Counted()
    took = measure.timing(call, samples=3, least=1e-5)
    assert 0 < took.low <= took.median <= took.high
    assert 1 <= took.calls <= 1000
    assert call.calls == 2 + 4 * took.calls  # two to get going, one sample that does not count, three that do


def test_a_slow_call_is_alone_in_its_sample(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(now)))
    took = measure.timing(lambda: None, samples=1)
    assert took == measure.Timing(1.0, 1.0, 1.0, 1)


def test_rates_are_bytes_and_flops_over_the_fastest_sample(monkeypatch):
    monkeypatch.setattr(measure, "timing", lambda call, device, **how: measure.Timing(0.7, 0.5, 0.9, 1))
    assert measure.copy_rates([1000, 4096]) == {1000: 2000.0, 4096: 8192.0}
    assert measure.matmul_rates([4, 10]) == {4: 256.0, 10: 4000.0}


def test_ceilings_come_from_the_largest_copy_and_the_fastest_product():
    found = measure.ceilings({16: 90.0, 64: 20.0, 32: 70.0}, {2: 300.0, 8: 100.0})
    assert (found.bandwidth, found.flops, found.ridge) == (20.0, 300.0, 15.0)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples is 0"):
        measure.timing(lambda: None, samples=0)


@pytest.mark.gpu
def test_on_a_gpu_work_is_timed_not_its_launch():
    size = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    small = torch.zeros(16, dtype=torch.uint8, device="cuda")
    whole, part = (measure.timing(lambda x=x: x.add_(1), "cuda", cold=True) for x in (size, small))
    assert whole.calls == part.calls == 1
    assert whole.median > part.median
