"""Answers to lab 14 as learners might write them: wrong ones with the mistake to be found, and right ones.

Wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import asyncio
import json
import math
import re

import numpy as np
import torch
from edits import wrong

# Without these names an edited answer would not find what it calls.
__all__ = ["NEAR_MISSES", "RIGHT_ANSWERS", "asyncio", "json", "math", "np", "re", "torch"]

# ------------------------------------------------------------------------------------------------------------ events


def by_newlines(chunks):
    """Looks for newlines in a growing buffer."""
    buffer = bytearray()
    lines = []
    for chunk in chunks:
        buffer += chunk
        while (at := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:at])
            del buffer[: at + 1]
            if line.endswith(b"\r"):
                line = line[:-1]
            text = line.decode("utf-8")
            if text == "":
                if lines:
                    event = "\n".join(lines)
                    lines = []
                    if event == "[DONE]":
                        return
                    yield event
            elif text == "data":
                lines.append("")
            elif text.startswith("data:"):
                value = text[5:]
                lines.append(value[1:] if value.startswith(" ") else value)


EVENTS = {
    "carriage_returns": {'if line.endswith(b"\\r"):': "if False:"},
    "chunks_decoded": {"buffer += chunk": "buffer += chunk.decode().encode()"},
    "chunks_decoded_ignoring": {"buffer += chunk": "buffer += chunk.decode(errors='ignore').encode()"},
    "chunks_decoded_replacing": {"buffer += chunk": "buffer += chunk.decode(errors='replace').encode()"},
    "joined_without_newline": {'"\\n".join': '"".join'},
    "last_line_only": {'"\\n".join(lines)': "lines[-1]"},
    "all_spaces": {'value[1:] if value.startswith(" ") else value': "value.strip()"},
    "space_kept": {'value[1:] if value.startswith(" ") else value': "value"},
    "six_bytes_cut": {
        'value[1:] if value.startswith(" ") else value': "value[1:]",
        'elif text == "data":\n                lines.append("")':
        'elif text == "data:x":\n                pass',
    },
    "space_needed": {
        'text.startswith("data:")': 'text.startswith("data: ")', 'elif text == "data":': "elif False:",
    },
    "colon_needed": {'elif text == "data":': "elif False:"},
    "starts_with_data": {
        'text.startswith("data:"):\n                value = text[5:]':
        'text.startswith("data"):\n                value = text[4:].removeprefix(":")',
    },
    "last_colon": {"value = text[5:]": 'value = text.split(":")[-1]'},
    "all_fields": {
        'elif text.startswith("data:"):\n                value = text[5:]':
        'else:\n                value = text.partition(":")[2]',
    },
    "empty_events": {"if lines:": "if True:"},
    "empty_data_lost": {"yield event": "if event:\n                        yield event"},
    "reads_on": {"return\n                    yield event": "continue\n                    yield event"},
    "done_is_an_event": {
        "return\n                    yield event":
        "yield event\n                        return\n                    yield event",
    },
    "data_kept": {"                    lines = []\n": ""},
    "letters_stripped": {'value[1:] if value.startswith(" ") else value': 'text.lstrip("data: ")'},
    "ends_stripped": {'if line.endswith(b"\\r"):\n                line = line[:-1]': "line = line.rstrip()"},
    "done_in_a_line": {
        "startswith(\" \") else value)":
        'startswith(" ") else value)\n                if lines[-1] == "[DONE]":\n                    return',
    },
    "looks_empty": {'if text == "":': 'if text.strip() == "":'},
    "done_anywhere": {'event == "[DONE]"': '"[DONE]" in event'},
}  # fmt: skip


def one_line_each(chunks):
    """Takes every line of data for an event."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            name, _, value = line.rstrip(b"\r").partition(b":")
            if name != b"data":
                continue
            if value.strip() == b"[DONE]":
                return
            yield value.removeprefix(b" ").decode()


def a_chunk_is_an_event(chunks):
    """Reads what comes as if it came whole."""
    for chunk in chunks:
        yield chunk.decode().removeprefix("data:").strip()


def lines_of_a_chunk(chunks):
    """Reads the lines of a chunk, and forgets what is left over."""
    for chunk in chunks:
        for line in chunk.splitlines():
            if line.startswith(b"data: "):
                if line[6:] == b"[DONE]":
                    return
                yield line[6:].decode()
            elif line.startswith(b"data:"):
                yield line[5:].decode()


def all_at_once(chunks):
    """Reads everything, then takes it apart."""
    return list(by_newlines(iter(list(chunks))))


def split_as_text(chunks):
    """Splits text at whatever Python takes for the end of a line."""
    rest, data = b"", []
    for chunk in chunks:
        rest += chunk
        whole, newline, rest = rest.rpartition(b"\n")
        if not newline:
            continue
        for line in whole.decode().splitlines() + ([""] if whole.endswith(b"\n") or not whole else []):
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif line == "" and data:
                event, data = "\n".join(data), []
                if event == "[DONE]":
                    return
                yield event


def with_the_rest(chunks):
    """Passes on what is left when the line breaks."""
    lines, rest = [], b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            line = line.removesuffix(b"\r").decode()
            if line.partition(":")[0] == "data":
                lines.append(line[5:].removeprefix(" "))
            elif not line and lines:
                event, lines = "\n".join(lines), []
                if event == "[DONE]":
                    return
                yield event
    if lines:
        yield "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- until_stop


def held_back(pieces, stops):
    """The whole text, and how much of it is out."""
    text, out = "", 0
    for piece in pieces:
        start = len(text)
        text += piece
        for end in range(start + 1, len(text) + 1):
            done = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
            if done:
                yield text[out : min(done)]
                return
        safe = len(text)
        for at in range(len(text) - 1, out - 1, -1):
            if any(stop.startswith(text[at:]) for stop in stops):
                safe = at
        yield text[out:safe]
        out = safe
    yield text[out:]


STOPS = {
    "holds_nothing": {"safe = at": "pass"},
    "fixed_tail": {
        "if any(stop.startswith(text[at:]) for stop in stops):":
        "if at >= len(text) - max(map(len, stops), default=1) + 1:",
    },
    "whole_tail": {"stop.startswith(text[at:])": "stop[0] == text[at]"},
    "holds_too_little": {
        "range(len(text) - 1, out - 1, -1)": "range(len(text) - 1, max(out, len(text) - 2) - 1, -1)",
    },
    "holds_too_much": {"stop.startswith(text[at:])": "text[at:] in stop"},
    "stop_included": {"text[out : min(done)]": "text[out:end]"},
    "text_before_lost": {"yield text[out : min(done)]\n": "pass\n"},
    "tail_lost": {"    yield text[out:]\n": ""},
    "reads_on": {"                return": "                list(pieces)\n                return"},
    "shorter_of_two": {"min(done)": "max(done)"},
}  # fmt: skip


def by_find(pieces, stops):
    """Searches what is held when a piece has come."""
    held = ""
    for piece in pieces:
        held += piece
        found = sorted((held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held)
        if found:
            yield held[: found[0][1]]
            return
        keep = 0
        for stop in stops:
            for n in range(1, len(stop)):
                if held.endswith(stop[:n]):
                    keep = max(keep, n)
        cut = len(held) - keep
        yield held[:cut]
        held = held[cut:]
    yield held


FIND = {
    "starts_first": {"(held.find(stop) + len(stop), held.find(stop))": "(held.find(stop), held.find(stop))"},
    "first_in_the_list": {"sorted((": "list(("},
    "last_place": {
        "(held.find(stop) + len(stop), held.find(stop))": "(-held.rfind(stop) - len(stop), held.rfind(stop))",
    },
    "one_letter": {"range(1, len(stop))": "range(1, min(2, len(stop)))"},
    "shortest_beginning": {"max(keep, n)": "min(keep or n, n)"},
    "first_stop_only": {"for stop in stops:": "for stop in stops[:1]:"},
    "searches_the_piece": {"if stop in held": "if stop in piece"},
    "minus_zero": {"held = held[cut:]": "held = held[-keep:]"},
    "pattern": {
        "(held.find(stop) + len(stop), held.find(stop))": "re.search(stop, held).span()[::-1]",
        "if stop in held": "if re.search(stop, held)",
    },
    "no_stops": {"keep = 0\n": "keep, longest = 0, max(map(len, stops))\n"},
    "only_at_the_end": {"if stop in held": "if held.endswith(stop)", "held.find(": "held.rfind("},
}  # fmt: skip


def alone(pieces, stops):
    """Each piece by itself."""
    for piece in pieces:
        cut = min((piece.find(stop) for stop in stops if stop in piece), default=-1)
        if cut >= 0:
            yield piece[:cut]
            return
        yield piece


def whole(pieces, stops):
    """The text when it is complete."""
    return ["".join(held_back(pieces, stops))]


def automaton(pieces, stops):
    """A letter that does not fit lets go of everything."""
    kept = ""
    for piece in pieces:
        for letter in piece:
            if kept and not any(stop.startswith(kept + letter) for stop in stops):
                yield kept
                kept = ""
            kept += letter
            if kept in stops:
                return
            if not any(stop.startswith(kept) for stop in stops):
                yield kept
                kept = ""
    yield kept


# ------------------------------------------------------------------------------------------------------------- relay


async def next_by_hand(engine, prompt):
    """Asks for the pieces by hand, as bytes."""
    stream = engine.submit(prompt)

    def event(data):
        return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"

    try:
        while True:
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                break
            except RuntimeError as error:
                yield event({"error": {"message": str(error), "type": "server_error"}})
                return
            yield event({"text": piece})
        yield b"data: [DONE]\n\n"
    finally:
        stream.cancel()


LAST = "    finally:\n        stream.cancel()"
BY_HAND = {
    "only_when_it_ends": {LAST: "    finally:\n        pass\n    stream.cancel()"},
    "only_after_errors": {
        LAST: "    except Exception:\n        stream.cancel()\n        raise",
        "            except RuntimeError as error:\n":
        "            except RuntimeError as error:\n                stream.cancel()\n",
    },
    "only_when_closed": {LAST: "    except GeneratorExit:\n        stream.cancel()\n        raise"},
    "only_when_cancelled": {LAST: "    except asyncio.CancelledError:\n        stream.cancel()\n        raise"},
    "swallows_cancel": {"except RuntimeError": "except BaseException", "piece = await anext(stream)":
                        "piece = await anext(stream)\n                yield event({'text': piece})"
                        "\n                continue"},
    "swallows_cancel_quietly": {LAST: "    except asyncio.CancelledError:\n        pass\n" + LAST},
    "no_done": {'yield b"data: [DONE]\\n\\n"': "pass"},
    "done_quoted": {'yield b"data: [DONE]\\n\\n"': 'yield event("[DONE]")'},
    "one_behind": {
        "        while True:": "        before = None\n        while True:",
        '            yield event({"text": piece})':
        '            if before is not None:\n                yield event({"text": before})\n            before = piece',
        'yield b"data: [DONE]\\n\\n"':
        'if before is not None:\n            yield event({"text": before})\n        yield b"data: [DONE]\\n\\n"',
    },
    "no_json": {'yield event({"text": piece})': 'yield f"data: {piece}\\n\\n"'},
    "python_not_json": {'yield event({"text": piece})': "yield f\"data: {dict(text=piece)}\\n\\n\""},
    "one_newline": {'.encode() + b"\\n\\n"': '.encode() + b"\\n"'},
    "error_gets_out": {"except RuntimeError as error:": "except ZeroDivisionError as error:"},
    "error_hidden": {
        'yield event({"error": {"message": str(error), "type": "server_error"}})\n                return': "break",
    },
    "done_after_an_error": {'"server_error"}})\n                return': '"server_error"}})\n                break'},
    "plain_message": {'{"message": str(error), "type": "server_error"}': "str(error)"},
    "error_as_text": {'{"error": {"message": str(error), "type": "server_error"}}': '{"text": str(error)}'},
    "error_not_wrapped": {'{"error": {"message": str(error), "type": "server_error"}}':
                          '{"message": str(error), "type": "server_error"}'},
}  # fmt: skip


async def no_data(engine, prompt):
    """Lines of JSON, which some servers send."""
    stream = engine.submit(prompt)
    try:
        async for piece in stream:
            yield json.dumps({"text": piece}) + "\n\n"
        yield "data: [DONE]\n\n"
    except RuntimeError as error:
        yield "data: " + json.dumps({"error": {"message": str(error), "type": "server_error"}}) + "\n\n"
    finally:
        stream.cancel()


async def collects(engine, prompt):
    """The whole answer, then its events."""
    stream, problem, pieces = engine.submit(prompt), None, []
    try:
        async for piece in stream:
            pieces.append(piece)
    except RuntimeError as error:
        problem = {"error": {"message": str(error), "type": "server_error"}}
    finally:
        stream.cancel()
    for piece in pieces:
        yield "data: " + json.dumps({"text": piece}) + "\n\n"
    yield "data: " + (json.dumps(problem) if problem else "[DONE]") + "\n\n"


async def submit_inside(engine, prompt):
    """The request is made where the errors of its answer are caught."""
    stream = None
    try:
        stream = engine.submit(prompt)
        async for piece in stream:
            yield "data: " + json.dumps({"text": piece}) + "\n\n"
        yield "data: [DONE]\n\n"
    except RuntimeError as error:
        yield "data: " + json.dumps({"error": {"message": str(error), "type": "server_error"}}) + "\n\n"
    finally:
        if stream is not None:
            stream.cancel()


SUBMIT = {"never_submitted": {"    stream = None\n": "", "if stream is not None:\n            stream": "stream"}}


# ------------------------------------------------------------------------------------------------------------- admit


def counted(level, elapsed, cost, rate, burst):
    """What is missing, if anything."""
    if cost > burst:
        raise ValueError("can never run")
    now = level + elapsed * rate
    if now > burst:
        now = burst
    missing = cost - now
    if missing > 0:
        seconds = int(missing // rate)
        if seconds * rate < missing:
            seconds += 1
        return now, seconds
    return now - cost, 0


ADMIT = {
    "never_refused": {"if cost > burst:": "if False:"},
    "refused_for_now": {
        'raise ValueError("can never run")': "return min(burst, level + elapsed * rate), math.ceil(cost / rate)",
    },
    "not_filled": {"level + elapsed * rate": "level"},
    "seconds_for_tokens": {"elapsed * rate": "elapsed"},
    "overflows": {"if now > burst:": "if False:"},
    "reset_by_time": {"if now > burst:": "if elapsed >= 1 or now > burst:"},
    "exact_is_refused": {"missing > 0": "missing >= 0"},
    "takes_nothing": {"return now - cost, 0": "return now, 0"},
    "takes_from_refused": {"return now, seconds": "return now - cost, seconds"},
    "refill_forgotten": {"return now, seconds": "return level, seconds"},
    "emptied": {"return now, seconds": "return 0.0, seconds"},
    "waits_for_all": {"missing // rate": "cost // rate", "< missing": "< cost"},
    "waits_until_full": {"        seconds = int": "        missing = burst - now\n        seconds = int"},
    "rounded_down": {"seconds += 1": "pass"},
    "one_more": {"if seconds * rate < missing:": "if True:"},
    "rounded": {"return now, seconds": "return now, round(missing / rate)"},
    "not_rounded": {"return now, seconds": "return now, missing / rate"},
    "times_rate": {"return now, seconds": "return now, math.ceil(missing * rate)"},
    "tokens_for_seconds": {"return now, seconds": "return now, math.ceil(missing)"},
    "whole_tokens": {"now = level + elapsed * rate": "now = int(level + elapsed * rate)"},
    "waits_from_before": {"        seconds = int": "        missing = cost - level\n        seconds = int"},
    "refused_by_error": {"if missing > 0:": "if missing > 0:\n        raise ValueError('too much')"},
    "float_seconds": {"return now, seconds": "return now, float(seconds)"},
}  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- draw


def race(logits, temperature, keys):
    """Exponential times, each token as fast as it is likely: who is first?"""
    chosen = []
    for row, T, (seed, k, i) in zip(logits, temperature.tolist(), keys.tolist(), strict=True):
        if torch.isnan(row).any():
            chosen.append(-1)
        elif T == 0:
            chosen.append(row.argmax().item())
        else:
            bits = np.random.Philox(key=seed, counter=np.array([0, 0, k, i], dtype=np.uint64))
            time = -np.log(np.random.Generator(bits).random(row.numel()))
            p = torch.softmax(row.double() / T, 0).numpy()
            chosen.append(int(np.argmax(p / time)))
    return torch.tensor(chosen, dtype=torch.long)


COUNTER = "np.array([0, 0, k, i], dtype=np.uint64)"
DRAW = {
    "same_at_every_step": {COUNTER: "[0, 0, k, 0]"},
    "same_for_every_continuation": {COUNTER: "[0, 0, 0, i]"},
    "overlaps": {COUNTER: "[i, k, 0, 0]"},
    "overlaps_in_the_lowest_word": {COUNTER: "[i, 0, k, 0]"},
    "swapped": {COUNTER: "[0, 0, i, k]"},
    "i_plus_k": {COUNTER: "[0, 0, 0, i + k]"},
    "row_counts": {COUNTER: "[0, len(chosen), k, i]"},
    "seed_left_out": {"key=seed": "key=0"},
    "seeds_added": {f"key=seed, counter={COUNTER}": "key=seed + k + i"},
    "default_generator": {"np.random.Generator(bits)": "np.random.default_rng([seed, k, i])"},
    "one_stream": {
        "    chosen = []":
        "    chosen, bits = [], np.random.Philox(key=keys[0, 0].item() if len(keys) else 0, counter=[0, 0, *"
        "keys[0, 1:].tolist()] if len(keys) else 0)\n    stream = np.random.Generator(bits)",
        "np.random.Generator(bits).random": "stream.random",
    },
    "torchs_generator": {
        "    chosen = []": "    chosen = []\n    torch.manual_seed(keys[0, 0].item() if len(keys) else 0)",
        "int(np.argmax(p / time))": "int(torch.multinomial(torch.from_numpy(p), 1))",
    },
    "always_greedy": {"elif T == 0:": "elif T >= 0:"},
    "noise_when_cold": {"elif T == 0:": "elif False:", "/ T": "/ (T or 1.0)"},
    "zero_divided": {"elif T == 0:": "elif False:", "chosen.append(int(np.argmax(p / time)))":
                     "chosen.append(-1 if np.isnan(p).any() else int(np.argmax(p / time)))"},
    "temperature_multiplies": {"/ T": "* T"},
    "temperature_left_out": {"/ T": ""},
    "log_once": {"np.argmax(p / time)": "np.argmax(np.log(p + 1e-300) + time)"},
    "sign_lost": {"np.argmax(p / time)": "np.argmax(np.log(p + 1e-300) + np.log(time))"},
    "uniform_added": {"np.argmax(p / time)": "np.argmax(np.log(p + 1e-300) + np.exp(-time))"},
    "probabilities_not_logits": {"np.argmax(p / time)": "np.argmax(p - np.log(time))"},
    "cumulative": {"np.argmax(p / time)": "min((np.cumsum(p) < np.exp(-time[0])).sum(), len(p) - 1)"},
    "forbidden_is_broken": {"torch.isnan(row).any()": "not torch.isfinite(row).all()"},
    "only_all_nan": {"torch.isnan(row).any()": "torch.isnan(row).all()",
                     "p = torch": "row = row.nan_to_num(float('nan'))\n            p = torch"},
    "nan_gets_out": {"    for row,": "    logits = torch.where(logits.isnan(), 0.0, logits)\n    for row,"},
    "nan_is_token_0": {"chosen.append(-1)": "chosen.append(0)"},
    "batch_given_up": {
        "    chosen = []":
        "    chosen = []\n    if logits.isnan().any():\n        return torch.full((len(logits),), -1)",
    },
    "nearly_cold": {"elif T == 0:": "elif False:", "/ T": "/ max(T, 1e-6)"},
    "seed_hashed": {"key=seed": "seed=seed"},
    "first_temperature": {"temperature.tolist()": "[temperature[:1].sum().item()] * len(logits)"},
    "int32": {"dtype=torch.long": "dtype=torch.int32"},
}  # fmt: skip


def stacked(logits, temperature, keys):
    """Noise for all rows in one tensor, added where a row is warm."""
    V = logits.shape[1]
    noise = [np.random.Generator(np.random.Philox(key=s, counter=[0, 0, k, i])).random(V) for s, k, i in keys.tolist()]
    gumbel = -torch.log(-torch.log(torch.from_numpy(np.array(noise).reshape(-1, V))))
    warm = (temperature > 0)[:, None]
    score = torch.where(warm, logits.double() + temperature.double()[:, None] * gumbel, logits.double())
    return torch.where(logits.isnan().any(1), -1, score.argmax(1))


STACKED = {
    "nobody_fails": {"np.array(noise).reshape(-1, V)": "np.stack(noise)"},
    "nan_wins": {"torch.where(logits.isnan().any(1), -1, score.argmax(1))": "score.argmax(1)"},
}

# ---------------------------------------------------------------------------------------------------------- quantile


def walked(q, edges, counts):
    """Walks up the buckets."""
    if q <= 0 or q > 1:
        raise ValueError(q)
    total = counts[-1]
    if total == 0:
        return (float("nan"),) * 3
    rank = q * total
    lower, below = 0.0, 0
    for upper, count in zip(edges, counts):
        if count >= rank:
            if math.isinf(upper):
                return lower, lower, upper
            return lower + (upper - lower) * (rank - below) / (count - below), lower, upper
        lower, below = upper, count


INSIDE = "lower + (upper - lower) * (rank - below) / (count - below)"
QUANTILE = {
    "summed_again": {"    total =": "    counts = [sum(counts[: i + 1]) for i in range(len(counts))]\n    total ="},
    "upper_edge": {INSIDE: "upper"},
    "lower_edge": {INSIDE: "lower"},
    "middle": {INSIDE: "(lower + upper) / 2"},
    "from_above": {INSIDE: "upper - (upper - lower) * (rank - below) / (count - below)"},
    "geometric": {
        INSIDE: "(lower * (upper / lower) ** ((rank - below) / (count - below)) if lower else upper * (rank - below) / "
        "(count - below))",
    },
    "strictly_above": {"count >= rank": "count > rank or count == total"},
    "rank_not_lowered": {"(rank - below) / (count - below)": "rank / (count - below)"},
    "share_of_all": {"/ (count - below)": "/ total"},
    "rank_over_count": {"(rank - below) / (count - below)": "rank / count"},
    "whole_rank": {"rank = q * total": "rank = math.ceil(q * total)"},
    "finite_total": {"total = counts[-1]": "total = counts[-2] if len(counts) > 1 else counts[-1]"},
    "infinite": {"return lower, lower, upper": "return upper, lower, upper"},
    "nan_beyond": {"return lower, lower, upper": "return math.nan, lower, upper"},
    "starts_at_the_first_edge": {"lower, below = 0.0, 0": "lower, below = edges[0] if edges[0] < math.inf else 0.0, 0"},
    "nobody_is_zero": {'(float("nan"),) * 3': "(0.0, 0.0, 0.0)"},
    "bare_number": {f"{INSIDE}, lower, upper": INSIDE, "return lower, lower, upper": "return lower"},
    "any_q": {"q <= 0 or q > 1": "False", "/ (count - below)": "/ (count - below or 1)"},
    "one_refused": {"q <= 0 or q > 1": "q < 0 or q >= 1", "/ (count - below)": "/ (count - below or 1)"},
    "wraps_around": {"lower, below = 0.0, 0": "lower, below = edges[-1], 0"},
    "numpys_rank": {"rank = q * total": "rank = q * (total - 1)"},
    "other_edges": {f"{INSIDE}, lower, upper": f"{INSIDE}, upper - lower, upper"},
}  # fmt: skip


def searched(q, edges, counts):
    """With NumPy's search."""
    if not 0 < q <= 1:
        raise ValueError(f"{q} is no share")
    if counts[-1] < 1:
        return math.nan, math.nan, math.nan
    at = int(np.searchsorted(counts, q * counts[-1]))
    corners, sums = [0.0, *edges], [0, *counts]
    if at + 1 == len(edges):
        return corners[at], corners[at], math.inf
    share = (q * counts[-1] - sums[at]) / (sums[at + 1] - sums[at])
    return corners[at] * (1 - share) + corners[at + 1] * share, corners[at], corners[at + 1]


SEARCHED = {
    "nobody_fails": {"if counts[-1] < 1:": "if False:"},
    "bucket_before": {
        "int(np.searchsorted(counts, q * counts[-1]))": "max(0, int(np.searchsorted(counts, q * counts[-1])) - 1)",
        "/ (sums[at + 1] - sums[at])": "/ (sums[at + 1] - sums[at] or math.inf)",
        "at + 1 == len(edges)": "edges[at] == math.inf",
    },
}

NEAR_MISSES = {
    "14.events": [
        *wrong(by_newlines, EVENTS), (one_line_each, "every_line"), (a_chunk_is_an_event, "a_chunk_is_an_event"),
        (lines_of_a_chunk, "lines_of_a_chunk"), (all_at_once, "waits_for_the_end"),
        (split_as_text, "other_line_ends"), (with_the_rest, "half_an_event"),
    ],
    "14.until_stop": [
        *wrong(held_back, STOPS), *wrong(by_find, FIND), (alone, "piece_by_piece"), (whole, "waits_for_the_end"),
        (automaton, "restarts"),
    ],
    "14.relay": [
        *wrong(next_by_hand, BY_HAND), *wrong(submit_inside, SUBMIT), (no_data, "no_data"),
        (collects, "collects_first"), (submit_inside, "full_is_an_event"),
    ],
    "14.admit": wrong(counted, ADMIT),
    "14.draw": [*wrong(race, DRAW), *wrong(stacked, STACKED)],
    "14.quantile": [*wrong(walked, QUANTILE), *wrong(searched, SEARCHED)],
}  # fmt: skip

RIGHT_ANSWERS = {
    "14.events": [by_newlines],
    "14.until_stop": [held_back, by_find],
    "14.relay": [next_by_hand],
    "14.admit": [counted],
    "14.draw": [race, stacked],
    "14.quantile": [walked, searched],
}
