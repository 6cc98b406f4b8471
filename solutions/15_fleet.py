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
# # 15 · A fleet: replicas that die, and requests that do not
#
# One server is one accident away from none. So there are several, and with them come new questions: who gets a request,
# what happens to it when that replica dies, how a new version of the model comes in without anybody noticing, and who
# is woken when something is wrong. In this lab you write the five small functions on which such a fleet stands, start a
# real one of two replicas, and then hurt it: **every request is counted**.
#
# After this lab you can
#
# - choose a replica with two looks instead of a thousand, and say what theory promises for it;
# - send a prompt back to the replica that has read its beginning, without overloading it;
# - say what an object store's ETag tells of a model's shard, and what it does not;
# - refuse every name in a manifest that leads out of its folder;
# - write an alert that wakes nobody for nothing;
# - kill, corrupt, fill, slow down and roll back a fleet, and say before each what it will cost.
#
# It takes about two and a half hours.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** The fleet runs on the CPU
# with either profile, since what is measured here is the fleet, not the model; with `gpu` more visitors come.

# %% tags=["setup"]
import hashlib
import math
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from IPython.display import Markdown, display

from labkit import check, claim, hint, predict, recap, reveal
from labkit.core import runtime
from labkit.course.fleeted import Fleeted, missing
from labkit.course.mine import my_model
from labkit.serve.fleet.deployed import deployed
from labkit.serve.fleet.drill import Load, in_turn
from labkit.serve.fleet.policies import Policy, policy
from labkit.serve.fleet.queueing import mean_seconds, share_as_long
from labkit.serve.fleet.simulate import Dies, Router, Slow, simulate_fleet
from labkit.serve.fleet.simulated import Call, Engine
from labkit.serve.fleet.traffic import traffic
from labkit.serve.registry import SmallDisk, open_registry
from labkit.show import picture, style
from labkit.train import documents

runtime.seed_all(seed)
many = 3 if runtime.resolve_profile(profile) == "gpu" else 1

# %% [markdown]
# The model is your own from lab 07 if you have trained one, else the one that comes with the course. It goes into a
# **registry**: versions of a model, in a folder here, in an S3 store elsewhere (`labkit registry push --store s3://…`
# does the same from the command line). The alias `prod` names the version that is served.

# %% tags=["nbval-check-output"]
scratch = tempfile.TemporaryDirectory(prefix="lab15-")
FOLDER, NAME = Path(scratch.name), "four-domains"
trained = my_model()
registry = open_registry(str(FOLDER / "store"))
first = registry.push(NAME, trained.folder, note="as trained")
registry.alias(NAME, "prod", first.id)
print(registry.aliases(NAME))

# %% [markdown]
# Two replicas of it start now, on Ray Serve, in processes of their own; they load while you read on. (`Fleeted` is a
# thin cover over `labkit.serve.fleet`, whose command line is `labkit fleet serve`.)

# %%
WHERE = f"{NAME}@prod", {"cache": str(FOLDER / "cache"), "log": FOLDER / "ray.log"}
if absent := missing():
    fleet = None
    print(f"No fleet here: do %pip install {' '.join(absent)} and begin again. Until then the cells that need the")
    print("real one stay empty, and say so; all exercises, simulations and the registry work.")
else:
    fleet = Fleeted(str(FOLDER / "store"), WHERE[0], **WHERE[1], surge=2, max_sequences=4)
print(trained)

# %% [markdown]
# ## 1 · Who gets it
#
# The oldest rule is **round robin**: each replica in turn. It is fair to replicas, and blind: it gives the next request
# to a replica that has just got a long one. **Least loaded** looks at all replicas for every request. With a thousand
# replicas and ten routers that is a lot of looking, and old news.

# %% [markdown]
# Here are ten requests, some of them long, with two replicas that answer one at a time. Numbers are the order of
# arrival.

# %%
LENGTHS = (1, 6, 1, 5, 1, 1, 2, 6, 1, 1)
with style.use():
    fig, axes = picture.new(rows=2, size=(8.4, 2.8))
    for axis, rule in zip(axes, ("round robin", "least loaded"), strict=True):
        free, waited = [0.0, 0.0], 0.0
        for at, length in enumerate(LENGTHS):
            who = at % 2 if rule == "round robin" else free.index(min(free))
            start = max(free[who], 0.8 * at)
            waited, free[who] = waited + start - 0.8 * at, start + length
            axis.barh(1 - who, length, left=start, color=style.PALETTE[at % 6], edgecolor="white")
            axis.text(start + length / 2, 1 - who, at + 1, ha="center", va="center", color="white", fontsize=9)
        axis.set(title=f"{rule}: {waited:.1f} s of waiting", yticks=[0, 1], yticklabels=["b", "a"], xlim=(0, 22))
    axes[1].set(xlabel="time (s)")
fig.alt = "Ten requests on two replicas: round robin puts short ones behind long ones while the other replica is idle."
display(fig)

# %% [markdown]
# Round robin never looks up. Between it and looking at everybody lies a rule that looks like a trick: draw **two**
# replicas at random, and take the less loaded. Whoever writes it has to think of those that are not ready, too. (The
# random numbers are given to your function, so that its choice can be checked; places count from 0, as in a list.)


# %% exercise="15.choose_two"
def choose_two(load: list[int], ready: list[bool], u: float, v: float) -> int:
    """The less loaded of two different replicas that are ready.

    The first is number int(u · n) of the n that are ready, in their order; the second is number int(v · (n − 1)) of
    the others. The first is taken unless the second is less loaded. If one alone is ready, that is taken.

    Args:
        load: requests of each replica that wait or run. ready: whether its health check passes.
        u, v: two random numbers, 0 or more and below 1.

    Returns its place in `load`. Raises ValueError if none is ready.
    """
    ### BEGIN SOLUTION
    able = [at for at, fine in enumerate(ready) if fine]
    if not able:
        raise ValueError("no replica is ready")
    one = able.pop(int(u * len(able)))
    if not able:
        return one
    two = able[int(v * len(able))]
    return two if load[two] < load[one] else one
    ### END SOLUTION


# %% check="15.choose_two"
choose_two = check("15.choose_two", choose_two)

# %% [markdown]
# Six replicas, of which the first has a long queue and the third is ill. Who is chosen how often?

# %% tags=["nbval-check-output"]
draw, load, ready = random.Random(1), [9, 2, 0, 2, 1, 3], [True, True, False, True, True, True]
chosen = [choose_two(load, ready, draw.random(), draw.random()) for _ in range(6000)]
for at in range(6):
    print(f"replica {at}  load {load[at]}  {'ready' if ready[at] else 'ill  '}  {100 * chosen.count(at) / 6000:4.1f} %")

# %% [markdown]
# The busiest gets nothing: whoever is drawn beside it is less loaded. The idlest gets most, but not all, and that is
# the point: if ten routers look at the same moment, they do not all run to the same place.

# %% [markdown]
# What is a second look worth? Theory knows it exactly, for many servers that answer one request at a time: with one
# choice the share of queues with k requests or more is $\lambda^k$, with two it is $\lambda^{2^k-1}$, at load λ
# (Mitzenmacher 2001, section 3). Mean times from arrival to end, in mean times of service:

# %% tags=["nbval-check-output"]
print("load   random   two choices")
for busy in (0.5, 0.7, 0.9, 0.95, 0.99):
    print(f"{busy:.2f}  {mean_seconds(busy, 1):7.1f}  {mean_seconds(busy, 2):12.2f}")

# %% [markdown]
# That is a formula for infinitely many. We have a simulator of fleets, which draws arrivals and lengths and runs any
# policy, yours too. (Its small cases are tested against Erlang's formulas and the one above.) Take 200 replicas, 90 %
# busy, one request at a time each, and 20,000 requests. How long does the longest queue become with your two choices?

# %%
p_longest = predict("15.longest", "Two choices, 200 replicas, 90 % busy: the longest queue?", 1, 60, "requests", step=1)


# %% [markdown]
# A policy is an object that is asked for each request. This one asks you, with loads as the router sees them.


# %%
class Mine(Policy):
    """Your two choices, as the simulator and the fleet call a policy."""

    def choose(self, replicas, asked):
        load = [replica.queue + replica.running for replica in replicas]
        return choose_two(load, [replica.ready for replica in replicas], self._draw(), self._draw())


ONE = Engine(slots=1, prefill=0.0, decode=1e-3, cache=0)


def short_and_long(replicas, count, busy=0.9):
    """Poisson arrivals, exponential lengths: what the formulas are about."""
    draw, now, calls = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(busy * replicas)
        calls.append(Call(now, 1, max(1, round(1000 * draw.expovariate(1.0)))))
    return calls


mine = simulate_fleet(200, Mine(seed), short_and_long(200, 20_000), ONE)
p_longest.against(float(mine.longest + 1))  # those who wait, and the one that is answered

# %% [markdown]
# The same for fleets of every size, beside random choice, round robin, and the formula's own estimate: the length that
# fewer than one of n queues should reach.

# %%
SIZES = (10, 30, 100, 300, 1000)
longest = {
    name: [simulate_fleet(n, policy(name), short_and_long(n, 6000), ONE).longest + 1 for n in SIZES]
    for name in ("random", "round_robin", "power_of_two")
}
expected = [next(k for k in range(1, 99) if n * share_as_long(k, 0.9) < 1) for n in SIZES]
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.9))
    for at, (name, lengths) in enumerate(longest.items()):
        axis.plot(SIZES, lengths, "o-", color=style.PALETTE[at], label=name.replace("_", " "))
    axis.plot(SIZES, expected, "--", color=style.INK, label="two choices, formula")
    axis.set(xscale="log", xlabel="replicas", ylabel="longest queue (requests)", ylim=(0, None))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Longest queue by fleet size: " + "; ".join(f"{name} {found}" for name, found in longest.items()) + "."
display(fig)

# %% [markdown]
# The formula's line rises with the fleet, by a request or two, and the three curves fall: where a fleet is larger, each
# replica gets fewer of the 6,000 requests, six of them at a thousand replicas, and queues have no time to grow. Compare
# the curves with each other, then, and with the formula on the left only. There two choices lie a little above it: it
# is for infinitely many.

# %% [markdown]
# ## 2 · What a replica has read
#
# Requests are no coins that all look alike. Many begin with the same thousand tokens: a system prompt, a document, the
# conversation so far. A replica that has read them keeps the keys and values (lab 12), and begins at once. So a router
# that sends a prompt **back** saves what the engine would compute again. It needs a rule by which every router finds
# the same replica, without asking anybody, and which changes little when a replica comes or goes.

# %% [markdown]
# A hash does it. Each replica gets a *score* for this prefix, from its own name; the highest wins. That is rendezvous
# hashing (Thaler and Ravishankar 1998). And since one system prompt may be everybody's favourite, nobody gets more than
# his share, times some room (the bound of Mirrokni, Thorup and Zadimoghaddam 2018): who is full is passed over, and the
# next best score takes it, the same one each time.


# %% exercise="15.owner"
def owner(prefix: bytes, load: dict[str, int], room: float) -> str:
    """The replica whose cache should hold this prefix, among those with room.

    A replica has room if it has fewer requests than ⌈room · (all requests + this one) / replicas⌉. Of those, the one
    whose score is highest gets it: the SHA-256 digest of its name, a slash, and the prefix, compared as bytes.

    Args:
        prefix: the beginning of a prompt. load: requests of each replica by its name, in any order.
        room: how much more than its share a replica may have; 1 is none.

    Returns a name. Raises ValueError for a room below 1, and if there are no replicas.
    """
    ### BEGIN SOLUTION
    if not load or room < 1:
        raise ValueError(f"room is {room}, for {len(load)} replicas; give 1 or more, and a replica")
    most = math.ceil(room * (sum(load.values()) + 1) / len(load))
    free = [id for id in load if load[id] < most]
    return max(free, key=lambda id: hashlib.sha256(id.encode() + b"/" + prefix).digest())
    ### END SOLUTION


# %% check="15.owner"
owner = check("15.owner", owner)

# %% [markdown]
# Four system prompts, four replicas. Then `r1` gets busy, and then it is gone:

# %% tags=["nbval-check-output"]
idle = dict.fromkeys(("r0", "r1", "r2", "r3"), 0)
print(f"{'prompt':<12} idle  r1 busy  r1 gone")
for prompt in (b"translator", b"lawyer", b"poet", b"physician"):
    gone = {id: load for id, load in idle.items() if id != "r1"}
    print(f"{prompt.decode():<12} {owner(prompt, idle, 1.5)}    {owner(prompt, {**idle, 'r1': 9}, 1.5)}       ", end="")
    print(owner(prompt, gone, 1.5))

# %% [markdown]
# A simpler rule would be `hash(prefix) % replicas`. It is even, too. Now one of eight replicas dies, and every prefix
# that moves is read again by somebody. What share moves with the simpler rule?

# %%
p_moved = predict("15.moved", "hash % n, one of eight replicas dies: prefixes that move?", 0, 100, "%")

# %% [markdown]
# Six hundred prompts, owned before and after. With no bound on loads, so that only the hash decides.

# %%
PROMPTS = [f"prompt {n}".encode() for n in range(600)]


def simpler(prefix, load, room):
    names = sorted(load)
    return names[int.from_bytes(hashlib.sha256(prefix).digest(), "big") % len(names)]


def moved(rule, count):
    """Prefixes that another replica owns when the last of so many is gone, in percent."""
    before, after = (dict.fromkeys((f"r{n}" for n in range(many)), 0) for many in (count, count - 1))
    return 100 * sum(rule(each, before, 1e9) != rule(each, after, 1e9) for each in PROMPTS) / len(PROMPTS)


p_moved.against(moved(simpler, 8))

# %% [markdown]
# Those of the dead one have to move, one in eight. All others moved for nothing:

# %%
COUNTS = range(2, 17)
with style.use():
    fig, (axis,) = picture.new(size=(7.2, 2.6))
    axis.plot(COUNTS, [moved(simpler, n) for n in COUNTS], "o-", color=style.PALETTE[1], label="hash % n")
    axis.plot(COUNTS, [moved(owner, n) for n in COUNTS], "o-", color=style.PALETTE[0], label="yours")
    axis.plot(COUNTS, [100 / n for n in COUNTS], "--", color=style.INK, linewidth=1, label="those of the dead one")
    axis.set(xlabel="replicas, of which one dies", ylabel="prefixes that move (%)", ylim=(0, 100))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    f"Prefixes that move when one of n replicas dies; of eight: {moved(simpler, 8):.0f} % and {moved(owner, 8):.0f} %."
)
display(fig)

# %% [markdown]
# Does it pay? Eight replicas, forty system prompts of 1,024 tokens, some of them far more popular than others, and the
# lengths of lab 12 behind them. A replica can keep twelve prompts. Round robin lets every replica read everything. By
# what factor is its time to first token (p99) longer than that of your owners?

# %%
p_prefix = predict("15.prefix", "p99 of the first token: round robin's, by your owners'?", 0.1, 100, "×", step=0.1)


# %% [markdown]
# Your owners as a policy: the prefix is the beginning of the prompt, and a replica may have a quarter more than its
# share.


# %%
class Owners(Policy):
    """Your owners, with a quarter of room."""

    def choose(self, replicas, asked):
        load = {replica.id: replica.queue + replica.running for replica in replicas if replica.ready}
        name = owner(asked.prompt[:64], load, 1.25)
        return next(at for at, replica in enumerate(replicas) if replica.id == name)


SHARING = traffic(8000, 60.0, seed=seed, groups=40, shared=1024)
GPU_LIKE = Engine(slots=16, prefill=2e-4, decode=1e-2, cache=12 * 1024)
rules = {
    "round robin": policy("round_robin"),
    "two choices": policy("power_of_two"),
    "least loaded": policy("least_loaded"),
}
rules |= {"your owners": Owners(), "prefix aware": policy("prefix_aware")}
told = {name: simulate_fleet(8, rule, SHARING, GPU_LIKE) for name, rule in rules.items()}
p_prefix.against(told["round robin"].ttft.at(0.99) / told["your owners"].ttft.at(0.99))

# %% [markdown]
# `prefix aware` is the fleet's own policy: it remembers who got which prefix (rather than hashing it), and leaves a
# replica that is much busier than two drawn ones. What vLLM's, SGLang's and Ray's routers do differently stands in its
# docstring: `help(type(policy("prefix_aware")))`.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.8, 2.7))
    names, places = list(told), np.arange(len(told))
    for at, (share, label) in enumerate(((0.5, "median"), (0.99, "p99"))):
        waits = [report.ttft.at(share) for report in told.values()]
        axes[0].barh(places + 0.4 * at - 0.2, waits, 0.36, color=style.PALETTE[at], label=label)
    axes[0].set(xscale="log", xlabel="time to first token (s)", yticks=places, yticklabels=names)
    axes[0].legend(loc="lower right")
    axes[1].barh(names, [100 * report.hit_rate for report in told.values()], color=style.PALETTE[2])
    axes[1].set(xlabel="prompt tokens found in a cache (%)", xlim=(0, 100), yticklabels=[])
    for axis in axes:
        axis.invert_yaxis()
said = "; ".join(
    f"{name} p99 {report.ttft.at(0.99):.2f} s, {report.hit_rate:.0%} found" for name, report in told.items()
)
fig.alt = f"Time to first token, and prompt tokens found in caches, by policy. {said}."
display(fig)

# %% [markdown]
# Looking at loads helps against the tail; looking at prefixes takes away the work itself.

# %% [markdown]
# ### Old news
#
# All policies that look at loads look at *what was told last*. With several routers, or a metric that is scraped every
# few seconds, that is old. Sixteen replicas under a steady load: the router's news are up to a second old. By what
# factor is p99 longer than with fresh news, if it sends everything to the least loaded of all?

# %%
p_stale = predict("15.stale", "Least loaded, news up to 1 s old: p99, by p99 with fresh news?", 0.5, 100, "×", step=0.5)

# %% [markdown]
# The router looks at all loads at once, every so many seconds, and believes them until it looks again.

# %%
STEADY, AGES = traffic(5000, 130.0, seed=seed + 3), (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
aged = {
    name: [simulate_fleet(16, policy(name), STEADY, router=Router(stale=age)).ttft.at(0.99) for age in AGES]
    for name in ("round_robin", "random", "power_of_two", "least_loaded")
}
p_stale.against(aged["least_loaded"][-1] / aged["least_loaded"][0])
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.8))
    for at, (name, waits) in enumerate(aged.items()):
        axis.plot(AGES, waits, "o-", color=style.PALETTE[at], label=name.replace("_", " "))
    axis.set(yscale="log", xlabel="age of the news (s)", ylabel="time to first token, p99 (s)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
said = "; ".join(f"{name} {waits[0]:.2f} s fresh, {waits[-1]:.2f} s at 1 s" for name, waits in aged.items())
fig.alt = f"p99 of the time to first token by the age of the router's news. {said}."
display(fig)

# %% [markdown]
# A herd: for a second the idlest replica gets everything, then the next one. (Mitzenmacher 2000, *How useful is old
# information?*) Two choices bend later. Who knows nothing does not change.

# %% [markdown]
# ## 3 · The real one
#
# Behind one address there is a *front*: it reads a request, asks the policy (the same Python objects that the simulator
# runs), and passes the answer on. Each replica is the whole server of lab 14 in a process of its own, with four
# sequences at once. By now it should be up.

# %%
try:
    for each in fleet.replicas() if fleet else ():
        print(f"replica {each.id}  {each.model} {each.version}  process {each.pid}")
    URL = fleet and fleet.url
except (RuntimeError, TimeoutError) as error:
    fleet = print(f"The fleet did not start, so the cells that need it stay empty. {error}")

# %% [markdown]
# The visitors: system prompts in common, questions of their own, and answers of very different length. They arrive in a
# Poisson process, at a rate that we find out first: a fleet that is half asleep tells nothing about policies.

# %%
ENGLISH = "\n".join(documents.collect(train_bytes=20_000, validation_bytes=16_000, seed=seed).validation["english"])


def bodies(count, seed, shortest=4, longest=32):
    """Requests: one of four beginnings of 600 letters, a question, and an answer of lognormal length."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        at, start = draw.randrange(4), draw.randrange(3000, 9000)
        prompt = ENGLISH[600 * at : 600 * at + 600] + ENGLISH[start : start + draw.randrange(30, 200)]
        tokens = min(longest, max(shortest, int(draw.lognormvariate(2.0, 0.9))))
        found.append({"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True})
    return found


# %% [markdown]
# Three numbers describe a replica to the simulator: the seconds of a prompt's token, of an answer's token, and what a
# neighbour adds to that. One visitor alone, and four at once, tell them.

# %%
if fleet:
    short, long = ({**bodies(1, 0)[0], "max_tokens": n} for n in (1, 32))
    Load(URL, in_turn([short, short], 2.0)).count()  # both replicas have read the beginning
    (alone,) = Load(URL, in_turn([long], 1.0)).count().answers
    crowd = Load(URL, in_turn([long] * 8, 1000.0)).count().answers
    decode = (alone.seconds - alone.first) / 31
    beside = max(0.0, (np.mean([each.seconds - each.first for each in crowd]) / 31 - decode) / 3)
    (read,) = Load(URL, in_turn([{**short, "prompt": ENGLISH[4000:5200]}], 1.0)).count().answers
    prefill = max(1e-5, read.first / 300)
    RATE = 2 * 4 / (np.mean([body["max_tokens"] for body in bodies(400, 1)]) * (decode + 3 * beside) + 0.05)
    print(f"a token of a prompt {1e3 * prefill:.2f} ms, of an answer {1e3 * decode:.1f} ms, and {1e3 * beside:.1f} ms")
    print(f"for each neighbour: {RATE:.1f} visitors a second keep the two replicas busy")

# %% [markdown]
# The same visitors, in the same order and at the same moments, once with round robin, once prefix-aware, once with two
# choices. By what factor is p99 of round robin's first token longer than that of two choices? (There are few visitors,
# so it is nearly the longest.)

# %%
p_real = predict("15.real", "Two real replicas: round robin's p99, by two choices'?", 0.1, 20, "×", step=0.1)

# %% [markdown]
# To change the policy, only the front is told; the replicas stay, and what they have read stays with them.

# %%
real = {}
if fleet:
    COMING = in_turn(bodies(24 * many, seed + 1), RATE, seed)
    for rule in ("round_robin", "prefix_aware", "power_of_two"):
        fleet.route(rule)
        real[rule] = Load(URL, COMING).count()
        print(f"{rule:<13} {real[rule]}")
    ratio = real["round_robin"].ttft.at(0.99) / real["power_of_two"].ttft.at(0.99)
    p_real.against(ratio)

# %% [markdown]
# Beside it the simulator, with the three numbers from above and the same arrivals. Each dot is a visitor.

# %%
if fleet:
    CALLS = []
    for each in COMING:
        prompt = each.body["prompt"]
        CALLS.append(Call(each.at, len(prompt) // 4, each.body["max_tokens"], ENGLISH.index(prompt[:600]), 150))
    replica = Engine(slots=4, prefill=prefill, decode=decode, crowd=beside, cache=20_000)
    with style.use():
        fig, axes = picture.new(columns=3, size=(10.0, 2.7))
        for axis, (rule, found) in zip(axes, real.items(), strict=True):
            model = simulate_fleet(2, policy(rule), CALLS, replica)
            firsts = [each.first for each in found.of("answered")]
            for at, waits in enumerate((firsts, [first for _, first in model.firsts])):
                axis.plot(np.sort(waits), np.linspace(0, 1, len(waits)), ".-", color=style.PALETTE[at], linewidth=1)
            axis.set(title=rule.replace("_", " "), xlabel="time to first token (s)", ylabel="share of visitors")
        axes[2].legend(["measured", "simulated"], loc="lower right")
    said = "; ".join(f"{rule} p99 {found.ttft.at(0.99):.2f} s" for rule, found in real.items())
    fig.alt = f"Time to first token on the real fleet and simulated, by policy. Measured: {said}."
    display(fig)

# %% [markdown]
# The simulator knows nothing of the network, of the front, or of two processes that share this machine's cores, and it
# lets prompts be read beside answers for free: it is too quick. And the measurement has its own fault: a few dozen
# visitors, whose p99 is nearly the slowest of them, on a machine that does other things too. Run it twice, and the
# order of two policies can change. For their order, and for a thousand replicas, believe the simulator; for whether
# anybody is lost, the real one.

# %% [markdown]
# ## 4 · Drills
#
# A drill has three parts: a prediction, an accident, and a count. Every visitor is one of five afterwards.
# **Answered**, whole. **Refused**, with a status and a reason; or **failed**, which is the same, but the fleet's own
# fault. **Broken**: the answer had begun, and ended with an error that says so. Or **lost**: the connection ended, and
# nobody said why. The last one is what must not happen.

# %%
ENDS = ("answered", "refused", "failed", "broken", "lost")
COLORS = dict(zip(ENDS, (*style.PALETTE[:4], style.LIT), strict=True))


def timeline(count, marks, title):
    """Each visitor is a line from asking to the end, the waiting for the first piece pale; accidents are marked."""
    with style.use():
        fig, (axis,) = picture.new(size=(9.0, 3.0))
        for at, each in enumerate(count.answers):
            begins, end = each.at + (each.first or each.seconds), each.at + each.seconds
            axis.plot([each.at, begins], [at, at], color=style.GREY, linewidth=1.5)
            axis.plot([begins, end], [at, at], color=COLORS[each.outcome], linewidth=2.5)
            axis.plot(end, at, "o", color=COLORS[each.outcome], markersize=4)
        for end in ENDS:
            if count.of(end):
                axis.plot([], [], color=COLORS[end], label=end)
        axis.plot([], [], color=style.GREY, label="waiting")
        for at, (second, what) in enumerate(marks):
            axis.axvline(second, color=style.INK, linestyle="--", linewidth=1)
            side = "right" if second > 0.9 * axis.get_xlim()[1] else "left"
            axis.text(second, (1.04 + 0.1 * (at % 2)) * count.sent, f" {what} ", fontsize=9, ha=side)
        axis.set(xlabel="time (s)", ylabel="visitor", ylim=(-1, 1.25 * count.sent), yticks=range(0, count.sent, 10))
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    fig.alt = "; ".join((f"{title}: {count}", *(f"{what} at {second:.1f} s" for second, what in marks))) + "."
    return fig


# %% [markdown]
# **A replica dies**, by signal 9, with visitors in its queue and answers on their way. Half of the visitors want a
# stream, half the whole answer at once. What is *broken* at the most? What had begun to stream, there.

# %%
p_kill = predict(
    "15.kill", "One of two replicas is killed under load: visitors whose answers break?", 0, 20, "visitors"
)

# %% [markdown]
# The replica to die is the first of the list, at the moment of the twelfth visitor or so. (Answers
# have 20 tokens or more here, so that there is something to break.)

# %%
if fleet:
    half = [{**body, "stream": at % 2 == 0} for at, body in enumerate(bodies(24 * many, seed + 2, shortest=20))]
    victim = fleet.replicas()[0].id
    load = Load(URL, in_turn(half, RATE, seed))
    load.until(12 / RATE)
    fleet.kill(victim)
    death = load.now
    killed = load.count()
    p_kill.against(float(len(killed.of("broken"))))
    print(killed)
    print({each.says for each in killed.of("broken")})

# %% [markdown]
# Visitor by visitor, from the bottom up. Grey is waiting; then the first piece comes. (Who wants the whole answer at
# once has a grey line and a dot.)

# %%
if fleet:
    display(timeline(killed, [(death, "killed")], "One of two replicas is killed"))
    claim(
        15, len(killed.of("lost")), measure="lost",
        condition=f"{killed.sent} requests to two replicas on one machine, one of them killed",
    )  # fmt: skip

# %% [markdown]
# Nobody was lost. Those who had seen nothing yet were sent to the other replica, and only waited longer; those who were
# in the middle of a stream were told. (Sending *those* again would be wrong: they have half an answer.) Ray sees the
# dead process and starts another. How long does it take until there are two again, from now on?

# %%
p_again = predict("15.again", "From now until two replicas are ready again?", 0, 60, "s", step=0.5)

# %% [markdown]
# We ask the front who is there, five times a second.

# %%
if fleet:
    began = time.perf_counter()
    while len(fleet.replicas()) < 2 and time.perf_counter() - began < 120:
        time.sleep(0.2)
    p_again.against(time.perf_counter() - began)
    for each in fleet.replicas():
        print(f"replica {each.id}{'' if each.id == victim else '  is not the one that died'}")

# %% [markdown]
# What if nobody tried again, and the router found out by a health check every ten seconds only? That cannot be tried
# here (our front notices at once), but simulated: eight replicas, one dies.

# %% tags=["nbval-check-output"]
CALM = traffic(6000, 40.0, seed=4)
for retries in (0, 1):
    for notice in (0.0, 10.0):
        dead = simulate_fleet(
            8, policy("round_robin"), CALM, router=Router(notice=notice, retries=retries), faults=[Dies(60.0, 2)]
        )
        print(f"noticed after {notice:4.0f} s, {retries} retries: {dead.broken:2} broken, {dead.lost:2} lost")

# %% [markdown]
# Health checks make a fault shorter; trying again makes it invisible to all whose answer has not begun. (Six break in
# each line: theirs had.) A guide that names round robin and health checks has named half of it.

# %% [markdown]
# ### A slow replica
#
# The worst replica is not dead. It is ill, passes its health check, and takes five times as long: a GPU that is too
# hot, a neighbour on the machine. Round robin gives it its share. Simulated, on a fleet of four: the dashed line is
# where the replica gets slow.

# %%
p_slow = predict("15.slow", "One of four is 5 × slower: round robin's p99, by two choices'?", 0.5, 200, "×", step=0.5)

# %% [markdown]
# Four replicas, twelve visitors a second, and nothing that would be too much without the illness.

# %%
EASY = traffic(2400, 12.0, seed=seed + 6)
ill = [Slow(60.0, 0, 5.0)]
slowed = {name: simulate_fleet(4, policy(name), EASY, faults=ill) for name in ("round_robin", "power_of_two")}
p_slow.against(slowed["round_robin"].ttft.at(0.99) / slowed["power_of_two"].ttft.at(0.99))
with style.use():
    fig, (axis,) = picture.new(size=(8.4, 2.6))
    for at, (name, report) in enumerate(slowed.items()):
        axis.plot(
            *zip(*report.firsts, strict=True), ".", color=style.PALETTE[at], markersize=3, label=name.replace("_", " ")
        )
    axis.axvline(60, color=style.INK, linestyle="--", linewidth=1)
    axis.set(xlabel="time of arrival (s)", ylabel="time to first token (s)", yscale="log", ylim=(1e-3, None))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
said = ", ".join(f"{name} p99 {report.ttft.at(0.99):.2f} s" for name, report in slowed.items())
fig.alt = f"Time to first token when one of four replicas gets five times slower after a minute: {said}."
display(fig)

# %% [markdown]
# The queue of the slow one is its own health check: whoever looks at loads sends it less without knowing why. Now the
# real one, with two choices. We let each step of one replica take 0.15 s more. What share of the visitors does it still
# get?

# %%
p_share = predict("15.share", "A replica is much slower: its share of the visitors, with two choices?", 0, 100, "%")

# %% [markdown]
# Each answer says in a header who gave it.

# %%
if fleet:
    patient = fleet.replicas()[0].id
    fleet.slow(patient, 0.15)
    ailing = Load(URL, in_turn(bodies(16 * many, seed + 5, longest=16), RATE, seed)).count()
    fleet.slow(patient, 0.0)
    shares = ailing.by_replica()
    p_share.against(100 * shares[patient] / ailing.answered)
    print(ailing)
    print({("slow" if id == patient else "well"): answers for id, answers in shares.items()})

# %% [markdown]
# A blind router would give it half. If yours gave it hardly less, look at the time axis: most visitors came before the
# slow one had finished its first answers, and until then queues cannot tell who is slow. Between two replicas two
# choices are all there are, and where both have as many, the one drawn first gets it, ill or not. The long lines are
# its visitors:

# %%
if fleet:
    display(timeline(ailing, [], "One of two replicas is slow"))

# %% [markdown]
# ## 5 · The store
#
# A model's shard has gigabytes. It is sent in **parts**, several at a time, and after an interruption only the missing
# ones are sent again: S3's multipart upload. At the end the store tells an **ETag**. For a file that came whole it is
# the file's MD5, and many scripts compare it so. For one that came in parts it cannot be: the store never saw the
# whole.


# %% exercise="15.etag"
def etag(data: bytes, part: int) -> str:
    """What an S3 store says of a file sent in parts: the MD5 of the parts' MD5s, and how many parts there were.

    The digests (16 bytes each, not text) are joined in the order of the parts and digested once more; a dash and the
    number of parts follow. The last part is as short as it is; an empty file is sent as one empty part.

    Args:
        data: the file. part: bytes of a part.

    Returns text such as "9b2c…e1-12". Raises ValueError for a part below 1.
    """
    ### BEGIN SOLUTION
    if part < 1:
        raise ValueError(f"part is {part}; give 1 byte or more")
    parts = [data[at : at + part] for at in range(0, len(data), part)] or [b""]
    digests = b"".join(hashlib.md5(each).digest() for each in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"
    ### END SOLUTION


# %% check="15.etag"
etag = check("15.etag", etag)

# %% [markdown]
# The same bytes, sent in other parts, have another ETag: it says as much about the sender as about the file. The
# SHA-256 is the file's own.

# %% tags=["nbval-check-output"]
BYTES = bytes(range(256)) * 100
for part in (5_000, 8_000, 25_600):
    print(f"{part:>6} bytes a part: {etag(BYTES, part)}")
print(f"        SHA-256: {hashlib.sha256(BYTES).hexdigest()[:32]}…")

# %% [markdown]
# So a version of the registry has a **manifest**: the path, the size and the SHA-256 of each file. The files go first,
# the manifest last, and only if nobody else has written that number meanwhile: a version is whole, or it is not there.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.4))
    axis.barh([f"{each.path}  {each.sha256[:8]}…" for each in first.files], [each.bytes for each in first.files])
    axis.set(xscale="log", xlabel="bytes", title=f"{first.name}@{first.id}")
    axis.grid(True, axis="x")
    axis.invert_yaxis()
fig.alt = (
    f"The files of {first.name}@{first.id}: {', '.join(f'{each.path} {each.bytes} bytes' for each in first.files)}."
)
display(fig)

# %% [markdown]
# Then a fleet of machines downloads what the manifest says, *where* it says. A manifest is a text in a store that
# several people can write to, and a name is a place on your disk. This is the oldest trick with archives.


# %% exercise="15.safe_path"
def safe_path(folder: str, name: str) -> str:
    """Where a file of a manifest goes: into the folder, or nowhere.

    A name is parts with slashes between them. It is refused if a part is empty, "." or "..", and if it holds a
    backslash, a colon or a zero byte anywhere: on some system each of these leads out, or gives one file two names.
    Nothing is mended.

    Args:
        folder: without a slash at its end. name: as the manifest says it.

    Returns folder + "/" + name. Raises ValueError for a name that is refused.
    """
    ### BEGIN SOLUTION
    tricks = any(letter in name for letter in "\\:\0")
    if tricks or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no path inside of a folder")
    return f"{folder}/{name}"
    ### END SOLUTION


# %% check="15.safe_path"
safe_path = check("15.safe_path", safe_path)

# %% [markdown]
# A manifest with a few surprises:

# %% tags=["nbval-check-output"]
for name in (
    "model.safetensors",
    "shards/00001.bin",
    "a..b",
    "../../.ssh/authorized_keys",
    "/etc/passwd",
    "x/../y",
    "C:x",
):
    try:
        print(f"{name:<28} → {safe_path('/cache/v3', name)}")
    except ValueError:
        print(f"{name:<28}   refused")

# %% [markdown]
# ### A shard is damaged
#
# The model is trained on, a little: version 2 has other weights. It is published, `prod` is moved to it, and then a
# disk in the store turns over one bit of its 180 million.

# %%
newer = FOLDER / "newer"
shutil.copytree(trained.folder, newer)
next(trained.model.parameters()).detach().mul_(1.001)
trained.model.bfloat16().save_pretrained(newer)
second = registry.push(NAME, newer, note="trained on")
registry.alias(NAME, "prod", second.id)
shard = next(each for each in second.files if each.path == "model.safetensors")
blob = next(path for path in (FOLDER / "store").rglob("*") if shard.sha256 in str(path) and path.is_file())
blob.chmod(0o644)
with open(blob, "r+b") as file:
    file.seek(12_345_678)
    byte = file.read(1)[0]
    file.seek(12_345_678)
    file.write(bytes([byte ^ 1]))
print(registry.aliases(NAME), f"{sum(each.bytes for each in second.files) / 1e6:.1f} MB, one bit of them wrong")

# %% [markdown]
# Now the fleet is told to follow the alias, under load. How many of the visitors are refused, broken or lost meanwhile?

# %%
p_damaged = predict(
    "15.damaged", "A rollout to a damaged version, under load: visitors not answered?", 0, 30, "visitors"
)

# %% [markdown]
# The rollout begins half a second after the first visitor.


# %%
def follow():
    """The fleet follows the alias; returns what it says."""
    try:
        return fleet.rollout()
    except RuntimeError as error:
        return str(error).replace(str(FOLDER), "…")


if fleet:
    load = Load(URL, in_turn(bodies(12 * many, seed + 7), RATE, seed))
    marks = [(load.until(0.5), "rollout")]
    print(follow())
    marks.append((load.now, "refused"))
    during = load.count()
    p_damaged.against(float(during.sent - during.answered))
    print(during, "versions:", {each.version for each in fleet.replicas()})

# %% [markdown]
# Nobody has noticed anything:

# %%
if fleet:
    display(timeline(during, marks, "A damaged version is refused"))
    wrong = sum(each.version == second.id for each in fleet.replicas())
    claim(
        15, wrong, measure="wrong_version", condition="one bit of one shard wrong, under load: replicas that serve it"
    )

# %% [markdown]
# Before a replica is touched, the whole version is on this machine and every hash is right; so the worst that a bad
# shard can do is to keep the old version. (An ETag that the store computed *when the file came* would still be right:
# the bit turned over later.)

# %% [markdown]
# ### A full disk
#
# The folder is pushed again, which mends the store: it sends what is not what it should be. Now the disk of the serving
# machine is full: 9 MB fit, and the version has 23. (We will not fill yours: `SmallDisk` writes what fits, and then
# gives the error that the system would give.)

# %%
registry.push(NAME, newer, note="trained on, again")
p_disk = predict("15.disk", "Of the 9 MB that were fetched: how many are fetched again when there is room?", 0, 9, "MB")

# %% [markdown]
# First the full disk, then room, in a cache of the notebook's own; we count what is written.

# %%
short, roomy = SmallDisk(9_000_000), SmallDisk(10**12)
try:
    registry.pull(NAME, second.id, FOLDER / "elsewhere", write=short)
except OSError as error:
    print(error.strerror.replace(str(FOLDER), "…"))
registry.pull(NAME, second.id, FOLDER / "elsewhere", write=roomy)
p_disk.against((short.written + roomy.written - second.bytes) / 1e6)
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 1.5))
    axis.barh(0, short.written / 1e6, color=style.PALETTE[1], label="before the disk was full")
    axis.barh(0, roomy.written / 1e6, left=short.written / 1e6, color=style.PALETTE[0], label="afterwards")
    axis.axvline(second.bytes / 1e6, color=style.INK, linestyle="--", linewidth=1, label="the version")
    axis.set(xlabel="bytes written (MB)", yticks=[], xlim=(0, 1.1 * second.bytes / 1e6))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1.1))
fig.alt = (
    f"{short.written / 1e6:.1f} MB were written before the disk was full, {roomy.written / 1e6:.1f} MB afterwards."
)
display(fig)

# %% [markdown]
# What was fetched is kept, and nobody sees it before it is whole. The fleet on such a disk does what it did with the
# damaged shard:

# %%
if fleet:
    fleet.fill(9_000_000)
    told = follow()
    fleet.fill(None)
    print(told, "\nserved:", {each.version for each in fleet.replicas()})

# %% [markdown]
# ### Forward, and back
#
# Now all is well with version 2. The fleet follows the alias: a new replica starts, is ready, takes over; an old one
# answers what it has, and ends. (We asked for that with `surge=2`: two more may run meanwhile. On a cluster without a
# GPU to spare, an old one has to end first.) Then somebody finds that version 2 is worse, and `prod` is rolled back.
# Two changes of everything, under load. How many visitors are not answered?

# %%
p_roll = predict("15.roll", "Rollout and rollback, under load: visitors not answered?", 0, 30, "visitors")

# %% [markdown]
# The rollout begins a second after the first visitor, and the rollback as soon as it is through; visitors come
# until that is through as well.

# %%
if fleet:
    with Load(URL, in_turn(bodies(400, seed + 8), RATE / 15, seed)) as load:
        seen = [(load.until(1.0), "rollout")]
        fleet.rollout()
        seen.append((load.now, second.id))
        registry.rollback(NAME, "prod")
        fleet.rollout()
        seen.append((load.now, first.id))
    rolled = load.count()
    p_roll.against(float(rolled.sent - rolled.answered))
    print(rolled, "versions:", {each.version for each in fleet.replicas()}, registry.aliases(NAME))

# %% [markdown]
# And in time:

# %%
if fleet:
    display(timeline(rolled, seen, "A rollout and a rollback"))

# %% [markdown]
# The marks say when *all* replicas were of that version. In between both answer: a client that asks twice may meet two
# models. And a rollback costs as much as a rollout, less the download: the alias remembers what it named before, and
# the cache has kept it.

# %% [markdown]
# ## 6 · Who is woken
#
# All this must be noticed by somebody. The servers and the front tell numbers at `/metrics`, Prometheus collects them,
# and a rule decides when a person is woken. "More than 1 % errors" is a bad rule: over a minute it wakes for one
# failure in a quiet night, over a day it sleeps through an outage.

# %% [markdown]
# Better is a **budget**: 99.9 % of the requests shall be answered, so 0.1 % may fail. The **burn rate** says how many
# times faster than that the budget goes. At 14.4 an hour costs 2 % of a month's budget; that is worth waking somebody
# (*The Site Reliability Workbook*, chapter 5, table 5-8). And two windows must say so: the hour, that it matters; five
# minutes, that it still goes on.


# %% exercise="15.pages"
def pages(failed: list[int], asked: list[int], budget: float, rules: list[tuple[int, int, float]]) -> list[bool]:
    """For each minute, whether somebody is woken.

    A rule (long, short, factor) fires at a minute if in both of its windows the failed requests are more than
    factor · budget of those that asked. A window is so many minutes, the present one included; at the beginning it is
    what there is. A window in which nobody asked does not fire. One rule is enough.

    Args:
        failed, asked: requests of each minute. budget: the share that may fail, 0.001 say.
        rules: lengths of windows in minutes, and burn rates.

    Returns a list as long as `asked`.
    """
    ### BEGIN SOLUTION

    def burns(minute: int, window: int, factor: float) -> bool:
        since = max(0, minute + 1 - window)
        total = sum(asked[since : minute + 1])
        return total > 0 and sum(failed[since : minute + 1]) / total > factor * budget

    return [
        any(burns(minute, long, factor) and burns(minute, short, factor) for long, short, factor in rules)
        for minute in range(len(asked))
    ]
    ### END SOLUTION


# %% check="15.pages"
pages = check("15.pages", pages)

# %% [markdown]
# Twenty requests a minute, and everything fails for ten minutes, from minute 30 on. When is somebody woken, and until
# when?

# %% tags=["nbval-check-output"]
WORKBOOK, BUDGET = [(60, 5, 14.4), (360, 30, 6.0)], 0.001
ALERTS = {"5 minutes alone": [(5, 5, 14.4)], "an hour alone": [(60, 60, 14.4)], "the workbook's": WORKBOOK}
outage = [20 * (30 <= minute < 40) for minute in range(120)]
for name, rules in ALERTS.items():
    woken = [minute for minute, fires in enumerate(pages(outage, [20] * 120, BUDGET, rules)) if fires]
    print(f"{name:<16} from minute {woken[0]} to minute {woken[-1]}")

# %% [markdown]
# (The workbook's second rule, six hours and thirty minutes, holds on 25 minutes longer than the first.) Now a week
# without any outage: every 2,000th request fails, which is half the budget, so all is well. By day sixty ask in a
# minute, by night two. How often do five minutes alone wake somebody?

# %%
p_alarms = predict("15.alarms", "A week in which all is well: alarms by a window of 5 minutes alone?", 0, 100, "alarms")

# %% [markdown]
# Failures are drawn for each minute by themselves: there is no outage in them.

# %%
chance = np.random.default_rng(seed)
ASKED = [60 if 8 <= minute / 60 % 24 < 20 else 2 for minute in range(7 * 1440)]
FAILED = chance.binomial(ASKED, 0.0005).tolist()


def alarms(fires):
    """How often it began to fire."""
    return sum(now and not before for before, now in zip([False, *fires], fires, strict=False))


week = {name: pages(FAILED, ASKED, BUDGET, rules) for name, rules in ALERTS.items()}
p_alarms.against(float(alarms(week["5 minutes alone"])))
print({name: alarms(fires) for name, fires in week.items()})

# %% [markdown]
# Those are failures at night, when five minutes hold ten requests and one of them is 10 %. A service that is asked so
# seldom needs the long window most. And even that is no cure: one night two of the 120 requests of an hour failed. That
# is 1.7 % where 1.44 % is the limit, so the workbook's rule woke somebody, too, once. (Its advice for such services:
# send requests of your own, so that there is something to count.)

# %% [markdown]
# And a day on which something does happen: at eleven everything fails for eight minutes, and from three to six one
# request in fifty.

# %%
hours, asked, failed = np.arange(1440) / 60, np.array(ASKED[:1440]), np.array(FAILED[:1440])
failed[660:668], failed[900:1080] = asked[660:668], chance.binomial(60, 0.02, 180)
ratio5 = np.convolve(failed, np.ones(5))[:1440] / np.convolve(asked, np.ones(5))[:1440]
with style.use():
    fig, axes = picture.new(rows=2, size=(9.0, 3.6))
    axes[0].plot(hours, 100 * ratio5, linewidth=1.2)
    axes[0].set(yscale="symlog", ylabel="failed, 5 min (%)", xlim=(0, 24), ylim=(0, 200), yticks=[0, 1, 10, 100])
    axes[0].set_yticklabels(["0", "1", "10", "100"])
    for at, rules in enumerate(ALERTS.values()):
        fires = np.array(pages(failed.tolist(), asked.tolist(), BUDGET, rules))
        axes[1].fill_between(hours, at, at + 0.7, where=fires, color=style.PALETTE[at], step="mid")
    axes[1].set(yticks=[0.35, 1.35, 2.35], yticklabels=ALERTS, xlabel="hour of the day", xlim=(0, 24), ylim=(0, 3))
    axes[1].grid(False, axis="y")
fig.alt = "A day with an outage of eight minutes and a leak of three hours; below, when each of three alerts fires."
display(fig)

# %% [markdown]
# The hour alone goes on for an hour after the eight minutes; the five minutes begin anew with each pause of the leak.
# The workbook's fire when it matters, and end half an hour after it is over.

# %% [markdown]
# In Prometheus such a rule is a line of PromQL. Its own tool, `promtool`, evaluates rules over made-up series, so it
# can be asked about your function. (Where it is not installed, the cell says so.)


# %%
def by_promtool(failed, asked, long, short, factor):
    """The minutes at which Prometheus finds the rule true: those at which "it is silent" is told to be wrong."""
    over = [f"sum_over_time(failed[{60 * w - 30}s]) / sum_over_time(asked[{60 * w - 30}s])" for w in (long, short)]
    rule = " and ".join(f"({ratio}) > {factor * BUDGET}" for ratio in over)
    silent = [{"expr": rule, "eval_time": f"{minute}m", "exp_samples": []} for minute in range(len(asked))]
    given = {"failed": failed, "asked": asked}
    series = [{"series": name, "values": " ".join(map(str, counts))} for name, counts in given.items()]
    test = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": silent}]}
    (FOLDER / "silent.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", FOLDER / "silent.yml"], capture_output=True, text=True)
    told = re.findall(r"time: (?:(\d+)h)?(?:(\d+)m)?,", done.stdout + done.stderr)
    return {60 * int(hour or 0) + int(minute or 0) for hour, minute in told}


if shutil.which("promtool"):
    theirs = by_promtool(outage, [20] * 120, *WORKBOOK[0])
    yours = {minute for minute, fires in enumerate(pages(outage, [20] * 120, BUDGET, WORKBOOK[:1])) if fires}
    print("Prometheus wakes somebody at the same minutes:", theirs == yours)
else:
    print("there is no promtool here (Debian: apt install prometheus)")

# %% [markdown]
# These are the rules that come with the course, for `labkit serve` and the fleet. Each has a paragraph in
# `docs/fleet.md`: what it means, where to look, what to do. In the tests a real Prometheus reads a real server until an
# alert fires, and clears.

# %%
GROUPS = yaml.safe_load((deployed() / "monitoring/rules.yml").read_text("utf-8"))["groups"]
ours = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
rows = [f"| {rule['alert']} | {rule['labels']['severity']} | {rule.get('for', 'at once')} |" for rule in ours]
display(Markdown("| alert | becomes a | after |\n|---|---|---|\n" + "\n".join(rows)))

# %% [markdown]
# How long does a total outage last until somebody is woken by the workbook's rules, at a steady load? That is the
# number by which we judge the guide's "custom alerts".

# %%
p_woken = predict(
    "15.woken", "Everything fails from now on: minutes until somebody is woken?", 0, 60, "minutes", step=1
)

# %% [markdown]
# Ten hours in which all is well come first, so that the long windows are full of good requests. (One minute of an hour
# is 1.67 % of its requests, and 14.4 budgets are 1.44 %.)

# %%
well = 600
fires = pages([0] * well + [20] * 60, [20] * (well + 60), BUDGET, WORKBOOK)
p_woken.against(float(fires.index(True) - well + 1), calculated=True)
told = claim(
    15, fires.index(True) - well + 1, measure="woken", estimated=True,
    condition="a steady load, everything fails; rules of the Site Reliability Workbook, budget 0.1 %",
)  # fmt: skip

# %% [markdown]
# ## 7 · On other people's machines
#
# On a cluster somebody else starts the processes: Kubernetes. What this lab did by hand stands there as text. The guide
# gives each server a GPU, 32 GiB and four CPUs. These fields matter in our own manifest:

# %%
MANIFEST = yaml.safe_load((deployed() / "kubernetes/base/deployment.yaml").read_text("utf-8"))
pod = MANIFEST["spec"]["template"]["spec"]
server = pod["containers"][0]
fields = {
    "limits": server["resources"]["limits"],
    "rolling update": MANIFEST["spec"]["strategy"]["rollingUpdate"],
    "security": {"runAsNonRoot": pod["securityContext"]["runAsNonRoot"], **server["securityContext"]},
    "time to end": f"{pod['terminationGracePeriodSeconds']} s",
    "keys": [each["valueFrom"] for each in server["env"] if "valueFrom" in each][:1],
}
rows = "\n".join(f"| {name} | `{value}` |" for name, value in fields.items())
display(Markdown(f"| field | value |\n|---|---|\n{rows}"))

# %% [markdown]
# A GPU stands in the limits: without, a pod gets none, or everybody's. `maxUnavailable: 0` is the rollout of section 5:
# first a new one, then an old one less. It is nobody's root, its disk is read-only, and a key is named, never written
# down.

# %% [markdown]
# Three **probes** ask the server how it is. *Startup*: it may take long, once. *Readiness*: shall it get requests?
# *Liveness*: shall it be ended? A server hangs: its port is open, and nobody answers. How long does it go on getting
# requests, at the most?

# %%
p_probe = predict("15.probe", "A server hangs: seconds until it gets no more requests, at the most?", 0, 120, "s")

# %% [markdown]
# A probe acts after so many failures in a row, one each period, and the last one takes its timeout.

# %%
probes = {name: server[f"{name}Probe"] for name in ("readiness", "liveness", "startup")}
worst = {name: p["periodSeconds"] * p["failureThreshold"] + p["timeoutSeconds"] for name, p in probes.items()}
p_probe.against(float(worst["readiness"]), calculated=True)
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 1.9))
    words = ("no more requests", "ended, and started anew", "given up while it loads")
    axis.barh(words, worst.values(), color=style.PALETTE[:3])
    axis.set(xscale="log", xlabel="seconds without a good answer, at the most", xlim=(1, None))
    axis.invert_yaxis()
fig.alt = "Seconds until a probe acts: " + ", ".join(f"{name} {seconds} s" for name, seconds in worst.items()) + "."
display(fig)

# %% [markdown]
# Quick to stop sending, slow to kill. A liveness probe that is as quick as readiness makes of every peak in the load a
# fleet that restarts in a circle. (It asks `/health`, which stays good while the engine behind it is replaced.)

# %% [markdown]
# ## 8 · What the guide claims
#
# Of deployment the guide (lab 00) says: inference on four GPUs behind round robin with health checks; a model store on
# object storage, with sharded upload and versions; Prometheus and Grafana with custom alerts. It gives no number. So we
# put one to each: nobody lost when a replica dies; no replica that serves a damaged version; somebody woken within five
# minutes of an outage. The fourth is round robin itself: its p99 should be no more than a tenth above that of two
# choices.

# %%
if fleet:
    where = f"{len(COMING)} requests of lognormal length to two real replicas on one machine, one run"
    claim(15, float(ratio), measure="round_robin", condition=where)
for load in (0.4, 0.85):
    calls = traffic(12_000, load * 4 * 16 / 1.1, seed=seed + 9)
    one, two = (simulate_fleet(4, policy(rule), calls).ttft.at(0.99) for rule in ("round_robin", "power_of_two"))
    where = f"four simulated replicas, {load:.0%} busy"
    claim(15, one / two, measure="round_robin", condition=where, estimated=True)

# %% [markdown]
# Round robin is as good as any where nobody has to wait.

# %% [markdown]
# ## 9 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply. (The cell closes the fleet as well.)

# %%
recap("15")
if fleet:
    fleet.close()

# %% [markdown]
# ## Further reading
#
# - Mitzenmacher 2001, *The power of two choices in randomized load balancing*, IEEE TPDS 12(10); and 2000, *How useful
#   is old information?*, IEEE TPDS 11(1).
# - Thaler and Ravishankar 1998, *Using name-based mappings to increase hit rates*, IEEE/ACM Transactions on Networking
#   6(1): rendezvous hashing.
# - Mirrokni, Thorup and Zadimoghaddam 2018, *Consistent hashing with bounded loads*, arXiv 1608.01350.
# - Zheng et al. 2024, *SGLang: Efficient execution of structured language model programs*, arXiv 2312.07104: prefixes
#   as a tree. Ray Serve's *prefix-aware routing* and vLLM's *production stack* have routers that look at them.
# - Beyer et al. 2018, *The Site Reliability Workbook*, chapter 5, *Alerting on SLOs*: sre.google/workbook.
# - Dean and Barroso 2013, *The tail at scale*, Communications of the ACM 56(2).
