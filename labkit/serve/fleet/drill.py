"""A fleet under load, and what became of every single request: nothing may be lost without a word.

Arrivals are drawn beforehand (a Poisson process), so that two policies or two faults see the same load, and a request
is sent when it is due, whatever has become of the others (an open loop: a slow server gets no mercy from its clients).
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from labkit.serve.scheduler.simulate import Spread

TIMEOUT = 120.0  # seconds without a byte, after which an answer counts as lost


@dataclass(frozen=True)
class Request:
    """One that is to be sent.

    Args:
        at: seconds after the start; body: as OpenAI's API for completions has it; prompt: its number among those given.
    """

    at: float
    body: Mapping[str, Any]
    prompt: int = 0


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Args:
        at: seconds after the start at which it was due; prompt: its number among those given; stream: whether its
            answer was asked for piece by piece.
        outcome: "answered"; "refused" (the fleet said no: 4xx, 503); "broken" (a stream that ended with an error after
            it had begun); "failed" (an error in OpenAI's shape: 5xx); "lost" (no answer, half of one, or nonsense).
        reason: the error's code, or what was wrong; says: the error's words, where it has some.
        replica: who answered, as far as it was told.
        first, seconds: from sending it to the first token and to the end.
        text: of the answer, as far as it came.
    """

    at: float
    prompt: int
    stream: bool
    outcome: str
    reason: str = ""
    replica: str = ""
    first: float = 0.0
    seconds: float = 0.0
    text: str = ""
    says: str = ""


@dataclass(frozen=True)
class Count:
    """What became of all requests.

    >>> count = Count((Answer(0, 0, False, "answered", seconds=0.5), Answer(1, 0, True, "broken", "replica_lost")))
    >>> print(count)
    sent 2, answered 1, refused 0, broken 1 (replica_lost 1), failed 0, lost 0
    """

    answers: tuple[Answer, ...] = field(repr=False)

    def of(self, outcome: str) -> tuple[Answer, ...]:
        """Those that ended so."""
        return tuple(answer for answer in self.answers if answer.outcome == outcome)

    @property
    def sent(self) -> int:
        """All of them."""
        return len(self.answers)

    @property
    def answered(self) -> int:
        """Whole answers."""
        return len(self.of("answered"))

    @property
    def refused(self) -> Mapping[str, int]:
        """Those the fleet did not accept, by reason."""
        return Counter(answer.reason for answer in self.of("refused"))

    @property
    def broken(self) -> Mapping[str, int]:
        """Streams that ended with an error after they had begun, by reason."""
        return Counter(answer.reason for answer in self.of("broken"))

    @property
    def failed(self) -> Mapping[str, int]:
        """Errors of the fleet (5xx but for 503), by reason."""
        return Counter(answer.reason for answer in self.of("failed"))

    @property
    def lost(self) -> Mapping[str, int]:
        """Those of which nobody said what became of them; by what was seen."""
        return Counter(answer.reason for answer in self.of("lost"))

    @property
    def ttft(self) -> Spread:
        """Seconds until the first token, of the whole answers."""
        return Spread(Counter(answer.first for answer in self.of("answered")))

    @property
    def total(self) -> Spread:
        """Seconds until the end, of the whole answers."""
        return Spread(Counter(answer.seconds for answer in self.of("answered")))

    def by_replica(self) -> Mapping[str, int]:
        """Whole answers of each replica."""
        return Counter(answer.replica for answer in self.of("answered"))

    def __str__(self) -> str:
        def shown(name: str, reasons: Mapping[str, int]) -> str:
            why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            return f"{name} {sum(reasons.values())}" + (f" ({why})" if why else "")

        parts = [shown(name, getattr(self, name)) for name in ("refused", "broken", "failed", "lost")]
        return ", ".join([f"sent {self.sent}", f"answered {self.answered}", *parts])


def drawn(
    prompts: Sequence[str],
    rate: float,
    seconds: float,
    stream_share: float = 0.0,
    seed: int = 0,
    *,
    model: str,
    max_tokens: int = 16,
) -> list[Request]:
    """A Poisson process of greedy completions; see `under_load`.

    Raises ValueError for no prompts, and for numbers out of range.
    """
    if not prompts or not rate > 0 or not seconds > 0 or not 0 <= stream_share <= 1:
        raise ValueError(
            f"rate is {rate}, seconds {seconds}, stream_share {stream_share}, {len(prompts)} prompts; give numbers "
            "above 0, a share from 0 to 1, and one prompt or more"
        )
    draw, fixed = random.Random(seed), {"model": model, "max_tokens": max_tokens, "temperature": 0}
    due, found = draw.expovariate(rate), []
    while due < seconds:
        prompt, stream = draw.randrange(len(prompts)), draw.random() < stream_share
        found.append(Request(due, {**fixed, "prompt": prompts[prompt], "stream": stream}, prompt))
        due += draw.expovariate(rate)
    return found


def in_turn(bodies: Sequence[Mapping[str, Any]], rate: float, seed: int = 0) -> list[Request]:
    """Each of these bodies once, in their order: the first at once, the others in a Poisson process.

    Raises ValueError for a rate that is not above 0.

    >>> [(round(each.at, 2), each.body["prompt"]) for each in in_turn([{"prompt": "a"}, {"prompt": "b"}], 2.0)]
    [(0.0, 'a'), (0.93, 'b')]
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}; give requests a second, above 0")
    draw, due, found = random.Random(seed), 0.0, []
    for at, body in enumerate(bodies):
        due += draw.expovariate(rate) if at else 0.0
        found.append(Request(due, body, at))
    return found


class Load:
    """Requests on their way: started at once, in threads; `count` waits for the end of all of them.

    As a `with` block it sends no more when the block ends. For a fault in the middle wait `until` its moment, and do
    harm.

    Args:
        url: of the server.
        requests: in the order of their moments, as `drawn` or `in_turn` makes them.
    """

    def __init__(self, url: str, requests: Sequence[Request]) -> None:
        self._url, self._due = url, tuple(requests)
        self._answers: list[Answer] = []
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def until(self, second: float) -> float:
        """Wait for this second after the start; it is at once where it is over. Returns `now`."""
        time.sleep(max(0.0, second - self.now))
        return self.now

    @property
    def done(self) -> int:
        """Requests of which it is known what became of them."""
        return len(self._answers)

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    def count(self) -> Count:
        """What became of all requests, in the order of sending."""
        self._thread.join()
        return Count(tuple(sorted(self._answers, key=lambda answer: answer.at)))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def _send(self) -> None:
        threads = []
        for request in self._due:
            if self._stop.wait(max(0.0, request.at - self.now)):
                break
            threads.append(threading.Thread(target=self._one, args=(request,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _one(self, request: Request) -> None:
        began = time.monotonic()
        told = ask(self._url, request.body)
        stream = bool(request.body.get("stream"))
        self._answers.append(Answer(request.at, request.prompt, stream, seconds=time.monotonic() - began, **told))


def under_load(
    url: str,
    rate: float,
    seconds: float,
    prompts: Sequence[str],
    stream_share: float = 0.0,
    seed: int = 0,
    *,
    max_tokens: int = 16,
    model: str = "",
) -> Count:
    """Ask a server for completions for a while, greedily, and count what became of the requests.

    Args:
        url: of the server.
        rate: requests a second, on average; seconds: for which new ones are sent.
        prompts: drawn from, each as likely.
        stream_share: of the requests ask for their answer piece by piece.
        seed: of arrivals and prompts.
        max_tokens: of an answer.
        model: its name; "": the one that the server serves.

    For a fault in the middle start a `Load`, do harm, and read its `count()`.
    """
    model = model or served(url)
    return Load(url, drawn(prompts, rate, seconds, stream_share, seed, model=model, max_tokens=max_tokens)).count()


def served(url: str) -> str:
    """The name of the model that a server serves. Raises RuntimeError where none answers."""
    wire = _wire(url)
    try:
        wire.request("GET", "/v1/models")
        answer = wire.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{url} does not say what it serves ({answer.status}): {data[:200]!r}")
        return json.loads(data)["data"][0]["id"]
    finally:
        wire.close()


def ask(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One request, and what became of it, as the fields of `Answer`."""
    began, wire = time.monotonic(), _wire(url)
    try:
        wire.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = wire.getresponse()
        replica = answer.getheader("x-labkit-replica") or ""
        if answer.status != 200:
            outcome = "refused" if answer.status < 500 or answer.status == 503 else "failed"
            return {"outcome": outcome, **_reason(answer.read()), "replica": replica}
        read = _events if body.get("stream") else _whole
        return {"replica": replica, **read(answer, began)}
    except (OSError, http.client.HTTPException, ValueError, TypeError, LookupError) as error:
        return {"outcome": "lost", "reason": type(error).__name__, "says": str(error)}
    finally:
        wire.close()


def _whole(answer: http.client.HTTPResponse, began: float) -> dict[str, Any]:
    choice = json.loads(answer.read())["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):
        return {"outcome": "lost", "reason": "half an answer"}
    return {"outcome": "answered", "text": choice["text"], "first": time.monotonic() - began}


def _events(answer: http.client.HTTPResponse, began: float) -> dict[str, Any]:
    """A stream is whole if it ends with [DONE]; with an error it is broken, and otherwise lost."""
    text, first = [], 0.0
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        data = line[len(b"data: ") :].strip()
        if data == b"[DONE]":
            return {"outcome": "answered", "text": "".join(text), "first": first}
        told = json.loads(data)
        if "error" in told:
            return {"outcome": "broken", **_reason(data), "text": "".join(text), "first": first}
        first = first or time.monotonic() - began
        text += [choice["text"] for choice in told["choices"]]
    return {"outcome": "lost", "reason": "a stream without an end", "text": "".join(text), "first": first}


def _reason(data: bytes) -> dict[str, str]:
    """An error's code and words. Raises ValueError, TypeError or KeyError if it has not the shape that it should."""
    error = json.loads(data)["error"]
    return {"reason": error["code"] or error["type"], "says": error["message"]}


def _wire(url: str) -> http.client.HTTPConnection:
    where = urlsplit(url)
    return http.client.HTTPConnection(where.hostname, where.port, timeout=TIMEOUT)
