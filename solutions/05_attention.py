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
# # 05 · Attention: rotary positions and a small cache
#
# Experts are where a sparse model keeps its parameters. Attention is where it keeps its *past*: for every token it has
# seen, keys and values in every layer. When such a model writes text, what limits the batch is often not the experts
# but that memory. This lab builds attention the way the published models have it, and ends with DeepSeek's, which
# remembers a token in a small fraction of the bytes.
#
# After this lab you can
#
# - give attention an order of tokens by rotation, and prove that only distances count;
# - stretch a trained rotation to longer texts with YaRN, and see what happens without it;
# - write a mask for padding, caches and windows in which no row is empty;
# - say what a cache costs for MHA, GQA, MQA and MLA, from a formula and from tensors;
# - build multi-head latent attention, expanded and absorbed, equal to the production code;
# - say which form is cheaper when, and which of torch's backends ran and why.
#
# It takes a little under two hours. Any CPU will do; a GPU shows attention's backends and longer contexts.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first**; `cpu` shows every effect in
# seconds, `gpu` uses published sizes, `auto` asks the machine. Comparisons with `transformers` run in float32 on the
# CPU, everywhere.

# %% tags=["setup"]
import math
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib.patches import Patch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as production

from labkit import check, hint, predict, recap, reveal
from labkit.core import hardware, runtime
from labkit.core.config import ModelConfig, YarnConfig
from labkit.core.presets import PRESETS, preset
from labkit.nn.attention import Attention, LatentAttention, attend, backend
from labkit.nn.cache import KVCache
from labkit.nn.rope import attention_factor, inverse_frequencies, rope_tables, softmax_scale
from labkit.show import picture, style

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
dtype = runtime.dtype() if profile == "gpu" else torch.float32
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other

# %% [markdown]
# ## 1 · Attention has no sense of order
#
# A query is compared with every key, scores become shares by a softmax, and the output is that mixture of values
# (Vaswani et al. 2017, equation 1):
#
# $$ \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d}}\right) V . $$
#
# Nowhere in it does it say which token came first.

# %% [markdown]
# Here the last of eight tokens attends all others; then the seven
# before it are shuffled. By how much does its output change?

# %%
p_order = predict(
    "05.order", "By how much does the last token's output change when the seven before it are shuffled?", 0, 100, "%"
)

# %%
draw = torch.Generator().manual_seed(seed)
q_Sd, k_Sd, v_Sd = (torch.randn(8, 16, generator=draw) for _ in range(3))
order_S = torch.cat([torch.randperm(7, generator=draw), torch.tensor([7])])


def last_token(keys, values):
    return (q_Sd[-1] @ keys.T / 4).softmax(-1) @ values


before, after = last_token(k_Sd, v_Sd), last_token(k_Sd[order_S], v_Sd[order_S])
p_order.against(100 * ((after - before).norm() / before.norm()).item())

# %% [markdown]
# Nothing, to rounding: *dog bites man* and *man bites dog* are the same to it. Positions have to be put in by somebody.
# The first transformer added a pattern of sines to the embeddings. All models of this course do something else.

# %% [markdown]
# ## 2 · Rotary positions
#
# RoFormer (Su et al. 2021) takes the d dimensions of a query or key in pairs, and turns each pair in its plane by an
# angle that is proportional to the position m. Pair i turns by
#
# $$ m\,\theta_i, \qquad \theta_i = 10000^{-2i/d}, \quad i = 0, 1, \ldots, d/2 - 1 , $$
#
# $$ \begin{pmatrix} a \\ b \end{pmatrix} \;\mapsto\;
# \begin{pmatrix} a \cos m\theta_i - b \sin m\theta_i \\ b \cos m\theta_i + a \sin m\theta_i \end{pmatrix} . $$

# %% [markdown]
# The first pair turns by one radian a token, the last one hardly at all: like the hands of a clock, some tell seconds
# and some tell years. Four hands of a head with d = 8, at positions 0 to 11; the later, the darker.

# %%
with style.use():
    fig, axes = picture.new(columns=4, size=(9.6, 2.7))
    for pair, axis in enumerate(axes):
        angle = 10_000 ** (-2 * pair / 8)
        for m in range(12):
            tip = math.cos(m * angle), math.sin(m * angle)
            axis.plot([0, tip[0]], [0, tip[1]], color=style.PALETTE[0], alpha=0.2 + 0.06 * m, linewidth=1.5)
            if pair < 2:
                axis.text(1.18 * tip[0], 1.18 * tip[1], str(m), ha="center", va="center", fontsize=8)
        axis.set(title=f"pair {pair}", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[], aspect="equal")
        axis.set_xlabel(f"{angle:.3g} rad a token")
        axis.grid(False)
fig.alt = "Hands of four clocks at twelve positions: pair 0 goes round almost twice, pair 1 a sixth, the others barely."
display(fig)

# %% [markdown]
# Which dimensions form a pair is a convention, and two of them are in use:
#
# - **by halves** (Llama, Qwen, Mixtral, OLMoE, GPT-OSS): dimension i with dimension i + d/2;
# - **by neighbours** (DeepSeek, and the paper): 2i with 2i + 1.

# %% [markdown]
# You write both. Positions are an argument, a row of them for each sequence: with padding or a cache, rows do not begin
# at zero.


# %% exercise="05.rope"
def rope(
    x_BHSd: torch.Tensor, positions_BS: torch.Tensor, theta: float = 10_000.0, interleaved: bool = False
) -> torch.Tensor:
    """Turn each pair of dimensions by its position's angle.

    Args:
        x_BHSd: [B, H, S, d], float32, queries or keys; d is even.
        positions_BS: [B, S] int64, one row for each sequence, the same for all heads.
        theta: pair i turns by theta^(-2i/d) radians from one position to the next.
        interleaved: pairs are neighbours (2i, 2i + 1); otherwise dimension i turns with i + d/2.

    Returns [B, H, S, d], every dimension where it was: the first of a pair is a·cos - b·sin, the second b·cos + a·sin.
    """
    ### BEGIN SOLUTION
    d = x_BHSd.shape[-1]
    frequencies = theta ** (-torch.arange(0, d, 2, device=x_BHSd.device) / d)
    angles = positions_BS[:, None, :, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if interleaved:
        first, second = x_BHSd[..., 0::2], x_BHSd[..., 1::2]
    else:
        first, second = x_BHSd.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    ### END SOLUTION


# %% check="05.rope"
rope = check("05.rope", rope)

# %% [markdown]
# What is it good for? Rotations by $m\theta$ and $n\theta$ meet in a product as a rotation by their difference:
# $(R_m q) \cdot (R_n k) = q \cdot R_{n-m}\, k$. So a score knows how *far away* a key is, and nothing else about where
# both stand. Take one query and one key, put them at a fixed distance, and move both along the text.

# %%
p_shift = predict(
    "05.shift", "By how much do RoPE scores vary while both tokens move, in % of how much they vary with the distance?",
    0, 100, "%",
)  # fmt: skip

# %%
one_q, one_k = (torch.randn(1, 1, 1, 64, generator=draw) for _ in range(2))
starts, gaps = torch.arange(0, 400, 4), (1, 3, 12, 50)


def rotary_score(at, gap):
    q, k = (rope(x.expand(len(at), -1, -1, -1), p[:, None]) for x, p in ((one_q, at + gap), (one_k, at)))
    return (q * k).sum(-1)[:, 0, 0] / 8


def added_score(at, gap):
    def sines(p):
        angles = p[:, None] * 10_000 ** (-torch.arange(0, 64, 2) / 64)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    return ((one_q[0, 0] + sines(at + gap)) * (one_k[0, 0] + sines(at))).sum(-1) / 8


lines = {how.__name__: torch.stack([how(starts, gap) for gap in gaps]) for how in (rotary_score, added_score)}
varies = {name: 100 * (s.std(1).mean() / s.mean(1).std()).item() for name, s in lines.items()}
p_shift.against(varies["rotary_score"])

# %% [markdown]
# Beside it in the picture is the baseline: the pattern of sines that was added before, here to the query and the key.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 3.0))
    for axis, (name, title) in zip(axes, (("rotary_score", "rotary"), ("added_score", "sines added")), strict=True):
        for gap, scores in zip(gaps, lines[name], strict=True):
            axis.plot(starts, scores, label=f"{gap} apart")
        axis.set(title=title, xlabel="position of the key, in tokens", ylabel="score")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    "Scores of one query and one key at four distances while both move. Rotary: four flat lines. With added sines the "
    f"lines wander by {varies['added_score']:.0f} % of their spread."
)
display(fig)

# %% [markdown]
# Left, every distance has its own score, wherever the two stand. Right, the same two tokens at the same distance get
# another score in another place, and a model has to learn to look through that.

# %% [markdown]
# > **Find the bug.** A model runs in bfloat16, so somebody writes `torch.arange(1000, dtype=torch.bfloat16)` for its
# > positions. Nothing fails. How many different positions does that give?

# %% tags=["nbval-check-output"]
exact = torch.arange(1000)
coarse = exact.bfloat16()
print("different positions among 1000:", coarse.unique().numel())
print("the last ones that are right  :", [m for m in range(1000) if m == coarse[m].item()][-3:])
print("positions 300 to 306 become   :", coarse[300:307].long().tolist())

# %% [markdown]
# Bfloat16 has eight significant bits, so beyond 256 tokens neighbours fall together.

# %% [markdown]
# Short texts do not show it: up to 256 every position is exact. Beyond, tokens lose their order, and the further the
# more. Angles are therefore computed in float32, always, and only cosine and sine are cast.

# %% [markdown]
# ### Which pairs? The checkpoint decides
#
# The two conventions are one function up to a permutation of dimensions. So a checkpoint for one can be rewritten for
# the other by moving rows of the query and key matrices, and a checkpoint that is read with the wrong one is wrong
# everywhere but at distance zero.

# %% [markdown]
# `transformers` has both in its DeepSeek-V3; yours must give its scores.

# %% tags=["nbval-check-output"]
q, k = (torch.randn(1, 2, 12, 16, generator=draw) for _ in range(2))
at = torch.arange(40, 52)[None]
rotary_config = production.DeepseekV3Config(
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, qk_rope_head_dim=16, head_dim=16
)
tables = production.DeepseekV3RotaryEmbedding(rotary_config)(q, at)
theirs_q, theirs_k = production.apply_rotary_pos_emb_interleave(q, k, *tables)
neighbours = rope(q, at, interleaved=True) @ rope(k, at, interleaved=True).mT
halves = rope(q, at) @ rope(k, at).mT
moved = torch.arange(16).view(8, 2).T.flatten()  # the even dimensions, then the odd ones
permuted = rope(q[..., moved], at) @ rope(k[..., moved], at).mT
same = {"transformers": theirs_q @ theirs_k.mT, "halves of permuted rows": permuted, "halves as they are": halves}
for name, scores in same.items():
    print(f"{name:<24} same scores as neighbours: {torch.allclose(scores, neighbours, atol=1e-4)}")
gap = (halves - neighbours).diagonal(dim1=-2, dim2=-1).abs().max()
print("halves as they are, at distance zero:", bool(gap < 1e-4))

# %% [markdown]
# ## 3 · Longer than it was trained: YaRN
#
# Only distances count, so text may stand anywhere. But a model that was trained on 4,096 tokens has never met a
# distance of 40,000. Fast pairs have been all the way round many times; whatever angle comes, they have seen it. A slow
# pair may have seen only the first few degrees of its circle, and beyond the trained length it points where no pair has
# pointed before.

# %% [markdown]
# YaRN (Peng et al. 2023) treats pairs by how often they turn within the original context L. With
# $r(i) = L\,\theta_i / 2\pi$ turns and a factor $s$ by which the context grows,
#
# $$ \theta_i' = \Big(1 - \gamma\big(r(i)\big)\Big)\, \frac{\theta_i}{s} + \gamma\big(r(i)\big)\, \theta_i , $$
#
# where $\gamma$ is 1 for pairs that turn more often than $\beta_{\mathrm{fast}} = 32$ times, 0 for those that turn less
# than $\beta_{\mathrm{slow}} = 1$ time, and a ramp between. (Published code draws the ramp over the pair's number
# rather than over r, and rounds its ends; so does `labkit.nn.rope`.)

# %% [markdown]
# DeepSeek-V3 was trained on 4,096 tokens, then stretched by 40. Its heads rotate 64 dimensions.

# %%
p_pairs = predict("05.pairs", "How many of DeepSeek-V3's 32 pairs does YaRN leave as they were?", 0, 32, "pairs")

# %%
v3 = preset("deepseek-v3")
plain, stretched = inverse_frequencies(v3.replace(yarn=None)), inverse_frequencies(v3)
ratio = plain / stretched
p_pairs.against((ratio < 1.0001).sum().item(), calculated=True)

# %% [markdown]
# Two views of the same 32 pairs: how fast each turns, and how often it has turned when a text ends.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 3.1))
    axes[0].plot(plain, color=style.GREY, label="as trained")
    axes[0].plot(plain / v3.yarn.factor, color=style.PALETTE[1], linestyle="--", label="all divided by 40")
    axes[0].plot(stretched, color=style.PALETTE[0], label="YaRN")
    axes[0].set(yscale="log", xlabel="pair", ylabel="radians a token")
    axes[0].legend()
    for values, color, label in ((plain, style.GREY, "as trained"), (stretched, style.PALETTE[0], "YaRN")):
        axes[1].plot(values * 163_840 / (2 * math.pi), color=color, label=f"{label}, at 163,840 tokens")
    axes[1].plot(plain * 4096 / (2 * math.pi), color=style.INK, linestyle=":", label="seen in training, at 4,096")
    axes[1].axhspan(1e-3, 1, color=style.LIT, alpha=0.12)
    axes[1].set(yscale="log", xlabel="pair", ylabel="turns", ylim=(1e-2, 1e5))
    axes[1].legend(fontsize=9)
fig.alt = (
    f"Left, radians a token by pair on a log scale: YaRN follows the trained line for {(ratio < 1.0001).sum()} fast "
    "pairs, the line divided by 40 for the slow ones, a ramp between. Right, turns: for slow pairs YaRN at 163,840 "
    "tokens lies on what was seen in training."
)
display(fig)

# %% [markdown]
# Read the right-hand side. The shaded part is less than one full turn: pairs that end there in training (dotted) have
# seen only part of their circle. As trained and used at 163,840 tokens (grey), they go far beyond. YaRN brings exactly
# these back onto the dotted line, and leaves the fast ones alone, which tell neighbours apart. Between the two lies the
# ramp.

# %% [markdown]
# One more thing: a softmax over forty times as many tokens is flatter, so YaRN sharpens it. Most models multiply cosine
# and sine by $0.1 \ln s + 1$. DeepSeek multiplies the score's scale instead (squared, as queries and keys would each
# have had it), which lets the part without positions share in it. (V2-Lite has the same factor 40 as V3 and a smaller
# number below: it was published with 0.0707 in place of 0.1.)

# %% tags=["nbval-check-output"]
for name, m in PRESETS.items():
    if m.yarn is not None:
        bare = m.head_dim**-0.5
        print(
            f"{name:<17} factor {m.yarn.factor:g}: cosine and sine times {attention_factor(m.yarn):.3f}, "
            f"scores times {softmax_scale(m) / bare:.3f}"
        )

# %% [markdown]
# ### Does it work? A small memory test
#
# Each position holds a key word and a value; the last one holds a key word that has occurred before, and the model
# should say which value stood with it. One attention layer can do that, by content alone. We train it on short lists
# and read long ones, eight times as long as any it has seen.

# %%
TRAINED, STEPS, BATCH, WORDS, SEEDS = (64, 600, 64, 512, 3) if profile == "gpu" else (32, 400, 32, 256, 2)
VALUES = 16
heads = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 16}
one_layer = ModelConfig("recall", WORDS, 1, 64, **heads, moe=None, num_dense_layers=1, d_dense=1)


class Recall(torch.nn.Module):
    """Word and value embeddings, one attention layer, and a head over values; `config` may be changed later."""

    def __init__(self, config, positions=True):
        super().__init__()
        self.config, self.positions = config, positions
        self.word, self.value = torch.nn.Embedding(WORDS, 64), torch.nn.Embedding(VALUES + 1, 64)
        self.norm, self.attention = torch.nn.RMSNorm(64), Attention(config, 0)
        self.head = torch.nn.Linear(64, VALUES)

    def forward(self, words_BS, values_BS):
        x_BSD = self.norm(self.word(words_BS) + self.value(values_BS))
        cos, sin = self.tables(words_BS)
        return self.head(self.attention(x_BSD, cos, sin, None)[:, -1])

    def tables(self, words_BS):
        at = torch.arange(words_BS.shape[1], device=words_BS.device)[None]
        return rope_tables(self.config, at if self.positions else torch.zeros_like(at))


# %% [markdown]
# With `positions=False` nothing turns. That is the control: this task needs no positions, so whatever such a model
# loses on long lists is not the rotation's fault.

# %% [markdown]
# Lists are drawn anew for every step.


# %%
def lists(batch, length, draw):
    """Words [B, S], values [B, S], the right answers [B] and where they stand [B]."""
    words = torch.rand(batch, WORDS, generator=draw).topk(length - 1).indices
    values = torch.randint(VALUES, (batch, length - 1), generator=draw)
    place = torch.randint(length - 1, (batch, 1), generator=draw)
    words, answers = torch.cat([words, words.gather(1, place)], 1), values.gather(1, place)[:, 0]
    values = torch.cat([values, torch.full((batch, 1), VALUES)], 1)
    return [t.to(device) for t in (words, values, answers, place[:, 0])]


# %% [markdown]
# Training is the usual loop, on the answer to the last word alone.


# %%
def trained(seed, positions=True):
    torch.manual_seed(seed)
    model, draw = Recall(one_layer, positions).to(device), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        words, values, answers, _ = lists(BATCH, TRAINED, draw)
        loss = F.cross_entropy(model(words, values), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


# %% [markdown]
# Several seeds each. Then every model reads lists of one half to eight times its trained length, as it is and with YaRN
# put in afterwards: no training, one line of configuration.

# %%
p_long = predict("05.long", "Accuracy on lists eight times as long, as trained, without YaRN?", 0, 100, "%")

# %%
models = {kind: [trained(seed + s, kind == "rotary") for s in range(SEEDS)] for kind in ("rotary", "no positions")}
LENGTHS = [TRAINED // 2 * 2**power for power in range(5)]
WAYS = {"rotary": None, "rotary + YaRN": YarnConfig(factor=8, original_context=TRAINED), "no positions": None}


@torch.no_grad()
def accuracy(model, length, yarn, lists_read=256):
    words, values, answers, _ = lists(lists_read, length, torch.Generator().manual_seed(99))
    model.config = one_layer.replace(yarn=yarn)
    right = (model(words, values).argmax(-1) == answers).float().mean().item()
    model.config = one_layer
    return 100 * right


found = {
    name: [[accuracy(model, length, yarn) for model in models[name.removesuffix(" + YaRN")]] for length in LENGTHS]
    for name, yarn in WAYS.items()
}
end = found["rotary"][-1]
p_long.against(statistics.mean(end), min(end), max(end))

# %% [markdown]
# All lengths, every seed a dot.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.2))
    for (name, rows), color in zip(found.items(), (style.LIT, *style.PALETTE[::2]), strict=False):
        axis.plot(LENGTHS, [statistics.mean(row) for row in rows], color=color, label=name)
        for length, row in zip(LENGTHS, rows, strict=True):
            axis.plot([length] * len(row), row, "o", color=color, markersize=4, alpha=0.7)
    axis.axvline(TRAINED, color=style.INK, linestyle=":", label="trained length")
    axis.axhline(100 / VALUES, color=style.GREY, linestyle="--", label="guessing")
    axis.set(xscale="log", xlabel="length of the list, in tokens", ylabel="right answers, %", ylim=(0, 104))
    axis.set_xticks(LENGTHS, LENGTHS)
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
last = {name: statistics.mean(rows[-1]) for name, rows in found.items()}
fig.alt = f"Right answers by length, {SEEDS} seeds. At {LENGTHS[-1]} tokens: " + ", ".join(
    f"{name} {value:.0f} %" for name, value in last.items()
) + f". Guessing gives {100 / VALUES:.0f} %."  # fmt: skip
display(fig)

# %% [markdown]
# In words, from this run:

# %%
lost = {name: statistics.mean(rows[1]) - statistics.mean(rows[-1]) for name, rows in found.items()}
mended = (lost["rotary"] - lost["rotary + YaRN"]) / lost["rotary"] if lost["rotary"] > 0 else 0.0
display(Markdown(
    f"From {TRAINED} to {LENGTHS[-1]} tokens the rotary model loses {lost['rotary']:.0f} points, the control "
    f"{lost['no positions']:.0f}. With YaRN it is {lost['rotary + YaRN']:.0f}, so "
    + (f"**{mended:.0%} of the loss** came from angles that were never seen and is undone by dividing them."
       if mended > 0 else "here YaRN did not help.")
))  # fmt: skip

# %% [markdown]
# Where did it look? Below are the shares of the last token, a row for each head, on one list of the trained length and
# on one four times as long, as it is and with YaRN. The triangle marks the place of the answer.


# %%
@torch.no_grad()
def shares(model, words, values, yarn=None):
    """What the last position gives to every position, [H, S], recomputed from the layer's own matrices."""
    model.config = one_layer.replace(yarn=yarn)
    x_BSD, (cos, sin) = model.norm(model.word(words) + model.value(values)), model.tables(words)
    layer = model.attention
    q, k = (part(x_BSD).unflatten(-1, (4, 16)).transpose(1, 2) for part in (layer.query, layer.key))
    q, k = (torch.cat([x[..., :8] * cos - x[..., 8:] * sin, x[..., 8:] * cos + x[..., :8] * sin], -1) for x in (q, k))
    model.config = one_layer
    return (q[0, :, -1:] @ k[0].mT / 4).softmax(-1)[:, 0].cpu()


# %%
model, short, long = models["rotary"][0], TRAINED, 4 * TRAINED
panels = {f"{short} tokens": (short, None), f"{long}, as it is": (long, None)}
panels[f"{long}, YaRN"] = (long, WAYS["rotary + YaRN"])
with style.use():
    fig, axes = picture.new(rows=3, size=(9.0, 4.6))
    told = []
    for axis, (title, (length, yarn)) in zip(axes, panels.items(), strict=True):
        words, values, _, place = lists(1, length, torch.Generator().manual_seed(5))
        map_HS = shares(model, words, values, yarn)
        axis.imshow(map_HS, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axis.plot(place.item(), -0.9, "v", color=style.LIT, clip_on=False)
        axis.set(title=title, ylabel="head", yticks=range(4))
        axis.grid(False)
        told.append(f"{title}: {map_HS[:, place.item()].mean():.0%} on the answer")
    axes[-1].set_xlabel("position, in tokens; bright: a large share (scale from 0 to 1)")
fig.alt = "Attention of the last token by head and position. On average over heads, " + "; ".join(told) + "."
display(fig)

# %% [markdown]
# One list is an anecdote, the figure above it is the measurement. And our model is small: its slow pairs leave the
# known part of their circle after a few dozen tokens. In a published model the same happens after thousands.

# %% [markdown]
# ## 4 · Masks: who may look at whom
#
# A token must not see what comes after it. In a batch, texts have different lengths, and what fills them up must be
# seen by nobody. With a cache there are more keys than queries. And some layers look only at the last few tokens. All
# of that is one table of booleans, [S queries, K keys], True where a query may look.

# %% [markdown]
# Two traps are in it. The queries are the *last* S of the K positions. And a query that is padding itself, with only
# padding before it, would see nothing.

# %% [markdown]
# > **Find the bug.** What is the softmax of a row in which everything is forbidden? Three implementations answer.

# %% tags=["nbval-check-output"]
nothing = torch.full((4,), float("-inf"))
v_4 = torch.tensor([1.0, 2.0, 3.0, 6.0])
print("written out, filled with -inf           :", (nothing.softmax(-1) @ v_4).item())
lowest = torch.full((4,), torch.finfo(torch.float32).min)
print("filled with the lowest number of float32:", (lowest.softmax(-1) @ v_4).item())
x = torch.ones(1, 1, 1, 4)
y = F.scaled_dot_product_attention(x, x.mT.expand(1, 1, 4, 4), v_4[None, None, :, None].expand(1, 1, 4, 4),
                                   attn_mask=torch.zeros(1, 1, 1, 4, dtype=torch.bool))  # fmt: skip
print("torch's attention is finite             :", bool(y.isfinite().all()))

# %% [markdown]
# NaN, the mean of everything, or whatever the backend does. And NaN spreads: in the next layer the padding is a key and
# a value, and a share of zero times NaN is NaN.

# %% [markdown]
# Take two sequences of six tokens; one has two padding tokens in front.
# The softmax is written out, as in the formula, and the padding rows are left empty.

# %%
p_nan = predict("05.nan", "After two layers, what part of the padded sequence's output is NaN?", 0, 100, "%")


# %%
def two_layers(seen_BSK):
    x_BSd = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        shares_BSK = (x_BSd @ x_BSd.mT).masked_fill(~seen_BSK, float("-inf")).softmax(-1)
        x_BSd = shares_BSK @ x_BSd
    return x_BSd


real_BK = torch.tensor([[False, False, True, True, True, True], [True] * 6])
causal_SK = torch.ones(6, 6, dtype=torch.bool).tril()
p_nan.against(100 * two_layers(causal_SK & real_BK[:, None])[0].isnan().float().mean().item())

# %% [markdown]
# All of it: every real token asks the padding in layer two, and the answer is not a number. The other sequence of the
# batch is unharmed, which is why tests with equal lengths never notice.

# %% [markdown]
# The cure costs nothing: every query sees at
# least itself. Nobody reads what a padding query makes of that.


# %% exercise="05.mask"
def mask(real_BK: torch.Tensor, num_queries: int, window: int = 0) -> torch.Tensor:
    """Which keys each query may look at.

    Args:
        real_BK: [B, K] bool, True where a position holds a real token; padding may stand on either side.
        num_queries: S; the queries are the last S of the K positions.
        window: a query sees at most this many positions, the last of which is its own; 0: no limit.

    Returns [B, 1, S, K] bool, True where the query may look: at real keys, not ahead, within the window. Besides, every
    query sees its own position, real or not, so that no row is empty.
    """
    ### BEGIN SOLUTION
    K = real_BK.shape[1]
    key_K = torch.arange(K, device=real_BK.device)
    query_S1 = key_K[K - num_queries :, None]
    seen_SK = key_K <= query_S1
    if window:
        seen_SK = seen_SK & (key_K > query_S1 - window)
    seen_BSK = (seen_SK & real_BK[:, None, :]) | (key_K == query_S1)
    return seen_BSK[:, None]
    ### END SOLUTION


# %% check="05.mask"
mask = check("05.mask", mask)

# %% [markdown]
# Rows are queries, columns are keys. Find in each picture: the diagonal, the padding, and the first row that would be
# empty without the rule.

# %%
left, whole = torch.arange(10)[None] >= 3, torch.ones(1, 10, dtype=torch.bool)
pictures = {
    "causal": mask(whole, 10), "left padding": mask(left, 10), "window of 4": mask(whole, 10, 4),
    "cache: 3 new tokens": mask(left, 3),
}  # fmt: skip
with style.use():
    fig, axes = picture.new(columns=4, size=(10.4, 2.9))
    for axis, (title, seen) in zip(axes, pictures.items(), strict=True):
        S = seen.shape[2]
        axis.imshow(seen[0, 0], cmap="Blues", vmax=1.4, vmin=0, extent=(-0.5, 9.5, 9.5, 9.5 - S))
        axis.set(title=title, xlabel="key", ylabel="query", xticks=range(0, 10, 3), yticks=range(10 - S, 10, S // 3))
        axis.grid(False)
fig.alt = (
    "Four tables of who sees whom. Causal: the lower triangle. Left padding: its first three columns are empty but for "
    "the diagonal. Window: a band of four. Cache: three rows at the bottom."
)
display(fig)

# %% [markdown]
# Does a padded sequence get what it would get alone? And the shortcut that everybody uses, `is_causal=True`: is it the
# same when there is a cache?

# %% tags=["nbval-check-output"]
q, k, v = (torch.randn(1, 2, 10, 16, generator=draw) for _ in range(3))
padded = F.scaled_dot_product_attention(q, k, v, attn_mask=mask(left, 10))[:, :, 3:]
alone = F.scaled_dot_product_attention(q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], is_causal=True)
print("padded in front or alone, same outputs:", torch.allclose(padded, alone, atol=1e-5))
new = q[:, :, -3:]  # three new tokens, seven in the cache
right = F.scaled_dot_product_attention(new, k, v, attn_mask=mask(whole, 3))
short = F.scaled_dot_product_attention(new, k, v, is_causal=True)
first = F.scaled_dot_product_attention(new, k[:, :, :3], v[:, :, :3], is_causal=True)
print("is_causal with a cache, same outputs  :", torch.allclose(short, right, atol=1e-5))
print("it read only the first three keys     :", torch.allclose(short, first, atol=1e-5))

# %% [markdown]
# Torch draws its triangle from the upper left corner. With as many queries as keys that is the same; with a cache the
# new tokens see only the oldest ones, and nobody complains. `labkit`'s `attend` asks for a mask in that case, and
# leaves it to `is_causal` where both agree: section 8 shows why that matters.

# %% [markdown]
# ## 5 · What the past costs
#
# A model that writes needs the keys and values of all tokens before, in every layer. Computing them anew for every
# token would multiply the work with the length of the text, so they are kept: the KV cache. At every step all of it is
# read once.

# %% [markdown]
# Attention comes in four kinds, and they differ in what has to be kept:
#
# | | key and value heads | from |
# |---|---|---|
# | MHA, multi-head | one for each of the H query heads | Vaswani et al. 2017 |
# | MQA, multi-query | one for all | Shazeer 2019 |
# | GQA, grouped queries | G, each for H/G query heads | Ainslie et al. 2023 |
# | MLA, latent | one latent for all, from which keys and values are made | DeepSeek-V2 2024 |

# %% [markdown]
# GQA is MHA in which H/G neighbouring query heads read the same keys. In code it is one line, and the line has a twin
# that is wrong.

# %% tags=["nbval-check-output"]
q, k, v = (torch.randn(1, heads, 5, 16, generator=draw) for heads in (6, 2, 2))
grouped = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
for how in ("repeat_interleave", "repeat"):
    many = [t.repeat_interleave(3, dim=1) if how == "repeat_interleave" else t.repeat(1, 3, 1, 1) for t in (k, v)]
    y = F.scaled_dot_product_attention(q, *many, is_causal=True)
    heads = [h // 3 if how == "repeat_interleave" else h % 2 for h in range(6)]
    print(f"{how:<18} heads read keys {heads}: same as grouped {torch.allclose(y, grouped, atol=1e-5)}")

# %% [markdown]
# Lab 00 counted one kind. Now all four, for any number of positions, with layers that keep only a window (in GPT-OSS
# every other layer).

# %% [markdown]
# MLA keeps one latent of `kv_rank` values and one rotary key of `rope_dim` values for each position:
# section 6 shows what they are for.


# %% exercise="05.cache_bytes"
def cache_bytes(
    attention: str, num_layers: int, num_heads: int, head_dim: int, positions: int = 1, *, num_kv_heads: int = 1,
    kv_rank: int = 0, rope_dim: int = 0, window: int = 0, window_layers: int = 0, bytes_per_value: int = 2,
) -> int:  # fmt: skip
    """Bytes that the cache of one sequence takes.

    Args:
        attention: "mha", "gqa", "mqa" or "mla".
        num_layers, num_heads, head_dim: layers, query heads, and the width of a head's key and of its value.
        positions: tokens in the cache; 1 gives the bytes per token.
        num_kv_heads: key and value heads of "gqa"; the other kinds do not read it.
        kv_rank, rope_dim: widths of the latent and of the rotary key of "mla".
        window, window_layers: so many of the layers keep only the last `window` positions; 0 layers: none does.
        bytes_per_value: 2 for bfloat16.

    Returns a whole number. Raises ValueError for another kind of attention.
    """
    ### BEGIN SOLUTION
    kv_heads = {"mha": num_heads, "gqa": num_kv_heads, "mqa": 1}
    if attention == "mla":
        values = kv_rank + rope_dim
    elif attention in kv_heads:
        values = 2 * kv_heads[attention] * head_dim
    else:
        raise ValueError(f"attention is {attention!r}; give mha, gqa, mqa or mla")
    seen = (num_layers - window_layers) * positions + window_layers * min(positions, window)
    return seen * values * bytes_per_value
    ### END SOLUTION


# %% check="05.cache_bytes"
cache_bytes = check("05.cache_bytes", cache_bytes)

# %% [markdown]
# DeepSeek-V3 has 128 heads whose keys without position and whose values are 128 wide, a latent of 512 and a rotary key
# of 64. With plain multi-head attention of that size, how many times as large would its cache be?

# %%
p_mla = predict("05.mla_saves", "MHA with 128 heads of 128 over MLA with 512 + 64: how many times the bytes?", 1, 150)


# %%
def kinds(m):
    """Bytes per token of a published model, in bfloat16, if its attention were of each kind."""
    size = (m.num_layers, m.num_heads, m.mla_v_dim or m.head_dim)
    latent = {"kv_rank": m.mla_kv_rank or 512, "rope_dim": m.mla_rope_dim or 64}
    own = {"mha": cache_bytes("mha", *size), "mqa": cache_bytes("mqa", *size)}
    own["gqa"] = cache_bytes("gqa", *size, num_kv_heads=m.num_kv_heads if m.num_kv_heads < m.num_heads else 8)
    return own | {"mla": cache_bytes("mla", *size, **latent)}


tokens_cost = {name: kinds(m) for name, m in PRESETS.items()}
p_mla.against(tokens_cost["deepseek-v3"]["mha"] / tokens_cost["deepseek-v3"]["mla"], calculated=True)

# %% [markdown]
# A formula is a claim. So we allocate the caches, for a few tokens of each published model, and count the bytes of the
# tensors. `KVCache` is what `labkit`'s models write into.

# %% tags=["nbval-check-output"]
TOKENS = 4
print(f"{'':<17}{'kind':<6}{'formula':>9}{'tensors':>9}  bytes per token, bfloat16")
for name, m in PRESETS.items():
    cache = KVCache(m, batch=1, capacity=TOKENS, dtype=torch.bfloat16)
    counted = sum(tensor.nbytes for kept in cache.layers for tensor in kept) // TOKENS
    kind = "mha" if m.attention == "gqa" and m.num_kv_heads == m.num_heads else m.attention
    formula = tokens_cost[name][kind]
    print(f"{name:<17}{kind:<6}{formula:>9}{counted:>9}  {'equal' if formula == counted else 'DIFFERENT'}")
print(f"MLA's cache in V3 is that of {(v3.mla_kv_rank + v3.mla_rope_dim) / (2 * v3.mla_v_dim)} groups of GQA")

# %% [markdown]
# The last line is the number in DeepSeek-V2's paper (section 2.1.4): as small as so few groups, for 128 heads that all
# have keys of their own.

# %% [markdown]
# And the same tokens, had the model another kind of attention. Each model's own is filled; an outline and a star say
# that the kind is borrowed, with 8 groups or DeepSeek's latent of 512 + 64 where the model has none.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(9.0, 5.2))
    colors = dict(zip(("mha", "gqa", "mqa", "mla"), (style.GREY, *style.PALETTE[:3]), strict=True))
    for row, (name, m) in enumerate(PRESETS.items()):
        own = "mha" if m.attention == "gqa" and m.num_kv_heads == m.num_heads else m.attention
        for i, (kind, color) in enumerate(colors.items()):
            height, size = row + 0.2 * (i - 1.5), tokens_cost[name][kind]
            fill = color if kind == own else "white"
            axis.barh(height, size, 0.17, color=fill, edgecolor=color)
            axis.text(size * 1.06, height, "" if kind == own else "*", va="center", fontsize=8)
    axis.set_yticks(range(len(PRESETS)), list(PRESETS))
    axis.set(xscale="log", xlabel="KV cache, bytes per token in bfloat16 (log scale)", ylim=(len(PRESETS) - 0.4, -0.6))
    axis.legend(handles=[Patch(color=color, label=kind.upper()) for kind, color in colors.items()], loc="upper left",
                bbox_to_anchor=(1, 1))  # fmt: skip
fig.alt = "Bytes per token by model and kind of attention. Own kinds: " + "; ".join(
    f"{name} {KVCache(m, 1, 1, dtype=torch.bfloat16).bytes_per_token:,}" for name, m in PRESETS.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# What that means for serving: 32 requests at once, and the memory of one H200. The lines are the cache alone; the
# weights have to fit as well.

# %%
lengths = [2**power for power in range(10, 18)]
memory = hardware.gpu("H200").memory
fits = {}
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 3.6))
    for i, name in enumerate(("olmoe-1b-7b", "mixtral-8x22b", "qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v3")):
        m = preset(name)
        given = {"num_kv_heads": m.num_kv_heads, "kv_rank": m.mla_kv_rank, "rope_dim": m.mla_rope_dim,
                 "window": m.sliding_window, "window_layers": m.num_window_layers}  # fmt: skip
        sizes = [32 * cache_bytes(m.attention, m.num_layers, m.num_heads, m.head_dim, n, **given) for n in lengths]
        axis.plot(lengths, [size / 1e9 for size in sizes], color=style.PALETTE[i], label=name)
        fits[name] = max((n for n, size in zip(lengths, sizes, strict=True) if size <= memory), default=0)
    axis.axhline(memory / 1e9, color=style.LIT, linestyle="--", label="H200")
    axis.set(xscale="log", yscale="log", xlabel="context, in tokens", ylabel="KV cache of 32 requests, GB")
    axis.set_xticks(lengths, [f"{n // 1024}k" for n in lengths])
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "KV cache of 32 requests over context, log scales. Longest context drawn that fits one H200: " + ", ".join(
    f"{name} {n:,}" for name, n in fits.items()) + " tokens."  # fmt: skip
display(fig)

# %% [markdown]
# Two ways lead down: fewer layers that remember everything (GPT-OSS: half its layers keep 128 tokens), and fewer bytes
# in each (DeepSeek-V3, which has the most layers and the most heads in this picture). OLMoE, the smallest model of the
# five, has plain multi-head attention.

# %% [markdown]
# ## 6 · Latent attention
#
# MQA and GQA save memory by making heads share keys and values. DeepSeek-V2 (section 2.1.2) gives every head its own,
# but makes them all from one short vector, the latent:
#
# $$ c_t = \mathrm{RMSNorm}\left(W^{DKV} h_t\right), \qquad k_{t,i} = W^{UK}_i c_t, \qquad v_{t,i} = W^{UV}_i c_t . $$
#
# Only $c_t$ is kept. The rest can be made from it when it is needed.

# %% [markdown]
# Positions are the difficulty. A rotated key cannot be made from the latent by a matrix that is the same for all
# positions. So each head's query and key have two parts (section 2.1.3): n dimensions from the latent, which never
# turn, and r dimensions which do, where one rotary key serves all heads. Both parts of the product are added up:
#
# $$ \mathrm{score}_{t,j,i} = \frac{q^{C}_{t,i} \cdot k^{C}_{j,i} + q^{R}_{t,i} \cdot k^{R}_j}{\sqrt{n + r}}, \qquad
# k^R_j = \mathrm{RoPE}_j\left(W^{KR} h_j\right) . $$

# %% [markdown]
# How wide is a token on its way through DeepSeek-V3's attention? What is *kept* is the narrowest of all.

# %%
widths = {
    "residual stream": v3.d_model,
    "latent (kept)": v3.mla_kv_rank,
    "rotary key (kept)": v3.mla_rope_dim,
    "keys of all heads": v3.num_heads * v3.head_dim,
    "values of all heads": v3.num_heads * v3.mla_v_dim,
}
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.6))
    for row, (name, width) in enumerate(widths.items()):
        axis.barh(row, width, color=style.PALETTE[2] if "kept" in name else style.GREY)
        axis.text(width * 1.08, row, f"{width:,}", va="center", fontsize=10)
    axis.set_yticks(range(len(widths)), list(widths))
    axis.set(xscale="log", xlim=(30, 90_000), ylim=(4.6, -0.6), xlabel="values per token and layer (log scale)")
fig.alt = "Values per token: " + ", ".join(f"{name} {width:,}" for name, width in widths.items()) + "."
display(fig)

# %% [markdown]
# You write it, from the layer's input to the heads' outputs.

# %% [markdown]
# The order of rows is that of the published checkpoints. In `kv_down` the R rows of the latent come first, then the
# r rows of the rotary key. In each head of `kv_up` the n rows that make a key come first, then the v rows that make a
# value. DeepSeek's pairs are neighbours; your `rope` can do that.


# %% exercise="05.mla"
def mla(
    x_BSD: torch.Tensor, query_HdD: torch.Tensor, kv_down_CD: torch.Tensor, norm_R: torch.Tensor,
    kv_up_HER: torch.Tensor, positions_BS: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Multi-head latent attention in its expanded form, causal, up to the heads' outputs.

    Args:
        x_BSD: [B, S, D], the layer's input.
        query_HdD: [H, n + r, D], the query's matrix of each head; of its outputs the last r are rotary.
        kv_down_CD: [R + r, D], makes the latent and, in its last r rows, the rotary key.
        norm_R: [R], the scale of the RMSNorm that the latent goes through (epsilon 1e-6); the rotary key does not.
        kv_up_HER: [H, n + v, R], makes each head's key (n) and value (v) from the normed latent.
        positions_BS: [B, S] int64; pairs are neighbours, theta is 10,000.

    Returns `(y_BHSv, latent_BSR, rotary_BSr)`: the heads' outputs [B, H, S, v], and what belongs into a cache: the
    normed latents [B, S, R] and the rotary keys [B, S, r], turned. Scores are divided by the root of n + r.
    """
    ### BEGIN SOLUTION
    R = len(norm_R)
    r = len(kv_down_CD) - R
    n = query_HdD.shape[1] - r
    query_BHSd = torch.einsum("bsD,hdD->bhsd", x_BSD, query_HdD)
    query_BHSd = torch.cat([query_BHSd[..., :n], rope(query_BHSd[..., n:], positions_BS, interleaved=True)], dim=-1)

    latent_BSR, rotary_BSr = (x_BSD @ kv_down_CD.T).split([R, r], dim=-1)
    latent_BSR = F.rms_norm(latent_BSR, (R,), norm_R, eps=1e-6)
    rotary_B1Sr = rope(rotary_BSr[:, None], positions_BS, interleaved=True)

    up_BHSE = torch.einsum("bsR,heR->bhse", latent_BSR, kv_up_HER)
    key_BHSn, value_BHSv = up_BHSE[..., :n], up_BHSE[..., n:]
    key_BHSd = torch.cat([key_BHSn, rotary_B1Sr.expand(-1, len(query_HdD), -1, -1)], dim=-1)
    y_BHSv = F.scaled_dot_product_attention(query_BHSd, key_BHSd, value_BHSv, is_causal=True)
    return y_BHSv, latent_BSR, rotary_B1Sr[:, 0]
    ### END SOLUTION


# %% check="05.mla"
mla = check("05.mla", mla)

# %% [markdown]
# The check has already compared it with `transformers`' DeepSeek-V3 on tiny sizes. Once more in the open, on a layer of
# DeepSeek-V2-Lite's shape with an eighth of its width: same weights, the production module, yours, and `labkit`'s
# `LatentAttention`, which the models of lab 06 use.

# %%
config = production.DeepseekV3Config(
    hidden_size=256, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, kv_lora_rank=64,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, attn_implementation="sdpa",
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
)  # fmt: skip

# %% tags=["nbval-check-output"]
small = preset("deepseek-v2-lite").replace(
    d_model=256, moe=None, num_layers=1, num_dense_layers=1, d_dense=1, yarn=None, mla_kv_rank=64
)
torch.manual_seed(4)
layer, x_BSD, at = LatentAttention(small, 0), torch.randn(2, 20, 256), torch.arange(20)[None].expand(2, -1)
names = {"query": "q_proj", "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj"}
theirs = production.DeepseekV3Attention(config, 0)
theirs.load_state_dict({f"{names.get(k[:-7], 'o_proj')}.weight": w for k, w in layer.state_dict().items()})
heads = [w.detach().unflatten(0, (16, -1)) for w in (layer.query.weight, layer.kv_up.weight)]
with torch.no_grad():
    y_BHSv, latent_BSR, rotary_BSr = mla(x_BSD, heads[0], layer.kv_down.weight, layer.kv_norm.weight, heads[1], at)
    yours = layer.output(y_BHSv.transpose(1, 2).flatten(2))
    production_y = theirs(x_BSD, production.DeepseekV3RotaryEmbedding(config)(x_BSD, at), None)[0]
    house_y = layer(x_BSD, *rope_tables(small, at), None, cache := KVCache(small, 2, 20))
print("yours equals transformers':", torch.allclose(yours, production_y, atol=1e-5))
print("yours equals labkit's     :", torch.allclose(yours, house_y, atol=1e-5))
kept = all(torch.allclose(a, b, atol=1e-5) for a, b in zip((latent_BSR, rotary_BSr), cache.layers[0], strict=True))
print("what labkit cached is your latent and rotary key:", kept, [tuple(t.shape) for t in cache.layers[0]])

# %% [markdown]
# What does each part of the score know? Feed that layer the same token at all twenty positions. Its content part cannot
# tell them apart; its rotary part sees nothing but distances.

# %%
same_BSD = 8 * torch.randn(1, 1, 256, generator=draw).expand(1, 20, 256)
with torch.no_grad():
    q_BHSd = torch.einsum("bsD,hdD->bhsd", same_BSD, heads[0])
    _, latent, rotary = mla(same_BSD, heads[0], layer.kv_down.weight, layer.kv_norm.weight, heads[1], at[:1])
    content = q_BHSd[0, 0, :, :128] @ (latent[0] @ heads[1][0, :128].T).T
    turned = rope(q_BHSd[..., 128:], at[:1], interleaved=True)[0, 0] @ rotary[0].T
seen = mask(torch.ones(1, 20, dtype=torch.bool), 20)[0, 0]
shares_SK = ((content + turned) * 192**-0.5).masked_fill(~seen, -math.inf).softmax(-1)
maps = {"content": content, "rotary": turned, "share, against an even one": shares_SK * seen.sum(-1, keepdim=True)}

# %%
with style.use():
    fig, axes = picture.new(columns=3, size=(10.0, 3.1))
    limit = turned.abs().max().item()
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        center = content.mean() if name == "content" else 0  # a score's own level moves no share
        if name in ("content", "rotary"):
            axis.imshow(values - center, vmin=-limit, vmax=limit)
        else:
            axis.imshow(values.masked_fill(~seen, math.nan), vmin=0)
        axis.set(title=name, xlabel="key", ylabel="query", xticks=range(0, 20, 5), yticks=range(0, 20, 5))
        axis.grid(False)
fig.alt = (
    "Scores of one head when all tokens are alike. The content part is one colour, the rotary part is constant along "
    "diagonals, and in the lower triangle so is the pattern of the shares."
)
display(fig)

# %% [markdown]
# In DeepSeek-V2 and V3 queries go through a latent as well (V3: 1,536). That saves parameters and activations in
# training and no cache, since queries are not kept. V2-Lite does without, and so does this lab; `labkit` has both.

# %% [markdown]
# ## 7 · Without expanding: the absorbed form
#
# A small cache that has to be expanded at every step would be a bad bargain: to write one token, the keys and values of
# *all* tokens before it are made again, in every layer. But the key's matrix can be moved to the other side of the
# product, and the value's matrix behind the sum:
#
# $$ q \cdot (W^{UK} c_j) = (W^{UK\top} q) \cdot c_j, \qquad
# \sum_j p_j\, W^{UV} c_j = W^{UV} \Big(\sum_j p_j\, c_j\Big) . $$

# %% [markdown]
# Fold $W^{UK}$ into the query once, attend the latents as they lie in the cache, and apply $W^{UV}$ once to what was
# read.

# %% [markdown]
# All heads then read the *same* R + r numbers of a token: it is multi-query attention with one very wide head.
# This is why the rotary part had to be kept apart: a rotation that depends on j between $q$ and $c_j$ could not be
# moved anywhere.


# %% exercise="05.absorb"
def absorb(
    query_BHd: torch.Tensor, latent_BKR: torch.Tensor, rotary_BKr: torch.Tensor, kv_up_HER: torch.Tensor,
    seen_BK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """One decoding step of latent attention that makes no keys and no values.

    Args:
        query_BHd: [B, H, n + r], one query for each head; its last r dimensions are rotary and turned already.
        latent_BKR: [B, K, R], the cached latents, normed.
        rotary_BKr: [B, K, r], the cached rotary keys, turned.
        kv_up_HER: [H, n + v, R]: in each head the n rows that would make a key, then the v rows for a value.
        seen_BK: [B, K] bool, True where the query may look; no row is empty.
    All are on one device and, but for the mask, of one dtype: float32 here, bfloat16 when a GPU is timed.

    Returns `(y_BHv, folded_BHR, read_BHR)`: the heads' outputs [B, H, v]; the queries with the key's matrix folded in,
    without any scale [B, H, R]; and the mixtures of latents that were read [B, H, R]. The outputs are those of the
    expanded form, whose scores are divided by the root of n + r.
    """
    ### BEGIN SOLUTION
    d, r = query_BHd.shape[-1], rotary_BKr.shape[-1]
    n = d - r
    query_BHn, query_BHr = query_BHd[..., :n], query_BHd[..., n:]
    up_key_HnR, up_value_HvR = kv_up_HER[:, :n], kv_up_HER[:, n:]

    folded_BHR = torch.einsum("bhn,hnR->bhR", query_BHn, up_key_HnR)
    scores_BHK = (folded_BHR @ latent_BKR.mT + query_BHr @ rotary_BKr.mT) * d**-0.5
    shares_BHK = scores_BHK.masked_fill(~seen_BK[:, None], float("-inf")).softmax(dim=-1)
    read_BHR = shares_BHK @ latent_BKR
    return torch.einsum("bhR,hvR->bhv", read_BHR, up_value_HvR), folded_BHR, read_BHR
    ### END SOLUTION


# %% check="05.absorb"
absorb = check("05.absorb", absorb)

# %% [markdown]
# Three ways to take a decoding step, to be compared from here on: **absorbed** is yours. **Expanded** makes keys and
# values of all heads from the latents, every time. **Kept** is what a model without MLA does: keys and values of all
# heads lie in the cache. All are written with plain products, so that nothing but their order differs.


# %%
def expand(latent_BKR, rotary_BKr, kv_up_HER, n):
    """Keys [B, H, K, n + r] and values [B, H, K, v] of all heads."""
    up_BHKE = torch.einsum("bkR,heR->bhke", latent_BKR, kv_up_HER)
    shared = rotary_BKr[:, None].expand(-1, len(kv_up_HER), -1, -1)
    return torch.cat([up_BHKE[..., :n], shared], dim=-1), up_BHKE[..., n:]


def kept_step(query_BHd, key_BHKd, value_BHKv):
    scores_BH1K = query_BHd[:, :, None] @ key_BHKd.mT * query_BHd.shape[-1] ** -0.5
    return (scores_BH1K.softmax(-1) @ value_BHKv)[:, :, 0]


def expanded_step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER):
    n = query_BHd.shape[-1] - rotary_BKr.shape[-1]
    return kept_step(query_BHd, *expand(latent_BKR, rotary_BKr, kv_up_HER, n))


def step_inputs(m, K, device="cpu", dtype=torch.float32):
    """A query, a cache of K positions, and the matrix of a published model's size."""
    draw = torch.Generator().manual_seed(K)
    shapes = (1, m.num_heads, m.head_dim), (1, K, m.mla_kv_rank), (1, K, m.mla_rope_dim)
    up = torch.randn(m.num_heads, m.mla_nope_dim + m.mla_v_dim, m.mla_kv_rank, generator=draw) * m.mla_kv_rank**-0.5
    return [t.to(device, dtype) for t in (*(torch.randn(*shape, generator=draw) for shape in shapes), up)]


# %% [markdown]
# > **Find the bug.** Torch's attention can do the absorbed step: give it the folded query with the rotary part beside
# > it, and the latents with the rotary keys. It then divides by the root of the width that it *sees*. The shapes are
# > right, the shares sum to one, and the text that comes out is only a little worse.

# %% tags=["nbval-check-output"]
lite = preset("deepseek-v2-lite")
query, latent, rotary, up = step_inputs(lite, 200)
y_expanded = expanded_step(query, latent, rotary, up)
y_absorbed, folded, read = absorb(query, latent, rotary, up, torch.ones(1, 200, dtype=torch.bool))
wide, keys = torch.cat([folded, query[..., 128:]], -1)[:, :, None], torch.cat([latent, rotary], -1)[:, None]
keys, values = keys.expand(-1, 16, -1, -1), latent[:, None].expand(-1, 16, -1, -1)
for name, scale in {"scale of n + r ": 192**-0.5, "torch's default": None}.items():
    torchs = F.scaled_dot_product_attention(wide, keys, values, scale=scale)[:, :, 0]
    print(f"{name}: what torch reads is what you read: {torch.allclose(torchs, read, atol=1e-4)}")
print("absorbed equals expanded:", torch.allclose(y_absorbed, y_expanded, atol=1e-4))

# %% [markdown]
# Now the cost. One multiply-add is two FLOPs. A decoding step at K positions, for each head:
#
# | form | made anew | for each position | values read for each position |
# |---|---|---|---|
# | kept | – | $2(n + r + v)$ | all heads' $n + r + v$ values |
# | expanded | $2KR(n + v)$ | $2(n + r + v)$ | $R + r$ once, then writes what *kept* reads, and reads it |
# | absorbed | $2R(n + v)$ | $2(2R + r)$ | $R + r$ once, for all heads |

# %% [markdown]
# The last column as a picture, for DeepSeek-V3, all heads together and in bytes:

# %%
width = v3.num_heads * (v3.head_dim + v3.mla_v_dim)
cached = v3.mla_kv_rank + v3.mla_rope_dim
moved = {"kept": (width, 0), "expanded": (cached + width, width), "absorbed": (cached, 0)}
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.1))
    for row, (read, written) in enumerate(moved.values()):
        axis.barh(row, 2 * read / 1e3, color=style.PALETTE[0], label="read" if row == 0 else None)
        axis.barh(row, 2 * written / 1e3, left=2 * read / 1e3, color=style.LIT, label="written" if row == 1 else None)
        axis.text(2 * (read + written) / 1e3 + 2, row, f"{2 * (read + written):,}", va="center", fontsize=10)
    axis.set_yticks(range(3), list(moved))
    axis.set(xlabel="10³ bytes per position, layer and step, bfloat16", ylim=(2.6, -0.6), xlim=(0, 200))
    axis.legend(loc="lower right")
fig.alt = "Bytes moved per position: " + ", ".join(f"{form} {2 * sum(pair):,}" for form, pair in moved.items()) + "."
display(fig)

# %% [markdown]
# And the arithmetic: torch can count what really ran.


# %% tags=["nbval-check-output"]
def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


n, r, v, R = lite.mla_nope_dim, lite.mla_rope_dim, lite.mla_v_dim, lite.mla_kv_rank
for K in (1, 1000):
    query, latent, rotary, up = step_inputs(lite, K)
    seen, pair = torch.ones(1, K, dtype=torch.bool), expand(latent, rotary, up, n)
    counted = {
        "kept": flops(partial(kept_step, query, *pair)),
        "expanded": flops(partial(expanded_step, query, latent, rotary, up)),
        "absorbed": flops(partial(absorb, query, latent, rotary, up, seen)),
    }
    formula = {"kept": 2 * K * (n + r + v), "expanded": 2 * K * R * (n + v) + 2 * K * (n + r + v),
               "absorbed": 2 * R * (n + v) + 2 * K * (2 * R + r)}  # fmt: skip
    for name, count in counted.items():
        print(f"K = {K:<5}{name:<9}{count:>14,} FLOPs, as the table says: {count == 16 * formula[name]}")

# %% [markdown]
# At one position both forms of MLA cost nearly the same; at a thousand, expanding is almost all there is. Absorbing has
# more arithmetic per position than *kept*, but reads far fewer bytes. What counts on a clock? We measure a step over
# growing contexts, all three in one run.


# %%
def milliseconds(call, repeats=5):
    """The median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


# %% [markdown]
# Before it runs: at the longest context, how much faster is the absorbed step than the expanded one?

# %%
p_step = predict("05.step", "Absorbed against expanded at the longest context: how many times as fast?", 1, 500, "×")

# %%
sized = v3 if profile == "gpu" else lite
CONTEXTS = (1024, 4096, 16_384, 65_536) if profile == "gpu" else (128, 512, 1024, 2048)
steps = {"kept": [], "expanded": [], "absorbed": []}
for K in CONTEXTS:
    query, latent, rotary, up = step_inputs(sized, K, device, dtype)
    seen, pair = torch.ones(1, K, dtype=torch.bool, device=device), expand(latent, rotary, up, sized.mla_nope_dim)
    steps["kept"].append(milliseconds(partial(kept_step, query, *pair)))
    steps["expanded"].append(milliseconds(partial(expanded_step, query, latent, rotary, up), 3))
    steps["absorbed"].append(milliseconds(partial(absorb, query, latent, rotary, up, seen)))
p_step.against(steps["expanded"][-1] / steps["absorbed"][-1])

# %% [markdown]
# FLOPs by the table, and the clock, over the context. Both axes are logarithms.


# %%
def per_step(form, K, m):
    n, r, v, R = m.mla_nope_dim, m.mla_rope_dim, m.mla_v_dim, m.mla_kv_rank
    anew = {"kept": 0, "expanded": K * R * (n + v), "absorbed": R * (n + v)}[form]
    return 2 * m.num_heads * (anew + K * ((2 * R + r) if form == "absorbed" else n + r + v))


with style.use():
    fig, axes = picture.new(columns=2, size=(9.8, 3.2))
    for (form, times), color in zip(steps.items(), (style.GREY, *style.PALETTE[:2]), strict=True):
        axes[0].plot(CONTEXTS, [per_step(form, K, sized) / 1e9 for K in CONTEXTS], "o-", color=color, label=form)
        axes[1].plot(CONTEXTS, times, "o-", color=color, label=form)
    axes[0].set(ylabel="FLOPs of a step and layer, 10⁹")
    axes[1].set(ylabel="time of a step and layer, ms")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="positions in the cache")
        axis.set_xticks(CONTEXTS, [f"{K:,}" for K in CONTEXTS])
        axis.minorticks_off()
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
at_end = ", ".join(f"{form} {times[-1]:.3g} ms" for form, times in steps.items())
fig.alt = f"FLOPs and time of a decoding step over context, {sized.name} on {runtime.device_name(device)}: {at_end}."
display(fig)

# %% [markdown]
# In words, from this run:

# %%
wins = [K for K, kept, mine in zip(CONTEXTS, steps["kept"], steps["absorbed"], strict=True) if mine < kept]
more = per_step("absorbed", CONTEXTS[-1], sized) / per_step("kept", CONTEXTS[-1], sized)
display(Markdown(
    f"{sized.name}'s sizes on {runtime.device_name(device)}, at {CONTEXTS[-1]:,} positions: the absorbed step takes "
    f"{steps['absorbed'][-1]:.3g} ms, the expanded one {steps['expanded'][-1]:.3g} ms. Against keys and values that "
    f"were kept ({steps['kept'][-1]:.3g} ms) it does {more:.1f} times the arithmetic on a much smaller cache, and is "
    + (f"faster at {', '.join(f'{K:,}' for K in wins)} positions." if wins else "slower at every length measured here.")
))  # fmt: skip

# %% [markdown]
# ### Where expanding wins
#
# A prompt is not one query but S of them. Expanding is paid once for all of them; the wide heads of the absorbed form
# are paid by every query at every position. With S queries on K positions, expanding is cheaper as soon as
#
# $$ K R (n + v) + S K (n + r + v) \; < \; S R (n + v) + S K (2R + r) . $$

# %% [markdown]
# For long caches K drops out. With n = v = 128, r = 64 and R = 512, from how many queries on?

# %%
p_cross = predict("05.cross", "From how many new tokens on does the expanded form need fewer FLOPs?", 1, 1000, "tokens")

# %%
crossing = R * (n + v) / ((2 * R + r) - (n + r + v))
p_cross.against(crossing, calculated=True)

# %% [markdown]
# The clock has its own opinion, since both forms do not use a machine equally well. S queries that all read the same K
# cached positions, with `labkit`'s layer of that size in both forms:


# %%
PAST, NEW = (4096, (1, 16, 64, 128, 256, 512, 1024)) if profile == "gpu" else (1024, (1, 16, 64, 128, 256))
alone = sized.replace(moe=None, num_layers=1, num_dense_layers=1, d_dense=1, d_model=512, mla_q_rank=0)
layer = LatentAttention(alone, 0).to(device, dtype)
cache = KVCache(alone, 1, PAST + NEW[-1], dtype=dtype, device=device)
for store in cache.layers[0]:
    store.normal_()
cache.length = PAST


@torch.no_grad()
def chunk(S, absorbed):
    layer.absorbed = absorbed
    at = torch.arange(PAST, PAST + S, device=device)[None]
    tables, x_BSD = rope_tables(alone, at, dtype), torch.ones(1, S, 512, device=device, dtype=dtype)
    return milliseconds(lambda: layer(x_BSD, *tables, None, cache), 2)


chunks = {form: [chunk(S, form == "absorbed") for S in NEW] for form in ("expanded", "absorbed")}

# %% [markdown]
# The dashed line is the same ratio in FLOPs, from the formula above.

# %%
faster = [a / e for e, a in zip(chunks["expanded"], chunks["absorbed"], strict=True)]
work = [(R * (n + v) / PAST + 2 * R + r) * S / (R * (n + v) + S * (n + r + v)) for S in NEW]
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.1))
    axis.plot(NEW, faster, "o-", color=style.PALETTE[0], label="time")
    axis.plot(NEW, work, "--", color=style.PALETTE[1], label="FLOPs")
    axis.axhline(1, color=style.INK, linestyle=":")
    axis.text(NEW[0], 1.06, "above: expanding is cheaper", fontsize=9)
    axis.set(xscale="log", yscale="log", xlabel=f"new tokens, {PAST} in the cache", ylabel="absorbed / expanded")
    axis.set_xticks(NEW, [str(S) for S in NEW])
    axis.minorticks_off()
    axis.legend()
ahead = next((S for S, ratio in zip(NEW, faster, strict=True) if ratio > 1), None)
fig.alt = f"Absorbed over expanded by new tokens: {faster[0]:.2g} in time at 1, {faster[-1]:.2g} at {NEW[-1]}."
display(fig)

# %% [markdown]
# Where the lines cross the dotted one, the two forms change places.

# %%
turns = f"from {ahead} new tokens on" if ahead else f"at no number up to {NEW[-1]}"
display(Markdown(
    f"On {runtime.device_name(device)} the expanded form is faster **{turns}** of those measured; by FLOPs it would be "
    f"from {next((S for S, ratio in zip(NEW, work, strict=True) if ratio > 1), NEW[-1])} on. "
    + ("So it pays to read prompts expanded and to write tokens absorbed: one set of weights, one cache, two orders of "
       "multiplication." if ahead and faster[0] < 1 else "")
))  # fmt: skip

# %% [markdown]
# ## 8 · Which attention ran, and why
#
# `scaled_dot_product_attention` is one name for several implementations. *Fused* ones (FlashAttention, the
# memory-efficient one, cuDNN's) never store the S × K scores; *math* is the formula, with every intermediate in memory.
# Which one runs depends on device, dtype, widths, mask and shapes, and nothing is said when the slow one does.

# %% [markdown]
# So we watch. Under a `TorchDispatchMode` every operation that torch really starts passes by; a fused attention has a
# name of its own, and where there is none it was *math*. Beside it, what `labkit`'s `backend` says for the same tensors
# when they go through `attend`.


# %%
class Watch(TorchDispatchMode):
    """Notes the fused attentions that run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in func.__name__:
            self.seen = func.__name__
        return func(*args, **(kwargs or {}))


def ran(call):
    with Watch() as watch, torch.no_grad():
        call()
    name = getattr(watch, "seen", "math")
    return next((short for short in ("flash", "efficient", "cudnn", "math") if short in name), name)


def heads_of(H=8, S=256, width=64, kind=dtype):
    return torch.randn(1, H, S, width, device=device).to(kind)


# %%
x, wide = heads_of(), heads_of(width=192)
seen = mask(torch.arange(256)[None] >= 9, 256).to(device)
calls = {
    "causal": (x, x, x, None), "a padding mask": (x, x, x, seen), "2 groups": (x, heads_of(2), heads_of(2), None),
    "float64": (*(heads_of(kind=torch.float64),) * 3, None), "one query": (x[:, :, :1], x, x, None),
    "MLA: keys 192, values 128": (wide, wide, heads_of(width=128), None),
    "MLA absorbed: 576, one query": (heads_of(S=1, width=576), heads_of(1, width=576), heads_of(1, width=512), None),
}  # fmt: skip
rows = ["| tensors | torch alone | through `attend` | why |", "|---|---|---|---|"]
for name, (q, k, v_, m) in calls.items():
    how = {"attn_mask": m, "is_causal": m is None and q.shape[2] > 1, "enable_gqa": q.shape[1] != k.shape[1]}
    bare = ran(partial(F.scaled_dot_product_attention, q, k, v_, **how))
    ours, said = ran(partial(attend, q, k, v_, m, scale=0.1)), backend(q, k, v_, m)
    told = "" if ours == said.name else f" (foretold: {said.name})"
    rows.append(f"| {name} | {bare} | {ours}{told} | {' '.join(said.reason.split())[:230]} |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# Where the two middle columns differ, `attend` has changed the call so that a fused backend takes it: values are filled
# up with zeros to the width of the keys (and cut again afterwards), and heads that share keys are laid side by side for
# a single query. And `attention_mask` makes no mask at all where *causal* says everything.
#
# On a CPU there is one fused implementation; the fine differences between backends are visible on a GPU only.

# %% [markdown]
# Does it matter? The same causal attention by every backend that this machine has. At the longest sequence, how many
# times as long does *math* take as the fastest?

# %%
p_math = predict("05.math", "math against the fastest, at the longest sequence: how many times the time?", 1, 50, "×")

# %%
SEQUENCES = (512, 1024, 2048, 4096, 8192) if profile == "gpu" else (128, 256, 512, 1024)
BACKENDS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
if profile == "gpu":
    BACKENDS |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def timed(which, S):
    q = heads_of(S=S)
    try:
        with sdpa_kernel(which), torch.no_grad():
            return milliseconds(partial(F.scaled_dot_product_attention, q, q, q, is_causal=True))
    except RuntimeError:  # torch's way to say that this backend cannot
        return math.nan


by_backend = {name: [timed(which, S) for S in SEQUENCES] for name, which in BACKENDS.items()}
able = {name: times for name, times in by_backend.items() if not any(map(math.isnan, times))}
p_math.against(able["math"][-1] / min(times[-1] for times in able.values()))

# %% [markdown]
# Beside the times, what they have to do with: how much memory the scores would take, and how much the rest.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.8, 3.1))
    for (name, times), color in zip(able.items(), (style.GREY, *style.PALETTE), strict=False):
        axes[0].plot(SEQUENCES, times, "o-", color=color, label=name)
    axes[0].set(ylabel="time of one call, ms")
    axes[0].legend()
    size = 8 * dtype.itemsize / 1e6  # of one value in each of 8 heads, in 10⁶ bytes
    axes[1].plot(SEQUENCES, [size * S * S for S in SEQUENCES], "o-", color=style.GREY, label="scores")
    axes[1].plot(SEQUENCES, [size * 4 * S * 64 for S in SEQUENCES], "o-", label="in- and outputs")
    axes[1].set(ylabel="memory, 10⁶ bytes")
    axes[1].legend()
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="sequence length, in tokens")
        axis.set_xticks(SEQUENCES, [f"{S:,}" for S in SEQUENCES])
        axis.minorticks_off()
fig.alt = f"Time of causal attention at {SEQUENCES[-1]} tokens on {runtime.device_name(device)}: " + ", ".join(
    f"{name} {times[-1]:.3g} ms" for name, times in able.items()
) + ". Scores grow with the square of the length."  # fmt: skip
display(fig)

# %% [markdown]
# In words, from this run:

# %%
absent = [name for name in ("flash", "efficient", "cudnn") if name not in able]
display(Markdown(
    f"On {runtime.device_name(device)}, in {str(dtype).removeprefix('torch.')}: {', '.join(able)} ran"
    + (f"; {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not available here" if absent else "")
    + ". " + ("The memory-efficient and cuDNN backends need a GPU. " if device.type == "cpu" else "")
    + f"At {SEQUENCES[-1]:,} tokens the fastest is **{min(able, key=lambda name: able[name][-1])}**."
))  # fmt: skip

# %% [markdown]
# The right-hand side is arithmetic, and the reason: *math* writes the scores of all heads to memory and reads them
# again, and they grow with the square of the length. A fused kernel keeps a tile of them on the chip. You will write
# one in lab 10.

# %% [markdown]
# ## 9 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("05")

# %% [markdown]
# ## Claim verdicts
#
# No claim of the ledger is decided in this lab. What it leaves behind is a formula for the cache that agrees with
# tensors, which the planner of lab 00 and the batches of lab 12 rely on, and attention layers that agree with the
# production code, which lab 06 puts into a model.

# %% [markdown]
# ## Further reading
#
# - Su et al. 2021, *RoFormer: Enhanced Transformer with Rotary Position Embedding*, arXiv 2104.09864, section 3.
# - Peng et al. 2023, *YaRN: Efficient Context Window Extension of Large Language Models*, arXiv 2309.00071.
# - Shazeer 2019, *Fast Transformer Decoding: One Write-Head is All You Need*, arXiv 1911.02150: multi-query attention,
#   and why decoding is a matter of bytes.
# - Ainslie et al. 2023, *GQA*, arXiv 2305.13245: groups, and how to get them from a trained multi-head model.
# - DeepSeek-AI 2024, *DeepSeek-V2*, arXiv 2405.04434, section 2.1: latent attention, and its quality against MHA.
# - Dao et al. 2022, *FlashAttention*, arXiv 2205.14135; Rabe and Staats 2021, *Self-attention Does Not Need O(n²)
#   Memory*, arXiv 2112.05682.
