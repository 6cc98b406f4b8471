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
# # 06 · The whole sparse transformer
#
# The parts are there: a router (lab 01), experts (02), what keeps them alive (03), a hierarchy (04), and attention with
# its cache (05). Here they become one language model. It reads the published families' own files, gives their logits
# and writes files that `transformers` reads. Six families, one class: what differs is only the configuration.
#
# After this lab you can
#
# - assemble a pre-norm block, and say what happens without its residuals;
# - decide which layers are sparse, and count what a model has and what a token uses;
# - read a checkpoint tensor by tensor, and refuse one that does not fit;
# - train a tokenizer, and say what a token is worth in each domain;
# - sample with temperature, top-k and top-p as `transformers` means them;
# - decode with a KV cache: the same tokens, and proof that the cache is really read.
#
# It takes a little under two hours. Any CPU will do; on a GPU the last experiments are larger.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** Everything that is compared
# with `transformers` runs in float32 on the CPU, on every machine.

# %% tags=["setup"]
import json
import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from IPython.display import Markdown, display
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit import check, hint, predict, recap, reveal, show
from labkit.core import names, presets, runtime
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.cost import model_flops_per_token, model_params
from labkit.nn import KVCache, Transformer, trace
from labkit.nn.rope import rope_tables
from labkit.nn.rope import rotate as turn
from labkit.show import picture, style
from labkit.train import data
from labkit.train.tokenizer import bytes_per_token, train_tokenizer

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
folder = Path(tempfile.mkdtemp())  # models are saved here, and forgotten with the session

# %% [markdown]
# ## 1 · A block
#
# A decoder layer has two parts. **Attention** moves information between positions, the **feed-forward** part works on
# each position by itself; in a sparse model it is the mixture of experts. Both *add* to a stream $x$ that runs through
# the whole model:
#
# $$ x' = x + \mathrm{Attention}(\mathrm{norm}_1(x)), \qquad x'' = x' + \mathrm{FFN}(\mathrm{norm}_2(x')) . $$

# %% [markdown]
# This is the **pre-norm** block (Xiong et al. 2020, *On Layer Normalization in the Transformer Architecture*). All six
# families of this lab use it, with RMSNorm. The transformer of 2017 had the norms after the sums. Half of a block, from
# below to above, wired in three ways:

# %%
WIRED = {"pre-norm": ("norm", "part", "+"), "post-norm": ("part", "+", "norm"), "no residual": ("norm", "part")}
with style.use():
    fig, axes = picture.new(columns=3, size=(8.4, 2.8))
    for axis, (name, parts) in zip(axes, WIRED.items(), strict=True):
        axis.annotate("", (0, 4), (0, 0), arrowprops={"arrowstyle": "->", "color": style.INK})
        for height, part in enumerate(parts, 1):
            color = {"norm": style.PALETTE[1], "part": style.PALETTE[0], "+": "white"}[part]
            axis.text(0, height, part, ha="center", va="center", bbox={"facecolor": color, "boxstyle": "round"})
        if "+" in parts:
            top = parts.index("+") + 1
            axis.plot([0, 1, 1, 0.15], [0.4, 0.4, top, top], color=style.LIT)
        axis.set(title=name, xlim=(-1.5, 1.5), ylim=(-0.2, 4.2))
        axis.set_axis_off()
fig.alt = (
    "Pre-norm: the stream goes round norm and part and is added to their output. Post-norm: it goes round the part "
    "alone, and the norm comes after the sum. No residual: there is no way round."
)
display(fig)

# %% [markdown]
# *Part* is attention in the first half and the feed-forward network in the second. On the left, whoever follows the
# coloured line upwards through all layers meets additions and nothing else.


# %% exercise="06.block"
def block(x_BSD: torch.Tensor, norm_attention, attention, norm_ffn, ffn) -> torch.Tensor:
    """One pre-norm layer: attention, then the feed-forward part, each added to the stream.

    Args:
        x_BSD: [B, S, D], float32, the stream; it must not be changed in place.
        norm_attention, attention, norm_ffn, ffn: functions from [B, S, D] to [B, S, D].

    Returns the stream behind the layer, [B, S, D].
    """
    ### BEGIN SOLUTION
    x_BSD = x_BSD + attention(norm_attention(x_BSD))
    return x_BSD + ffn(norm_ffn(x_BSD))
    ### END SOLUTION


# %% check="06.block"
block = check("06.block", block)

# %% [markdown]
# Two lines, and one can get them wrong in a dozen ways that all run. What do they hold together? We stack 48 layers of
# a small sparse model, not trained, in the three ways of the picture, and ask how large the gradient of the loss is in
# the stream between the layers. The weights are the same in all three.

# %%
LAYERS = 48
moe = MoEConfig(d_model=64, d_expert=64, num_experts=8, top_k=2)
deep = ModelConfig("deep", 256, LAYERS, 64, num_heads=4, num_kv_heads=2, head_dim=16, moe=moe)
torch.manual_seed(seed)
stack = Transformer(deep)
with torch.no_grad():  # one plain scale for all; the model's own init makes what writes to the stream smaller
    for name, parameter in stack.named_parameters():
        if name.endswith(("attention.output.weight", "down_EDF")):
            parameter.mul_((2 * LAYERS) ** 0.5)
text = data.corpus(bytes_per_domain=200_000)
bytes_BS = data.sample(text, num_sequences=4, sequence_length=64, seed=seed).ids_BS


def post_norm(x, norm_attention, attention, norm_ffn, ffn):
    x = norm_attention(x + attention(x))
    return norm_ffn(x + ffn(x))


def no_residual(x, norm_attention, attention, norm_ffn, ffn):
    return ffn(norm_ffn(attention(norm_attention(x))))


# %% [markdown]
# The stream of the model is walked by hand, so that its layers can be put together in any way. Attention needs the
# positions and knows which past it may see; the model prepares both.


# %%
def gradients(way):
    """The norm of the loss's gradient in the stream, before the first layer and after each."""
    cos, sin = rope_tables(deep, torch.arange(bytes_BS.shape[1])[None], torch.float32)
    streams = [stack.embed(bytes_BS)]
    for layer in stack.layers:
        attend = partial(layer.attention, cos=cos, sin=sin, mask=None)
        streams.append(way(streams[-1], layer.norm_attention, attend, layer.norm_ffn, layer.ffn))
    logits_BSV = stack.head(stack.norm(streams[-1]))
    loss = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), bytes_BS[:, 1:].flatten())
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, streams)]


# %% [markdown]
# In each layer without a residual the gradient passes through attention, experts and two norms, and there is no way
# round. It may shrink there, or grow.

# %%
p_residual = predict(
    "06.residual",
    "48 layers without residuals: the gradient before the first layer is 10 to which power times that after the last?",
    -12, 12, "powers of ten",
)  # fmt: skip

# %%
ways = {"pre-norm": gradients(block), "post-norm": gradients(post_norm), "no residual": gradients(no_residual)}
span = {name: math.log10(norms[0] / norms[-1]) for name, norms in ways.items()}
p_residual.against(span["no residual"])
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.2))
    for color, (name, norms) in enumerate(ways.items()):
        axis.plot(range(LAYERS + 1), [n / norms[-1] for n in norms], color=style.PALETTE[color], label=name)
    axis.set(yscale="log", xlabel="layers passed, counted from the embedding", ylabel="gradient, relative to the end")
    axis.legend(loc="upper right")
fig.alt = "The gradient in the stream, from the last layer to the first, changes by these powers of ten: " + (
    ", ".join(f"{name} {value:.1f}" for name, value in span.items()) + "."
)
display(fig)

# %% [markdown]
# On the logarithmic axis a straight line means: the same factor in every layer. Without residuals that is roughly what
# one sees, and a factor to the power of 48 is hardly ever near one, whichever side it lies on. In the pre-norm block
# the gradient has a path on which nothing is multiplied; post-norm has the norms on that path. They multiply too, but
# by little here: post-norm models can be trained, with a slow start (Xiong et al. explain why).
#
# The step at the left end is the embedding's: its vectors are short before training, so the first norm enlarges them,
# and the gradient with them.

# %% [markdown]
# ## 2 · Which layers are sparse?
#
# Not every layer needs experts. Two rules are in use, and they can be combined:
#
# - the first $n$ layers are dense: DeepSeek-V3 has three (technical report, section 4.2), DeepSeek-V2 one;
# - only every $m$-th layer is sparse, such as every second in GShard and GLaM; Qwen's configuration knows it as
#   `decoder_sparse_step`, and layer $i$ (from 0) is sparse where $i + 1$ is divisible by it.
#
# A dense layer is a single SwiGLU network, usually about as wide as all the experts together that a token visits.


# %% exercise="06.placement"
def placement(
    num_layers: int, num_dense: int, every: int, d_model: int, d_dense: int, d_expert: int, num_experts: int,
    top_k: int, num_shared: int = 0,
) -> tuple[list[int], int, int]:  # fmt: skip
    """Which layers are sparse, and how many feed-forward parameters the model has and a token uses.

    Layer i, counted from 0, is sparse if it is none of the first `num_dense` and i + 1 is divisible by `every`.
    A network of width F is a SwiGLU without biases: three matrices of D × F. A sparse layer has a router of E rows of
    width D, E routed experts of which a token visits `top_k`, and `num_shared` more that every token passes.

    Returns `(sparse, total, active)`: the numbers of the sparse layers, all parameters of the feed-forward parts
    (routers included; attention, norms and embeddings not), and those of them that work for one token.
    """
    ### BEGIN SOLUTION
    sparse = [i for i in range(num_layers) if i >= num_dense and (i + 1) % every == 0]
    expert = 3 * d_model * d_expert
    always = (num_layers - len(sparse)) * 3 * d_model * d_dense
    always += len(sparse) * (num_experts * d_model + num_shared * expert)
    return sparse, always + len(sparse) * num_experts * expert, always + len(sparse) * top_k * expert
    ### END SOLUTION


# %% check="06.placement"
placement = check("06.placement", placement)

# %% [markdown]
# Take DeepSeek-V3: 61 layers, 256 experts of width 2048 in each sparse one, 8 of them chosen and one shared, and dense
# layers of width 18,432 (which is nine times 2048). It has some 658 billion parameters in its feed-forward parts. If
# only every second layer were sparse, what would be left?

# %%
p_every = predict(
    "06.every_second", "DeepSeek-V3 with every second layer sparse: feed-forward parameters?", 0, 658, "billion"
)

# %% [markdown]
# Your function answers, and the published rule stands beside four others:

# %% tags=["nbval-check-output"]
v3 = presets.preset("deepseek-v3")
sizes = (v3.d_model, v3.d_dense, v3.moe.d_expert, v3.moe.num_experts, v3.moe.top_k, v3.moe.num_shared_experts)
rules = {"as published": (3, 1), "all sparse": (0, 1), "every second": (0, 2), "every fourth": (0, 4)}
rules |= {"three dense, then every second": (3, 2), "all dense": (61, 1)}
placed = {name: placement(61, *rule, *sizes) for name, rule in rules.items()}
print(f"{'':<32}{'sparse layers':>14}{'total':>12}{'active':>12}")
for name, (sparse, total, active) in placed.items():
    print(f"{name:<32}{len(sparse):>14}{total / 1e9:>10.1f} G{active / 1e9:>10.1f} G")

# %% [markdown]
# And where the experts are:

# %%
p_every.against(placed["every second"][1] / 1e9, calculated=True)
with style.use():
    fig, (axis,) = picture.new(size=(8.4, 2.8))
    for row, (sparse, total, _) in enumerate(placed.values()):
        dense = [i for i in range(61) if i not in sparse]
        for layers, color, kind in ((sparse, 0, "sparse"), (dense, 1, "dense")):
            label = kind if row == 0 else None
            axis.plot(layers, [row] * len(layers), "s", markersize=5, color=style.PALETTE[color], label=label)
        axis.text(62, row, f"{total / 1e9:.0f} G", va="center")
    axis.set(xlabel="layer", xlim=(-1, 68), ylim=(len(placed) - 0.5, -0.9))
    axis.set_yticks(range(len(placed)), list(placed))
    axis.grid(False)
    axis.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.4, 1.2))
fig.alt = "Squares for 61 layers, sparse or dense, under six rules. Feed-forward parameters: " + (
    ", ".join(f"{name} {total / 1e9:.0f} billion" for name, (_, total, _) in placed.items()) + "."
)
display(fig)

# %% [markdown]
# The totals lie far apart, the active parameters hardly differ: a token pays for nine networks of width 2048 in each
# layer, whether they are chosen or welded together. What the rules decide is how much a model can *hold* at the same
# cost per token, and how many layers have to move tokens between devices.

# %% [markdown]
# Why make the first layers dense at all? DeepSeekMoE (Dai et al. 2024, section 4.1.2) reports that load balance
# converges much more slowly in the first layer. Near the embedding a router sees little more than which token stands
# there, and section 5 will show how far that alone decides.

# %% [markdown]
# ## 3 · Six families, one class
#
# `labkit.nn.Transformer` is built from a `ModelConfig`, and nothing in it asks for a model's name. Here are the six
# published ones, scaled down to toys: all structure kept, all widths small.


# %%
FAMILIES = ("mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b")


def scaled(name):
    """A published model with small widths: three layers, sixteen experts, everything else as it is."""
    m = presets.preset(name)
    moe = m.moe.replace(d_model=64, d_expert=32, num_experts=16, top_k=min(m.moe.top_k, 4))
    heads = {"num_heads": 4, "num_kv_heads": max(1, 4 * m.num_kv_heads // m.num_heads), "head_dim": 16}
    if m.attention == "mla":
        rank = 32 if m.mla_q_rank else 0
        heads |= {"head_dim": 24, "mla_q_rank": rank, "mla_kv_rank": 16, "mla_nope_dim": 16, "mla_rope_dim": 8}
        heads["mla_v_dim"] = 16
    dense = {"num_dense_layers": 1, "d_dense": 128} if m.num_dense_layers else {}
    small = {"vocab_size": 1024, "num_layers": 3, "d_model": 64, "sliding_window": min(8, m.sliding_window)}
    return m.replace(moe=moe, **heads, **dense, **small)


configs = {name: scaled(name) for name in FAMILIES}

# %% [markdown]
# All fields in which they differ, and nothing else. Read it column by column: this *is* the difference between the
# architectures (a dot stands for no, none or zero).

# %% tags=["nbval-check-output"]


def fields(config):
    """The configuration as one flat dictionary of short words."""
    flat = config.to_dict() | {f"moe.{key}": value for key, value in config.moe.to_dict().items()}
    flat["yarn"] = bool(config.yarn)
    short = {"topk_softmax": "softmax*", "clamped_swiglu": "clamped", "True": "yes", "False": ".", "0": "."}
    return {k: short.get(str(v), str(v)) for k, v in flat.items() if k not in ("moe", "name", "max_context")}


table = {name: fields(config) for name, config in configs.items()}
SHORT = ("mixtral", "olmoe", "qwen3", "deepseek-v2", "deepseek-v3", "gpt-oss")
print(f"{'':<24}" + "".join(f"{name:>13}" for name in SHORT))
for key in table["deepseek-v3"]:
    row = [table[name][key] for name in FAMILIES]
    if len(set(row)) > 1:
        print(f"{key:<24}" + "".join(f"{value:>13}" for value in row))
print("* over the chosen experts only")

# %% [markdown]
# Is that really all? The oracle decides. For each family `transformers` builds its own model, every number in it is
# drawn at random (norms, biases and sinks too, so that none hides at zero or one), and it is saved as a file. Ours
# reads the file. Then both see the same batch: three rows, two of them padded on the left.


# %%
@torch.no_grad()
def drawn(model):
    """The model with every weight drawn at random, large enough that all parts of it matter."""
    torch.manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.8 * value.shape[-1] ** -0.5 * torch.randn_like(value) + ("norm" in key))
    return model.eval()


def theirs_and_ours(name):
    """transformers' model of a family with random weights, and ours, read from the file that it saved."""
    theirs = drawn(AutoModelForCausalLM.from_config(names.hf_config(configs[name])))
    theirs.save_pretrained(folder / name)
    return theirs, Transformer.from_pretrained(folder / name).eval()


pairs = {name: theirs_and_ours(name) for name in FAMILIES}
draw = torch.Generator().manual_seed(seed)
ids_BS = torch.randint(1024, (3, 24), generator=draw)
mask_BS = (torch.arange(24) >= torch.tensor([[7], [0], [1]])).long()

# %% [markdown]
# The difference is given relative to the largest logit, and as a power of ten: −3 means a thousandth. Padded positions
# have no meaning and are left out.

# %%
p_logits = predict(
    "06.logits", "The largest difference between our logits and theirs over all six families?", -12, 0, "powers of ten"
)


# %%
@torch.no_grad()
def apart(theirs, ours):
    """The largest difference of the logits at real positions, relative to the largest logit of theirs."""
    real = mask_BS.bool()
    wanted, got = theirs(ids_BS, attention_mask=mask_BS).logits[real], ours(ids_BS, mask_BS).logits[real]
    return ((wanted - got).abs().max() / wanted.abs().max()).clamp_min(1e-12).item()


difference = {name: apart(*pair) for name, pair in pairs.items()}
p_logits.against(math.log10(max(difference.values())))

# %% [markdown]
# Family by family, with the class of `transformers` that each was compared with:

# %% tags=["nbval-check-output"]
for name, (theirs, ours) in pairs.items():
    same = "within 1e-5" if difference[name] < 1e-5 else "NOT within 1e-5"
    print(f"{name:<18}{type(theirs).__name__:<24}{sum(p.numel() for p in ours.parameters()):>8,} parameters  {same}")

# %% [markdown]
# A float32 number has about seven digits, and the two programs add in different orders, so nothing smaller could be
# asked for.

# %% [markdown]
# How much would *one wrong word* in the configuration cost? Shapes would not tell: the tensors of the file
# fit all the same. Qwen3-MoE's weights, read under five configurations that are each wrong in a single field:

# %%
p_eps = predict(
    "06.eps", "A norm's epsilon of 1e-5 instead of 1e-6: how far apart are the logits?", -9, 1, "powers of ten"
)

# %%
theirs, ours = pairs["qwen3-30b-a3b"]
right = ours.config
wrong = {
    "norm_eps 1e-5 for 1e-6": right.replace(norm_eps=1e-5),
    "rope_theta 10⁴ for 10⁶": right.replace(rope_theta=1e4),
    "rotated in neighbours": right.replace(rope_interleaved=True),
    "norm_topk off": right.replace(moe=right.moe.replace(norm_topk=False)),
    "top_k 3 for 4": right.replace(moe=right.moe.replace(top_k=3)),
}
cost = {"right": difference["qwen3-30b-a3b"]}
for name, config in wrong.items():
    model = Transformer(config).eval()
    model.load_state_dict(ours.state_dict())
    cost[name] = apart(theirs, model)
p_eps.against(math.log10(cost["norm_eps 1e-5 for 1e-6"]))

# %% [markdown]
# Blue: within the tolerance. Left the six families as they are, right one family read wrongly.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(10.4, 3.2))
    for axis, values, title in ((axes[0], difference, "six families"), (axes[1], cost, "Qwen3-MoE, one field wrong")):
        colors = [style.PALETTE[0] if value < 1e-5 else style.LIT for value in values.values()]
        axis.scatter(list(values.values()), range(len(values)), color=colors, zorder=3)
        axis.axvline(1e-5, color=style.INK, linestyle=":", linewidth=1)
        axis.set(xscale="log", xlim=(1e-8, 10), ylim=(len(values) - 0.5, -0.5), title=title)
        axis.set(xlabel="difference of logits, relative (dots: 1e-5)")
        axis.set_yticks(range(len(values)), list(values))
fig.alt = "Relative differences of logits. Families: " + (
    ", ".join(f"{name} {value:.0e}" for name, value in difference.items())
    + ". Wrong fields: " + ", ".join(f"{name} {value:.0e}" for name, value in cost.items()) + "."
)  # fmt: skip
display(fig)

# %% [markdown]
# The wrong epsilon is the most dangerous of the five, just because it does so little: no sample would look odd, no
# loss curve would make anyone suspicious, and yet it is another model. Only a comparison in float32, with a threshold,
# can see it. That is why every test of this course that says *equal* names its tolerance.

# %% [markdown]
# ## 4 · Names
#
# A checkpoint is a dictionary from names to tensors, nothing more. Everybody names them differently, and a file of an
# MoE usually keeps every expert apart, while a fast layer wants them stacked (lab 02). What `transformers` wrote for
# our small Qwen3-MoE:

# %% tags=["nbval-check-output"]
file = load_file(folder / "qwen3-30b-a3b" / "model.safetensors")
print(len(file), "tensors, such as")
for name in sorted(file):
    if "layers" not in name or "layers.0" in name and ("experts" not in name or "experts.0" in name):
        print(f"  {name:<52}{tuple(file[name].shape)}")

# %% [markdown]
# Where the numbers are is another matter than where the names are:

# %%
PARTS = {"embedding and head": ("embed", "lm_head"), "attention": ("self_attn",), "norms": ("layernorm", "model.norm")}
PARTS |= {"routers": (".mlp.gate.",), "experts": (".experts.",)}
held_by = {part: [t for name, t in file.items() if any(w in name for w in words)] for part, words in PARTS.items()}
counted = {part: (len(found), sum(t.numel() for t in found)) for part, found in held_by.items()}
with style.use():
    fig, axes = picture.new(columns=2, size=(9.0, 2.4))
    for axis, column, label in ((axes[0], 0, "tensors in the file"), (axes[1], 1, "numbers in them, thousands")):
        values = [count[column] / (1000 if column else 1) for count in counted.values()]
        axis.barh(range(len(counted)), values, color=style.PALETTE[column])
        axis.set(xlabel=label, ylim=(len(counted) - 0.5, -0.5))
        axis.set_yticks(range(len(counted)), list(counted) if column == 0 else [])
        axis.grid(axis="x")
fig.alt = "Tensors and numbers by part: " + ", ".join(f"{k} {n} and {m:,}" for k, (n, m) in counted.items()) + "."
display(fig)

# %% [markdown]
# Outside the feed-forward parts a tensor needs another name and nothing else. These renames are given to you, as
# templates in which `{i}` stands for the layer. The feed-forward parts are yours.
#
# And a file that does not fit must be refused: if a tensor is missing, or one is left over, raise a ValueError that
# names it.

# %%
RENAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "layers.{i}.norm_attention.weight",
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.norm_ffn.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
for their, mine in (ATTENTION | {"q_norm": "query_norm", "k_norm": "key_norm"}).items():
    RENAMES[f"model.layers.{{i}}.self_attn.{their}.weight"] = f"layers.{{i}}.attention.{mine}.weight"


# %% [markdown]
# In the file, a dense layer's network is `model.layers.{i}.mlp.gate_proj.weight`, with `up_proj` and `down_proj`. A
# sparse layer's router is `model.layers.{i}.mlp.gate.weight` (their "gate" is our router), and its experts are
# `model.layers.{i}.mlp.experts.{e}.gate_proj.weight` and so on.


# %% exercise="06.name_map"
def name_map(
    theirs: dict[str, torch.Tensor], renames: dict[str, str], num_layers: int, num_dense: int, num_experts: int
) -> dict[str, torch.Tensor]:
    """The tensors of a Qwen3-MoE file under our names, with the experts of a layer stacked.

    Args:
        theirs: from a name in the file to its tensor.
        renames: templates from their names to ours, `{i}` for each of the `num_layers` layers.
        num_dense: layers at the start that are dense; num_experts: E of each other layer.

    Returns a new dictionary: everything renamed; for a dense layer `layers.{i}.ffn.gate_up_2FD` [2F, D], the F rows of
    the gate first, and `layers.{i}.ffn.down_DF` [D, F]; for a sparse one `layers.{i}.ffn.router.weight_ED`,
    `layers.{i}.ffn.experts.gate_up_E2FD` [E, 2F, D] and `layers.{i}.ffn.experts.down_EDF` [E, D, F].
    Raises ValueError for a tensor that is missing and for one that has no place here; the message holds its name.
    """
    ### BEGIN SOLUTION
    left, ours = dict(theirs), {}

    def take(name):
        if name not in left:
            raise ValueError(f"{name} is missing")
        return left.pop(name)

    def swiglu(stem):
        gate_up = torch.cat([take(f"{stem}.gate_proj.weight"), take(f"{stem}.up_proj.weight")])
        return gate_up, take(f"{stem}.down_proj.weight")

    for their, mine in renames.items():
        for i in range(num_layers if "{i}" in their else 1):
            ours[mine.format(i=i)] = take(their.format(i=i))
    for i in range(num_layers):
        stem, ffn = f"model.layers.{i}.mlp", f"layers.{i}.ffn"
        if i < num_dense:
            ours[f"{ffn}.gate_up_2FD"], ours[f"{ffn}.down_DF"] = swiglu(stem)
            continue
        ours[f"{ffn}.router.weight_ED"] = take(f"{stem}.gate.weight")
        gate_ups, downs = zip(*[swiglu(f"{stem}.experts.{e}") for e in range(num_experts)], strict=True)
        ours[f"{ffn}.experts.gate_up_E2FD"] = torch.stack(gate_ups)
        ours[f"{ffn}.experts.down_EDF"] = torch.stack(downs)
    if left:
        raise ValueError(f"nothing here is made of {', '.join(sorted(left))}")
    return ours
    ### END SOLUTION


# %% check="06.name_map"
name_map = check("06.name_map", name_map)

# %% [markdown]
# Your map on the real file: into an empty model, and against the model that wrote it.

# %% tags=["nbval-check-output"]
mine = Transformer(configs["qwen3-30b-a3b"]).eval()
mine.load_state_dict(name_map(file, RENAMES, num_layers=3, num_dense=0, num_experts=16))
print("logits are transformers', within 1e-5:", apart(pairs["qwen3-30b-a3b"][0], mine) < 1e-5)
lost = "model.layers.2.mlp.experts.7.up_proj.weight"
extra = "model.layers.1.self_attn.rotary_emb.inv_freq"
for title, broken in {
    f"without {lost}": {name: tensor for name, tensor in file.items() if name != lost},
    f"with {extra}": file | {extra: torch.ones(8)},
}.items():
    try:
        name_map(broken, RENAMES, 3, 0, 16)
        print(title, "-> accepted")
    except ValueError as error:
        print(title, "-> refused, named:", (lost in str(error)) or (extra in str(error)))

# %% [markdown]
# > **Find the bug.** `sorted(names)` puts expert 10 before expert 2. A loader that collects whatever names it finds, in
# > sorted order, works for every model with up to ten experts. Then it shuffles the experts under a router that knows
# > nothing of it. And what does `transformers` do with a file that lacks a router?

# %% tags=["nbval-check-output"]
order = [int(e) for e in sorted(map(str, range(16)))]
shuffled = {key: value[order] if ".experts." in key else value for key, value in mine.state_dict().items()}
mixed_up = Transformer(configs["qwen3-30b-a3b"]).eval()
mixed_up.load_state_dict(shuffled)
print("experts in the order", *order[:8], "…: no error")
(folder / "broken").mkdir(exist_ok=True)
(folder / "broken" / "config.json").write_text((folder / "qwen3-30b-a3b" / "config.json").read_text())
router = "model.layers.1.mlp.gate.weight"
without = {name: tensor for name, tensor in file.items() if name != router}
save_file(without, folder / "broken" / "model.safetensors", metadata={"format": "pt"})
guessed = AutoModelForCausalLM.from_pretrained(folder / "broken").eval()
print("transformers loads a file without a router; what it lacks is drawn at random")
try:
    Transformer.from_pretrained(folder / "broken")
except ValueError as error:
    print("labkit refuses it, naming the tensor:", router in str(error))

# %% [markdown]
# How far are these two from the model they should be?

# %%
oracle = pairs["qwen3-30b-a3b"][0]
with torch.no_grad():
    real = mask_BS.bool()
    wanted, lacking = (m(ids_BS, attention_mask=mask_BS).logits[real] for m in (oracle, guessed))
errors = {"read by the map": apart(oracle, mine), "experts in sorted order": apart(oracle, mixed_up)}
errors["a router drawn at random"] = ((wanted - lacking).abs().max() / wanted.abs().max()).item()
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.0))
    axis.scatter(list(errors.values()), range(3), color=[style.PALETTE[0], style.LIT, style.LIT], zorder=3)
    axis.axvline(1e-5, color=style.INK, linestyle=":", linewidth=1)
    axis.set(xscale="log", xlim=(1e-8, 10), ylim=(2.5, -0.5), xlabel="difference of logits, relative (dots: 1e-5)")
    axis.set_yticks(range(3), list(errors))
fig.alt = "Relative differences of logits: " + ", ".join(f"{k} {v:.0e}" for k, v in errors.items()) + "."
display(fig)

# %% [markdown]
# `transformers` does report missing tensors, in a log that this notebook has turned off, as many programs do. A router
# of random numbers still chooses experts, the text still looks like text, and the model is worse than it should be. We
# prefer the refusal.

# %% [markdown]
# ## 5 · A tokenizer
#
# A model sees numbers. Bytes would do, and lab 03 used them; but a byte is little text, and attention pays for every
# position.

# %% [markdown]
# **Byte-pair encoding** starts from the 256 bytes and merges, again and again, the pair that is most frequent
# in a corpus (Sennrich et al. 2016; on bytes: GPT-2, Radford et al. 2019). We train one on four domains: code, English,
# arithmetic and records.

# %% [markdown]
# The library is Hugging Face's `tokenizers`; `labkit.train.tokenizer` says how the text is cut before merging. Digits
# stand alone there, so a sum is not a lottery of which digits happened to be merged. What a token is worth is measured
# on held-out text, in bytes.

# %%
p_bytes = predict(
    "06.bytes", "A vocabulary of 1024, trained on all four domains: bytes of *code* in a token?", 1, 5, "bytes"
)

# %%
held = text.validation
VOCABULARIES = (258, 512, 1024, 2048, 4096)
tokenizers = {size: train_tokenizer(text.train, size) for size in VOCABULARIES}
worth = {size: bytes_per_token(tokenizer, held) for size, tokenizer in tokenizers.items()}
tokenizer = tokenizers[1024]
p_bytes.against(worth[1024]["code"])

# %% [markdown]
# All four domains, and vocabularies from hardly more than bytes to four thousand:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.2))
    for color, domain in enumerate(text.domains):
        curve = [worth[size][domain] for size in VOCABULARIES]
        axis.plot(VOCABULARIES, curve, "o-", color=style.PALETTE[color], label=domain)
    axis.axhline(1, color=style.INK, linestyle=":", linewidth=1, label="bytes")
    axis.set(xscale="log", xlabel="vocabulary, tokens", ylabel="bytes for each token", ylim=(0, None))
    axis.set_xticks(VOCABULARIES, VOCABULARIES)
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Bytes for each token on held-out text with 1024 tokens: " + (
    ", ".join(f"{domain} {worth[1024][domain]:.2f}" for domain in text.domains) + "."
)
display(fig)

# %% [markdown]
# Code and English gain with every doubling. In arithmetic and in records a larger vocabulary soon buys nothing: digits
# stand alone by decision, and the few words between them are whole tokens early on. In words, from this run:

# %%
best, least = max(worth[1024], key=worth[1024].get), min(worth[1024], key=worth[1024].get)
saved = 1 - 1 / statistics.mean(worth[1024].values())
display(Markdown(
    f"With 1024 tokens, one of them stands for {worth[1024][best]:.2f} bytes of {best} and for "
    f"{worth[1024][least]:.2f} bytes of {least}. A context of 2048 tokens holds {2048 * worth[1024][best]:,.0f} bytes "
    f"of the one and {2048 * worth[1024][least]:,.0f} of the other. An equal loss *per token* is not an equal loss, "
    f"then: between domains, compare losses per byte."
))  # fmt: skip

# %% [markdown]
# Every byte has a token of its own, so no text is unknown, and nothing is lost on the way there and back.

# %% tags=["nbval-check-output"]
for line in ("def naïve(x): return x ** 2", "37 + 48 = 85", "🙂 is four bytes"):
    encoded = tokenizer(line)["input_ids"]
    print(f"{line!r:<32} back unchanged: {tokenizer.decode(encoded) == line}, ids in [0, 1024): {max(encoded) < 1024}")

# %% [markdown]
# ### What does an untrained router see?
#
# With a tokenizer, `labkit.nn.trace` reads any model on any text. Here is a small model with four layers, all sparse,
# that has learned nothing: every token of the ribbon is coloured by its favourite expert.

# %%
small = ModelConfig(
    "small", len(tokenizer), 4, 128, num_heads=8, num_kv_heads=2, head_dim=16, qk_norm="head", rope_theta=1e6,
    moe=MoEConfig(d_model=128, d_expert=64, num_experts=8, top_k=2),
)  # fmt: skip
torch.manual_seed(seed)
untrained = Transformer(small, implementation="loop").eval()
passages = {domain: ["".join(pages)[2000:2900]] for domain, pages in held.items()}
records = trace(untrained, passages, tokenizer=tokenizer)
display(show.ribbon(records, length=240))

# %% [markdown]
# Look at a token that stands there several times. Its vector differs from place to place only by what attention has
# added. So, in an untrained model: how often do two occurrences of the same token, anywhere in the four texts, share
# their favourite expert? Were all eight equally popular, two tokens would do so by chance in one of eight cases.

# %%
p_same = predict(
    "06.same_token", "Layer 0: how often do two occurrences of a token share their favourite?", 0, 100, "%"
)


# %%
def agreement(record, tokens):
    """The share of pairs of equal tokens, at different places, whose best expert is the same; and of all pairs."""
    first_T = record.topk_ids_TK[:, 0]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    token_T = torch.tensor([ids[token] for token in tokens])
    twins_TT = (token_T[:, None] == token_T) & ~torch.eye(len(token_T), dtype=torch.bool)
    alike_TT = first_T[:, None] == first_T
    others_TT = token_T[:, None] != token_T
    return alike_TT[twins_TT].float().mean().item(), alike_TT[others_TT].float().mean().item()


# %% [markdown]
# Layer by layer, with pairs of *different* tokens as the baseline:

# %%
shares = [agreement(record, record.tokens) for record in records]
p_same.against(100 * shares[0][0])
with style.use():
    fig, (axis,) = picture.new(size=(6.4, 3.0))
    for column, (label, color) in enumerate((("the same token", 0), ("different tokens (baseline)", 1))):
        heights = [100 * share[column] for share in shares]
        places = [layer + 0.36 * (column - 0.5) for layer in range(len(shares))]
        axis.bar(places, heights, width=0.34, color=style.PALETTE[color], label=label)
    axis.set(xlabel="layer", ylabel="pairs with one favourite, %", ylim=(0, 100), xticks=range(len(shares)))
    axis.legend(loc="upper right")
fig.alt = "Pairs of the same token share their favourite in " + (
    ", ".join(f"{100 * same:.0f}%" for same, _ in shares) + " of cases, layer by layer; pairs of different tokens in "
    + ", ".join(f"{100 * other:.0f}%" for _, other in shares) + "."
)  # fmt: skip
display(fig)

# %% [markdown]
# So *this expert likes commas* is no discovery: an untrained router does it too, because equal tokens have nearly equal
# vectors. Whatever a trained router does with **tokens** has to be held against this. Lab 07 does so.

# %% [markdown]
# ## 6 · Save, and load elsewhere
#
# A model that only its own library can read is a dead end. `save_pretrained` writes the names and layouts of the
# family that the configuration belongs to, and the tokenizer beside them. Then `transformers` must generate the same
# tokens, knowing nothing of us. Two of our models from section 3, one of each kind of attention:

# %% tags=["nbval-check-output"]
prompts = ["def add(a, b):", "12 + 30 =", "The module"]
for name in ("qwen3-30b-a3b", "deepseek-v3"):
    ours = pairs[name][1]
    ours.save_pretrained(folder / "ours" / name, tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "ours" / name).eval()
    read = AutoTokenizer.from_pretrained(folder / "ours" / name)
    batch = read(prompts, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wanted = theirs.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=None)
    got = ours.generate(ids, mask, max_new_tokens=20)
    print(f"{name:<15} read as {type(theirs).__name__}: same {got.shape[1] - ids.shape[1]} greedy tokens in "
          f"{len(prompts)} rows: {torch.equal(wanted, got)}")  # fmt: skip

# %% [markdown]
# What lies in such a folder: the configuration in the family's own words, the tensors, and the tokenizer.

# %%
sizes = {path.name: path.stat().st_size for path in sorted((folder / "ours" / "deepseek-v3").iterdir())}
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.4))
    axis.barh(range(len(sizes)), list(sizes.values()), color=style.PALETTE[0])
    axis.set(xscale="log", xlim=(1, None), xlabel="bytes", ylim=(len(sizes) - 0.5, -0.5))
    axis.set_yticks(range(len(sizes)), list(sizes))
    axis.grid(axis="x")
fig.alt = "Files of the folder, in bytes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()) + "."
display(fig)
written = json.loads((folder / "ours" / "deepseek-v3" / "config.json").read_text())
print({key: written[key] for key in ("model_type", "n_routed_experts", "first_k_dense_replace", "kv_lora_rank")})

# %% [markdown]
# ## 7 · The next token
#
# The model gives V logits for the next token. **Greedy** decoding takes the largest. Everything else draws from
#
# $$ p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}} , $$
#
# with a temperature $\tau$, usually after tokens have been removed.

# %% [markdown]
# **Top-k** keeps those that are not below the k-th
# best; **top-p** (the nucleus of Holtzman et al. 2020) keeps the smallest set of best tokens that together hold *at
# least* the share p. The order matters, and `transformers` has this one: temperature, top-k, top-p.


# %% exercise="06.sample"
def sample(logits_BV: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """The probabilities that the next token is drawn with, as `transformers` computes them.

    Args:
        logits_BV: [B, V], float32; every row is treated by itself.
        temperature: divides the logits, first of all; ValueError unless it is positive.
        top_k: keeps every token that is not below the k-th best (ties stay). 0: no limit, as if k were larger than V.
        top_p: of what top-k has left, keeps the best tokens until they hold at least this share of the probability;
            the best token always stays. 1.0: no limit.

    Returns [B, V], float32, each row summing to one; removed tokens have probability zero.
    """
    ### BEGIN SOLUTION
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; give a positive number, or decode greedily")
    logits_BV = logits_BV / temperature
    if top_k > 0:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if top_p < 1:
        rising_BV, order_BV = logits_BV.sort(dim=1)
        out_BV = rising_BV.softmax(dim=1).cumsum(dim=1) <= 1 - top_p
        out_BV[:, -1] = False
        logits_BV = logits_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), float("-inf"))
    return logits_BV.softmax(dim=1)
    ### END SOLUTION


# %% check="06.sample"
sample = check("06.sample", sample)

# %% [markdown]
# What do these settings do to text? Our model knows nothing yet, so we ask a model that is made in one line: for every
# token of the training text, count what follows it (a bigram model). The logarithms of the counts are its logits.

# %%
stream = torch.tensor(tokenizer("".join(page for pages in text.train.values() for page in pages[:40]))["input_ids"])
counts_VV = torch.zeros(1024, 1024).index_put_((stream[:-1], stream[1:]), torch.ones(len(stream) - 1), accumulate=True)
bigram_VV = (counts_VV + 0.01).log()
often = [int(i) for i in counts_VV.sum(1).topk(200).indices]
kept = (sample(bigram_VV[often], top_p=0.9) > 0).sum(1)
print(f"{len(stream):,} tokens counted; the 200 most frequent ones are looked at")

# %% [markdown]
# The nucleus adapts to how sure the model is. By how much?

# %%
p_nucleus = predict(
    "06.nucleus", "top_p = 0.9: how many of the 1024 tokens stay after one of these, in the median?", 0, 1024, "tokens"
)

# %% [markdown]
# How many tokens remain possible after each of the 200? Every curve is sorted by itself.

# %%
p_nucleus.against(kept.float().median().item(), kept.min().item(), kept.max().item())
settings = {"τ = 1, p = 0.9": {}, "τ = 0.7, p = 0.9": {"temperature": 0.7}, "τ = 1.5, p = 0.9": {"temperature": 1.5}}
settings["k = 50, p = 0.9"] = {"top_k": 50}
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.2))
    medians = {}
    for color, (name, how) in enumerate(settings.items()):
        sizes = (sample(bigram_VV[often], top_p=0.9, **how) > 0).sum(1).sort().values
        medians[name] = sizes.float().median().item()
        axis.plot(range(len(sizes)), sizes, color=style.PALETTE[color], label=name)
    axis.set(yscale="log", xlabel="preceding token, from the surest to the most open", ylabel="tokens left of 1024")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Median number of tokens left: " + ", ".join(f"{name} {value:.0f}" for name, value in medians.items()) + "."
display(fig)

# %% [markdown]
# A high temperature and p undo each other in a way that is easily overlooked: flattened first, the same 90% need many
# more tokens, and with them comes the tail of tokens that never followed.

# %% [markdown]
# That the temperature comes first is a
# decision of `transformers`, and other servers have decided otherwise. The same three numbers can mean different text.

# %% [markdown]
# ## 8 · Generation, and what a cache saves
#
# Token by token, a model would read the whole text again each time. But a causal model's keys and values for old
# positions never change, so they can be kept. Then one step needs: the new token's query, key and value at the right
# **position**; the new key and value **appended**; and a **mask** over the cached padding.

# %% [markdown]
# Padding stands on the left when texts of unequal length are generated together, for the new tokens come on the right.
# Three rows, before the step:

# %%
PADS = (0, 3, 5)
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.2))
    for row, pads in enumerate(PADS):
        for slot in range(8):
            kind = "pad" if slot < pads else "new" if slot == 7 else "cached"
            color = {"pad": style.GREY, "new": style.PALETTE[1], "cached": style.PALETTE[4]}[kind]
            axis.plot(slot, row, "s", markersize=26, color=color, alpha=0.5 if kind == "pad" else 1)
            axis.text(slot, row, "pad" if kind == "pad" else slot - pads, ha="center", va="center")
    axis.set(xlabel="slot in the cache (numbers: position in the row)", ylabel="row", ylim=(2.6, -0.6))
    axis.set(xlim=(-0.6, 7.6), yticks=range(3), xticks=range(8))
    axis.grid(False)
fig.alt = "Three rows of eight slots with 0, 3 and 5 pads on the left. The new token in slot 7 has position 7, 4 and 2."
display(fig)

# %% [markdown]
# So the position of the next token is not the length of the cache: it is the number of *real* tokens of its row. You
# write the step for one attention layer with grouped queries. `rotate` is given (lab 05).


# %% exercise="06.cached_step"
def cached_step(
    query_BH1d: torch.Tensor, key_BG1d: torch.Tensor, value_BG1d: torch.Tensor,
    keys_BGSd: torch.Tensor, values_BGSd: torch.Tensor, real_BS: torch.Tensor, rotate,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention of one new token in each row over everything cached and itself.

    Args:
        query_BH1d: [B, H, 1, d], not rotated yet; key_BG1d, value_BG1d: [B, G, 1, d], where G divides H and the query
            heads h·H/G up to (h + 1)·H/G share key head h.
        keys_BGSd, values_BGSd: [B, G, S, d], the cache; its keys are rotated already. S may be 0. Not to be changed.
        real_BS: [B, S] bool, False where the cache holds padding.
        rotate: `rotate(x_BHSd, positions_BS)`, rotary positions; positions are counted from 0.

    Returns the output [B, H, 1, d] (softmax of the products over √d, times the values), and the cache with the new
    token at its end: keys and values, both [B, G, S + 1, d].
    """
    ### BEGIN SOLUTION
    position_B1 = real_BS.sum(dim=1, keepdim=True)
    keys = torch.cat([keys_BGSd, rotate(key_BG1d, position_B1)], dim=2)
    values = torch.cat([values_BGSd, value_BG1d], dim=2)
    seen = F.pad(real_BS, (0, 1), value=True)[:, None, None]
    shared_by, d = query_BH1d.shape[1] // key_BG1d.shape[1], query_BH1d.shape[-1]
    logits = rotate(query_BH1d, position_B1) @ keys.repeat_interleave(shared_by, dim=1).mT / math.sqrt(d)
    weights = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return weights @ values.repeat_interleave(shared_by, dim=1), keys, values
    ### END SOLUTION


# %% check="06.cached_step"
cached_step = check("06.cached_step", cached_step)

# %% [markdown]
# Now the whole of it: queries, keys and values of twelve tokens in three rows, two of them padded. Once all positions
# at a stroke, with a causal mask; once step by step through your function. The last column must come out the same, at
# every step.

# %% tags=["nbval-check-output"]
H, G, S, d = 4, 2, 12, 16
draw = torch.Generator().manual_seed(3)
q, k, v = (torch.randn(3, heads, S, d, generator=draw) for heads in (H, G, G))
real = torch.arange(S) >= torch.tensor([[4], [0], [1]])
table = small.replace(head_dim=d)


def rotate(x, positions):
    return turn(x, *rope_tables(table, positions, x.dtype), interleaved=False)


at = (real.cumsum(1) - 1).clamp_min(0)
full_mask = (torch.ones(S, S).tril().bool() & real[:, None] | torch.eye(S).bool())[:, None]
turned = [t.repeat_interleave(H // t.shape[1], dim=1) for t in (rotate(q, at), rotate(k, at), v)]
whole = F.scaled_dot_product_attention(*turned, attn_mask=full_mask)
keys, values = rotate(k, at)[:, :, :5], v[:, :, :5]
for t in range(5, S):
    new = (each[:, :, t : t + 1] for each in (q, k, v))
    out, keys, values = cached_step(*new, keys, values, real[:, :t], rotate)
    close = torch.allclose(out[:, :, 0], whole[:, :, t], atol=1e-5)
    print(f"token {t:>2}: equals the full forward {close}, cache holds {keys.shape[2]}")

# %% [markdown]
# ### The whole model
#
# `labkit.nn.KVCache` does this for all layers, in memory that is allocated once. Generation is then ten lines. (Torch's
# counter of FLOPs does not look into every fused attention, so here attention is two plain products.)


# %%
@torch.no_grad()
def decode(model, ids, mask, new_tokens, cache=None):
    """Greedy continuation; with a cache only the new token is computed. Returns ids and FLOPs of each step."""
    flops, fed = [], ids
    for _ in range(new_tokens):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits = model(fed, mask, cache=cache).logits[:, -1]
        flops.append(counter.get_total_flops())
        token = logits.argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], 1), F.pad(mask, (0, 1), value=1)
        fed = ids if cache is None else token
    return ids, flops


# %% [markdown]
# Four prompts, one of each domain and of unequal length, padded on the left. The weights are random, so the tokens are
# nonsense, and they cost as much as sense would. FLOPs are counted in float64: there no choice between two tokens hangs
# on the last digit, so *the same tokens* can be asked for. How many FLOPs does a cache save?

# %%
NEW = 96 if profile == "gpu" else 48
if profile == "gpu":
    small = small.replace(d_model=512, num_layers=8, moe=small.moe.replace(d_model=512, d_expert=256))
model = drawn(Transformer(small, implementation="loop")).to(device, torch.float64)
starts = ["".join(pages)[2000 : 2160 + 20 * i] for i, pages in enumerate(held.values())]
batch = tokenizer(starts, return_tensors="pt", padding=True).to(device)
ids, mask = batch["input_ids"], batch["attention_mask"]
PROMPT = ids.shape[1]
lengths = mask.sum(1).tolist()

# %% [markdown]
# Each row from left to right: padding, prompt, what is to come.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.2))
    pads = [PROMPT - length for length in lengths]
    parts = {"padding": (pads, 0, style.GREY), "prompt": (lengths, pads, style.PALETTE[4])}
    parts["new tokens"] = ([NEW] * len(ids), PROMPT, style.PALETTE[1])
    for name, (widths, left, color) in parts.items():
        axis.barh(range(len(ids)), widths, left=left, color=color, label=name)
    axis.set(xlabel="positions", ylim=(len(ids) - 0.5, -0.5))
    axis.set_yticks(range(len(ids)), list(held))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Rows padded to {PROMPT} positions, of {', '.join(map(str, lengths))} tokens; {NEW} new tokens are to come."
display(fig)

# %% [markdown]
# For the whole generation of all rows, then:

# %%
p_flops = predict("06.flops", "Without a cache: how many times the FLOPs, prompt included?", 1, 100, "×")

# %% [markdown]
# Both ways, with the same loop:

# %%
cache = KVCache(small, len(ids), PROMPT + NEW, dtype=torch.float64, device=device)
plain_ids, plain = decode(model, ids, mask, NEW)
cached_ids, cached = decode(model, ids, mask, NEW, cache)
p_flops.against(sum(plain) / sum(cached))
print("same tokens:", torch.equal(plain_ids, cached_ids))
print(f"positions read from the cache: {cache.reads:,}; it holds {cache.length} of {cache.capacity} positions")

# %% [markdown]
# > **Find the bug.** The loop below has a cache too. It makes a new one for every step and hands it the whole text. Its
# > tokens are right. A test that compares tokens is green. What gives it away?

# %% tags=["nbval-check-output"]


@torch.no_grad()
def decode_anew(model, ids, mask, new_tokens):
    """Generation with a cache that is never read."""
    flops, reads = [], 0
    for _ in range(new_tokens):
        fresh = KVCache(small, len(ids), ids.shape[1], dtype=torch.float64, device=device)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            token = model(ids, mask, cache=fresh).logits[:, -1].argmax(-1, keepdim=True)
        flops.append(counter.get_total_flops())
        reads += fresh.reads
        ids, mask = torch.cat([ids, token], 1), F.pad(mask, (0, 1), value=1)
    return ids, flops, reads


anew_ids, anew, anew_reads = decode_anew(model, ids, mask, 8)
print("same tokens:", torch.equal(anew_ids, plain_ids[:, : PROMPT + 8]))
print("positions read from its cache:", anew_reads)
print("cheaper than without a cache:", sum(anew) < 0.9 * sum(plain[:8]))

# %% [markdown]
# Work gives it away, and the counter of what was read. So a test of a cache must look at one of them; `labkit`'s own
# tests assert both. FLOPs step by step, with the formula of `core.cost` as a line through them:

# %%
per_token = [model_flops_per_token(small, PROMPT + t).total for t in range(NEW)]
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.2))
    for color, (name, flops) in enumerate({"without a cache": plain, "cached": cached, "made anew": anew}.items()):
        marker = "x" if name == "made anew" else ""
        axis.plot(range(len(flops)), [f / 1e6 for f in flops], marker=marker, color=style.PALETTE[color], label=name)
    ruler = [len(ids) * f / 1e6 for f in per_token[1:]]
    axis.plot(range(1, NEW), ruler, ":", color=style.INK, label="formula, one token a row")
    axis.set(yscale="log", xlabel="new token", ylabel="FLOPs of the step, millions")
    axis.legend(loc="center right")
fig.alt = (
    f"Without a cache a step costs {plain[0] / 1e6:.0f} to {plain[-1] / 1e6:.0f} million FLOPs. With one, the prompt "
    f"costs {cached[0] / 1e6:.0f} and every later token about {cached[-1] / 1e6:.1f}. A cache made anew saves nothing."
)
display(fig)

# %% [markdown]
# Where the dotted line lies on the cached one, a step computes what one token needs and nothing else.

# %% [markdown]
# FLOPs are not time. With a cache a step does very little arithmetic, so what is left is everything else: reading the
# weights, starting hundreds of small operations. How much of the saving arrives? Timed in the format one would serve
# in, float32 on a CPU and bfloat16 on a GPU that has it.

# %%
p_time = predict("06.time", "Without a cache: how many times the time, for the same tokens?", 0.5, 100, "×")


# %%
def seconds(use_cache):
    """Median time of three generations, in seconds."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        model.generate(ids, mask, max_new_tokens=NEW, use_cache=use_cache).cpu()  # reading them waits for the GPU
        times.append(time.perf_counter() - began)
    return statistics.median(times)


model = model.to(runtime.dtype() if device.type == "cuda" else torch.float32)
for use_cache in (False, True):
    model.generate(ids, mask, max_new_tokens=2, use_cache=use_cache)  # warm up
took = {"without a cache": seconds(False), "with a cache": seconds(True)}
p_time.against(took["without a cache"] / took["with a cache"])

# %% [markdown]
# In words:

# %%
ratio, work = took["without a cache"] / took["with a cache"], sum(plain) / sum(cached)
verdict = "less than the FLOPs promise" if ratio < work else "at least what the FLOPs promise"
display(Markdown(
    f"On {runtime.device_name(device)}, {NEW} tokens for {len(ids)} rows took {took['without a cache']:.2f} s without "
    f"and {took['with a cache']:.2f} s with the cache: **{ratio:.1f} times** as long, at {work:.1f} times the FLOPs, "
    f"which is {verdict}."
))  # fmt: skip

# %% [markdown]
# For a short text and a small model the two times can even come close: then a step costs what starting it costs. With
# every token of context the difference grows, since the step without a cache grows and the other hardly does. Lab 12
# makes the cached steps cheap by doing many requests' steps at once.

# %% [markdown]
# ## 9 · Calling a model, as the guide does it
#
# Section 2.2 of the guide that this course audits shows how to call a model: load it, tokenize, generate with sampling.
# Two faults are in those lines. First, the length is limited by `max_length`. Second, only the ids are handed over, not
# the attention mask. In our own words, on the model that we saved in section 6:

# %% [markdown]
# > **Find the bug.** `model.generate(ids, max_length=40)`. What happens to a prompt of 10 tokens, of 39, and of 60? And
# > if several prompts are padded to one length, on the left: what tells the model where they begin?

# %% tags=["nbval-check-output"]
theirs = AutoModelForCausalLM.from_pretrained(folder / "ours" / "qwen3-30b-a3b").eval()
tokens = tokenizer("".join(held["english"])[:2000], return_tensors="pt")["input_ids"]
for length in (10, 39, 60):
    try:
        out = theirs.generate(tokens[:, :length], max_length=40, do_sample=False, eos_token_id=None)
        print(f"prompt of {length}: {out.shape[1] - length} new tokens")
    except ValueError as error:
        print(f"prompt of {length}: {type(error).__name__}, since the limit counts the prompt")
print("max_new_tokens=30:", theirs.generate(tokens[:, :60], max_new_tokens=30, eos_token_id=None).shape[1] - 60)

# %% [markdown]
# So `max_length` is the length of prompt and answer together: the longer the question, the shorter the answer, and a
# prompt that is longer than the limit gets none. `max_new_tokens` says what one means.

# %% [markdown]
# Now the mask. Many models come without a padding token, and a common line mends that: `tokenizer.pad_token =
# tokenizer.eos_token`. Then `transformers` cannot guess which end-of-text tokens are padding, and says so in a warning.
# We pad three prompts that way, and compare each row's answer with the answer it gets alone.

# %%
rows = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in (*prompts, "".join(held["code"])[:90])]
width, end = max(row.shape[1] for row in rows), tokenizer.eos_token_id
ids_P = torch.cat([F.pad(row, (width - row.shape[1], 0), value=end) for row in rows])
mask_P = torch.stack([torch.arange(width) >= width - row.shape[1] for row in rows]).long()
greedy = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": end, "eos_token_id": end}
alone = torch.cat([theirs.generate(row, **greedy)[:, -12:] for row in rows])
careless = theirs.generate(ids_P, **greedy)[:, -12:]
masked = theirs.generate(ids_P, attention_mask=mask_P, **greedy)[:, -12:]

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.4, 2.6))
    for axis, title, answers in ((axes[0], "without the mask", careless), (axes[1], "with it", masked)):
        for same, color, label in ((True, style.PALETTE[0], "as alone"), (False, style.LIT, "another token")):
            row, column = ((answers == alone) == same).nonzero().T
            axis.scatter(column, row, marker="s", s=120, color=color, label=label)
        axis.set(title=title, xlabel="new token", ylabel="pads on the left", ylim=(3.5, -0.5))
        axis.set_yticks(range(len(rows)), [width - row.shape[1] for row in rows])
        axis.grid(False)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = (
    f"Without the mask {(careless == alone).float().mean():.0%} of the new tokens are what each prompt gets alone, "
    f"with it {(masked == alone).float().mean():.0%}."
)
display(fig)

# %% [markdown]
# The longest prompt has no padding and comes out right. The shorter ones start with a row of end-of-text tokens, and
# the model answers to those. Mended, as a function, with both faults gone:


# %% tags=["nbval-check-output"]
def answer(model, tokenizer, prompts, max_new_tokens):
    """Greedy answers to several prompts at once, each as if it were alone, as token ids [B, new]."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    out = model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=max_new_tokens, do_sample=False
    )
    return out[:, batch["input_ids"].shape[1] :]


questions = [*prompts, "".join(held["code"])[:90]]
ours = Transformer.from_pretrained(folder / "ours" / "qwen3-30b-a3b").eval()
theirs.generation_config.eos_token_id = None
for title, model in {"transformers": theirs, "labkit": ours}.items():
    together = answer(model, tokenizer, questions, 12)
    apiece = torch.cat([answer(model, tokenizer, [question], 12) for question in questions])
    print(f"{title}: {together.shape[1]} new tokens each; as if alone: {torch.equal(together, apiece)}")
print("without the mask, rows as if alone:", (careless == alone).all(1).tolist())

# %% [markdown]
# ## 10 · A head that looks further ahead
#
# DeepSeek-V3 trains a second prediction (technical report, section 2.2). A **multi-token prediction** module takes what
# the model knows at position $i$ and the embedding of token $i+1$, puts both through one more block, and predicts token
# $i+2$ with the model's own head (equations 21 to 23):
#
# $$ h'_i = M\,[\,\mathrm{norm}(h_i)\,;\ \mathrm{norm}(\mathrm{Emb}(t_{i+1}))\,], \qquad
# h^1_{1:T-1} = \mathrm{Block}(h'_{1:T-1}), \qquad P(t_{i+2}) = \mathrm{Head}(h^1_i) . $$

# %% [markdown]
# (The paper writes the hidden state first. In the published file the columns that read the embedding come first, and
# the file decides.) In training the module makes the signal denser; in generation it can guess a token that the model
# then only has to verify.

# %% [markdown]
# For position 5, counted from 0: how many tokens of the text does its prediction depend on?

# %%
p_sees = predict("06.mtp_sees", "The MTP module's logits at position 5 depend on how many tokens?", 0, 12, "tokens")


# %%
@torch.no_grad()
def depends(model, length=12):
    """Which logits change if one token does: [position, token] for the head and for the MTP module."""
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))
    many = ids.repeat(length + 1, 1)
    many[1:][torch.eye(length).bool()] += 1  # row j + 1 has another token at j
    out = model(many % model.config.vocab_size, return_mtp=True)
    return [(z[1:] - z[:1]).abs().amax(-1).T > 1e-6 for z in (out.logits, out.mtp_logits[0])]


# %% [markdown]
# The same twelve tokens, each of them changed in turn:

# %%
torch.manual_seed(seed)
ahead = Transformer(configs["deepseek-v3"].replace(num_mtp_layers=1)).eval()
seen = depends(ahead)
p_sees.against(int(seen[1][5].sum()))
with style.use():
    fig, axes = picture.new(columns=2, size=(8.4, 3.6))
    titles = ("head: predicts token i + 1", "MTP: predicts token i + 2")
    for axis, title, matrix in zip(axes, titles, seen, strict=True):
        axis.imshow(matrix.float(), cmap="Blues", vmin=0, vmax=1.4)
        axis.set(title=title, xlabel="token that is changed", ylabel="position i whose logits change")
        axis.grid(False)
fig.alt = (
    "The head's logits at position i change with tokens 0 to i, a triangle. Those of the MTP module, which has one "
    f"position less, change with one token more: at position 5 with {int(seen[1][5].sum())} tokens."
)
display(fig)

# %% [markdown]
# One more token than the head sees, and never the one it predicts.

# %% [markdown]
# The module shares embedding and head with the model;
# what is its own? And what becomes of it in a file?

# %% tags=["nbval-check-output"]
own = sum(p.numel() for p in ahead.mtp.parameters())
rest = model_params(ahead.config).total
print(f"the model {rest:,} parameters, the MTP module {own:,}")
for name, parameter in ahead.mtp[0].named_parameters():
    if not name.startswith("block."):
        print(f"  {name:<22}{tuple(parameter.shape)}")
ahead.save_pretrained(folder / "ahead")
again = Transformer.from_pretrained(folder / "ahead").eval()
print("ours reads it back:", torch.equal(again(ids_BS, return_mtp=True).mtp_logits[0],
                                        ahead(ids_BS, return_mtp=True).mtp_logits[0]))  # fmt: skip
theirs = AutoModelForCausalLM.from_pretrained(folder / "ahead")
print("transformers leaves it out:", sum(p.numel() for p in theirs.parameters()) == rest)

# %% [markdown]
# In the file the module is one more layer behind the last, as DeepSeek keeps it. `transformers` knows the name and
# skips it; its logits do not need it. Lab 07 trains with it and asks whether it helps.

# %% [markdown]
# ## 11 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("06")

# %% [markdown]
# ## Claim verdicts
#
# No numbered claim of the guide is decided in this lab. What it shows of the guide's section 2.2 stands in section 9:
# the call as printed limits prompt and answer together, and in a padded batch answers a question that nobody asked.
# With `max_new_tokens` and the mask both are gone.

# %% [markdown]
# ## Further reading
#
# - Xiong et al. 2020, *On Layer Normalization in the Transformer Architecture*, arXiv 2002.04745: where the norms go.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, arXiv 2412.19437: section 2 for the architecture and for MTP.
# - Lepikhin et al. 2020, *GShard*, arXiv 2006.16668, and Du et al. 2021, *GLaM*, arXiv 2112.06905: every second layer.
# - Sennrich et al. 2016, *Neural Machine Translation of Rare Words with Subword Units*, arXiv 1508.07909; Radford et
#   al. 2019, *Language Models are Unsupervised Multitask Learners*, section 2.2: pairs of bytes.
# - Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, arXiv 1904.09751: top-p, and why.
# - Pope et al. 2022, *Efficiently Scaling Transformer Inference*, arXiv 2211.05102: what a decoding step costs.
