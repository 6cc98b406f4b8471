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
# # 09 · Grouped products: the MoE layer as three kernels
#
# A mixture of experts is many small matrix products. Written with torch it is also a copy of all tokens before them, an
# activation between them and a sum after them, each a trip through memory. In this lab you move all of that *into* the
# products, one step at a time, until the layer is three kernels; then you write what its gradients need, and hold the
# result against torch, transformers and the kernels that this course trains with.
#
# After this lab you can
#
# - say what an MoE layer must multiply and move, and how far an implementation is from that;
# - lay tokens out by expert with counting alone, cut them into tiles, and say what padding costs;
# - write a grouped product in Triton that gathers its rows, with SwiGLU in its epilogue, and a gradient of the weights;
# - explain why the sum over experts should not use atomics, and why the order of tiles matters;
# - read a table of peers, its losses included, and put your own kernels under a trained model.
#
# It takes about two and a half hours. Without a GPU every kernel runs in Triton's interpreter, on tiny tensors: right,
# and slow. Times of kernels need a GPU, and none is given without one.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed; lab 08 explains programs, blocks and masks. **Run the cell above and the one
# below first**: whether kernels are interpreted must be known before Triton is imported.

# %% tags=["setup"]
import os
from collections import defaultdict
from dataclasses import replace
from functools import cache, partial
from itertools import permutations
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # the profiler's own log stays out of the notebook

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle
from torch.profiler import ProfilerActivity, profile as profiler

from labkit.core import hardware, runtime

profile = runtime.resolve_profile(profile)
if profile == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from labkit import check, hint, predict, recap, reveal, show
from labkit.core.config import MoEConfig
from labkit.core.cost import expected_experts
from labkit.course.mine import my_model
from labkit.kernels import bench, combine as house_combine, dispatch, grouped_mm, interpreter, measure, permute
from labkit.kernels import reference, tiles
from labkit.kernels import grouped_mm_backward as backward
from labkit.kernels.bench.rounds import take_turns
from labkit.kernels.bench.shapes import SHAPES, TINY, MoEShape
from labkit.kernels.language import tl, triton
from labkit.show import picture, style

gpu = profile == "gpu"
device = runtime.device() if gpu else torch.device("cpu")
where = runtime.device_name(device)
fast = runtime.dtype() if gpu else torch.float32
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other
if not gpu:
    ready = interpreter.brisk()  # Triton's language is prepared once for all interpreted kernels
    ready.__enter__()
draw = torch.Generator().manual_seed(seed)


def randn(*shape, dtype=torch.float32):
    """Seeded normal numbers, the same on every machine, on this lab's device."""
    return torch.randn(*shape, generator=draw).to(device, dtype)


# %% [markdown]
# ## 1 · What must be done
#
# T tokens of width D; each goes to K of E experts; an expert has three matrices of D × F. In expert order there are
# N = T·K rows. Forward, for each row: twice D·F multiplications for gate and up, once for down,
#
# $$ h = \mathrm{SiLU}(x W_g^\top) \odot (x W_u^\top), \qquad y = \sum_{k=1}^{K} s_k \, h_k W_{d,k}^\top , $$
# so 6·N·D·F FLOPs (Shazeer 2020, "GLU variants", equation 6, is the expert).

# %% [markdown]
# What must *move*: each token once in and once out, each visited expert's weights once. All else that moves does so
# because of how the layer was written.

# %% [markdown]
# We take OLMoE (64 experts, 8 a token) at 16,384 tokens, in bfloat16. The ceilings are those of lab 08: on a GPU they
# are measured again here, without one they come from the datasheet of an H100.

# %%
p_floor = predict(
    "09.floor", "OLMoE's experts, 16,384 tokens, forward: at least how many ms (CPU: on an H100)?", 0, 20, "ms"
)

# %%
OLMOE = SHAPES["moe"]["olmoe-16k"]
if gpu:
    ceiling = measure.ceilings(measure.copy_rates([2**30], device), measure.matmul_rates([8192], fast, device))
    whose = f"{where}, measured"
else:
    h100 = hardware.gpu("H100-80GB")
    ceiling, whose = measure.Ceilings(h100.bandwidth, h100.tflops * 1e12), "an H100, by its datasheet"
computing, moving = OLMOE.flops(False) / ceiling.flops, OLMOE.bytes(False, 2) / ceiling.bandwidth
p_floor.against(1e3 * max(computing, moving), calculated=True)

# %% [markdown]
# Two clocks run, and at these sizes the one of the products takes longer. Moving could hide behind it, *if* it happens
# at the same time. In separate passes it does not.

# %% [markdown]
# Here is what passes move, if every tensor is written once and read once. Each version below is a section of this lab.


# %%
def traffic(T, D, F, E, K, itemsize=2):
    """Bytes of each version of the layer, by what moves them; forward only, each tensor once."""
    N, weights = T * K, 3 * E * D * F
    inner = {"weights": weights, "hidden rows": 2 * N * F, "output rows": 2 * N * D, "result": T * D}
    copy, activation = {"copy of the rows": 2 * N * D}, {"gate and up": 4 * N * F}
    versions = {
        "separate passes": {**inner, "tokens": T * D, **copy, **activation, "weighted rows": 2 * N * D},
        "gather in the product": {**inner, "tokens": T * D, **activation, "weighted rows": 2 * N * D},
        "SwiGLU in the product": {**inner, "tokens": T * D, "weighted rows": 2 * N * D},
        "one sum": {**inner, "tokens": T * D},
        "the floor": {"weights": weights, "tokens": T * D, "result": T * D},
    }
    return {name: {part: v * itemsize for part, v in parts.items()} for name, parts in versions.items()}


moved = traffic(OLMOE.T, OLMOE.D, OLMOE.F, OLMOE.E, OLMOE.K)

# %% [markdown]
# By how much does "one sum", the last version of this lab, shrink what the first one moves?

# %%
p_passes = predict("09.passes", "Separate passes move how many times the bytes of 'one sum'?", 1, 10, "×")

# %%
total = {name: sum(parts.values()) for name, parts in moved.items()}
p_passes.against(total["separate passes"] / total["one sum"], calculated=True)

# %% [markdown]
# In milliseconds at this bandwidth, part by part:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(9.0, 3.2))
    left = defaultdict(float)
    for part, color in zip(dict.fromkeys(p for parts in moved.values() for p in parts), style.PALETTE, strict=False):
        widths = {name: 1e3 * parts.get(part, 0) / ceiling.bandwidth for name, parts in moved.items()}
        axis.barh(list(widths), list(widths.values()), left=[left[n] for n in widths], color=color, label=part)
        for name, width in widths.items():
            left[name] += width
    axis.axvline(1e3 * computing, color=style.INK, linestyle=":", label="the products alone")
    axis.set(xlabel=f"ms at the bandwidth of {whose}")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    "Time of moving alone, by version: "
    + ", ".join(f"{n} {left[n]:.2f} ms" for n in moved)
    + (f"; the products alone take {1e3 * computing:.2f} ms.")
)
display(fig)

# %% [markdown]
# What is left at the end, hidden rows and output rows, passes between two kernels; to keep *that* on the chip would
# need all of an expert's weights there.

# %% [markdown]
# So three kernels: **gate/up with SwiGLU**, **down**, **sum**. Nothing is won by fusing if the product gets slower by
# it; whether it does is measured at the end of section 7.

# %% [markdown]
# ## 2 · The map: who computes what
# A product wants rows that share a matrix side by side. The usual way is to sort the N pairs (token, expert) by expert.

# %% [markdown]
# But experts are few: it is enough to **count**. A pair's place is where its expert begins, plus how many pairs of that
# expert came before it. Write a row of zeros and ones for each expert, one column a pair, put the rows behind each
# other, and a single running sum gives both.


# %%
class Layout(NamedTuple):
    """Rows in expert order: which pair each is, which token that is, where each pair stands, where experts begin."""

    pair_N: torch.Tensor
    token_N: torch.Tensor
    place_TK: torch.Tensor
    offset_E1: torch.Tensor
    counts_E: torch.Tensor


def layout(topk_ids_TK, num_experts):
    """Expert order by counting: within an expert, pairs stay in the order in which they came."""
    ids_N = topk_ids_TK.flatten()
    pair_N = torch.arange(len(ids_N), device=ids_N.device)
    mine_EN = ids_N == torch.arange(num_experts, device=ids_N.device)[:, None]
    upto_EN = mine_EN.flatten().cumsum(0, dtype=torch.int32).view_as(mine_EN)  # ones up to here, experts in turn
    place_N = upto_EN[ids_N, pair_N].long() - 1
    counts_E = mine_EN.sum(1)
    pair_N = torch.empty_like(pair_N).scatter_(0, place_N, pair_N)
    token_N = pair_N // topk_ids_TK.shape[1]
    offset_E1 = F.pad(counts_E.cumsum(0), (1, 0))
    return Layout(pair_N, token_N.int(), place_N.view(topk_ids_TK.shape), offset_E1.int(), counts_E)


# %% [markdown]
# It must be the layout that a stable sort gives, and `labkit.kernels.permute` makes the same in one or three kernels:
# each program counts a block of pairs.

# %% tags=["nbval-check-output"]
ids = torch.rand(40, 8, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :3].to(device)
mine, (order, token, _) = layout(ids, 8), reference.sort_by_expert(ids, 8)
places = permute.expert_map(ids, 8, block_m=16)
print("as a stable sort   :", torch.equal(mine.pair_N, order), torch.equal(mine.token_N.long(), token))
print("as labkit's kernel :", torch.equal(mine.place_TK, places.place_TK.long()))
print("tokens per expert  :", mine.counts_E.tolist())

# %% [markdown]
# What each of the three takes for OLMoE's 131,072 pairs, where there is a GPU:

# %%
said = "Not timed: there is no GPU here, and `labkit`'s kernel is interpreted."
if gpu:
    many = torch.rand(16_384, 64, generator=draw).topk(8).indices.to(device)
    ways = {
        "a stable sort": partial(reference.sort_by_expert, many, 64),
        "counting, with torch": partial(layout, many, 64),
        "counting, in a kernel": partial(permute.expert_map, many, 64, 128),
    }
    seconds, _ = take_turns(ways, device, rounds=5, repeats=3)
    said = f"{where}: " + ", ".join(f"{name} {1e6 * sorted(each)[2]:.0f} µs" for name, each in seconds.items()) + "."
display(Markdown(said))

# %% [markdown]
# On a GPU, counting may well lose while it is written with torch: a one or a zero for each pair and expert goes through
# memory. In a kernel they stay on the chip. `layout` stays in this lab because it can be read; its time is part of your
# layer's.

# %% [markdown]
# ### Tiles
# A program computes a **tile**: `block_m` rows times `block_n` columns. Within one matrix product any rows would do.
# Here a tile needs one matrix, so it never spans two experts, and every expert's last tile may be partly empty.

# %% [markdown]
# You write the list of tiles: whose each is, and at which row it begins. Rows lie side by side; only tiles have
# padding.


# %% exercise="09.tile_map"
def tile_map(tokens_per_expert_E: torch.Tensor, block_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut every expert's rows into tiles; experts without rows have none.

    Args:
        tokens_per_expert_E: [E] int64, rows of each expert; in expert order they follow each other without a gap.
        block_m: rows of a tile, 1 or more.

    Returns `expert_M` and `first_row_M`, int64 and on the same device (what you make yourself needs `device=`), one
    entry a tile, in the order of the rows: the expert that the tile belongs to, and its first row, counted from the
    first row of all. No loop over tokens or tiles: on a GPU each step of such a loop would wait.
    """
    ### BEGIN SOLUTION
    tiles_E = (tokens_per_expert_E + block_m - 1) // block_m
    first_row_E = tokens_per_expert_E.cumsum(0) - tokens_per_expert_E
    first_tile_E = tiles_E.cumsum(0) - tiles_E
    experts_E = torch.arange(len(tiles_E), device=tiles_E.device)
    expert_M = experts_E.repeat_interleave(tiles_E)
    within_M = torch.arange(len(expert_M), device=tiles_E.device) - first_tile_E[expert_M]
    return expert_M, first_row_E[expert_M] + within_M * block_m
    ### END SOLUTION


# %% check="09.tile_map"
tile_map = check("09.tile_map", tile_map)

# %% [markdown]
# Five experts, tiles of four rows. A box is a row; the frame is a tile; an empty box in it is computed for
# nobody.

# %% tags=["nbval-check-output"]
few = torch.tensor([5, 1, 0, 8, 3])
expert_M, row_M = tile_map(few, 4)
print("expert:", expert_M.tolist(), " first row:", row_M.tolist())
with style.use():
    fig, (axis,) = picture.new(size=(9.0, 1.6))
    for tile, (e, row) in enumerate(zip(expert_M.tolist(), row_M.tolist(), strict=True)):
        real = min(4, int(few.cumsum(0)[e]) - row)
        for i in range(4):
            face = style.PALETTE[e] if i < real else "white"
            axis.add_patch(Rectangle((5 * tile + i, 0), 0.85, 0.8, facecolor=face, edgecolor=style.GREY))
            axis.text(5 * tile + i + 0.42, 0.4, str(row + i) if i < real else "", ha="center", va="center", color="w")
        axis.add_patch(Rectangle((5 * tile - 0.2, -0.2), 4.25, 1.2, fill=False, edgecolor=style.INK))
        axis.text(5 * tile + 1.9, 1.15, f"expert {e}", ha="center", fontsize=9)
    axis.set(xlim=(-0.5, 5 * len(row_M)), ylim=(-0.4, 1.6))
    axis.set_axis_off()
fig.alt = f"{len(row_M)} tiles of four rows for {int(few.sum())} rows; expert 2 has no tile."
display(fig)

# %% [markdown]
# ### What padding costs
# Empty rows of a tile are multiplied like all others: a GPU's matrix unit takes the whole block or nothing.

# %% [markdown]
# A routing as trained models have it, some experts busier than
# others, in tiles of 128 rows: which share of all rows is empty?

# %%
p_waste = predict("09.waste", "OLMoE, 4096 tokens, tiles of 128 rows: which share is empty?", 0, 60, "%")


# %%
@cache
def skewed_counts(T, E=64, K=8):
    """Tokens per expert when every expert has a preference of its own, the same for all tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = 0.45 * torch.randn(E, generator=generator) + torch.randn(T, E, generator=generator)
    return torch.bincount(logits_TE.topk(K).indices.flatten(), minlength=E)


def waste(counts_E, block_m):
    """The share of the tiles' rows that belong to nobody."""
    return 1 - counts_E.sum().item() / (len(tile_map(counts_E, block_m)[0]) * block_m)


p_waste.against(100 * waste(skewed_counts(4096), 128), calculated=True)

# %% [markdown]
# It depends on how many rows an expert has, against how many a tile has:

# %%
BLOCKS_M, TOKENS = (16, 32, 64, 128, 256), (16, 256, 1024, 4096, 16_384)
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 3.0))
    wasted = {T: [100 * waste(skewed_counts(T), block) for block in BLOCKS_M] for T in TOKENS}
    for (T, shares), mark in zip(wasted.items(), "osD^v", strict=True):
        axis.plot(BLOCKS_M, shares, f"{mark}-", label=f"{T:,} tokens")
    axis.set(xscale="log", xlabel="rows of a tile", ylabel="% of the rows empty", ylim=(0, 100))
    axis.set_xticks(BLOCKS_M, [str(block) for block in BLOCKS_M])
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), title="OLMoE, 64 experts")
fig.alt = "Empty rows by tile height: " + "; ".join(
    f"{T:,} tokens " + ", ".join(f"{s:.0f}%" for s in shares) for T, shares in wasted.items()
) + f" for tiles of {BLOCKS_M} rows."  # fmt: skip
display(fig)

# %% [markdown]
# Large tiles read less for each product (section 7), small ones waste less. So the height of a tile follows the number
# of rows an expert has on average, and with few tokens it is 16.

# %% [markdown]
# Try it: the slider changes the tile's rows.

# %%
display(show.tiles(skewed_counts(1024, E=16, K=2)))

# %% [markdown]
# ## 3 · A grouped product
# Now a product of all experts in one launch. Program p takes entry p of a **work list**: an expert, a first row, a
# first column.

# %% [markdown]
# Everything else is lab 08's matter: blocks, pointers and masks, and `tl.dot`, which multiplies two
# blocks.


# %%
@triton.jit
def grouped_kernel(
    x_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row] · weights[expert]ᵀ, one tile a program; weights are [E, W, D]."""
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p).to(tl.int64)
    row = tl.load(row_ptr + p) + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    mine = row < tl.load(offset_ptr + expert + 1)  # the next expert's rows follow
    wide = row.to(tl.int64)[:, None]
    w_row = weights_ptr + (expert * W + column)[None, :] * D
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + wide * D + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        w = tl.load(w_row + k[:, None], mask=(column < W)[None, :] & (k < D)[:, None], other=0.0)
        product = tl.dot(x, w, product)
    tl.store(out_ptr + wide * W + column[None, :], product, mask=mine[:, None] & (column < W)[None, :])


# %% [markdown]
# Weights are stored as a linear layer's, [W, D], so the block that `tl.dot` wants, [BLOCK_K, BLOCK_N], is read with its
# indices exchanged: no transposition, only other addresses. The sum is float32 whatever comes in.

# %% [markdown]
# Its wrapper makes the work list from your map. In which order is a matter of taste for now.

# %%
BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_K": 256}  # few and large: an interpreted tl.dot costs the same for any
if gpu:
    BLOCKS = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}


def row_by_row(tile_M, rows, columns):
    """The simplest order of a grid of tiles."""
    return tile_M // columns, tile_M % columns


def work_list(counts_E, W, order=row_by_row):
    """Expert, first row and first column of every tile of a product that is W wide."""
    expert_M, row_M = tile_map(counts_E, BLOCKS["BLOCK_M"])
    columns = triton.cdiv(W, BLOCKS["BLOCK_N"])
    m, n = order(torch.arange(len(expert_M) * columns, device=counts_E.device), len(expert_M), columns)
    return expert_M[m].int(), row_M[m].int(), (n * BLOCKS["BLOCK_N"]).int()


def grouped(x, weights, lay, order=row_by_row, gathered=False):
    """Each row times its expert's matrix: [N, W]. With `gathered`, x is in token order."""
    W, D = weights.shape[1:]
    out = x.new_empty(len(lay.token_N), W)
    work = work_list(lay.counts_E, W, order)
    given = (x, lay.token_N, weights) if gathered else (x, weights)
    (gather if gathered else grouped_kernel)[(len(work[0]),)](*given, out, *work, lay.offset_E1, D, W, **BLOCKS)
    return out


# %% [markdown]
# Which program makes which part of the result? The five experts from above, three columns of tiles, blocks drawn small:

# %%
expert_M, row_M = tile_map(few, 4)
m, n = row_by_row(torch.arange(3 * len(row_M)), len(row_M), 3)
with style.use():
    fig, (axis,) = picture.new(size=(5.6, 3.6))
    for p, (tile, column) in enumerate(zip(m.tolist(), n.tolist(), strict=True)):
        e, row = int(expert_M[tile]), int(row_M[tile])
        tall = min(4, int(few.cumsum(0)[e]) - row)
        box = Rectangle((column, row), 0.96, tall - 0.1, facecolor=style.PALETTE[e], edgecolor="white")
        axis.add_patch(box)
        axis.text(column + 0.48, row + tall / 2, f"program {p}", color="white", ha="center", va="center", fontsize=9)
    axis.set(
        xlim=(0, 3), ylim=(int(few.sum()), 0), ylabel="row, in expert order", xlabel="columns of the result", xticks=[]
    )
    axis.grid(False)
fig.alt = f"{len(m)} programs make {int(few.sum())} rows of three column tiles; a colour is an expert."
display(fig)

# %% [markdown]
# A colour is an expert, and so a matrix. Against `torch.nn.functional.grouped_mm`, on sizes that fit nothing:


# %%
def case(T, D, width, E, K, dtype=fast):
    """Tokens, a decision and weights for a small layer."""
    ids = torch.rand(T, E, generator=draw).argsort(1)[:, :K].to(device)
    scores = torch.rand(T, K, generator=draw).softmax(-1).to(device)
    gate_up, down = randn(E, 2 * width, D, dtype=dtype) / D**0.5, randn(E, D, width, dtype=dtype) / width**0.5
    return randn(T, D, dtype=dtype), ids, scores, gate_up, down


def close(a, b):
    """Within what a format's rounding does."""
    return torch.allclose(a.float(), b.float(), atol=1e-4 if fast == torch.float32 else 3e-2, rtol=1e-2)


# %% tags=["nbval-check-output"]
x, ids, scores, gate_up, down = case(T=21, D=48, width=40, E=6, K=2)
lay = layout(ids, 6)
rows = x[lay.token_N]
theirs = F.grouped_mm(rows, gate_up.mT, offs=lay.offset_E1[1:])
print("as torch's grouped_mm:", close(grouped(rows, gate_up, lay), theirs))

# %% [markdown]
# With that the layer is three passes around two products:


# %% tags=["nbval-check-output"]
def separate_passes(x, ids, scores, gate_up, down):
    """Copy the rows, product, SwiGLU, product, weigh and add up."""
    lay = layout(ids, len(down))
    rows = x[lay.token_N]
    gate, up = grouped(rows, gate_up, lay).chunk(2, dim=-1)
    y = grouped(F.silu(gate) * up, down, lay)
    return (y[lay.place_TK] * scores[..., None].to(y.dtype)).sum(1)


wanted = reference.experts_loop(x.float(), ids, scores, gate_up.float(), down.float())
print("as the loop over experts:", close(separate_passes(x, ids, scores, gate_up, down), wanted))

# %% [markdown]
# ## 4 · The gather moves in
# `rows = x[token]` writes K copies of every token, only to be read once. The kernel can do without: it knows which row
# it wants, and `token_ptr` says which token stands there.

# %% [markdown]
# On a GPU the rows of a tile then come from all over x; but
# each is one contiguous piece of D numbers, so every sector that is fetched is used (lab 08).


# %% [markdown]
# Here are the rows of the layer above, in expert order, and the token that each is fetched from:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 2.8))
    for e in range(len(lay.counts_E)):
        own = range(int(lay.offset_E1[e]), int(lay.offset_E1[e + 1]))
        axis.plot(
            list(own), lay.token_N[own.start : own.stop].tolist(), "o", color=style.PALETTE[e], label=f"expert {e}"
        )
    axis.set(xlabel="row, in expert order", ylabel="token")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    f"{len(lay.token_N)} rows of {len(lay.counts_E)} experts; within an expert the tokens come in order, with gaps."
)
display(fig)

# %% [markdown]
# Within an expert tokens stay in order, with gaps; each is there K times in all, for K experts.


# %% exercise="09.gather"
@triton.jit
def gather(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[row] = x[token of the row] · weights[expert]ᵀ; program p computes entry p of the work list.

    Args:
        x_ptr: [T, D] contiguous, in token order; token_ptr: [N] int32, the token of each row.
        weights_ptr: [E, W, D] contiguous; out_ptr: [N, W] contiguous, in expert order.
        expert_ptr, row_ptr, column_ptr: int32, each tile's expert, first row and first column.
        offset_ptr: [E + 1] int32, each expert's first row, and N.
        BLOCK_M, BLOCK_N, BLOCK_K: powers of two; N, D and W need not be multiples of them. Sums are float32.
    """
    ### BEGIN SOLUTION
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p).to(tl.int64)
    row = tl.load(row_ptr + p) + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    mine = row < tl.load(offset_ptr + expert + 1)
    token = tl.load(token_ptr + row, mask=mine, other=0).to(tl.int64)
    x_row = x_ptr + token[:, None] * D
    w_row = weights_ptr + (expert * W + column)[None, :] * D
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_row + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        w = tl.load(w_row + k[:, None], mask=(column < W)[None, :] & (k < D)[:, None], other=0.0)
        product = tl.dot(x, w, product)
    at = row.to(tl.int64)[:, None] * W + column[None, :]
    tl.store(out_ptr + at, product, mask=mine[:, None] & (column < W)[None, :])
    ### END SOLUTION


# %% check="09.gather"
gather = check("09.gather", gather)


# %% [markdown]
# One line less in the layer:


# %% tags=["nbval-check-output"]
def gathered(x, ids, scores, gate_up, down):
    """No copy of the rows."""
    lay = layout(ids, len(down))
    gate, up = grouped(x, gate_up, lay, gathered=True).chunk(2, dim=-1)
    y = grouped(F.silu(gate) * up, down, lay)
    return (y[lay.place_TK] * scores[..., None].to(y.dtype)).sum(1)


print("as the loop over experts:", close(gathered(x, ids, scores, gate_up, down), wanted))

# %% [markdown]
# ## 5 · SwiGLU in the epilogue
# When a product's loop is done, its tile lies in registers. Whatever happens there before the store costs no trip to
# memory: an **epilogue**.

# %% [markdown]
# For SwiGLU a program needs gate *and* up of the same columns, so it computes two tiles from one x:
# rows f and F + f of the expert's matrix.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(6.0, 2.6))
    a = torch.linspace(-6, 4, 201)
    axis.plot(a, F.silu(a), label="SiLU")
    axis.plot(a, torch.sigmoid(a) * (1 + a * (1 - torch.sigmoid(a))), "--", label="its slope")
    axis.axhline(-0.2, color=style.GREY, linestyle=":")
    axis.set(xlabel="gate", ylabel="SiLU, and its slope", ylim=(-0.5, 2.5))
    axis.legend()
fig.alt = (
    "SiLU and its slope over the gate: below zero SiLU falls to about −0.28 and comes back, so values occur twice."
)
display(fig)

# %% [markdown]
# The dotted line meets SiLU twice: from SiLU's value alone nobody can tell which gate it was, and the slopes differ.

# %% [markdown]
# Training will want gate and up again (section 8), so with `SAVE` they are stored too, as they were *before* SiLU: the
# pre-activation. `SAVE` is a constant, so inference gets a kernel without these stores.


# %% exercise="09.swiglu_epilogue"
@triton.jit
def swiglu_epilogue(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """hidden[row] = SiLU(gate) · up for the row's token; program p computes entry p of the work list.

    Args:
        x_ptr, token_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr: as in `gather`; columns are of hidden, below F.
        gate_up_ptr: [E, 2F, D] contiguous, the expert's F gate rows first, then its F up rows.
        pre_ptr: [N, 2F] contiguous, gate and then up before SiLU, written only if SAVE; else it may be None.
        hidden_ptr: [N, F] contiguous. SiLU is computed in float32, from sums that were never rounded.
    """
    ### BEGIN SOLUTION
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p).to(tl.int64)
    row = tl.load(row_ptr + p) + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    mine = row < tl.load(offset_ptr + expert + 1)
    token = tl.load(token_ptr + row, mask=mine, other=0).to(tl.int64)
    x_row = x_ptr + token[:, None] * D
    gate_row = gate_up_ptr + (expert * 2 * F + column)[None, :] * D
    up_row = gate_up_ptr + (expert * 2 * F + F + column)[None, :] * D
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (column < F)[None, :] & (k < D)[:, None]
        x = tl.load(x_row + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        gate = tl.dot(x, tl.load(gate_row + k[:, None], mask=inside, other=0.0), gate)
        up = tl.dot(x, tl.load(up_row + k[:, None], mask=inside, other=0.0), up)
    keep = mine[:, None] & (column < F)[None, :]
    wide = row.to(tl.int64)[:, None]
    if SAVE:
        tl.store(pre_ptr + wide * 2 * F + column[None, :], gate, mask=keep)
        tl.store(pre_ptr + wide * 2 * F + F + column[None, :], up, mask=keep)
    tl.store(hidden_ptr + wide * F + column[None, :], gate * tl.sigmoid(gate) * up, mask=keep)
    ### END SOLUTION


# %% check="09.swiglu_epilogue"
swiglu_epilogue = check("09.swiglu_epilogue", swiglu_epilogue)


# %% [markdown]
# The wrapper, and the layer without its activation pass:


# %% tags=["nbval-check-output"]
def hidden_rows(x, gate_up, lay, order=row_by_row, save=False):
    """`hidden` [N, F], and with `save` the pre-activation [N, 2F]."""
    D, width = x.shape[1], gate_up.shape[1] // 2
    hidden = x.new_empty(len(lay.token_N), width)
    pre = x.new_empty(len(lay.token_N), 2 * width) if save else None
    work = work_list(lay.counts_E, width, order)
    swiglu_epilogue[(len(work[0]),)](
        x, lay.token_N, gate_up, pre, hidden, *work, lay.offset_E1, D, width, SAVE=save, **BLOCKS
    )
    return hidden, pre


def activated(x, ids, scores, gate_up, down):
    """No copy, no activation pass."""
    lay = layout(ids, len(down))
    y = grouped(hidden_rows(x, gate_up, lay)[0], down, lay)
    return (y[lay.place_TK] * scores[..., None].to(y.dtype)).sum(1)


print("as the loop over experts:", close(activated(x, ids, scores, gate_up, down), wanted))

# %% [markdown]
# ## 6 · The sum, without atomics
#
# Last, each token adds up its K rows, weighted. Two ways. Every *row* could add itself to its token's result, as soon
# as it is there: `tl.atomic_add`, which never loses an addition. Or every *token* could fetch its rows.

# %% [markdown]
# Atomics promise that all additions happen, not in which order. Floating-point addition depends on the order: (a + b) +
# c is not a + (b + c).

# %% [markdown]
# How much? Eight numbers can be added in 40,320 orders. How many different float32 results come out?

# %%
p_orders = predict("09.orders", "Eight float32 numbers, added in every order: how many different sums?", 1, 60)

# %%
addends = torch.randn(8, generator=torch.Generator().manual_seed(3))
every = torch.tensor(list(permutations(range(8))))
sums = torch.zeros(len(every))
for k in range(8):
    sums = sums + addends[every[:, k]]
values, times = sums.unique(return_counts=True)
p_orders.against(len(values))

# %% [markdown]
# Where they lie, and how many of the orders lead there:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.5))
    off = (values.double() - addends.double().sum()) * 1e7
    axis.bar(off.tolist(), (100 * times / len(every)).tolist(), width=0.25, color=style.PALETTE[0])
    axis.set(xlabel="10⁻⁷ from the exact sum", ylabel="% of the orders")
fig.alt = f"{len(values)} different sums of eight numbers, from {off.min():.1f} to {off.max():.1f} · 10⁻⁷ off."
display(fig)

# %% [markdown]
# Tiny; but a training run in which no step can be repeated cannot be debugged, and one bit is enough to send a token to
# another expert.

# %% [markdown]
# Now with real atomics: the same kernel, launched several times. The interpreter runs programs one after another, so
# there the order never changes. On a GPU those programs race that run at the same time: with few tokens, all of them.


# %%
@triton.jit
def scatter_kernel(y_ptr, pair_ptr, score_ptr, out_ptr, D, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    pair = tl.load(pair_ptr + row)
    column = tl.arange(0, BLOCK)
    y = tl.load(y_ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32) * tl.load(score_ptr + pair)
    tl.atomic_add(out_ptr + pair // K * D + column, y, mask=column < D)


@triton.jit
def combine_kernel(y_ptr, place_ptr, score_ptr, out_ptr, D, K: tl.constexpr, BLOCK: tl.constexpr):
    """out[token] = Σ score · y[place], always in the order of the slots; one program a token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(K):
        row = tl.load(place_ptr + token * K + slot).to(tl.int64)
        y = tl.load(y_ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32)
        total += y * tl.load(score_ptr + token * K + slot)
    tl.store(out_ptr + token * D + column, total, mask=column < D)


# %%
T, D, E, K = (128, 2048, 64, 8) if gpu else (6, 24, 8, 4)
ids = torch.rand(T, E, generator=draw).argsort(1)[:, :K].to(device)
weights, lay, y = torch.rand(T, K, generator=draw).to(device), layout(ids, E), randn(T * K, D)
results = {"atomics": [], "one program a token": []}
for _ in range(50 if gpu else 2):
    out = [torch.zeros(T, D, device=device) for _ in results]
    scatter_kernel[(T * K,)](y, lay.pair_N, weights, out[0], D, K=K, BLOCK=triton.next_power_of_2(D))
    combine_kernel[(T,)](y, lay.place_TK, weights, out[1], D, K=K, BLOCK=triton.next_power_of_2(D))
    for name, tensor in zip(results, out, strict=True):
        results[name].append(tensor)
changed = {name: 100 * (torch.stack(runs) != runs[0]).any(0).float().mean().item() for name, runs in results.items()}
said = "; ".join(f"{name}: {share:.3g}% of the elements differ between runs" for name, share in changed.items()) + "."
said += "" if gpu else " (Nothing can race here.)"
if gpu and not changed["atomics"]:
    said += " No race was lost this time; nothing promises that of the next run."
display(Markdown(f"{len(results['atomics'])} runs of {T * K:,} programs on {where}: {said}"))

# %% [markdown]
# So every token fetches. It costs nothing more: each row is read once either way, and no result has to be zeroed before
# or read back.

# %% [markdown]
# The layer is three kernels now.


# %% tags=["nbval-check-output"]
def combine(y, lay, scores):
    """The weighted sum of each token's rows."""
    T, K = lay.place_TK.shape
    out = y.new_empty(T, y.shape[1])
    block = triton.next_power_of_2(y.shape[1])
    combine_kernel[(T,)](y, lay.place_TK, scores, out, y.shape[1], K=K, BLOCK=block, num_warps=8 if gpu else 4)
    return out


def three_kernels(x, ids, scores, gate_up, down, order=row_by_row):
    """Gate/up with SwiGLU, down, sum."""
    lay = layout(ids, len(down))
    hidden, _ = hidden_rows(x, gate_up, lay, order)
    return combine(grouped(hidden, down, lay, order), lay, scores)


x, ids, scores, gate_up, down = case(T=21, D=48, width=40, E=6, K=2)
wanted = reference.experts_loop(x.float(), ids, scores, gate_up.float(), down.float())
print("as the loop over experts:", close(three_kernels(x, ids, scores, gate_up, down), wanted))

# %% [markdown]
# ## 7 · Order, size, and who walks
# The kernels are fused. What is left is how their tiles meet the machine.

# %% [markdown]
# First, the **order**. On a GPU with 132
# multiprocessors about 132 tiles are computed at a time. A tile needs its rows of x and its columns of the weights, and
# what several of them need comes from memory once, and then from the L2 cache.

# %% [markdown]
# Row by row, 132 neighbours share rows and need ever new columns; column by column, the other way round. Best is a
# block: down a *group* of rows, then the next column of the same rows, and after the last column the next group.


# %% exercise="09.tile_order"
def tile_order(tile_M: torch.Tensor, rows: int, columns: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in a grid of rows × columns tiles the tiles stand that are computed as numbers `tile_M`.

    Down `group` rows, then the next column of these rows; after the last column on to the next `group` rows. The last
    group has what is left.

    Args:
        tile_M: [M] int64, numbers from 0 to rows · columns − 1, in any order.
        rows, columns, group: 1 or more; `group` need not divide `rows`.

    Returns the row and the column of each, int64 [M].
    """
    ### BEGIN SOLUTION
    first_M = tile_M // (group * columns) * group
    size_M = (rows - first_M).clamp(max=group)
    within_M = tile_M % (group * columns)
    return first_M + within_M % size_M, within_M // size_M
    ### END SOLUTION


# %% check="09.tile_order"
tile_order = check("09.tile_order", tile_order)

# %% [markdown]
# The numbers in a grid of 10 × 6, in groups of four rows; the darkest are computed first:

# %% tags=["nbval-check-output"]
m, n = tile_order(torch.arange(60), 10, 6, 4)
grid = torch.zeros(10, 6, dtype=torch.int64)
grid[m, n] = torch.arange(60)
print("the first ten:", list(zip(m[:10].tolist(), n[:10].tolist(), strict=True)))
with style.use():
    fig, (axis,) = picture.new(size=(5.2, 3.6))
    axis.imshow(grid, aspect="auto")
    for i in range(10):
        for j in range(6):
            axis.text(j, i, str(grid[i, j].item()), ha="center", va="center", color="w" if grid[i, j] < 40 else "k")
    axis.set(xlabel="column tile", ylabel="row tile", xticks=range(6), yticks=range(10))
    axis.grid(False)
fig.alt = "A grid of 10 by 6 tiles with their numbers: down four rows, then the next column, in groups of four rows."
display(fig)

# %% [markdown]
# How much that is depends on the shape. OLMoE's first product has 8 columns of 256, so 132 tiles row by row are a block
# of 16 by 8 already. Mixtral's has 112 columns: there row by row, 132 tiles have hardly more than one row.

# %% [markdown]
# What do 132 tiles of Mixtral's first product need, row by row? How many times as much as in groups of 16 rows?

# %%
p_order = predict(
    "09.order", "Mixtral: 132 tiles row by row need how many times the bytes of groups of 16 rows?", 1, 10, "×"
)

# %%
MIXTRAL = SHAPES["moe"]["mixtral-4k"]


def fetched(shape, group, block_m=128, block_n=256, at_once=132):
    """MiB that tiles computed together need, each strip of x and of the weights once; on average."""
    expert_M, _ = tile_map(skewed_counts(shape.T, shape.E, shape.K), block_m)
    rows, columns = len(expert_M), 2 * shape.F // block_n
    m, n = tile_order(torch.arange(rows * columns), rows, columns, group)
    found = []
    for start in range(0, rows * columns - at_once, at_once):
        here = slice(start, start + at_once)
        strips = len(m[here].unique()) * block_m + len((expert_M[m[here]] * columns + n[here]).unique()) * block_n
        found.append(strips * shape.D * 2 / 2**20)
    return sum(found) / len(found)


GROUPS = (1, 2, 4, 8, 16, 32, 4096)
need = {shape.name: {group: fetched(shape, group) for group in GROUPS} for shape in (MIXTRAL, OLMOE)}
p_order.against(need["mixtral-4k"][1] / need["mixtral-4k"][16], calculated=True)

# %% [markdown]
# Does it matter for time? On a GPU *your* kernel is launched in each order, at Mixtral's size. Without one, the bytes
# stand alone.

# %%
took = {}
if gpu:
    wide = bench.moe.draw(MIXTRAL, fast, device, seed)
    lay = layout(wide.topk_ids_TK, MIXTRAL.E)
    given = (wide.x_TD.detach(), wide.gate_up_E2FD.detach(), lay)
    calls = {group: partial(hidden_rows, *given, partial(tile_order, group=group)) for group in GROUPS}
    seconds, _ = take_turns(calls, device, rounds=5, repeats=2)
    took = {group: 1e3 * sorted(each)[len(each) // 2] for group, each in seconds.items()}
    del wide, given, calls

# %%
with style.use():
    fig, axes = picture.new(columns=2 if took else 1, size=(9.6 if took else 6.2, 2.8))
    for (name, values), mark in zip(need.items(), "os", strict=True):
        axes[0].plot(range(len(GROUPS)), list(values.values()), f"{mark}-", label=name)
    axes[0].set(ylabel="MiB for 132 tiles", ylim=(0, None))
    axes[0].legend()
    if took:
        axes[1].plot(range(len(took)), list(took.values()), "o-", color=style.PALETTE[2])
        axes[1].set(ylabel="ms, mixtral-4k, first product", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="rows in a group")
        axis.set_xticks(range(len(GROUPS)), [*map(str, GROUPS[:-1]), "all"])
fig.alt = "MiB that 132 tiles need, by rows in a group: " + "; ".join(
    f"{name} " + ", ".join(f"{g} {v:.0f}" for g, v in values.items()) for name, values in need.items()
) + ("; ms: " + ", ".join(f"{g} {v:.2f}" for g, v in took.items()) if took else "") + "."  # fmt: skip
display(fig)

# %% [markdown]
# Both ends are bad for wide matrices: one row, or one column, shares nothing. Where the bytes fall and the time does
# not, the cache was fast enough for either order.

# %% [markdown]
# ### The size of a tile
# A step over `block_k` loads (m + n)·k numbers and does 2·m·n·k FLOPs: the larger the tile, the fewer bytes each FLOP
# needs from the L2 cache. But its sums must fit into registers, several steps of operands into shared memory, and its
# empty rows are waste.

# %% [markdown]
# An **autotuner** tries a list and keeps the best. Ours is short, each entry with a reason.

# %%
TILES = {
    "large": tiles.Tile(128, 256, 64, 8, 4),  # the sums fill half of a multiprocessor's registers
    "large, three stages": tiles.Tile(128, 256, 64, 8, 3),  # less in flight, more shared memory left
    "square": tiles.Tile(128, 128, 64, 8, 4),  # half the sums, a third more bytes a FLOP
    "flat": tiles.Tile(64, 256, 64, 8, 4),  # half the empty rows
    "small": tiles.Tile(64, 128, 64, 4, 4, 2),  # two programs a multiprocessor hide each other's stores
    "few rows": tiles.Tile(16, 128, 128, 4, 3, 2),  # for decoding
}


@cache
def tuned(T, D, width, E, K):
    """TFLOP/s of labkit's first product with each tile, real rows only; searched once for a shape, then remembered."""
    case = bench.moe.draw(MoEShape("tuned", T, D, width, E, K), fast, device, seed)
    calls, useful = {}, 4 * T * K * D * width
    with torch.no_grad():
        for name, tile in TILES.items():
            places = permute.expert_map(case.topk_ids_TK, E, tile.block_m)
            given = (case.x_TD.detach(), case.gate_up_E2FD.detach(), places, tile)
            calls[name] = partial(grouped_mm.gate_up, *given, save=False)
        seconds, missing = take_turns(calls, device, rounds=4, repeats=3)
    return {name: useful / min(each) / 1e12 for name, each in seconds.items()}, missing


# %% [markdown]
# Left: FLOPs for each byte that a tile needs from the cache, more is better. Right: its empty rows at two sizes of
# batch. On a GPU, the rates are measured with the course's kernel, at both sizes.

# %%
SMALL = 512
intensity = [tile.block_m * tile.block_n / (tile.block_m + tile.block_n) for tile in TILES.values()]
empty = {T: [100 * waste(skewed_counts(T), tile.block_m) for tile in TILES.values()] for T in (SMALL, OLMOE.T)}
rates = {T: tuned(T, OLMOE.D, OLMOE.F, OLMOE.E, OLMOE.K)[0] for T in (SMALL, OLMOE.T)} if gpu else {}
if gpu:
    missing = tuned(OLMOE.T, OLMOE.D, OLMOE.F, OLMOE.E, OLMOE.K)[1]
    print("\n".join(f"{name}: {why}" for name, why in missing.items()) or "every tile of the list runs here")

# %%
with style.use():
    fig, axes = picture.new(columns=3 if gpu else 2, size=(10.5 if gpu else 8.6, 3.0))
    axes[0].barh(list(TILES), intensity, color=style.PALETTE[0])
    axes[0].set(xlabel="FLOPs a byte from L2")
    for shift, (T, shares) in enumerate(empty.items()):
        places = [i + 0.4 * shift for i in range(len(TILES))]
        axes[1].barh(places, shares, 0.38, color=style.PALETTE[1 + shift], label=f"{T:,} tokens")
        if gpu:
            values = [rates[T].get(name, 0) for name in TILES]
            axes[2].barh(places, values, 0.38, color=style.PALETTE[1 + shift], label=f"{T:,} tokens")
    axes[1].set(xlabel="% of the rows empty", yticks=[])
    axes[1].legend(fontsize=8)
    if gpu:
        axes[2].set(xlabel="TFLOP/s, real rows", yticks=[])
        axes[2].legend(fontsize=8)
    for axis in axes:
        axis.invert_yaxis()
fig.alt = "Tiles: " + "; ".join(
    f"{name} {i:.0f} FLOPs a byte" + "".join(f", {rates[T].get(name, 0):.0f} TFLOP/s at {T} tokens" for T in rates)
    for name, i in zip(TILES, intensity, strict=True)
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# What a tile saves at one size of batch it loses at another, by its empty rows. That is why `labkit.kernels.tiles` has
# three heights and looks the right one up, by the rows that an expert has on average.

# %% [markdown]
# Searching *during* a call would be worse than any of them: every variant is compiled for a second or more. So `tuned`
# remembers, and what it found goes into a table in the source.

# %% [markdown]
# ### A persistent grid
#
# Your kernels start one program a tile, thousands of them. The course's start 132, each of which walks from tile to
# tile (`for tile in tl.range(program_id, tiles, num_programs)`), so that the next tile's loads can begin while this one
# is stored. The same kernel with as many programs as tiles shows the difference.

# %%
said = "Not measured: no GPU here, and interpreted programs run one after another anyway."
if gpu:
    big = bench.moe.draw(OLMOE, fast, device, seed)
    with torch.no_grad():
        calls = {}
        for name, count in (("persistent", 1), ("one program a tile", 10**6)):
            tile = replace(TILES["large"], programs=count)
            places = permute.expert_map(big.topk_ids_TK, OLMOE.E, tile.block_m)
            given = (big.x_TD.detach(), big.gate_up_E2FD.detach(), places, tile)
            calls[name] = partial(grouped_mm.gate_up, *given, save=False)
        seconds, _ = take_turns(calls, device, rounds=5, repeats=3)
    said = f"{where}, first product: " + ", ".join(f"{n} {1e3 * sorted(s)[2]:.2f} ms" for n, s in seconds.items())
display(Markdown(said))

# %% [markdown]
# ### Step by step
# Now all versions in one run, taking turns, beside torch's and transformers' own and the course's kernel.

# %% [markdown]
# `labkit` adds what this lab leaves out: weights fetched by the copy engine (*descriptors*), gate and up in a single
# product 256 wide, the map in one kernel without waiting for the host, and the persistent grid.

# %%
p_steps = predict(
    "09.steps", "Separate passes take how many times as long as your last version (CPU: bytes)?", 1, 5, "×"
)


# %%
def contestant(layer):
    """A layer as the bench calls it."""

    def make(case):
        given = (case.x_TD, case.topk_ids_TK, case.topk_scores_TK, case.gate_up_E2FD, case.down_EDF)
        return bench.Call(partial(layer, *given), graphs=False)

    return {"moe": make}


STEPS = {
    "1 separate passes": separate_passes,
    "2 gather in the product": gathered,
    "3 SwiGLU in the product": activated,
    "4 one sum": three_kernels,
    "5 tiles in groups": partial(three_kernels, order=partial(tile_order, group=16)),
}

# %% [markdown]
# The bench checks each against float32, and measures the ceilings in the same rounds.

# %%
plan = bench.Plan(
    {"moe": [OLMOE if gpu else TINY["moe"]["tiny"]]}, device, fast, rounds=7 if gpu else 1, repeats=3 if gpu else 1,
    direction="forward", peers={name: contestant(layer) for name, layer in STEPS.items()},
    without=("transformers eager",),
)  # fmt: skip
(steps,) = bench.measure(plan)
ms = {each.name: 1e3 * each.median for each in steps.measured} if gpu else {}
names = [name for name in STEPS if name in ms or not gpu]
gained = ms[names[0]] / ms[names[-1]] if gpu else total["separate passes"] / total["one sum"]
p_steps.against(gained, calculated=not gpu)

# %% [markdown]
# On a GPU the bars are times and the line is the floor at the ceilings measured in the same rounds. Without one they
# are the bytes of section 1, and the text says only whether each version is right.

# %%
OTHERS = [each.name for each in steps.measured if each.name not in STEPS]
bars = {n: ms[n] for n in (*names, *OTHERS)} if gpu else {n: total[n] / 2**30 for n in list(total)[:4]}
with style.use():
    fig, (axis,) = picture.new(size=(8.8, 3.4))
    colors = [style.PALETTE[0] if n in STEPS or not gpu else style.LIT if n == "labkit" else style.GREY for n in bars]
    axis.barh(list(bars), list(bars.values()), color=colors)
    for i, value in enumerate(bars.values()):
        axis.text(value, i, f" {value:.2f}", va="center", fontsize=9)
    if gpu and steps.floor:
        axis.axvline(1e3 * steps.floor, color=style.INK, linestyle=":")
        floor = f"the floor, {1e3 * steps.floor:.2f} ms"
        axis.text(1e3 * steps.floor, 1.02, floor, transform=axis.get_xaxis_transform(), ha="center", fontsize=9)
    axis.set(xlabel=f"ms forward, OLMoE, 16,384 tokens, {where}" if gpu else "GiB moved, OLMoE, 16,384 tokens")
    axis.invert_yaxis()
fig.alt = (
    ", ".join(f"{n} {v:.2f}" for n, v in bars.items())
    + (" ms" if gpu else " GiB")
    + (f"; the ceiling allows {1e3 * steps.floor:.2f} ms." if gpu and steps.floor else ".")
)
display(fig)

# %% tags=["nbval-check-output"]
mine = {each.name: each for each in steps.measured}
for name in STEPS:
    print(f"{name:<24} right: {name in mine and not mine[name].wrong(steps.dtype)}")

# %% [markdown]
# Step by step, then: what is fused away is time won. Groups of tiles (step 5) are for wide matrices, as Mixtral's were
# above; OLMoE's row by row was a block already. What is left between your last version and the course's is the rate of
# the products.

# %% [markdown]
# ## 8 · Backward
#
# From the gradient g of the result, with a row's score s and hidden row h = SiLU(a)·u, its gradients are
#
# $$ \hat g = g W_d, \quad \partial s = \langle \hat g, h \rangle, \quad \partial u = s\,\hat g\,\mathrm{SiLU}(a), \quad
# \partial a = s\,\hat g\,u\,\mathrm{SiLU}'(a), \quad \partial x = [\partial a, \partial u]\, W_{gu} , $$
# and for the matrices, sums over an expert's rows: ∂W_gu = Σ [∂a, ∂u] ⊗ x, ∂W_d = Σ g ⊗ s·h.

# %% [markdown]
# All that it takes from the
# forward pass is **a and u**, the pre-activation: 2·F numbers a row (SonicMoE, Guo et al. 2025).

# %% [markdown]
# Autograd on its own keeps more: what every operation might need. We count, for torch's `grouped_mm`, what is saved
# besides inputs and weights.

# %%
p_saved = predict("09.saved", "torch's grouped_mm keeps how many times the pre-activation's bytes?", 1, 10, "×")


# %%
def kept_bytes(call, *given):
    """Bytes that autograd holds after a call, without those of its inputs; each storage once."""
    own, found = {t.untyped_storage().data_ptr() for t in given}, {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(*given)
    return sum(t.untyped_storage().nbytes() for at, t in found.items() if at not in own and t.is_floating_point())


x, ids, scores, gate_up, down = (t.cpu() for t in case(T=64, D=64, width=32, E=8, K=2, dtype=torch.float32))
leaves = [t.requires_grad_() for t in (x, scores, gate_up, down)]
kept = kept_bytes(dispatch.experts_grouped_mm, x, ids, scores, gate_up, down)
pre_bytes = 64 * 2 * 2 * 32 * 4
p_saved.against(kept / pre_bytes)

# %% [markdown]
# (Of OLMoE's proportions: D is twice F.) Of the products, two are old friends with other matrices: ĝ is a gathered
# product with W_d, ∂x a product with W_gu and the sum of a token's rows.

# %% [markdown]
# New is the gradient of the weights. Its *depth* is the expert's rows, gathered on one side, and now the ragged end is
# inside the loop.

# %% [markdown]
# Two matrices need it, and one is stored the other way round: ∂W_d is [D, F] with the gathered operand first, ∂W_gu is
# [2F, D] with the gathered operand last. So the kernel gets strides. And an expert without rows still has a gradient.


# %% exercise="09.weight_gradient"
@triton.jit
def weight_gradient(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[expert] = Σ x[token of the row]ᵀ · y[row] over the expert's rows; zeros for an expert without rows.

    Program (e, i, j) computes rows i · BLOCK_M … of D and columns j · BLOCK_N … of W, for expert e.

    Args:
        x_ptr: [T, D] contiguous, in token order; token_ptr: [N] int32, the token of each row.
        y_ptr: [N, W] contiguous, in expert order; offset_ptr: [E + 1] int32, each expert's first row, and N.
        out_ptr: E blocks of D · W elements; element (d, w) lies d · d_stride + w · w_stride after its block's first.
        BLOCK_K: rows in a step. Sums are float32.
    """
    ### BEGIN SOLUTION
    expert = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = tl.load(offset_ptr + expert), tl.load(offset_ptr + expert + 1)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        mine = row < end
        token = tl.load(token_ptr + row, mask=mine, other=0).to(tl.int64)
        x = tl.load(x_ptr + token[:, None] * D + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0)
        y_at = row.to(tl.int64)[:, None] * W + w[None, :]
        y = tl.load(y_ptr + y_at, mask=mine[:, None] & (w < W)[None, :], other=0.0)
        product = tl.dot(tl.trans(x), y, product)
    at = expert * D * W + d[:, None] * d_stride + w[None, :] * w_stride
    tl.store(out_ptr + at, product, mask=(d < D)[:, None] & (w < W)[None, :])
    ### END SOLUTION


# %% check="09.weight_gradient"
weight_gradient = check("09.weight_gradient", weight_gradient)

# %% [markdown]
# Everything together as an operation that autograd knows. The products over rows and the pass over the pre-activation
# are the course's (`rows_times`, `swiglu_backward`), and so are its map and its sum; the weights' gradients are yours.


# %%
def gradient_of(x, y, lay, turned):
    """The weights' gradient: [E, D, W], or with `turned` [E, W, D]."""
    E, D, W = len(lay.counts_E), x.shape[1], y.shape[1]
    out = x.new_empty((E, W, D) if turned else (E, D, W))
    strides = (1, D) if turned else (W, 1)
    grid = (E, triton.cdiv(D, BLOCKS["BLOCK_M"]), triton.cdiv(W, BLOCKS["BLOCK_N"]))
    weight_gradient[grid](x, y, lay.token_N, lay.offset_E1, out, D, W, *strides, **BLOCKS)
    return out


# %% [markdown]
# Forward keeps `pre` and nothing else that was computed; backward lays the rows out again, since counting is cheap.


# %%
class Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ids, scores, gate_up, down, save):
        lay, order = layout(ids, len(down)), partial(tile_order, group=16)
        hidden, pre = hidden_rows(x, gate_up, lay, order, save)
        ctx.save_for_backward(x, ids, scores, gate_up, down, *(() if pre is None else (pre,)))
        return combine(grouped(hidden, down, lay, order), lay, scores.contiguous())

    @staticmethod
    def backward(ctx, grad):
        x, ids, scores, gate_up, down, pre = ctx.saved_tensors
        lay, grad = layout(ids, len(down)), grad.contiguous()
        tile, _ = tiles.tiles(x.dtype, ids.numel() / len(down), x.device)
        places = permute.expert_map(ids, len(down), tile.block_m)
        rows = grouped_mm.rows_times(grad, down, places, tile, gather=True, transposed=False)
        grad_pre, weighed, grad_scores = backward.swiglu_backward(rows, pre, scores, places)
        rows = grouped_mm.rows_times(grad_pre, gate_up, places, tile, gather=False, transposed=False)
        grad_x = house_combine.combine(rows, places.place_TK)
        grad_gate_up = gradient_of(x, grad_pre, lay, turned=True)
        grad_down = gradient_of(grad, weighed, lay, turned=False)
        return grad_x, None, grad_scores.to(scores.dtype), grad_gate_up, grad_down, None


def yours(x, ids, scores, gate_up, down):
    """The layer on your kernels, differentiable."""
    given = [t.contiguous() for t in (x, ids, scores, gate_up, down)]
    return Experts.apply(*given, torch.is_grad_enabled() and any(t.requires_grad for t in given))


# %% [markdown]
# `yours` makes everything contiguous first: a wrapper owns what its kernels take for granted. It also says whether to
# save, since inside `forward` nobody can tell: `ctx.needs_input_grad` is true under `no_grad`, too.

# %% [markdown]
# Every gradient, against what autograd makes of the loop over experts in float32. One expert is left without a token.

# %% tags=["nbval-check-output"]
x, ids, scores, gate_up, down = case(T=21, D=48, width=40, E=6, K=2)
ids = torch.where(ids == 3, 4, ids)
given, grad = {"x": x, "scores": scores, "gate_up": gate_up, "down": down}, randn(21, 48, dtype=fast)
found = {}
for name, layer, dtype in (("yours", yours, fast), ("loop", reference.experts_loop, torch.float32)):
    leaves = {n: t.detach().to(torch.float32 if n == "scores" else dtype).requires_grad_() for n, t in given.items()}
    out = layer(leaves["x"], ids, leaves["scores"], leaves["gate_up"], leaves["down"])
    found[name] = torch.autograd.grad(out, list(leaves.values()), grad.to(dtype))
for name, mine, right in zip(given, found["yours"], found["loop"], strict=True):
    error = ((mine.float() - right).norm() / right.norm()).item()
    print(f"gradient of {name:<8} as the loop's: {error < (1e-5 if fast == torch.float32 else 2e-2)}")
print("the expert without tokens has zeros:", not found["yours"][2][3].any().item())

# %%
off = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(found["yours"], found["loop"], strict=True)]
with style.use():
    fig, (axis,) = picture.new(size=(6.4, 2.0))
    axis.barh(list(given), off, color=style.PALETTE[0])
    axis.set(xscale="log", xlabel=f"relative error in {str(fast).removeprefix('torch.')}, log scale", xlim=(1e-8, 1))
    axis.invert_yaxis()
fig.alt = (
    "Relative errors of the gradients: " + ", ".join(f"{n} {e:.1e}" for n, e in zip(given, off, strict=True)) + "."
)
display(fig)

# %% [markdown]
# ## 9 · Where the time goes
#
# Forward and backward together are nine products of N·D·F multiplications. Which share of them is in the gradients of
# the weights? And of the time?

# %%
p_share = predict(
    "09.share", "Gradients of the weights: which share of a step's time (CPU: of its FLOPs)?", 0, 100, "%"
)

# %%
PARTS = {  # FLOPs in units of N·D·F, and words in the kernels' names
    "gate/up": (4, ("_gate_up",)), "down, grad hidden, grad x": (8, ("_rows",)),
    "grad weights": (6, ("_weight_gradient",)), "SwiGLU′": (0, ("_swiglu_backward",)),
    "sums": (0, ("_combine",)), "map": (0, ("_count", "_scan", "_place")),
}  # fmt: skip
spent = {}

# %% [markdown]
# One step of the course's kernels under the profiler, kernels added up by their names, where there is a GPU:

# %%
if gpu:
    mine = [t.detach().requires_grad_() for t in (big.x_TD, big.topk_scores_TK, big.gate_up_E2FD, big.down_EDF)]
    step = lambda: torch.autograd.grad(  # noqa: E731
        dispatch.experts(mine[0], (big.topk_ids_TK, mine[1]), mine[2], mine[3], implementation="triton"),
        mine,
        big.grad_TD,
    )
    step(), step()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as prof:
        step()
        torch.cuda.synchronize()
    events = [e for e in prof.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    for name, (_, words) in PARTS.items():
        spent[name] = sum(e.time_range.elapsed_us() for e in events if e.name.startswith(words)) / 1e3
    spent["other"] = sum(e.time_range.elapsed_us() for e in events) / 1e3 - sum(spent.values())
part = spent["grad weights"] / sum(spent.values()) if gpu else 6 / 18
p_share.against(100 * part, calculated=not gpu)

# %% [markdown]
# Operations by counting; time, on a GPU, by the profiler, for the course's kernels. Parts without products are passes
# over memory.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 3.0))
    flops = [100 * share / 18 for share, _ in PARTS.values()]
    axis.barh(range(len(PARTS)), flops, 0.38, label="of the FLOPs", color=style.PALETTE[0])
    if gpu:
        all_ms = sum(spent.values())
        axis.barh([i + 0.4 for i in range(len(spent))], [100 * v / all_ms for v in spent.values()], 0.38,
                  label=f"of {all_ms:.1f} ms on {where}", color=style.PALETTE[1])  # fmt: skip
    axis.set(xlabel="%", yticks=[i + 0.2 * gpu for i in range(len(spent or PARTS))], yticklabels=list(spent or PARTS))
    axis.invert_yaxis()
    axis.legend(loc="lower right")
fig.alt = "Share of the FLOPs: " + ", ".join(f"{n} {s:.0f}%" for n, s in zip(PARTS, flops, strict=True)) + (
    "; of the time: " + ", ".join(f"{n} {v:.2f} ms" for n, v in spent.items()) if gpu else ""
) + "."  # fmt: skip
display(fig)
if not gpu:
    display(Markdown("Time is not measured here: there is no GPU, and an interpreted kernel's time says nothing."))

# %% [markdown]
# Compare the two bars of a part: the smaller its FLOPs are beside its time, the lower the rate of its products. Parts
# without FLOPs take time, too.
# `docs/kernels.md` tells for each what was tried: what was expected, what came, and what was learnt from the
# difference.

# %% [markdown]
# ## 10 · Beside the peers
# A kernel is as good as what it beats. The bench draws a skewed routing, computes all outputs and gradients in float32,
# checks everyone against them, and lets everyone take turns with the machine's ceilings. Nobody is left out for being
# faster.

# %% [markdown]
# On a GPU two shapes of published models are measured, OLMoE's and Mixtral's. Without one a tiny shape shows that yours
# is right, interpreted, and a small one gives times of torch's and transformers' own code on this CPU.

# %% [markdown]
# One number can be had on any machine: how far is transformers' eager loop behind torch's `grouped_mm`?

# %%
p_peers = predict(
    "09.peers",
    "OLMoE, forward + backward: transformers' eager loop takes how many times as long as torch's grouped_mm "
    "(CPU: a small shape)?",
    0, 30, "×",
)  # fmt: skip


# %%
def title(result):
    return f"{result.shape['name']}, {result.mode}"


def with_gradients(case):
    given = (case.x_TD, case.topk_ids_TK, case.topk_scores_TK, case.gate_up_E2FD, case.down_EDF)
    return bench.Call(partial(yours, *given), case.leaves, graphs=False)


peer = {"yours": {"moe": with_gradients}}
if gpu:
    plans = [bench.Plan({"moe": [OLMOE, MIXTRAL]}, device, fast, rounds=5, repeats=2, peers=peer)]
else:
    small = MoEShape("small", T=256, D=256, F=128, E=16, K=2)
    plans = [
        bench.Plan({"moe": [TINY["moe"]["tiny"]]}, device, fast, rounds=1, repeats=1, peers=peer),
        bench.Plan({"moe": [small]}, device, fast, rounds=3, repeats=2, without=("labkit",)),
    ]
table = [result for plan in plans for result in bench.measure(plan)]
times = {each.name: each.median for each in table[1 if gpu else 3].measured}
slow, quick = times.get("transformers eager", 0.0), times.get("torch grouped_mm", 0.0)
p_peers.against(slow / quick if quick else 0.0)

# %% [markdown]
# Everyone, fastest first, forward and then forward and backward; who could not take part, with the reason:

# %%
lines = ["| shape | | ms | of the ceiling | saved MiB | error |", "|---|---|---|---|---|---|"]
for result in table:
    for each in sorted(result.measured, key=lambda each: each.median):
        ours = each.name in ("labkit", "yours")
        time = "not timed" if result.interpreted and ours else f"{1e3 * each.median:.3g}"
        share = f"{result.floor / each.median:.0%}" if result.floor else "–"
        held = "–" if each.saved is None else f"{each.saved / 2**20:,.0f}"
        name = f"**{each.name}**" if ours else each.name
        worst = max(each.errors.values())
        lines.append(f"| {title(result)} | {name} | {time} | {share} | {held} | {worst:.1e} |")
    lines += [f"| {title(result)} | {absent.name} | – | – | – | {absent.reason} |" for absent in result.absent]
display(Markdown("\n".join(lines)))

# %% [markdown]
# In words, and as a picture: how far each is from what the ceilings allow, where that is known.


# %%
def shares(result):
    """Shares of the ceiling where times count, else the largest errors; an eager loop is too slow to be seen."""
    told = [e for e in result.measured if not result.floor or e.name != "transformers eager"]
    return {e.name: result.floor / e.median if result.floor else max(e.errors.values()) for e in told}


verdicts = [(result, result.verdict(name)) for result in table for name in ("labkit", "yours")]
said = [f"{title(r)}: {v.ours} is {v.ratio:.2f} times as fast as {v.other}, {v.word}" for r, v in verdicts if v]
display(
    Markdown("; ".join(said) + "." if said else "Kernels were interpreted: errors count, times do not, no verdict.")
)
with style.use():
    drawn = table if gpu else table[:2]
    fig, axes = picture.new(columns=2, rows=len(drawn) // 2, size=(10.0, 1.4 * len(drawn)))
    for axis, result in zip(axes, drawn, strict=True):
        colors = [{"yours": style.PALETTE[0], "labkit": style.LIT}.get(name, style.GREY) for name in shares(result)]
        axis.barh(list(shares(result)), list(shares(result).values()), color=colors)
        axis.set(xlabel="of the ceiling" if result.floor else "largest relative error", title=title(result))
        axis.set_xlim(0, 1 if result.floor else None)
        axis.invert_yaxis()
fig.alt = "; ".join(f"{title(r)}: " + ", ".join(f"{n} {v:.2g}" for n, v in shares(r).items()) for r in drawn) + "."
display(fig)

# %% [markdown]
# The column "saved" is the other half of the story: what each keeps from forward to backward, on a GPU by the
# allocator. `labkit bench moe` makes the whole table, on six shapes, with peers of your own from a file.

# %% [markdown]
# ## 11 · Few tokens
# When a model writes one token at a time, T is 1 and an expert has one row. Arithmetic is idle; the weights of K
# experts have to come in, and launches have to be paid.

# %% [markdown]
# The floor is bytes, those of the experts that are visited:

# %%
p_decode = predict(
    "09.decode", "One token, OLMoE: how long do labkit's experts take, in a graph (CPU: H100, at least)?", 0, 400, "µs"
)

# %%
FEW = (1, 4, 16, 64, 256)
config = MoEConfig(d_model=OLMOE.D, d_expert=OLMOE.F, num_experts=OLMOE.E, top_k=OLMOE.K)
least = {T: 6 * OLMOE.D * OLMOE.F * expected_experts(config, T) / ceiling.bandwidth for T in FEW}
lowest, decoded = f"weights alone, {whose}", []
if gpu:
    decode = {"decode": [SHAPES["decode"][f"olmoe-{T}"] for T in (1, 16, 64, 256)]}
    plan = bench.Plan(
        decode, device, fast, rounds=5, repeats=5, without=("torch grouped_mm, compiled", "transformers eager")
    )
    decoded = list(bench.measure(plan))
    least, lowest = {r.shape["T"]: r.floor for r in decoded}, "the floor, measured in the same rounds"
ours = [next((e.median for e in r.measured if e.name == "labkit"), None) for r in decoded]
p_decode.against(1e6 * (ours[0] if ours and ours[0] else least[1]), calculated=not gpu)

# %% [markdown]
# At one token, 15 of a tile's 16 rows are empty: it does not matter, since nothing waits for arithmetic.

# %% [markdown]
# What matters is one launch for the whole layer: a **CUDA graph** replays the recorded kernels without the host. That
# is possible because nothing in the layer waits for a number from the GPU. (*Your* tile map does: how many tiles there
# are decides the shape of its result. The course's reserves room for the most that there can be.)

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.0))
    axis.plot(list(least), [1e6 * s for s in least.values()], ":", color=style.INK, label=lowest)
    for name in dict.fromkeys(e.name for r in decoded for e in r.measured):
        points = [(r.shape["T"], e.median) for r in decoded for e in r.measured if e.name == name]
        axis.plot([T for T, _ in points], [1e6 * s for _, s in points], "o-", label=name)
    axis.set(xscale="log", xlabel="tokens", ylabel="µs, OLMoE's experts", ylim=(0, None))
    axis.set_xticks(FEW, [str(T) for T in FEW])
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Dotted, {lowest}: " + ", ".join(f"{1e6 * s:.0f} µs at {T}" for T, s in least.items()) + "".join(
    f"; at {r.shape['T']} tokens " + ", ".join(f"{e.name} {1e6 * e.median:.0f}" for e in r.measured) for r in decoded
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# From some 64 tokens on nearly all experts are visited, and the dotted line is flat: the weights of 256 tokens are
# those of 64. That is why servers collect requests (lab 12).

# %% [markdown]
# ## 12 · Your kernels in a model
# `labkit.kernels.dispatch` decides which implementation computes the experts. A new one is registered with a name, and
# `force` makes every layer of every model use it, inside a block.

# %% [markdown]
# Yours gets no device for which it would be chosen by itself: it runs only where it is asked for.

# %% tags=["nbval-check-output"]
current = {"layer": yours}
if "yours" not in dispatch.names():
    dispatch.register("yours", lambda *given: current["layer"](*given), devices=())
print("among the implementations now:", "yours" in dispatch.names())

# %% [markdown]
# The model is your own from lab 07 if there is one, else the one that comes with the course. It reads a few
# lines of code three times: on your kernels, and with the experts in torch, in two ways (`sorted`, `grouped_mm`).

# %% [markdown]
# For how many of its positions is the most likely next token the same?

# %%
p_same = predict("09.same", "Of 100 positions, at how many is the most likely next token the same?", 0, 100, "of 100")

# %%
trained = my_model(device=device, dtype=fast)
text = "def total(values):\n    result = 0\n" * (40 if gpu else 1)
tokens = torch.tensor([trained.tokenizer(text)["input_ids"]], device=device)
logits = {}
with torch.no_grad():
    for name in ("yours", "sorted", "grouped_mm"):
        with dispatch.force(name):
            logits[name] = trained.model(tokens).logits[0].float()
agree = (logits["yours"].argmax(-1) == logits["sorted"].argmax(-1)).float().mean().item()
p_same.against(100 * agree)
print(trained)
off = {name: (logits[name] - logits["sorted"]).abs().max().item() for name in ("yours", "grouped_mm")}
print(
    f"{tokens.shape[1]} tokens; largest difference of a logit: yours {off['yours']:.2e}, and between two of torch's",
    end=" ",
)
print(f"ways {off['grouped_mm']:.2e}")

# %% [markdown]
# Where two tokens are equally likely, rounding decides between them, and in bfloat16 two right implementations may
# differ; so may a router's choice between two experts, and then a logit differs by more than rounding.

# %% [markdown]
# On a GPU, a few steps of training follow, on one batch of random tokens, with three implementations of the experts: do
# the losses fall alike?

# %%
losses = {}
if gpu:
    batch = torch.randint(trained.model.config.vocab_size, (8, 256), generator=draw).to(device)
    for name in ("yours", "triton", "grouped_mm"):
        model = my_model(device=device).model.train()
        optimizer, losses[name] = torch.optim.AdamW(model.parameters(), lr=3e-4), []
        for _ in range(15):
            with dispatch.force(name), torch.autocast("cuda", fast):
                loss = model(batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())

# %%
if losses:
    with style.use():
        fig, (axis,) = picture.new(size=(6.8, 2.6))
        for (name, curve), dash in zip(losses.items(), ("o-", "s--", "^:"), strict=True):
            axis.plot(curve, dash, label=name, markersize=4)
        axis.set(xlabel="step", ylabel="loss, nats a token")
        axis.legend()
    fig.alt = "; ".join(f"{n} from {c[0]:.3f} to {c[-1]:.3f}" for n, c in losses.items()) + "."
    display(fig)
else:
    display(Markdown("Not trained here: a step through the interpreter would take minutes."))

# %% [markdown]
# And the other way round: one line puts any transformers MoE model on the course's kernels,
# `labkit.nn.use_kernels(model)`. On a CPU it then runs torch's `grouped_mm`, on a GPU Triton, for training and for
# inference.

# %% [markdown]
# ## 13 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("09")

# %% [markdown]
# ## Claim verdicts
#
# No claim of the ledger is decided in this lab. It leaves what lab 02 could only count: the FLOPs that sparsity saves
# become time only if the rest of the layer does not cost more than it saves. How near this machine gets is in the table
# of section 10.

# %% [markdown]
# ## Further reading
#
# - Gale, Narayanan, Young and Zaharia 2022, *MegaBlocks: efficient sparse training with mixture-of-experts*, arXiv
#   2211.15841: no capacity, no dropped token, products over blocks.
# - Tan, Shen, Panda and Courville 2024, *Scattered mixture-of-experts implementation*, arXiv 2403.08245: gather and
#   scatter inside the product.
# - Guo et al. 2025, *SonicMoE*: little saved, and a backward pass built around it.
# - Triton's tutorials on matrix multiplication and on persistent products; NVIDIA's Hopper tuning guide.
# - This repository's `docs/kernels.md`: ten versions with what was expected of each and what came.
