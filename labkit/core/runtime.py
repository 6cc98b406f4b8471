"""What this machine can do: device, dtype, seed, and the table of capabilities that gates cells.

Importing this module loads no torch; every question is asked when a function is called, and none asks the network.
Apple's GPU backend is left out on purpose: the kernels of the course need CUDA, and the rest runs on the CPU.
"""

from __future__ import annotations

import html
import os
import platform
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROFILES = ("auto", "cpu", "gpu")
GB = 10**9
DISK_NEEDED = 5 * GB
MEMORY_NEEDED = 8 * GB
PACKAGES = (
    "labkit", "torch", "transformers", "numpy", "matplotlib", "safetensors", "ipywidgets", "anywidget", "ipython",
    "jupyterlab", "jupytext", "papermill", "nbgrader", "triton", "bitsandbytes",
)  # fmt: skip


class Unavailable(RuntimeError):
    """This machine cannot do what was required; the message says why and what to do instead."""


@dataclass(frozen=True)
class Capability:
    """One thing a machine can or cannot do: `reason` is what was found, `instead` what to do where it is missing.

    `purpose` says what the course wants it for.
    """

    name: str
    available: bool
    reason: str
    instead: str
    purpose: str = ""

    def __str__(self) -> str:
        if self.available:
            return f"{self.name}: yes, {self.reason}"
        return f"{self.name}: no, {self.reason}. Instead: {self.instead}"


def device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype() -> torch.dtype:
    """The number format to compute in: bfloat16 or, before Ampere, float16 on a GPU, and float32 on the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def seed_all(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch, and give a fresh CPU generator with the same seed.

    Args:
        seed: a whole number in [0, 2³²), which is what NumPy takes.

    >>> a, b = seed_all(0).initial_seed(), seed_all(7).initial_seed()
    >>> a, b
    (0, 7)
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to 2**32 - 1")
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (other people's code still reads the global generator)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def device_name(device: torch.device) -> str:
    """What a measurement on this device is said to be on: the GPU's own name, or "the CPU".

    >>> import torch
    >>> device_name(torch.device("cpu"))
    'the CPU'
    """
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def resolve_profile(profile: str = "auto") -> str:
    """Which size of experiment to run: "cpu" (small) or "gpu" (the real one).

    Args:
        profile: "cpu", "gpu", or "auto", which takes "gpu" where there is a CUDA device.

    Raises ValueError for another word, and Unavailable if a GPU is asked for and there is none.

    >>> resolve_profile("cpu")
    'cpu'
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; choose one of {', '.join(PROFILES)}")
    if profile == "auto":
        return "gpu" if _cuda()[0] else "cpu"
    if profile == "gpu":
        require("cuda")
    return profile


def _installed(package: str) -> tuple[bool, str]:
    if find_spec(package) is None:
        return False, f"{package} is not installed"
    return True, f"{package} {_version(package) or 'of unknown version'}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "labkit":  # run from its sources, never installed
            from labkit import __version__

            return __version__
        return None


def _cuda() -> tuple[bool, str]:
    import torch

    if torch.version.cuda is None:
        return False, "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return False, "torch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    return True, f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def _needs_capability(least: tuple[int, int]) -> tuple[bool, str]:
    found, reason = _cuda()
    if not found:
        return False, reason
    import torch

    return torch.cuda.get_device_capability() >= least, reason


def _bf16() -> tuple[bool, str]:
    if not _cuda()[0]:
        return True, "on the CPU, correct but not fast"
    return _needs_capability((8, 0))


def _triton() -> tuple[bool, str]:
    installed, reason = _installed("triton")
    if not installed:
        return False, reason
    found, why = _cuda()
    return (True, reason) if found else (False, f"{reason} is installed, but {why}")


def _interpreter() -> tuple[bool, str]:
    installed, reason = _installed("triton")
    if not installed:
        return False, reason
    on = os.environ.get("TRITON_INTERPRET") == "1"
    return True, f"{reason}, " + ("TRITON_INTERPRET=1 is set" if on else "set TRITON_INTERPRET=1 before importing it")


def _bubblewrap() -> tuple[bool, str]:
    binary = shutil.which("bwrap")
    if binary is None:
        return False, "bwrap is not installed"
    try:
        done = subprocess.run(
            [binary, "--ro-bind", "/", "/", "--unshare-all", "true"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"bwrap did not run ({type(error).__name__})"
    return (True, "bwrap runs") if done.returncode == 0 else (False, "bwrap is there but may not make namespaces")


def _chromium() -> tuple[bool, str]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = [name for name in names if shutil.which(name)]
    return (True, found[0]) if found else (False, "no Chromium or Chrome on the path")


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(Path.cwd()).free
    return free >= DISK_NEEDED, f"{free / GB:.0f} GB free here"


def _memory_bytes() -> int | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _memory() -> tuple[bool, str]:
    total = _memory_bytes()
    if total is None:
        return True, "the system does not say how much there is"
    return total >= MEMORY_NEEDED, f"{total / GB:.0f} GB of main memory"


_CPU_PROFILE = 'profile "cpu" runs every lab, with smaller experiments'
_PROBES: dict[str, tuple[Callable[[], tuple[bool, str]], str]] = {
    "cuda": (_cuda, f"{_CPU_PROFILE}; Colab lends a GPU"),
    "sm90": (lambda: _needs_capability((9, 0)), "an older GPU runs the same kernels without Hopper's extras"),
    "bf16": (_bf16, "float16 with loss scaling, or float32"),
    "fp8": (lambda: _needs_capability((8, 9)), "store float8, compute in float32: accuracy shows, speed does not"),
    "triton": (_triton, "the Triton interpreter, or the torch reference kernels"),
    "triton_interpreter": (_interpreter, 'install "labkit[gpu]", or read the torch reference kernels'),
    "bitsandbytes": (lambda: _installed("bitsandbytes"), "pip install bitsandbytes, or the course's own quantisers"),
    "transformers": (lambda: _installed("transformers"), "pip install transformers; the oracles of the labs need it"),
    "bubblewrap": (_bubblewrap, "install bubblewrap (Linux), or grade only notebooks you trust"),
    "chromium": (_chromium, "install chromium; only the widgets' browser tests need it"),
    "disk": (_disk, f"free up to {DISK_NEEDED // GB} GB before running all labs"),
    "memory": (_memory, f"close other programs; labs are planned for {MEMORY_NEEDED // GB} GB"),
}  # fmt: skip


_PURPOSES = {
    "cuda": "the experiments in real size, on an NVIDIA GPU",
    "sm90": "kernels for Hopper GPUs (H100, H200) and newer",
    "bf16": "bfloat16, a float of 16 bits with the range of 32",
    "fp8": "products of 8-bit floats in hardware",
    "triton": "GPU kernels that you write in Python",
    "triton_interpreter": "the same kernels on a CPU, slowly",
    "bitsandbytes": "weights and optimizers in 8 and 4 bits",
    "transformers": "models to compare with, called oracles",
    "bubblewrap": "grading other people's code in a closed box",
    "chromium": "the tests of the widgets in a browser",
    "disk": "data and checkpoints of all labs",
    "memory": "the models on a CPU",
}


def capability(name: str) -> Capability:
    """What this machine says about one capability. Raises ValueError for an unknown name."""
    if name not in _PROBES:
        raise ValueError(f"there is no capability {name!r}; choose one of {', '.join(_PROBES)}")
    probe, instead = _PROBES[name]
    available, reason = probe()
    return Capability(name, available, reason, instead, _PURPOSES[name])


def capabilities() -> tuple[Capability, ...]:
    """The whole table, always in the same order."""
    return tuple(capability(name) for name in _PROBES)


def can(name: str) -> bool:
    """Whether this machine can do it; where it cannot, prints why and what to do instead. Use it to gate a cell."""
    found = capability(name)
    if not found.available:
        print(found)
    return found.available


def require(name: str) -> Capability:
    """The capability, if the machine has it. Raises Unavailable with the reason and the alternative if not."""
    found = capability(name)
    if not found.available:
        raise Unavailable(str(found))
    return found


def _data_folders() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "data"
    folders = [checkout] if (package.parent / "pyproject.toml").is_file() else []
    return [folder for folder in [*folders, package / "data"] if folder.is_dir()]


def data_path(name: str) -> Path:
    """A file or a folder of the course's `data/`, in a checkout or in the installed wheel.

    Args:
        name: its path inside `data/`, such as "claims.yaml".

    Raises ValueError for a path that leaves the folder, FileNotFoundError (with a list) for one that is not there.
    """
    relative = Path(name)
    if not name or relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"data_path takes a path inside the data folder, got {str(name)!r}")
    folders = _data_folders()
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    there = sorted({path.name for folder in folders for path in folder.iterdir()})
    raise FileNotFoundError(f"there is no data file {name!r}; data/ has {', '.join(there) or 'nothing'}")


@dataclass(frozen=True)
class Doctor:
    """Versions and capabilities of this machine; shows itself as a table in a notebook and in a terminal."""

    versions: tuple[tuple[str, str], ...]
    capabilities: tuple[Capability, ...]

    @property
    def missing(self) -> tuple[Capability, ...]:
        """What this machine cannot do."""
        return tuple(c for c in self.capabilities if not c.available)

    def __repr__(self) -> str:
        lines = []
        for c in self.capabilities:
            lines.append(f"{c.name:<18} {'yes' if c.available else 'no ':<3}  {c.reason}")
            if c.purpose:
                lines.append(f"{'':<18}      for: {c.purpose}")
            if not c.available:
                lines.append(f"{'':<18}      instead: {c.instead}")
        return "\n".join([*lines, "", *(f"{name:<18} {version}" for name, version in self.versions)])

    def _repr_html_(self) -> str:
        versions = "".join(_row("td", name, version) for name, version in self.versions)
        rows = "".join(
            _row("td", c.name, c.purpose, "yes" if c.available else "no", c.reason, "" if c.available else c.instead)
            for c in self.capabilities
        )
        return (
            f"<table><caption>What this machine can do</caption>"
            f"{_row('th', 'capability', 'for', 'here', 'found', 'instead')}{rows}</table>"
            f"<details><summary>Versions</summary><table>{_row('th', 'package', 'version')}{versions}</table></details>"
        )


def _row(tag: str, *cells: str) -> str:
    inside = "".join(f'<{tag} style="text-align:left">{html.escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inside}</tr>"


def doctor() -> Doctor:
    """Versions and capabilities of this machine, always in the same order."""
    system = (("python", platform.python_version()), ("system", f"{platform.system()} {platform.machine()}"))
    packages = tuple((name, _version(name) or "not installed") for name in PACKAGES)
    return Doctor((*system, ("cores", str(os.cpu_count())), *packages), capabilities())
