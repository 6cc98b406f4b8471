"""What this machine really does: times of calls, copies by size, matrix products by size.

Datasheets stand in `core.hardware`. A time here is a median: on a GPU between two events on the stream, elsewhere on
the clock. A rate is that of the fastest sample, since a ceiling is what can be reached. "Warm" times many calls in a
row, whose data the caches may keep; "cold" empties a GPU's L2 before each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]
FLUSH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of some samples, the fastest and the slowest, and calls in each sample."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class Ceilings:
    """The best rates found on a device: bytes/s (read and written) of large copies, and FLOP/s of matrix products."""

    bandwidth: float
    flops: float

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which arithmetic is the limit."""
        return self.flops / self.bandwidth


def timing(
    call: Call, device: torch.device | str = "cpu", *, cold: bool = False, samples: int = 5, least: float = 1e-3
) -> Timing:
    """How long a call takes, after two that do not count.

    Args:
        call: without arguments; on a GPU it only has to enqueue its work.
        device: where it works.
        cold: empty the L2 of a GPU before every call, which then makes a sample of its own. A CPU has no such switch.
        samples: how many.
        least: seconds that a warm sample should take; so many calls are in it, at most 1000.

    Raises ValueError for less than one sample.
    """
    if samples < 1:
        raise ValueError(f"timing: samples is {samples}; give 1 or more")
    clock = _events if torch.device(device).type == "cuda" else _wall
    call()
    calls, flush = 1, None
    if cold and clock is _events:
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    else:
        once = max(clock(call, 1, None), 1e-9)
        calls = max(1, min(1000, round(least / once)))
    clock(call, calls, flush)
    times = [clock(call, calls, flush) for _ in range(samples)]
    return Timing(statistics.median(times), min(times), max(times), calls)


def _wall(call: Call, calls: int, flush: torch.Tensor | None) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def _events(call: Call, calls: int, flush: torch.Tensor | None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if flush is not None:
        flush.zero_()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def copy_rates(sizes: Sequence[int], device: torch.device | str = "cpu", **how: Any) -> dict[int, float]:
    """Bytes/s of a copy at its fastest, by the bytes that it reads and writes together; `how` goes to `timing`.

    A small copy stays in a cache, and on a GPU its launch takes longer than itself.

    >>> list(copy_rates([2**12], samples=1, least=1e-6))
    [4096]
    """
    rates = {}
    for size in sizes:
        source = torch.zeros(max(1, size // 2), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        took = timing(lambda target=target, source=source: target.copy_(source), device, **how)
        rates[size] = 2 * source.numel() / took.low
    return rates


def matmul_rates(
    sizes: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **how: Any
) -> dict[int, float]:
    """FLOP/s of a product of two square matrices at its fastest, by their size; `how` goes to `timing`.

    >>> list(matmul_rates([8], samples=1, least=1e-6))
    [8]
    """
    rates = {}
    for size in sizes:
        draw = torch.Generator(device).manual_seed(size)
        a, b = (torch.randn(size, size, generator=draw, device=device).to(dtype) for _ in range(2))
        rates[size] = 2 * size**3 / timing(lambda a=a, b=b: a @ b, device, **how).low
    return rates


def ceilings(copies: dict[int, float], products: dict[int, float]) -> Ceilings:
    """The ceilings of a roofline: the rate of the largest copy, which no cache holds, and of the fastest product.

    Args:
        copies: from `copy_rates`; products: from `matmul_rates`.

    >>> ceilings({8: 9e9, 2**30: 1e9}, {64: 1e9, 512: 5e9})
    Ceilings(bandwidth=1000000000.0, flops=5000000000.0)
    """
    return Ceilings(copies[max(copies)], max(products.values()))
