"""A JupyterLab of its own and a real Chromium on it: what every widget's browser test drives.

`jupyter` (one a process) starts JupyterLab in a temporary folder with private Jupyter directories; `lab` (one a module)
opens notebooks in it, given as a list of cells. No request leaves the machine, and the tests hold that: Chromium finds
no other host, and what it asks for is kept. (Playwright's routes could refuse, too, but switch its cache off: a page of
JupyterLab then takes three seconds more.)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

WAIT_S = 60.0
TOKEN = "a-token-for-this-test-only"
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def chromium() -> str:
    """Where Chromium is; the `browser` mark has already skipped a test on a machine without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("LABKIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine (install chromium)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Notebook:
    """An open notebook: run it, and read what its cells printed."""

    def __init__(self, page: Any, cells: int) -> None:
        self.page, self.cells = page, cells

    def run_all(self) -> None:
        """Run every cell, and wait until the last one has a number."""
        self.page.get_by_text("Run", exact=True).first.click()
        self.page.get_by_text("Run All Cells", exact=True).click()
        self._wait_done(self.cells - 1)

    def run(self, number: int) -> str:
        """Run the code cell of this number again (counted from 0) and return the text it shows."""
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)
        cell.locator(".cm-content").click()
        prompt = cell.locator(".jp-InputPrompt").first
        before = prompt.inner_text()
        self.page.keyboard.press("Control+Enter")
        deadline = time.monotonic() + WAIT_S
        while prompt.inner_text() in (before, "[*]:") and time.monotonic() < deadline:
            time.sleep(0.05)
        self._wait_done(number)
        return self.output(number)

    def output(self, number: int) -> str:
        """The text that this cell shows now."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-OutputArea").inner_text()

    def _wait_done(self, number: int) -> None:
        prompt = self.page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-InputPrompt").first
        deadline = time.monotonic() + WAIT_S
        while not prompt.inner_text().strip("[]: ").isdigit():
            if time.monotonic() > deadline:
                raise TimeoutError(f"cell {number} did not finish: {prompt.inner_text()!r}")
            time.sleep(0.05)


class Lab:
    """The server and the browser."""

    def __init__(self, root: Path, address: str, browser: Any) -> None:
        self.root, self.address = root, address
        self.outside: list[str] = []
        self.context = browser.new_context(viewport={"width": 1200, "height": 1500})
        self.context.on("request", self._note)

    @contextmanager
    def open(self, cells: list[str], name: str = "test.ipynb", dark: bool = False) -> Iterator[Notebook]:
        """A new notebook of these code cells, open on a page of its own; requests to elsewhere fail and are kept."""
        self._write(cells, name, dark)
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{self.address}/doc/tree/{name}?token={TOKEN}&reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text("| Idle").first.wait_for()
        yield Notebook(page, len(cells))
        page.evaluate("localStorage.clear(); sessionStorage.clear()")  # what one page has left is no other's
        page.close()

    def _note(self, request: Any) -> None:
        inside = (self.address, self.address.replace("http", "ws"), "data:", "blob:")
        if not request.url.startswith(inside):
            self.outside.append(request.url)

    def _write(self, cells: list[str], name: str, dark: bool) -> None:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.root / name)
        self._set("apputils-extension/themes", {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"})
        self._set("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False})
        self._set("notebook-extension/tracker", {"windowingMode": "none"})

    def _set(self, plugin: str, values: dict[str, Any]) -> None:
        settings = self.root.parent / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(values))


def shoot(notebook: Notebook, tmp_path: Path, name: str) -> None:
    """Keep a picture of the page, in $LABKIT_SCREENSHOTS if that is set; an empty page is a failure."""
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.png"
    notebook.page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000


def _private(folder: Path) -> dict[str, str]:
    """An environment whose Jupyter, IPython and matplotlib keep everything under this folder."""
    own = {
        name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    own |= {"HOME": str(folder), "IPYTHONDIR": str(folder / "ipython"), "MPLCONFIGDIR": str(folder / "mpl")}
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, **own, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}


def _wait_up(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def jupyterlab(folder: Path) -> Iterator[tuple[Path, str]]:
    """A JupyterLab server on a free port, its root a new folder under this one: (root, address)."""
    root, port, log = folder / "root", free_port(), folder / "server.log"
    root.mkdir()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None", "--LabServerApp.extension_manager=readonly",
    ]  # fmt: skip
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=_private(folder), cwd=root, stdout=out, stderr=out, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_up(address, server, log)
            yield root, address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _end_kernels(address: str) -> None:
    """What one module's notebooks have left is no other's."""
    answer = urllib.request.urlopen(f"{address}/api/kernels?token={TOKEN}", timeout=30)
    for kernel in json.load(answer):
        path = f"{address}/api/kernels/{kernel['id']}?token={TOKEN}"
        urllib.request.urlopen(urllib.request.Request(path, method="DELETE"), timeout=30).close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """One JupyterLab for all browser tests of a process: its root folder and its address."""
    with jupyterlab(tmp_path_factory.mktemp("jupyterlab")) as found:
        yield found


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A Chromium on that JupyterLab for a module of tests, and kernels that end with it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = chromium()
    root, address = request.getfixturevalue("jupyter")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield Lab(root, address, browser)
        browser.close()
    _end_kernels(address)
