"""A server for a notebook: in a process of its own, on a port that is free, with one token that can be asked to fail.

The notebook, the server and the engine are then three processes, as they would be elsewhere: who measures a server from
within its own interpreter measures himself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any

PATIENCE = 300.0  # seconds, for loading
LEAVE_SECONDS = 2.0  # for answers that still run at the end


def flawed_engine(
    folder: str, *, poison: int, limits: dict[str, Any] | None = None, dtype: str = "float32", **options: Any
) -> Any:
    """An engine for a Hugging Face folder (see `engine.loading.load`) in which one token is no number.

    Args:
        folder: of the model.
        poison: a token id; whoever has it in the prompt gets NaN, through all layers. It is never generated.
        limits: fields of `Limits`; None: those that fit the machine.
        dtype: to compute in. In 16 bits a matrix product may round otherwise in other company.
    """
    import torch

    from labkit.serve.engine import Engine
    from labkit.serve.engine.loading import default_limits
    from labkit.serve.scheduler import Limits

    def spoil(_: Any, given: tuple[Any, ...], embedded: Any) -> Any:
        return embedded.masked_fill((given[0] == poison).unsqueeze(-1), float("nan"))

    def forbid(_: Any, given: tuple[Any, ...], logits: Any) -> Any:
        logits[..., poison] = float("-inf")
        return logits

    def flawed(model: Any) -> Limits:  # before there is an engine, which on a GPU records what the model does
        model.embed.register_forward_hook(spoil)
        model.head.register_forward_hook(forbid)
        return default_limits(model) if limits is None else Limits(**limits)

    return Engine.from_pretrained(Path(folder), limits=flawed, dtype=getattr(torch, dtype), **options)


class Hosted:
    """A server of one model, started at once.

    Args:
        folder: of the model, with its tokenizer.
        engine: options of `flawed_engine`.
        settings: fields of the server's `Settings`.

    `wait` gives the url once requests are accepted. It ends with `close`, and with the process that made it.
    """

    def __init__(self, folder: Path | str, engine: dict[str, Any], **settings: Any) -> None:
        asked = json.dumps({"folder": str(folder), "engine": {"folder": str(folder), **engine}, "settings": settings})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "labkit.course.hosted", asked],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._told: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._told), daemon=True).start()
        self.url = ""

    def _hear(self, key: str, seconds: float) -> Any:
        try:
            told = self._told.get(timeout=seconds)
        except Empty:
            raise TimeoutError(f"the server said nothing of its {key} for {seconds:.0f} s") from None
        if key not in told:
            raise RuntimeError(f"the server has ended with {self._process.wait(10)}; its words stand above")
        return told[key]

    def wait(self) -> str:
        """The url, once requests are accepted. Raises RuntimeError if the server ended instead."""
        if not self.url:
            self.url = self._hear("url", PATIENCE)
        return self.url

    def worker(self) -> int:
        """The number of the process that the engine lives in now."""
        self._process.stdin.write("worker\n")
        return int(self._hear("worker", 10))

    def close(self) -> None:
        """End it; may be called twice."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(LEAVE_SECONDS + 20)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._process.stdin.close()  # a cell was run twice: the first server is told to end

    def __enter__(self) -> Hosted:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _listen(lines: Iterable[str], told: Queue[dict[str, Any]]) -> None:
    for line in lines:
        try:
            told.put(json.loads(line))
        except ValueError:  # not ours: a library's own words
            print(line, end="", file=sys.stderr)
    told.put({"ended": True})


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def _serve(asked: dict[str, Any]) -> None:
    from labkit.serve.server import Settings, serve
    from labkit.serve.server.launch import listen
    from labkit.serve.tokenizer import read
    from labkit.serve.worker import Spec, Worker

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    worker = Worker(Spec("labkit.course.hosted:flawed_engine", asked["engine"]))
    opened = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{opened.getsockname()[1]}"

    def obey() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(lambda: _tell(worker=worker.pid))
        loop.call_soon_threadsafe(stop.set)  # whoever started this is gone, or has closed it

    threading.Thread(target=obey, daemon=True).start()
    settings, tokenizer = Settings(**asked["settings"]), read(asked["folder"])
    ready = {"on_ready": lambda: _tell(url=url)}
    await serve(worker, tokenizer, settings, opened, drain_seconds=LEAVE_SECONDS, stop=stop, **ready)


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
