# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · Serving: a server that no request can break
#
# An engine that writes tokens is no server yet. People break off, send too much, read slowly, ask for nonsense, and all
# of them at once. In this lab you write what stands between them and the engine, and measure whether it holds: **no
# request may change another request's answer**.
#
# After this lab you can
#
# - read and write a stream of server-sent events, wherever the network has cut it;
# - end an answer at a stop string without showing a letter of it, and without holding back more than has to be;
# - pass an answer on so that whatever ends it, nothing stays held;
# - admit work by tokens, and say honestly when to come again;
# - draw tokens so that an answer depends on its request alone;
# - measure latency under a load that does not wait for the server, and read it from a histogram with its error.
#
# It takes about two and a half hours.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** `cpu` serves a small model to
# few clients; `gpu` finds out what one GPU carries; `auto` asks the machine.

# %% tags=["setup"]
import asyncio
import json
import math
import os
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from labkit import check, hint, predict, recap, reveal
from labkit.core import runtime
from labkit.course.hosted import Hosted
from labkit.course.mine import my_model
from labkit.course.streamed import BLOCKS, StandIn, elsewhere, relayed, released
from labkit.serve.scheduler import Limits, Scheduler
from labkit.serve.scheduler.simulate import Cost, simulate
from labkit.serve.workload import arrivals, lognormal_lengths
from labkit.show import figures, picture, style
from labkit.train import documents

gpu = runtime.resolve_profile(profile) == "gpu"
where = runtime.device_name(runtime.device() if gpu else torch.device("cpu"))
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other

# %% [markdown]
# The model is your own from lab 07 if you have trained one, else the one that comes with the course. The notebook keeps
# it on the CPU; the server loads its own.

# %%
if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client", "openai") if find_spec(name) is None]:
    raise ModuleNotFoundError(f"this lab runs a server; do: %pip install {' '.join(missing)}")
import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

trained = my_model()
model, tokenizer = trained.model.requires_grad_(False), trained.tokenizer
POISON = len(tokenizer) - 1  # a token that we make the engine stumble over, in section 5
print(trained)

# %% [markdown]
# The server starts now, as a process of its own, and the engine as another. They load while you read on. These are its
# limits: how many run at once, and how many tokens may wait.

# %%
MOST, CONTEXT, TOGETHER, WAITING = (256, 1024, 128, 40_000) if gpu else (64, 512, 12, 520)
server = Hosted(
    trained.folder,
    {
        "poison": POISON, "device": "cuda" if gpu else "cpu",
        "limits": {
            "num_blocks": TOGETHER * CONTEXT // 16, "max_context": CONTEXT, "max_sequences": TOGETHER,
            "max_tokens_per_step": 4096 if gpu else 256, "max_waiting_tokens": WAITING,
        },
    },
    max_output_tokens=MOST,
)  # fmt: skip

# %% [markdown]
# ## 1 · A stream is bytes
#
# Nobody likes to wait for the last word to see the first. So an OpenAI-compatible server sends an answer in pieces, as
# **server-sent events**: lines of text over one HTTP response that stays open. A line `data: …` carries something, an
# empty line ends the event, and what begins with a colon is a comment that keeps the connection alive. After the last
# piece comes `data: [DONE]`.

# %% [markdown]
# The network knows nothing of events. It delivers bytes, in chunks of whatever length; a chunk may hold three events,
# or half a letter. Here is a stream as it might arrive, 13 bytes at a time, and how it begins with 19:

# %% tags=["nbval-check-output"]
STREAM = 'data: {"text": "naïve"}\n\n: still here\n\ndata: {"text": " café"}\n\ndata: [DONE]\n\n'.encode()


def cut(stream, size):
    """A stream in chunks of equal size."""
    return [stream[at : at + size] for at in range(0, len(stream), size)]


for chunk in cut(STREAM, 13):
    print(chunk)
print("19 bytes:", *cut(STREAM, 19)[:2])

# %% [markdown]
# The same bytes in a row, coloured by what they belong to; the lines are the network's cuts. They fall where they
# please.

# %%
lengths = [len(part) + 2 for part in STREAM.split(b"\n\n")[:-1]]
with style.use():
    fig, (axis,) = picture.new(size=(9.0, 1.3))
    for at, (length, name) in enumerate(zip(lengths, ("event", "comment", "event", "[DONE]"), strict=True)):
        left = sum(lengths[:at])
        axis.barh(0, length, left=left, color=style.GREY if name == "comment" else style.PALETTE[at])
        axis.text(left + length / 2, 0, name, ha="center", va="center", color="white")
    axis.vlines(range(13, sum(lengths), 13), -0.6, 0.6, color=style.INK, linewidth=1)
    axis.set(xlabel="byte", yticks=[], xlim=(0, sum(lengths)))
fig.alt = f"Two events, a comment and the end, of {', '.join(map(str, lengths))} bytes, cut every 13 bytes."
display(fig)

# %% [markdown]
# With 13 bytes a chunk both letters of two bytes came whole, by luck. With 19 the `ï` lies in two: `\xc3` ends the
# first chunk, `\xaf` begins the second, and half a letter can be decoded by nobody.

# %% [markdown]
# Write the reader. (The whole format is in the HTML standard, section 9.2; we
# leave out what streams of completions never hold: event names, and lines that end in a lone `\r`.)


# %% exercise="14.events"
def events(chunks):
    """The events of a stream, each as soon as it is complete.

    Lines end with \\n or \\r\\n. A line's name is what stands in front of its first colon, its value what comes after,
    without *one* leading space if there is one; a line without a colon is all name. The values of lines named `data`
    belong to the event, joined by \\n; all other lines are passed over. An empty line ends the event; if no data line
    came before it, there was none. An event [DONE] ends the stream: it is not given out, and nothing more is read.

    Args:
        chunks: an iterator of bytes, UTF-8, cut anywhere.

    Yields each event's data as a str. What is incomplete when the chunks end is left out.
    """
    ### BEGIN SOLUTION
    held, data = b"", []
    for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ").decode())
            elif line.removesuffix(b"\r") == b"" and data:
                text, data = "\n".join(data), []
                if text == "[DONE]":
                    return
                yield text
    ### END SOLUTION


# %% check="14.events"
events = check("14.events", events)

# %% [markdown]
# However the same stream is cut, the same events come out:

# %% tags=["nbval-check-output"]
for size in (1, 13, 1000):
    print(f"{size:>4} bytes a chunk:", list(events(iter(cut(STREAM, size)))))

# %% [markdown]
# Many clients take a chunk for an event. It works at home: small events, no proxy in between, each `write` its own
# packet. Take a real answer, one event a token of the course's tokenizer.

# %%
texts = documents.collect(train_bytes=20_000, validation_bytes=12_000, seed=seed)
PROSE = next(text for text in texts.validation["english"] if len(text) > 600)[:600]
tokens = [tokenizer.decode([id]) for id in tokenizer.encode(PROSE, add_special_tokens=False)]
sent = [json.dumps({"text": token}) for token in tokens]
packets = [f"data: {event}\n\n".encode() for event in sent]
whole = b"".join(packets)
print(f"{len(sent)} events, {len(whole):,} bytes for {len(PROSE.encode())} bytes of text")

# %% [markdown]
# On the way, now and then a packet is delivered together with the next one, because the reader was busy for a moment.
# If that happens to one packet in ten, what share of the events does a reader get who takes a chunk for an event?

# %%
p_chunks = predict("14.chunks", "One packet in ten comes with the next: events that a chunk reader gets?", 0, 100, "%")


# %%
def delivered(merged):
    """The packets as chunks, a share of them merged with the next."""
    chance, chunks = random.Random(seed), [b""]
    for packet in [*packets, b"data: [DONE]\n\n"]:
        chunks[-1] += packet
        if chance.random() >= merged:
            chunks.append(b"")
    return chunks


def share_seen(chunks):
    """What a reader gets who takes every chunk for an event."""
    return 100 * sum(chunk in packets for chunk in chunks) / len(packets)


p_chunks.against(share_seen(delivered(0.1)))

# %% [markdown]
# A merged chunk loses *all* its events, two or more. Over other shares, with your reader beside:

# %%
SHARES = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7]
mine = [100 * (list(events(iter(delivered(share)))) == sent) for share in SHARES]
curves = {"a chunk is an event": [share_seen(delivered(share)) for share in SHARES], "your reader": mine}
display(figures.cost_curve(SHARES, curves, "share of packets merged", "events that arrive (%)", log=False))

# %% [markdown]
# At home the share is zero, and the client ships.

# %% [markdown]
# ### The real one
#
# By now the server should be up. We ask it in three ways: with `httpx`, to see the bytes; with your reader; and with
# the `openai` client, which knows nothing of this course. What does the packaging cost: how many bytes cross the wire
# for a byte of the answer?

# %%
p_wire = predict("14.wire", "Bytes on the wire for each byte of the answer?", 1, 200, "bytes")


# %%
def stream_raw(body):
    """The chunks of a streamed answer as they come, each with its second."""
    began = time.perf_counter()
    with httpx.stream("POST", f"{URL}/v1/completions", json={**body, "stream": True}, timeout=120) as response:
        return [(time.perf_counter() - began, chunk) for chunk in response.iter_raw()]


URL = server.wait()
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120)
NAME = client.models.list().data[0].id
QUESTION = {"model": NAME, "prompt": "The value of the ", "max_tokens": 24, "temperature": 0}
came = stream_raw(QUESTION)
answer = "".join(json.loads(event)["choices"][0]["text"] for event in events(chunk for _, chunk in came))
p_wire.against(sum(len(chunk) for _, chunk in came) / len(answer.encode()))
print(f"{answer!r}\n{came[0][1].decode()}")

# %% [markdown]
# Every event says again which answer it belongs to, and which model wrote it. (On top come HTTP's own lengths.) Nobody
# minds: it is a few kilobytes a second.

# %% [markdown]
# What matters is *when* they come:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 1.6))
    moments = [1000 * second for second, _ in came]
    axis.eventplot(moments, colors=style.PALETTE[0], linelengths=0.8)
    axis.annotate("", (moments[0], 1.7), (0, 1.7), arrowprops={"arrowstyle": "<->", "color": style.LIT})
    axis.text(moments[0] / 2, 1.8, "first token", ha="center", color=style.LIT)
    axis.set(xlabel="time since the request (ms)", yticks=[], xlim=(0, None), ylim=(0.4, 2.3))
fig.alt = f"The first chunk came after {moments[0]:.0f} ms, the last of {len(moments)} after {moments[-1]:.0f} ms."
display(fig)

# %% [markdown]
# Two numbers describe such an answer: the **time to the first token** (TTFT), which is a queue and a prompt, and the
# time **between tokens**, which is one step of the engine each.

# %% tags=["nbval-check-output"]
theirs = "".join(part.choices[0].text for part in client.completions.create(**QUESTION, stream=True))
print("the openai client reads the same text:", theirs == answer)

# %% [markdown]
# ## 2 · Stop here
#
# A request may name texts at which its answer ends, `"stop": ["\n\n"]`. The stop is not part of the answer. Tokens know
# nothing of that: a stop may begin in one token and end in the third. And what has been sent cannot be called back.

# %% [markdown]
# How often is that? Here are seven stops that people use. Of all places in real text where one of them stands, how many
# lie in more than one token?

# %%
p_split = predict("14.split", "Places of stops that no single token holds?", 0, 100, "%")

# %%
CODE, ENGLISH = ("\n".join(texts.validation[domain]) for domain in ("code", "english"))
STOPS = ("\n\n", "\n\nclass ", "def ", "return", "):", ". ", "the ")


def split_places(stop, text):
    """How many places of a stop no single token holds, and how many there are."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [end for _, end in spans]
    places = [at for at in range(len(text)) if text.startswith(stop, at)]
    inside = sum(ends[np.searchsorted(ends, at, side="right")] >= at + len(stop) for at in places)
    return len(places) - inside, len(places)


split = {stop: split_places(stop, CODE + ENGLISH) for stop in STOPS}
cut_up, all_of_them = map(sum, zip(*split.values(), strict=True))
p_split.against(100 * cut_up / all_of_them)

# %% [markdown]
# Stop by stop:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.6))
    axis.barh([repr(stop) for stop in STOPS], [n for _, n in split.values()], color=style.GREY, label="in one token")
    axis.barh(
        [repr(stop) for stop in STOPS], [n for n, _ in split.values()], color=style.PALETTE[1], label="in several"
    )
    axis.set(xlabel="places in the text")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = ", ".join(f"{stop!r} {n} of {total}" for stop, (n, total) in split.items())
fig.alt = f"Places where a stop lies in more than one token: {told}."
display(fig)

# %% [markdown]
# It is a matter of the tokenizer: in this one, the space between two words begins the second one's token, and never
# ends the first one's.

# %% [markdown]
# So a matcher has to remember. But it must not remember too much: whatever can no longer belong to a stop has to go out
# at once.

# %% [markdown]
# Which of two stops counts, if both are in the text? The one that is *complete* first. Then the answer does not depend
# on where the text was cut.


# %% exercise="14.until_stop"
def until_stop(pieces, stops):
    """Text up to the first stop, each part as soon as it cannot belong to a stop any more.

    Of several stops the one that is complete first counts; of those that are complete at the same letter, the longest.
    After each piece, only the longest end of the text that some stop begins with is held back. Once a stop is complete
    no more pieces are asked for. If none comes, all text comes out in the end.

    Args:
        pieces: an iterator of str, cut anywhere, some of them empty.
        stops: a tuple of str, none empty; may be empty itself.

    Yields str, in any number of parts.
    """
    ### BEGIN SOLUTION
    held = ""
    for piece in pieces:
        for letter in piece:
            held += letter
            if ended := [stop for stop in stops if held.endswith(stop)]:
                yield held[: len(held) - max(map(len, ended))]
                return
        begun = [n for stop in stops for n in range(len(stop)) if held.endswith(stop[:n])]
        keep = max(begun, default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
    ### END SOLUTION


# %% check="14.until_stop"
until_stop = check("14.until_stop", until_stop)

# %% [markdown]
# Piece by piece: what comes in, and what may go out.

# %% tags=["nbval-check-output"]
coming = ["The ", "EN", "ERGY of ", "E", "N", "D. No more."]
for piece, out in zip(coming, released(until_stop, coming, ("END", "STOP")), strict=True):
    print(f"{piece!r:>15} → {out!r}")

# %% [markdown]
# The price of a stop is delay. How many letters lag behind, on average, over the code above, with the stop
# `\n\nclass ` and a stop that never comes? A simpler matcher always holds as many letters as the stop has, less one.

# %%
p_lag = predict("14.lag", "Letters that your matcher holds back, on average?", 0, 8, "letters", step=0.1)

# %%
code = CODE.replace("\n\nclass ", "\n\nCLASS ")[:3000]
coming = [tokenizer.decode([id]) for id in tokenizer.encode(code, add_special_tokens=False)]
there = np.cumsum([len(piece) for piece in coming])
went = np.cumsum([len(out) for out in released(until_stop, coming, ("\n\nclass ",))])[: len(there)]
lag = there - went
p_lag.against(lag.mean())
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 2.4))
    axis.step(range(300), lag[:300], where="mid", color=style.PALETTE[0], label="yours")
    axis.axhline(len("\n\nclass ") - 1, color=style.PALETTE[1], linestyle="--", label="always the stop's length − 1")
    axis.set(xlabel="token", ylabel="letters held back")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    f"Letters held back, token by token: {lag.mean():.2f} on average, {lag.max()} at most; the simple way always 7."
)
display(fig)

# %% [markdown]
# Two newlines hold it up, and the next letter lets it go.

# %% [markdown]
# ## 3 · Whoever goes away
#
# While an answer is being written it holds blocks of the cache (lab 12). A reader who closes the window does not say
# so; the connection is gone. Then the engine writes on for nobody, and the blocks are held, unless somebody tells it.
#
# In Python that somebody is a generator. The web server asks it for one event after the other, and ends it in one of
# four ways:
#
# - the answer is complete;
# - the engine fails, and `async for` raises;
# - the generator is **closed** where it stands at a `yield`: there `GeneratorExit` is raised;
# - its task is **cancelled** where it waits in `async for`: there `asyncio.CancelledError` is raised.

# %% [markdown]
# An engine, as far as we need it: `engine.submit(prompt)` gives an answer or raises `Full` (a RuntimeError). An answer
# is an asynchronous iterator of pieces of text; `answer.cancel()` frees what it holds, at any time, as often as you
# like.


# %% exercise="14.relay"
async def relay(engine, prompt):
    """An answer as server-sent events; whatever ends it, the engine holds nothing for it afterwards.

    Each piece becomes `data: {"text": piece}` and an empty line, as soon as it is there; after the last one comes
    `data: [DONE]`. If the engine fails on the way (RuntimeError), the last event is `data: {"error": {"message": what
    it said, "type": "server_error"}}`, and no [DONE] follows. A request that is refused (`submit` raises) is none of
    this generator's business: nothing has been sent, so the error gets out.

    Args:
        engine: see above. prompt: a str.

    Yields str, one event each. Closing and cancelling get through.
    """
    ### BEGIN SOLUTION
    answer = engine.submit(prompt)
    try:
        async for piece in answer:
            yield f"data: {json.dumps({'text': piece})}\n\n"
        yield "data: [DONE]\n\n"
    except RuntimeError as error:
        problem = {"message": str(error), "type": "server_error"}
        yield f"data: {json.dumps({'error': problem})}\n\n"
    finally:
        answer.cancel()
    ### END SOLUTION


# %% check="14.relay"
relay = check("14.relay", relay)

# %% [markdown]
# All ways to end, with a stand-in for the engine:

# %% tags=["nbval-check-output"]
ENDS = {"complete": (), "reader leaves": ("closed", 1), "cancelled": ("thinks", 1), "engine fails": ("fails", 1)}
for name, end in {**ENDS, "refused": ("full",)}.items():
    found = relayed(relay, ["Hel", "lo"], *end)
    print(f"{name:<14} ended: {found['ended']:<11} blocks held: {found['blocks held']}  sent: {found['sent']}")

# %% [markdown]
# Now a day at a server whose author thought only of answers that are complete. It has 60 blocks, a request takes 3, and
# one reader in three leaves after the first event. After how many requests is nothing free any more?

# %%
p_leak = predict("14.leak", "One reader in three leaves: requests until 60 blocks are gone?", 20, 200, "requests")


# %%
async def forgetful(engine, prompt):
    async for piece in engine.submit(prompt):
        yield f"data: {json.dumps({'text': piece})}\n\n"
    yield "data: [DONE]\n\n"


async def day(server, blocks=60, visits=120):
    """Free blocks after each visit, until nobody can be served any more."""
    engine, draw, free = StandIn(["a", "b", "c"]), random.Random(seed), [blocks]
    while len(free) <= visits and free[-1] >= BLOCKS:
        stream, impatient = server(engine, "prompt"), draw.random() < 1 / 3
        async for _ in stream:
            if impatient:
                break
        await stream.aclose()
        free.append(blocks - engine.blocks)
    return free


days = {"frees when it is complete": elsewhere(day(forgetful)), "yours": elsewhere(day(relay))}
p_leak.against(len(days["frees when it is complete"]) - 1)

# %% [markdown]
# Nothing was wrong with any single answer: no test that looks at answers finds this.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.4))
    for at, (name, free) in enumerate(days.items()):
        axis.step(range(len(free)), free, where="post", color=style.PALETTE[1 - at], label=name)
    axis.set(xlabel="requests so far", ylabel="free blocks", ylim=(-2, 64))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = "; ".join(f"{name}: {free[-1]} free after {len(free) - 1}" for name, free in days.items())
fig.alt = f"Free blocks by requests served. {told}."
display(fig)

# %% [markdown]
# ### The real one
#
# The server tells its state at `/metrics`, as text that Prometheus reads; so does Prometheus' own parser. We start an
# answer that is as long as it may be, read five events, and close the connection. How long until the engine holds
# nothing for it?


# %%
def scrape():
    """The server's numbers by name and labels, the labels in the order of their names."""
    text, found = httpx.get(f"{URL}/metrics", timeout=120).text, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, *(sample.labels[name] for name in sorted(sample.labels))] = sample.value
    return found


def held():
    """Blocks that requests hold now."""
    numbers = scrape()
    return int(numbers["labkit_kv_blocks",] - numbers["labkit_kv_blocks_free",])


LONG = {**QUESTION, "max_tokens": MOST, "stream": True}
print("blocks held before:", held())

# %% [markdown]
# The answer has most of its tokens to go, and the connection ends in the middle of a step.

# %%
p_free = predict("14.free", "The reader leaves: milliseconds until its blocks are free?", 0, 1000, "ms")

# %%
with httpx.stream("POST", f"{URL}/v1/completions", json=LONG, timeout=120) as response:
    reading = events(response.iter_raw())
    for _ in range(5):
        next(reading)
    watched = [(-1.0, held())]
gone = time.perf_counter()
while watched[-1][1] and time.perf_counter() - gone < 30:
    now = held()
    watched.append((1000 * (time.perf_counter() - gone), now))
p_free.against(watched[-1][0])

# %% [markdown]
# What we saw is coarse: each look at `/metrics` takes a few milliseconds itself. Beside it, what the rest of the answer
# would have taken, at the pace of the first one:

# %%
pace = (came[-1][0] - came[0][0]) / (len(came) - 1)
with style.use():
    fig, (axis,) = picture.new(size=(8.0, 2.0))
    axis.step([at for at, _ in watched], [n for _, n in watched], where="post", color=style.PALETTE[0], label="held")
    axis.axvline(1000 * pace * (MOST - 5), color=style.GREY, linestyle="--", label="the answer would have ended")
    axis.axvline(0, color=style.LIT, label="the reader leaves")
    axis.set(xlabel="time (ms)", ylabel="blocks", ylim=(-0.2, None), yticks=range(watched[0][1] + 2))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    f"Blocks held after the reader left: none after {watched[-1][0]:.0f} ms; the answer had {MOST - 5} tokens to go."
)
display(fig)

# %% [markdown]
# ## 4 · Too much
#
# A server that accepts everything breaks its promise to everybody. So it counts, and not requests but **tokens**: the
# prompt, and the longest answer that was asked for. One customer's share can be a **bucket**: `rate` tokens flow in
# each second, up to `burst`; a request takes its tokens out, or is told *when* they will be there. HTTP has words for
# that: status 429, and a header `Retry-After` in whole seconds (RFC 9110, section 10.2.3).

# %% [markdown]
# What can never fit is another matter. "Come again" would be a lie, so it gets a 400.


# %% exercise="14.admit"
def admit(level: float, elapsed: float, cost: int, rate: float, burst: int) -> tuple[float, int]:
    """One request at a bucket of tokens.

    Args:
        level: tokens in the bucket after the last request. elapsed: seconds since then.
        cost: tokens that this request may take. rate: tokens that flow in each second.
        burst: what the bucket holds at most.

    Returns the level after this request, and its Retry-After: 0 if it goes through and has taken its tokens, else
    whole seconds, rounded up, until as many would be there; then it has taken nothing. Raises ValueError for a cost
    above burst, which never would be there.
    """
    ### BEGIN SOLUTION
    if cost > burst:
        raise ValueError(f"{cost} tokens are more than the bucket ever holds, {burst}")
    level = min(burst, level + rate * elapsed)
    if cost <= level:
        return level - cost, 0
    return level, math.ceil((cost - level) / rate)
    ### END SOLUTION


# %% check="14.admit"
admit = check("14.admit", admit)

# %% [markdown]
# A bucket of 1,000 with 100 tokens a second, and somebody who asks for 400 every second:

# %% tags=["nbval-check-output"]
level, seen = 1000.0, []
for second in range(8):
    level, wait = admit(level, 1.0, 400, 100.0, 1000)
    seen.append(level)
    print(f"second {second}: {'goes through' if not wait else f'429, Retry-After: {wait}':<22} level {level:.0f}")

# %% [markdown]
# A burst goes through, then one request in four. That is a customer's share. What does the *server* do when everybody
# together asks for more than it can? Here is the scheduler of lab 12 on a counted clock, under people's lengths of
# prompts and answers. They arrive in a Poisson process: at random, and without asking how the server is doing.

# %% tags=["nbval-check-output"]
LENGTHS = lognormal_lengths(200, seed=seed)
COST = Cost(fixed=5e-3, per_token=2e-4)
WIDE = Limits(num_blocks=4096, max_sequences=32, max_waiting=10**6, max_waiting_tokens=10**9)
NARROW = Limits(num_blocks=4096, max_sequences=32, max_waiting_tokens=4000)
at_once = simulate(Scheduler(WIDE), arrivals(LENGTHS), COST)
CAPACITY = len(LENGTHS) / at_once.seconds
print(f"capacity: {CAPACITY:.1f} requests/s, all at once done in {at_once.seconds:.0f} s")

# %% [markdown]
# Let twice as many arrive as it can answer, until all 200 have. Everything is accepted. How long does the slowest one
# wait for its first token?

# %%
p_queue = predict("14.queue", "Twice the capacity, endless queue: the longest wait for a first token?", 0, 60, "s")


# %%
def offered(load, limits):
    """What comes of arrivals at so many times the capacity."""
    return simulate(Scheduler(limits), arrivals(LENGTHS, load * CAPACITY, seed=seed), COST)


LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
queues = {"endless queue": [offered(load, WIDE) for load in LOADS]}
queues["4,000 tokens may wait"] = [offered(load, NARROW) for load in LOADS]
p_queue.against(queues["endless queue"][-1].ttft.at(1))

# %% [markdown]
# Over all loads: the wait of the unlucky (the 99th percentile), and who was sent away.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 3.0))
    for at, (name, reports) in enumerate(queues.items()):
        axes[0].plot(LOADS, [r.ttft.at(0.99) for r in reports], "o-", color=style.PALETTE[1 - at], label=name)
        axes[1].plot(LOADS, [100 * r.refused / len(LENGTHS) for r in reports], "o-", color=style.PALETTE[1 - at])
    axes[0].set(yscale="log", xlabel="offered load (capacity = 1)", ylabel="time to first token, p99 (s)")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[1].set(xlabel="offered load (capacity = 1)", ylabel="turned away (%)")
    axes[0].legend()
told = "; ".join(f"{name}: {r[-1].ttft.at(0.99):.1f} s and {r[-1].refused} away at 2" for name, r in queues.items())
fig.alt = f"99th percentile of the time to first token, and share turned away, by offered load. {told}."
display(fig)

# %% [markdown]
# The bend is the **knee**: there the queue begins.

# %% [markdown]
# Beyond it an endless queue makes everybody wait, longer and longer, and serves not one person more a second. (It
# serves all 200 in the end, since no more come. People do not stop coming.) A bounded one keeps its promise to those
# whom it accepts.

# %% [markdown]
# ## 5 · Alone or in company
#
# At temperature 0 an answer is the likeliest token, again and again. Above it, tokens are *drawn*, and somebody has to
# supply the chance. If a batch draws from one generator, your answer depends on who is in the batch with you: other
# company, another answer; a request that is begun again after a crash, another answer too.
#
# So let the noise of every token be a **function**: of the request's seed, of the continuation k (a request may ask for
# n of them), of the step i, and of nothing else. Salmon et al. 2011 (*Parallel random numbers: as easy as 1, 2, 3*)
# made generators that are just that, a scramble of a key and a counter. NumPy has one of them, Philox: a key and a
# counter of four words. It counts up the *first* word itself, one for every four numbers that are drawn.

# %% [markdown]
# With uniform numbers $u_v$ in hand, the largest of $\ell_v / T - \log(-\log u_v)$ is a draw from the softmax of
# $\ell / T$ (Gumbel 1954). No sums, no search: a row of a batch never meets another.


# %% exercise="14.draw"
def draw(logits_NV: Tensor, temperature_N: Tensor, keys_N3: Tensor) -> Tensor:
    """A token for every row, which depends on that row's logits, temperature and key alone.

    The uniform numbers of a row are `np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, k, i])).random(V)`.

    Args:
        logits_NV: [N, V]; minus infinity where a token is forbidden. N may be 0.
        temperature_N: [N], 0 or more; at 0 the token with the largest logit is taken, without noise.
        keys_N3: [N, 3] int64: seed, continuation k, step i.

    Returns ids [N] int64: the largest of logits / temperature + Gumbel noise, or −1 for a row that holds NaN.
    """
    ### BEGIN SOLUTION
    ids_N = torch.empty(len(logits_NV), dtype=torch.int64)
    for n, (seed, k, i) in enumerate(keys_N3.tolist()):
        score_V = logits_NV[n].double()
        if temperature_N[n] > 0:
            noise = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, k, i]))
            gumbel_V = -(-torch.from_numpy(noise.random(len(score_V))).log()).log()
            score_V = score_V / temperature_N[n] + gumbel_V
        ids_N[n] = -1 if score_V.isnan().any() else score_V.argmax()
    return ids_N
    ### END SOLUTION


# %% check="14.draw"
draw = check("14.draw", draw)

# %% [markdown]
# One request, seed 7, the first eight steps of two continuations, over ten equally likely tokens; then the same, with
# the rows in another order:

# %% tags=["nbval-check-output"]
keys = torch.tensor([[7, k, i] for k in (0, 1) for i in range(8)])
ids = draw(torch.zeros(16, 10), torch.ones(16), keys)
print("k = 0:", ids[:8].tolist(), " k = 1:", ids[8:].tolist())
order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
print("the same in another order:", torch.equal(draw(torch.zeros(16, 10), torch.ones(16), keys[order]), ids[order]))

# %% [markdown]
# Does it draw from the right distribution? Real logits, those of the model after a beginning, and 3,000 seeds:

# %%
start = tokenizer.encode("The value of the ", add_special_tokens=False)
with torch.no_grad():
    logits_V = model(torch.tensor([start])).logits[0, -1].float()
many = torch.tensor([[s, 0, 0] for s in range(3000)])
ids = draw(logits_V.expand(3000, -1), torch.ones(3000), many)
likely = logits_V.softmax(-1).topk(12)
found = [(ids == id).float().mean().item() for id in likely.indices]
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 2.6))
    axis.bar(range(12), 100 * likely.values, color=style.GREY, label="softmax")
    spread = [196 * math.sqrt(p * (1 - p) / 3000) for p in likely.values.tolist()]
    axis.errorbar(range(12), [100 * f for f in found], spread, fmt="o", color=style.PALETTE[0], label="drawn, 95 %")
    axis.set_xticks(range(12), [repr(tokenizer.decode([id])) for id in likely.indices.tolist()], rotation=40)
    axis.set(ylabel="share (%)")
    axis.legend()
told = ", ".join(f"{100 * f:.1f} for {100 * p:.1f}" for f, p in zip(found, likely.values.tolist(), strict=True))
fig.alt = f"Shares of the twelve likeliest tokens, drawn for softmax, in per cent: {told}."
display(fig)

# %% [markdown]
# The bars are what the softmax says, the dots what was drawn.

# %% [markdown]
# Now the other way: a sampler with one generator for the batch. A request in row 3 draws once in a batch of eight, and
# once after somebody in front of it has left. How often does it get the same token, from these logits?

# %%
p_same = predict("14.same", "One generator for the batch: the same token in other company?", 0, 100, "%")


# %%
def together(rows, batch_seed):
    """Tokens of a batch that shares one generator."""
    noise = torch.rand(rows, len(logits_V), generator=torch.Generator().manual_seed(batch_seed)).double()
    return (logits_V - (-noise.log()).log()).argmax(-1)


trials = 200
shared = [together(8, s)[3].item() == together(7, s)[2].item() for s in range(trials)]
keys = torch.tensor([[s, 0, 0] for s in range(8)])
crowd, fewer = (draw(logits_V.expand(n, -1), torch.ones(n), keys[-n:]) for n in (8, 7))
p_same.against(100 * sum(shared) / trials)
print("with a key of its own:", f"{100 * (crowd[-7:] == fewer).float().mean():.0f} %")

# %% [markdown]
# With one generator, company decides.

# %% [markdown]
# What is left of agreement is chance: two draws from one distribution are sometimes equal.

# %% [markdown]
# ### Eight neighbours
#
# Now the promise itself, at the real server. An answer is the same in any company, or it is a lottery.

# %% [markdown]
# Eight people ask, on text of four kinds: four want the likeliest
# tokens, four draw with a seed. First each alone, one after the other.

# %%
DOMAINS = list(texts.validation)
STARTS = ["\n".join(texts.validation[domain])[at : at + 50] for at in (0, 2000) for domain in DOMAINS]
NEIGHBOURS = [
    {
        "prompt": start,
        "max_tokens": 48 if gpu else 16,
        "temperature": n % 2,
        "seed": n,
        "extra_body": {"ignore_eos": True},
    }
    for n, start in enumerate(STARTS)
]


def ask(number):
    """One neighbour's answer, and when its pieces came."""
    pieces, moments = [], []
    for part in client.completions.create(model=NAME, **NEIGHBOURS[number], stream=True):
        pieces.append(part.choices[0].text)
        moments.append(time.perf_counter())
    return "".join(pieces), moments


alone = [ask(number)[0] for number in range(8)]
print(*(f"{text[:40]!r} …" for text in alone[:2]), sep="\n")

# %% [markdown]
# The oracle for the four who want the likeliest: transformers' `generate`, which shares no code with us.

# %%
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
hf = transformers.AutoModelForCausalLM.from_pretrained(trained.folder, dtype=torch.float32).eval()
same = 0
for number in range(0, 8, 2):
    prompt = torch.tensor([tokenizer.encode(STARTS[number])])
    wanted = {"max_new_tokens": NEIGHBOURS[number]["max_tokens"], "min_new_tokens": NEIGHBOURS[number]["max_tokens"]}
    ids = hf.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **wanted)
    same += tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True) == alone[number]
print(f"transformers' generate writes the same text for {same} of 4")

# %% [markdown]
# Then all at once, and while they read, people turn up who should not. One of them has found the token that our engine
# stumbles over: we have made its embedding NaN, as a broken weight or an overflow would.

# %%
ODD = {"model": NAME, "prompt": "a", "max_tokens": 4}
BAD = {
    "NaN in the logits": json.dumps({**ODD, "prompt": [7, POISON, 8]}).encode(),
    "empty body": b"",
    "half of a JSON": b'{"model": ',
    "not UTF-8": b"\xff\xfe\x00",
    "max_tokens is 0": json.dumps({**ODD, "max_tokens": 0}).encode(),
    "max_tokens is a billion": json.dumps({**ODD, "max_tokens": 10**9}).encode(),
    "temperature is a list": json.dumps({**ODD, "temperature": [1]}).encode(),
    "a prompt of 50,000 tokens": json.dumps({**ODD, "prompt": [7] * 50_000}).encode(),
    "a token beyond the vocabulary": json.dumps({**ODD, "prompt": [10**7]}).encode(),
}
p_bad = predict("14.bad", f"Of these {len(BAD)}: how many are answered 500 or more?", 0, len(BAD), "requests", step=1)


# %%
def trouble():
    """The status that each of them gets, and when; three readers come and leave in between."""
    found = {}
    for number, (name, body) in enumerate(BAD.items()):
        told = httpx.post(
            f"{URL}/v1/completions", content=body, timeout=120, headers={"content-type": "application/json"}
        )
        found[name] = told.status_code, time.perf_counter(), told.json()["error"]["message"]
        if number % 3 == 0:
            with httpx.stream("POST", f"{URL}/v1/completions", json=LONG, timeout=120) as response:
                next(response.iter_raw())
    return found


with ThreadPoolExecutor(9) as pool:
    asked, began = [pool.submit(ask, number) for number in range(8)], time.perf_counter()
    answers = pool.submit(trouble).result()
    company = [one.result() for one in asked]
p_bad.against(sum(status >= 500 for status, *_ in answers.values()))
changed = sum(text != before for (text, _), before in zip(company, alone, strict=True))

# %% [markdown]
# Eight were at fault themselves, and one met a fault of ours: that is what the first digit says.

# %% [markdown]
# Each of them gets a reply that says what was wrong:

# %%
rows = [f"| {name} | {status} | {words[:90].replace('|', '/')} |" for name, (status, _, words) in answers.items()]
display(Markdown("\n".join(["| who | status | what it is told |", "|---|--:|---|", *rows])))

# %% [markdown]
# And the eight? Each dot is a piece of an answer, each line somebody who should not have come.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 2.6))
    for number, (_, moments) in enumerate(company):
        color = style.PALETTE[number % 2]
        axis.plot([1000 * (at - began) for at in moments], [number + 1] * len(moments), ".", color=color, markersize=4)
    for status, at, _ in answers.values():
        axis.axvline(1000 * (at - began), color=style.LIT if status >= 500 else style.GREY, linewidth=1)
    axis.set(xlabel="time (ms)", ylabel="neighbour", yticks=range(1, 9))
fig.alt = f"Pieces of eight answers over time, {len(answers)} bad requests between them; {changed} answers changed."
display(fig)
print(f"answers that changed: {changed} of 8 · blocks still held: {held()}")

# %% [markdown]
# The NaN stayed in its own row, its blocks were forgotten, so that nobody finds them by a common prefix, and its
# request alone ended with an error. (Our server computes in float32. In 16 bits a matrix product may be rounded
# otherwise for eight rows than for one, and where two tokens are as good as equally likely that decides.)

# %% [markdown]
# We could think of nine. **Schemathesis** reads `/openapi.json` and thinks of more: values that fit the schema and
# values that nearly do.

# %%
if find_spec("schemathesis"):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded

    replies, schema = {}, schemathesis.openapi.from_url(f"{URL}/openapi.json")
    how = settings(max_examples=25 if gpu else 2, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    for operation in schema.get_all_operations():
        made = operation.ok()

        def probe(case):
            status = case.call(timeout=120).status_code
            replies.setdefault(status, []).append(status)

        how(seeded(seed)(given(case=made.as_strategy())(probe)))()
    print(
        {status: len(found) for status, found in sorted(replies.items())},
        "· 500 or more:",
        sum(map(len, (found for status, found in replies.items() if status >= 500))),
    )
else:
    print("no schemathesis here: pip install schemathesis")

# %% [markdown]
# ## 6 · Under load

# %% [markdown]
# How many people can it serve? The usual way to find out is a loop: some clients, each of which asks again when its
# last answer is there (a **closed** loop). It measures the capacity well, and waiting badly: where the server is slow,
# the clients ask less. People do not. They arrive when they like (an **open** loop), so a load generator must send by
# the clock (Schroeder et al. 2006).
#

# %% [markdown]
# Here is one that is honest, and quick, since it shares the machine with the server: a socket for each request, and no
# library.


# %%
async def one(prompt, length):
    """One streamed request: its status, seconds to the first token, and seconds in all."""
    asked = {"model": NAME, "prompt": prompt, "max_tokens": length, "stream": True, "ignore_eos": True, "seed": 1}
    body, (host, port) = json.dumps(asked).encode(), URL.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began, first = time.perf_counter(), math.nan
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = int((await reader.readline()).split()[1])
    while part := await reader.read(1 << 16):
        if math.isnan(first) and b"data: {" in part:
            first = time.perf_counter() - began
    writer.close()
    return status, first, time.perf_counter() - began


SIZES = ((64, 512), (32, 128)) if gpu else ((16, 48), (8, 24))


def people():
    """Prompts and lengths, no two alike, so that no prompt is found in the cache."""
    lots = random.Random(seed)
    while True:
        yield lots.choices(range(10, POISON), k=lots.randint(*SIZES[0])), lots.randint(*SIZES[1])


CROWD = people()

# %% [markdown]
# First the closed loop, with as many clients as the engine runs at once: that is its capacity.


# %%
async def closed_loop(clients, number):
    """Clients that wait for their answers: what came of those that were accepted, and how many those were a second."""
    began, waiting = time.perf_counter(), islice(CROWD, number)

    async def client():
        return [await one(*request) for request in waiting]

    found = await asyncio.gather(*(client() for _ in range(clients)))
    accepted = [result for part in found for result in part if result[0] == 200]
    return accepted, len(accepted) / (time.perf_counter() - began)


async def open_loop(rate, number):
    """Requests by the clock, in a Poisson process of this rate, whatever the server does."""
    clock, at, tasks, began = random.Random(seed), 0.0, [], time.perf_counter()
    for request in islice(CROWD, number):
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(*request)))
        at += clock.expovariate(rate)
    return await asyncio.gather(*tasks)


elsewhere(closed_loop(TOGETHER, TOGETHER))  # warm
before = scrape()
closed, rate = elsewhere(closed_loop(TOGETHER, 6 * TOGETHER if gpu else 2 * TOGETHER))
print(f"capacity on {where}: {rate:.1f} requests/s, about {rate * sum(SIZES[1]) / 2:,.0f} tokens/s")

# %% [markdown]
# Then the open loop, at several times that rate: at the most twice on a GPU, three times on a CPU, where a few requests
# have to do. At the most, what share of the requests is turned away (429)?

# %%
p_away = predict("14.away", "The highest load: requests that are turned away?", 0, 100, "%")

# %%
OFFERED = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 2.0) if gpu else (0.5, 1.0, 3.0)
swept = {}
for load in OFFERED:
    number = min(1000, max(40, int(4 * load * rate))) if gpu else 54 if load > 1 else 10
    swept[load] = elsewhere(open_loop(load * rate, number))
after = scrape()
ACCEPTED = {load: [found for found in results if found[0] == 200] for load, results in swept.items()}
away = {load: 100 * (1 - len(ACCEPTED[load]) / len(swept[load])) for load in swept}
p_away.against(away[OFFERED[-1]])


# %% [markdown]
# Statuses other than 200 and 429 should not appear; a 429 comes with a `Retry-After`.

# %% [markdown]
# If nobody could wait, half of twice the capacity would have to go, and two thirds of three times. It is less as long
# as the queue still fills.


# %%
def share_below(results, q):
    """A quantile of the time to the first token, in seconds."""
    return float(np.quantile([first for _, first, _ in results], q))


with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 3.0))
    for at, q in enumerate((0.5, 0.9, 0.99) if gpu else (0.5, 0.9)):
        slow = [1000 * share_below(ACCEPTED[load], q) for load in OFFERED]
        axes[0].plot(OFFERED, slow, "o-", color=style.PALETTE[at], label=f"open loop, p{100 * q:.0f}")
        axes[0].plot(
            1.0, 1000 * share_below(closed, q), "x", color=style.PALETTE[at], label=f"closed loop, p{100 * q:.0f}"
        )
    axes[1].plot(OFFERED, [away[load] for load in OFFERED], "o-", color=style.PALETTE[0])
    axes[0].set(yscale="log", xlabel="offered load (capacity = 1)", ylabel="time to first token (ms)")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[1].set(xlabel="offered load (capacity = 1)", ylabel="turned away (%)")
    axes[0].legend(loc="upper left", bbox_to_anchor=(-0.1, -0.2), ncols=2)
told = ", ".join(f"{load}: {1000 * share_below(ACCEPTED[load], 0.9):.0f} ms, {away[load]:.0f} %" for load in OFFERED)
fig.alt = f"90th percentile of the time to first token, and share turned away, by offered load: {told}."
display(fig)
print("statuses:", sorted({status for results in swept.values() for status, *_ in results}))

# %% [markdown]
# The crosses are what the closed loop saw at full speed. In words, from this run:

# %%
light = share_below(ACCEPTED[OFFERED[0]], 0.9)
knee = next((load for load in OFFERED if share_below(ACCEPTED[load], 0.9) > 2 * light), None)
at_knee = f"first at {knee} of the capacity" if knee else "at no load that we tried"
said = (
    f"The 90th percentile is {1000 * light:.0f} ms at {OFFERED[0]} of the capacity, and more than twice that {at_knee}."
)
waited = 1000 * share_below(ACCEPTED[OFFERED[-1]], 0.9)
display(
    Markdown(
        f"{said} At {OFFERED[-1]}, those accepted waited {waited:.0f} ms, and {away[OFFERED[-1]]:.0f} % were sent away."
    )
)

# %% [markdown]
# On a CPU these are a few requests at each load, and your machine does other things as well: look at the shape, not at
# the digits.

# %% [markdown]
# ## 7 · How slow is slow?
#
# A mean tells nothing about the one in a hundred who waits. Percentiles do, and a server that keeps every latency to
# sort them would drown. So Prometheus counts, in **buckets**: for each edge, how many latencies were at most that
# (`le`). From these counts `histogram_quantile` estimates a percentile, as if observations were spread evenly inside a
# bucket.


# %% exercise="14.quantile"
def quantile(q: float, edges, counts) -> tuple[float, float, float]:
    """A quantile from a Prometheus histogram, and how wrong it can be.

    Args:
        q: the share of observations below, above 0, up to 1.
        edges: ascending upper edges of the buckets, all positive; the last is infinite.
        counts: of each, the number of observations up to its edge: cumulative, the last one is all of them.

    Returns the estimate, and the lower and upper edge of the bucket that the quantile lies in. With rank = q · all,
    that is the first bucket whose count reaches the rank, and the estimate lies in it as far as the rank lies between
    the counts at its two edges. The first bucket begins at 0. In the infinite one the estimate is its lower edge.
    Three NaN if nothing was observed. Raises ValueError for a q outside.
    """
    ### BEGIN SOLUTION
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}; give a share above 0, up to 1")
    if counts[-1] == 0:
        return math.nan, math.nan, math.nan
    rank = q * counts[-1]
    at = next(i for i, count in enumerate(counts) if count >= rank)
    lower, below = (edges[at - 1], counts[at - 1]) if at else (0.0, 0)
    if edges[at] == math.inf:
        return lower, lower, math.inf
    share = (rank - below) / (counts[at] - below)
    return lower + share * (edges[at] - lower), lower, edges[at]
    ### END SOLUTION


# %% check="14.quantile"
quantile = check("14.quantile", quantile)

# %% [markdown]
# Ten observations, in buckets up to 1, 2, 4 and more seconds:

# %% tags=["nbval-check-output"]
EDGES, COUNTS = [1.0, 2.0, 4.0, math.inf], [2, 4, 9, 10]
for q in (0.1, 0.5, 0.9, 0.99):
    about, low, high = quantile(q, EDGES, COUNTS)
    print(f"q = {q:<5} about {about:.2f} s, surely between {low} and {high} s")

# %% [markdown]
# How far off is it? The simulated server at 0.8 of its capacity, all its waits known, and the edges that many servers
# use. By how much does the estimate of p99 differ from the truth?

# %%
p_error = predict("14.error", "p99 from buckets, against the true one?", 0, 100, "%")

# %%
FIRST = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, math.inf]
waits = queues["endless queue"][LOADS.index(0.8)].ttft
qs = [0.01 * i for i in range(1, 100)]
upto = [sum(waits.at((n + 1) / len(waits)) <= edge for n in range(len(waits))) for edge in FIRST]
true, told = [waits.at(q) for q in qs], [quantile(q, FIRST, upto) for q in qs]
p_error.against(100 * abs(told[-1][0] / true[-1] - 1))
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.8))
    low, high = ([t[side] for t in told] for side in (1, 2))
    axis.fill_between(qs, low, high, color=style.GREY, alpha=0.5, label="the bucket")
    axis.plot(qs, true, color=style.INK, label="true")
    axis.plot(qs, [t[0] for t in told], "--", color=style.PALETTE[1], label="estimated")
    axis.set(yscale="log", xlabel="share of requests", ylabel="time to first token (s)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"True and estimated quantiles; p99 is {true[-1]:.3f} s, estimated {told[-1][0]:.3f} s."
display(fig)

# %% [markdown]
# Next to an edge, where this p99 happens to lie, the estimate is good; in the middle of a bucket the two part. All that
# is really known is the grey band. A dashboard draws the orange line to four digits.

# %% [markdown]
# ### The real one
#
# The server has kept such a histogram of all that we sent in section 6, and our load generator has kept the times. (The
# server starts its clock when it has read the request, the generator when it asks.)

# %%
FAMILY = "labkit_time_to_first_token_seconds_bucket"
counted = {float(key[1]): after[key] - before.get(key, 0) for key in after if key[0] == FAMILY}
edges, counts = sorted(counted), [int(counted[edge]) for edge in sorted(counted)]
ours = sorted([first for _, first, _ in closed] + [first for found in ACCEPTED.values() for _, first, _ in found])
print(f"{counts[-1]} in the histogram, {len(ours)} of ours")

# %% [markdown]
# The picture shows the buckets as they were filled, and all percentiles. By how much do the two differ at the 90th?

# %%
p_p90 = predict("14.p90", "p90 from the server's buckets, against the load generator's?", 0, 100, "%")

# %%
told = [quantile(q, edges, counts) for q in qs]
mine = [float(np.quantile(ours, q)) for q in qs]
p_p90.against(100 * abs(told[89][0] / mine[89] - 1))
with style.use():
    fig, axes = picture.new(columns=2, size=(9.8, 2.8))
    each = np.diff([0, *counts])
    axes[0].bar(range(len(edges)), each, color=style.PALETTE[0])
    axes[0].set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges], rotation=60)
    axes[0].set(xlabel="bucket: up to so many seconds", ylabel="requests")
    low, high = ([min(t[side], 100) for t in told] for side in (1, 2))
    axes[1].fill_between(qs, low, high, color=style.GREY, alpha=0.5, label="the bucket")
    axes[1].plot(qs, mine, color=style.INK, label="load generator")
    axes[1].plot(qs, [t[0] for t in told], "--", color=style.PALETTE[1], label="from buckets")
    axes[1].set(yscale="log", xlabel="share of requests", ylabel="time to first token (s)")
    axes[1].legend()
fig.alt = (
    f"Time to first token: p90 is {told[89][0]:.3f} s from the buckets and {mine[89]:.3f} s by the load generator."
)
display(fig)

# %% [markdown]
# ### Whom the load reaches
#
# Latency is what people see. Behind it a mixture of experts has a load of its own: which expert gets how many tokens.
# Our server counts them, layer by layer. We send it code, then English, and look at what was added each time. An even
# router would give every expert the same, 1 in the picture.

# %%
p_busy = predict("14.busy", "On code: tokens of the busiest expert, of an even share?", 1, 16, "×", step=0.1)


# %%
def experts_on(domain):
    """Tokens of each layer and expert while the server reads text of one kind, in even shares."""
    start, ids = scrape(), tokenizer.encode("\n".join(texts.validation[domain]), add_special_tokens=False)
    for at in range(0, 800, 200):
        client.completions.create(model=NAME, prompt=ids[at : at + 200], max_tokens=1, temperature=0)
    end = scrape()
    new = {key[1:]: end[key] - start.get(key, 0) for key in end if key[0] == "labkit_expert_tokens_total"}
    experts, layers = (sorted({int(key[side]) for key in new}) for side in (0, 1))
    tokens_LE = np.array([[new[str(expert), str(layer)] for expert in experts] for layer in layers])
    return tokens_LE / tokens_LE.mean(axis=1, keepdims=True)


loads = {domain: experts_on(domain) for domain in ("code", "english")}
p_busy.against(loads["code"].max())

# %% [markdown]
# All layers and experts, code on the left. A column has no meaning by itself: expert 3 of one layer and expert 3 of the
# next share only their number.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 2.6))
    top = max(load.max() for load in loads.values())
    for axis, (domain, load_LE) in zip(axes, loads.items(), strict=True):
        image = axis.imshow(load_LE, cmap=style.SEQUENTIAL, vmin=0, vmax=top, aspect="auto")
        axis.set(title=domain, xlabel="expert", ylabel="sparse layer")
        axis.grid(False)
    fig.colorbar(image, ax=axes, label="tokens (even share = 1)")
told = ", ".join(f"{domain}: busiest {load.max():.1f}, idlest {load.min():.2f}" for domain, load in loads.items())
fig.alt = f"Tokens by layer and expert, in even shares. {told}."
display(fig)

# %% [markdown]
# The two are not alike: what people ask decides which experts work. On several GPUs that is the load of machines (lab
# 16).

# %% [markdown]
# ## 8 · When the engine dies
#
# Memory runs out, a driver fails, somebody stops the wrong process.

# %% [markdown]
# The server is another process than the engine, so it lives. It starts a new engine, and goes on with every answer
# where it stood: it knows the tokens that were written, and the noise of the next ones is a function of the seed. We
# kill the engine with signal 9 in the middle of an answer that is *drawn*, at temperature 1.

# %%
DRAWN = {**NEIGHBOURS[1], "max_tokens": MOST, "stream": True}
undisturbed = "".join(part.choices[0].text for part in client.completions.create(model=NAME, **DRAWN))
p_gap = predict("14.gap", "The engine is killed in mid-answer: for how long does the reader see nothing?", 0, 60, "s")

# %% [markdown]
# The answer is read piece by piece; after ten pieces the engine's process is killed.

# %%
pieces, moments, killed = [], [], 0.0
for part in client.completions.create(model=NAME, **DRAWN):
    pieces.append(part.choices[0].text)
    moments.append(time.perf_counter())
    if len(moments) == 10:
        os.kill(server.worker(), signal.SIGKILL)
        killed = time.perf_counter()
gap = max(b - a for a, b in zip(moments, moments[1:], strict=False))
p_gap.against(gap)
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 2.0))
    axis.step([at - moments[0] for at in moments], range(1, len(moments) + 1), where="post", color=style.PALETTE[0])
    axis.axvline(killed - moments[0], color=style.LIT, label="killed")
    axis.set(xlabel="time since the first piece (s)", ylabel="pieces so far")
    axis.legend()
fig.alt = f"Pieces of an answer over time; the engine was killed after ten, and {gap:.1f} s later it went on."
display(fig)
print("restarts:", int(scrape()["labkit_backend_restarts_total",]))

# %% [markdown]
# The reader's connection never broke; the server kept it open and waited.

# %% [markdown]
# Was a token lost, or sent twice? Is it the same answer?

# %% tags=["nbval-check-output"]
print("the same answer:", "".join(pieces) == undisturbed)

# %% [markdown]
# And those who were in flight beside it would say the same.

# %% [markdown]
# Most of the gap is a new process that loads the model. A second replica would hide it: lab 15.

# %% [markdown]
# ## 9 · Out of the house
#
# A model that only our own server can run is worth little.

# %% [markdown]
# Two ways out: a **Hugging Face folder**, which transformers and other servers load (which of them as it is, we shall
# see), and an **ONNX** file, which ONNX Runtime runs without torch, cache and experts in the
# graph. By how much do logits differ at most between our model and ONNX Runtime, on 200 tokens of real text?

# %%
p_onnx = predict("14.onnx", "Largest difference of a logit, in millionths?", 0, 1000, "· 10⁻⁶")

# %%
from labkit.serve.export import to_hf

scratch = tempfile.TemporaryDirectory(prefix="lab14-")
told = to_hf(model, Path(scratch.name) / "folder", tokenizer=tokenizer, check=False)
hf = transformers.AutoModelForCausalLM.from_pretrained(Path(scratch.name) / "folder", dtype=torch.float32).eval()
ids = torch.tensor([tokenizer.encode(ENGLISH, add_special_tokens=False)[:200]])
with torch.no_grad():
    ours_SV, logits = model(ids).logits[0], {"transformers": hf(ids).logits[0]}
if find_spec("onnx") and find_spec("onnxruntime"):
    from labkit.serve.export import OnnxModel, to_onnx

    report = to_onnx(model, Path(scratch.name) / "model.onnx", check=False)
    found, _ = OnnxModel(Path(scratch.name) / "model.onnx").logits(ids.numpy())
    logits["ONNX Runtime"] = torch.from_numpy(found)[0]
    print(f"{report.nbytes / 1e6:.0f} MB, {report.nodes:,} nodes, opset {report.opset}")
else:
    print("no ONNX here: pip install onnx onnxruntime; the comparison goes on with transformers alone")
apart = {name: (theirs_SV - ours_SV).abs().amax(-1) for name, theirs_SV in logits.items()}
p_onnx.against(1e6 * list(apart.values())[-1].max().item())

# %% [markdown]
# (Written in float32, as the notebook holds it.)

# %% [markdown]
# Position by position. The dashed line is what we allow, a ten-thousandth:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.0, 2.4))
    for at, (name, worst_S) in enumerate(apart.items()):
        axis.plot(worst_S.clamp_min(1e-7), ".", color=style.PALETTE[at], label=name)
    axis.axhline(1e-4, color=style.INK, linestyle="--", linewidth=1)
    axis.set(yscale="log", xlabel="position", ylabel="largest difference\nof a logit", ylim=(1e-7, 1e-3))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    "Largest difference of a logit: " + ", ".join(f"{name} {worst.max():.1e}" for name, worst in apart.items()) + "."
)
display(fig)
same = {name: int((theirs.argmax(-1) == ours_SV.argmax(-1)).sum()) for name, theirs in logits.items()}
print("positions of 200 with the same best token:", same)

# %% [markdown]
# Differences of that size are the order of additions. They would decide between two tokens only if these were as good
# as equally likely.

# %% [markdown]
# What stops other servers is seldom a number. It is a name in `config.json`, a tokenizer file, a head that is looked
# for under another name, an end-of-sequence token that is said twice, differently. `to_hf` looks at that:

# %%
print(told.check)

# %% [markdown]
# ## 10 · The clinic
#
# Five servers were brought in. Each answers well on a quiet day, and each has a single fault, one of these:
#
# - **an assertion** where a 4xx belongs;
# - **a batch that dies** with one of its requests;
# - **a queue without an end**;
# - **blocks that stay held** when a reader leaves;
# - **keys compared with `==`**.

# %% [markdown]
# All lived through the same two minutes, and so did a healthy twin: about four visitors a second, some with prompts
# that are too long, some who leave, now and then a NaN, and from second 50 to 62 a rush. (They are toys, in
# `labkit.course.labs._14_clinic`. Diagnose first, read later.) At how many of the five do fewer than nine in ten of the
# twin's visitors get their answer?

# %%
p_clinic = predict(
    "14.clinic", "In how many of five does the number of answers give the fault away?", 0, 5, "servers", step=1
)

# %%
from labkit.course.labs._14_clinic import chart

ward = {letter: chart(letter, seed) for letter in ("A", "B", "C", "D", "E", "healthy")}
share = {letter: sum(found.answered) / sum(ward["healthy"].answered) for letter, found in ward.items()}
p_clinic.against(float(sum(part < 0.9 for part in share.values())))
print("answers, of the healthy twin's:", ", ".join(f"{letter} {part:.0%}" for letter, part in share.items()))

# %% [markdown]
# One number is no diagnosis. A chart has six panels; orange is the patient, dark the twin. Where only orange is to be
# seen, the two lie on each other.


# %%
def show_chart(letter):
    """The six panels of one patient."""
    with style.use():
        fig, axes = picture.new(columns=3, rows=2, size=(10.6, 4.6))
        for who, color in (("healthy", style.INK), (letter, style.LIT)):
            seen, seconds = ward[who], range(120)
            axes[0].plot(seconds, np.convolve(seen.answered, np.ones(5) / 5, "same"), color=color, label=who)
            axes[1].plot(seconds, np.cumsum(seen.refused), color=color)
            axes[2].plot(seconds, seen.failed, color=color)
            axes[3].plot(seconds, seen.waiting, color=color)
            axes[4].plot(seconds, seen.free, color=color)
            axes[5].plot(range(6), seen.compared, "o-", color=color)
        titles = "answers a second", "4xx so far", "5xx, each second", "waiting", "free blocks"
        for axis, title in zip(axes, titles, strict=False):
            axis.set(title=title, xlabel="second", ylim=(0, None))
        axes[2].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[5].set(title="letters compared of a wrong key", xlabel="right leading letters", ylim=(0, 7))
        axes[0].legend()
    fig.alt = f"Chart of server {letter} beside its twin: answers, 4xx, 5xx, who waits, free blocks, key comparison."
    return fig


# %% [markdown]
# **Server A.** Its owner writes: "It is quick, and we restart it at night, as one does."

# %%
display(show_chart("A"))

# %% [markdown]
# **Server B.** Its owner writes: "It checks everything that comes in."

# %%
display(show_chart("B"))

# %% [markdown]
# **Server C.** Its owner writes: "We never turn anybody away."

# %%
display(show_chart("C"))

# %% [markdown]
# **Server D.** Its owner writes: "NaN is an error, and we report it."

# %%
display(show_chart("D"))

# %% [markdown]
# **Server E.** Its owner writes: "No complaints at all."

# %%
display(show_chart("E"))

# %% [markdown]
# Your diagnoses, please: each fault occurs once. A wrong one is answered with where that fault would have shown, and
# where to look instead.

# %%
from labkit.course.labs._14_diagnoses import clinic

clinic()

# %% [markdown]
# ## 11 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply. (The cell closes the server as well.)

# %%
recap("14")
server.close()

# %% [markdown]
# ## Further reading
#
# - WHATWG, *HTML*, section 9.2, *Server-sent events*: html.spec.whatwg.org.
# - Kwon et al. 2023, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, arXiv
#   2309.06180: the engine that most servers took after.
# - Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3* (SC11): Philox and its relatives.
# - Schroeder, Wierman and Harchol-Balter 2006, *Open Versus Closed: A Cautionary Tale* (NSDI): why a load generator
#   must not wait for answers.
# - Dean and Barroso 2013, *The Tail at Scale*, Communications of the ACM 56(2).
# - Prometheus documentation, *Histograms and summaries*, and the source of `histogram_quantile`.
