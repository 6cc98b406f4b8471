"""Lab 14: the inputs that answers are compared on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf, nan

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.streamed import arrived, relayed, released

# ------------------------------------------------------------------------------------------------------------ events


def _cut(text: bytes, draw: random.Random, most: int) -> list[bytes]:
    """The text in chunks of 1 to `most` bytes."""
    chunks = []
    while text:
        size = draw.randint(1, most)
        chunks.append(text[:size])
        text = text[size:]
    return chunks


def events_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    words = draw.choice(("año", "Ωμέγα", "naïve €"))
    plain = "".join(f"data: {word}\n\n" for word in (words, "two", "three"))
    done = plain + "data: [DONE]\n\n"
    windows = done.replace("\n", "\r\n")
    lines = "data: first\ndata:\ndata:  third\n\n" + plain
    others = ": keep-alive\n\nevent: x\nid: 7\ndata: one\n: in between\nretry: 3\n\nevent: nothing\n\n" + plain
    strange = "data:a\u2028b\n\ndata: c\x0bd\x85e\n\n"

    def case(label: str, chunks: Sequence[bytes]) -> Case:
        return Case((list(chunks),), label=label, through=arrived)

    def whole(label: str, text: str) -> Case:
        return case(label, [text.encode()])

    return [
        case("an event in a chunk", [b"data: a\n\n", b"data: b\n\n"]),
        case("half an event in a chunk", [b'data: {"a"', b": 1}\n", b"\ndata: b\n\n"]),
        whole("two events in a chunk", "data: a\n\ndata: b\n\n"),
        case("a character of two bytes, cut in the middle", [b"data: \xc3", b"\xa9\n\n"]),
        case("a byte at a time", _cut(plain.encode(), draw, 1)),
        case("cut anywhere", _cut(plain.encode(), draw, 9)),
        case("lines end in \\r\\n", _cut(windows.encode(), draw, 7)),
        whole("lines end in \\r\\n, in one chunk", windows),
        whole("several lines of data", lines),
        whole("comments and other fields", others),
        whole("data: without a space, with two, and data with colons", "data:a\n\ndata:  b \n\ndata: c: d:e\n\n"),
        whole("data without anything", "data:\n\ndata\n\ndata: \n\n"),
        whole("a field whose name begins with data", "database: 1\n\ndata: a\n\n"),
        case("the end is marked, and the line stays open", [done.encode(), b": ping\n\n", b": ping\n\n"]),
        case("the mark comes in two chunks", [b"data: a\n\ndata: [DO", b"NE]\n\n", b"data: b\n\n"]),
        whole("the line breaks within an event", plain + "data: half\n"),
        whole("characters that some take for the end of a line", strange),
        whole("an answer that speaks of [DONE]", "data: [DONE] and more\n\ndata: then [DONE]\n\ndata: b\n\n"),
        whole("a line of an event is [DONE]", "data: say\ndata: [DONE]\n\ndata: b\n\n"),
        whole("a line that is nearly empty", "data: a\n \ndata: b\n\n"),
        whole("fields whose names are nearly data", "data: a\n data: 1\nDATA: 2\n\n"),
        case("nothing at all", []),
    ]


# -------------------------------------------------------------------------------------------------------- until_stop


def stop_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)

    def case(label: str, pieces: Sequence[str], *stops: str) -> Case:
        return Case((list(pieces), stops), label=label, through=released)

    def drawn(label: str, length: int, most: int, *stops: str) -> Case:
        text = "".join(draw.choice("ab") for _ in range(length)).encode()
        return case(label, [piece.decode() for piece in _cut(text, draw, most)], *stops)

    return [
        case("no stop comes", ["one ", "two"], "###"),
        case("a stop in one piece", ["one", "##", "two"], "##"),
        case("a stop in two pieces", ["one#", "#two", "three"], "##"),
        case("a stop within a piece", ["one##two", "three"], "##"),
        case("a beginning that comes to nothing", ["one#", "two", "#"], "##"),
        case("the stop begins again inside its beginning", list("aaaba"), "aab"),
        case("once more, further in", list("abacababacx"), "ababac"),
        case("two stops, the shorter ends first", ["ab", "c", "d", "e"], "bcd", "c"),
        case("two stops in one piece, the shorter ends first", ["x ", "abcde", "f"], "bcd", "c"),
        case("a stop twice in a piece", ["one##two##three", "!"], "##"),
        case("two stops end together, the longer counts", ["ab", "cd"], "c", "bc"),
        case("two stops in one piece, the later in the list ends first", ["x b y a z", "!"], "a", "b"),
        case("the text ends with the stop", ["end", "."], "."),
        case("the text ends with a beginning", ["a", "b", "\n"], "\n\n"),
        case("no stops", ["a", "", "b"]),
        case("an empty piece in the middle of a stop", ["<", "", "e>", "x"], "<e>"),
        case("a stop of its own length repeated", ["-", "-", "-", "-"], "---"),
        drawn("letters drawn, one stop", 30 + seed % 5, 4, "abba"),
        drawn("letters drawn, three stops", 40, 3, "bbbbb", "aabb", "babab"),
        drawn("letters drawn, a stop that hardly comes", 40, 2, "aaaaabbbbb"),
        case("nothing", [], "a"),
    ]


# ------------------------------------------------------------------------------------------------------------- relay


def relay_cases(seed: int) -> list[Case]:
    pieces = [["Hel", "lo"], ["one ", "two ", "three"], ["a", "b", "c", "d"]][seed % 3]

    def case(label: str, pieces: Sequence[str], fault: str = "", at: int = 0) -> Case:
        return Case((list(pieces), fault, at), label=label, through=relayed)

    return [
        case("an answer that ends", pieces),
        case("quotes, an empty line and other letters", ['say "x"', "\n\n", "data: é\r\n"]),
        case("an answer without text", []),
        case("the reader leaves after the first event", pieces, "closed", 1),
        case("the reader leaves after the second", [*pieces, "more"], "closed", 2),
        case("the task is cancelled before the first piece", pieces, "thinks", 0),
        case("the task is cancelled between pieces", pieces, "thinks", 1),
        case("the engine fails at once", pieces, "fails", 0),
        case("the engine fails in the middle", pieces, "fails", 1),
        case("the queue is full", pieces, "full"),
    ]


# ------------------------------------------------------------------------------------------------------------- admit


def admit_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    rate, burst = 2.0 ** draw.randint(3, 6), 1024
    level, cost = float(draw.randint(100, 400)), draw.randint(450, 900)
    return [
        Case((500.0, 0.0, 200, 100.0, 1000), label="enough"),
        Case((100.0, 0.0, 200, 50.0, 1000), label="too little"),
        Case((100.0, 0.0, 225, 50.0, 1000), label="two and a half seconds to wait"),
        Case((100.0, 2.0, 150, 50.0, 1000), label="enough by now"),
        Case((100.0, 1.0, 250, 50.0, 1000), label="filled a little, and still too little"),
        Case((900.0, 60.0, 10, 50.0, 1000), label="a long pause: the bucket is full"),
        Case((900.0, 60.0, 1000, 50.0, 1000), label="all that it holds"),
        Case((200.0, 0.0, 200, 50.0, 1000), label="exactly what is there"),
        Case((0.0, 0.0, 1, 50.0, 1000), label="empty: less than a second to wait"),
        Case((0.0, 0.0, 1000, 0.5, 1000), label="a slow tap"),
        Case((100.0, 0.03, 150, 50.0, 1000), label="a part of a token has flowed in"),
        Case((level, 0.25, cost, rate, burst), label="drawn"),
        Case((level, 20.0, cost, rate, burst), label="drawn, later"),
        Case((1000.0, 5.0, 1001, 50.0, 1000), label="more than the bucket holds: ValueError"),
        Case((0.0, 0.0, 2000, 50.0, 1000), label="far more, and it is empty: ValueError"),
    ]


# -------------------------------------------------------------------------------------------------------------- draw


def _logits(seed: int, rows: int, V: int) -> Tensor:
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def draw_cases(seed: int) -> list[Case]:
    V = 40 + seed % 7
    logits = _logits(seed, 6, V)
    keys = torch.tensor([[11 + seed, 0, 0], [11 + seed, 0, 1], [11 + seed, 1, 0], [5, 0, 3], [5, 2, 3], [9, 1, 4]])
    ones, mixed = torch.ones(6), torch.tensor([0.0, 0.7, 1.5, 0.0, 3.0, 1.0])
    flat = torch.zeros(6, V)
    masked = torch.where(torch.arange(V) % 5 == 0, logits, -inf)
    broken = logits.clone()
    broken[2, 7] = nan
    broken[4] = nan
    close = flat.clone()
    close[:, 5] = 1e-12
    steps = torch.stack([torch.tensor([3, 0, i]) for i in range(12)])
    return [
        Case((logits[:2], torch.zeros(2), keys[:2]), label="greedy"),
        Case((close, mixed, keys), label="cold rows among warm ones, one token is better by a trifle"),
        Case((flat[:1], ones[:1], keys[:1]), label="one row, all tokens equally likely"),
        Case((logits[:1], ones[:1], keys[:1]), label="one row"),
        Case((logits, ones, keys), label="six rows: the same token for the first"),
        Case((logits[[3, 0, 5]], ones[:3], keys[[3, 0, 5]]), label="other company, another order"),
        Case((flat, ones, keys), label="six rows, all tokens equally likely"),
        Case((flat[:2].repeat(6, 1), ones.repeat(2), steps), label="twelve steps of one continuation"),
        Case((logits, mixed, keys), label="temperatures of all kinds, zero too"),
        Case((logits, 0.3 * ones, keys), label="cold"),
        Case((masked, ones, keys), label="tokens that a grammar forbids, at minus infinity"),
        Case((broken, mixed, keys), label="two rows with NaN"),
        Case((broken[4:5], torch.zeros(1), keys[4:5]), label="greedy, nothing but NaN"),
        Case((logits[:0], ones[:0], keys[:0]), label="nobody"),
    ]


# ---------------------------------------------------------------------------------------------------------- quantile


def quantile_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    edges = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, inf]
    counts = [draw.randint(1, 40) for _ in edges]
    rising = [sum(counts[: i + 1]) for i in range(len(counts))]
    gaps = [0, 5, 5, 5, 20, 20, 24, 24]
    drawn = [Case((draw.uniform(0.02, 0.98), edges, rising), label="drawn") for _ in range(6)]
    return [
        Case((0.5, [1.0, 2.0, inf], [0, 10, 10]), label="all in one bucket"),
        Case((0.5, [1.0, 2.0, 4.0, inf], [2, 4, 10, 10]), label="the median of three buckets"),
        Case((0.1, [1.0, 2.0, 4.0, inf], [2, 4, 10, 10]), label="in the first bucket"),
        Case((0.4, [1.0, 2.0, 4.0, inf], [2, 4, 10, 10]), label="just at an edge"),
        Case((0.9, [10 * edge for edge in edges], gaps), label="buckets that nobody is in"),
        Case((1.0, edges, gaps), label="the largest"),
        Case((0.99, edges, rising), label="beyond the last finite edge"),
        Case((0.5, [inf], [3]), label="no finite edge at all"),
        Case((0.5, edges, [0] * len(edges)), label="nobody was observed"),
        *drawn,
        Case((0.0, edges, rising), label="q = 0: ValueError"),
        Case((1.5, edges, rising), label="q = 1.5: ValueError"),
    ]
