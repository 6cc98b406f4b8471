"""Lab 12: the inputs that answers are compared on."""

from __future__ import annotations

import random

import torch

from labkit.course.attempt import Case

# ---------------------------------------------------------------------------------------------------------- left_pad


def pad_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)

    def prompts(*lengths: int) -> list[list[int]]:
        return [draw.choices(range(3, 90), k=length) for length in lengths]

    with_pad = [[5, 1, 7, 1], [1, 1], [8, 9, 1]]
    return [
        Case(([[5, 6, 7], [8]], 1), label="a prompt of three tokens and one of one"),
        Case((prompts(4, 2, 7), 2), label="three lengths"),
        Case((prompts(3, 3), 0), label="equal lengths: nothing to pad"),
        Case((prompts(6), 1), label="a single prompt"),
        Case((with_pad, 1), label="prompts that hold the padding token itself"),
        Case((prompts(1, 1, 9, 5, 2, 8), 91), label="six prompts"),
        Case(([[4, 5], []], 1), label="an empty prompt: ValueError"),
        Case(([], 1), label="no prompt: ValueError"),
    ]


# ------------------------------------------------------------------------------------------------------------ bucket


def bucket_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    many = [min(max(int(draw.lognormvariate(3.5, 0.9)), 2), 300) for _ in range(24)]
    return [
        Case(([10, 40, 11, 39], 2, 50), label="two short ones and two long ones"),
        Case(([7, 10, 14], 8, 30), label="just as much padding as is allowed"),
        Case(([9, 5, 8, 6, 7, 5], 4, 0), label="no padding at all"),
        Case(([5, 6, 7, 8, 9, 10, 11, 12, 13], 9, 25), label="lengths that rise slowly"),
        Case(([30, 10, 20, 30, 10, 20, 30], 2, 50), label="full before it is too wide"),
        Case(([139, 200], 4, 30), label="half a per cent too much"),
        Case(([18, 25], 4, 28), label="7 of 25 are padding: 28 per cent"),
        Case(([21, 50], 4, 58), label="29 of 50 are padding: 58 per cent"),
        Case(([64], 4, 20), label="one request"),
        Case(([], 4, 20), label="no request"),
        Case((many, 8, 40), label="twenty-four requests, batches of eight"),
        Case((many[::-1], 3, 20), label="batches of three"),
        Case((many, 24, 90), label="nearly everything is allowed"),
        Case((many, 1, 50), label="batches of one"),
    ]


# --------------------------------------------------------------------------------------------------------- next_step


def _at(id: str, tokens: int, computed: int, blocks: int) -> dict[str, object]:
    return {"id": id, "tokens": tokens, "computed": computed, "blocks": blocks}


def step_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    full = [_at("a", 9, 8, 2), _at("b", 5, 4, 1), _at("c", 7, 6, 2)]
    prompts = [_at("a", 7, 6, 2), _at("b", 20, 4, 5), _at("c", 3, 2, 1), _at("d", 12, 0, 3)]
    new = [_at("w", 6, 0, 0), _at("x", 3, 0, 0), _at("y", 9, 0, 0)]

    def drawn(size: int, free: int, budget: int) -> Case:
        running, waiting = [], []
        for i in range(draw.randint(3, 6)):
            tokens = draw.randint(2, 20)
            computed = tokens - 1 if draw.random() < 0.7 else draw.randint(0, tokens - 1)
            whole = -(-computed // size) if computed == tokens - 1 and draw.random() < 0.7 else -(-tokens // size)
            running.append(_at(f"r{i}", tokens, computed, max(whole, 1)))
        for i in range(draw.randint(2, 4)):
            waiting.append(_at(f"w{i}", draw.randint(2, 18), 0, 0))
        return Case((running, waiting, free, budget, size), label=f"drawn: {free} blocks free, budget {budget}")

    return [
        Case(([], [_at("a", 5, 0, 0)], 4, 16, 4), label="one waits, all is free"),
        Case(([], [_at("a", 8, 0, 0), _at("b", 3, 0, 0)], 3, 16, 4), label="prompts that fill what is free"),
        Case(([_at("a", 7, 6, 2)], [_at("b", 30, 0, 0)], 10, 9, 4), label="a long prompt is cut to the budget"),
        Case((full, [], 3, 16, 4), label="two of three need a block"),
        Case((full, new, 0, 16, 4), label="no block is free: the last one goes"),
        Case(([_at("a", 5, 4, 1), _at("b", 4, 3, 1), _at("c", 9, 8, 2)], new, 0, 16, 4), label="the third goes"),
        Case(([_at("a", 3, 2, 1), _at("b", 9, 8, 2)], new, 0, 16, 4), label="the last one needs the block itself"),
        Case((prompts, new, 9, 24, 4), label="prompts that have begun"),
        Case((prompts, new, 9, 12, 4), label="the budget ends in a prompt"),
        Case(([_at("a", 7, 6, 2)], [_at("w", 20, 0, 0), _at("x", 2, 0, 0)], 4, 64, 4), label="too long for now"),
        Case(([_at("a", 7, 6, 2)], [_at("w", 9, 0, 0), _at("x", 9, 0, 0)], 4, 64, 4), label="room for one of two"),
        Case(([_at("a", 7, 6, 2), _at("b", 9, 7, 3)], new, 20, 3, 4), label="a budget of three"),
        Case(([_at("a", 9, 8, 2), _at("b", 9, 8, 2), _at("c", 9, 8, 2), _at("d", 9, 8, 2)], new, 0, 16, 4),
             label="four that all need a block"),
        Case(([_at("a", 9, 8, 2), _at("p", 12, 4, 3)], new, 0, 16, 4), label="a prompt that has begun goes"),
        Case(([_at("a", 5, 4, 1), _at("b", 5, 4, 1)], [_at("w", 4, 0, 0)], 2, 16, 4), label="the last free blocks"),
        Case(([_at("a", 9, 8, 2), _at("p", 12, 4, 3), _at("c", 7, 6, 2)], new, 0, 16, 4),
             label="a prompt has begun, and one behind it decodes"),
        Case(([_at("a", 5, 4, 1), _at("b", 5, 4, 1), _at("c", 18, 17, 5), _at("d", 4, 3, 1)], new, 0, 16, 4),
             label="two go, and then much is free"),
        Case(([_at("p", 12, 4, 3), _at("a", 9, 8, 2)], new, 0, 16, 4), label="the last one goes, a prompt goes on"),
        Case(([_at("a", 7, 6, 2)], new, 9, 2, 4), label="one token of the budget is left"),
        drawn(4, 0, 16),
        drawn(4, 1, 9),
        drawn(3, 5, 12),
        drawn(5, 12, 40),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- place


def place_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    blocks = draw.sample(range(12), k=4)
    counted = [draw.randint(0, 1) if block not in blocks else 1 for block in range(12)]
    counted[blocks[2]], counted[(set(range(12)) - set(blocks)).pop()] = 3, 0
    return [
        Case((0, [], [0, 0, 0], 4), label="the first token of all"),
        Case((5, [2, 0], [1, 0, 1], 4), label="in a block of its own"),
        Case((8, [2, 0], [1, 0, 1, 0], 4), label="a new block"),
        Case((6, [3, 1], [0, 2, 0, 2], 4), label="the last block is shared"),
        Case((5, [3, 1], [0, 1, 0, 2], 4), label="another block is shared, the last is not"),
        Case((8, [3, 1], [1, 2, 0, 2, 0], 4), label="the last block is shared and full"),
        Case((7, [0, 1, 4], [3, 2, 0, 0, 3], 3), label="three hold it"),
        Case((9, blocks, counted, 3), label="at the start of a block"),
        Case((8, blocks[:3], counted, 3), label="twelve blocks, one shared by three"),
        Case((6, blocks[:2], counted, 3), label="twelve blocks, a new one"),
        Case((4, [1], [1, 2, 1], 4), label="none is free for a new block: ValueError"),
        Case((1, [1], [1, 2, 1], 4), label="none is free for a copy: ValueError"),
        Case((1, [1], [1, 2, 0], 4), label="the last free block"),
        Case((2, [1], [1, 1, 1], 4), label="none is free and none is needed"),
        Case((2, [3, 1], [0, 1, 0, 1], 4), label="the table reaches further"),
        Case((5, [3, 1, 0], [1, 2, 0, 2], 4), label="the table reaches further than a shared block"),
    ]


# --------------------------------------------------------------------------------------------------- paged_attention


def attention_cases(seed: int) -> list[Case]:
    def case(
        at: int, lengths: list[int], size: int, heads: tuple[int, int], d: int, label: str, nan: bool = True,
        scale: float = 0.5, first: int | None = None,
    ) -> Case:  # fmt: skip
        draw = torch.Generator().manual_seed(at)
        (H, G), needed = heads, [-(-length // size) for length in lengths]
        num_blocks = sum(needed) + 2
        key, value = (torch.randn(num_blocks, size, G, d, generator=draw) for _ in range(2))
        order, tables = torch.randperm(num_blocks, generator=draw).tolist(), []
        order.sort(key=lambda block: block != first)  # a block that is in use for certain
        written = torch.zeros(num_blocks, size, dtype=torch.bool)
        for length, count in zip(lengths, needed, strict=True):
            table, order = order[:count], order[count:]
            for position in range(length):
                written[table[position // size], position % size] = True
            tables.append(table + [0] * (max(needed) - count))
        if nan:
            key, value = (pool.masked_fill(~written[..., None, None], float("nan")) for pool in (key, value))
        query = torch.randn(len(lengths), H, d, generator=draw)
        return Case((query, key, value, torch.tensor(tables), torch.tensor(lengths), scale), label=label)

    return [
        case(seed, [3], 4, (1, 1), 2, "one sequence in one block", nan=False),
        case(seed + 10, [7], 2, (1, 1), 4, "one sequence in four blocks", nan=False),
        case(seed + 20, [5, 2, 9], 4, (2, 2), 4, "three sequences", nan=False, first=0),
        case(seed + 30, [6, 3], 4, (4, 2), 4, "four heads, two for keys", nan=False),
        case(seed + 40, [4, 8], 4, (6, 2), 3, "full blocks", nan=False, scale=1.0),
        case(seed + 50, [5, 1], 4, (2, 1), 4, "rows that nobody has written are NaN"),
        case(seed + 60, [1, 11, 6, 3], 3, (6, 3), 5, "four sequences, NaN where nobody wrote", scale=0.3),
    ]


# --------------------------------------------------------------------------------------------------------- latencies


def latency_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)

    def served(count: int, most: int) -> tuple[dict[str, float], list[tuple[float, str]]]:
        arrived, tokens, now = {}, [], 0.5
        for i in range(count):
            now += draw.expovariate(2.0)
            arrived[f"r{i}"] = now
            at = now + draw.lognormvariate(-1, 1)
            for _ in range(draw.randint(1, most)):
                tokens.append((at, f"r{i}"))
                at += draw.lognormvariate(-3, 1)
        return arrived, sorted(tokens)

    few = {"a": 1.0, "b": 2.0}, [(1.5, "a"), (2.0, "a"), (2.25, "b"), (2.5, "a"), (3.5, "b")]
    at_once = {"a": 0.0, "b": 0.75}, [(0.0, "a"), (0.5, "a"), (0.5, "a"), (1.0, "b"), (1.25, "b"), (1.5, "b")]
    apart = {f"r{i}": float(i) for i in range(10)}
    firsts = [(i + 0.5 + 0.125 * i, f"r{i}") for i in range(10)]
    return [
        Case((*few, 50), label="two requests, the median"),
        Case((*few, 100), label="two requests, the longest"),
        Case((*at_once, 75), label="a clock that begins at 0, and two tokens at once"),
        Case(({"a": 0.0}, [(0.5, "a"), (0.75, "a"), (1.0, "a"), (2.0, "a")], 60), label="two gaps that are equal"),
        Case((apart, firsts, 90), label="ten requests of one token"),
        Case(({"a": 1.0, "b": 1.25, "c": 3.0}, [(2.0, "a"), (2.0, "b"), (2.5, "a")], 75), label="one has no token yet"),
        Case(({"a": 1.0}, [], 50), label="nobody has a token"),
        Case((*served(9, 7), 50), label="nine requests, the median"),
        Case((*served(30, 3), 90), label="thirty requests"),
        Case((*served(7, 12), 99), label="the 99th percentile"),
        Case((*served(25, 3), 56), label="twenty-five requests, the 56th percentile"),
        Case((*served(12, 6), 25), label="the 25th percentile"),
    ]
