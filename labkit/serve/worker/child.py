"""What runs in the child: the engine's loop, and three threads that listen, post and beat, so that it never waits.

The child ends with its parent: the pipe it listens to reads as ended, and on Linux the kernel kills it besides.
Ctrl-C and SIGTERM reach whole groups of processes; they are the parent's to answer, and nothing here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from labkit.serve.engine.delta import StepReport
from labkit.serve.scheduler.limits import Full
from labkit.serve.worker.messages import Message, pack_delta, pack_load
from labkit.serve.worker.reports import Reports
from labkit.serve.worker.spec import Spec

PR_SET_PDEATHSIG = 1


def main(spec: Spec, commands: Connection, news: Connection, beat: float, parent: int) -> None:
    """The child's whole life; it does not return.

    Args:
        commands, news: ends of pipes, to read from and to write to.
        beat: seconds between signs of life.
        parent: its process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(parent)
    inbox: SimpleQueue[Message] = SimpleQueue()
    mail = Mail(news)
    threading.Thread(target=listen, args=(commands, inbox), daemon=True).start()
    loop = Loop(inbox, mail)
    threading.Thread(target=pulse, args=(loop, mail, beat), daemon=True).start()
    try:
        loop.run(spec.build(lambda share, what: mail.put(("progress", float(share), str(what)))))
        code = 0
    except BaseException as error:
        kind = type(error)
        mail.put(("failed", kind.__module__, kind.__name__, str(error), traceback.format_exc()))
        code = 1
    mail.close()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def die_with(parent: int) -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def listen(commands: Connection, inbox: SimpleQueue[Message]) -> None:
    """Take what the parent says; when it is gone, so are we."""
    try:
        while True:
            for message in commands.recv():
                inbox.put(message)
    except (EOFError, OSError):
        os._exit(1)


def pulse(loop: Loop, mail: Mail, beat: float) -> None:
    """Say that we live, and how often the loop has turned: that it stands still is for the parent to judge."""
    while True:
        mail.put(("beat", loop.turns))
        time.sleep(beat)


class Mail:
    """Messages to the parent; a thread sends them, together where several have come up."""

    def __init__(self, news: Connection) -> None:
        self._news = news
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        self.put = self._queue.put
        self._thread = threading.Thread(target=self._post, daemon=True)
        self._thread.start()

    def _post(self) -> None:
        while (messages := together(self._queue)) is not None:
            self._news.send(messages)

    def close(self) -> None:
        """Send what is left."""
        self.put(None)
        self._thread.join()


def together(queue: SimpleQueue[Message | None]) -> list[Message] | None:
    """Wait for one message and take all that are there; None when None comes first (otherwise it comes next)."""
    messages = [queue.get()]
    with contextlib.suppress(Empty):
        while messages[-1] is not None:
            messages.append(queue.get_nowait())
    if messages[-1] is None and len(messages) > 1:
        messages.pop()
        queue.put(None)
    return None if messages[0] is None else messages


class Loop:
    """Commands in, steps, news out. `turns` counts how often it came round."""

    def __init__(self, inbox: SimpleQueue[Message], mail: Mail) -> None:
        self._inbox, self._mail = inbox, mail
        self._later: deque[Message] = deque()
        self._packer = Reports()
        self._reports: list[tuple[Any, ...]] = []
        self._taken = 0
        self.turns = 0

    def run(self, engine: Any) -> None:
        """Until it is told to stop."""
        self._engine = engine
        self._mail.put(("ready", engine.info, getattr(engine, "limits", None)))
        while self._obey():
            self.turns += 1
            deltas = engine.step() if engine.busy else []
            reports, self._reports = self._reports, []
            packed = [pack_delta(delta) for delta in deltas]
            self._mail.put(("step", self._taken, pack_load(engine.load()), packed, reports))

    def _obey(self) -> bool:
        """Do what was commanded; wait for it if there is nothing else to do. False for the command to stop."""
        while self._later and self._run(self._later[0]):
            self._later.popleft()
        wait = not self._engine.busy
        with contextlib.suppress(Empty):
            while True:
                message = self._inbox.get(wait)
                wait = False
                if message[0] == "stop":
                    return False
                self._do(message)
        return True

    def _do(self, message: Message) -> None:
        kind = message[0]
        if kind == "run":
            self._taken += 1
            if self._later or not self._run(message):
                self._later.append(message)
        elif kind == "cancel":
            self._later = deque(later for later in self._later if later[1] != message[1])
            self._engine.cancel(message[1])
            self._mail.put(("gone", message[1]))
        elif kind == "report":
            self._engine.observers.append(self._report)

    def _report(self, report: StepReport) -> None:
        self._reports.append(self._packer.pack(report))

    def _run(self, message: Message) -> bool:
        """Give a request to the engine; False while the engine is full. Whatever it finds wrong ends this one alone."""
        _, id, prompt, params, priority, salt, produced = message
        try:
            if produced is None:
                self._engine.add(id, prompt, params, priority=priority, salt=salt)
            else:
                self._engine.resume(id, prompt, params, produced, priority=priority, salt=salt)
        except Full as error:
            if self._engine.busy:
                return False
            self._mail.put(("refused", id, str(error)))
        except ValueError as error:
            self._mail.put(("refused", id, str(error)))
        except Exception as error:
            self._mail.put(("refused", id, f"{type(error).__name__}: {error}"))
        return True
