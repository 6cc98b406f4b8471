"""What every test gets: a private home, one thread, no window; and which tests this machine can run.

A test marked `browser`, `sandbox`, `colab`, `prometheus` or `gpu` is skipped where the machine lacks what it needs.
`LABKIT_REQUIRE` (a list such as "browser,sandbox,colab,prometheus", set in continuous integration) turns that skip into
a failure.

Several workers share the tests out longest first (see `SECONDS`), so that none of them ends minutes before the others.
"""

from __future__ import annotations

import atexit
import collections
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

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


# What a test takes, roughly, by file, the first pattern that fits: it decides the order among workers, nothing else.
SECONDS = {
    "tests/notebooks/test_colab_widgets.py": 25.0,
    "tests/notebooks/test_[bs]*.py": 45.0,
    "tests/notebooks/*": 3.0,
    "tests/show/*_browser.py": 17.0,
    "tests/test_package.py": 10.0,
    "tests/serve/test_fleet_drills.py": 16.0,
    "tests/course/test_grade.py": 6.0,
    "tests/course/test_assign.py": 4.0,
    "tests/train/test_kill.py": 20.0,
    "tests/serve/test_registry_cut.py": 5.0,
    "tests/nn/test_families.py": 6.0,
    "tests/deploy/test_watch.py": 2.0,
    "tests/course/*": 0.7,
    "tests/kernels/*": 0.6,
    "*": 0.2,
}
# Files whose tests have nothing to share: a notebook goes to whoever is free, near misses lab by lab.
APART = ("tests/notebooks/test_blank.py", "tests/notebooks/test_solved.py", "tests/notebooks/test_c*.py")
BY_LAB = "tests/course/test_near_misses.py"


def unit_of(nodeid: str) -> str:
    """What one worker gets as a whole: a file, but for those of APART and BY_LAB.

    >>> unit_of("tests/nn/test_moe.py::test_it[a::b]"), unit_of("tests/course/test_near_misses.py::test_it[09.gather]")
    ('tests/nn/test_moe.py', 'tests/course/test_near_misses.py 09')
    """
    path = nodeid.split("::", 1)[0]
    if any(fnmatch(path, pattern) for pattern in APART):
        return nodeid
    found = re.search(r"\[(\d\d)\.", nodeid) if path == BY_LAB else None
    return f"{path} {found[1]}" if found else path


def longest_first(nodeids: list[str]) -> list[int]:
    """The places of these tests, unit by unit, the unit that takes longest before the others."""
    units: dict[str, list[int]] = collections.defaultdict(list)
    for place, nodeid in enumerate(nodeids):
        units[unit_of(nodeid)].append(place)

    def seconds(places: list[int]) -> float:
        path = nodeids[places[0]].split("::", 1)[0]
        return len(places) * next(each for pattern, each in SECONDS.items() if fnmatch(path, pattern))

    return [place for places in sorted(units.values(), key=lambda places: -seconds(places)) for place in places]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker of several, the order in which work is handed out; alone, tests stay as they stand in their files."""
    if hasattr(config, "workerinput"):
        items[:] = [items[place] for place in longest_first([item.nodeid for item in items])]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out unit by unit, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    if config.getoption("dist") != "loadscope":
        return None
    config.option.loadscopereorder = False  # that order is by number of tests
    return ByUnit(config, log)


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
