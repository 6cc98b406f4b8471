"""Lab 15: what its exercises are tested on."""

from __future__ import annotations

import random

from labkit.course.attempt import Case


def choose_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)

    def drawn(count: int, label: str, sick: int = 0) -> Case:
        ready = [True] * (count - sick) + [False] * sick
        draw.shuffle(ready)
        load = [draw.randint(0, 9) for _ in range(count)]
        return Case((load, ready, draw.random(), draw.random()), label=label)

    return [
        Case(([5, 2], [True, True], 0.0, 0.0), label="two replicas, the second is less loaded"),
        Case(([2, 5], [True, True], 0.0, 0.0), label="two replicas, the first is less loaded"),
        Case(([5, 2, 0], [True, True, True], 0.0, 0.0), label="a third is idle, and was not drawn"),
        Case(([4, 4, 4], [True, True, True], 0.4, 0.9), label="all equally loaded: the first drawn"),
        Case(([4, 4, 4], [True, True, True], 0.9, 0.1), label="all equally loaded, the first drawn is the last"),
        Case(([9, 1, 5], [True, True, True], 0.1, 0.1), label="both numbers are equal: still two replicas"),
        Case(([0, 7, 3], [False, True, True], 0.0, 0.0), label="the idle one is not ready"),
        Case(([1, 2, 3, 4], [False, True, False, True], 0.6, 0.7), label="two of four are ready"),
        Case(([3, 8, 1], [False, True, False], 0.7, 0.2), label="one is ready, and it is busy"),
        Case(([6], [True], 0.5, 0.5), label="there is one"),
        Case(([6, 1, 2, 3, 5], [True] * 5, 0.999, 0.999), label="numbers just below 1"),
        *(drawn(6, f"drawn, all ready ({n})") for n in range(6)),
        *(drawn(7, f"drawn, three not ready ({n})", sick=3) for n in range(6)),
        Case(([0, 0], [False, False], 0.5, 0.5), label="nobody is ready: ValueError"),
        Case(([], [], 0.5, 0.5), label="there is nobody: ValueError"),
    ]


def owner_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    even = dict.fromkeys(("r0", "r1", "r2"), 2)

    def drawn(count: int, busy: int) -> dict[str, int]:
        return {f"r{at}": draw.randint(0, busy) for at in range(count)}

    prompts = [f"You are assistant {draw.randint(0, 999)} of {n}.".encode() for n in range(12)]
    full = {f"r{at}": 9 * (at % 2) for at in range(6)}
    return [
        Case((b"You are a helpful assistant.", even, 1.25), label="three replicas, equally loaded"),
        Case((b"You are a helpful assistant.", {"r2": 2, "r1": 2, "r0": 2}, 1.25), label="the same, in another order"),
        Case((prompts[0], {"a": 0}, 1.0), label="there is one"),
        Case((prompts[0], dict.fromkeys("abcd", 0), 1.0), label="all idle, and no room to spare"),
        Case((prompts[1], dict.fromkeys("abcd", 3), 1.0), label="all equal, and no room to spare"),
        Case((b"2/x", {"r1": 0, "r12": 0, "r": 0}, 2.0), label="names that begin alike"),
        *(Case((prompt, drawn(5, 1), 4.0), label="light load: everyone has room") for prompt in prompts[:4]),
        *(Case((prompt, full, 1.25), label="every other one is full") for prompt in prompts[4:8]),
        *(Case((prompt, drawn(7, 6), 1.5), label="drawn loads") for prompt in prompts[8:12]),
        Case((prompts[2], {"a": 4, "b": 4, "c": 1}, 1.0), label="just one below the bound"),
        Case((prompts[2], {"a": 3, "b": 1, "c": 1}, 1.4), label="the bound is not whole: rounded up"),
        *(
            Case((prompts[4], {"a": 1, "b": 1, "c": 1, busy: 4}, 1.5), label=f"{busy} has the bound of 3.5, rounded up")
            for busy in "abc"
        ),
        Case(("Grüß".encode()[:3], even, 1.25), label="a prompt cut in the middle of a letter"),
        Case((prompts[3], {"a": 0, "b": 0}, 0.5), label="room below 1: ValueError"),
        Case((prompts[3], {}, 1.5), label="no replicas: ValueError"),
    ]


PART = 5 * 2**20  # what S3 wants of a part that is not the last


def etag_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    data = draw.randbytes(1000)
    return [
        Case((b"0123456789", 4), label="ten bytes, four in a part"),
        Case((b"0123456789ab", 4), label="three whole parts"),
        Case((b"0123", 4), label="one part, just full"),
        Case((b"012", 1000), label="one part, not full"),
        Case((b"", 4), label="an empty file: one empty part"),
        Case((data, 1), label="a byte in a part"),
        Case((data, 64), label="sixteen parts"),
        Case((data[:-1], 333), label="three whole parts again"),
        Case((bytes(3 * 32), 32), label="three equal parts"),
        Case((data[: draw.randint(100, 900)], draw.randint(7, 50)), label="drawn"),
        Case((data[:10] * (PART // 10 + 3), PART), label="two parts, as large as a store wants them"),
        Case((data, 0), label="parts of no byte: ValueError"),
        Case((data, -64), label="parts of less than no byte: ValueError"),
    ]


GOOD = (
    "config.json", "model-00001.safetensors", "shards/model-00002.safetensors", ".gitattributes", "a..b.bin",
    "deep/er/..x/y", "-rf", "größe/two words.bin", "50%2e/x",
)  # fmt: skip
BAD = {
    "../other/config.json": "up at the beginning",
    "shards/../../config.json": "up in the middle",
    "shards/..": "up at the end",
    "..": "nothing but up",
    "....//config.json": "what is left when ../ is taken out",
    "../models-old/config.json": "into a folder whose name begins alike",
    "/etc/passwd": "from the root",
    "//server/share": "from two roots",
    "shards/../config.json": "back inside: two names for one file",
    "./config.json": "a dot",
    "shards/./x": "a dot in the middle",
    "shards//x": "a part without a name",
    "shards/": "a folder, no file",
    "": "nothing",
    "..\\..\\config.json": "up, as Windows writes it",
    "shards\\x": "a folder, as Windows writes it",
    "C:config.json": "another drive of Windows",
    "shards/config.json:hidden": "a second stream of a file of Windows",
    "config.json\0.png": "a zero byte, at which C stops reading",
}


def path_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    folder = "/cache/models"
    random_name = f"shards/{draw.randint(0, 10**6)}/part-{draw.randint(0, 99)}.safetensors"
    return [
        *(Case((folder, name), label=f"a good name: {name}") for name in (*GOOD, random_name)),
        Case(("cache", "config.json"), label="a folder that is not absolute"),
        *(Case((folder, name), label=f"{why}: ValueError") for name, why in BAD.items()),
    ]


WORKBOOK = [(60, 5, 14.4), (360, 30, 6.0)]


def pages_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    quick = [(6, 2, 8.0)]

    def drawn(minutes: int, chance: float) -> tuple[list[int], list[int]]:
        asked = [draw.randint(0, 40) for _ in range(minutes)]
        return [sum(draw.random() < chance for _ in range(count)) for count in asked], asked

    calm, storm, rough = drawn(30, 0.02), drawn(12, 0.5), drawn(40, 0.12)
    outage = [a + b + c for a, b, c in zip(calm, storm, drawn(20, 0.02), strict=True)]
    blip = [0] * 10 + [1] + [0] * 10
    both = [(12, 3, 4.0), (4, 1, 9.0)]
    return [
        Case(([0, 0, 0], [9, 9, 9], 0.01, quick), label="nothing fails"),
        Case(([9, 9, 9], [9, 9, 9], 0.01, quick), label="everything fails, from the first minute on"),
        Case(([0, 0, 9, 9, 0, 0, 0], [9] * 7, 0.05, quick), label="it stops failing: the short window ends it"),
        Case(([0, 9, 0, 0, 0], [9] * 5, 0.02, [(3, 2, 8.0)]), label="one bad minute: two windows must hold it"),
        Case((blip, [2] * 21, 0.02, quick), label="one failure in a quiet night"),
        Case(([1, 0, 0, 0], [8, 8, 8, 8], 1 / 64, [(2, 1, 8.0)]), label="just at the limit: not above it"),
        Case(([0, 3, 0, 3], [0, 3, 0, 3], 0.05, quick), label="minutes without a request"),
        Case(([0, 0], [0, 0], 0.05, quick), label="no request at all"),
        Case(([1, 0, 0], [1, 99, 99], 0.01, [(3, 2, 8.0)]), label="one of one fails, then none of many"),
        Case((*outage, 0.02, quick), label="an outage of twelve minutes"),
        Case((*rough, 0.02, both), label="rough weather, two rules"),
        Case(([0] * 8 + [4] * 4, [8] * 12, 0.05, [(12, 3, 4.0), (4, 1, 9.0)]), label="only the second rule"),
        Case(
            ([0] * 6 + [5, 0], [10] * 8, 0.05, [(4, 1, 2.0), (8, 2, 4.0)]), label="one rule's long, the other's short"
        ),
        Case(([1] * 90, [50] * 90, 0.001, WORKBOOK), label="the workbook's rules, a steady 2 %"),
        Case(([0, 1] * 8, [0, 1] * 8, 0.1, [(6, 2, 6.0)]), label="a quiet night, and whoever asks, fails"),
        Case(([], [], 0.01, quick), label="no minute at all"),
    ]
