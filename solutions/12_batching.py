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
# # 12 · Batching: from padding to continuous batches
#
# A model that answers one person at a time wastes most of its machine. So requests share its steps; but they are of
# different lengths, and come and go when they like. This lab climbs the ladder: pad to the maximum, to the longest, by
# bucket, then a batch whose members change at every step, over a cache made of blocks. On every rung two questions are
# asked: how much is computed for nobody, and does an answer still depend on its request alone?
#
# After this lab you can
#
# - say why a decode step of many rows takes hardly longer than one, and where that ends in a sparse model;
# - pad a batch so that nobody's answer depends on a neighbour, and find the faults that make it depend;
# - count what padding wastes, for prompts and for answers, and bound it with buckets;
# - write a step of continuous batching, with chunks of prompts and preemption;
# - place keys in blocks that sequences share, copy on write, and attend through a block table;
# - measure what users wait for, and read tokens a second beside it;
# - weigh claim 7 (*padding to the longest of a batch instead of the maximum, with a proper mask, saves 30% of wasted
#   compute*).
#
# It takes about two hours.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** `cpu` serves a few requests
# with the small trained model; `gpu` a model in the shape of OLMoE-1B-7B, too; `auto` asks the machine.

# %% tags=["setup"]
import math
import statistics
import time
from functools import partial

import torch
from IPython.display import Markdown, display
from torch import Tensor

from labkit import check, claim, hint, predict, recap, reveal, show
from labkit.core import runtime
from labkit.core.cost import model_params
from labkit.core.presets import preset
from labkit.course.mine import my_model
from labkit.kernels import measure
from labkit.nn import Transformer
from labkit.nn.cache import KVCache
from labkit.serve.batching import by_bucket, continuous, to_longest, to_maximum
from labkit.serve.cache import chain, root
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.scheduler import Limits, Scheduler
from labkit.serve.scheduler.simulate import Cost, simulate
from labkit.serve.timeline import ladder, record
from labkit.serve.workload import arrivals, lognormal_lengths
from labkit.show import figures, picture, style
from labkit.train import documents

gpu = runtime.resolve_profile(profile) == "gpu"
device = runtime.device() if gpu else torch.device("cpu")
where = runtime.device_name(device)
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other

# %% [markdown]
# All sizes that cost time stand in this cell. Answers are compared with the trained model, your own from lab 07 if you
# have one; times are measured with a larger one on a GPU, whose weights are drawn at random: a step takes as long with
# them as with any others.

# %%
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256) if gpu else (1, 2, 4, 8, 16, 32)
PAST = 256 if gpu else 16  # tokens before a decode step that is timed
ANSWER = 16 if gpu else 10  # tokens of the answers that are compared
TIMED = (64, 16) if gpu else (4, 4)  # requests whose prompts are really padded and computed, and the batch
MEASURED, ROWS = (32, 16) if gpu else (12, 4)  # requests of the measured ladder, and rows of its static batches
TOGETHER = (1, 4, 16, 64, 256) if gpu else (1, 4, 16)  # sequences at once
LENGTH = (64, 32) if gpu else (16, 8)  # tokens of prompt and answer where only their number changes

trained = my_model(device=device)
model, tokenizer = trained.model.eval(), trained.tokenizer
texts = documents.collect(train_bytes=20_000, validation_bytes=8000, seed=seed)
pieces = {name: tokenizer("".join(texts.validation[name]))["input_ids"] for name in texts.domains}
print(trained)

# %% [markdown]
# ## 1 · Why batch at all
#
# To decode is to compute one token, with all that stands before it in the cache. The model's weights are read for that
# once, whether one sequence waits for its token or thirty. Reading takes longer than the arithmetic on what was read
# (lab 08), so another row is nearly free. That is the whole reason for batching.

# %% [markdown]
# So that it can be measured: a clock, and the model to measure.


# %%
def clocked(call):
    """Seconds of one call."""
    wait = torch.cuda.synchronize if gpu else int
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


if gpu:
    torch.set_default_dtype(torch.bfloat16)
    with device:
        large = Transformer(preset("olmoe-1b-7b")).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
else:
    large = model

# %% [markdown]
# Some sequences, each with a few tokens in its cache, decode one step together, again and again from the same state. On
# a GPU the step is recorded as a CUDA graph (lab 08) and replayed: its hundreds of kernels are short, and otherwise we
# would time the host that starts them.


# %%
def recorded(call):
    """On a GPU a call that was made before, as a CUDA graph."""
    if not gpu:
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.no_grad()
def decode_step(model, batch):
    """Seconds of one decode step of so many sequences, and the share of its experts that were used."""
    ids = torch.randint(model.config.vocab_size, (batch, PAST), device=device)
    cache = KVCache(model.config, batch, PAST + 1, dtype=model.dtype, device=device)
    model(ids, cache=cache)

    def step(**how):
        cache.cut(PAST)
        return model(ids[:, :1], cache=cache, **how)

    used = [(record.tokens_per_expert_E > 0).float().mean().item() for record in step(return_routing=True).routing]
    return measure.timing(recorded(step), device, samples=5 if gpu else 3).median, statistics.mean(used)


# %% [markdown]
# Sixteen sequences decode together. How many times as many tokens a second come out as for one alone?

# %%
p_sixteen = predict("12.sixteen", "Tokens a second: 16 sequences at once, over one alone?", 1, 16, "×", step=0.5)

# %%
steps = {batch: decode_step(large, batch) for batch in BATCHES}
p_sixteen.against(16 * steps[1][0] / steps[16][0])

# %% [markdown]
# What is the least that a step could take? The bytes that it must read, over the bandwidth of the memory. The dense
# part is read whole. Of the experts only those are read that some token chose, and more tokens choose more of them:
# with uniform routing, $1 - (1 - K/E)^B$ of all.
#
# In a batch of 8, what share of the experts is used?

# %%
p_used = predict("12.used", "Share of a layer's experts that 8 tokens use?", 0, 100, "%")

# %%
p_used.against(100 * steps[8][1])

# %% [markdown]
# The bandwidth is that of a large copy on this machine.

# %%
params, moe = model_params(large.config), large.config.moe
rate = measure.copy_rates([2**30 if gpu else 2**27], device, samples=3)
bandwidth = next(iter(rate.values()))


def read_bytes(used):
    """Bytes of the weights that a decode step reads; of the embedding table it reads single rows."""
    dense = params.total - params.routed_experts - params.embedding
    dense += large.config.vocab_size * large.config.d_model if large.config.tie_embeddings else 0
    return (dense + used * params.routed_experts) * large.embed.weight.element_size()


floor = {batch: read_bytes(used) / bandwidth for batch, (_, used) in steps.items()}
print(f"{where}: {bandwidth / 1e9:.0f} GB/s; a step alone takes {1e3 * steps[1][0]:.2f} ms,", end=" ")
print(f"reading its weights {1e3 * floor[1]:.2f} ms")

# %% [markdown]
# Tokens a second over the batch, measured, and the most that reading the weights allows:

# %%
curves = {
    "measured": [batch / steps[batch][0] for batch in BATCHES],
    "weights read, nothing else": [batch / floor[batch] for batch in BATCHES],
    "one alone × batch": [batch / steps[1][0] for batch in BATCHES],
}
display(figures.cost_curve(BATCHES, curves, "sequences that decode together", "tokens a second"))

# %% [markdown]
# And the experts used, beside what uniform routing would give:

# %%
E, K = moe.num_experts, moe.top_k
shares = {
    "counted": [100 * used for _, used in steps.values()],
    "uniform routing": [100 * (1 - (1 - K / E) ** batch) for batch in BATCHES],
}
display(figures.cost_curve(BATCHES, shares, "tokens in a step", "experts used (%)", log=False))

# %% [markdown]
# (A trained router is not uniform, and the tokens here were drawn at random; the lines need not agree.)

# %% [markdown]
# Two things to take along. In a dense model the floor of a step does not move with the batch; in a sparse one it rises
# until all experts are used, so a sparse model needs *more* company to be cheap. And far above the floor (a small
# model, or one whose kernels are started one by one) a step takes its fixed time, and that is shared by all, too.

# %% [markdown]
# ## 2 · Padding, and whose answer it is
#
# The plain way to compute prompts together is a rectangle: shorter ones are filled up with a padding token. Three
# things must be right for the answers to stay what they were: *where* the padding stands, that nobody *looks* at it,
# and that it does not count as a *position*.

# %% [markdown]
# An answer's first token is read off the last column of the logits. So every prompt must end there, and the padding
# stands on the left.


# %% exercise="12.left_pad"
def left_pad(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts of any lengths as one rectangle, padded on the left to the longest.

    Args:
        prompts: token ids of each, at least one token; they may hold the padding token as well.
        pad: the token to fill up with.

    Returns, all [B, S] int64: the ids; the mask, 1 where a token is real and 0 at padding; the positions, which count
    each prompt's own tokens from 0 (and are 0 at padding). Raises ValueError if there is no prompt, or an empty one.
    """
    ### BEGIN SOLUTION
    if not prompts or not all(prompts):
        raise ValueError("there is no prompt, or an empty one; each needs a token to be answered")
    longest = max(map(len, prompts))
    ids_BS = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BS = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    return ids_BS, mask_BS, positions_BS
    ### END SOLUTION


# %% check="12.left_pad"
left_pad = check("12.left_pad", left_pad)

# %% [markdown]
# Prompts of three, one and two tokens:

# %% tags=["nbval-check-output"]
parts = dict(zip(("ids", "mask", "positions"), left_pad([[5, 6, 7], [8], [4, 9]], pad=1), strict=True))
with style.use():
    fig, axes = picture.new(columns=3, size=(7.6, 1.9))
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        axis.imshow(parts["mask"], cmap="Blues", vmin=0, vmax=2)
        for row, column in torch.ones_like(part).nonzero().tolist():
            axis.text(column, row, part[row, column].item(), ha="center", va="center")
        axis.set(title=name, xticks=[], yticks=[])
        axis.grid(False)
fig.alt = "; ".join(f"{name} {part.tolist()}" for name, part in parts.items())
display(fig)
print(fig.alt)

# %% [markdown]
# Now with the model. Eight short prompts stand in a batch with one of 96 tokens. Each is answered alone first, then in
# company, padded in four ways.

# %% [markdown]
# `answers` takes ids, mask and positions as they are, whether they make sense or not.


# %%
@torch.no_grad()
def answers(ids_BS, mask_BS, positions_BS, count=ANSWER):
    """Greedy answers [B, count], each token read off the last column, and the first logits [B, V]."""
    ids_BS, mask_BS, positions_BS = (t.to(device) for t in (ids_BS, mask_BS, positions_BS))
    cache = KVCache(model.config, len(ids_BS), ids_BS.shape[1] + count, dtype=model.dtype, device=device)
    found = []
    for _ in range(count):
        found.append(model(ids_BS, mask_BS, position_ids=positions_BS, cache=cache).logits[:, -1])
        ids_BS, positions_BS = found[-1].argmax(-1, keepdim=True), positions_BS[:, -1:] + 1
        mask_BS = torch.cat([mask_BS, torch.ones_like(ids_BS)], dim=1)
    return torch.stack(found, dim=1).argmax(-1), found[0]


# %% [markdown]
# The four ways: on the right with a mask, on the left without one, on the left with the columns for positions, and as
# it should be.


# %%
def in_four_ways(prompts, pad=tokenizer.pad_token_id):
    """Ids, mask and positions of the same batch, by the way in which it was padded."""
    ids, mask, positions = left_pad(prompts, pad)
    right = torch.stack([torch.cat([row[m == 1], row[m == 0]]) for row, m in zip(ids, mask, strict=True)])
    columns, counted = torch.arange(ids.shape[1]).expand_as(ids), (mask.flip(1).cumsum(1) - 1).clamp(min=0)
    return {
        "on the right, masked": (right, mask.flip(1), counted),
        "on the left, no mask": (ids, torch.ones_like(mask), columns),
        "on the left, masked, columns counted": (ids, mask, columns),
        "on the left, masked, tokens counted": (ids, mask, positions),
    }


# %% [markdown]
# On the left, without a mask: what share of the short prompts' answer tokens is still what it was alone?

# %%
p_nomask = predict("12.nomask", "Left padding, no mask: share of answer tokens that stay?", 0, 100, "%")

# %%
short = [piece[at : at + 8 + at // 50] for piece in pieces.values() for at in (50, 200)]
company = [*short, pieces["english"][:96]]
alone = [answers(*left_pad([prompt], 1)) for prompt in short]
rows = {}
for name, batch in in_four_ways(company).items():
    given, first = answers(*batch)
    same = statistics.mean((given[i] == alone[i][0][0]).float().mean().item() for i in range(len(short)))
    rows[name] = same, max((first[i] - alone[i][1][0]).abs().max().item() for i in range(len(short)))
p_nomask.against(100 * rows["on the left, no mask"][0])

# %% [markdown]
# All four:

# %%
table = [f"| {name} | {same:.0%} | {off:.0e} |" for name, (same, off) in rows.items()]
head = "| padding | answer tokens as alone | first logits off by, at most |\n|---|---|---|\n"
display(Markdown(head + "\n".join(table)))

# %% [markdown]
# - **On the right**, the last column of a short row is padding, and its logits follow padding. It could be made to
#   work: read the first token off each row's own last column. The usual `generate` does not; nor do we, since one
#   layout is enough.
# - **Without a mask** every token looks at the padding, as if somebody had written it.
# - **Columns counted** as positions does no harm here: rotary positions only enter as differences (lab 05), and all of
#   a row's shift by the same. In a model with a *table* of positions it would.
# - **As it should be**, nothing is left but the rounding of float32.

# %% [markdown]
# "An answer does not depend on its neighbours" can be tested.

# %% [markdown]
# Let one neighbour grow longer and longer, and watch the
# first logits of the others. Below, the largest change of any of them.

# %%
widths, moved = (20, 60, 180), {}
for width in widths:
    for name, batch in in_four_ways([*short, pieces["english"][:width]]).items():
        _, first = answers(*batch, count=1)
        off = max((first[i] - alone[i][1][0]).abs().max().item() for i in range(len(short)))
        moved.setdefault(name, []).append(max(off, 1e-7))
with style.use():
    fig, (axis,) = picture.new(size=(8.4, 2.8))
    for mark, (name, values) in zip("os^D", moved.items(), strict=True):
        axis.semilogy(widths, values, f"{mark}-", label=name)
    axis.set(xlabel="tokens of the longest neighbour", ylabel="largest change of a logit", xticks=widths)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = "; ".join(f"{name} {min(values):.0e} to {max(values):.0e}" for name, values in moved.items())
fig.alt = f"Largest change of a logit by the width of a neighbour: {told}."
display(fig)

# %% [markdown]
# > **Find the bug: a mask made from the ids.** The guide pads dynamically and makes its mask by asking which ids are
# > the padding token. Many models have no padding token, so the end token is taken for it. The function below is that,
# > and every prompt of a first test gave the right answer. For which prompt does it not?


# %% tags=["nbval-check-output"]
def mask_from_ids(ids_BS, pad):
    return (ids_BS != pad).long()


END = 0
two_documents = [7, 8, END, 9, 4, END, 5]
ids, mask, positions = left_pad([two_documents, [3, 6]], pad=END)
print("from ids    ", mask_from_ids(ids, END).tolist())
print("from lengths", mask.tolist())

# %% [markdown]
# **What happened.** A prompt may hold the end token: two documents in a row, a conversation of several turns. Its own
# tokens are masked, so nothing can be seen of where a turn ends, and if positions are counted from that mask they are
# wrong as well. The mask is no property of the ids. It comes from the lengths, and only who did the padding knows them.

# %% [markdown]
# ## 3 · How much of it is padding
#
# Now the cost. It depends on how long requests are.

# %% [markdown]
# Here is the workload that the whole course uses for serving: prompts lognormal(5.0, 0.8) between 16 and 1024 tokens,
# answers lognormal(4.5, 0.7) between 8 and 256. Many short ones and a few long ones; real traffic looks like that, with
# other numbers. (An answer that would be longer is cut at 256, hence the last bar on the right.)

# %%
lengths = lognormal_lengths(256, seed)
with style.use():
    fig, axes = picture.new(columns=2, size=(8.6, 2.6))
    for axis, which, most in zip(axes, ("prompt", "output"), (1024, 256), strict=True):
        values = [getattr(pair, which) for pair in lengths]
        axis.hist(values, 32, range=(0, most), color=style.PALETTE[0])
        axis.axvline(statistics.mean(values), color=style.LIT, linestyle="--", label="mean")
        axis.set(xlabel=f"tokens of the {'prompt' if which == 'prompt' else 'answer'}", ylabel="requests")
        axis.legend()
    told = [statistics.mean(getattr(pair, which) for pair in lengths) for which in ("prompt", "output")]
fig.alt = f"256 requests: prompts of {told[0]:.0f} tokens on average, answers of {told[1]:.0f}, both with long tails."
display(fig)

# %% [markdown]
# A static batch is computed like this: all prompts at once, each row as wide as the rectangle; then step by step, every
# row a token, until the *longest answer* has its last. A row whose answer has ended goes on computing; nobody reads it.

# %% [markdown]
# What is needed is known exactly, so waste can be counted. Padded to the maximum, 1024 for prompts and 256 for
# answers: what share of the FLOPs is for nobody?

# %%
p_maximum = predict("12.maximum", "Padded to the maximum: share of FLOPs that nobody needs?", 0, 100, "%")

# %%
shape = preset("olmoe-1b-7b")
to_max = to_maximum(lengths, 16, 1024, 256)
p_maximum.against(100 * to_max.wasted_flops(shape), calculated=True)

# %% [markdown]
# Now to the longest of each batch, in order of arrival. Claim 7 says that this saves 30% of wasted compute.

# %% [markdown]
# The more rows a batch has, the longer is its longest: so the batch's size, which the claim does not name, should
# matter. For batches of 16?

# %%
p_saved = predict("12.saved", "Batches of 16, to the longest: share of the wasted FLOPs that is saved?", 0, 100, "%")

# %%
SIZES, SEEDS = (4, 8, 16, 32, 64, 128), range(5)


def saved(size, seed):
    """Per cent that padding to the longest saves: of the FLOPs wasted before, and of all FLOPs."""
    drawn = lognormal_lengths(256, seed)
    before, after = to_maximum(drawn, size, 1024, 256), to_longest(drawn, size)
    less = before.computed.flops(shape) - after.computed.flops(shape)
    return 100 * less / (before.computed - before.useful).flops(shape), 100 * less / before.computed.flops(shape)


by_size = {size: [saved(size, each) for each in SEEDS] for size in SIZES}
p_saved.against(statistics.mean(wasted for wasted, _ in by_size[16]))

# %% [markdown]
# Over the sizes, with the spread over five workloads of the same distribution:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.0))
    for at, label in enumerate(("of the wasted FLOPs", "of all FLOPs")):
        values = [[each[at] for each in by_size[size]] for size in SIZES]
        axis.plot(SIZES, list(map(statistics.mean, values)), "os"[at] + "-", color=style.PALETTE[at], label=label)
        axis.fill_between(SIZES, list(map(min, values)), list(map(max, values)), color=style.PALETTE[at], alpha=0.25)
    axis.axhline(30, color=style.LIT, linestyle="--", label="claim 7: 30 %")
    axis.set(xscale="log", xlabel="requests in a batch", ylabel="saved by the longest (%)", ylim=(0, 100))
    axis.set_xticks(SIZES, SIZES)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Share of the wasted FLOPs that padding to the longest saves: " + ", ".join(
    f"batch {size} {statistics.mean(each[0] for each in found):.0f} %" for size, found in by_size.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# The verdicts, for three sizes:

# %%
for size in (8, 32, 128):
    values = [wasted for wasted, _ in by_size[size]]
    condition = f"share of the FLOPs wasted by padding to 1024 and 256; batches of {size} in order of arrival, "
    condition += "lognormal lengths, 256 requests, OLMoE-1B-7B's shape"
    claim(7, statistics.mean(values), low=min(values), high=max(values), runs=len(values), condition=condition)

# %% [markdown]
# These FLOPs are counted. Are they time? A batch of prompts is one large matrix product after the other, so they should
# be. Below, real padded prompts go through the model, once to the maximum of 1024 and once to the longest. What share
# of the *time* is saved?

# %%
p_time = predict("12.time", f"Batches of {TIMED[1]}: share of the prompts' time that is saved?", 0, 100, "%")


# %%
@torch.no_grad()
def padded_seconds(width_of):
    """Seconds to compute the prompts of some requests, batch by batch, each padded to a width."""
    total, (count, size) = 0.0, TIMED
    for at in range(0, count, size):
        prompts = [[5] * pair.prompt for pair in lengths[at : min(at + size, count)]]
        wide = left_pad([[5] * width_of(prompts), *prompts], 1)  # the first row only makes it so wide
        ids, mask, positions = (t[1:].to(device) for t in wide)
        total += clocked(partial(large, ids, mask, position_ids=positions))
    return total


padded_seconds(lambda prompts: max(map(len, prompts)))  # the first time does not count
seconds = {"maximum": padded_seconds(lambda _: min(1024, large.config.max_context)),
           "longest": padded_seconds(lambda prompts: max(map(len, prompts)))}  # fmt: skip
p_time.against(100 * (1 - seconds["longest"] / seconds["maximum"]))

# %% [markdown]
# And what the count says, for the same prompts:

# %%
some = [(pair.prompt, 1) for pair in lengths[: TIMED[0]]]
counted = to_longest(some, TIMED[1]).computed.flops(large.config)
counted /= to_maximum(some, TIMED[1], 1024, 1).computed.flops(large.config)
timed = seconds["longest"] / seconds["maximum"]
bars = {"FLOPs": [100 * counted], "time": [100 * timed]}
display(figures.bars_with_spread(bars, "to the longest, of the maximum", "%"))

# %% [markdown]
# ## 4 · Buckets
#
# Prompts that are alike waste little on each other. So sort the waiting ones by length, and close a batch when the next
# prompt would make a row too empty. Then no row is padding for more than a share that *we* choose.

# %% [markdown]
# The row with the most padding is the shortest, the first one of its batch; and a batch is as wide as its last. Take
# as many requests as the bound allows.


# %% exercise="12.bucket"
def bucket(lengths: list[int], size: int, percent: int) -> list[list[int]]:
    """Requests in batches so that no row is padding for more than a share of its width.

    Requests are taken from the shortest prompt to the longest, equal ones in order of arrival. Each joins the last
    batch, unless that is full, or some row of it would then be padding for more than `percent` per cent; then it begins
    a batch of its own.

    Args:
        lengths: tokens of each prompt, in order of arrival, each at least 1. size: requests in a batch, at most.
        percent: 0 to 100, a whole number. A share that is just as large is allowed.

    Returns the batches, each the numbers of its requests (places in `lengths`), in the order in which they were taken.
    """
    ### BEGIN SOLUTION
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padding = 100 * (lengths[i] - lengths[batches[-1][0]]) if batches else 0
        if batches and len(batches[-1]) < size and padding <= percent * lengths[i]:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
    ### END SOLUTION


# %% check="12.bucket"
bucket = check("12.bucket", bucket)

# %% [markdown]
# Eight prompts, batches of three, half a row of padding allowed:

# %% tags=["nbval-check-output"]
eight = [30, 12, 100, 14, 55, 25, 90, 31]
for batch in bucket(eight, 3, 50):
    wide = max(eight[i] for i in batch)
    print([eight[i] for i in batch], f"· padding {1 - sum(eight[i] for i in batch) / wide / len(batch):.0%}")

# %% [markdown]
# The same on the workload, as pictures: every line is a prompt, grey is padding. On the left 64 requests in order of
# arrival, 16 to a batch; on the right in buckets with a quarter of padding at most.

# %%
prompts = [pair.prompt for pair in lengths[:64]]
in_order = [list(range(at, at + 16)) for at in range(0, 64, 16)]
ways = {"in order": in_order, "in buckets": bucket(prompts, 16, 25)}
with style.use():
    fig, axes = picture.new(columns=2, size=(9.0, 3.2))
    for axis, (name, batches) in zip(axes, ways.items(), strict=True):
        line = 0
        for number, batch in enumerate(batches):
            wide, places = max(prompts[i] for i in batch), range(line, line + len(batch))
            axis.barh(places, [wide] * len(batch), 1.0, color=style.GREY)
            axis.barh(places, [prompts[i] for i in batch], 1.0, color=style.PALETTE[number % 4])
            line += len(batch) + 1
        axis.set(title=f"{name}: {len(batches)} batches", xlabel="tokens", yticks=[], xlim=(0, 1024))
        axis.invert_yaxis()
        axis.grid(False)
empty = {
    name: 1 - sum(prompts) / sum(max(prompts[i] for i in b) * len(b) for b in batches) for name, batches in ways.items()
}
fig.alt = "Padding of 64 prompts: " + ", ".join(f"{name} {share:.0%}" for name, share in empty.items()) + "."
display(fig)

# %% [markdown]
# It costs something that the picture does not show. Batches are no longer full, so their weights are read for fewer
# rows. And a prompt of an odd length waits until others of its kind have come.

# %% [markdown]
# And it helps with prompts only. How long will an answer be? Nobody knows. Whole requests again, prompt and answer, 16
# to a batch. The buckets are coarser now, with fixed edges (prompts of up to 16 tokens, up to 32, 64, … 512, and longer
# ones), so that nobody has to be sorted. What share of the FLOPs is still for nobody?

# %%
p_bucket = predict("12.bucket_waste", "Buckets of prompts: share of all FLOPs that nobody needs?", 0, 100, "%")

# %%
EDGES = [16, 32, 64, 128, 256, 512]
in_buckets = by_bucket(lengths, 16, EDGES)
p_bucket.against(100 * in_buckets.wasted_flops(shape), calculated=True)
longest = to_longest(lengths, 16)
first_only = [(pair.prompt, 1) for pair in lengths]
prompts_alone = by_bucket(first_only, 16, EDGES).wasted_flops(shape)
print(f"of the prompts' own FLOPs: {prompts_alone:.0%}; the rest are answers that wait for the longest of their batch")

# %% [markdown]
# ## 5 · Continuous batching
#
# So let the batch change. After *every* step whoever has its last token leaves, and whoever waits may come in (Orca, Yu
# et al. 2022, section 3.1: iteration-level scheduling). There is no rectangle any more: a step computes a list of
# tokens, of some sequences one, of others a piece of the prompt.

# %% [markdown]
# What a step takes is decided by a **scheduler**. Ours has three rules.

# %% [markdown]
# 1. *Who decodes comes first*: one token each. A late token is a pause in the middle of a sentence.
# 2. What is left of the step's **budget** goes to prompts, first come first served. A long prompt is cut, and goes on
#    in the next step: so no prompt makes everybody wait (chunked prefill, Agrawal et al. 2024, section 4.1).
# 3. The cache is made of **blocks** of some positions each (section 6). A sequence starts if there are blocks for all
#    its tokens so far. When one that decodes needs another block and none is free, **the last one goes**: its blocks
#    are free again, its tokens are kept, and it waits to compute them anew.


# %% exercise="12.next_step"
def next_step(
    running: list[dict], waiting: list[dict], free: int, budget: int, block_size: int
) -> tuple[list[tuple[str, int]], list[str], int]:
    """What the next step computes.

    A sequence is a dict: "id"; "tokens", how many it has (its prompt and what was produced); "computed", how many of
    them are in the cache; "blocks", how many it holds. Who has one token left to compute *decodes*; who runs and has
    more, has begun its prompt, and holds blocks for all of it.

    1. Those that run, in order. Who decodes computes its token. If its blocks are full (computed = blocks · block_size)
       it needs one more; while none is free, the last of all that run is preempted (which may be itself).
    2. Prompts that have begun and still run, in order: as many tokens as the budget has left.
    3. If nobody was preempted, those that wait, in order: each takes blocks for all its tokens and computes as many as
       the budget has left. Stop at the first that finds no budget or too few blocks; nobody overtakes.

    Args:
        running, waiting: in order of arrival; they are not changed. free: blocks. budget: tokens of this step, at
            least as many as run.

    Returns the chunks, (id, tokens) in the order of these rules, none of 0 tokens; the ids of those that were
    preempted, in the order in which they went; and the blocks that are free afterwards.
    """
    ### BEGIN SOLUTION
    running, chunks, preempted, prompts = list(running), [], [], []
    at = 0
    while at < len(running):
        sequence = running[at]
        if sequence["tokens"] - sequence["computed"] > 1:
            prompts.append(sequence)
        else:
            needs = sequence["computed"] == sequence["blocks"] * block_size
            while needs and not free and at < len(running):
                last = running.pop()
                free += last["blocks"]
                preempted.append(last["id"])
            if at == len(running):  # it was the last itself
                break
            free -= needs
            chunks.append((sequence["id"], 1))
        at += 1
    budget -= len(chunks)
    for sequence in prompts:
        chunk = min(budget, sequence["tokens"] - sequence["computed"])
        if chunk:
            chunks.append((sequence["id"], chunk))
            budget -= chunk
    for sequence in waiting:
        blocks = -(-sequence["tokens"] // block_size)
        if preempted or not budget or blocks > free:
            break
        chunk = min(budget, sequence["tokens"])
        chunks.append((sequence["id"], chunk))
        free, budget = free - blocks, budget - chunk
    return chunks, preempted, free
    ### END SOLUTION


# %% check="12.next_step"
next_step = check("12.next_step", next_step)

# %% [markdown]
# Two decode, blocks of four, a budget of ten. *a* needs a block. With four free, *c* gets its three and comes in, cut
# to the budget; with three it has to wait; with none, *b* has to go.

# %% tags=["nbval-check-output"]
a, b = {"id": "a", "tokens": 9, "computed": 8, "blocks": 2}, {"id": "b", "tokens": 7, "computed": 6, "blocks": 2}
c = {"id": "c", "tokens": 12, "computed": 0, "blocks": 0}
for free in (4, 3, 0):
    chunks, preempted, left = next_step([a, b], [c], free, budget=10, block_size=4)
    print(f"{free} free: compute {chunks}, preempt {preempted}, {left} free afterwards")

# %% [markdown]
# A loop around it is a whole engine, without a model.

# %% [markdown]
# Whoever has its prompt computed gets a token in every step, until
# it has all of them. (The last token is never computed: nothing follows it.)


# %%
def play(lengths, most, blocks, budget, block_size=16):
    """The chunks of every step until all requests have their answers; at most `most` of them run at once."""
    pairs = enumerate(lengths)
    waiting = [{"id": str(i), "tokens": p, "computed": 0, "blocks": 0, "end": p + o} for i, (p, o) in pairs]
    running, free, steps = {}, blocks, []
    while waiting or running:
        come = waiting[: most - len(running)]
        chunks, gone, free = next_step(list(running.values()), come, free, budget, block_size)
        steps.append(chunks)
        for id in gone:
            waiting.insert(0, running.pop(id) | {"computed": 0, "blocks": 0})
        for id, count in chunks:
            if id not in running:
                running[id] = waiting.pop(0)
            one = running[id]
            one["blocks"] = max(one["blocks"], -(-one["tokens"] // block_size))
            one["computed"] += count
            one["tokens"] += one["computed"] == one["tokens"]
            if one["tokens"] == one["end"]:
                free += running.pop(id)["blocks"]
    return steps


# %% [markdown]
# Eight requests, four at a time: in static batches of four, and continuously. How many steps does the second way take,
# if the first takes 100?

# %%
p_steps = predict("12.steps", "Steps of continuous batching, where static batches of four take 100?", 0, 150)

# %%
few = [(max(1, prompt // 8), max(2, output // 8)) for prompt, output in lengths[:8]]
flowing = play(few, most=4, blocks=500, budget=256)
static = to_longest(few, 4).steps
p_steps.against(100 * len(flowing) / static)

# %% [markdown]
# Here are the same eight in all ways, step by step: a row is a request, and below are the blocks of the cache, in the
# colour of who holds them. Choose a way, then play it or move along with the arrow keys. (The continuous ways are the
# work of `labkit.serve.scheduler`, which does what yours does, with some more rules: priorities, forks, common
# beginnings.)

# %%
jobs = list(arrivals(few, seed=seed))
small = Limits(40, block_size=16, max_tokens_per_step=256, max_sequences=4, reserve=0)
display(show.BatchTimeline(ladder(jobs, small, batch_size=4, maximum=(128, 32))))

# %% [markdown]
# Look for three things. In the padded ways, rows that compute for nobody until their batch ends. In the continuous one,
# a new row in the very step in which another has left. And in the pool, how much a padded batch reserves beside what
# the other holds.

# %% [markdown]
# On all 256 requests, with sixteen at a time and memory enough, does yours take the same steps as `labkit`'s?

# %% tags=["nbval-check-output"]
plain = Limits(4000, max_tokens_per_step=512, max_sequences=16, reserve=0, reuse_prefixes=False)
same_work = lognormal_lengths(256, 0)
theirs = continuous(arrivals(same_work), plain)
yours = play(same_work, most=16, blocks=4000, budget=512)
print(f"{theirs.steps} steps and {len(yours)}; tokens {theirs.computed.tokens}", end=" ")
print(f"and {sum(count for chunks in yours for _, count in chunks)}")

# %% [markdown]
# The whole ladder on one workload. What is left of the waste, when nothing is padded and nobody waits for a neighbour?

# %%
p_flow = predict("12.flow", "Continuous batching: share of FLOPs that nobody needs?", 0, 30, "%")

# %%
flow = continuous(arrivals(lengths, seed=seed), plain)
p_flow.against(100 * flow.wasted_flops(shape), calculated=True)
LADDER = {"to the maximum": to_max, "to the longest": longest, "by bucket": in_buckets, "continuous": flow}
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.5))
    needed = to_max.useful.flops(shape) / 1e12
    axis.barh(list(LADDER), [t.computed.flops(shape) / 1e12 for t in LADDER.values()], color=style.GREY)
    axis.barh(list(LADDER), [needed] * 4, color=style.PALETTE[0])
    axis.invert_yaxis()
    axis.set(xlabel="TFLOP for 256 requests (blue: needed)")
fig.alt = "Share of FLOPs for nobody: " + ", ".join(f"{n} {t.wasted_flops(shape):.0%}" for n, t in LADDER.items()) + "."
display(fig)

# %% [markdown]
# FLOPs are not time. A static batch of 16 rows and a continuous one of 16 sequences read the same weights in a step, so
# what the second saves in time is steps; its other gain is that no step is spent on rows that nobody reads.

# %% [markdown]
# No waste, then, while there is memory. Where blocks are short, sequences are sent back, and what they compute a second
# time is the new waste. Here with fewer and fewer blocks:

# %%
COUNTS = (140, 180, 240, 320, 480)
scarce = {
    blocks: continuous(arrivals(lengths), Limits(blocks, max_tokens_per_step=512, max_sequences=16, reserve=0,
                                                 max_context=1280, reuse_prefixes=False))
    for blocks in COUNTS
}  # fmt: skip
again = {"computed again": [100 * tally.wasted for tally in scarce.values()],
         "more steps": [100 * (tally.steps / flow.steps - 1) for tally in scarce.values()]}  # fmt: skip
display(figures.cost_curve(COUNTS, again, "blocks of 16 positions", "% of all tokens, of the steps", log=False))

# %% [markdown]
# (The waste is in tokens that are computed twice. They are cheaper than they look: a lost sequence comes back as one
# prompt, and prompts are computed many tokens at a time.)

# %% [markdown]
# The steps tell more than the waste: with little memory few sequences run at once. So memory is what bounds a batch;
# the next section is about how not to waste it.

# %% [markdown]
# ## 6 · Blocks instead of rows
#
# A cache with a row for each sequence must be as long as the longest answer that might come: 1024 + 256 positions each,
# reserved when the request starts. While requests run, what share of the reserved positions is in use, on average?

# %%
p_reserved = predict("12.reserved", "Rows of 1280 positions: share in use, on average?", 0, 100, "%")


# %%
def in_use(block_size):
    """Share of the reserved positions that hold a token, averaged over all steps of all requests."""
    used = reserved = 0
    for prompt, output in lengths:
        for now in range(prompt, prompt + output):
            used += now
            reserved += -(-now // block_size) * block_size
    return used / reserved


p_reserved.against(100 * in_use(1280), calculated=True)
BLOCK_SIZES = (1, 4, 16, 64, 256, 1280)
shares = {"in use": [100 * in_use(size) for size in BLOCK_SIZES]}
figure = figures.cost_curve(BLOCK_SIZES, shares, "positions in a block", "reserved positions in use (%)", log=False)
figure.axes[0].set(xscale="log", ylim=(0, 105))
figure.axes[0].set_xticks(BLOCK_SIZES, BLOCK_SIZES)
figure.axes[0].xaxis.set_minor_formatter("")
display(figure)

# %% [markdown]
# Most of what is reserved is never used. Blocks of 16 leave a few per cent empty, and so they do in most engines.

# %% [markdown]
# The cure is that of operating systems (PagedAttention, Kwon et al. 2023, section 4): memory in **blocks**, and for
# each sequence a **table** that says which block holds its positions 0 to 15, which 16 to 31, and so on. A sequence
# takes a block when it needs one. Only the last one is not full.

# %% [markdown]
# Blocks can be *shared*. Four answers to one prompt hold the prompt's blocks together; a count of **holders** says when
# a block is free again. What if one of the four writes its next token into a block that all hold? Then it copies that
# block first: **copy on write**.


# %% exercise="12.place"
def place(
    position: int, table: list[int], holders: list[int], block_size: int
) -> tuple[int, list[int], list[int], tuple[int, int] | None]:
    """Where a sequence may write its next position.

    Args:
        position: of the token in its sequence; all before it have been written.
        table: the sequence's blocks in order of positions.
        holders: for every block of the pool, how many sequences hold it; 0: it is free.
        block_size: positions in a block.

    If the table ends before the position, it gets a free block. If the position's block is held by others too, a free
    block takes its place in the table, and the others keep the old one. The free block with the lowest number is taken.

    Returns the row (block · block_size + offset), the table and the holders afterwards (the arguments stay as they
    are), and the blocks (from, to) if the contents have to be copied, else None. Raises ValueError if a block is needed
    and none is free.
    """
    ### BEGIN SOLUTION
    table, holders, copy = list(table), list(holders), None
    at, offset = divmod(position, block_size)
    new = at == len(table)
    if new or holders[table[at]] > 1:
        if 0 not in holders:
            raise ValueError("no block is free; somebody has to go first")
        block = holders.index(0)
        holders[block] = 1
        if new:
            table.append(block)
        else:
            copy = (table[at], block)
            holders[table[at]] -= 1
            table[at] = block
    return table[at] * block_size + offset, table, holders, copy
    ### END SOLUTION


# %% check="12.place"
place = check("12.place", place)

# %% [markdown]
# A prompt of six tokens in blocks of four; then it is forked, so that three hold both blocks, and each writes a token:

# %% tags=["nbval-check-output"]
table, holders = [], [0] * 6
for position in range(6):
    row, table, holders, _ = place(position, table, holders, block_size=4)
holders = [3 * count for count in holders]
print(f"prompt: table {table}, holders {holders}")
for name in "abc":
    row, its, holders, copy = place(6, table, holders, block_size=4)
    print(f"{name} writes row {row:2}: table {its}, copy {copy}, holders {holders}")

# %% [markdown]
# The third may write in place: nobody else holds the block any more. Six blocks would have been needed for three
# prompts of their own; four do. As a picture, for more answers and longer prompts:


# %%
def blocks_held(prompt, forks, answer, block_size=16):
    """Blocks of all continuations together, shared as `place` shares them."""
    table, holders = [], [0] * 600
    for position in range(prompt):
        _, table, holders, _ = place(position, table, holders, block_size)
    holders, tables = [forks * count for count in holders], [table] * forks
    for position in range(prompt, prompt + answer):
        for at in range(forks):
            _, tables[at], holders, _ = place(position, tables[at], holders, block_size)
    return sum(count > 0 for count in holders)


FORKS = (1, 2, 4, 8)
held = {f"shared, prompt of {prompt}": [blocks_held(prompt, n, 40) for n in FORKS] for prompt in (40, 400)}
held |= {f"own copies, prompt of {prompt}": [n * -(-(prompt + 40) // 16) for n in FORKS] for prompt in (40, 400)}
display(figures.cost_curve(FORKS, held, "answers of 40 tokens to one prompt", "blocks held", log=False))

# %% [markdown]
# What is shared is the prompt; the longer it is, the more is saved.

# %% [markdown]
# Now attention has to find its keys. One query for each sequence (they decode); the keys and values of all sequences
# lie in one pool, in blocks. Row $r$ of the pool, flattened, is position $p$ of a sequence with table $t$ if
#
# $$ r = t[\lfloor p / s \rfloor] \cdot s + p \bmod s . $$
#
# Rows past a sequence's length belong to nobody, or to somebody else. They must not be seen, whatever is in them.


# %% exercise="12.paged_attention"
def paged_attention(
    query_NHd: Tensor, key_BSGd: Tensor, value_BSGd: Tensor, tables_NM: Tensor, lengths_N: Tensor, scale: float
) -> Tensor:
    """Attention of N sequences that decode, through their block tables: softmax(scale · q·k) over positions, times v.

    Args:
        query_NHd: [N, H, d], the newest token of each sequence.
        key_BSGd, value_BSGd: [blocks, block_size, G, d], the pool. G divides H; query heads share key heads as in lab
            05, neighbours together: with H = 4 and G = 2 heads 0 and 1 use key head 0. Rows that no sequence has
            written may hold anything, NaN too.
        tables_NM: [N, M] int64, the blocks of each sequence in order of positions, filled up with 0.
        lengths_N: [N] int64, positions of each sequence, the newest included; at least 1.
        scale: of the products before the softmax.

    Returns [N, H, d].
    """
    ### BEGIN SOLUTION
    size, heads = key_BSGd.shape[1], query_NHd.shape[1] // key_BSGd.shape[2]
    position_P = torch.arange(tables_NM.shape[1] * size)
    rows_NP = tables_NM[:, position_P // size] * size + position_P % size
    seen_NP = position_P < lengths_N[:, None]
    key_NPHd, value_NPHd = (
        pool.flatten(0, 1)[rows_NP].masked_fill(~seen_NP[..., None, None], 0.0).repeat_interleave(heads, dim=2)
        for pool in (key_BSGd, value_BSGd)
    )
    logits_NHP = scale * torch.einsum("nhd,nphd->nhp", query_NHd, key_NPHd)
    weights_NHP = logits_NHP.masked_fill(~seen_NP[:, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("nhp,nphd->nhd", weights_NHP, value_NPHd)
    ### END SOLUTION


# %% check="12.paged_attention"
paged_attention = check("12.paged_attention", paged_attention)

# %% [markdown]
# A sequence of seven tokens in blocks 3, 0 and 5 of a pool full of NaN, written with your `place`, against the same
# keys in a row:

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(0)
query, key, value = (torch.randn(1, n, 2, 8, generator=draw) for n in (1, 7, 7))
pools = [torch.full((6, 3, 2, 8), torch.nan) for _ in range(2)]
table, holders = [], [0, 1, 1, 0, 1, 0]
for position in range(7):
    row, table, holders, _ = place(position, table, holders, block_size=3)
    for pool, new in zip(pools, (key, value), strict=True):
        pool.view(-1, 2, 8)[row] = new[0, position]
paged = paged_attention(query[:, 0], *pools, torch.tensor([table]), torch.tensor([7]), 8**-0.5)
weights = (torch.einsum("bqhd,bphd->bhp", query, key) * 8**-0.5).softmax(-1)
print("table", table, "· equal:", torch.allclose(paged, torch.einsum("bhp,bphd->bhd", weights, value), atol=1e-6))

# %% [markdown]
# ### Common beginnings
#
# Requests often begin alike: a system prompt, the turns of a conversation so far. A full block never changes again, so
# whoever has the same tokens *from the start on* can hold the same block. To find it, a block is named by a digest of
# its tokens and of the name of the block before: equal names mean equal beginnings.

# %% tags=["nbval-check-output"]
first = chain(root(), [1, 2, 3, 4])
print("same tokens, same name:     ", chain(root(), [1, 2, 3, 4]) == first)
print("same block, other beginning:", chain(chain(root(), [9, 9, 9, 9]), [1, 2, 3, 4]) == first)
print("another tenant:             ", chain(root("tenant b"), [1, 2, 3, 4]) == first)

# %% [markdown]
# (SHA-256 and not Python's `hash`: a prompt is written by a stranger, who must not be able to *make* two beginnings
# with one name. The salt keeps tenants apart: how fast an answer comes would otherwise tell what others have asked.)

# %% [markdown]
# Let every request begin with the same 96 tokens, if it is long enough. What share of all prompt tokens need not be
# computed?

# %%
p_found = predict("12.found", "A common beginning of 96 tokens: prompt tokens found in the cache?", 0, 100, "%")

# %%
reusing = Limits(4000, max_tokens_per_step=512, max_sequences=16, reserve=0)
COMMON = (0, 32, 96, 192)
asked = sum(pair.prompt for pair in lengths)
reused = {}
for tokens in COMMON:
    jobs = arrivals(lengths, seed=seed, beginnings=int(tokens > 0), beginning_tokens=tokens)
    reused[tokens] = 100 * continuous(jobs, reusing).reused_tokens / asked
p_found.against(reused[96], calculated=True)
display(figures.cost_curve(COMMON, {"found": list(reused.values())}, "tokens of the common beginning",
                           "prompt tokens found (%)", log=False))  # fmt: skip

# %% [markdown]
# Not all of it: the first requests come together and compute the beginning themselves, half a block is not shared, and
# short prompts hold only a part of it.

# %% [markdown]
# ## 7 · An engine, and whose answer it is
#
# `labkit.serve.engine` puts the parts together: the scheduler decides, the keys lie in blocks on the device, the model
# computes a flat list of tokens (no rectangle, no mask), and a sampler picks. It takes requests at any time and tells
# what is new after every step.


# %%
def engine_for(model, ahead=None, **changes):
    """An engine with a cache of a few hundred blocks, and other limits if given."""
    sizes = {"num_blocks": 256, "max_context": 512, "max_tokens_per_step": 128, "max_sequences": 16, "reserve": 0}
    return Engine(model, limits=Limits(**(sizes | changes)), eos_token_ids=(), ahead=ahead)


def answer_all(engine, requests):
    """Answers in order, and what `latencies` takes: arrivals by id, and (second, id) of every token."""
    arrived, tokens, found = {}, [], [[] for _ in requests]
    for i, (prompt, count) in enumerate(requests):
        engine.add(str(i), prompt, SamplingParams(max_tokens=count, ignore_eos=True))
        arrived[str(i)] = engine.clock()
    while engine.busy:
        for delta in engine.step():
            tokens += [(engine.clock(), delta.id)] * len(delta.token_ids)
            found[int(delta.id)] += delta.token_ids
    return found, arrived, tokens


# %% [markdown]
# Eight requests, with prompts out of the held-out texts. First each is answered *alone*, by the plain `generate` of
# lab 06, with nobody beside it.

# %%
requests = []
for i, (prompt, output) in enumerate(lognormal_lengths(8, seed)):
    piece = pieces[texts.domains[i % len(texts.domains)]]
    requests.append((piece[40 * i : 40 * i + min(96, max(4, prompt // 3))], min(24, max(6, output // 6))))
by_itself = [
    model.generate(torch.tensor([prompt], device=device), max_new_tokens=count)[0, len(prompt) :].tolist()
    for prompt, count in requests
]

# %% [markdown]
# Then engines answer all of them: with room for everybody; with hardly any memory; with steps of at most 16 tokens, so
# that prompts come in pieces; and the first engine once more, which then finds most of what it computed before.
#
# With hardly any memory, sequences lose their blocks in the middle of an answer and compute it all anew. How many of
# the eight answers will differ from those given alone?

# %%
p_differ = predict("12.differ", "Hardly any memory: how many of the 8 answers differ?", 0, 8)

# %%
WAYS = {"room for all": {}, "hardly any memory": {"num_blocks": 28, "block_size": 4, "reuse_prefixes": False}}
WAYS["small steps"] = {"max_tokens_per_step": 16}
engines = {name: engine_for(model, **changes) for name, changes in WAYS.items()}
given = {name: answer_all(engine, requests)[0] for name, engine in engines.items()}
loads = {name: engine.load() for name, engine in engines.items()}
given["room, a second time"] = answer_all(engines["room for all"], requests)[0]
once, twice = loads["room for all"], engines["room for all"].load()
same = {name: sum(a == b for a, b in zip(found, by_itself, strict=True)) for name, found in given.items()}
p_differ.against(8 - same["hardly any memory"])

# %% [markdown]
# All four, with what happened on the way:

# %%
rows = {name: (load.preemptions, load.computed_tokens, load.cached_tokens) for name, load in loads.items()}
more = twice.computed_tokens - once.computed_tokens, twice.cached_tokens - once.cached_tokens
rows["room, a second time"] = (0, *more)
head = "| | answers as alone | preempted | tokens computed | found in the cache |\n|---|---|---|---|---|\n"
table = [f"| {name} | {same[name]} of 8 | " + " | ".join(map(str, row)) + " |" for name, row in rows.items()]
display(Markdown(head + "\n".join(table)))
needed = "needed", sum(len(prompt) + count - 1 for prompt, count in requests)
display(figures.bars_with_spread({name: [row[1]] for name, row in rows.items()}, "computed", "tokens", needed))

# %% [markdown]
# Each sequence reads its own blocks at its own positions, whoever stands beside it. What still may differ is rounding:
# a product with other rows beside it may be summed in another order. In float32 that moves a logit in its sixth or
# seventh digit, and an answer only where two tokens are as good as equal. In bfloat16 such ties are common, and two
# right engines may then part.

# %% [markdown]
# The engine with hardly any memory once more, recorded while it works. Watch a sequence lose its blocks, wait, and
# come back with its prompt and all that it had said as one piece to compute. (In the widget, the key P leads to the
# next preemption.)

# %%
engine = engine_for(model, ahead=False, **WAYS["hardly any memory"])  # what is recorded is what has happened
recording = record(engine)
engine.observers.append(recording)
answer_all(engine, requests)
named = {id: f"request {id.split('.')[0]}" for id in recording.ids}  # the engine's: request.continuation
display(show.BatchTimeline(recording.timeline("hardly any memory", named)))

# %% [markdown]
# Two faults would show in the table of answers and nowhere else: a row that reads a neighbour's block, and a block that
# is given away while somebody still needs it. That is why "the same as alone" is a test, and a good one.

# %% [markdown]
# ### Those that we did not write
#
# transformers has both ways: `generate` on a padded batch, and continuous batching over a paged cache of its own. The
# same weights, the same requests, the best token each time.

# %%
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
their_model = transformers.AutoModelForCausalLM.from_pretrained(trained.folder, dtype=torch.float32).to(device).eval()
greedy = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=tokenizer.pad_token_id)

# %% [markdown]
# Their padded batches. After each token transformers asks a criterion whether to stop; ours notes the time instead.


# %%
def their_batches(model, requests, size):
    """transformers' `generate`, batch after batch: as `answer_all`. Nobody gets more tokens than they asked for."""
    given, tokens, arrived = [], [], dict.fromkeys(map(str, range(len(requests))), time.perf_counter())
    for at in range(0, len(requests), size):
        part, seconds = requests[at : at + size], []

        def note(ids, scores, seconds=seconds):
            seconds.append((ids[0, -1].item(), time.perf_counter())[1])  # once the token is really there
            return torch.zeros(len(ids), dtype=torch.bool, device=device)

        ids, mask = (t.to(device) for t in left_pad([prompt for prompt, _ in part], 1)[:2])
        found = model.generate(
            ids, attention_mask=mask, generation_config=greedy, max_new_tokens=max(count for _, count in part),
            stopping_criteria=transformers.StoppingCriteriaList([note]),
        )  # fmt: skip
        for i, (row, (_, count)) in enumerate(zip(found[:, ids.shape[1] :].tolist(), part, strict=True)):
            given.append(row[:count])
            tokens += [(second, str(at + i)) for second in seconds[:count]]
    return given, arrived, sorted(tokens)


# %% [markdown]
# And their continuous batching. It works in a thread of its own, and notes itself when each token came:


# %%
def their_engine(model, requests, **sizes):
    """transformers' continuous batching: as `answer_all`."""
    sizes = transformers.ContinuousBatchingConfig(**sizes)
    how = {"generation_config": greedy, "continuous_batching_config": sizes}
    found, arrived = {}, {}
    with model.continuous_batching_context_manager(**how) as manager:
        for i, (prompt, count) in enumerate(requests):
            arrived[str(i)] = time.perf_counter()
            manager.add_request(list(prompt), str(i), max_new_tokens=count, record_timestamps=True)
        while len(found) < len(requests):
            one = manager.get_result(timeout=1)
            if one is not None and one.is_finished():
                found[one.request_id] = one
            elif one is None and not manager.is_running():
                raise RuntimeError("transformers' continuous batching has stopped; its log says why")
    tokens = sorted((second, id) for id, one in found.items() for second in one.timestamps)
    return [found[str(i)].generated_tokens for i in range(len(requests))], arrived, tokens


# %% [markdown]
# The same answers?

# %%
SMALL = {"num_blocks": 16, "max_batch_tokens": 64}
theirs = {"generate, padded": their_batches(their_model, requests, 4)[0],
          "continuous batching": their_engine(their_model, requests, **SMALL)[0]}  # fmt: skip
agree = {
    f"transformers, {name}": [sum(a == b for a, b in zip(found, by_itself, strict=True))]
    for name, found in theirs.items()
}
agree["ours"] = [same["room for all"]]
display(figures.bars_with_spread(agree, "answers as alone", "of 8 requests"))

# %% [markdown]
# Three implementations and the plain one, with padding, with blocks of 256 and with blocks of 16: the same tokens. That
# is what makes an engine comparable. Only now are times worth looking at.

# %% [markdown]
# ## 8 · What users wait for
#
# Tokens a second are the operator's number.

# %% [markdown]
# A user has two others: how long until the first token comes (**TTFT**, time
# to first token), and how long the pauses are between one token and the next (**gaps**). A mean of them hides what
# people complain about, so percentiles are used: the 99th says that one in a hundred waits longer.


# %% exercise="12.latencies"
def latencies(
    arrived: dict[str, float], tokens: list[tuple[float, str]], percent: int
) -> tuple[float | None, float | None]:
    """A percentile of the times to first tokens, and of the gaps between a request's tokens, in seconds.

    Args:
        arrived: when each request came, in seconds on one clock.
        tokens: (second, id) of every token, in order of time.
        percent: 1 to 100. The percentile is the smallest value that at least so many per cent of all do not exceed: one
            that occurred, nothing in between.

    A gap lies between two successive tokens of *one* request; all gaps of all requests are taken together. A request
    that has no token yet does not count. Returns None in place of a percentile of nothing.
    """
    ### BEGIN SOLUTION
    first, gaps, last = [], [], {}
    for second, id in tokens:
        if id in last:
            gaps.append(second - last[id])
        else:
            first.append(second - arrived[id])
        last[id] = second

    def at_percent(values: list[float]) -> float | None:
        rank = -(-percent * len(values) // 100)  # so many of them, rounded up
        return sorted(values)[rank - 1] if values else None

    return at_percent(first), at_percent(gaps)
    ### END SOLUTION


# %% check="12.latencies"
latencies = check("12.latencies", latencies)

# %% [markdown]
# Two requests, five tokens:

# %% tags=["nbval-check-output"]
tokens = [(1.5, "a"), (2.0, "a"), (2.25, "b"), (2.5, "a"), (3.5, "b")]
for percent in (50, 99):
    ttft, gap = latencies({"a": 1.0, "b": 2.0}, tokens, percent)
    print(f"{percent} %: first tokens within {ttft} s, gaps within {gap} s")

# %% [markdown]
# Now requests come at random times, at a rate. The scheduler is the real one; the clock is counted, with a step's time
# as section 1 measured it: a fixed part, and a part for each token.

# %% [markdown]
# First the **capacity**: everything comes at once. How many requests a second are answered then is the most that there
# can be in the long run.

# %%
most = BATCHES[-1]
per_token = max(1e-7, (steps[most][0] - steps[1][0]) / (most - 1))
cost = Cost(fixed=steps[1][0], per_token=per_token, per_position=0.0)


def serve(rate, budget=512):
    """Arrivals by id, and (second, id) of every token."""
    limits = Limits(4000, max_tokens_per_step=budget, max_sequences=min(64, budget), reuse_prefixes=False)
    jobs, tokens = list(arrivals(lengths, rate, seed=seed)), []
    simulate(Scheduler(limits), jobs, cost, lambda step, now: tokens.extend(
        (now, chunk.id) for chunk in step.chunks if chunk.samples))  # fmt: skip
    return {str(i): job.arrival for i, job in enumerate(jobs)}, tokens


capacity = len(lengths) / serve(math.inf)[1][-1][0]
print(f"a step: {1e3 * cost.fixed:.2f} ms and {1e6 * cost.per_token:.1f} µs a token; {capacity:.2f} requests a second")

# %% [markdown]
# At 90 % of that rate, how much longer is the 99th percentile of the first tokens than at 30 %?

# %%
p_knee = predict("12.knee", "99th percentile of TTFT: at 90 % of the capacity, over at 30 %?", 1, 50, "×")

# %%
LOADS = (0.3, 0.6, 0.9, 1.1)
served = {load: serve(load * capacity) for load in LOADS}
waits = {load: {percent: latencies(*run, percent) for percent in (50, 99)} for load, run in served.items()}
p_knee.against(waits[0.9][99][0] / waits[0.3][99][0])

# %% [markdown]
# Over the load:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 3.0))
    for at, (name, dash) in enumerate((("first token", "-"), ("gap", "--"))):
        for percent, mark in ((50, "o"), (99, "s")):
            values = [waits[load][percent][at] for load in LOADS]
            axis.semilogy([100 * load for load in LOADS], values, mark + dash, label=f"{name}, {percent} %")
    axis.axvline(100, color=style.INK, linestyle=":", label="capacity")
    axis.set(xlabel="load (% of the capacity)", ylabel="seconds")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = ", ".join(f"{load:.0%}: {waits[load][99][0]:.2f} and {waits[load][99][1]:.2f} s" for load in LOADS)
fig.alt = f"99th percentiles of the first token and of the gaps over the load. {told}."
display(fig)

# %% [markdown]
# First tokens wait for a *place*, and near the capacity there is none. Beyond it the line grows for as long as the load
# lasts; only turning requests away helps (lab 14).

# %% [markdown]
# A gap is a step's time, and it grows with what else is in the step. One token of everybody is little; the prompts of
# those who come in are more. How many of their tokens a step takes, the **budget** says. With 64 tokens a step instead
# of 512, at a load of 80 %: how long is the 99th percentile of the gaps, as a share of what it was?

# %%
p_budget = predict("12.budget", "Budget 64 instead of 512: 99th percentile of the gaps, of what it was?", 0, 200, "%")

# %%
BUDGETS = (64, 128, 512, 2048)
by_budget = {budget: latencies(*serve(0.8 * capacity, budget), 99) for budget in BUDGETS}
p_budget.against(100 * by_budget[64][1] / by_budget[512][1])

# %% [markdown]
# Over the budget:

# %%
curves = {"first token, 99 %": [ttft for ttft, _ in by_budget.values()]}
curves |= {"gap, 99 %": [gap for _, gap in by_budget.values()]}
display(figures.cost_curve(BUDGETS, curves, "tokens of a step at most", "seconds"))

# %% [markdown]
# The budget shifts waiting between those who read already and those who have just come. Too small a one cuts a prompt
# into many steps, each with its fixed time: the gaps hardly get shorter any more, and first tokens wait long.

# %% [markdown]
# ## 9 · The ladder, measured
#
# No counted clock any more. All requests come at once, and are answered in three ways: by transformers' `generate` in
# static batches, by its continuous batching, and by our engine. On a GPU the model has OLMoE-1B-7B's shape and random
# weights, which take as long as trained ones; on a CPU it is the small trained one.

# %%
if gpu:
    from labkit.core.names import family_of, to_hf_config

    values = to_hf_config(large.config, family_of(large.config))
    with device:
        their_large = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.bfloat16
        ).eval()
else:
    their_large = their_model
draw = torch.Generator().manual_seed(seed)


def asked(pairs):
    """Requests of these lengths, of tokens drawn at random."""
    return [(torch.randint(5, 4000, (prompt,), generator=draw).tolist(), output) for prompt, output in pairs]


shrink = 2 if gpu else 8
load = asked([(max(4, pair.prompt // shrink), max(4, pair.output // shrink)) for pair in lengths[:MEASURED]])

# %% [markdown]
# How many times the tokens a second of transformers' static batches will our engine give?

# %%
p_ladder = predict("12.ladder", "Tokens a second: our engine, over generate in static batches?", 0, 40, "×", step=0.5)

# %%
BIG = {"num_blocks": 8192, "max_context": 2048, "max_tokens_per_step": 2048, "max_sequences": 256} if gpu else {}
ours = engine_for(large, **BIG)
THEIRS = {"num_blocks": 512, "max_batch_tokens": 2048} if gpu else SMALL
RUNGS = {
    f"transformers, static batches of {ROWS}": lambda work: their_batches(their_large, work, ROWS),
    "transformers, continuous": lambda work: their_engine(their_large, work, **THEIRS),
    "ours": lambda work: answer_all(ours, work),
}
measured = {}
for name, way in RUNGS.items():
    way(asked([LENGTH] * 2))  # what is made once does not count
    _, arrived, tokens = way(load)
    seconds = tokens[-1][0] - min(arrived.values())
    measured[name] = {"rate": len(tokens) / seconds} | {q: latencies(arrived, tokens, q) for q in (50, 99)}
rates = [found["rate"] for found in measured.values()]
p_ladder.against(rates[2] / rates[0])

# %% [markdown]
# The table, whoever is ahead:

# %%
head = "| | tokens/s | first token, median | 99 % | gap, median | 99 % |\n|---|---|---|---|---|---|\n"
table = []
for name, found in measured.items():
    cells = [f"{found[percent][at]:.3f} s" for at in (0, 1) for percent in (50, 99)]
    table.append(f"| {name} | {found['rate']:,.0f} | {' | '.join(cells)} |")
display(Markdown(head + "\n".join(table) + f"\n\n{MEASURED} requests, {sum(c for _, c in load):,} tokens, on {where}."))

# %% [markdown]
# What is compared has its own settings: the block sizes, the largest step, what is compiled and what is captured in a
# graph. All three were called once before the clock ran. On a GPU both engines have the same budget of tokens a step;
# on a CPU ours may take 128 and theirs 64.

# %% [markdown]
# Read all columns. In static batches gaps are even, since nobody comes in, and first tokens wait for whole batches. A
# continuous engine lets everybody in at once, so first tokens come early, and the gaps pay for it.

# %% [markdown]
# How does it grow with the number of sequences? Everything of the same length now. The most sequences at once, over one
# alone: how many times the tokens a second?

# %%
p_together = predict("12.together", f"Tokens a second: {TOGETHER[-1]} at once, over one alone?", 1, TOGETHER[-1], "×")


# %%
def tokens_per_second(way, count):
    """Of so many requests of one length, all at once."""
    _, arrived, tokens = way(asked([LENGTH] * count))
    return len(tokens) / (tokens[-1][0] - min(arrived.values()))


answer_all(ours, asked([LENGTH] * TOGETHER[-1]))  # kernels for large batches are made once
grown = {
    "our engine": [tokens_per_second(lambda work: answer_all(ours, work), count) for count in TOGETHER],
    "transformers' generate": [
        tokens_per_second(lambda work: their_batches(their_large, work, len(work)), count) for count in TOGETHER
    ],
    "weights read, nothing else": [count / floor[count] for count in TOGETHER],
}
p_together.against(grown["our engine"][-1] / grown["our engine"][0])

# %% [markdown]
# With the line of section 1, what reading the weights allows:

# %%
display(figures.cost_curve(TOGETHER, grown, "sequences at once", "tokens a second"))

# %% [markdown]
# The distance to that line is what a step takes beside reading weights: starting kernels, attention over the cache,
# sampling, and the Python that decides; and the prompts, which are in these seconds, too. A small model is nearly all
# of that.

# %% [markdown]
# Last, the common beginning, on the clock. Two requests share 256 tokens (as a system prompt would be) and differ in
# four. The second comes when the first has its answer. Its first token takes how long, as a share of the first one's?

# %%
p_second = predict("12.second", "Second request's time to its first token, of the first one's?", 0, 120, "%")

# %%
system = asked([(256, 1)])[0][0]
waited = []
for last in asked([(4, 2)] * 2):
    _, arrived, tokens = answer_all(ours, [(system + last[0], last[1])])
    waited.append(latencies(arrived, tokens, 50)[0])
p_second.against(100 * waited[1] / waited[0])

# %% [markdown]
# What it cannot be is nothing: the rest of the prompt is a step, and a step has its fixed time.

# %% [markdown]
# ## 10 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("12")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 7** (*padding to the longest of a batch instead of the maximum, with a proper mask, saves 30% of wasted
# compute*): see the cards of section 3. The claim names neither lengths nor a batch, and both decide.
#
# - The more requests share a batch, the nearer is its longest to the maximum, and the less is saved.
# - Its mask is the part that is easily got wrong (section 2): made from ids, it masks what a user wrote.
# - What it saves is small beside what is left: the ladder of section 5 goes on to a waste of nothing.

# %% [markdown]
# ## Further reading
#
# - Yu et al. 2022, *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI: batches that
#   change at every step.
# - Kwon et al. 2023, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, arXiv
#   2309.06180: blocks, sharing, copy on write, preemption.
# - Agrawal et al. 2024, *Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve*, arXiv 2403.02310:
#   prompts in chunks.
# - Zheng et al. 2024, *SGLang: Efficient Execution of Structured Language Model Programs*, arXiv 2312.07104: common
#   beginnings in a tree.
# - Pope et al. 2023, *Efficiently Scaling Transformer Inference*, arXiv 2211.05102: what a decode step reads.
