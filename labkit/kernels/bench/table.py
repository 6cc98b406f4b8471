"""What a measurement says, as titles, lines and rows of words: losses are marked, and nobody is missing in silence."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.kernels.bench.peers import OURS
from labkit.kernels.bench.result import Measured, Result

MIB = 2**20
HEAD = ("contestant", "ms", "half of the rounds", "of ceiling", "others / ours", "saved MiB", "error", "worst gradient")
OUTPUTS = ("output", "weights", "ids", "counts")  # errors that are no gradient's


def milliseconds(seconds: float) -> str:
    """Three digits, in milliseconds.

    >>> milliseconds(0.00273456), milliseconds(0.1234567), milliseconds(0.0000203)
    ('2.73', '123', '0.0203')
    """
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:#.3g}"


def title(result: Result) -> str:
    """What was measured: "moe olmoe-16k, forward"."""
    return f"{result.subject} {result.shape['name']}, {result.mode}"


def lines(result: Result) -> list[str]:
    """The shape, the ceilings, the verdict, and who is missing and why."""
    sizes = ", ".join(f"{letter} {value}" for letter, value in result.shape.items() if letter != "name")
    load = f"; the most loaded expert has {result.load:.1f} times the mean" if result.load is not None else ""
    told = [f"{sizes}, {result.dtype}{load}"]
    if result.interpreted:
        told.append("kernels of ours are interpreted here: their errors count, the times say nothing about speed")
    if result.floor is not None:
        work = f"{result.flops / 1e12:.3g} TFLOP at {result.flop_rate / 1e12:.3g} TFLOP/s" if result.flops else ""
        move = f"{result.bytes / MIB:.3g} MiB at {result.byte_rate / 1e12:.3g} TB/s"
        least = f"; at least {result.saved / MIB:.3g} MiB to keep" if "backward" in result.mode else ""
        of = f" of {result.dtype}, which fewer bits may pass," if result.subject == "quant" else ""
        told.append(
            f"at the ceiling{of} {milliseconds(result.floor)} ms: {' or '.join(filter(None, (work, move)))}{least}"
        )
    if fault := result.fault(OURS):
        told.append(f"{OURS} is {fault}")
    verdict = result.verdict(OURS)
    if verdict:
        told.append(
            f"{verdict.word}: {OURS} is {verdict.ratio:.2f} times as fast as {verdict.other}, the best of the others "
            f"({verdict.low:.2f} to {verdict.high:.2f} in half of the rounds)"
        )
    told += [f"{each.name}: {each.note}" for each in result.measured if each.note]
    return told + [f"{each.name} is not measured: {each.reason}" for each in result.absent if each.name != OURS]


def rows(result: Result) -> list[tuple[str, ...]]:
    """A heading and a row for each contestant, the fastest first."""
    ours = next((each.median for each in result.measured if each.name == OURS), None)
    ranked = sorted(result.measured, key=lambda each: each.median)
    return [HEAD, *(_row(result, each, ours) for each in ranked)]


def _row(result: Result, each: Measured, ours: float | None) -> tuple[str, ...]:
    low, high = each.quartiles
    gradients = [error for name, error in each.errors.items() if name not in OUTPUTS]
    return (
        f"{each.name} (WRONG)" if each.wrong(result.dtype) else each.name,
        milliseconds(each.median),
        f"{milliseconds(low)} to {milliseconds(high)}",
        "–" if result.floor is None else f"{result.floor / each.median:.0%}",
        "–" if ours is None or result.interpreted else f"{each.median / ours:.2f}",
        "–" if each.saved is None else f"{each.saved / MIB:.1f}",
        f"{max(error for name, error in each.errors.items() if name in OUTPUTS):.1e}",
        f"{max(gradients):.1e}" if gradients else "–",
    )


def summary(results: Sequence[Result]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For each subject and mode a title and a table: contestants by shapes, ms (and percentage of the ceiling)."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.subject, result.mode), []).append(result)
    interpreted = any(result.interpreted for result in results)
    what = "times of interpreted kernels, ms" if interpreted else "ms (percentage of the ceiling)"
    return [(f"{subject}, {mode}, {what}", _across(group)) for (subject, mode), group in groups.items()]


def _across(group: Sequence[Result]) -> list[tuple[str, ...]]:
    names = list(dict.fromkeys(each.name for result in group for each in (*result.measured, *result.absent)))
    table = [("", *(result.shape["name"] for result in group))]
    table += [(name, *(_cell(result, name) for result in group)) for name in names]
    verdicts = [result.verdict(OURS) for result in group]
    if any(verdicts):
        table.append(
            ("best of the others / ours", *("–" if v is None else f"{v.ratio:.2f} {v.word}" for v in verdicts))
        )
    if any(result.load is not None for result in group):
        table.append(("most loaded expert / mean", *(f"{result.load or 0:.1f}" for result in group)))
    return table


def _cell(result: Result, name: str) -> str:
    each = next((each for each in result.measured if each.name == name), None)
    if each is None:
        return "–"
    share = "" if result.floor is None else f" ({result.floor / each.median:.0%})".replace("%", "")
    return f"{milliseconds(each.median)}{share}{' WRONG' if each.wrong(result.dtype) else ''}"
