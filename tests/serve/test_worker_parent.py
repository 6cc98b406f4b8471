"""The child's bond with its parent: it never outlives it, whatever either of them is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from standin_engine import Fault
from worker_help import lives

from labkit.serve.engine import SamplingParams
from labkit.serve.worker import Spec
from labkit.serve.worker.link import Link

HERE = Path(__file__).parent
PARENT = """
import asyncio, sys
sys.path[:0] = [{here!r}, {root!r}]
from labkit.serve.engine import SamplingParams
from labkit.serve.worker import Spec, Worker
from standin_engine import Fault

async def main():
    worker = Worker(Spec("standin_engine:build", {options}))
    await worker.start()
    stream = worker.submit((1,), SamplingParams(4000))
    await stream.__anext__()
    await asyncio.sleep(0.2)
    print(worker.pid, flush=True)
    {then}

if __name__ == "__main__":
    asyncio.run(main())
    print("the end", flush=True)
"""
HUNG = '{"faults": [Fault("hang", 1, at=2)], "folder": FOLDER}'
FROZEN = HUNG.replace("hang", "freeze")


def parent(tmp_path: Path, then: str, options: str = "{'pace': 0.01}") -> subprocess.Popen:
    """A process that has a worker with a request under way."""
    options = options.replace("FOLDER", repr(str(tmp_path)))
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(here=str(HERE), root=str(HERE.parents[1]), then=then, options=options))
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)


def ends(pid: int) -> bool:
    """Whether a process ends; waits for it."""
    until = time.monotonic() + 30
    while lives(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not lives(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", ["{'pace': 0.01}", HUNG, FROZEN], ids=["busy", "hung", "frozen_and_killed"])
def test_a_parent_that_is_killed_takes_the_child_along(options, tmp_path):
    with parent(tmp_path, "await asyncio.sleep(60)", options) as process:
        pid = int(process.stdout.readline())
        assert lives(pid)
        process.send_signal(signal.SIGKILL)
        assert ends(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("then", ["return", "raise SystemExit(3)"])
@pytest.mark.parametrize("options", [HUNG, FROZEN], ids=["hung", "frozen"])
def test_a_parent_that_forgets_to_close_ends_all_the_same(then, options, tmp_path):
    with parent(tmp_path, then, options) as process:
        pid = int(process.stdout.readline())
        process.wait(30)
        assert ends(pid)


def heard(child: Link, done) -> list:
    """All that a child says until its end; `done` is called with each message, in the thread that reads."""
    news, ended = [], threading.Event()

    def hear(link, messages):
        for message in messages:
            news.append(message)
            done(message)
            if message[0] == "ended":
                ended.set()

    child._hear = hear
    child.start()
    assert ended.wait(60)
    return news


def test_a_pipe_that_ends_is_enough_to_end_the_child():
    """Where no kernel kills it."""
    child = Link(Spec("standin_engine:build"), 0.1, None)
    news = heard(child, lambda message: child._outbox.put(None) if message[0] == "ready" else None)
    assert news[-1] == ("ended", "exited with code 1")


def test_what_was_on_its_way_at_the_death_is_heard_first(tmp_path):
    """The reader sleeps while the child says all it has to say, and time enough later dies."""
    faults = [Fault("slow", 1, at=301), Fault("die", 1, at=301)]
    child = Link(Spec("standin_engine:build", {"faults": faults, "folder": str(tmp_path)}), 0.1, None)

    def done(message):
        if message[0] == "ready":
            child.send(("run", "1", (1,), SamplingParams(400), 0, "", None))
        elif message[0] == "step" and lives(child.pid):
            assert ends(child.pid)

    news = heard(child, done)
    assert [message[0] for message in news].count("ended") == 1
    assert "SIGKILL" in news[-1][1]
    assert sum(len(message[3]) for message in news if message[0] == "step") == 301


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_group_are_left_to_the_parent(number, tmp_path):
    then = (
        f"import os; os.kill(worker.pid, {int(number)}); [await stream.__anext__() for _ in range(50)]; "
        "assert worker.health().restarts == 0; await worker.close()"
    )
    with parent(tmp_path, then) as process:
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "the end\n"
        assert process.wait(30) == 0
        assert ends(pid)
