"""What streams do, for exercises about them: what came out when, and what was left behind. It calls the answer itself.

A notebook's own event loop is running already, so coroutines are run in a thread that has another.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

from labkit.serve.scheduler.limits import Full

T = TypeVar("T")
PATIENCE = 20.0  # seconds, for an answer that never comes back
BLOCKS = 3


def elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in a thread of its own; works where an event loop is running.

    >>> elsewhere(asyncio.sleep(0, "done"))
    'done'
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class _Feed:
    """An iterator that knows how much of it was asked for; one more than all when its end was seen."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items, self.taken = items, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.taken += 1
        if self.taken > len(self.items):
            self.taken = len(self.items) + 1
            raise StopIteration
        return self.items[self.taken - 1]


def arrived(answer: Callable[[Iterator[bytes]], Iterable[str]], chunks: Sequence[bytes]) -> dict[str, Any] | None:
    """Which events `answer(chunks)` yields, how many chunks it had asked for at each, and how many in the end.

    >>> arrived(lambda chunks: (chunk.decode() for chunk in chunks), [b"a", b"b"])
    {'events': ['a', 'b'], 'after chunk': [1, 2], 'asked for': 3}
    """
    feed, found, when = _Feed(chunks), [], []
    made = answer(iter(feed))
    if made is None:
        return None
    for item in made:
        found.append(item)
        when.append(feed.taken)
    return {"events": found, "after chunk": when, "asked for": feed.taken}


def released(
    answer: Callable[[Iterator[str], tuple[str, ...]], Iterable[str]], pieces: Sequence[str], stops: tuple[str, ...]
) -> list[str] | None:
    """What text `answer(pieces, stops)` lets go after each piece, and after the end if it waits for that.

    >>> released(lambda pieces, stops: pieces, ["a", "bc"], ())
    ['a', 'bc', '']
    """
    feed = _Feed(pieces)
    made = answer(iter(feed), stops)
    if made is None:
        return None
    texts = [""] * (len(pieces) + 1)
    for item in made:
        texts[max(feed.taken, 1) - 1] += item
    return texts[: max(feed.taken, 1)]


class StandIn:
    """A stand-in for an engine: it answers from a script, and can fail, or think for ever, at one piece.

    Args:
        pieces: of every answer.
        fault: "full": nothing is accepted; "fails" or "thinks": at piece `at`.
    """

    def __init__(self, pieces: Sequence[str], fault: str = "", at: int = 0) -> None:
        self.pieces, self.fault, self.at = list(pieces), fault, at
        self.blocks = self.produced = 0
        self.thinking = asyncio.Event()

    def submit(self, prompt: str) -> Answer:
        """Begin an answer; it holds blocks until it has ended or is cancelled. Raises Full."""
        if self.fault == "full":
            raise Full("the queue is full; try again later")
        self.blocks += BLOCKS
        return Answer(self)


class Answer(AsyncIterator[str]):
    """The pieces of one answer; `cancel` frees what it holds, at any time and as often as you like."""

    def __init__(self, engine: StandIn) -> None:
        self.engine, self.held, self.sent = engine, BLOCKS, 0

    def cancel(self) -> None:
        """Drop the rest, and free the blocks."""
        self.engine.blocks -= self.held
        self.held = 0

    async def __anext__(self) -> str:
        await asyncio.sleep(0)
        engine = self.engine
        if self.sent == engine.at and engine.fault == "thinks":
            engine.thinking.set()
            await asyncio.Event().wait()
        if self.sent == engine.at and engine.fault == "fails":
            raise RuntimeError("a number in this request's logits is not finite")
        if not self.held or self.sent == len(engine.pieces):
            self.cancel()
            raise StopAsyncIteration
        self.sent += 1
        engine.produced += 1
        return engine.pieces[self.sent - 1]


def relayed(answer: Callable[..., Any], pieces: Sequence[str], fault: str = "", at: int = 0) -> dict[str, Any]:
    """What `answer(engine, prompt)` sends, how it ended, and how many blocks are held once it has.

    Args:
        pieces: what the engine answers.
        fault: "full", "fails" (at piece `at`), "closed" (the reader leaves after `at` events), or "thinks" (at piece
            `at`, until the server cancels the task), or none.

    Returns a dict: "sent" (each event's data, read as JSON where it is), "pieces by then" (how many the engine had
    produced when each event was sent), "ended" ("by itself", "closed", "cancelled", or the type of error that got out)
    and "blocks held".
    """
    return elsewhere(asyncio.wait_for(_relayed(answer, pieces, fault, at), PATIENCE))


async def _relayed(answer: Callable[..., Any], pieces: Sequence[str], fault: str, at: int) -> dict[str, Any]:
    engine, sent, by_then = StandIn(pieces, fault, at), [], []

    async def read() -> str:
        stream = answer(engine, "prompt")
        if inspect.iscoroutine(stream):
            await stream
            raise TypeError("relay has no `yield`, so it is no generator and sends nothing")
        if not hasattr(stream, "__aiter__"):
            raise TypeError(f"relay returned {type(stream).__name__}; write `async def` and `yield` every event")
        ended = "by itself"
        async for frame in stream:
            sent.append(data_of(frame))
            by_then.append(engine.produced)
            if fault == "closed" and len(sent) == at:
                ended = "closed"
                break
        await stream.aclose()
        return ended

    reader = asyncio.create_task(read())
    if fault == "thinks":
        thinks = asyncio.create_task(engine.thinking.wait())
        await asyncio.wait({reader, thinks}, return_when=asyncio.FIRST_COMPLETED)
        reader.cancel()
        thinks.cancel()
    await asyncio.wait({reader})
    ended = "cancelled" if reader.cancelled() else _ended(reader)
    return {"sent": sent, "pieces by then": by_then, "ended": ended, "blocks held": engine.blocks}


def _ended(reader: asyncio.Task[str]) -> str:
    error = reader.exception()
    if isinstance(error, NotImplementedError | TypeError | NameError | AttributeError):
        raise error  # not written yet, or a slip of the pen: the card shows it
    return reader.result() if error is None else type(error).__name__


def data_of(frame: str | bytes) -> Any:
    r"""The data of one server-sent event, read as JSON where it is; the frame as it is where it is no single event.

    >>> data_of('data: {"text": "a"}\n\n'), data_of("data: [DONE]\n\n"), data_of("text")
    ({'text': 'a'}, '[DONE]', 'text')
    """
    text = frame.decode() if isinstance(frame, bytes) else str(frame)
    lines = text.replace("\r\n", "\n")
    body = lines.removeprefix("data:")
    if body == lines or not lines.endswith("\n\n") or any(a == b == "\n" for a, b in pairwise(body[:-1])):
        return text
    try:
        found = json.loads(body)
    except ValueError:
        return body.strip() if body.strip() == "[DONE]" else text
    return text if isinstance(found, str) else found  # a text in quotes is no event of these; `"[DONE]"` is no [DONE]
