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
# # 02 · Experts: dispatch, compute, combine
#
# The router has decided. Now every token has to reach its K experts, be worked on, and come back. Those three steps are
# all there is to a sparse layer, and they decide whether "only K of E experts work" becomes time saved or only a nice
# sentence.
#
# After this lab you can
#
# - write a SwiGLU expert, count the tokens of each expert, sort tokens by expert, and bring the outputs back;
# - compute the same layer in three ways (a loop, one-hot einsums, a sort with grouped products) and prove them equal,
#   gradients included;
# - count FLOPs and bytes of each, and say how much of a measured time they explain;
# - judge the claim that activating a few experts "saves 90% of the compute": of what, against what, measured how?

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Every experiment below exists in two sizes. `cpu` shows the effect in seconds on a laptop; `gpu` runs the widths of
# published models in bfloat16; `auto` asks the machine. **Run the cell above and the one below first**: everything
# later builds on them, and each cell on those before it.

# %% tags=["setup"]
import random
import statistics
import time
from types import SimpleNamespace

import torch
from IPython.display import Markdown, display
from torch.nn.functional import gelu, grouped_mm, silu
from torch.utils.flop_counter import FlopCounterMode

from labkit import check, claim, hint, predict, recap, reveal
from labkit.core import cost, metrics, presets, runtime
from labkit.core.config import MoEConfig
from labkit.kernels import dispatch, reference
from labkit.kernels.traffic import traffic
from labkit.nn.oracle import hf_block, hf_experts
from labkit.nn.router import Router
from labkit.show import figures, picture, style
from labkit.train import data

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
dtype = runtime.dtype() if profile == "gpu" else torch.float32
generator = runtime.seed_all(seed)

# %% [markdown]
# ## 1 · A layer without experts
#
# The guide that this course audits shows a router as its mixture of experts. In our own words and with its faults, it
# comes to the function below. **Find the bug**: look at what goes in, what comes out, and what is not there.


# %% tags=["nbval-check-output"]
def guides_layer(x_BD, weight_ED):
    best = (x_BD @ weight_ED.T).softmax(dim=-1).topk(2, dim=-1)
    return best.values, best.indices


x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
values, indices = guides_layer(x, weight)
print("in:", tuple(x.shape), " out:", tuple(values.shape), "and", tuple(indices.shape))
print("parameters:", weight.numel(), "= E·D, the router's own")

# %% [markdown]
# Sixteen features go in, two numbers and two names come out. A layer has to return what it was given, changed: `[4,
# 16]`. There are no experts, so nothing is computed, so nothing can be saved. (That its two values do not sum to one,
# and that it takes no sequence, are faults of the router; lab 01 mends those.)

# %% [markdown]
# The mended layer needs three steps:
#
# 1. **dispatch**: bring each token to its K experts;
# 2. **compute**: run each expert on the tokens that it got;
# 3. **combine**: bring the outputs back and add them, weighted by the router's scores.

# %% [markdown]
# For one token $x$ with chosen experts $i_1, \dots, i_K$ and scores $s_1, \dots, s_K$ the result is
#
# $$ y = \sum_{k=1}^{K} s_k \, \mathrm{expert}_{i_k}(x) $$
#
# (Shazeer et al. 2017, equation 1, with the zero terms of the sum left out). The whole lab is about computing this for
# thousands of tokens at once without touching the terms that are zero.

# %% [markdown]
# ## 2 · Compute: one expert
#
# In most open models since Mixtral an expert is a feed-forward network with **SwiGLU** (Shazeer 2020, equation 6):
#
# $$ \mathrm{expert}(x) = W_\mathrm{down}\,\bigl(\mathrm{SiLU}(W_\mathrm{gate}\,x) \odot W_\mathrm{up}\,x\bigr),
# \qquad \mathrm{SiLU}(z) = z\,\sigma(z) $$
#
# One branch, the gate, decides how much of the other, up, comes through. Three matrices of $D \cdot F$ values each.


# %% exercise="02.swiglu_expert"
def swiglu_expert(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    """One expert's output for its tokens.

    Args:
        x_TD: tokens, [..., D], floating point; there may be none (T = 0).
        w_gate_FD, w_up_FD: [F, D], stored as [out, in].
        w_down_DF: [D, F].

    Returns a tensor like x_TD: same shape and dtype.
    """
    ### BEGIN SOLUTION
    gate_TF = x_TD @ w_gate_FD.T
    up_TF = x_TD @ w_up_FD.T
    return (silu(gate_TF) * up_TF) @ w_down_DF.T
    ### END SOLUTION


# %% check="02.swiglu_expert"
swiglu_expert = check("02.swiglu_expert", swiglu_expert)

# %% [markdown]
# Four gates are in common use: a plain sigmoid (GLU), ReLU (ReGLU), GELU (GEGLU) and SiLU (SwiGLU); Shazeer also tries
# none at all (Bilinear). Look for GELU and SiLU below: they are similar in shape, both dip below zero and come back,
# and to the right GELU runs into ReLU. A port of a model with the wrong one of them still runs and still trains; only
# the weights that were made for the other no longer fit.

# %%
z = torch.linspace(-5, 5, 201)
gates = {"sigmoid (GLU)": z.sigmoid(), "ReLU (ReGLU)": z.relu(), "GELU (GEGLU)": gelu(z), "SiLU (SwiGLU)": silu(z)}
with style.use():
    figure, (ax,) = picture.new(size=(6.5, 3.4))
    for (name, values), dashes in zip(gates.items(), ("-", ":", "--", "-"), strict=True):
        ax.plot(z, values, dashes, label=name)
    ax.set(xlabel="what the gate's matrix gives, z", ylabel="what the gate lets through", ylim=(-0.6, 3))
    ax.legend()
figure.alt = "Four gate functions from -5 to 5: sigmoid stays between 0 and 1; ReLU, GELU and SiLU grow alike."
display(figure)

# %% [markdown]
# A sparse layer holds E such experts. How large is one, and how large are all of them? The next cell reads the widths
# of three published models; you will meet these three shapes again and again in this lab.

# %% tags=["nbval-check-output"]
MODELS = {"Mixtral": "mixtral-8x7b", "OLMoE": "olmoe-1b-7b", "Qwen3": "qwen3-30b-a3b"}
SHAPES = {name: presets.preset(model).moe for name, model in MODELS.items()}
for name, c in SHAPES.items():
    one = 3 * c.d_model * c.d_expert
    print(f"{name:8} D={c.d_model} F={c.d_expert:5} K={c.top_k} of E={c.num_experts:3}  one expert {one / 1e6:6.1f} M,"
          f" all {c.num_experts * one / 1e6:6.0f} M, visited by a token {c.top_k * one / 1e6:5.1f} M")  # fmt: skip

# %% [markdown]
# Few wide experts or many narrow ones: from the first model to the last, the width of an expert falls about as much as
# their number grows. Keep that in mind: it is what makes the verdicts differ.

# %% [markdown]
# ## 3 · How many tokens does each expert get?
#
# A router decides for every token alone. Nobody promised that the experts get equally many, or any at all. Before rows
# are moved, they have to be counted: the counts say where each expert's slice begins and ends.


# %% exercise="02.tokens_per_expert"
def tokens_per_expert(topk_ids_TK, num_experts):
    """How many of the T·K choices fell on each expert.

    Args:
        topk_ids_TK: [T, K] int64, each meant to lie in [0, num_experts); T may be 0.
        num_experts: E.

    Returns [E] int64, an entry for every expert, chosen or not.
    Raises ValueError if an id is num_experts or more.
    """
    ### BEGIN SOLUTION
    counts_E = torch.bincount(topk_ids_TK.flatten(), minlength=num_experts)
    if len(counts_E) > num_experts:
        raise ValueError(f"expert {len(counts_E) - 1} was chosen, but there are only {num_experts}")
    return counts_E
    ### END SOLUTION


# %% check="02.tokens_per_expert"
tokens_per_expert = check("02.tokens_per_expert", tokens_per_expert)

# %% [markdown]
# The trap is worth seeing in daylight. Below, five experts exist and the last two are not chosen. The short count is
# not wrong in any entry; it is wrong in its length, and the next step would pair it with the wrong weights or fail far
# away from here.

# %% tags=["nbval-check-output"]
ids_TK = torch.tensor([[0, 2], [2, 1], [0, 2]])
print("without a length:", torch.bincount(ids_TK.flatten()).tolist())
print("with E = 5      :", tokens_per_expert(ids_TK, 5).tolist())
print("an id too large :", torch.bincount(torch.tensor([0, 6]), minlength=5).tolist(), "(no error)")

# %% [markdown]
# Now real text. The course's corpus has four domains: source code, English, arithmetic, and records. A router needs
# vectors, and we have no trained model, so we make them: every piece of one, two or three bytes has a fixed random
# vector, and each position gets the sum of the pieces that end there, plus the average of that sum over the last eight
# positions. An untrained router with eight experts, two active, decides.

# %% [markdown]
# No training means that nothing has learned to be even *or* uneven: what we see comes from the text. (Its digest is
# printed below. Part of the text is Python's own library, so another Python version means other text and slightly
# other numbers.)

# %%
text = data.corpus(bytes_per_domain=40_000, seed=seed)
batch = data.sample(text, num_sequences=16, sequence_length=256, seed=seed)
config = MoEConfig(d_model=64, d_expert=96, num_experts=8, top_k=2)
router = Router(config)
router.reset_parameters(torch.Generator().manual_seed(seed))
x_TD = data.byte_features(batch.ids_BS, config.d_model, seed=seed).flatten(0, 1)
with torch.no_grad():
    routing = router(x_TD, tokens=batch.tokens, domains=batch.token_domains)
    noise = router(torch.randn(x_TD.shape, generator=generator))
print(f"{routing.num_tokens} tokens; corpus digest {text.digest[:12]}")
letters = [token.replace("␣", "space").replace("⏎", "newline") for token in batch.tokens]
display(figures.routing_matrix(routing, letters, limit=24))

# %% [markdown]
# The baseline is the same router on as many random vectors, drawn independently of each other. **Predict** before you
# look: with an even load the busiest expert has exactly the mean. How many times the mean does it have on text?

# %%
p_busiest = predict("02.busiest", "On text, the busiest of 8 experts has how many times the mean load?", 1, 4, "times")

# %%
counts = {"text": tokens_per_expert(routing.topk_ids_TK, 8), "random vectors": tokens_per_expert(noise.topk_ids_TK, 8)}
p_busiest.against(float(counts["text"].max() / counts["text"].float().mean()))
with style.use():
    figure, axes = picture.new(columns=2, size=(8, 3.2))
    for ax, (name, counts_E) in zip(axes, counts.items(), strict=True):
        ax.bar(range(8), counts_E, color=style.expert_colors(8))
        ax.axhline(counts_E.float().mean(), color=style.INK, linestyle="--", linewidth=1.2, label="even load")
        ax.set(title=name, xlabel="expert", ylabel="tokens", ylim=(0, 1.25 * max(c.max() for c in counts.values())))
        ax.set_xticks(range(8))
        ax.legend(loc="upper right")
figure.alt = "Tokens per expert on text, uneven, and on random vectors, close to the even load drawn dashed."
display(figure)

# %% [markdown]
# The same in numbers. "Above the mean" is the *maximal violation*: how far the busiest expert lies above an even share,
# as a part of that share. Lab 03 will try to bring it to zero. Two more rows ask *why* text is uneven. Does it repeat
# itself? Then it should help to keep each vector once. Or do its vectors resemble one another? Then it should help to
# subtract what they share, their mean.

# %%
with torch.no_grad():
    once_each, centred = router(x_TD.unique(dim=0)), router(x_TD - x_TD.mean(dim=0))
inputs = {"text": routing, "text, each vector once": once_each, "text, mean vector subtracted": centred}
rows = []
for name, r in (inputs | {"random vectors": noise}).items():
    c = tokens_per_expert(r.topk_ids_TK, 8)
    rows.append(f"| {name} | {r.num_tokens} | {int(c.min())} | {int(c.max())} | {metrics.max_violation(r):.2f} |")
head = "| input | tokens | least busy | busiest | above the mean |\n|---|---|---|---|---|\n"
display(Markdown(head + "\n".join(rows)))

# %% [markdown]
# Repetition is not it: nearly all the vectors are different. The vectors of a text *resemble* one another: they share a
# common direction (their mean is not zero), and an untrained router turns that direction into a preference. Take it
# away, and most of the imbalance goes with it. So the load is skewed before any training, and lab 03 shows how training
# makes it worse.

# %% [markdown]
# For this lab the lesson is practical: **an implementation has to be right and fast for uneven slices, some of them
# empty**.

# %% [markdown]
# ## 4 · Dispatch: sort tokens by expert
#
# A GPU wants large products, so the rows of one expert should lie next to each other. There are $N = T \cdot K$ pairs
# (token, expert): flatten the `[T, K]` choices and sort the pairs by expert.

# %% [markdown]
# The sort must be **stable**: pairs of the same expert stay in the order of their tokens. Then there is exactly one
# right answer, and two runs give the same bits. (A sort that is not asked for it may be stable by luck, on short lists
# or on one machine, and not on the next.)

# %% [markdown]
# What the other steps need from the sort is a permutation. We call it `order_N`: place n of the sorted list holds pair
# `order_N[n]` of the flattened `[T, K]`. From the number of a pair follow its token and its slot, and so its score.

# %% [markdown]
# `grouped_mm` also asks where each expert's slice **ends**: the running sum of the counts, in 32-bit integers.


# %% exercise="02.dispatch_by_sort"
def dispatch_by_sort(x_TD, topk_ids_TK, num_experts):
    """Bring every token to its experts: one row for each pair (token, expert), sorted by expert.

    Args:
        x_TD: [T, D] tokens, any floating dtype, on any device.
        topk_ids_TK: [T, K] int64 chosen experts.
        num_experts: E.

    Returns
        x_ND: [N, D], N = T·K, rows of x_TD sorted by expert and, within one expert, in the order of the tokens.
        order_N: [N] int64, which pair of the flattened [T, K] stands at each place.
        offsets_E: [E] int32, where each expert's slice of x_ND ends.
    """
    ### BEGIN SOLUTION
    K = topk_ids_TK.shape[1]
    order_N = topk_ids_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(topk_ids_TK.flatten(), minlength=num_experts)
    return x_TD[order_N // K], order_N, counts_E.cumsum(0).to(torch.int32)
    ### END SOLUTION


# %% check="02.dispatch_by_sort"
dispatch_by_sort = check("02.dispatch_by_sort", dispatch_by_sort)

# %% [markdown]
# Follow eight tokens by hand. Four experts exist and nobody chooses expert 2, so two neighbouring offsets are equal:
# its slice is empty, and nothing special has to be written for it.

# %% tags=["nbval-check-output"]
route_ids_TK = torch.tensor([[0, 3], [1, 0], [3, 1], [0, 1], [3, 0], [1, 3], [0, 3], [0, 1]])
_, order_N, offsets_E = dispatch_by_sort(torch.arange(8.0)[:, None], route_ids_TK, 4)
print("order  ", order_N.tolist())
print("token  ", (order_N // 2).tolist())
print("expert ", route_ids_TK.flatten()[order_N].tolist())
print("offsets", offsets_E.tolist())


# %%
def draw_route(ids_TK, tokens, E, lit):
    K = ids_TK.shape[1]
    _, order_N, offsets_E = dispatch_by_sort(torch.zeros(len(ids_TK), 1), ids_TK, E)
    ends = [0, *offsets_E.tolist()]
    with style.use():
        figure, (ax,) = picture.new(size=(8.5, 5.2))
        for n, pair in enumerate(order_N.tolist()):
            color, home = style.expert_color(int(ids_TK.flatten()[pair]), E), K * (pair // K) + (K - 1) / 2
            wide = 4 if pair // K == lit else 1.3
            ax.plot([0.05, 1, 2, 2.95], [home, n, n, home], color=color, linewidth=wide)
            ax.plot([1, 2], [n, n], "s", color=color, markersize=13)
            ax.text(1, n, tokens[pair // K], ha="center", va="center", color="white", fontsize=9)
        for t, token in enumerate(tokens):
            for x, side in ((0, "right"), (3, "left")):
                ax.text(
                    x, K * t + (K - 1) / 2, f"{t}: {token}", ha=side, va="center", weight="bold" if t == lit else None
                )
        for e in range(E):
            label = f"expert {e}: rows {ends[e]}–{ends[e + 1] - 1}" if ends[e + 1] > ends[e] else f"expert {e}: no rows"
            ax.text(
                1.5,
                (ends[e] + ends[e + 1] - 1) / 2,
                label,
                ha="center",
                va="center",
                backgroundcolor="white",
                fontsize=9,
            )
        ax.set_xticks([0, 1, 2, 3], ["token", "dispatch:\nsorted rows", "compute:\noutput rows", "combine:\ntoken"])
        ax.set(yticks=[], xlim=(-0.4, 3.4), ylim=(len(order_N) - 0.3, -0.7))
        ax.grid(visible=False)
        ax.spines[["left", "bottom"]].set_visible(False)
    return figure


# %% [markdown]
# The same eight tokens, drawn. Each colour is an expert; each token leaves on two lines and gets two answers
# back; token 0 is drawn wide. Read
# it from left to right: the lines cross once on the way out, run in parallel through the experts, and cross back.

# %%
figure = draw_route(route_ids_TK, list("experts!"), 4, lit=0)
figure.alt = (
    "Eight tokens at the left, each with two coloured lines to sorted rows in the middle: expert 0 has rows 0 to 5, "
    "expert 1 rows 6 to 10, expert 2 none, expert 3 rows 11 to 15; the lines return to the same tokens at the right."
)
display(figure)

# %% [markdown]
# The crossing is the price of sparsity. Every row is copied twice, and on several GPUs the crossing becomes
# communication between them (lab 16). Nothing of it is arithmetic, so no FLOP count will ever show it.

# %% [markdown]
# ## 5 · Combine: bring the outputs back
#
# Row n of the experts' output answers pair `order_N[n]`. It has to be multiplied by *that pair's* score and added to
# *that pair's* token. Each token gets K additions. In 16-bit formats those additions should run in float32 and be
# rounded once.


# %% exercise="02.combine"
def combine(y_ND, order_N, topk_scores_TK):
    """Undo the sort and add up each token's K outputs, weighted by its scores.

    Args:
        y_ND: [N, D] expert outputs in sorted order, any floating dtype, on any device.
        order_N: [N] int64 from dispatch_by_sort.
        topk_scores_TK: [T, K] float32, used as they are (they need not sum to one); N = T·K.

    Returns [T, D] in y_ND's dtype and on its device; the sum runs in float32.
    """
    ### BEGIN SOLUTION
    T, K = topk_scores_TK.shape
    weighted_ND = y_ND.float() * topk_scores_TK.flatten()[order_N, None]
    out_TD = y_ND.new_zeros(T, y_ND.shape[1], dtype=torch.float32)
    return out_TD.index_add(0, order_N // K, weighted_ND).to(y_ND.dtype)
    ### END SOLUTION


# %% check="02.combine"
combine = check("02.combine", combine)

# %% [markdown]
# The best-known trap of this step: `out[token] += y`. It reads the old values once, adds, and writes; where a token is
# named twice, one of the two writes is lost. Three rows for token 0 and one for token 1:

# %% tags=["nbval-check-output"]
token = torch.tensor([0, 0, 0, 1])
rows = torch.tensor([1.0, 1.0, 1.0, 1.0])
lossy = torch.zeros(2)
lossy[token] += rows
print("out[token] += rows:", lossy.tolist())
print("index_add         :", torch.zeros(2).index_add(0, token, rows).tolist())

# %% [markdown]
# ## 6 · Three implementations, one layer
#
# The formula of section 1 does not say in which order to work. Three answers are in use.

# %% [markdown]
# **Loop**: for each expert find its tokens, run it, add the result. Obvious, and the reference in most libraries.

# %% [markdown]
# **One-hot**: a 0/1 mask $[T, E]$ turns dispatch and combine into einsums (GShard, Lepikhin et al. 2020, algorithm 2;
# Switch, Fedus et al. 2021). No indices, so compilers for TPUs like it; but every expert now gets a row for every
# token.

# %% [markdown]
# **Sorted**: your dispatch, then *one* product over all experts, `torch.nn.functional.grouped_mm`, whose groups may
# have any size.


# %%
def sorted_grouped(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF):
    x_ND, order_N, offsets_E = dispatch_by_sort(x_TD, topk_ids_TK, gate_up_E2FD.shape[0])
    gate, up = grouped_mm(x_ND, gate_up_E2FD.mT, offs=offsets_E).chunk(2, dim=-1)
    y_ND = grouped_mm(silu(gate) * up, down_EDF.mT, offs=offsets_E)
    return combine(y_ND, order_N, topk_scores_TK)


WAYS = {"loop": reference.experts_loop, "one-hot": reference.experts_onehot, "sorted": sorted_grouped}

# %% [markdown]
# What each of them multiplies, for the first tokens of our text. A square is one token in one expert: coloured where
# the router asked for it, grey where it is computed and then multiplied by zero.

# %%
asked_TE = torch.zeros(24, 8).scatter(1, routing.topk_ids_TK[:24], 1.0)
with style.use():
    figure, axes = picture.new(columns=2, size=(9, 3))
    for ax, name in zip(axes, ("loop, sorted: only what was asked for", "one-hot: everything"), strict=True):
        for t, e in [(t, e) for t in range(24) for e in range(8)]:
            if asked_TE[t, e] or name.startswith("one-hot"):
                color = style.expert_color(e, 8) if asked_TE[t, e] else "#DDDDDD"
                ax.plot(t, e, "s", color=color, markersize=9)
        ax.set(title=name, xlabel="token", ylabel="expert", xlim=(-1, 24), ylim=(7.7, -0.7), yticks=range(8))
        ax.grid(visible=False)
figure.alt = (
    "Tokens against experts: two coloured squares a token on the left; on the right all other squares are grey."
)
display(figure)

# %% [markdown]
# The picture is the whole difference, and it is one of cost. Before we look at cost: do the three agree?

# %% [markdown]
# Equal means: same output **and** same gradients, for the tokens, the scores and both weight tensors. A wrong pairing
# of scores can leave the output right on symmetric data and only spoil the gradients, so both are compared. The input
# is the text that we routed above, with its uneven load.

# %%
small = SimpleNamespace(E=8, D=config.d_model, F=config.d_expert)
gate_up_E2FD = torch.randn(small.E, 2 * small.F, small.D, generator=generator) * small.D**-0.5
down_EDF = torch.randn(small.E, small.D, small.F, generator=generator) * small.F**-0.5
grad_TD = torch.randn(512, small.D, generator=generator)


def output_and_gradients(way, ids_TK):
    inputs = [x_TD[:512], routing.topk_scores_TK[:512], gate_up_E2FD, down_EDF]
    x, scores, gate_up, down = (t.detach().clone().requires_grad_() for t in inputs)
    y = way(x, ids_TK, scores, gate_up, down)
    return y.detach(), *torch.autograd.grad(y, (x, scores, gate_up, down), grad_TD)


# %% [markdown]
# We add one hard case to the real routing: every token chooses experts 0 and 1, so that six of the eight get nothing.
# An expert without tokens must get a gradient of exactly zero, and must not stop the program.

# %% tags=["nbval-check-output"]
NAMES = ("output", "d tokens", "d scores", "d gate_up", "d down")
collapsed = torch.tensor([[0, 1]]).repeat(512, 1)
for case, ids_TK in {"text": routing.topk_ids_TK[:512], "collapsed": collapsed}.items():
    want = output_and_gradients(WAYS["loop"], ids_TK)
    for way in ("one-hot", "sorted"):
        got = output_and_gradients(WAYS[way], ids_TK)
        equal = [
            name for name, a, b in zip(NAMES, got, want, strict=True) if torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        ]
        print(f"{case:9} {way:8} equals the loop in: {', '.join(equal)}")
print("gradient of an expert without tokens:", float(got[3][5].abs().max()))

# %% [markdown]
# And the loop itself? It could be wrong, and then all three would be. So here is an **oracle that this project did not
# write**: the eager experts of transformers' Mixtral and OLMoE, given the same decisions and weights.

# %% tags=["nbval-check-output"]
layer = (x_TD, routing.topk_ids_TK, routing.topk_scores_TK, gate_up_E2FD, down_EDF)
for family in ("mixtral", "olmoe"):
    theirs = hf_experts(family, config, *layer)
    for way, fn in WAYS.items():
        same = torch.allclose(fn(*layer), theirs, rtol=1e-3, atol=1e-4)
        print(f"{way:8} equals transformers' {family}: {same}")

# %% [markdown]
# They agree to rounding, not to the bit: the order of additions differs. How large is the rounding? A loop in float64
# knows the answer; here is the distance of each way from it, in two formats.

# %%
exact = reference.experts_loop(x_TD.double(), *layer[1:3], gate_up_E2FD.double(), down_EDF.double())
with style.use():
    figure, (ax,) = picture.new(size=(7, 2.8))
    for i, number in enumerate((torch.float32, torch.bfloat16)):
        args = (x_TD.to(number), *layer[1:3], gate_up_E2FD.to(number), down_EDF.to(number))
        errors = [float((fn(*args).double() - exact).norm() / exact.norm()) for fn in WAYS.values()]
        ax.barh([y + 0.4 * i for y in range(3)], errors, 0.38, label=str(number).removeprefix("torch."))
    ax.set(xscale="log", xlabel="relative error of the whole output", xlim=(1e-8, 1e-1))
    ax.set_yticks([0.2, 1.2, 2.2], list(WAYS))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
figure.alt = "Relative error of the three ways: alike within one format, far larger in bfloat16 than in float32."
display(figure)

# %% [markdown]
# The format decides how large the error is; the way of computing hardly matters. So from here on the three differ in
# one thing only, and that is what they cost.

# %% [markdown]
# ## 7 · Counting FLOPs
#
# A product of $[a, b]$ with $[b, c]$ takes $a \cdot b \cdot c$ multiply-adds, each counted as two FLOPs. Only matrix
# products are counted; SiLU, the sort and the sums are small beside them. (Small in FLOPs. We will come to time.)


# %% exercise="02.moe_flops"
def moe_flops(T, D, F, E, K):
    """FLOPs of one sparse layer, forward, router included; a multiply-add is two.

    Args:
        T: tokens; D: model width; F: expert width; E: experts; K: experts per token.

    Returns a whole number: the router's product, and three matrices (SwiGLU) for each visited expert.
    """
    ### BEGIN SOLUTION
    router = 2 * T * D * E
    experts = T * K * 3 * (2 * D * F)
    return router + experts
    ### END SOLUTION


# %% check="02.moe_flops"
moe_flops = check("02.moe_flops", moe_flops)

# %% [markdown]
# A formula is a claim too. Torch can count: `FlopCounterMode` watches every matrix product that really runs. Below it
# watches the loop and the one-hot version, and your formula stands beside it (without its router, which none of them
# runs here).


# %% tags=["nbval-check-output"]
def counted(fn, *args, **formulas):
    with FlopCounterMode(display=False, **formulas) as counter, torch.no_grad():
        fn(*args)
    return counter.get_total_flops()


T, K = routing.topk_ids_TK.shape
formula = moe_flops(T, small.D, small.F, small.E, K) - 2 * T * small.D * small.E
print("your formula :", formula)
print("loop, counted:", counted(WAYS["loop"], *layer))
print("one-hot      :", round(counted(WAYS["one-hot"], *layer) / formula, 1), "times as many; E / K is", small.E // K)

# %% [markdown]
# The one-hot version does the work of the **dense** layer, and throws most of it away by multiplying with zero. A
# product with zero costs a product. If a layer's code computes all experts and masks afterwards, it is a mixture of
# experts in its mathematics and a dense layer on its bill. (GShard and Switch limit each expert to a capacity of C
# rows; then the bill is $E \cdot C$ rows, and tokens beyond C are dropped. Lab 03.)

# %% [markdown]
# The same on the real widths, per token. The coloured part is what the router asked for; the grey part is multiplied by
# zero.

# %%
with style.use():
    figure, (ax,) = picture.new(size=(7.5, 2.8))
    for i, c in enumerate(SHAPES.values()):
        for j, (label, way) in enumerate({"loop": "loop", "sorted": "grouped_mm", "one-hot": "onehot"}.items()):
            t = traffic(way, 4096, c.d_model, c.d_expert, c.num_experts, c.top_k)
            ax.barh(4 * i + j, t.useful_flops / 4096e9, color=style.PALETTE[j], label=None if i else label)
            ax.barh(4 * i + j, t.wasted_flops / 4096e9, left=t.useful_flops / 4096e9, color="#DDDDDD")
    ax.set(xlabel="GFLOP a token", yticks=[1, 5, 9])
    ax.set_yticklabels(list(SHAPES))
    ax.invert_yaxis()
    ax.legend(loc="lower right")
figure.alt = "FLOPs a token of the three ways on three models: one-hot is several times the others, mostly grey."
display(figure)

# %% [markdown]
# And the sorted version? Ask the same counter. It depends on the version of torch whether it knows `grouped_mm`; where
# it does not, it says nothing and counts zero. So we hand it the formula of one product as well: every row of `[N, D]`
# meets one expert's matrix.


# %%
def grouped_formula(a_shape, b_shape, *args, out_shape=None, **kwargs):
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]


known = {torch.ops.aten._grouped_mm: grouped_formula}
print("sorted, as this torch counts it:", counted(WAYS["sorted"], *layer))
print("sorted, with the formula added :", counted(WAYS["sorted"], *layer, custom_mapping=known), "of", formula)

# %% [markdown]
# Remember this when a profiler reports an astonishingly cheap layer: a counter counts what it has been told about.

# %% [markdown]
# ## 8 · Claim 1: does sparsity save 90% of the compute?
#
# The guide says that activating two to four experts cuts 90% of redundant computation. It names no model, no width, no
# number of experts, and above all **no baseline**. Saved against what?

# %% [markdown]
# We take the reading that is kindest to the claim: a dense layer with the same *total* parameters, one network of width
# $E \cdot F$. Sparsity then saves
#
# $$ 1 - \frac{2DE + 6KDF}{6EDF} = 1 - \frac{K}{E} - \frac{1}{3F} $$
#
# of the FLOPs: the last term is the router.

# %% [markdown]
# **Predict** for OLMoE, where 8 of 64 experts are active. The widths are on the list above.

# %%
p_flops = predict(
    "02.flops_saved", "OLMoE, 8 of 64 experts: how many % of the dense layer's FLOPs are saved?", 0, 100, "%"
)


# %%
def empty(*shape):
    return torch.empty(*shape, device="meta")  # sizes without memory: the counter needs no more


def sparse_flops(c, T):
    D, F, E, N = c.d_model, c.d_expert, c.num_experts, T * c.top_k
    router = counted(torch.matmul, empty(T, D), empty(D, E))
    expert = counted(swiglu_expert, empty(N // E, D), empty(F, D), empty(F, D), empty(D, F))
    return router + E * expert


def dense_flops(c, T, width):
    D = c.d_model
    return counted(swiglu_expert, empty(T, D), empty(width, D), empty(width, D), empty(D, width))


# %% [markdown]
# The counter runs over the real widths and 4096 tokens. Two more rows take the guide's words at their upper end, four
# active experts: once of Mixtral's eight, and once of the 128 of a published layer, gpt-oss-120b (its widths; its
# biases and its own variant of SwiGLU are left out). OLMoE and Qwen3 activate eight and so lie outside the wording. The
# last column changes the baseline: a dense layer with the same *active* parameters.

# %% tags=["nbval-check-output"]
AUDITED = SHAPES | {
    "gpt-oss, 4 of 128": presets.preset("gpt-oss-120b").moe,
    "guide, 4 of 8": SHAPES["Mixtral"].replace(top_k=4),
}
saved = {}
for name, c in AUDITED.items():
    D, F, E, K = c.d_model, c.d_expert, c.num_experts, c.top_k
    flops = sparse_flops(c, 4096)
    assert flops == moe_flops(4096, D, F, E, K)
    saved[name] = 100 * (1 - flops / dense_flops(c, 4096, E * F))
    active = 100 * (1 - flops / dense_flops(c, 4096, K * F))
    print(f"{name:17} {K} of {E:3}: saves {saved[name]:.2f}% of equal total, {active:.2f}% of equal active parameters")

# %%
p_flops.against(saved["OLMoE"], calculated=True)


def described(name, c):
    outside = "" if 2 <= c.top_k <= 4 else f" (outside the claim's wording: {c.top_k} active)"
    return f"{name.partition(',')[0]}: {c.top_k} of {c.num_experts} experts{outside}, widths {c.d_model} × {c.d_expert}"


def verdicts(made, unit="saved (%)"):
    rows = [f"| {m.condition} | {m.value:.1f} | {m.low:.1f} to {m.high:.1f} | {m.verdict} |" for m in made]
    return Markdown(f"| on | {unit} | from, to | at least 90%? |\n|---|---|---|---|\n" + "\n".join(rows))


made = []
for name, c in AUDITED.items():
    condition = f"{described(name, c)}, FLOPs counted by torch, against equal total parameters"
    made.append(claim(1, saved[name], measure="flops_saved", condition=condition, quiet=True))
display(verdicts(made))

# %% [markdown]
# The verdict depends on E, of which the claim says nothing. The number of *active* experts, which it does state,
# decides little by itself. And against a dense layer with the same active parameters a sparse layer saves nothing: it
# costs a little more, the router. What it buys for that price is capacity, not speed.

# %% [markdown]
# So: how many experts does it take before two, three or four active ones save 90%?

# %% tags=["nbval-check-output"]
needed = {}
for K in (1, 2, 3, 4, 8):
    for E in range(K, 200):
        if 1 - moe_flops(1, 4096, 14336, E, K) / (6 * E * 4096 * 14336) >= 0.9:
            needed[K] = E
            break
    print(f"{K} active: at least {needed[K]} experts of Mixtral's width")

# %%
with style.use():
    figure, (ax,) = picture.new(size=(7.5, 3.6))
    for K, dashes in ((2, "-"), (3, "--"), (4, ":"), (8, "-.")):
        E = torch.arange(8, 257)
        ax.plot(E, 100 * (1 - K / E), dashes, label=f"{K} active")
    ax.axhline(90, color=style.INK, linewidth=1)
    ax.text(4.1, 91, "claimed", va="bottom")
    for name, c in AUDITED.items():
        ax.plot(c.num_experts, saved[name], "o", color=style.INK)
        beside = {"xytext": (-8, -4), "ha": "right"} if c.num_experts == 8 else {"xytext": (6, -16)}
        beside |= {"xytext": (0, 9), "ha": "center"} if c.num_experts == 128 and c.top_k == 4 else {}
        ax.annotate(name, (c.num_experts, saved[name]), textcoords="offset points", fontsize=9, **beside)
    ax.set(xscale="log", xlabel="experts in the layer, E", ylabel="FLOPs saved (%)", ylim=(0, 110), xlim=(4, 280))
    ax.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
    ax.legend(loc="lower right")
figure.alt = "FLOPs saved against the number of experts: the fewer are active, the sooner a curve passes 90%."
display(figure)

# %% [markdown]
# ## 9 · Bytes: what has to be moved
#
# A GPU waits for memory more often than for arithmetic. So count bytes as well: weights of every expert that has a
# token, and every row that is written and read again. (`labkit.kernels.traffic` does the counting: each intermediate
# tensor once out and once in, two bytes a value as in bfloat16, no caches. It is an estimate, and the measurement
# follows.)

# %% tags=["nbval-check-output"]
for T in (1, 4096):
    for way in ("loop", "onehot", "grouped_mm"):
        t = traffic(way, T, 2048, 1024, 64, 8)
        print(f"OLMoE T={T:5} {way:11} {t.flops / 1e9:9.2f} GFLOP {t.bytes / 1e9:6.2f} GB {t.intensity:7.1f} FLOP/byte")

# %% [markdown]
# One token visits 8 experts and reads their weights to do two FLOPs with each value. At 4096 tokens every expert is
# visited anyway: **all** weights are read, and sparsity saves no weight traffic at all. Between these two ends lies
# the arithmetic intensity, FLOPs per byte, and a GPU needs hundreds of them before arithmetic becomes the limit.

# %%
gpu = cost.gpu("H200")
tokens = [2**i for i in range(17)]
with style.use():
    figure, (ax,) = picture.new(size=(7.5, 3.6))
    for name, c in SHAPES.items():
        D, F, E, K = c.d_model, c.d_expert, c.num_experts, c.top_k
        ax.plot(tokens, [traffic("grouped_mm", T, D, F, E, K).intensity for T in tokens], label=f"{name}, {K} of {E}")
    dense = [traffic("grouped_mm", T, 2048, 64 * 1024, 1, 1).intensity for T in tokens]
    ax.plot(tokens, dense, ":", label="OLMoE's dense twin")
    ridge = gpu.tflops * 1e12 / gpu.bandwidth
    ax.axhline(ridge, color=style.INK, linewidth=1)
    ax.text(1, 1.1 * ridge, f"{gpu.name}: limited by arithmetic above")
    ax.set(xscale="log", yscale="log", xlabel="tokens in the batch, T", ylabel="FLOPs per byte")
    ax.legend(loc="lower right")
figure.alt = "FLOPs per byte against tokens: the sparse layers need several times more tokens than the dense one."
display(figure)

# %% [markdown]
# Each expert sees only $T K / E$ rows, so a sparse layer needs at least $E / K$ times as many tokens as the dense one
# to be as busy; more, since its rows move too. In a region where the dense layer is already limited by arithmetic, the
# sparse one may still be waiting for memory. There the FLOPs saved do not turn into time saved.

# %% [markdown]
# ## 10 · Time: where each implementation wins
#
# All times below come from this run, on one machine, one after another in turn; we look at **ratios**. On a GPU
# Triton's `do_bench` does the timing (warm-up, cleared cache, median).


# %%
def once(fn):
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(fn, warmup=5, rep=20, return_mode="median") / 1e3
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


@torch.no_grad()
def race(fns, rounds=5):
    """Seconds of each function in each round, in shuffled order, after a round that does not count."""
    for fn in fns.values():
        fn()
    seconds = {name: [] for name in fns}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(fns), len(fns)):
            seconds[name].append(once(fns[name]))
    return seconds


# %% [markdown]
# A layer of given sizes, with real text as its input and a random router. In the `cpu` profile the widths are small;
# the GPU gets OLMoE's.


# %%
def make_layer(c, T):
    """Everything that a layer of config c needs, on the device."""
    D, F, E = c.d_model, c.d_expert, c.num_experts
    ids = data.sample(text, num_sequences=max(1, T // 256), sequence_length=min(T, 256), seed=seed).ids_BS
    x = data.byte_features(ids, D, seed=seed).flatten(0, 1).to(device, dtype)
    torch.manual_seed(seed)
    gate_up = torch.randn(E, 2 * F, D, device=device, dtype=dtype) * D**-0.5
    down = torch.randn(E, D, F, device=device, dtype=dtype) * F**-0.5
    weight = torch.randn(E, D, device=device, dtype=dtype) * D**-0.5
    return SimpleNamespace(c=c, x=x, gate_up=gate_up, down=down, weight=weight)


def decide(layer):
    scores, ids = (layer.x @ layer.weight.T).float().softmax(dim=-1).topk(layer.c.top_k, dim=-1)
    return ids, scores


# %% [markdown]
# Three sweeps: the tokens T, the experts E, and the active experts K. **Predict** two numbers for the first. At one
# token, is the loop faster than the sorted version (a ratio below 1) or slower? And at the largest T, how much slower
# is one-hot?

# %%
GPU = device.type == "cuda"
BASE = MoEConfig(d_model=2048, d_expert=1024, num_experts=64, top_k=8) if GPU else MoEConfig(64, 64, 32, 4)
TOKENS = (1, 16, 256, 1024, 4096) if GPU else (1, 8, 64, 512)
p_at_one = predict("02.wins_at_1", "At T = 1, the loop takes how many times as long as sorted?", 0, 50, "times")
p_at_many = predict(
    "02.wins_at_many", f"At T = {TOKENS[-1]}, one-hot takes how many times as long as sorted?", 0, 20, "times"
)


# %%
def affordable(ways, c, T):
    """The ways whose rows fit in memory: one-hot holds T rows for every expert. Says so where it does not."""
    needed = 16 * T * c.num_experts * (c.d_model + c.d_expert)
    if GPU:
        torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] if GPU else 4e9
    if "one-hot" in ways and needed > 0.7 * free:
        print(f"one-hot left out: {needed / 1e9:.1f} GB for {T} tokens in {c.num_experts} experts")
        return [way for way in ways if way != "one-hot"]
    return ways


def compare(config, T):
    layer = make_layer(config, T)
    ids, scores = decide(layer)
    args = (layer.x, ids, scores, layer.gate_up, layer.down)
    seconds = race({name: lambda fn=WAYS[name]: fn(*args) for name in affordable(WAYS, config, T)})
    return {name: statistics.median(each) for name, each in seconds.items()}


E_SWEEP, K_SWEEP, T_FIXED = (8, 16, 32, 64, 128), (1, 2, 4, 8), 1024 if GPU else 128
sweeps = {
    "tokens T": {T: compare(BASE, T) for T in TOKENS},
    "experts E (K = 2)": {E: compare(BASE.replace(num_experts=E, top_k=2), T_FIXED) for E in E_SWEEP},
    "active experts K": {K: compare(BASE.replace(top_k=K), T_FIXED) for K in K_SWEEP},
}

# %% [markdown]
# Each panel shows time relative to the sorted version, which is therefore the line at 1. Above it an implementation is
# slower, below it faster.

# %%
with style.use():
    figure, axes = picture.new(columns=3, size=(10, 3.4))
    for ax, (name, points) in zip(axes, sweeps.items(), strict=True):
        for way, mark in (("loop", "o-"), ("one-hot", "s--"), ("sorted", "-")):
            ax.plot(list(points), [t.get(way, float("nan")) / t["sorted"] for t in points.values()], mark, label=way)
        ax.set(xscale="log", xlabel=name, title="" if name[0] == "t" else f"T = {T_FIXED}")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xticks(list(points), [str(value) for value in points])
        ax.minorticks_off()
    axes[0].set_ylabel("time / time of sorted")
    axes[0].legend()
figure.alt = "Time of the loop and of one-hot relative to sorted, against tokens, experts and active experts."
display(figure)

# %%
at_one, at_many = sweeps["tokens T"][TOKENS[0]], sweeps["tokens T"][TOKENS[-1]]
p_at_one.against(at_one["loop"] / at_one["sorted"])
if "one-hot" in at_many:
    p_at_many.against(at_many["one-hot"] / at_many["sorted"])
words = [f"| {T} | {min(t, key=t.get)} | {1e3 * min(t.values()):.3g} |" for T, t in sweeps["tokens T"].items()]
display(Markdown("| T | fastest | milliseconds |\n|---|---|---|\n" + "\n".join(words)))

# %% [markdown]
# What to look for in these curves:
#
# - **T**: with one token there is almost nothing to compute, and what counts is how many operations are started. Even
#   the way that computes everything can win there. With many tokens it moves towards its factor $E / K$; how much of it
#   it pays, the figure says.
# - **E**: the loop starts several operations for every expert, busy or not; on a GPU it also waits for the device to
#   say how many tokens each expert has. So it falls behind as E grows, at the same FLOPs.
# - **K**: one-hot computes everything anyway, so a larger K brings the others towards it.

# %% [markdown]
# ## 11 · Claim 1 again, with a clock
#
# Now the second measure. The dense twin holds *the very same weights*, laid side by side as one network of width
# $E \cdot F$. The sparse layer is the whole layer: router, top-k, dispatch, experts, combine. Both run in this cell, in
# turn, five rounds, on the same tokens.


# %%
def dense_twin(layer):
    E, D, F = layer.down.shape
    gate, up = (half.reshape(E * F, D) for half in layer.gate_up.chunk(2, dim=1))
    down = layer.down.permute(1, 0, 2).reshape(D, E * F)
    return lambda: swiglu_expert(layer.x, gate, up, down)


def transformers_experts(layer, implementation):
    """transformers' OLMoE experts with our weights: built tiny, then given the real tensors."""
    block = hf_block("olmoe", MoEConfig(8, 8, layer.c.num_experts, layer.c.top_k))
    block.experts.gate_up_proj = torch.nn.Parameter(layer.gate_up, requires_grad=False)
    block.experts.down_proj = torch.nn.Parameter(layer.down, requires_grad=False)
    block.experts.config._experts_implementation = implementation
    return block.experts


# %% [markdown]
# Is the twin fair? It must compute what all experts together compute, every score being one. That can be tested.

# %% tags=["nbval-check-output"]
tiny = SimpleNamespace(x=x_TD[:64], gate_up=gate_up_E2FD, down=down_EDF)
everyone = torch.arange(8).repeat(64, 1)
together = reference.experts_loop(tiny.x, everyone, torch.ones(64, 8), tiny.gate_up, tiny.down)
print("the twin equals the sum of all experts:", torch.allclose(dense_twin(tiny)(), together, rtol=1e-3, atol=1e-3))

# %% [markdown]
# **Predict** once more. You know the FLOPs that Qwen3's layer saves, you know the price of rows that move and of
# operations that start. A negative number would mean that the sparse layer is slower than the dense one.

# %%
question = f"Qwen3 saves {saved['Qwen3']:.0f}% of the dense FLOPs. How many % of the time, with many tokens, here?"
p_time = predict("02.time_saved", question, -100, 100, "%")

# %% [markdown]
# The contest: the dense twin, the whole sparse layer, the three ways without their router, and two versions of
# transformers' experts with the very same weights. Their eager version is a loop as well, but one that skips experts
# without tokens, which ours does not.


# %%
def contest(c, T, ways):
    layer = make_layer(c, T)
    ids, scores = decide(layer)
    args = (layer.x, ids, scores, layer.gate_up, layer.down)
    fns = {"dense twin": dense_twin(layer)}
    fns["sparse layer"] = lambda: sorted_grouped(layer.x, *decide(layer), layer.gate_up, layer.down)
    fns |= {f"{way}, experts only": lambda fn=WAYS[way]: fn(*args) for way in affordable(ways, c, T)}
    for implementation in ("eager", "grouped_mm"):
        theirs = transformers_experts(layer, implementation)
        fns[f"transformers {implementation}"] = lambda fn=theirs: fn(*args[:3])
    return race(fns)


scale, T = (1, 4096) if GPU else (16, 128)
RACED = {n: c.replace(d_model=c.d_model // scale, d_expert=c.d_expert // scale) for n, c in AUDITED.items()}
many = {name: contest(c, T, ("loop", "one-hot", "sorted")) for name, c in RACED.items()}


# %% [markdown]
# The bars are medians of five rounds, the lines reach from the fastest to the slowest, and each group is scaled so that
# its dense twin is 1. "Experts only" leaves the router out, as transformers' two versions do.


# %%
COLORS = dict(zip(dict.fromkeys(way for r in many.values() for way in r), style.PALETTE, strict=False))


def relative(seconds, way):
    unit = statistics.median(seconds["dense twin"])
    return [s / unit for s in seconds[way]]


def draw_contest(results, title):
    ways = list(dict.fromkeys(way for r in results.values() for way in r))
    with style.use():
        figure, (ax,) = picture.new(size=(9.5, 4))
        for i, way in enumerate(ways):
            shown = {g: relative(r, way) for g, r in enumerate(results.values()) if way in r}
            mid = [statistics.median(t) for t in shown.values()]
            low = [m - min(t) for m, t in zip(mid, shown.values(), strict=True)]
            high = [max(t) - m for m, t in zip(mid, shown.values(), strict=True)]
            at = [g + 0.11 * (i - (len(ways) - 1) / 2) for g in shown]
            ax.bar(at, mid, 0.1, yerr=(low, high), label=way, color=COLORS[way], ecolor=style.INK, capsize=2)
        ax.axhline(0.1, color=style.INK, linewidth=1, linestyle="--", label="claimed")
        ax.set(title=title, ylabel="time / dense twin's time", yscale="log")
        low, high = ax.get_ylim()
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.set_xticks(range(len(results)), list(results))
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.alt = f"{title}: time of each implementation relative to the dense layer, for {', '.join(results)}."
    return figure


display(draw_contest(many, f"{T} tokens at once"))


# %%
def time_saved(seconds):
    """Per cent of the dense twin's time, round by round: the median, the lowest and the highest."""
    rounds = [100 * (1 - s / d) for s, d in zip(seconds["sparse layer"], seconds["dense twin"], strict=True)]
    return statistics.median(rounds), min(rounds), max(rounds)


where = torch.cuda.get_device_name() if GPU else "CPU"


def claim_time(results, how):
    made = []
    for name, c in RACED.items():
        value, low, high = time_saved(results[name])
        condition = f"{described(name, c)}, {how}, {dtype}, {where}"
        interval = {"low": low, "high": high, "runs": 5}
        made.append(claim(1, value, measure="time_saved", condition=condition, quiet=True, **interval))
    display(verdicts(made, "time saved (%)"))


p_time.against(*time_saved(many["Qwen3"]))
claim_time(many, f"{T} tokens")

# %% [markdown]
# ### One token at a time
#
# Training and reading a prompt look like the experiment above: thousands of tokens at once. *Writing* looks different:
# one token after another (for one user). Then hardly any arithmetic is done, and what counts is how many weights are
# read: the sparse layer reads K experts, the dense one everything.

# %%
single = {name: contest(c, 1, ("loop", "sorted")) for name, c in RACED.items()}
display(draw_contest(single, "one token"))
claim_time(single, "1 token")

# %% [markdown]
# Is the time at one token spent on bytes, or on *starting* operations? The sparse layer starts a dozen small ones, the
# dense layer a few. A CUDA graph records them once and starts all of them as one, so the difference tells. (The
# recorded version counts without `bincount`, which would wait for the device and cannot be recorded.)


# %%
def recording_of(fn):
    for _ in range(3):
        fn()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


@torch.no_grad()
def recorded(c):
    layer = make_layer(c, 1)
    weights = (layer.gate_up, layer.down)
    sparse = recording_of(lambda: dispatch.experts(layer.x, decide(layer), *weights, implementation="grouped_mm"))
    return race({"dense twin": recording_of(dense_twin(layer)), "sparse layer": sparse})


graphs = {name: recorded(c) for name, c in RACED.items()} if GPU else {}
if GPU:
    claim_time(graphs, "1 token, recorded as one CUDA graph")
else:
    print("CUDA graphs need profile 'gpu'; the figure below goes without them")

# %% [markdown]
# All measures of "compute saved" side by side. Lines reach from the worst round to the best; the dashed line is what
# was claimed, and below zero the sparse layer is the slower one.

# %%
measured = {f"time, {T} tokens": many, "time, 1 token": single} | ({"time, 1 token, recorded": graphs} if GPU else {})
with style.use():
    figure, (ax,) = picture.new(size=(9.5, 3.8))
    ax.bar([g - 0.3 for g in range(len(RACED))], [saved[name] for name in RACED], 0.18, label="FLOPs")
    for i, (label, results) in enumerate(measured.items()):
        mid, low, high = zip(*(time_saved(results[name]) for name in RACED), strict=True)
        reach = [[m - x for m, x in zip(mid, low, strict=True)], [x - m for m, x in zip(mid, high, strict=True)]]
        at = [g - 0.1 + 0.2 * i for g in range(len(RACED))]
        ax.bar(at, mid, 0.18, yerr=reach, label=label, ecolor=style.INK, capsize=2)
    ax.axhline(90, color=style.INK, linewidth=1, linestyle="--")
    ax.axhline(0, color=style.INK, linewidth=1)
    ax.set(ylabel="saved against the dense twin (%)", ylim=(max(-110, min(0, ax.get_ylim()[0])), 105))
    ax.set_xticks(range(len(RACED)), list(RACED))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
figure.alt = "For each layer, per cent saved in FLOPs and in time; the bars of one layer differ widely."
display(figure)

# %% [markdown]
# The same numbers, medians of five rounds. Do FLOPs and bytes together explain them? The **roofline** (Williams,
# Waterman, Patterson 2009) gives the least time of a layer: its FLOPs at the peak rate or its bytes at the full
# bandwidth, whichever takes longer. Two columns say what *that* would save, from the counts of section 9, for the
# published widths. (In profile `cpu` the times are those of the small widths raced here, so compare with care.)

# %%
roof = next(
    (g for g in cost.GPUS.values() if g.name.split("-")[0] in where.replace("-", " ").split()), cost.gpu("H200")
)


def least_seconds(T, D, F, E, K):
    t = traffic("grouped_mm", T, D, F, E, K)
    flops, moved = (t.flops + 2 * T * D * E, t.bytes + 2 * D * E) if E > 1 else (t.flops, t.bytes)  # and the router
    return cost.roofline(flops, moved, roof.tflops * 1e12, roof.bandwidth).seconds


def roofline_saved(c, T):
    D, F, E, K = c.d_model, c.d_expert, c.num_experts, c.top_k
    return 100 * (1 - least_seconds(T, D, F, E, K) / least_seconds(T, D, E * F, 1, 1))


# %%
heads = ("layer", "FLOPs", *(f"roofline of {roof.name}, {n}" for n in ("4096 tokens", "1 token")), *measured)
rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
for name in RACED:
    cells = [f"{saved[name]:.1f}%", *(f"{roofline_saved(AUDITED[name], n):.1f}%" for n in (4096, 1))]
    cells += [f"{time_saved(results[name])[0]:.0f}%" for results in measured.values()]
    rows.append(f"| {name} | " + " | ".join(cells) + " |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# Where the roofline stays near the FLOPs and the time does not, bytes are not the reason: a **third price** shows. A
# grouped product with few rows for each expert does not reach the speed of one large product, and around it stand the
# gather, the float32 sum of combine, and the sort. Lab 09 takes that price apart. With one token, what a recording wins
# back had been spent on starting operations.

# %% [markdown]
# So "compute saved" is not one number. A claim about it has to name the baseline, the shape, the number of tokens, and
# the unit: FLOPs, bytes or seconds.

# %% [markdown]
# ## 12 · Padding: the price of rectangles
#
# `grouped_mm` takes groups of any size. Many systems cannot: batched products, TPUs and capacity-limited dispatch need
# the **same number of rows for every expert**. If nothing may be dropped, all are padded to the busiest. And inside a
# grouped kernel, rows are still worked on in tiles; a started tile costs a whole one.


# %% tags=["nbval-check-output"]
def padded_rows(counts_E, tile):
    """Rows that are computed: padded to the busiest expert, and to whole tiles of each expert."""
    to_busiest = len(counts_E) * max(counts_E)
    to_tiles = sum(-(-n // tile) * tile for n in counts_E)
    return to_busiest, to_tiles


for counts_E in ([64, 64, 64, 64], [200, 40, 16, 0], [1, 1, 1, 1]):
    print(counts_E, "useful", sum(counts_E), "-> busiest, tiles of 16:", padded_rows(counts_E, 16))

# %% [markdown]
# The last line is decoding: four experts with one row each, and a tile computes sixteen. That is why kernels for
# small batches use small tiles, and why this is no loss of *time* as long as memory is what one waits for.

# %% [markdown]
# Now the loads of the real text from section 3, beside the random vectors.

# %%
with style.use():
    figure, (ax,) = picture.new(size=(7.5, 3.2))
    for i, counts_E in enumerate(counts.values()):
        useful = int(counts_E.sum())
        busiest, tiles = padded_rows(counts_E.tolist(), 128)
        parts = {"useful rows": useful, "padded to tiles of 128": tiles, "padded to the busiest": busiest}
        for j, (label, rows) in enumerate(parts.items()):
            bar = ax.barh(3.6 * i + j, rows / useful, color=style.PALETTE[j], label=label if i == 0 else None)
            ax.bar_label(bar, [f" {rows / useful:.2f}"])
    ax.set(xlabel="rows computed / rows needed", yticks=[1, 4.6], xlim=(0, None))
    ax.set_yticklabels(list(counts))
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
figure.alt = "Rows computed for each useful row: tiles add little, padding to the busiest expert adds much on text."
display(figure)

# %% [markdown]
# With padding to the busiest expert, an uneven router is paid for in FLOPs, and part of what sparsity saved is lost
# again. This is one reason to balance the load (lab 03); the grouped kernel of lab 09 is another answer.

# %% [markdown]
# ## What you have built
#
# Dispatch, compute, combine: about twenty lines, equal to transformers' experts in outputs and gradients. You know
# their FLOPs, their bytes and their time, and that these three are different things.

# %%
recap("02")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 1**, "sparse activation of two to four experts saves 90% of the compute", was measured twice. In **FLOPs**,
# against a dense layer with the same total parameters, the answer is $1 - K/E$ less the router: it needs E, which
# the claim does not give. Within its wording it fails for the classical layer with 2 of 8 and holds for one with 4 of
# 128. In **time** it is whatever the tables of section 11 say for this machine, and it differs by shape and
# by batch size. Against a dense layer with the same active parameters nothing is saved. Lab 07 asks the question that
# remains: is the sparse model *better* at equal cost?

# %% [markdown]
# ## Further reading
#
# - Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean (2017), *Outrageously Large Neural Networks: The
#   Sparsely-Gated Mixture-of-Experts Layer*, arXiv:1701.06538: section 3.1 on the shrinking batch of each expert.
# - Lepikhin et al. (2020), *GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding*,
#   arXiv:2006.16668: algorithm 2, dispatch and combine as einsums.
# - Fedus, Zoph, Shazeer (2021), *Switch Transformers*, arXiv:2101.03961: one expert for each token, and capacity.
# - Shazeer (2020), *GLU Variants Improve Transformer*, arXiv:2002.05202: the gates of section 2.
# - Gale, Narayanan, Young, Zaharia (2022), *MegaBlocks: Efficient Sparse Training with Mixture-of-Experts*,
#   arXiv:2211.15841: block-sparse products instead of padding or dropping.
# - Tan, Shen, Panda, Courville (2024), *Scattered Mixture-of-Experts Implementation*, arXiv:2403.08245: the
#   permutation fused into the product, which lab 09 builds.
# - Muennighoff et al. (2024), *OLMoE: Open Mixture-of-Experts Language Models*, arXiv:2409.02060; Jiang et al. (2024),
#   *Mixtral of Experts*, arXiv:2401.04088.
