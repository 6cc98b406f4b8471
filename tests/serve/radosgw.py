"""A real S3 store for `make test-store`: Debian's Ceph, one monitor, one memory store, one gateway, in a folder.

    apt-get install ceph-mon ceph-osd ceph-common radosgw
    make test-store

starts it (`python tests/serve/radosgw.py -- COMMAND`), runs the command with LABKIT_S3_ENDPOINT and credentials set,
and stops it. Nothing outlives it; nothing is written outside of its folder; it listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "labkit", "labkit-secret"
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PATIENCE = 90.0  # seconds for each of them to answer


def missing() -> str:
    """Why it cannot be started; empty if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"no {', '.join(absent)} on this machine (install ceph-mon ceph-osd ceph-common radosgw)" if absent else ""


@contextmanager
def radosgw() -> Iterator[dict[str, str]]:
    """Start a gateway; the environment in which boto3 and the tests find it."""
    if reason := missing():
        raise SystemExit(reason)
    folder = Path(tempfile.mkdtemp(prefix="radosgw-"))
    running: list[subprocess.Popen[bytes]] = []
    try:
        try:
            port = _start(folder, running)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise SystemExit(f"{error}\n{_ends(folder / 'log')}") from error
        yield {
            "LABKIT_S3_ENDPOINT": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, running: list[subprocess.Popen[bytes]]) -> int:
    fsid, mon, port = str(uuid.uuid4()), _free_port(), _free_port()
    conf = folder / "ceph.conf"
    conf.write_text(_configuration(folder, fsid, mon))
    for name in ("mon", "osd", "run", "log"):
        (folder / name).mkdir()
    (folder / "keyring").touch()

    def begin(*command: str) -> None:
        log = open(folder / "log" / f"{command[0]}.txt", "wb")  # noqa: SIM115 (the process keeps it)
        running.append(subprocess.Popen([command[0], "-c", conf, "-f", *command[1:]], stdout=log, stderr=log))

    def do(*command: str) -> str:
        done = subprocess.run([command[0], "-c", conf, *command[1:]], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        return done.stdout

    monmap = str(folder / "monmap")
    do("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon}]", "--fsid", fsid, monmap)
    do("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
    begin("ceph-mon", "-i", "a")
    osd = str(uuid.uuid4())
    number = do("ceph", "osd", "new", osd).strip()
    do("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", osd)
    begin("ceph-osd", "-i", number)
    begin("radosgw", "-n", "client.gateway", "--rgw-frontends", f"beast endpoint=127.0.0.1:{port}")
    _wait_for(port, running)
    do(
        "radosgw-admin", "user", "create", "--uid", "labkit", "--display-name", "labkit", "--access-key", KEY,
        "--secret-key", SECRET,
    )  # fmt: skip
    return port


def _configuration(folder: Path, fsid: str, mon: int) -> str:
    return f"""[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}]
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
keyring = {folder}/keyring
mon data = {folder}/mon/data
osd data = {folder}/osd
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
log file = {folder}/log/$name.log
mon cluster log file = {folder}/log/cluster.log
pid file =
public addr = 127.0.0.1
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
rgw dns name =
rgw run sync thread = false
rgw enable usage log = false
"""


def _ends(logs: Path) -> str:
    """The last lines of every log."""
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(logs.iterdir()))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for(port: int, running: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for process in running:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the gateway has not answered in {PATIENCE:.0f} s")


def main() -> int:
    """Run a command beside a gateway."""
    if len(sys.argv) < 3 or sys.argv[1] != "--":
        raise SystemExit("usage: python tests/serve/radosgw.py -- COMMAND...")
    with radosgw() as environment:
        return subprocess.run(sys.argv[2:], env={**os.environ, **environment}).returncode


if __name__ == "__main__":
    sys.exit(main())
