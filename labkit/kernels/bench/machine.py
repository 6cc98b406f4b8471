"""On what was measured: the machine, its versions, and its ceilings, which are timed in the same rounds as the rest."""

from __future__ import annotations

import csv
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from labkit.core import runtime

PACKAGES = ("labkit", "torch", "triton", "transformers", "numpy")
PRODUCT, COPY = "ceiling: matrix product", "ceiling: copy"
ASKED = ("driver_version", "power.limit", "power.max_limit", "clocks.max.sm", "clocks.max.mem")


class Ceilings:
    """A large matrix product and a large copy, as two more calls that take turns with the contestants.

    Args:
        dtype: of the product. device: where; a CPU gets small ones.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.size, nbytes = (8192, 2**30) if device.type == "cuda" else (128, 2**20)
        draw = torch.Generator(device).manual_seed(0)
        self._a, self._b = (torch.randn(self.size, self.size, generator=draw, device=device).to(dtype) for _ in "ab")
        self._out = torch.empty_like(self._a)
        self._from = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self._to = torch.empty_like(self._from)

    @property
    def calls(self) -> dict[str, Callable[[], Any]]:
        """What takes turns."""
        return {
            PRODUCT: lambda: torch.mm(self._a, self._b, out=self._out),
            COPY: lambda: self._to.copy_(self._from),
        }

    def rates(self, median: Mapping[str, float]) -> tuple[float | None, float | None]:
        """FLOP/s and bytes/s (read and written) from the median seconds of the two calls; None for one that failed."""
        product, copy = median.get(PRODUCT), median.get(COPY)
        return product and 2 * self.size**3 / product, copy and 2 * self._from.numel() / copy


def describe(device: torch.device) -> dict[str, Any]:
    """The machine in plain values; what it does not tell is None."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    told = {
        "device": runtime.device_name(device), "system": platform.platform(), "versions": versions,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    if device.type != "cuda":
        return told | dict.fromkeys(_keys())
    properties = torch.cuda.get_device_properties(device)
    told |= {
        "capability": [properties.major, properties.minor], "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }  # fmt: skip
    return told | _driver(str(getattr(properties, "uuid", "")))


def _keys() -> list[str]:
    return [name.replace(".", "_") for name in ASKED]


def _driver(uuid: str) -> dict[str, Any]:
    """What nvidia-smi says of one card: its driver, watts and megahertz."""
    program, found = shutil.which("nvidia-smi"), None
    if program:
        which = ["-i", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"] if uuid else []
        ask = [program, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits", *which]
        try:
            told = subprocess.run(ask, capture_output=True, text=True, timeout=10)
            found = next(csv.reader(told.stdout.splitlines()), None) if told.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            found = None
    if not found or len(found) != len(ASKED):
        return dict.fromkeys(_keys())
    driver, *numbers = (value.strip() for value in found)
    return dict(zip(_keys(), [driver, *map(_number, numbers)], strict=True))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
