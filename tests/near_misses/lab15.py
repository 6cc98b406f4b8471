"""Answers to lab 15 as learners might write them: wrong ones with the mistake to be found, and right ones.

Wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import hashlib
import math
import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from edits import wrong

# Without these names an edited answer would not find what it calls.
__all__ = ["NEAR_MISSES", "RIGHT_ANSWERS", "hashlib", "math", "os", "posixpath", "re", "unquote"]

# -------------------------------------------------------------------------------------------------------- choose_two


def by_places(load, ready, u, v):
    """Draws places among the ready ones; the second skips over the first."""
    names = [i for i in range(len(load)) if ready[i]]
    n = len(names)
    if n == 0:
        raise ValueError("nobody there")
    a = math.floor(u * n)
    if n == 1:
        return names[0]
    b = math.floor(v * (n - 1))
    if b >= a:
        b += 1
    first, second = names[a], names[b]
    if load[second] < load[first]:
        return second
    return first


CHOOSE = {
    "ready_ignored": {" if ready[i]]": "]"},
    "drawn_twice": {"b = math.floor(v * (n - 1))\n    if b >= a:\n        b += 1": "b = math.floor(v * n)"},
    "neighbour": {"b = math.floor(v * (n - 1))\n    if b >= a:\n        b += 1": "b = (a + 1) % n"},
    "least_loaded": {"first, second = names[a], names[b]": "return min(names, key=load.__getitem__)"},
    "one_choice": {"if n == 1:\n        return names[0]": "return names[a]"},
    "busier": {"load[second] < load[first]": "load[second] > load[first]"},
    "second_if_equal": {"load[second] < load[first]": "load[second] <= load[first]"},
    "lower_number_if_equal": {"load[second] < load[first]": "(load[second], second) < (load[first], first)"},
    "rounded": {"a = math.floor(u * n)": "a = round(u * n) % n"},
    "number_among_ready": {"return second": "return b", "return first": "return a", "return names[0]": "return 0"},
    "load_for_place": {"return second": "return load[second]", "return first": "return load[first]",
                       "return names[0]": "return load[names[0]]"},
    "nobody_is_none": {'raise ValueError("nobody there")': "return None"},
    "nobody_is_the_first": {'raise ValueError("nobody there")': "return 0"},
    "alone_fails": {"    if n == 1:\n        return names[0]\n": ""},
    "nobody_raises_another": {'    if n == 0:\n        raise ValueError("nobody there")\n    a': "    a",
                              "    if n == 1:": "    names[a]\n    if n == 1:"},
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- owner


def ranked(prefix, load, room):
    """Ranks all replicas, and takes the first with room."""
    n = len(load)
    if n == 0 or not room >= 1:
        raise ValueError("no replicas, or no room")
    bound = -int(-room * (sum(load.values()) + 1) // n)

    def score(id):
        return hashlib.sha256(b"%s/%s" % (id.encode(), prefix)).hexdigest()

    for id in sorted(load, key=score, reverse=True):
        if load[id] + 1 <= bound:
            return id


OWNED = {
    "no_bound": {"if load[id] + 1 <= bound:": "if True:"},
    "may_be_full": {"load[id] + 1 <= bound": "load[id] <= bound"},
    "new_one_left_out": {"(sum(load.values()) + 1)": "sum(load.values())",
                         "            return id": "            return id\n    raise ValueError('full')"},
    "rounded_down": {"-int(-room * (sum(load.values()) + 1) // n)": "int(room * (sum(load.values()) + 1) // n)",
                     "            return id": "            return id\n    raise ValueError('full')"},
    "rounded_early": {"bound = -int(-room * (sum(load.values()) + 1) // n)":
                      "bound = math.ceil(room * -(-(sum(load.values()) + 1) // n))"},
    "prefix_decoded": {"prefix)).hexdigest()": "prefix.decode().encode())).hexdigest()"},
    "prefix_as_shown": {'b"%s/%s" % (id.encode(), prefix)': '"{}/{}".format(id, prefix).encode()'},
    "one_refused": {"not room >= 1": "not room > 1"},
    "least_loaded": {"sorted(load, key=score, reverse=True)": "sorted(load, key=load.get)"},
    "idlest_when_full": {"            return id": "            return id\n        return min(load, key=load.get)"},
    "pythons_hash": {'hashlib.sha256(b"%s/%s" % (id.encode(), prefix)).hexdigest()': "hash((id, prefix))"},
    "md5": {"hashlib.sha256": "hashlib.md5"},
    "prefix_first": {"(id.encode(), prefix)": "(prefix, id.encode())"},
    "run_together": {"%s/%s": "%s%s"},
    "name_alone": {'b"%s/%s" % (id.encode(), prefix)': "id.encode()"},
    "lowest": {", reverse=True": ""},
    "anything_goes": {'raise ValueError("no replicas, or no room")': "room = room if n else 1.0",
                      "bound =": "bound = 0 if not n else",
                      "    for id": "    if bound < 1:\n        bound = 9\n    for id",
                      "            return id": "            return id\n    return ''"},
}  # fmt: skip


def by_modulo(prefix, load, room):
    """The n-th of those with room."""
    if not load or room < 1:
        raise ValueError("room")
    most = math.ceil(room * (sum(load.values()) + 1) / len(load))
    names = sorted(id for id in load if load[id] < most)
    return names[int(hashlib.sha256(prefix).hexdigest(), 16) % len(names)]


def around(prefix, load, room):
    """From the owner on, around the list of names."""
    if not load or room < 1:
        raise ValueError("room")
    most = math.ceil(room * (sum(load.values()) + 1) / len(load))
    names = sorted(load)
    at = max(range(len(names)), key=lambda n: hashlib.sha256(names[n].encode() + b"/" + prefix).digest())
    while load[names[at]] >= most:
        at = (at + 1) % len(names)
    return names[at]


# -------------------------------------------------------------------------------------------------------------- etag


def streamed(data, part):
    """Reads on and on, and digests the digests as they come."""
    if part <= 0:
        raise ValueError("part")
    outer, count, rest = hashlib.md5(), 0, data
    while rest or not count:
        piece, rest = rest[:part], rest[part:]
        outer.update(hashlib.md5(piece).digest())
        count += 1
    return outer.hexdigest() + "-" + str(count)


TAGGED = {
    "whole_file": {'outer.hexdigest() + "-" + str(count)': "hashlib.md5(data).hexdigest()"},
    "digest_of_all_bytes": {"return outer": "return hashlib.md5(data)"},
    "plain_if_one": {
        "    return outer":
        "    if count == 1:\n        return hashlib.md5(data).hexdigest()\n    return outer",
    },
    "hex_joined": {"hashlib.md5(piece).digest()": "hashlib.md5(piece).hexdigest().encode()"},
    "sha256": {"outer, count, rest = hashlib.md5()": "outer, count, rest = hashlib.sha256()"},
    "sha256_of_parts": {"hashlib.md5(piece)": "hashlib.sha256(piece)"},
    "no_count": {' + "-" + str(count)': ""},
    "bytes_for_count": {"str(count)": "str(part)"},
    "underscore": {'"-"': '"_"'},
    "last_part_lost": {"while rest or not count:": "while len(rest) >= part:"},
    "one_part_too_many": {"while rest or not count:": "while count <= len(data) // part:"},
    "padded": {"hashlib.md5(piece)": "hashlib.md5(piece + bytes(part - len(piece)))"},
    "empty_has_no_part": {"while rest or not count:": "while rest:"},
    "any_part": {'raise ValueError("part")': "part = len(data)"},
    "miscounted": {"str(count)": "str(len(data) // part + 1)"},
}  # fmt: skip


def unasked(data, part):
    """Leaves it to `range` to complain."""
    parts = [data[at : at + part] for at in range(0, len(data), part)] or [b""]
    return hashlib.md5(b"".join(hashlib.md5(each).digest() for each in parts)).hexdigest() + f"-{len(parts)}"


# --------------------------------------------------------------------------------------------------------- safe_path


def by_pattern(folder, name):
    """One pattern for the whole name."""
    part = r"(?!\.{1,2}(?:/|\Z))[^/\\:\0]+"
    if not re.fullmatch(rf"{part}(?:/{part})*", name):
        raise ValueError(f"{name!r} leads elsewhere")
    return "/".join((folder, name))


def by_posixpath(folder, name):
    """A name that is normal already, relative, and does not go up."""
    if any(letter in name for letter in ("\\", ":", "\0")) or name in ("", "."):
        raise ValueError(name)
    if posixpath.isabs(name) or posixpath.normpath(name) != name or name.split("/")[0] == "..":
        raise ValueError(name)
    return posixpath.join(folder, name)


PATTERN = {
    "believed": {"if not re.fullmatch(rf\"{part}(?:/{part})*\", name):": "if False:"},
    "two_dots_anywhere": {"if not re": 'if ".." in name or not re'},
    "hidden_refused": {r"(?!\.{1,2}(?:/|\Z))": r"(?!\.)"},
    "letters_refused": {r"[^/\\:\0]": "[A-Za-z0-9._-]"},
    "decoded": {"    if not re": "    name = unquote(name)\n    if not re"},
    "backslash_mended": {"    if not re": '    name = name.replace("\\\\", "/")\n    if not re'},
    "colon_after_one_letter": {r"[^/\\:\0]": r"[^/\\\0]", "if not re": 'if name[1:2] == ":" or not re'},
    "one_name": {"(?:/{part})*": ""},
    "none_for_bad": {"raise ValueError(f\"{name!r} leads elsewhere\")": "return None"},
    "dots_let_in": {r"\.{1,2}": r"\.\."},
    "ups_let_in": {r"\.{1,2}": r"\."},
    "empty_let_in": {r'[^/\\:\0]+"': r'[^/\\:\0]*"'},
    "backslash_let_in": {r"[^/\\:\0]": r"[^/:\0]"},
    "drive_let_in": {r"[^/\\:\0]": r"[^/\\\0]"},
    "zero_let_in": {r"[^/\\:\0]": r"[^/\\:]"},
    "systems_own": {r"[^/\\:\0]": "[^/]"},
    "roots_taken_off": {"    if not re": '    name = name.lstrip("/")\n    if not re'},
    "begins_with_up": {
        "if not re.fullmatch(rf\"{part}(?:/{part})*\", name):": 'if name[:2] == ".." or name[:1] == "/":',
    },
}  # fmt: skip


def joined(folder, name):
    """What one writes without a thought."""
    return os.path.join(folder, name)


def searched(folder, name):
    """Looks for two dots, wherever they stand."""
    if ".." in name or name[:1] == "/" or set(name) & set("\\:\0"):
        raise ValueError(name)
    return folder + "/" + name


def parts_of_pathlib(folder, name):
    """Looks at the parts that pathlib finds."""
    path = PurePosixPath(name)
    if path.is_absolute() or any(part in ("", ".", "..") for part in path.parts) or set(name) & set("\\:\0"):
        raise ValueError(name)
    return folder + "/" + name


def resolved(folder, name):
    """Asks the disk where it leads."""
    path, root = Path(folder, name).resolve(), Path(folder).resolve()
    if root != path and root not in path.parents:
        raise ValueError(name)
    return str(path)


def last_part(folder, name):
    """What browsers do with a name for a download."""
    return f"{folder}/{os.path.basename(name)}"


def taken_out(folder, name):
    """Mends the name."""
    return folder + "/" + "".join(name.split("../"))


def compared(folder, name):
    """Compares the normal path with the folder."""
    path = os.path.normpath(f"{folder}/{name}" if not name.startswith("/") else name)
    if os.path.commonprefix([path, folder + "/"]) != folder + "/":
        raise ValueError(name)
    return path


def beginnings(folder, name):
    """Compares beginnings of texts."""
    path = os.path.normpath(os.path.join(folder, name))
    if not path.startswith(folder):
        raise ValueError(name)
    return path


# ------------------------------------------------------------------------------------------------------------- pages


def running(failed, asked, budget, rules):
    """Keeps running sums, so that a window is a difference of two."""
    bad, every = [0], [0]
    for f, a in zip(failed, asked):
        bad.append(bad[-1] + f)
        every.append(every[-1] + a)
    fires = []
    for now in range(1, len(every)):
        fire = False
        for *windows, factor in rules:
            burning = 0
            for window in windows:
                start = max(now - window, 0)
                asked_then = every[now] - every[start]
                if asked_then and (bad[now] - bad[start]) / asked_then > factor * budget:
                    burning += 1
            fire = fire or burning == 2
        fires.append(fire)
    return fires


PAGED = {
    "long_alone": {"for window in windows": "for window in windows[:1] * 2"},
    "short_alone": {"for window in windows": "for window in windows[1:] * 2"},
    "either_window": {"burning == 2": "burning > 0"},
    "every_rule": {"fire = False": "fire = True", "fire or burning": "fire and burning"},
    "first_rule_only": {"in rules:": "in rules[:1]:"},
    "last_rule_only": {"in rules:": "in rules[-1:]:"},
    "beginnings_only": {"return fires": "return [now and fires[:at][-1:] != [True] for at, now in enumerate(fires)]"},
    "at_the_limit": {"asked_then > factor": "asked_then >= factor"},
    "factor_forgotten": {"factor * budget": "budget"},
    "budget_forgotten": {"factor * budget": "factor"},
    "divided": {"factor * budget": "budget / factor"},
    "a_minute_more": {"now - window": "now - window - 1"},
    "now_left_out": {"every[now]": "every[now - 1]", "bad[now]": "bad[now - 1]"},
    "since_the_start": {"max(now - window, 0)": "0"},
    "waits_until_full": {"if asked_then and": "if now >= window and asked_then and"},
    "failures_a_minute": {"(bad[now] - bad[start]) / asked_then": "(bad[now] - bad[start]) / (now - start)"},
    "of_the_answered": {"/ asked_then": "/ (asked_then - bad[now] + bad[start] or 1e-9)"},
    "silence_fires": {"if asked_then and (": "if not asked_then or ("},
    "silence_raises": {"if asked_then and (": "if ("},
    "never_ends": {"fires.append(fire)": "fires.append(fire or any(fires))"},
    "now_only": {"return fires": "return fires[-1] if fires else fires"},
}  # fmt: skip


def averaged(failed, asked, budget, rules):
    """A ratio for each minute, then their mean."""
    each = [f / a if a else None for f, a in zip(failed, asked)]

    def mean(end, window):
        found = [ratio for ratio in each[max(0, end - window) : end] if ratio is not None]
        return sum(found) / len(found) if found else 0

    return [
        any(min(mean(end, long), mean(end, short)) > factor * budget for long, short, factor in rules)
        for end in range(1, len(asked) + 1)
    ]


def mixed(failed, asked, budget, rules):
    """All long windows first, then all short ones."""

    def some(end, which):
        for rule in rules:
            start = max(0, end - rule[which])
            if sum(failed[start:end]) > rule[2] * budget * sum(asked[start:end]):
                return True
        return False

    return [some(end, 0) and some(end, 1) for end in range(1, len(asked) + 1)]


NEAR_MISSES = {
    "15.choose_two": wrong(by_places, CHOOSE),
    "15.owner": [*wrong(ranked, OWNED), (by_modulo, "modulo"), (around, "next_in_the_list")],
    "15.etag": [*wrong(streamed, TAGGED), (unasked, "below_zero_let_in")],
    "15.safe_path": [
        *wrong(by_pattern, PATTERN), (joined, "joined"), (last_part, "last_part_only"), (taken_out, "ups_taken_out"),
        (compared, "normalised"), (beginnings, "beginnings_compared"), (searched, "dots_searched"),
        (parts_of_pathlib, "pathlibs_parts"), (resolved, "resolved"),
    ],
    "15.pages": [*wrong(running, PAGED), (averaged, "mean_of_ratios"), (mixed, "rules_mixed")],
}  # fmt: skip

RIGHT_ANSWERS = {
    "15.choose_two": [by_places],
    "15.owner": [ranked],
    "15.etag": [streamed],
    "15.safe_path": [by_pattern, by_posixpath],
    "15.pages": [running],
}
