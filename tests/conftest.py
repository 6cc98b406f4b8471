"""What every test gets: a private home, one thread, no window; and which tests this machine can run.

A test marked `browser`, `sandbox`, `colab`, `prometheus` or `gpu` is skipped where the machine lacks what it needs.
`LABKIT_REQUIRE` (a list such as "browser,sandbox,colab,prometheus", set in continuous integration) turns that skip into
a failure.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["LABKIT_HOME"] = tempfile.mkdtemp(prefix="labkit-test-home-")
atexit.register(shutil.rmtree, os.environ["LABKIT_HOME"], ignore_errors=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
os.environ.pop("LABKIT_GRADE", None)

import pytest  # noqa: E402 (the variables above must stand first)

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser_missing() -> str:
    """Why no browser can be driven; empty if one can."""
    if os.environ.get("LABKIT_CHROMIUM") or any(shutil.which(name) for name in CHROMIUM_NAMES):
        return ""
    return "no Chromium on this machine (install chromium)"


def sandbox_missing() -> str:
    """Why no sandbox can be made; empty if one can."""
    if not shutil.which("bwrap"):
        return "no bubblewrap on this machine (install bubblewrap)"
    made = subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"], capture_output=True, text=True)
    return "" if made.returncode == 0 else f"bubblewrap may not make a sandbox here: {made.stderr.strip()}"


def colab_missing() -> str:
    """Why no notebook can run on the widgets that Colab ships; empty if one can."""
    folder = Path(sys.prefix) / "colab-widgets"
    return "" if (folder / "ipywidgets").is_dir() else f"no folder {folder} (make setup-test)"


def prometheus_missing() -> str:
    """Why Prometheus, Alertmanager and their checkers cannot be asked; empty if they can."""
    missing = [name for name in ("prometheus", "promtool", "amtool") if not shutil.which(name)]
    if not any(shutil.which(name) for name in ("prometheus-alertmanager", "alertmanager")):
        missing.append("alertmanager")
    if not missing:
        return ""
    return f"no {', '.join(missing)} on this machine (install prometheus and prometheus-alertmanager)"


def gpu_missing() -> str:
    """Why no GPU can be used; empty if one can."""
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device on this machine"


PROBES = {
    "browser": functools.cache(browser_missing),
    "sandbox": functools.cache(sandbox_missing),
    "colab": functools.cache(colab_missing),
    "prometheus": functools.cache(prometheus_missing),
    "gpu": functools.cache(gpu_missing),
}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a requirement that names no probe, so that a typing mistake cannot switch one off."""
    unknown = sorted(required() - PROBES.keys())
    if unknown:
        raise pytest.UsageError(f"LABKIT_REQUIRE names {', '.join(unknown)}; choose from {', '.join(PROBES)}")


def required() -> set[str]:
    """What this run insists on."""
    return {name.strip() for name in os.environ.get("LABKIT_REQUIRE", "").split(",") if name.strip()}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the machine cannot run, or fail where it was required."""
    for name, probe in PROBES.items():
        if item.get_closest_marker(name) and (reason := probe()):
            if name in required():
                pytest.fail(f"{reason}, and LABKIT_REQUIRE asks for {name}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test keeps its own progress."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path_factory.mktemp("home")))
