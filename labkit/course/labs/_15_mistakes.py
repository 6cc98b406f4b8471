"""Lab 15: mistakes as learners make them; each function takes the mistake's name first."""

from __future__ import annotations

import hashlib
import math
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from labkit.course.judge import Failure


def choose_two(wrong: str, load: Sequence[int], ready: Sequence[bool], u: float, v: float) -> int | None:
    """`choose_two` with one thing wrong."""
    able = [at for at, fine in enumerate(ready) if fine or wrong == "ready_ignored"]
    if not able and wrong == "nobody_is_none":
        return None
    if not able and wrong == "nobody_is_the_first":
        return 0
    if not able:
        raise ValueError("nobody")
    if wrong == "least_loaded":
        return min(able, key=lambda at: load[at])
    first = round(u * len(able)) % len(able) if wrong == "rounded" else int(u * len(able))
    if wrong == "drawn_twice":
        one, two = able[first], able[int(v * len(able))]
    elif wrong == "neighbour":
        one, two = able[first], able[(first + 1) % len(able)]
    else:
        one = able.pop(first)
        if not able or wrong == "one_choice":
            return one
        two = able[int(v * len(able))]
    if wrong == "busier":
        return two if load[two] > load[one] else one
    if wrong == "second_if_equal":
        return two if load[two] <= load[one] else one
    if wrong == "lower_number_if_equal":
        return min(one, two, key=lambda at: (load[at], at))
    chosen = two if load[two] < load[one] else one
    if wrong == "load_for_place":
        return load[chosen]
    return [at for at, fine in enumerate(ready) if fine].index(chosen) if wrong == "number_among_ready" else chosen


def owner(wrong: str, prefix: bytes, load: Mapping[str, int], room: float) -> str:
    """`owner` with one thing wrong."""
    if (not load or room < 1) and wrong != "anything_goes":
        raise ValueError("room")
    if not load:
        return ""
    total = sum(load.values()) + (wrong != "new_one_left_out")
    most = (math.floor if wrong == "rounded_down" else math.ceil)(room * total / len(load))
    if wrong == "rounded_early":
        most = math.ceil(room * math.ceil(total / len(load)))
    free = [id for id in load if load[id] < most or (wrong == "may_be_full" and load[id] == most)]
    if wrong == "no_bound" or (wrong == "anything_goes" and not free):
        free = list(load)
    if wrong == "least_loaded":
        return min(free, key=lambda id: load[id])
    if wrong == "modulo":
        ids = sorted(free)
        return ids[int.from_bytes(hashlib.sha256(prefix).digest(), "big") % len(ids)]

    def score(id: str) -> object:
        name = id.encode()
        if wrong == "pythons_hash":
            return hash((id, prefix))
        if wrong == "md5":
            return hashlib.md5(name + b"/" + prefix).digest()
        if wrong == "prefix_decoded":
            prefix.decode()
        written = {
            "prefix_first": prefix + b"/" + name, "run_together": name + prefix, "name_alone": name,
            "prefix_as_shown": f"{id}/{prefix!r}".encode(),
        }  # fmt: skip
        return hashlib.sha256(written.get(wrong, name + b"/" + prefix)).digest()

    if wrong == "idlest_when_full":
        best = max(load, key=score)
        return best if best in free else min(load, key=lambda id: load[id])
    if wrong == "next_in_the_list":
        ids = sorted(load)
        best = ids.index(max(ids, key=score))
        return next(id for id in ids[best:] + ids[:best] if id in free)
    return (min if wrong == "lowest" else max)(free, key=score)


def etag(wrong: str, data: bytes, part: int) -> str:
    """`etag` with one thing wrong."""
    if wrong == "below_zero_let_in" and part < 0:
        return hashlib.md5(hashlib.md5().digest()).hexdigest() + "-1"
    if part < 1 and wrong != "any_part":
        raise ValueError("part")
    part = part if part > 0 else len(data)
    count = {
        "last_part_lost": len(data) // part, "one_part_too_many": len(data) // part + 1,
        "empty_has_no_part": math.ceil(len(data) / part),
    }.get(wrong, max(1, math.ceil(len(data) / part)))  # fmt: skip
    parts = [data[n * part : (n + 1) * part] for n in range(count)]
    if wrong == "padded":
        parts = [each.ljust(part, b"\0") for each in parts]
    if wrong == "whole_file":
        return hashlib.md5(data).hexdigest()
    if wrong == "digest_of_all_bytes":
        return f"{hashlib.md5(data).hexdigest()}-{count}"
    if wrong == "plain_if_one" and count == 1:
        return hashlib.md5(data).hexdigest()
    if wrong == "hex_joined":
        joined = "".join(hashlib.md5(each).hexdigest() for each in parts).encode()
    elif wrong == "sha256_of_parts":
        joined = b"".join(hashlib.sha256(each).digest() for each in parts)
    else:
        joined = b"".join(hashlib.md5(each).digest() for each in parts)
    outer = hashlib.sha256 if wrong == "sha256" else hashlib.md5
    told = outer(joined).hexdigest()
    ends = {"no_count": "", "bytes_for_count": f"-{part}", "underscore": f"_{count}"}
    return told + ends.get(wrong, f"-{count}")


def safe_path(wrong: str, folder: str, name: str) -> str | None:
    """`safe_path` with one thing wrong: what is repaired, what is compared, or what is not looked at."""
    if wrong == "believed":
        return f"{folder}/{name}"
    if wrong == "joined":
        return os.path.join(folder, name)
    if wrong == "last_part_only":
        return f"{folder}/{name.split('/')[-1]}"
    if wrong == "ups_taken_out":
        return f"{folder}/{name.replace('../', '')}"
    if wrong == "resolved":
        whole = (Path(folder) / name).resolve()
        if not whole.is_relative_to(Path(folder).resolve()):
            raise ValueError(name)
        return str(whole)
    if wrong in ("normalised", "beginnings_compared"):
        whole = os.path.normpath(os.path.join(folder, name))
        if not whole.startswith(folder + ("/" if wrong == "normalised" else "")):
            raise ValueError(name)
        return whole
    if wrong == "begins_with_up":
        if name.startswith("..") or name.startswith("/"):
            raise ValueError(name)
        return f"{folder}/{name}"
    if wrong == "dots_searched":
        if ".." in name or name.startswith("/") or any(letter in name for letter in "\\:\0"):
            raise ValueError(name)
        return f"{folder}/{name}"
    if wrong == "pathlibs_parts":
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or any(letter in name for letter in "\\:\0"):
            raise ValueError(name)
        return f"{folder}/{name}"
    if wrong == "decoded":
        name = unquote(name)
    if wrong == "backslash_mended":
        name = name.replace("\\", "/")
    if wrong == "colon_after_one_letter" and name[1:2] != ":":
        return safe_path("drive_let_in", folder, name)
    if wrong == "roots_taken_off":
        name = name.lstrip("/")
    if wrong == "none_for_bad":
        return None if _bad(name, ("", ".", ".."), "\\:\0") else f"{folder}/{name}"
    parts = {"dots_let_in": ("", ".."), "ups_let_in": ("", "."), "empty_let_in": (".", "..")}.get(
        wrong, ("", ".", "..")
    )
    letters = {"backslash_let_in": ":\0", "drive_let_in": "\\\0", "zero_let_in": "\\:", "systems_own": ""}
    if _bad(name, parts, letters.get(wrong, "\\:\0")):
        raise ValueError(name)
    return f"{folder}/{name}"


def _bad(name: str, parts: tuple[str, ...], letters: str) -> bool:
    return any(part in parts for part in name.split("/")) or any(letter in name for letter in letters)


def pages(
    wrong: str, failed: Sequence[int], asked: Sequence[int], budget: float, rules: Sequence[tuple[int, int, float]]
) -> list[bool]:
    """`pages` with one thing wrong."""

    def ratio(minute: int, window: int) -> float:
        if wrong == "waits_until_full" and minute + 1 < window:
            return 0.0
        since = max(0, minute + 1 - window - (wrong == "a_minute_more"))
        if wrong == "since_the_start":
            since = 0
        end = minute if wrong == "now_left_out" else minute + 1
        bad, total = failed[since:end], asked[since:end]
        if wrong == "mean_of_ratios":
            each = [b / a for b, a in zip(bad, total, strict=True) if a]
            return sum(each) / len(each) if each else 0.0
        if wrong == "failures_a_minute":
            return sum(bad) / max(1, len(bad))
        if wrong == "of_the_answered":
            good = sum(total) - sum(bad)
            return sum(bad) / good if good else math.inf if sum(bad) else 0.0
        if not sum(total):
            return 1.0 if wrong == "silence_fires" else 0.0
        return sum(bad) / sum(total)

    def above(minute: int, window: int, factor: float) -> bool:
        limit = {"factor_forgotten": budget, "budget_forgotten": factor, "divided": budget / factor}
        bound, found = limit.get(wrong, factor * budget), ratio(minute, window)
        return (found >= bound and found > 0) if wrong == "at_the_limit" else found > bound

    def burns(minute: int, long: int, short: int, factor: float) -> bool:
        one, two = above(minute, long, factor), above(minute, short, factor)
        return {"long_alone": one, "short_alone": two, "either_window": one or two}.get(wrong, one and two)

    fires = [
        (all if wrong == "every_rule" else any)(burns(minute, *rule) for rule in rules) for minute in range(len(asked))
    ]
    if wrong in ("first_rule_only", "last_rule_only"):
        only = rules[0 if wrong == "first_rule_only" else -1]
        fires = [burns(minute, *only) for minute in range(len(asked))]
    if wrong == "rules_mixed":
        fires = [
            any(above(minute, long, factor) for long, _, factor in rules)
            and any(above(minute, short, factor) for _, short, factor in rules)
            for minute in range(len(asked))
        ]
    if wrong == "beginnings_only":
        fires = [now and not before for before, now in zip([False, *fires], fires, strict=False)]
    if wrong == "never_ends":
        fires = [any(fires[: minute + 1]) for minute in range(len(fires))]
    return fires[-1] if wrong == "now_only" and fires else fires


def alone_fails(failure: Failure) -> bool:
    """Whether it raised where only one replica can be drawn."""
    _, ready, _, _ = failure.case.args
    return bool(failure.outcome.error_type) and sum(ready) == 1


def nobody_raises_another(failure: Failure) -> bool:
    """Whether something other than ValueError came out of an empty fleet."""
    return failure.refusal == "ValueError" and failure.outcome.error_type not in ("", "ValueError")


def miscounted(failure: Failure) -> bool:
    """Whether the digest is right, and the number of parts is not."""
    mine, theirs = (str(told).rpartition("-") for told in (failure.outcome.value, failure.expected))
    return mine[:2] == theirs[:2] and mine[2].isdigit()


def one_refused(failure: Failure) -> bool:
    """Whether a room of just 1 was refused."""
    return failure.outcome.error_type == "ValueError" and not failure.refusal and failure.case.args[2] == 1


def hidden_refused(failure: Failure) -> bool:
    """Whether a good name that begins with a dot was refused."""
    return failure.outcome.error_type == "ValueError" and not failure.refusal and failure.case.args[1][0] == "."


def letters_refused(failure: Failure) -> bool:
    """Whether a good name with a space, an umlaut or a percent sign in it was refused."""
    plain = failure.case.args[1].isascii() and not set(failure.case.args[1]) & set(" %")
    return failure.outcome.error_type == "ValueError" and not failure.refusal and not plain


def dots_refused(failure: Failure) -> bool:
    """Whether a good name with two dots in it was refused."""
    return failure.outcome.error_type == "ValueError" and not failure.refusal and ".." in failure.case.args[1]


def folders_refused(failure: Failure) -> bool:
    """Whether a good name with a folder in it was refused."""
    return failure.outcome.error_type == "ValueError" and not failure.refusal and "/" in failure.case.args[1]


def silence_raises(failure: Failure) -> bool:
    """Whether a window without requests was divided by."""
    return failure.outcome.error_type == "ZeroDivisionError"
