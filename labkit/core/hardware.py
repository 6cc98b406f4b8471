"""Graphics processors from their datasheets, the roofline, and whether something fits.

Datasheet figures are peaks nobody reaches: they are good for ratios and upper bounds. What a machine really does is
measured in the labs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    `memory` in bytes: the datasheet's gigabytes taken as 10⁹ bytes, which is a little less than what the driver shows.
    `tflops` is the dense 16-bit matrix rate with float32 accumulation, in 10¹² FLOP/s: bfloat16 where `bf16`, else
    float16. `bandwidth` in bytes per second.
    """

    name: str
    memory: int
    tflops: float
    bandwidth: float
    capability: tuple[int, int]
    source: str

    @property
    def bf16(self) -> bool:
        """Whether the matrix units take bfloat16 (compute capability 8.0, Ampere)."""
        return self.capability >= (8, 0)

    @property
    def fp8(self) -> bool:
        """Whether the matrix units take float8 (compute capability 8.9, Ada, and later)."""
        return self.capability >= (8, 9)


def _gpu(name: str, gigabytes: int, tflops: float, gb_per_s: float, capability: tuple[int, int], source: str) -> Gpu:
    return Gpu(name, gigabytes * GB, tflops, gb_per_s * GB, capability, f"NVIDIA datasheet: {source}")


_GPUS = (
    _gpu("T4", 16, 65, 320, (7, 5), "Tesla T4"),
    _gpu("V100-16GB", 16, 125, 900, (7, 0), "V100 SXM2"),
    _gpu("V100-32GB", 32, 125, 900, (7, 0), "V100 SXM2"),
    _gpu("A10G", 24, 70, 600, (8, 6), "A10G"),
    _gpu("L4", 24, 121, 300, (8, 9), "L4 (half of its figure with sparsity)"),
    _gpu("RTX 4090", 24, 165.2, 1008, (8, 9), "Ada architecture white paper, appendix A"),
    _gpu("A100-40GB", 40, 312, 1555, (8, 0), "A100 SXM"),
    _gpu("A100-80GB", 80, 312, 2039, (8, 0), "A100 SXM"),
    _gpu("H100-80GB", 80, 989.4, 3350, (9, 0), "H100 SXM (half of its figure with sparsity)"),
    _gpu("H200", 141, 989.4, 4800, (9, 0), "H200 SXM (half of its figure with sparsity)"),
    _gpu("B200", 180, 2250, 8000, (10, 0), "HGX B200 (half of its figure with sparsity)"),
)

GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in _GPUS})
"""Known accelerators by name, smallest memory first."""


def gpu(name: str) -> Gpu:
    """The accelerator of this name. Raises ValueError for an unknown one, naming the nearest.

    >>> gpu("T4").memory
    16000000000
    """
    if isinstance(name, str) and name in GPUS:
        return GPUS[name]
    longer = [known for known in GPUS if known.lower().startswith(str(name).lower())]
    near = longer or get_close_matches(str(name), GPUS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "see the list"
    raise ValueError(f"there is no GPU {name!r}; {hint} (known: {', '.join(GPUS)})")


@dataclass(frozen=True)
class Fit:
    """Whether `needed` bytes go into the `available` ones; true or false in an `if`."""

    needed: int
    available: int

    @property
    def spare(self) -> int:
        """Bytes left over; negative when it does not fit."""
        return self.available - self.needed

    def __bool__(self) -> bool:
        return self.needed <= self.available


def fits(needed: int, name: str, count: int = 1, reserve: float = 0.1) -> Fit:
    """Whether so many bytes fit into `count` GPUs that share them evenly.

    Args:
        needed: bytes.
        name: a key of `GPUS`.
        count: how many of them.
        reserve: the share of each memory kept for the driver, the workspace and fragmentation, in [0, 1).

    Raises ValueError for an unknown GPU or a number out of range.

    >>> bool(fits(14 * 10**9, "T4")), bool(fits(15 * 10**9, "T4"))
    (True, False)
    """
    if needed < 0:
        raise ValueError(f"fits: needed is {needed} bytes; give zero or more")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"fits: count is {count!r} GPUs; give a whole number of one or more")
    if not 0 <= reserve < 1:
        raise ValueError(f"fits: reserve is {reserve}; give a share from 0 up to, but not including, 1")
    return Fit(int(needed), int(gpu(name).memory * count * (1 - reserve)))


@dataclass(frozen=True)
class Roofline:
    """Where a computation stands under a machine's roof; see `roofline`."""

    seconds: float
    intensity: float
    ridge: float
    attainable: float

    @property
    def bound(self) -> str:
        """What limits it: "compute" or "memory"."""
        return "compute" if self.intensity >= self.ridge else "memory"


def roofline(flops: float, moved: float, peak_flops: float, bandwidth: float) -> Roofline:
    """The least time a computation can take if arithmetic and memory traffic overlap perfectly.

    Williams, Waterman and Patterson 2009 (doi 10.1145/1498765.1498785): attainable = min(peak, bandwidth · intensity),
    with intensity = FLOPs per byte moved. The ridge is the intensity above which arithmetic is the limit.

    Args:
        flops: floating-point operations.
        moved: bytes to and from memory.
        peak_flops: FLOP/s.
        bandwidth: bytes per second.

    Raises ValueError unless all four are positive.

    >>> r = roofline(flops=2e12, moved=1e9, peak_flops=1e14, bandwidth=1e12)
    >>> r.seconds, r.intensity, r.ridge, r.bound
    (0.02, 2000.0, 100.0, 'compute')
    """
    for name, value in (("flops", flops), ("moved", moved), ("peak_flops", peak_flops), ("bandwidth", bandwidth)):
        if not value > 0:
            raise ValueError(f"roofline: {name} is {value}; give a positive number")
    intensity, ridge = flops / moved, peak_flops / bandwidth
    return Roofline(
        max(flops / peak_flops, moved / bandwidth), intensity, ridge, min(peak_flops, bandwidth * intensity)
    )
