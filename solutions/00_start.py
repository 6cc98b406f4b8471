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
# # 00 · Start: your machine, the map, the claims
#
# Welcome. In this course you build a mixture-of-experts language model from an empty file, make it fast, small and
# useful, and hold fifteen public claims about such models against what you measure yourself. This first lab needs no
# neural network, only arithmetic, and yet it settles a question that is usually answered with a shrug: *what does a
# "7B model" need?*
#
# After this lab you can
#
# - say what your machine can do, and what the course will do where it cannot;
# - find your way: 24 labs, and in each of them predictions, exercises, checks and a recap;
# - tell **total** parameters from **active** ones, and say which of the two fills the memory;
# - work out the memory of training and of serving from a model's configuration;
# - read the claims ledger, and say what is missing from a claim that cannot be tested.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# `profile` says how large the experiments are: `"cpu"` is small, `"gpu"` is the real thing, and `"auto"` looks at your
# machine and decides. Change it here if you like. The next cell fetches what the lab works with.

# %% tags=["setup"]
import math

import torch
import yaml
from IPython.display import Markdown, display
from packaging.version import Version

from labkit import check, claim, hint, ledger, predict, recap, reveal, show
from labkit.core import cost, runtime
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.names import hf_meta_model
from labkit.core.presets import preset
from labkit.course.claims import claims
from labkit.nn.oracle import hf_block
from labkit.show import Card, figures, picture, style

GB = 10**9
SIX = ("olmoe-1b-7b", "deepseek-v2-lite", "gpt-oss-20b", "qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v3")
COLOURS = dict(zip(SIX, style.PALETTE, strict=False))
profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
generator = runtime.seed_all(seed)

# %% [markdown]
# ## 1 · Your machine
#
# First, what are we sitting in front of? `doctor()` looks around without changing anything. Each row of its table is
# something that a later lab would like to have, and what for. Where your machine says *no*, the last column says what
# happens instead: no lab stops because a GPU is missing. It runs a smaller experiment, and says so. The words need not
# mean anything to you yet.

# %%
display(Markdown(f"This run uses the **{profile}** profile, on `{device}`."))
display(runtime.doctor())

# %% [markdown]
# The same table is there in a terminal, as `labkit doctor`. When something goes wrong, here or on a forum, it is the
# first thing that helpful people ask for.

# %% [markdown]
# > **Find the bug: a version check that grows old.** The guide that we audit (section 8 says what that is) pins the
# > versions of its environment, all of them old ones, and then nobody looks again. A check at the start of a program
# > would notice. Below is one, as it is often written. It works for years and then, one day, it calls a *new* version
# > old. Can you see when? Think before you run it.


# %% tags=["nbval-check-output"]
def new_enough(have, need):
    return have >= need


def new_enough_mended(have, need):
    return Version(have) >= Version(need)


for have, need in (("2.9.1", "2.6"), ("2.11.0", "2.6"), ("2.11.0+cu130", "2.11")):
    print(f"have {have:12} need {need:5} bug: {new_enough(have, need)!s:5}  mended: {new_enough_mended(have, need)}")

# %% [markdown]
# **What happened.** Versions are not text: as strings, `"2.11"` sorts before `"2.6"`, because `1` sorts before `6`. The
# mended check compares numbers, part by part. This course asks for *lowest* versions and is tested with the oldest and
# the newest that it supports, so it cannot rot in silence.

# %% [markdown]
# ## 2 · The map
#
# Six parts, twenty-four labs. Each can be opened alone: where it needs something from an earlier lab, it brings it
# along. The number behind a § is a claim of the guide that the lab audits. The picture is drawn from the course's own
# data files, and where the two disagree, a test fails. (Long code that only draws is folded away, here and below; a
# click on the bar unfolds it.)

# %% jupyter={"source_hidden": true}
PARTS = yaml.safe_load(runtime.data_path("curriculum.yaml").read_text("utf-8"))
with style.use():
    fig, (axis,) = picture.new(size=(11.0, 4.4))
    for row, part in enumerate(PARTS):
        for column, lab in enumerate(part["labs"]):
            here, colour = lab["number"] == "00", style.PALETTE[row]
            axis.barh(row, 0.9, 0.7, left=column, color=colour if here else "white", edgecolor=colour, linewidth=2)
            audits = [f"§{number}" for number, one in claims().items() if lab["number"] in one.labs]
            text = f"{lab['number']}\n{lab['name'].replace('_', ' ')}\n{' '.join(audits)}"
            ink = "white" if here else style.INK
            axis.text(column + 0.45, row, text, ha="center", va="center", fontsize=9, color=ink)
    axis.set_yticks(range(len(PARTS)), [part["part"] for part in PARTS])
    axis.set(xlim=(-0.05, 7), ylim=(len(PARTS) - 0.5, -0.5), xticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
fig.alt = "; ".join(f"{p['part']}: {', '.join(lab['number'] + ' ' + lab['name'] for lab in p['labs'])}" for p in PARTS)
display(fig)

# %% [markdown]
# The same as a list, with a line about each. Parts I and II are the ground that everything stands on; after them, take
# the parts in any order you like.

# %% tags=["nbval-check-output"]
for part in PARTS:
    print(part["part"])
    for lab in part["labs"]:
        print(f"   {lab['number']} {lab['name'].replace('_', ' '):14} {lab['about']}")

# %% [markdown]
# ## 3 · How a lab works
#
# Every lab is made of the same five things.
#
# | | what you do | what it does |
# |---|---|---|
# | `predict` | move a slider **before** an experiment runs | your guess is shown beside the measurement |
# | exercise | fill in a function where it says `# YOUR CODE HERE` | its docstring says what goes in and out |
# | `check` | run the cell below it | tries your function on many inputs and names the mistake, if there is one |
# | `hint`, `reveal` | ask, up to three times; then look | nobody loses points for a hint |
# | `recap` | answer a few questions at the end | wrong answers get an answer too |

# %% [markdown]
# Let us do a real one, small enough for the first coffee. Modern experts are **SwiGLU** networks (Shazeer 2020, arXiv
# 2002.05202, equation 6, without biases). For a token $x \in \mathbb{R}^D$,
#
# $$ \mathrm{expert}(x) = \bigl( \mathrm{SiLU}(x\,W_\mathrm{gate}) \odot (x\,W_\mathrm{up}) \bigr)\, W_\mathrm{down}, $$
#
# where $\mathrm{SiLU}(z) = z \, \sigma(z)$ with the logistic function $\sigma$, and $\odot$ multiplies number by
# number. Both factors in the bracket have width $F$, and the result has width $D$ again. How many parameters is that?

# %% [markdown]
# Before you write the right answer, write a wrong one: `return d_model * d_expert`. Run the cell and the check below
# it, and see what the card says. Then mend it. (That is an honest tip: failing a check costs you nothing.) Where it can
# be, your function is also compared with something that this project did not write, here with a network of the
# `transformers` library that is really built. We call such a thing an **oracle**.


# %% exercise="00.expert_params"
def expert_params(d_model: int, d_expert: int) -> int:
    """How many parameters one SwiGLU expert without biases has.

    Args:
        d_model: D, the width of a token outside the expert.
        d_expert: F, the width inside.

    Returns the number of parameters, a whole number.
    """
    ### BEGIN SOLUTION
    return 3 * d_model * d_expert
    ### END SOLUTION


# %% check="00.expert_params"
expert_params = check("00.expert_params", expert_params)

# %% [markdown]
# A green card means that the notebook goes on with *your* function. On a red or a grey one it goes on with the
# reference, so you are never stuck: come back later, run the two cells again, and everything below is yours. The inputs
# are drawn afresh, and some of them are ugly on purpose. Here is what your function says of four published models:

# %% tags=["nbval-check-output"]
for name in ("olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v3", "mixtral-8x7b"):
    moe = preset(name).moe
    count = expert_params(moe.d_model, moe.d_expert)
    print(f"{name:14} D = {moe.d_model:4}  F = {moe.d_expert:5}  one expert has {count:>11,} parameters")

# %% [markdown]
# The same three matrices to scale. $W_\mathrm{down}$ is $D$ wide and $F$ high, and the other two lie on their side
# ($F$ wide, $D$ high); the picture turns them the same way round, so that sizes can be compared.

# %% jupyter={"source_hidden": true}
with style.use():
    fig, (axis,) = picture.new(size=(10.0, 3.0))
    left = 0
    for name in ("olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v3", "mixtral-8x7b"):
        moe, start = preset(name).moe, left
        axis.text(left, moe.d_expert + 500, f"{name}\n{moe.num_experts} a layer, {moe.top_k} a token", fontsize=9)
        for _ in ("gate", "up", "down"):
            axis.bar(left, moe.d_expert, moe.d_model, align="edge", color=COLOURS[name])
            left += moe.d_model + 300
        left = max(left, start + 9000) + 2500
    axis.set(aspect="equal", xlim=(-300, left), ylim=(0, 19_000))
    axis.axis("off")
fig.alt = "One expert's three matrices to scale: Mixtral's tower over those of DeepSeek-V3, OLMoE and Qwen3."
display(fig)

# %% [markdown]
# Mixtral, the oldest of the four, has few and huge experts. Models that came later cut them fine: many more, each much
# smaller. Lab 04 is about why.

# %% [markdown]
# ## 4 · Total and active
#
# A sparse layer has $E$ routed experts, and a small matrix, the **router**, that picks $K$ of them for each token. It
# may have a few **shared** experts that every token visits (DeepSeekMoE: Dai et al. 2024, arXiv 2401.06066, section
# 3.2). So there are two answers to "how large is it?":
#
# $$ P_\mathrm{total} = \underbrace{E\,D}_{\text{router}} + (E_\mathrm{shared} + E)\,P_\mathrm{expert}
# \qquad\qquad P_\mathrm{active} = E\,D + (E_\mathrm{shared} + K)\,P_\mathrm{expert}. $$

# %% [markdown]
# **Total** is what must be stored. **Active** is what one token is multiplied with, and so it sets the arithmetic of
# one token. Keep these two apart and half of the confusion about sparse models is gone. Notice what both have in full:
# the shared experts, which nobody has to choose, and the router, which scores all $E$ experts before it can choose.


# %% exercise="00.layer_params"
def layer_params(
    d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared_experts: int = 0
) -> tuple[int, int]:
    """Total and active parameters of one mixture-of-experts layer with SwiGLU experts, without biases.

    Args:
        d_model: D.
        d_expert: F, the same for routed and shared experts.
        num_experts: E, the routed experts; the router is one matrix [E, D].
        top_k: K, how many routed experts one token visits.
        num_shared_experts: experts that every token visits, which the router knows nothing of.

    Returns (total, active), whole numbers.
    """
    ### BEGIN SOLUTION
    expert = 3 * d_model * d_expert
    router = num_experts * d_model
    always = router + num_shared_experts * expert
    return always + num_experts * expert, always + top_k * expert
    ### END SOLUTION


# %% check="00.layer_params"
layer_params = check("00.layer_params", layer_params)

# %% [markdown]
# A model is more than its sparse layers: there are embeddings, attention, norms, perhaps a dense layer or two. None of
# it sleeps. `cost.model_params` adds up all of it from a model's published configuration. So, before you see it:

# %%
share = predict("00.active_share", "Of all parameters of DeepSeek-V3, how many does one token use?", 0, 100, "%")

# %% [markdown]
# Could our arithmetic be wrong? Here is the oracle: `transformers` builds each of six models on the **meta device**,
# where tensors have shapes but no memory, so that even the largest takes no space. Then we count what it made.

# %% tags=["nbval-check-output"]
sizes = {name: cost.model_params(preset(name)) for name in SIX}
print(f"{'model':17} {'total':>15} {'active':>15} {'share':>6}  transformers counts the same")
for name, size in sizes.items():
    theirs = sum(parameter.numel() for parameter in hf_meta_model(preset(name)).parameters())
    print(f"{name:17} {size.total:15,} {size.active:15,} {size.active_share:6.1%}  {theirs == size.total}")

# %% [markdown]
# Equal to the last parameter, for all six. (Model cards round, and some leave the embeddings out of "active"; we count
# them.) And your prediction?

# %%
share.against(100 * sizes["deepseek-v3"].active_share, calculated=True)

# %% [markdown]
# As a picture: the area of a square is the number of parameters, the coloured part is what one token uses.

# %% jupyter={"source_hidden": true}
with style.use():
    fig, (axis,) = picture.new(size=(11.0, 4.2))
    left = 0.0
    for name, size in sizes.items():
        side, lit = math.sqrt(size.total / 1e9), math.sqrt(size.active / 1e9)
        axis.bar(left, side, side, align="edge", color=style.GREY, alpha=0.5)
        axis.bar(left, lit, lit, align="edge", color=COLOURS[name])
        text = f"{name}\n{size.total / 1e9:.1f} B, of which\n{size.active / 1e9:.1f} B active"
        axis.text(left, side + 0.6, text, fontsize=9, va="bottom")
        left += max(side, 8.0) + 1.5
    axis.set(aspect="equal", xlim=(0, left), ylim=(0, 32))
    axis.axis("off")
fig.alt = "Squares of total and active parameters: " + "; ".join(
    f"{name} {size.total / 1e9:.1f} billion, {size.active / 1e9:.1f} active" for name, size in sizes.items()
)
display(fig)

# %% [markdown]
# The coloured squares are more alike than the grey ones. By how much? From the smallest to the largest of the six:

# %% tags=["nbval-check-output"]
for what in ("total", "active"):
    counts = [getattr(size, what) for size in sizes.values()]
    print(
        f"{what:6} from {min(counts) / 1e9:5.2f} B to {max(counts) / 1e9:6.2f} B: {max(counts) / min(counts):3.0f}-fold"
    )

# %% [markdown]
# That is the whole idea of sparsity: let the knowledge grow, and the work of a token much less. And a warning is hidden
# in the names: "8x7B" is neither 7B nor 56B, because only the experts come eightfold.

# %% [markdown]
# ### Who wakes whom?
#
# "Active" is about *one* token. A batch has many, and they choose different experts. If choices were independent and
# uniform, $T$ tokens would reach
#
# $$ E \left( 1 - (1 - K/E)^T \right) $$
#
# of the $E$ experts. Is that so? We take a sparse block of `transformers` with OLMoE's 64 experts and 8 of them for
# each token, small and untrained, send tokens through it, and look which experts a gradient comes back to.

# %%
reached = predict("00.reached", "64 experts, 8 for each token: how many do 16 tokens wake?", 8, 64, "experts", step=1)

# %% [markdown]
# An expert that no token visited has a gradient of exactly zero, so nothing needs to be instrumented: we count the
# slices of the expert weights whose gradient is not zero.

# %% tags=["nbval-check-output"]
small = MoEConfig(d_model=32, d_expert=8, num_experts=64, top_k=8, norm_topk=False)
block = hf_block("olmoe", small, seed=0)
x_TD = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
awake = {}
for tokens in (1, 2, 4, 8, 16, 32, 64):
    block.zero_grad()
    block(x_TD[None, :tokens]).sum().backward()
    down_EDF = block.experts.down_proj.grad
    awake[tokens] = int((down_EDF.flatten(1) != 0).any(dim=1).sum())
print("tokens:          ", *(f"{tokens:3}" for tokens in awake))
print("experts reached: ", *(f"{count:3}" for count in awake.values()))
print("if uniform:      ", *(f"{cost.expected_experts(small, tokens):3.0f}" for tokens in awake))

# %% [markdown]
# One token wakes eight experts, exactly. From there on it is one draw of an untrained router, and a few experts more or
# less than the formula are chance. (A *trained* router has favourites, and lab 07 measures them.) Now your prediction
# for sixteen, and the curve:

# %%
reached.against(awake[16])
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.8))
    uniform = [cost.expected_experts(small, tokens) for tokens in awake]
    axis.plot(list(awake), uniform, "--", color=style.GREY, label="independent, uniform choices")
    axis.plot(list(awake), list(awake.values()), "o-", label="an untrained OLMoE block")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens in the batch", ylabel="experts reached", ylim=(0, 66), xticks=list(awake))
    axis.set_xticklabels(list(awake))
    axis.legend(loc="lower right")
fig.alt = "Experts reached against tokens: eight for one token, nearly all 64 for a few dozen tokens."
display(fig)

# %% [markdown]
# **What it means.** A token uses little, a batch uses nearly everything. So sparsity saves *arithmetic*, not *space*:
# all experts must lie in memory, ready, because nobody knows what the next token will choose. Whoever reads "3B active"
# and buys memory for 3B has fallen into the oldest trap of the field.

# %% [markdown]
# ## 5 · The memory that grows while you talk
#
# When a model writes, attention looks back at every earlier token through its **key** and its **value**, so these are
# kept: the KV cache. It does so in several **heads** side by side, each with vectors of its own. With $L$ layers and
# $H_{kv}$ key-value heads of width $d$, each value taking $b$ bytes, one more token costs
#
# $$ 2 \, L \, H_{kv} \, d \, b \quad \text{bytes.} $$
#
# With grouped-query attention (GQA: Ainslie et al. 2023, arXiv 2305.13245, section 2.2), several of the $H$ query heads
# share one key-value head.


# %% exercise="00.kv_bytes"
def kv_bytes(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    """By how many bytes the KV cache of one sequence grows with each token, with grouped-query attention.

    Args:
        num_layers: L.
        num_heads: H, query heads. (A configuration lists them; whether you need them is for you to say.)
        num_kv_heads: H_kv, heads that have a key and a value.
        head_dim: d, numbers in one head's key, and in one head's value.
        bytes_per_value: bytes of one number; 2 for bfloat16.

    Returns bytes per token, over all layers.
    """
    ### BEGIN SOLUTION
    return num_layers * 2 * num_kv_heads * head_dim * bytes_per_value
    ### END SOLUTION


# %% check="00.kv_bytes"
kv_bytes = check("00.kv_bytes", kv_bytes)

# %% [markdown]
# Now a *dense* 7B model, for comparison: the shape of Llama 2 7B (Touvron et al. 2023, arXiv 2307.09288), which has no
# grouped queries, so 32 query heads and 32 key-value heads. We shall need it again for the claims. It is given a book
# to read: 131,072 tokens, one reader, a cache in bfloat16. (For some of the models that is hypothetical: Llama 2 and
# OLMoE were made for 4,096 tokens. We ask what the cache *would* take.)

# %%
cache = predict("00.kv_128k", "A dense 7B model reads 131,072 tokens: how large is its KV cache?", 0, 100, "GB")

# %% tags=["nbval-check-output"]
dense = ModelConfig(
    name="dense 7B", vocab_size=32_000, num_layers=32, d_model=4096, num_heads=32, num_kv_heads=32, head_dim=128,
    moe=None, num_dense_layers=32, d_dense=11_008,
)  # fmt: skip
BOOK = 131_072
per_token = kv_bytes(dense.num_layers, dense.num_heads, dense.num_kv_heads, dense.head_dim)
print(f"{dense.name}: {cost.model_params(dense).total:,} parameters, {per_token:,} bytes of cache for each token")
print(f"cache of the book: {BOOK * per_token / GB:.1f} GB")
print(f"all its weights:   {2 * cost.model_params(dense).total / GB:.1f} GB")

# %% [markdown]
# Read that twice: the notes are several times the size of the reader. And what do other models pay for the same book?

# %% jupyter={"source_hidden": true}
cache.against(BOOK * per_token / GB, calculated=True)
books = {m.name: cost.kv_cache_bytes(m, batch=1, context=BOOK) / GB for m in (dense, *map(preset, SIX))}
with style.use():
    fig, (axis,) = picture.new(size=(8.0, 3.0))
    names = [f"{name}   {size:.1f} GB" for name, size in books.items()]
    axis.barh(names, list(books.values()), color=[COLOURS.get(name, style.GREY) for name in books])
    axis.axvline(cost.gpu("T4").memory / GB, color=style.INK, linestyle=":", label="all of a T4")
    axis.set(xlabel=f"KV cache of {BOOK:,} tokens in bfloat16, GB", xlim=(0, 80))
    axis.invert_yaxis()
    axis.grid(False)
    axis.legend(loc="lower right")
fig.alt = "KV cache of 131,072 tokens: " + "; ".join(f"{name} {size:.1f} GB" for name, size in books.items())
display(fig)

# %% [markdown]
# Nothing here follows the number of parameters. DeepSeek-V3, by far the largest, has one of the smaller caches,
# because it keeps one compressed vector for all heads (multi-head latent attention, MLA: lab 05). Mixtral shares
# heads, and every second layer of gpt-oss looks back 128 tokens only. To serve, ask for the *attention* as well as
# for the parameters.

# %% [markdown]
# ## 6 · What training keeps
#
# To serve, weights and cache are all. To train with **Adam**, four things are kept for each parameter. The convention
# that most papers use is ZeRO's (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1):
#
# - **weights** and **gradients** in 16 bits, for the forward and the backward pass;
# - a **master** copy of the weights in float32, which the optimizer updates;
# - Adam's two **moments** in float32: the running means of the gradient and of its square (Kingma and Ba 2015, arXiv
#   1412.6980, algorithm 1).

# %% [markdown]
# The alternative is float32 throughout: then weights and gradients are wider, and the weights are their own master
# copy. "Mixed precision halves the memory", one often hears. Keep that sentence in mind while you fill this in.


# %% exercise="00.adam_memory"
def adam_memory(num_params: int, mixed: bool = True) -> dict[str, int]:
    """Bytes that training with Adam keeps for the parameters, by part, in ZeRO's convention; no activations.

    Args:
        num_params: P.
        mixed: weights and gradients in 16 bits, with a float32 master copy and float32 moments; if False, float32
            throughout, where the weights need no master copy.

    Returns a dict of whole numbers of bytes with the keys "weights", "gradients", "master" and "moments" (both
    moments together), 0 where nothing is kept.
    """
    ### BEGIN SOLUTION
    size = 2 if mixed else 4
    return {
        "weights": size * num_params,
        "gradients": size * num_params,
        "master": 4 * num_params if mixed else 0,
        "moments": 2 * 4 * num_params,
    }
    ### END SOLUTION


# %% check="00.adam_memory"
adam_memory = check("00.adam_memory", adam_memory)

# %% [markdown]
# Now the dense 7B model again. Batch of nothing, context of nothing: only what Adam keeps, in mixed precision.

# %%
adam = predict("00.adam_7b", "What does Adam keep for a dense 7B model in mixed precision?", 0, 200, "GB")

# %% [markdown]
# We ask for both precisions, and for the bytes of one parameter.

# %% tags=["nbval-check-output"]
P = cost.model_params(dense).total
for mixed in (True, False):
    kept = adam_memory(P, mixed)
    total, parts = sum(kept.values()), ", ".join(f"{name} {size // P}" for name, size in kept.items())
    print(f"{'mixed' if mixed else 'float32':8} {total / GB:6.1f} GB, {total // P} bytes a parameter: {parts}")

# %% [markdown]
# Surprised? Mixed precision does not save a byte here: what the narrow weights and gradients save, the master copy
# takes back. What it buys is speed, and smaller *activations*.

# %%
adam.against(sum(adam_memory(P).values()) / GB, calculated=True)

# %% [markdown]
# ### And the activations
#
# Between forward and backward, autograd keeps what the backward pass will need. That part grows with the batch, and it
# is the only part that **gradient checkpointing** touches: keep the input of each layer, throw the rest away, compute
# it again on the way back. Its size is an *estimate* here, by the accounting of Korthikanti et al. 2022 (arXiv
# 2205.05198, sections 4 and 5); lab 10 holds that against the allocator of a GPU.

# %%
ways = {
    "Adam, mixed": {}, "… with checkpointing": {"checkpointing": True},
    "8-bit Adam, checkpointing": {"checkpointing": True, "optimizer": "adamw8bit"},
    "plain SGD, checkpointing": {"checkpointing": True, "optimizer": "sgd"},
}  # fmt: skip
stacks = {way: cost.training_memory(dense, 4 * 4096, 4096, **options) for way, options in ways.items()}
parts = {"weights": "weights", "master copy": "master", "gradients": "gradients"}
parts |= {"optimizer": "optimizer", "activations": "activations"}
card = cost.gpu("A100-80GB")
table = {way: {part: getattr(stack, key) for part, key in parts.items()} for way, stack in stacks.items()}
usable = cost.fits(1, card.name).available
display(figures.memory_stack(table, limit=card.memory, limit_name=card.name, usable=usable))
before, after = (stacks[way].activations for way in list(ways)[:2])
print(f"activations: {before / GB:.1f} GB, with checkpointing {after / GB:.1f} GB, {after / before:.0%} of that")

# %% [markdown]
# Checkpointing does what it promises: the activations of the second bar are a fraction of those of the first. But it
# cannot go below the other parts. The guide wants 16 GB to be enough *because of* checkpointing. Hold on to this
# picture. (The dashed line is the card, the dotted one what can be used of it; section 7 says why they differ.)

# %% [markdown]
# ### Formula against scales
#
# Arithmetic should be weighed at least once. We build one sparse layer for real, with gradients, master copy and
# AdamW, take a step, and ask how many bytes it holds. On a GPU that is a layer of OLMoE's own size and the allocator
# answers; on a CPU it is a small one, and we add up the tensors.

# %%
off = predict("00.weigh", "By how much will the real bytes differ from 16 for each parameter?", 0, 25, "%")


# %%
def weigh(moe, device):
    """Bytes held after one AdamW step of a sparse layer in mixed precision, and its number of parameters."""
    D, F, E = moe.d_model, moe.d_expert, moe.num_experts
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    shapes = [(E, D), (E, 2 * F, D), (E, D, F)]
    weights = [torch.zeros(shape, dtype=torch.bfloat16, device=device, requires_grad=True) for shape in shapes]
    sum(w.sum() for w in weights).backward()
    master = [w.detach().float() for w in weights]
    optimizers = [torch.optim.AdamW([m]) for m in master]
    for w, m, optimizer in zip(weights, master, optimizers, strict=True):
        m.grad = w.grad.float()  # needed during the step only
        optimizer.step()
        m.grad = None
    held = [*weights, *(w.grad for w in weights), *master]
    held += [t for optimizer in optimizers for state in optimizer.state.values() for t in state.values()]
    on_cpu = sum(t.nbytes for t in held)
    held_bytes = torch.cuda.memory_allocated() - before if device.type == "cuda" else on_cpu
    return held_bytes, sum(w.numel() for w in weights)


# %% [markdown]
# The layer is OLMoE's on a GPU, and the same with a sixteenth of the width on a CPU.

# %%
moe = preset("olmoe-1b-7b").moe
moe = moe if device.type == "cuda" else moe.replace(d_model=moe.d_model // 16, d_expert=moe.d_expert // 16)
held, count = weigh(moe, device)
expected = sum(adam_memory(count).values())
print(f"on {device.type}: {count:,} parameters hold {held:,} bytes, {held / count:.4f} each")
off.against(100 * abs(held / expected - 1))

# %% [markdown]
# The last digits are bookkeeping: a step counter for each tensor, and on a GPU the allocator's rounding. Sixteen bytes
# are what a parameter costs in this way of training, whether a token visits it or not: an expert that sleeps through
# the whole batch still has its moments.

# %% [markdown]
# ## 7 · Does it fit?
#
# One small function is left. A card never gives all of its memory: the driver, the workspace of the kernels and
# fragmentation take a part. With a share $r$ reserved on each card, and everything split evenly,
#
# $$ n = \left\lceil \frac{\text{bytes needed}}{\text{bytes of one card} \cdot (1 - r)} \right\rceil . $$


# %% exercise="00.gpus_needed"
def gpus_needed(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    """The smallest number of equal cards that hold so many bytes between them.

    Args:
        needed: bytes, one or more.
        gpu_memory: bytes of one card.
        reserve: the share of each card that cannot be used, in [0, 1).

    Returns a whole number of cards. Raises ValueError for a reserve outside [0, 1).
    """
    ### BEGIN SOLUTION
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve is {reserve}; give a share from 0 up to, but not including, 1")
    return math.ceil(needed / (gpu_memory * (1 - reserve)))
    ### END SOLUTION


# %% check="00.gpus_needed"
gpus_needed = check("00.gpus_needed", gpus_needed)

# %% [markdown]
# Everything you wrote comes together in the **planner**: choose a model and a card, and see weights, active weights,
# optimizer, activations and cache, and whether it fits. The dense 7B is in its list too. Try to answer with it:
#
# 1. What is the largest of these models that one A100-80GB can serve in 16 bits, to one reader of 4,096 tokens?
# 2. OLMoE is trained with Adam on eight T4, batch 1, 4,096 tokens: what does checkpointing change?
# 3. And when OLMoE is served to one reader in 16 bits: which is the first context in the list whose cache outgrows the
#    weights?

# %%
display(show.planner(also=(dense,)))

# %% [markdown]
# <details><summary>Answers</summary>
#
# 1. Qwen3-30B-A3B, and not without room to spare. Mixtral-8x7B is the next larger one, and too large.
# 2. It changes *no* into *yes*. One such card more or less would have made it pointless or useless: where the states
#    alone do not fit, checkpointing cannot help.
# 3. 131,072 tokens. Half of that still takes less than the weights.
#
# </details>

# %% [markdown]
# And without sliders: how many A100-80GB does each model take, to be served (16 bits, one sequence of 4,096 tokens) and
# to be trained (Adam, mixed precision, checkpointing, one such sequence, everything split evenly)?

# %% tags=["nbval-check-output"]
print(f"{'model':17} {'to serve':>18} {'to train':>18}   train / serve, in bytes")
for name in SIX:
    serve = cost.inference_memory(preset(name), batch=1, context=4096).total
    train = cost.training_memory(preset(name), 4096, 4096, checkpointing=True).total
    both = (f"{need / GB:8,.0f} GB: {gpus_needed(need, card.memory):3}" for need in (serve, train))
    print(f"{name:17}", *(f"{each:>18}" for each in both), f"{train / serve:7.1f}")

# %% [markdown]
# In bytes, to train takes about eight times what it takes to serve: 16 bytes a parameter against 2. For the small ones,
# rounding up to whole cards hides it. (Whether that many cards can also *talk* fast enough is another question, for
# lab 16.)

# %% [markdown]
# ## 8 · The claims
#
# In September 2025 an article, "from technical principles to deployment", described a DeepSeek-style system with many
# numbers and no source for any of them. We call it *the guide*. It is no worse than a hundred others; we picked it
# because its numbers can be tested. The course quotes no sentence of it and links nothing. What it audits are fifteen
# claims, which stand in `data/claims.yaml`, in our words and with the labs where they are tested, so that each can be
# judged by somebody who has never seen the article:

# %%
display(ledger())

# %% [markdown]
# **What counts as holding?** Before anything is measured, `data/claims.yaml` fixes for each claim what is measured,
# in which unit, and the bound. A measurement is a value, mostly with an interval from several runs, and *a condition*:
# on which model, shape and hardware. If the whole interval meets the bound, the claim **holds** there; if none of it
# does, it **does not hold**; if only some of it, it is **undecided**. When conditions disagree, the ledger says under
# how many of them the claim holds.

# %% [markdown]
# This lab audits claim 6, about hardware. These are its three measures:

# %% tags=["nbval-check-output"]
for measure in claims()[6].measures:
    print(f"{measure.key:14} {measure}")

# %% [markdown]
# > **Find the bug: hardware without a model.** The guide says which cards suffice, and never for which model, in which
# > precision, with how many tokens. As a function, that claim looks like the first one below. What does it answer for
# > DeepSeek-V3? And what is the least that a mended version has to ask for?


# %% tags=["nbval-check-output"]
def enough(gpu_gb):
    return gpu_gb >= 16


def enough_mended(model, gpu, count, *, train, tokens, **options):
    if train:
        needed = cost.training_memory(model, tokens, tokens, **options).total
    else:
        needed = cost.inference_memory(model, batch=1, context=tokens, **options).total
    return bool(cost.fits(needed, gpu, count))


print("the guide, any model:    ", enough(16))
for name in ("olmoe-1b-7b", "deepseek-v3"):
    for train in (False, True):
        fine = enough_mended(preset(name), "T4", 1, train=train, tokens=2048)
        print(f"{name:12} {'train' if train else 'serve'} on one T4: {fine}")

# %% [markdown]
# **What was wrong.** The first function cannot be wrong about any model, because it does not know of any; so it cannot
# be right either. A claim about hardware is a claim about *model, task, precision, optimizer, tokens and cards*, and
# leaving one of them out leaves the claim out.

# %% [markdown]
# Here is one task, to serve one reader in 16 bits with 4,096 tokens, for seven models and five cards. Each number says
# how many of that card it takes. Look along a row, then down a column: which single number would you print in a guide?

# %% jupyter={"source_hidden": true}
models, cards = (dense, *map(preset, SIX)), ("T4", "L4", "A100-40GB", "A100-80GB", "H200")
needs = [cost.inference_memory(model, batch=1, context=4096).total for model in models]
counts = [[gpus_needed(need, cost.gpu(name).memory) for name in cards] for need in needs]
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.4))
    axis.imshow([[math.log2(n) for n in row] for row in counts], cmap="Greys", aspect="auto", vmax=8)
    for row, column in ((i, j) for i in range(len(models)) for j in range(len(cards))):
        n = counts[row][column]
        axis.text(column, row, n, ha="center", va="center", color="white" if n > 16 else style.INK)
    axis.set_yticks(range(len(models)), [model.name for model in models])
    axis.set_xticks(range(len(cards)), cards)
    axis.set_title("cards needed to serve")
    axis.grid(False)
rows = zip(models, counts, strict=True)
fig.alt = f"Cards needed ({', '.join(cards)}): " + "; ".join(f"{m.name} {', '.join(map(str, c))}" for m, c in rows)
display(fig)

# %% [markdown]
# ### 16 GB for a 7B model, with checkpointing?
#
# Four ways to train "a 7B model" with checkpointing, on as few tokens as anybody would: one sequence of 2,048. A dense
# model and OLMoE with Adam in mixed precision, and the dense one with two optimizers that keep less.

# %%
inside = predict("00.inside_16gb", "How many of these four ways stay within 16 GB?", 0, 4, "ways", step=1)


# %% tags=["nbval-check-output"]
def train(model, tokens=2048, **options):
    return cost.training_memory(model, tokens, tokens, **{"checkpointing": True, **options}).total


olmoe = preset("olmoe-1b-7b")
small_card = {
    "dense 7B, Adam in mixed precision": train(dense), "OLMoE-1B-7B, Adam in mixed precision": train(olmoe),
    "dense 7B, 8-bit Adam": train(dense, optimizer="adamw8bit"), "dense 7B, plain SGD": train(dense, optimizer="sgd"),
}  # fmt: skip
for condition, needed in small_card.items():
    print(f"{needed / GB:6.1f} GB  {condition}")

# %% [markdown]
# Each line becomes an entry of the ledger. These are **estimates** by the formulas above, not readings of an allocator,
# and the entries say so. Their interval goes from the plain sum to the sum with the usual tenth of a card held back.


# %%
def enter(measure, rows, more):
    """Entries of claim 6, shown as one table: each from the plain estimate to the one with a tenth in reserve."""
    say = {"measure": measure, "estimated": True, "quiet": True}
    made = {n: claim(6, b / GB, high=b / GB / 0.9, condition=f"{n}{more}", **say) for n, b in rows.items()}
    table = [("condition", "estimate", "with a tenth in reserve", "verdict, here")]
    table += [(n, f"{e.low:.1f} GB", f"{e.high:.1f} GB", e.verdict) for n, e in made.items()]
    lines = (f"Counts as holding when {claims()[6].measure(measure)}.", f"All of them{more}.")
    display(Card("claim", f"Claim 6: {len(made)} estimates", lines, table))
    return made


inside.against(sum(b <= 16 * GB for b in small_card.values()), calculated=True)
entries = enter("train_16gb", small_card, ", checkpointing, 1 × 2,048 tokens")

# %% [markdown]
# Four ways of training seven billion parameters, and none comes near 16 GB: the states alone are far larger, and
# checkpointing does not touch states.

# %% [markdown]
# Could the guide have meant something else? There is a way to do *something* with a 7B on such a card: freeze it in 4
# bits and train small **adapters** of rank 16 on the attention (LoRA: Hu et al. 2021, arXiv 2106.09685; QLoRA: Dettmers
# et al. 2023, arXiv 2305.14314). It is no entry of the ledger, because the measure is about training 7B parameters.


# %% tags=["nbval-check-output"]
def adapters(model, tokens, rank=16):
    """Estimated bytes to train LoRA adapters on frozen 4-bit weights (4.5 bits with their scales)."""
    size = cost.model_params(model)
    wide = size.embedding + size.head
    frozen = (size.total - wide) * 4.5 / 8 + wide * 2
    trained = model.num_layers * 4 * rank * 2 * model.d_model  # four D × D projections, D·r + r·D each
    kept = cost.activation_bytes(model, tokens, tokens, checkpointing=True)
    return int(frozen + sum(adam_memory(trained).values()) + kept)


needed = adapters(dense, 2048)
print(f"{needed / GB:6.1f} GB  dense 7B frozen in 4 bits, adapters only")
print("fits one T4, with a tenth in reserve:", bool(cost.fits(needed, "T4")))

# %% [markdown]
# That fits, and it is another task: what is trained is a tiny part of the model, and nothing of what Adam would keep
# for the rest is there. If the guide meant that, it should have said so.

# %% [markdown]
# ### Four A100-80G to train it?
#
# Four cards hold 320 GB between them. Whether that is enough depends on something that no datasheet mentions: does
# each card hold *everything* (replicated, as in plain data parallelism), or a quarter? The latter is called sharded;
# ZeRO-3, the third stage of the paper cited above, does so with weights, gradients and moments alike.

# %%
four = predict("00.replicated", "Dense 7B, Adam, everything replicated on four cards: how much in all?", 100, 600, "GB")


# %% tags=["nbval-check-output"]
def four_cards(model, sequences, sharded=True, **options):
    """Bytes over four cards, each working on so many sequences of 4,096 tokens."""
    one = cost.training_memory(model, sequences * 4096, 4096, **{"checkpointing": True, **options})
    return (1 if sharded else 4) * one.states + 4 * one.activations


four_a100 = {
    "dense 7B, sharded, 1 sequence a card": four_cards(dense, 1),
    "OLMoE-1B-7B, sharded, 1 sequence a card": four_cards(olmoe, 1),
    "dense 7B, sharded, 8 sequences a card": four_cards(dense, 8),
    "dense 7B, replicated, 1 sequence a card": four_cards(dense, 1, sharded=False),
    "OLMoE-1B-7B, sharded, 8 sequences a card, no checkpointing": four_cards(olmoe, 8, checkpointing=False),
}  # fmt: skip
for condition, needed in four_a100.items():
    print(f"{needed / GB:6.1f} GB  {condition}")

# %% [markdown]
# Your prediction beside the replicated one, and into the ledger with them:

# %%
four.against(four_a100["dense 7B, replicated, 1 sequence a card"] / GB, calculated=True)
entries |= enter("train_4xa100", four_a100, ", Adam in mixed precision, sequences of 4,096 tokens")

# %% [markdown]
# So the claim holds, *if* the states are sharded and the activations are kept in check. Replicated, one card would have
# to hold more than it has, and a large batch without checkpointing breaks even the sharded version.

# %% [markdown]
# ### Two T4 to serve it?
#
# Two T4 hold 32 GB. (They also have no bfloat16: 16 bits means float16 there.) Weights are easily said; what grows is
# the cache, with every reader and every token. Five ways again:


# %% tags=["nbval-check-output"]
def serve(model, readers, bits=16):
    return cost.inference_memory(model, batch=readers, context=4096, weight_bits=bits).total


two_t4 = {
    "dense 7B, float16, 1 reader": serve(dense, 1), "dense 7B, float32 weights, 1 reader": serve(dense, 1, 32),
    "dense 7B, float16, 32 readers": serve(dense, 32), "OLMoE-1B-7B, float16, 8 readers": serve(olmoe, 8),
    "OLMoE-1B-7B, float16, 32 readers": serve(olmoe, 32),
}  # fmt: skip
for condition, needed in two_t4.items():
    print(f"{needed / GB:6.1f} GB  {condition}")
print("bfloat16 on a T4:", cost.gpu("T4").bf16)

# %% [markdown]
# Look at how close some of these come to the line: here the tenth in reserve decides.

# %%
entries |= enter("serve_2xt4", two_t4, ", 4,096 tokens each, 16-bit cache")

# %% [markdown]
# All entries in one picture. A bar reaches from the plain estimate to the one with a tenth in reserve; the line is what
# the guide says is enough. Each of the three panels has an axis of its own.

# %% jupyter={"source_hidden": true}
with style.use():
    fig, axes = picture.new(rows=3, size=(10.0, 6.4))
    colours = {"holds": style.PALETTE[2], "undecided": style.PALETTE[1], "does not hold": style.PALETTE[5]}
    for axis, measure in zip(axes, claims()[6].measures, strict=True):
        rows = {name: e for name, e in entries.items() if e.measure == measure.key}
        reach = 1.3 * max(measure.bound, *(e.high for e in rows.values()))
        for i, e in enumerate(rows.values()):
            axis.plot([e.low, e.high], [i, i], color=colours[e.verdict], linewidth=9, solid_capstyle="butt")
            at, side = (e.low - reach / 90, "right") if e.verdict == "holds" else (e.high + reach / 90, "left")
            axis.text(at, i, e.verdict, ha=side, va="center", fontsize=9, color=colours[e.verdict])
        axis.axvline(measure.bound, color=style.INK, linestyle="--", linewidth=1.2)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(xlim=(0, reach), ylim=(len(rows) - 0.5, -0.5), title=str(measure))
        axis.grid(axis="x")
        axis.grid(False, axis="y")
    axes[-1].set_xlabel("GB, estimated")
fig.alt = "; ".join(f"{e.condition}: {e.value:.0f} GB, {e.verdict}" for e in entries.values())
display(fig)

# %% [markdown]
# And what does the ledger make of entries that disagree? Look at row 6.

# %%
display(ledger({6: list(entries.values())}))

# %% [markdown]
# The other rows are waiting for their labs. Nothing is carried over by hand: `labkit run` collects the entries of every
# lab that you run, and lab 23 reads them all.

# %% [markdown]
# ## 9 · Recap
#
# Five questions. A wrong answer is answered too, so feel free to be wrong.

# %%
recap("00")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 6, hardware: holds under some conditions only.** The same claim is true, false and undecided in the picture
# above, and what separates the three is what it leaves out. In short:
#
# - *16 GB with checkpointing*: not for training the parameters of a 7B model, in none of the four ways. (Adapters on
#   frozen 4-bit weights fit, which is another task.)
# - *Four A100-80G to train*: yes when the states are sharded, no when they are replicated, or when a large batch is
#   kept without checkpointing.
# - *Two T4 to serve*: yes for few readers in float16; with many, the cache decides, and so the attention.
#
# All of it is estimated by formula. Lab 10 weighs a real training step with the allocator and enters its own readings.

# %% [markdown]
# ## Further reading
#
# - Rajbhandari, Rasley, Ruwase and He (2020), *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*,
#   arXiv 1910.02054. Section 3 is the best page on where memory goes.
# - Korthikanti et al. (2022), *Reducing Activation Recomputation in Large Transformer Models*, arXiv 2205.05198.
# - Shazeer (2020), *GLU Variants Improve Transformer*, arXiv 2002.05202. Two pages, and an honest conclusion.
# - Ainslie et al. (2023), *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*, arXiv
#   2305.13245.
# - Muennighoff et al. (2024), *OLMoE: Open Mixture-of-Experts Language Models*, arXiv 2409.02060. Everything about it
#   is published, which is why this course uses it so often.
# - DeepSeek-AI (2024), *DeepSeek-V3 Technical Report*, arXiv 2412.19437.
