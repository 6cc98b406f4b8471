"""One child process, as its parent holds it: started, spoken to, listened to until the last word, and ended."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue

from labkit.serve.worker.child import main, together
from labkit.serve.worker.messages import Message
from labkit.serve.worker.spec import Spec

Hear = Callable[["Link", list[Message]], None]


class Link:
    """A child, and two threads: one starts it and reads until it has ended, one writes. Neither holds up the caller.

    Args:
        spec: of the engine.
        beat: seconds between its signs of life.
        hear: called in the reading thread with this link and the messages that came, in order. The last one is
            ("ended", how), after everything that the child had sent. If it raises, the child is killed.
    """

    def __init__(self, spec: Spec, beat: float, hear: Hear) -> None:
        self._spec, self._beat, self._hear = spec, beat, hear
        self._outbox: SimpleQueue[Message | None] = SimpleQueue()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._killed, self._pid = threading.Event(), None
        self.failure = ""  # what is known to be wrong with it, before it has ended

    def start(self) -> None:
        """Start it; returns at once."""
        threading.Thread(target=self._live, name="worker-reader", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Of the process; None before it runs."""
        return self._pid

    def send(self, message: Message) -> None:
        """Say something, in order, without waiting."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End it now. What it had sent before is still heard."""
        self._killed.set()
        if self._process is not None:
            with contextlib.suppress(ValueError, OSError):
                self._process.kill()

    def _live(self) -> None:
        # The kernel kills the child when the thread that started it ends, so this thread stays to the end.
        try:
            how = self._listen(self._spawn())
        except Exception as error:
            self.kill()
            how = f"could not be run ({type(error).__name__}: {error})"
        self._outbox.put(None)
        with contextlib.suppress(RuntimeError):
            self._hear(self, [("ended", how)])

    def _spawn(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        child_commands, commands = context.Pipe(duplex=False)
        news, child_news = context.Pipe(duplex=False)
        with child_commands, child_news:
            args = (self._spec, child_commands, child_news, self._beat, os.getpid())
            process = context.Process(target=main, args=args, name="labkit-worker", daemon=False)
            process.start()
        self._process, self._pid = process, process.pid
        atexit.register(process.kill)  # before multiprocessing would wait for it to end by itself
        if self._killed.is_set():
            process.kill()
        threading.Thread(target=self._write, args=(commands,), name="worker-writer", daemon=True).start()
        return news

    def _write(self, commands: Connection) -> None:
        with commands, contextlib.suppress(OSError):
            while (messages := together(self._outbox)) is not None:
                commands.send(messages)

    def _listen(self, news: Connection) -> str:
        """Hear everything, then wait for the end; how it ended."""
        process, gone = self._process, end_of(self._process)
        try:
            with news, contextlib.suppress(EOFError, OSError):
                while news in (ready := wait([news, gone])) or gone not in ready:
                    self._hear(self, news.recv())
        except RuntimeError:
            self.kill()  # nobody listens any more: the event loop is closed
        if gone != process.sentinel:
            os.close(gone)
        process.join()
        atexit.unregister(process.kill)
        how = how_it_ended(process.exitcode)
        process.close()
        return how


def end_of(process: multiprocessing.process.BaseProcess) -> int:
    """What can be waited for until a process has ended, even if children of its own live on and hold its pipes."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return process.sentinel


def how_it_ended(code: int | None) -> str:
    """An exit code in words.

    >>> how_it_ended(-11), how_it_ended(3)
    ('was killed by SIGSEGV', 'exited with code 3')
    """
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
