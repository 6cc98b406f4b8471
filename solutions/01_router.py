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
# # 01 · The router: from a linear layer to a decision
#
# A mixture of experts starts with a question that is put to every token: *which K of these E networks shall work on
# you, and how much does each of them count?* The part that answers is the **router**. It is one small linear layer
# and a few lines of arithmetic, and nearly everything that can go wrong in a sparse model goes wrong there first.
#
# After this lab you can
#
# - turn logits into scores in the three ways that published models use, without overflow and in the right precision;
# - choose the K best experts and weigh them, renormalised or not, and say which models do which;
# - move the choice with a bias that never touches the weights;
# - explain why K = 1 with renormalisation trains everything except the router;
# - measure what bfloat16 does to a decision, and what deciding costs.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. The next cell picks the size of the experiments (`cpu` or `gpu`) for this
# machine and draws every random number from one seed.

# %% tags=["setup"]
import re
import statistics
import time

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from labkit import check, hint, predict, recap, reveal, show
from labkit.core import presets, runtime
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels import reference
from labkit.nn.oracle import hf_route
from labkit.show import figures, picture, style
from labkit.train import data

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other

# %% [markdown]
# ## 1 · A router that runs, and is wrong
#
# Let a token be a vector $x \in \mathbb{R}^D$. A router holds a matrix $W \in \mathbb{R}^{E \times D}$, one row for
# each expert, and computes one **logit** per expert:
#
# $$ h_i = w_i \cdot x, \qquad i = 1, \dots, E . $$
#
# A score function turns logits into scores, the K best are chosen, and the layer's output is the chosen experts'
# outputs, each times its weight. The guide that this course audits gives about ten lines for it; below is what
# those lines do, in our own words.

# %% [markdown]
# > **Find the bug.** The class below runs, and it would train. Still, two things in these lines are wrong for a
# > language model, and two more are missing. Look for them before you read the output: what does a batch of
# > *sequences* do to it, and what do a token's two weights add up to?


# %% tags=["nbval-check-output"]
class NaiveRouter(torch.nn.Module):
    def __init__(self, d_model, num_experts):
        super().__init__()
        self.linear = torch.nn.Linear(d_model, num_experts)

    def forward(self, x):
        batch, d_model = x.shape
        weights, ids = torch.topk(torch.softmax(self.linear(x), dim=-1), 2)
        return ids, weights


sentences = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
try:
    NaiveRouter(16, 8)(sentences)
except ValueError as error:
    print("a batch of sequences:", error)
with torch.no_grad():
    ids, weights = NaiveRouter(16, 8)(sentences.reshape(-1, 16))
print("tokens whose two weights sum to one:", int((weights.sum(-1) > 0.999).sum()), "of", len(weights))

# %% [markdown]
# The sums are worth a picture. Each bar is a token: the two weights it got, and above them what was thrown away.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.6))
    first, second = weights.T
    axis.bar(range(10), first, label="best expert", color=style.PALETTE[0])
    axis.bar(range(10), second, bottom=first, label="second", color=style.PALETTE[4])
    axis.bar(range(10), 1 - first - second, bottom=first + second, label="thrown away", color=style.GREY, alpha=0.5)
    axis.set(xlabel="token", ylabel="share of the softmax", xticks=range(10), ylim=(0, 1))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Stacked bars for ten tokens: the two best hold less than half of the softmax, the rest is thrown away."
display(fig)

# %% [markdown]
# **What is wrong.** The unpacking `batch, d_model = x.shape` admits one rank of input only, so real input, `[batch,
# sequence, width]`, is refused. And the two weights do not sum to one: the softmax ran over eight experts, six of
# them were thrown away, and their share of the output went with them. Some published models do want that, but then
# it must be a decision and not an accident.

# %% [markdown]
# **What is missing.** Nothing keeps the load balanced (lab 03), and there are no experts (lab 02). So neither of
# the guide's claims about this part can be tested on it. *Sparse activation saves 90% of the compute* (claim 1) is
# audited in labs 02 and 07, *adaptive routing adds 12% accuracy* (claim 2) in lab 03. Here we build what both stand
# on.

# %% [markdown]
# ## 2 · Scores
#
# Three families of score functions are in use:
#
# | name | score of expert $i$ | used by |
# |---|---|---|
# | softmax | $s_i = e^{h_i} / \sum_j e^{h_j}$ | Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V2 |
# | sigmoid | $s_i = 1 / (1 + e^{-h_i})$ | DeepSeek-V3 (technical report, equation 15) |
# | sqrtsoftplus | $s_i = \sqrt{\ln(1 + e^{h_i})}$ | DeepSeek-V4 |
#
# With softmax the experts compete: one expert's gain is the others' loss. A sigmoid or a softplus judges each
# expert on its own. All three rise with the logit, so they rank experts alike; they differ in the weights and in
# the gradients.

# %% [markdown]
# Two traps wait in the arithmetic: $e^{h}$ overflows in float32 above $h \approx 88$, and bfloat16 keeps only eight
# significant bits.
#
# One habit for every exercise: if Python reports an error in your own cell, such as a `SyntaxError`, mend that cell
# first. The check below it then finds no function (`NameError`), or an older one, and judges nothing new.


# %% exercise="01.scores"
def scores(logits: torch.Tensor, score_fn: str = "softmax") -> torch.Tensor:
    """How much each token likes each expert.

    Args:
        logits: [..., E], any floating-point dtype; the leading dimensions are arbitrary, often [T, E] or [B, S, E].
        score_fn: "softmax" over the experts, "sigmoid" of each, or "sqrtsoftplus", the square root of softplus.

    Returns the scores, [..., E], float32, computed in float32 whatever the dtype of the logits, and finite for big
    logits. Raises ValueError for any other score_fn.
    """
    ### BEGIN SOLUTION
    logits = logits.float()
    if score_fn == "softmax":
        return logits.softmax(dim=-1)
    if score_fn == "sigmoid":
        return logits.sigmoid()
    if score_fn == "sqrtsoftplus":
        return F.softplus(logits).sqrt()
    raise ValueError(f"score_fn is {score_fn!r}; choose softmax, sigmoid or sqrtsoftplus")
    ### END SOLUTION


# %% check="01.scores"
scores = check("01.scores", scores)

# %% [markdown]
# Let one expert's logit move while three others stay at zero. The plot shows that expert's score, and the score of
# one of the three that did not move.

# %%
FAMILIES = ("softmax", "sigmoid", "sqrtsoftplus")
moving = torch.linspace(-6, 6, 121)
logits_TE = torch.cat([moving[:, None], torch.zeros(121, 3)], dim=1)
with style.use():
    fig, axes = picture.new(columns=2, size=(8.4, 3.0))
    for axis, expert, title in ((axes[0], 0, "the expert whose logit moves"), (axes[1], 1, "an expert that stays")):
        for name in FAMILIES:
            axis.plot(moving, scores(logits_TE, name)[:, expert], label=name)
        axis.set(title=title, xlabel="logit of the moving expert", ylabel="score", ylim=(0, 2.6))
    axes[0].legend()
fig.alt = "Left: all three scores rise with the logit; only sqrtsoftplus passes one. Right: only softmax falls."
display(fig)

# %% [markdown]
# On the right, only the softmax line bends: raising one expert *lowers* the others. That coupling is why a softmax
# router is prone to winner-takes-all training, and one argument for judging each
# expert alone.

# %% [markdown]
# Now the same four logits as numbers, in all three families, and then logits that are too big for a careless
# exponential.

# %% tags=["nbval-check-output"]
four = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
for name in FAMILIES:
    print(f"{name:>13}: {[round(v, 3) for v in scores(four, name)[0].tolist()]}")
big = four * 100
careless = big.exp() / big.exp().sum(-1, keepdim=True)
print("careless:", careless[0].tolist(), "   careful:", [round(v, 3) for v in scores(big)[0].tolist()])

# %% [markdown]
# > **Find the bug.** `exp(h) / exp(h).sum()` is the formula of the table above, and it is what gave the `nan`.
# > Taking the row's maximum off first changes nothing in exact arithmetic, since $e^{h_i - m} / \sum_j e^{h_j - m}$
# > has the factor $e^{-m}$ above and below; in float32 it is the difference between a decision and a `nan`.
# > `torch.softmax` does it for you. Router logits do grow during training: the z-loss of lab 03 exists to hold them
# > down.

# %% [markdown]
# ## 3 · The choice
#
# The K highest scores win. Which dimension is searched, and in what order the winners come back, is a convention;
# here it is *best first*, and any leading shape goes through untouched.


# %% exercise="01.top_k"
def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's K best experts.

    Args:
        scores: [..., E], floating point; higher is better. No two scores of a token are equal.
        k: how many to choose, 1 to E.

    Returns `(topk_ids, topk_scores)`, both [..., K], best first: the experts' numbers, int64, and their scores in the
    dtype that came in.
    """
    ### BEGIN SOLUTION
    topk_scores, topk_ids = scores.topk(k, dim=-1)
    return topk_ids, topk_scores
    ### END SOLUTION


# %% check="01.top_k"
top_k = check("01.top_k", top_k)

# %% [markdown]
# Here is what the choice does to a batch: left the scores of 24 random tokens, right what is left of them with K = 2.
# Everything else is never computed, and that is the whole saving of a sparse layer.

# %%
logits_TE = 1.5 * torch.randn(24, 8, generator=torch.Generator().manual_seed(2))
scores_TE = scores(logits_TE)
topk_ids, topk_scores = top_k(scores_TE, 2)
kept_TE = torch.zeros(24, 8).scatter(1, topk_ids, topk_scores)
with style.use():
    fig, axes = picture.new(columns=2, size=(8.4, 2.8))
    for axis, values, title in ((axes[0], scores_TE, "scores"), (axes[1], kept_TE, "the two best")):
        image = axis.imshow(values.T, aspect="auto", vmin=0, vmax=1)
        axis.set(title=title, xlabel="token", ylabel="expert", yticks=range(8))
        axis.grid(False)
    fig.colorbar(image, ax=axes, label="score")
fig.alt = "Two maps of 24 tokens by 8 experts: all scores on the left, on the right two coloured cells a column."
display(fig)

# %% [markdown]
# ## 4 · The weights
#
# The K scores can be used as they are, or divided by their sum so that they add up to one:
#
# $$ g_i = \gamma \, \frac{s_i}{\sum_{j \in \mathrm{TopK}} s_j + \epsilon} \quad\text{or}\quad g_i = \gamma \, s_i . $$

# %% [markdown]
# The first is called `norm_topk`; in the DeepSeek-V3 report it is equation 13. The factor $\gamma$ (`route_scale`)
# sets the size of the routed output beside that of a shared expert. The $\epsilon$, $10^{-20}$ in the code that
# `transformers` has for DeepSeek-V3, is there for a token whose K scores have all underflowed to zero: then 0/0 would
# be `nan`. It also shows where their sum is itself as small as $\epsilon$, so it has to be very small.


# %% exercise="01.renormalise"
def renormalise(topk_scores: torch.Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> torch.Tensor:
    """From the chosen experts' scores to the weights of their outputs.

    Args:
        topk_scores: [..., K], float32, zero or positive.
        norm_topk: divide each token's K scores by their sum; a token whose scores are all zero gets zeros, never NaN.
        route_scale: multiplies the weights in the end, in both settings.

    Returns the weights, [..., K], float32. The input is left as it was.
    """
    ### BEGIN SOLUTION
    if norm_topk:
        topk_scores = topk_scores / (topk_scores.sum(dim=-1, keepdim=True) + 1e-20)
    return topk_scores * route_scale
    ### END SOLUTION


# %% check="01.renormalise"
renormalise = check("01.renormalise", renormalise)

# %% [markdown]
# Who does what? The table is read from the published configurations. "Largest sum" is the most that one token's K
# weights can add up to.

# %% tags=["nbval-check-output"]
print(f"{'model':<18}{'experts':>8}{'K':>3}  {'scores':<13}{'norm_topk':<10}{'scale':>6}  {'largest sum':>11}")
for name in ("mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b"):
    moe = presets.preset(name).moe
    largest = moe.route_scale * (moe.top_k if moe.score_fn == "sigmoid" and not moe.norm_topk else 1)
    choice = f"{moe.num_experts:>8}{moe.top_k:>3}  {moe.score_fn:<13}"
    print(f"{name:<18}{choice}{moe.norm_topk!s:<10}{moe.route_scale:>6}  {largest:>11}")

# %% [markdown]
# ## 5 · Softmax before or after top-k?
#
# One line of the table says `topk_softmax`: GPT-OSS chooses by the logits and takes a softmax over the K winners.
# So did Shazeer et al. in 2017 (equations 3 and 5: everything outside the top K is set to $-\infty$, then comes the
# softmax). Mixtral takes the softmax over all E experts first, and divides afterwards. Some courses teach that
# these are two different routers, with different results.

# %% [markdown]
# Are they? A thousand tokens, 16 experts, K = 4. Think first, then commit.

# %%
p_order = predict(
    "01.softmax_order", "By how much do the two orders' weights differ at most, if the first one renormalises?",
    0, 0.5, "of a weight",
)  # fmt: skip

# %%
logits_TE = 3 * torch.randn(1000, 16, generator=torch.Generator().manual_seed(3))
before_ids, chosen = top_k(scores(logits_TE), 4)
after_ids, chosen_logits = top_k(logits_TE, 4)
after = scores(chosen_logits)
p_order.against((renormalise(chosen) - after).abs().max().item())

# %% [markdown]
# They are the same router. With $Z = \sum_{j=1}^{E} e^{h_j}$ the first one computes
#
# $$ \frac{e^{h_i} / Z}{\sum_{j \in \mathrm{TopK}} e^{h_j} / Z}
# = \frac{e^{h_i}}{\sum_{j \in \mathrm{TopK}} e^{h_j}} , $$
#
# and the right-hand side is the second. The common denominator cancels, whatever the logits are. What is left is
# rounding.

# %% [markdown]
# The two differ as soon as the first does *not* renormalise: then its weights keep the factor "how much of the
# softmax fell on the chosen ones", which is small for an undecided token.

# %% tags=["nbval-check-output"]
print("same experts:", bool((before_ids == after_ids).all()))
print("same weights, renormalised:    ", torch.allclose(renormalise(chosen), after, atol=1e-6))
print("same weights, not renormalised:", torch.allclose(renormalise(chosen, norm_topk=False), after, atol=1e-6))
print("sum of the weights, not renormalised: from", f"{chosen.sum(-1).min():.2f} to {chosen.sum(-1).max():.2f}")

# %% [markdown]
# Between the smallest and the largest sum, how are the tokens spread?

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 3.0))
    bins = torch.linspace(0, 1, 35).numpy()
    axis.hist(chosen.sum(-1).clamp(max=1).numpy(), bins=bins, label="softmax, top-k, as it is", color=style.PALETTE[1])
    axis.axvline(1.0, color=style.PALETTE[0], label="renormalised, or softmax after top-k")
    axis.set(xlabel="sum of a token's K weights", ylabel="tokens")
    axis.legend(loc="upper left")
fig.alt = "Histogram: without renormalisation the sum of four weights spreads below one; with it every sum is one."
display(fig)

# %% [markdown]
# So a model without renormalisation says one thing more: how *sure* the router is. An undecided token gets a
# smaller contribution from this layer and relies on the residual stream. OLMoE keeps that signal, Mixtral removes
# it. Neither is a bug; loading one model's weights into the other's code is.

# %% [markdown]
# ## 6 · A bias that moves the choice and nothing else
#
# If an expert gets too few tokens, one can nudge the router towards it. DeepSeek-V3 (technical report, section 2.1.2,
# equation 16) adds a bias $b_i$ to each expert's score, *for the choice only*:
#
# $$ g'_i = \begin{cases} s_i & \text{if } s_i + b_i \in \mathrm{TopK}\left(\{ s_j + b_j \}, K\right) \\
# 0 & \text{otherwise.} \end{cases} $$

# %% [markdown]
# Read it twice: $b$ stands in the condition, and it does not stand in the value. The bias has no gradient either; a
# rule outside the loss moves it (lab 03). Because it never enters the weights, balancing does not bend what the
# model computes for a given choice.


# %% exercise="01.select_with_bias"
def select_with_bias(scores: torch.Tensor, bias_E: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose with the bias, weigh without it.

    Args:
        scores: [..., E], float32.
        bias_E: [E], float32, added to the scores for the choice only.
        k: how many to choose, 1 to E.

    Returns `(topk_ids, topk_scores)`, both [..., K]: the experts whose biased scores are highest, best first by biased
    score, int64, and their own, unbiased scores. The inputs are left as they were.
    """
    ### BEGIN SOLUTION
    topk_ids = (scores + bias_E).topk(k, dim=-1).indices
    return topk_ids, scores.gather(-1, topk_ids)
    ### END SOLUTION


# %% check="01.select_with_bias"
select_with_bias = check("01.select_with_bias", select_with_bias)

# %% [markdown]
# One token, four experts, K = 2. The bias of expert 3 grows from nothing. Watch two things: when the choice tips,
# and what weight expert 3 gets once it is in.

# %% tags=["nbval-check-output"]
token = torch.tensor([[0.50, 0.40, 0.30, 0.20]])
for push in (0.0, 0.1, 0.15, 0.25, 0.5, 5.0):
    topk_ids, topk_scores = select_with_bias(token, torch.tensor([0.0, 0.0, 0.0, push]), 2)
    leaked = (token + torch.tensor([0.0, 0.0, 0.0, push])).gather(-1, topk_ids)
    shown = [[round(v, 3) for v in renormalise(s)[0].tolist()] for s in (topk_scores, leaked)]
    print(f"bias {push:<5} experts {topk_ids[0].tolist()}  weights {shown[0]!s:<16} with the leak {shown[1]}")

# %% [markdown]
# > **Find the bug.** The last column is what one gets from `torch.topk(scores + bias)` when its *values* are taken
# > as the weights; an easy fault to make, since the call is one line shorter. A strong bias then drowns the other
# > expert's output. The model still trains, and pays for balance with quality. Lab 03's clinic has this patient.

# %% [markdown]
# ## 7 · The whole router, against five that we did not write
#
# The pieces make a router in a few lines: logits, scores, choice with or without a bias, weights. Both faults of
# the naive router are gone. No function names the leading dimensions, so there can be any number of them; and the
# weights sum to one if the configuration says so.


# %% tags=["nbval-check-output"]
def route(logits, moe, bias_E=None):
    """Ids and weights, [..., K], for logits [..., E], as a configuration says (groups of experts wait for lab 04)."""
    if moe.score_fn == "topk_softmax":
        topk_ids, topk_logits = top_k(logits.float(), moe.top_k)
        return topk_ids, renormalise(scores(topk_logits), False, moe.route_scale)
    scores_TE = scores(logits, moe.score_fn)
    topk_ids, topk_scores = (
        top_k(scores_TE, moe.top_k) if bias_E is None else select_with_bias(scores_TE, bias_E, moe.top_k)
    )
    return topk_ids, renormalise(topk_scores, moe.norm_topk, moe.route_scale)


pair = MoEConfig(d_model=16, d_expert=8, num_experts=8, top_k=2)
for shape in ((8,), (5, 8), (2, 5, 8), (2, 3, 5, 8)):
    ids, weights = route(torch.randn(*shape, generator=torch.Generator().manual_seed(2)), pair)
    print(f"logits {shape!s:>13}: ids {tuple(ids.shape)!s:>13}, weights sum to {weights.sum(-1).mean():.3f}")

# %% [markdown]
# Are these the routers that real models run? The `transformers` library has its own code for each family. We give
# both the same tokens and the same matrix, and compare the experts and their weights. Mixtral always renormalises
# and GPT-OSS always takes its softmax last; the others are compared in both settings.

# %% tags=["nbval-check-output"]
small = {"d_model": 32, "d_expert": 8, "num_experts": 16, "top_k": 4}
v3 = {"score_fn": "sigmoid", "selection_bias": True, "route_scale": 2.5}
rows = [
    ("mixtral", {}),
    ("olmoe", {"norm_topk": False}),
    ("olmoe", {}),
    ("qwen3_moe", {"norm_topk": False}),
    ("qwen3_moe", {}),
]
rows += [
    ("deepseek_v3", {**v3, "norm_topk": False}),
    ("deepseek_v3", v3),
    ("gpt_oss", {"score_fn": "topk_softmax", "router_bias": True}),
]
x_TD = torch.randn(300, 32, generator=torch.Generator().manual_seed(4))
weight_ED = torch.randn(16, 32, generator=torch.Generator().manual_seed(5)) / 32**0.5
for family, fields in rows:
    moe = MoEConfig(**small, **fields)
    bias_E = torch.linspace(-0.2, 0.2, 16) if moe.selection_bias else None
    ids, weights = route(x_TD @ weight_ED.T, moe, bias_E)
    theirs_TE = hf_route(family, moe, x_TD, weight_ED, bias_E)[2]
    ours_TE = torch.zeros(300, 16).scatter(1, ids, weights)
    agrees = torch.equal(ours_TE > 0, theirs_TE > 0) and torch.allclose(ours_TE, theirs_TE, atol=1e-6)
    print(f"{family:<12} norm_topk={moe.norm_topk!s:<6} {'equal on all 300 tokens' if agrees else 'DIFFERENT'}")

# %% [markdown]
# Your functions (or the reference, where a check has not passed yet) decide as the production code does.
# DeepSeek-V3 also limits a token to a few *groups* of experts; lab 04 adds that, and `labkit.nn.Router` has it.

# %% [markdown]
# How much do these conventions matter? One and the same row of logits, as four conventions would weigh it:

# %%
one = torch.tensor([[-1.3, 0.7, -2.3, -0.6, -0.2, -1.8, 0.1, -3.0]])
conventions = {
    "Mixtral, Qwen3-MoE": {},
    "OLMoE": {"norm_topk": False},
    "DeepSeek-V3": {"score_fn": "sigmoid", "route_scale": 2.5},
    "GPT-OSS": {"score_fn": "topk_softmax"},
}
with style.use():
    fig, axes = picture.new(columns=4, size=(10.4, 2.6))
    for axis, (name, fields) in zip(axes, conventions.items(), strict=True):
        ids, weights = route(one, MoEConfig(d_model=4, d_expert=4, num_experts=8, top_k=3, **fields))
        axis.bar(ids[0], weights[0], color=[style.expert_color(i, 8) for i in ids[0].tolist()])
        axis.set(title=name, xlabel="expert", ylim=(0, 1.1), xlim=(-0.6, 7.6), xticks=range(8))
    axes[0].set_ylabel("weight")
fig.alt = "The same three experts: Mixtral and GPT-OSS agree, OLMoE is smaller, DeepSeek-V3 larger and flatter."
display(fig)

# %% [markdown]
# The same three experts each time. Mixtral and GPT-OSS agree up to rounding, as section 5 says they must. OLMoE is
# smaller by the share of the softmax that fell on the others. Sigmoids lie closer together than exponentials do, so
# DeepSeek-V3's weights are flatter, and its scale makes them larger.

# %% [markdown]
# ## 8 · The trap of K = 1
#
# Switch Transformer (Fedus et al. 2021) sends each token to one expert only, and that works. Yet put `top_k=1` into
# a router that renormalises, as Mixtral's does, and something breaks without a sound. Before you read on: what is
# the renormalised weight of the only chosen expert? And what is its slope?

# %% [markdown]
# In this exercise you follow the gradient yourself. One token goes to its best expert $e$, whose output is $y_e$,
# with weight $g$. The loss is the mean squared error over all tokens and all D components:
#
# $$ L = \frac{1}{TD} \sum_{t} \lVert g_t \, y_{t,e_t} - \mathrm{target}_t \rVert^2 , \qquad
# \text{wanted: } \frac{\partial L}{\partial h_{t,i}} . $$


# %% exercise="01.k_one_gradient"
def k_one_gradient(
    logits_TE: torch.Tensor, outputs_TED: torch.Tensor, target_TD: torch.Tensor, norm_topk: bool
) -> torch.Tensor:
    """The gradient that reaches the router when every token uses one expert.

    The forward pass: softmax scores, the best expert of each token, its score as weight (divided by the sum of the
    K = 1 chosen scores if `norm_topk`), times that expert's output; then the mean squared error against the target.

    Args:
        logits_TE: [T, E], float32.
        outputs_TED: [T, E, D], float32, what each expert would answer to each token.
        target_TD: [T, D], float32.
        norm_topk: whether the one weight is renormalised.

    Returns the gradient of the loss with respect to the logits, [T, E], float32.
    """
    ### BEGIN SOLUTION
    logits_TE = logits_TE.detach().requires_grad_(True)
    scores_T1, ids_T1 = logits_TE.softmax(dim=-1).topk(1, dim=-1)
    weights_T1 = scores_T1 / scores_T1.sum(dim=-1, keepdim=True) if norm_topk else scores_T1
    chosen_TD = outputs_TED[torch.arange(len(ids_T1)), ids_T1[:, 0]]
    loss = ((weights_T1 * chosen_TD - target_TD) ** 2).mean()
    return torch.autograd.grad(loss, logits_TE)[0]
    ### END SOLUTION


# %% check="01.k_one_gradient"
k_one_gradient = check("01.k_one_gradient", k_one_gradient)

# %% [markdown]
# $g = s / s = 1$ whatever the router says, so nothing the router says matters, and no gradient comes back. The
# experts still learn, on whatever tokens the untrained router happens to send them. K = 2 escapes the trap: the two
# weights share one unit, and the router learns how to split it.

# %% [markdown]
# How would one notice? We train a small mixture on a toy: points on four spiral arms, which no straight line
# divides, and six experts, each a linear classifier. The router picks the expert, the expert names the arm. This
# function trains any such mixture, with the routing functions from above.


# %%
def train_moe(x, labels, num_experts, k, norm_topk, steps=300, seed=0, every=20):
    """Train linear experts under a linear router; returns accuracy, router snapshots [S, E, D+1] and the steps."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    classes = int(labels.max()) + 1
    router = (0.3 * torch.randn(num_experts, x.shape[1], generator=draw)).requires_grad_(True)
    experts = (0.3 * torch.randn(num_experts, classes, x.shape[1], generator=draw)).requires_grad_(True)
    optimizer = torch.optim.Adam([router, experts], lr=0.05)
    moe = MoEConfig(d_model=x.shape[1], d_expert=1, num_experts=num_experts, top_k=k, norm_topk=norm_topk)
    snapshots = [router.detach().clone()]
    for step in range(1, steps + 1):
        ids, weights = route(x @ router.T, moe)
        every_TEC = torch.einsum("td,ecd->tec", x, experts)
        mix_TE = torch.zeros(len(x), num_experts).scatter(1, ids, weights)
        answer_TC = torch.einsum("te,tec->tc", mix_TE, every_TEC)
        optimizer.zero_grad()
        F.cross_entropy(answer_TC, labels).backward()
        optimizer.step()
        if step % every == 0:
            snapshots.append(router.detach().clone())
    return (answer_TC.argmax(-1) == labels).float().mean().item(), torch.stack(snapshots), every


# %% [markdown]
# Three settings, five seeds each: K = 1 renormalised (the router gets no gradient), K = 1 as it is (it does), and K
# = 2. How many points of accuracy does the trap cost?

# %%
p_k_one = predict(
    "01.k_one", "K = 1: how many points of accuracy does renormalising cost on the toy, on average over five seeds?",
    -20, 60, "points",
)  # fmt: skip

# %%
points, arms = data.toy_2d(600, 4, seed=0)
settings = {"K = 1, renormalised": (1, True), "K = 1, as it is": (1, False), "K = 2, renormalised": (2, True)}
trained = {
    name: [train_moe(2 * points, arms, 6, k, norm_topk, seed=s) for s in range(5)]
    for name, (k, norm_topk) in settings.items()
}
accuracy = {name: [100 * run[0] for run in runs] for name, runs in trained.items()}
moved = {name: [(run[1][-1] - run[1][0]).norm().item() for run in runs] for name, runs in trained.items()}
cost = [a - b for a, b in zip(accuracy["K = 1, as it is"], accuracy["K = 1, renormalised"], strict=True)]
p_k_one.against(statistics.mean(cost), min(cost), max(cost))

# %% [markdown]
# Every run is a dot. On the left what one usually looks at, on the right what one should have looked at.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 2.9))
    for axis, values, label in (
        (axes[0], accuracy, "accuracy in %, one dot a seed"),
        (axes[1], moved, "distance the router moved"),
    ):
        for row, dots in enumerate(values.values()):
            axis.scatter(dots, [row] * len(dots), color=style.PALETTE[row], alpha=0.8)
        axis.set(xlabel=label, yticks=range(3), ylim=(2.6, -0.6))
        axis.set_yticklabels(list(values) if axis is axes[0] else [])
fig.alt = "Accuracies of the two K = 1 settings overlap; only with K = 1 renormalised the router hardly moved."
display(fig)
means = {name: (statistics.mean(accuracy[name]), statistics.mean(moved[name])) for name in settings}
lines = [f"- **{name}**: accuracy {a:.1f}% on average, the router moved by {d:.3f}" for name, (a, d) in means.items()]
display(Markdown("\n".join(lines)))

# %% [markdown]
# Accuracy is a poor witness. On some seeds the frozen router does worse, on others better than one that learns: a
# random partition of the plane is not always a bad one, the experts adapt to it, and a router that learns without
# any balancing has its own way to fail (some experts get no points at all; lab 03). From a single run nobody could
# tell.

# %% [markdown]
# What gives the trap away is the right-hand plot: *that router hardly moved*. The little that it did is rounding:
# $s/s$ leaves a residue far below the true gradients, and Adam, which divides by the gradient's size, makes steps
# of it.

# %% [markdown]
# So look at gradients and movement and not only at the loss: your exercise's function tells the two settings apart
# at once.

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(6)
example = [torch.randn(*shape, generator=draw) for shape in ((64, 4), (64, 4, 8), (64, 8))]
for norm_topk in (False, True):
    largest = k_one_gradient(*example, norm_topk).abs().max().item()
    shown = f"{largest:.2e}" if largest > 1e-6 else "0, up to rounding (below 1e-6)"
    print(f"norm_topk={norm_topk!s:<6} largest gradient {shown}")

# %% [markdown]
# The rule to take away: with K = 1, do not renormalise. Switch multiplies by the score itself (its equation 2).

# %% [markdown]
# ## 9 · What a router draws
#
# In the plane a linear router is a map: each expert owns a region, and the borders are straight lines where two
# logits are equal. Take the K = 2 run above. For how much of the plane does the favourite expert change in
# training?

# %%
p_regions = predict(
    "01.regions", "Share of the plane whose favourite expert changes between the first step and the last?", 0, 100, "%"
)

# %%
_, snapshots, every = trained["K = 2, renormalised"][0]
plane = torch.from_numpy(figures.region_grid(2 * points))
plane = torch.cat([plane, torch.ones(len(plane), 1)], dim=1)
favourites = {i * every: top_k(scores(plane @ router.T), 1)[0][:, 0] for i, router in enumerate(snapshots)}
first, last = favourites[0], favourites[max(favourites)]
p_regions.against(100 * (first != last).float().mean().item())

# %% [markdown]
# Four moments of the training side by side. Colour is the favourite expert, each marker is a point of one arm.

# %%
arm_names = [f"arm {arm}" for arm in arms.tolist()]
moments = {step: favourites[step] for step in (0, every, 6 * every, max(favourites))}
display(figures.decision_regions(2 * points, arm_names, moments, 6))

# %% [markdown]
# And all of them under a slider; the arrow keys work too. (In a saved page, where no kernel answers, the four above
# stand for the rest.)

# %%
moments = [figures.decision_regions(2 * points, arm_names, {step: owner}, 6) for step, owner in favourites.items()]
for moment in moments:
    moment.set_dpi(160)
frames = [picture.png(moment) for moment in moments]
image = ipywidgets.Image(value=frames[0], format="png", layout={"width": "520px", "align_self": "flex-start"})
slider = ipywidgets.SelectionSlider(
    options=[(f"step {step}", i) for i, step in enumerate(favourites)], description="training"
)
slider.observe(lambda change: setattr(image, "value", frames[change["new"]]), names="value")
display(ipywidgets.VBox([slider, image]))

# %% [markdown]
# The borders swing most in the first steps, while the experts are still unlike nothing in particular, and then
# settle: experts specialise on the points they are sent, the router sends points where they are answered best, and
# each side of the loop feeds the other. A region may vanish and come back, as long as its expert is still the
# *second* choice of some points. An expert that nobody chooses gets no gradient at all, and stays as it is.

# %% [markdown]
# ## 10 · Under the microscope: real words
#
# Now real text: bytes from the interpreter's own library and topic pages, and generated arithmetic and records, so
# each word's domain is known. A mixture of eight linear experts learns to guess the next byte from features of the
# last few; it takes seconds and is no language model, but its router has learned something.

# %%
source = data.corpus(bytes_per_domain=40_000)
batch = data.sample(source, num_sequences=8 if profile == "cpu" else 32, sequence_length=129, seed=seed)
features = data.byte_features(batch.ids_BS[:, :-1], dim=32, seed=seed)
_, routers, _ = train_moe(features.reshape(-1, 32), batch.ids_BS[:, 1:].reshape(-1), 8, 2, True, steps=60)
words = []
for domain in source.domains:
    rows = [b for b, label in enumerate(batch.domains) if label == domain]
    found = [(b, word) for b in rows for word in re.finditer(rb"\w{2,}", bytes(batch.ids_BS[b, :-1].tolist()))]
    words += found[1:7]
x_TD = torch.stack([features[b, word.end() - 1] for b, word in words])
logits_TE = torch.cat([x_TD, torch.ones(len(words), 1)], dim=1) @ routers[-1].T
eight = MoEConfig(d_model=33, d_expert=1, num_experts=8, top_k=2)
names = tuple(word[0].decode(errors="replace")[:14] for _, word in words)
domains = tuple(batch.domains[b] for b, _ in words)
record = Routing.of(logits_TE, *route(logits_TE, eight), tokens=names, domains=domains)
print(f"{record.num_tokens} words, tokens per expert: {record.tokens_per_expert_E.tolist()}")

# %% [markdown]
# The microscope takes one word at a time through the four steps that you wrote: logits, scores with a bias, the
# choice, the weights. Your own functions decide. Try three things.
#
# 1. Give an unchosen expert just enough bias to win. Do the weights of the *other* chosen expert jump or glide?
# 2. Push the bias further. What happens to the weight of the new expert from then on?
# 3. Find a word for which the tiniest bias tips the choice. What do its logits look like?
#
# It starts on the word that the router is least sure of: the one whose best score is the lowest.


# %%
def decide(logits_TE, bias_E):
    """Your router, for the microscope: all scores, the chosen experts, their weights."""
    scores_TE = scores(logits_TE)
    ids, chosen_scores = select_with_bias(scores_TE, bias_E, 2)
    return scores_TE, ids, renormalise(chosen_scores)


undecided = scores(logits_TE).amax(dim=1).argmin().item()
display(show.microscope(record, eight, decide, token=undecided))

# %% [markdown]
# The weight does not move while the bias grows, until the choice tips; then it jumps once and stays. That is
# equation 16 at work. Now a whole passage at once: one row a word, one column an expert, colour is the weight.

# %%
labels = [f"{domain[:4]}: {word}" for domain, word in zip(record.domains, record.tokens, strict=True)]
display(figures.routing_matrix(record, labels))

# %% [markdown]
# Is there a pattern by domain? Maybe, and maybe less than it looks: with two of eight experts per word some
# agreement is chance. Lab 04 measures specialisation against a shuffled baseline before it says anything.

# %% [markdown]
# ## 11 · Noise: by accident and on purpose
#
# The choice is the one place of a model where a rounding error can change which *network* runs. bfloat16 keeps eight
# significant bits, so a logit near 1 is rounded in steps of $2^{-7}$. Rounding never makes two logits change places,
# but if the K-th and the next lie closer than a step, they can become *equal*. Then they tie, and top-k breaks the
# tie arbitrarily, and differently on another device.

# %% [markdown]
# We take the real widths and expert counts of four models, random tokens and router weights with logits of unit
# variance, and ask: for how many tokens does the chosen *set* change when the logits, computed in float32 from the
# same bfloat16 inputs, are stored as bfloat16? That is what a router without a float32 matrix product does.

# %%
p_bf16 = predict(
    "01.bf16", "OLMoE (64 experts, K = 8): tokens whose experts change when logits are rounded to bfloat16?", 0, 60, "%"
)

# %%
NAMES = ("mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v3")
T = 65_536 if profile == "gpu" else 2048


def random_logits(name, T):
    """Logits [T, E] in float32 of random bfloat16 tokens and router weights, with the widths of a published model."""
    moe, draw = presets.preset(name).moe, torch.Generator(device).manual_seed(seed)
    x_TD = torch.randn(T, moe.d_model, generator=draw, device=device).bfloat16()
    weight_ED = (torch.randn(moe.num_experts, moe.d_model, generator=draw, device=device) / moe.d_model**0.5).bfloat16()
    return x_TD.float() @ weight_ED.float().T


def chosen_mask(values_TE, k):
    """True where an expert is among its token's K best."""
    return torch.zeros_like(values_TE, dtype=torch.bool).scatter_(1, top_k(values_TE, k)[0], True)


# %% [markdown]
# Two ways to lose precision are counted: logits stored in bfloat16, and scores stored in bfloat16 (a softmax whose
# result is cast back too early). The choice itself is always made on float32 values.

# %%
late, early, logits_of = {}, {}, {}
for name in NAMES:
    k, logits_TE = presets.preset(name).moe.top_k, random_logits(name, T)
    exact_TE = chosen_mask(logits_TE, k)
    for count, rounded_TE in ((early, logits_TE.bfloat16()), (late, scores(logits_TE).bfloat16())):
        changed_T = (chosen_mask(rounded_TE.float(), k) != exact_TE).any(dim=1)
        count[name] = 100 * changed_T.float().mean().item()
    logits_of[name] = logits_TE
p_bf16.against(early["olmoe-1b-7b"])

# %% [markdown]
# The figure has all four models, and beside them the reason. The **margin** of a token is the gap between its K-th
# and its next logit: the distance to another decision.


# %%
def margin(logits_TE, k):
    """The gap between the K-th and the next logit of each token, [T]."""
    best = top_k(logits_TE, k + 1)[1]
    return best[:, k - 1] - best[:, k]


with style.use():
    fig, axes = picture.new(columns=2, size=(10.4, 3.3))
    rows = torch.arange(len(NAMES)).numpy()
    axes[0].barh(rows - 0.18, list(early.values()), 0.34, label="logits rounded")
    axes[0].barh(rows + 0.18, list(late.values()), 0.34, label="scores rounded")
    axes[0].set(yticks=rows, yticklabels=NAMES, xlabel="tokens whose experts change, %", ylim=(3.6, -0.6))
    axes[0].legend()
    logits_TE = logits_of["olmoe-1b-7b"]
    gaps, bins = margin(logits_TE, 8).cpu(), torch.logspace(-4, 0, 41).numpy()
    changed_T = (chosen_mask(logits_TE.bfloat16().float(), 8) != chosen_mask(logits_TE, 8)).any(dim=1).cpu()
    axes[1].hist(gaps.numpy(), bins=bins, color=style.GREY, label="all tokens")
    axes[1].hist(gaps[changed_T].numpy(), bins=bins, color=style.LIT, label="tokens that changed")
    axes[1].axvline(2**-7, color=style.INK, linestyle=":", label="bfloat16 step at 1")
    axes[1].set(xscale="log", xlabel="margin of the decision (OLMoE's shape)", ylabel="tokens")
    axes[1].legend(loc="upper left")
fig.alt = "Left: more experts, more changed decisions. Right: only tokens with a margin below the rounding step change."
display(fig)

# %% [markdown]
# How much does it matter to a token's output? Count the weight that lands on another expert. And test the
# explanation: every token that changed must have a tie at its border.

# %%
rounded_TE, moe = logits_TE.bfloat16().float(), presets.preset("olmoe-1b-7b").moe
exact_TE, moved_TE = (torch.zeros_like(logits_TE).scatter(1, *route(x, moe)) for x in (logits_TE, rounded_TE))
share_T = 100 * (exact_TE - moved_TE).abs().sum(1) / 2 / exact_TE.sum(1)
changed_T = ((exact_TE > 0) != (moved_TE > 0)).any(dim=1)
tied_T = margin(rounded_TE, 8) == 0
changed, tied, both = (100 * part.float().mean().item() for part in (changed_T, tied_T, changed_T & tied_T))
display(Markdown(
    f"In OLMoE's shape the 8th and the 9th logit **tie** after rounding for {tied:.1f}% of the tokens. An expert "
    f"changes for **{changed:.1f}%** of the tokens, and for {both:.1f}% with such a tie. Where one changes, "
    f"{share_T[changed_T].mean():.1f}% of the weight moves to another expert. Over all tokens, every small shift "
    f"within the same set counted, it is {share_T.mean():.2f}%."
))  # fmt: skip

# %% [markdown]
# More experts crowd the logits, margins shrink, and more decisions change. Rounding the scores is not safe either:
# eight significant bits are too few in both places. But look at *which* decisions change: those with a margin below
# the rounding step. There the K-th expert and the next have become equally good, top-k takes one of them by a rule of
# its own, and the expert at stake is the one with the smallest weight of the K.

# %% [markdown]
# So rounding is not a disaster for quality. It is one for *reproducing* a decision: an inference engine that rounds
# elsewhere than the trainer, or breaks ties by another rule, sends some tokens to other experts, so the two disagree
# about the probability of the same text.

# %% [markdown]
# That is why routers decide in float32. Note where: softmax in float32 on logits that a bfloat16 product has
# rounded comes too late. DeepSeek-V3's router widens the tokens and the matrix before
# the product.

# %% [markdown]
# The same effect is also used on purpose. Shazeer et al. (2017, equation 4) add Gaussian noise to the logits
# while training, with a width that is learned and depends on the token, so
# that other experts are tried too:
#
# $$ H(x)_i = (x \cdot W_g)_i + \mathcal{N}(0, 1) \cdot \mathrm{softplus}\big((x \cdot W_\mathrm{noise})_i\big) . $$

# %% [markdown]
# How much noise does it take to change the experts of half of the tokens? (OLMoE's shape again; logits with
# standard deviation 1.)

# %%
p_noise = predict("01.noise", "Noise of which standard deviation changes the chosen set of half of the tokens?", 0, 1)

# %%
draw = torch.Generator().manual_seed(seed)
noise_TE = torch.randn(logits_TE.shape, generator=draw).to(logits_TE.device)
exact_TE = chosen_mask(logits_TE, 8)
stds = torch.logspace(-4, 0.5, 28).tolist()
changed = [(chosen_mask(logits_TE + std * noise_TE, 8) != exact_TE).any(dim=1).float().mean().item() for std in stds]
p_noise.against(float(np.interp(0.5, changed, stds)))
like_rounding = float(np.interp(early["olmoe-1b-7b"] / 100, changed, stds))
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 3.0))
    axis.plot(stds, [100 * share for share in changed], label="Gaussian noise on the logits")
    axis.axhline(early["olmoe-1b-7b"], color=style.LIT, linestyle=":", label="rounding to bfloat16")
    axis.set(xscale="log", xlabel="standard deviation of the noise", ylabel="decisions changed, %")
    axis.legend()
fig.alt = "Changed decisions rise with the noise; rounding to bfloat16 equals a small noise."
display(fig)
print(f"rounding to bfloat16 changes as many decisions as noise of standard deviation {like_rounding:.4f}")
print(f"median gap between a token's 8th and 9th logit: {margin(logits_TE, 8).median().item():.3f}")

# %% [markdown]
# All that counts is the one border between the last winner and the first loser. The 8th and the 9th of 64 logits lie
# close together (the median gap is printed above), so little noise goes a long way. Between the first and the second
# there is more room, and a router with K = 1 is harder to disturb. Later models dropped the noise: an auxiliary loss
# or a bias keeps the experts alive more gently (lab 03).

# %% [markdown]
# ## 12 · What a decision costs
#
# Compared with its experts the router computes next to nothing. Per token, in multiply–add pairs counted as two:

# %% tags=["nbval-check-output"]
for name in NAMES:
    moe = presets.preset(name).moe
    router_flops = 2 * moe.d_model * moe.num_experts
    expert_flops = 6 * moe.d_model * moe.d_expert * (moe.top_k + moe.num_shared_experts)
    share = 100 * router_flops / expert_flops
    print(f"{name:<14} router {router_flops:>9,}  experts {expert_flops:>13,}  share {share:.2f}%")

# %% [markdown]
# But FLOPs are not time. After the product come softmax, top-k and a division: a handful of passes over a small
# matrix. The least that a machine can do is read the logits once and write K ids and weights per token, at the
# speed at which it copies memory. That is the **floor**. How many times the floor does your `route` take?

# %%
p_time = predict(
    "01.time", "OLMoE's shape: the time of `route`, as a multiple of reading and writing everything once?", 1, 200, "×"
)

# %% [markdown]
# Times are medians of twenty calls (five for one slow routine at the end), measured by CUDA events on a GPU and by
# the clock on one CPU core.


# %%
def milliseconds(run, *args, repeats=20):
    """Median time of `run(*args)`, in milliseconds, after three calls to warm up."""
    times = []
    for _ in range(repeats + 3):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(*args)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            run(*args)
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[3:])


# %%
T = 262_144 if profile == "gpu" else 4096
block = torch.zeros(2, 2**28 if profile == "gpu" else 2**24, device=device)
copy_GBps = 4 * block.numel() / milliseconds(block[0].copy_, block[1]) / 1e6
eager, floor, parts = {}, {}, {}
for name in NAMES:
    moe = presets.preset(name).moe
    logits_TE = torch.randn(T, moe.num_experts, device=device)
    bias_E = torch.zeros(moe.num_experts, device=device) if moe.selection_bias else None
    eager[name] = milliseconds(route, logits_TE, moe, bias_E)
    floor[name] = T * (4 * moe.num_experts + 12 * moe.top_k) / copy_GBps / 1e6
    scores_TE = scores(logits_TE, moe.score_fn)
    topk_scores = top_k(scores_TE, moe.top_k)[1]
    parts[name] = {
        "scores": milliseconds(scores, logits_TE, moe.score_fn),
        "top_k": milliseconds(top_k, scores_TE, moe.top_k),
        "renormalise": milliseconds(renormalise, topk_scores, moe.norm_topk, moe.route_scale),
    }
where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
print(f"{T:,} tokens on {where}; memory is copied at {copy_GBps:,.0f} GB/s (read plus write)")
p_time.against(eager["olmoe-1b-7b"] / floor["olmoe-1b-7b"])

# %% [markdown]
# Where does it go? The three steps were timed one by one as well. And would a compiler do better? On a GPU,
# `torch.compile` can fuse the passes around top-k. On a CPU we leave it out: it wants a C++ compiler and more time
# than it saves here. DeepSeek-V3 is also timed with its groups, as `labkit.kernels.reference` computes them: slow
# and obvious on purpose, for it is the specification.

# %%
faster = {}
if device.type == "cuda" and runtime.can("triton"):
    for name in NAMES:
        moe = presets.preset(name).moe
        logits_TE = torch.randn(T, moe.num_experts, device=device)
        bias_E = torch.zeros(moe.num_experts, device=device) if moe.selection_bias else None
        try:
            faster[name] = milliseconds(torch.compile(route, dynamic=False), logits_TE, moe, bias_E)
        except Exception as error:
            print(f"{name}: torch.compile failed here ({type(error).__name__}); the eager time stands alone")
moe, logits_TE = presets.preset("deepseek-v3").moe, torch.randn(T, 256, device=device)
groups = {"num_groups": moe.num_groups, "top_groups": moe.top_groups, "group_score": moe.group_score}
with_groups = milliseconds(lambda: reference.route(logits_TE, top_k=8, score_fn="sigmoid", **groups), repeats=5)
print(f"deepseek-v3 with groups, specification: {with_groups:.2f} ms, without groups: {eager['deepseek-v3']:.2f} ms")

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 3.2))
    left = np.zeros(len(NAMES))
    for step in ("scores", "top_k", "renormalise"):
        width = np.array([parts[name][step] / floor[name] for name in NAMES])
        axis.barh(NAMES, width, left=left, height=0.5, label=step)
        left = left + width
    if faster:
        compiled = [ms / floor[name] for name, ms in faster.items()]
        axis.plot(compiled, list(faster), "D", color=style.INK, label="all, torch.compile")
    axis.axvline(1, color=style.INK, linestyle=":", label="floor: read and write once")
    axis.set(xlabel="time of a decision, as a multiple of the floor", ylim=(3.5, -0.5))
    fig.legend(loc="outside upper right", ncols=5)
fig.alt = "Time of scores, top-k and renormalising for four models, stacked, as multiples of moving the bytes once."
display(fig)
largest = {name: max(steps, key=steps.get) for name, steps in parts.items()}
print("\n".join(f"{n:<14} {eager[n]:8.3f} ms, floor {floor[n]:.3f} ms; slowest step: {largest[n]}" for n in NAMES))

# %% [markdown]
# Where experts are many, the arithmetic is not the problem, and neither are the passes over a small matrix: the
# *choice* is. A
# library's top-k has to serve any K and any row length, and a compiler calls that same routine instead of fusing it
# with its neighbours. A router knows more: K is small, a row fits into registers, and scores, choice and weights
# need the row only once.

# %% [markdown]
# Lab 08 writes the whole decision as *one* Triton kernel that reads each logit once; the dotted line of this figure
# is what it is up against.

# %% [markdown]
# ## 13 · Recap
#
# Five questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("01")

# %% [markdown]
# ## Claim verdicts
#
# This lab settles none of the fifteen claims; it builds what two of them are measured with.
#
# - **Claim 1** (sparse activation saves 90% of the compute): labs 02 and 07. From here we take that the router's
#   own FLOPs hardly count, and that its time may.
# - **Claim 2** (adaptive routing adds 12% accuracy): lab 03. From here we take a warning: on the toy, a router that
#   could not learn was hard to tell from one that could by its accuracy alone. A claim about adaptive routing needs
#   random and fixed routers beside it, and several seeds.

# %% [markdown]
# ## Further reading
#
# - Shazeer et al. 2017, *Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer*, arXiv
#   1701.06538: equations 3 to 5, noise and softmax after top-k.
# - Fedus, Zoph, Shazeer 2021, *Switch Transformers*, arXiv 2101.03961: K = 1 done right, and float32 inside the
#   router.
# - Jiang et al. 2024, *Mixtral of Experts*, arXiv 2401.04088; Muennighoff et al. 2024, *OLMoE*, arXiv 2409.02060.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, arXiv 2412.19437: section 2.1.2, sigmoid scores and the
#   selection bias.
# - Wang et al. 2024, *Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts*, arXiv 2408.15664: where
#   the bias comes from.
# - Zhou et al. 2022, *Mixture-of-Experts with Expert Choice Routing*, arXiv 2202.09368: what happens if experts
#   choose.
