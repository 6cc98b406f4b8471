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
# # 07 · Training: a sparse transformer on real text
#
# Everything is there: router, experts, balance, attention, a whole model. In this lab it learns. That takes a corpus, a
# tokenizer, an optimiser and a loop that can be killed at any moment, and every part of it has a mistake that trains
# without an error. At the end a model of your own lies in a folder, and you look inside its experts.
#
# After this lab you can
#
# - make a corpus of several domains into tokens, and say what a model must beat before it has learned anything;
# - write a learning rate schedule, gradient accumulation that equals one big batch, activation checkpointing, Muon's
#   orthogonalisation and the loss of multi-token prediction;
# - resume a run after `kill -9` so that its next losses are the same to the last bit;
# - compare dense and sparse models at equal active FLOPs *and* at equal wall-clock, and report whichever wins;
# - read a trained model's routing as an atlas, with a baseline beside every number;
# - give verdicts on claim 1 (*two to four active experts save 90% of the compute*) and claim 3 (*domain experts learn
#   what is special*), on a whole model this time.
#
# It takes about two hours. Any CPU will do; on a GPU the same experiments train models that are worth reading.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first**; `cpu` trains for seconds and
# shows the machinery, `gpu` trains for minutes and shows effects, `auto` asks the machine.

# %% tags=["setup"]
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging as hf_logging

from labkit import check, claim, hint, predict, recap, reveal, show
from labkit.core import metrics, runtime
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.cost import model_flops_per_token, model_params
from labkit.course.mine import keep_model, my_model, shipped_model
from labkit.nn import Transformer, trace
from labkit.show import figures, picture, style
from labkit.train import checkpoint, documents, ngram
from labkit.train.evaluate import losses
from labkit.train.loop import TrainConfig, train
from labkit.train.optim import orthogonalise
from labkit.train.recompute import recompute as recompute_blocks
from labkit.train.schedule import Schedule
from labkit.train.tokenizer import byte_tokenizer, bytes_per_token, token_lengths, train_tokenizer
from labkit.train.tokens import TokenSource, evaluation, open_tokens, write_tokens

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other
hf_logging.disable_progress_bar()
scratch = tempfile.TemporaryDirectory(prefix="lab07-")
work = Path(scratch.name)

# %% [markdown]
# ## 1 · Text with a known truth
#
# Routing is only interesting if the truth is known, so the corpus has labelled **domains**: source code of the Python
# library, English from its documentation, generated arithmetic and generated records. Nothing is downloaded. Whole
# documents are held out by name, the same ones on every machine.

# %% [markdown]
# One trap is worth a sentence. Libraries copy from each other: licences, helper functions, whole files. A held-out
# document that stands in the training text as well tests memory and nothing else, so blocks that both share are taken
# out. Look at the sizes, and at where the text came from.

# %%
BYTES = 4_000_000 if profile == "gpu" else 150_000  # of each domain
texts = documents.collect(train_bytes=BYTES, validation_bytes=BYTES // 8, seed=seed)
DOMAINS = texts.domains
print(texts.describe())

# %% [markdown]
# A model reads integers. **Byte-level BPE** (Sennrich et al. 2016; Radford et al. 2019) starts from the 256 bytes and
# merges the most frequent neighbours into new tokens until the vocabulary is full, so nothing is ever unknown. Below, a
# tokenizer without merges, and one that has learned a dozen of them from very little text.

# %% tags=["nbval-check-output"]
plain_bytes = byte_tokenizer()
sample = "né = 12"
ids = plain_bytes(sample)["input_ids"]
print("bytes as tokens:", ids)
print("and back       :", plain_bytes.decode(ids) == sample, "· vocabulary", len(plain_bytes))
small = train_tokenizer({"english": ["the cat and the hat and the mat " * 3], "sums": ["12 + 30 = 42 " * 9]}, 270)
print("after merges   :", small.tokenize("the cat and 42"))

# %% [markdown]
# A letter "Ġ" is how byte-level BPE writes a space. Words became tokens, digits stayed alone: this tokenizer never
# merges them, because sums are easier to learn digit by digit.

# %% [markdown]
# The real one is trained on the training text alone, and each domain gives it equally much: otherwise the largest
# decides what is short. How many bytes will a token stand for? In English several. In arithmetic?

# %%
p_bytes = predict("07.bytes", "Bytes of text that one token stands for, in arithmetic?", 1, 6, "bytes a token")

# %%
VOCAB = 4096 if profile == "gpu" else 1024
tokenizer = train_tokenizer(texts.train, VOCAB)
write_tokens(work / "tokens", texts, tokenizer)
files = open_tokens(work / "tokens", tokenizer)
per_token = bytes_per_token(tokenizer, texts.validation)
p_bytes.against(per_token["arithmetic"])
display(figures.bars_with_spread(
    {domain: [value] for domain, value in per_token.items()}, "bytes a token, held-out text", "bytes", ("one byte", 1.0)
))  # fmt: skip

# %% [markdown]
# So a loss *per token* cannot be compared between domains, nor between tokenizers: a model with longer tokens has more
# to guess at each. Per **byte** it can.

# %% [markdown]
# ### What counting can do
#
# A loss of 4 nats: good or bad? Two baselines say. A **unigram** knows only how frequent tokens are. A **5-gram** with
# Kneser–Ney smoothing knows which token followed the last four in the training text, and what to do where it has never
# seen them. Both only count; a model that does not beat the 5-gram has learned less than a table.

# %%
S, HELD = (256, 65_536) if profile == "gpu" else (64, 8192)
held = evaluation(files["validation"], S, HELD)
counted = ngram.baselines(files["train"], files["validation"], tokenizer, S, HELD)
print(ngram.describe(counted))

# %% [markdown]
# Token files lie on disk and are mapped into memory; a **token source** hands out windows of them in a seeded order,
# the domains in equal shares, and can say where it stands. That will matter in section 4. Here are its first windows,
# cut into tokens by bars.

# %%
source = TokenSource(files["train"], seed=seed)
batch = source.next(4, 12)
for row, domain in zip(batch.ids_BS, batch.domains, strict=True):
    print(f"{domain:<11}", "|".join(tokenizer.decode([i]) for i in row.tolist()).replace("\n", "⏎"))

# %% [markdown]
# ## 2 · One step
#
# A step has three parts that are easily got wrong: how far to move, what the mean is over, and in which number format.
#
# ### How far
#
# **WSD** (warm-up, stable, decay; MiniCPM, Hu et al. 2024) rises linearly, stays, and falls at the end. A cosine has to
# know the length of the run before it starts; WSD can decide late when to come down, and a run can be continued from
# its stable stretch.


# %% exercise="07.schedule"
def schedule(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    """The factor that multiplies the peak learning rate in one step of warm-up, stable, decay.

    Steps are counted from 1. In the warm-up the factor is step / warmup, so that the last step of it has 1. It stays 1
    until `decay` steps are left, and falls in a straight line: the last stable step still has 1, the last step `final`.

    Args:
        step: from 1 to `steps`; steps: of the whole run.
        warmup, decay: lengths in steps; both may be 0.
        final: the factor of the last step, if there is a decay.

    Raises ValueError if warm-up and decay together are longer than the run.
    """
    ### BEGIN SOLUTION
    if warmup + decay > steps:
        raise ValueError(f"{warmup} steps of warm-up and {decay} of decay do not fit into {steps} steps")
    if step <= warmup:
        return step / warmup
    start = steps - decay
    if step <= start:
        return 1.0
    return 1 - (1 - final) * (step - start) / decay
    ### END SOLUTION


# %% check="07.schedule"
schedule = check("07.schedule", schedule)

# %% [markdown]
# A run of a hundred steps. Yours and the loop's should lie on each other; the cosine is there for comparison.

# %%
numbers = list(range(1, 101))
curves = {
    "WSD, yours": [schedule(s, 100, 10, 30, 0.1) for s in numbers],
    "WSD, the loop's": [Schedule("wsd", 100, 10, 30, 0.1)(s) for s in numbers],
    "cosine": [Schedule("cosine", 100, 10, final=0.1)(s) for s in numbers],
}
with style.use():
    fig, (axis,) = picture.new(size=(7.5, 2.9))
    for (name, values), dash in zip(curves.items(), ("-", "--", ":"), strict=True):
        axis.plot(numbers, values, dash, label=name)
    axis.set(xlabel="step of 100", ylabel="share of the peak rate", ylim=(0, 1.08))
    axis.legend(loc="lower center")
fig.alt = "Three schedules: two WSD curves lie on each other, up, level, down; the cosine falls all the way."
display(fig)

# %% [markdown]
# ### The mean over what?
#
# The loss of a step is a mean over its real targets; padding has the label −100 and does not count. If a batch does not
# fit into memory it is cut into **micro-batches**, whose gradients add up before the optimiser moves. Each of them
# could have any number of real targets:
#
# $$ L = \frac{\sum_m \sum_{i \in m} \ell_i}{\sum_m n_m} \qquad \text{and not} \qquad
# \frac{1}{M} \sum_m \frac{\sum_{i \in m} \ell_i}{n_m} . $$
#
# The right-hand side was in many training libraries until October 2024; transformers then mended its `Trainer` by
# counting the items of all micro-batches beforehand.

# %% [markdown]
# Say one micro-batch has 10 real targets and three have 1000 each, as happens when answers are short and documents are
# long. With the mean of means, how many times too much does a token of the short one count, against its share in one
# big batch?

# %%
p_weight = predict("07.weight", "A token of the short micro-batch counts how many times too much?", 0, 200, "times")

# %%
counts = [10, 1000, 1000, 1000]
weights = [len(counts) ** -1 / n * sum(counts) for n in counts]
p_weight.against(weights[0], calculated=True)

# %% [markdown]
# That is a change of the objective, not of the rounding: the model is told that short answers matter more. Write the
# right one. Mind a micro-batch in which nothing is to be learned at all.


# %% exercise="07.accumulate"
def accumulate(model, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
    """Leave in the parameters' `.grad` the gradient of the mean loss over all micro-batches.

    One micro-batch at a time: forward, backward, and its activations are gone before the next.

    Args:
        model: from ids [B, S] to logits [B, S, V]; its parameters have no gradients yet.
        micro_batches: pairs of ids_BS and target_BS, int64. A target is the token to predict at its position, -100
            where there is none; a micro-batch may have no real target at all.

    Returns the mean loss over all real targets, in nats. Raises ValueError if there is none anywhere.
    """
    ### BEGIN SOLUTION
    total = sum(int((target_BS != -100).sum()) for _, target_BS in micro_batches)
    if total == 0:
        raise ValueError("no target is real: every one is -100")
    mean = 0.0
    for ids_BS, target_BS in micro_batches:
        logits_BSV = model(ids_BS)
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean
    ### END SOLUTION


# %% check="07.accumulate"
accumulate = check("07.accumulate", accumulate)

# %% [markdown]
# On a table of logits the effect can be read off by hand: the gradient's size at each row is the weight of its token.
# Two micro-batches, one with a single target and one with three:

# %% tags=["nbval-check-output"]
micros = [
    (torch.tensor([[0, 1, 2]]), torch.tensor([[5, -100, -100]])),
    (torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7, 0]])),
]


def weight_of_each_token(step):
    table = torch.nn.Embedding.from_pretrained(torch.zeros(8, 8), freeze=False)  # row i: the logits after token i
    step(table, micros)
    return [round(v, 3) for v in (table.weight.grad.abs().sum(1) / (2 * 7 / 8)).tolist()][:6]


def mean_of_means(model, micro_batches):
    for ids_BS, target_BS in micro_batches:
        loss = F.cross_entropy(model(ids_BS).flatten(0, 1), target_BS.flatten())
        (loss / len(micro_batches)).backward()


print("yours        :", weight_of_each_token(accumulate))
print("mean of means:", weight_of_each_token(mean_of_means))

# %% [markdown]
# Tokens 1 and 2 have no target and no weight. The other four should weigh the same, and with the mean of means one of
# them weighs as much as three.

# %% [markdown]
# How bad is it in practice? Below, 64 micro-batches whose numbers of real targets are drawn as those of answers in a
# chat might be: many short ones, a few long. Each dot is the weight of a token in one of them, as a multiple of what it
# should be.

# %%
drawn = torch.randn(64, generator=torch.Generator().manual_seed(0))
real_M = (4.5 + drawn).exp().ceil()
too_much_M = real_M.mean() / real_M
with style.use():
    fig, (axis,) = picture.new(size=(7.5, 2.8))
    axis.loglog(real_M, too_much_M, "o", color=style.PALETTE[1], label="mean of means")
    axis.axhline(1, color=style.PALETTE[0], label="one big batch")
    axis.set(xlabel="real targets in the micro-batch", ylabel="weight of its tokens (×)")
    axis.legend()
fig.alt = (
    f"The weight of a token against the targets of its micro-batch falls from {too_much_M.max():.1f} to "
    f"{too_much_M.min():.2f}; the line at 1 is what one big batch gives."
)
display(fig)

# %% [markdown]
# In a real run this shows as a small, stubborn difference between curves that should be equal, and nobody looks for it
# in a division.

# %% [markdown]
# ### In which format
#
# bfloat16 has the range of float32 and eight bits of precision: two to three decimal digits. Products of matrices are
# fine with that; sums of many small numbers are not. So the *weights* stay in float32, and **autocast** computes each
# operation in the format that suits it: products in bfloat16, losses in float32.

# %% [markdown]
# Why must the weights stay wide? The first two lines below take a weight of 1 and move it a thousand times by 0.001, as
# an optimiser would. The others ask autocast what it does.

# %% tags=["nbval-check-output"]
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.tensor(1.0, dtype=dtype)
    for _ in range(1000):
        weight -= torch.tensor(0.001, dtype=dtype)
    print(f"{str(dtype):<15} 1 minus a thousand times 0.001: {weight.item():.3f}")
with torch.autocast("cpu", torch.bfloat16):
    x = torch.nn.Linear(4, 4)(torch.ones(2, 4))
    print("under autocast: linear", x.dtype, "· cross-entropy", F.cross_entropy(x, torch.tensor([0, 1])).dtype)
    moe_here = MoEConfig(d_model=8, d_expert=8, num_experts=4, top_k=2)
    tiny = Transformer(ModelConfig("tiny", 16, 1, 8, num_heads=2, num_kv_heads=1, head_dim=4, moe=moe_here))
    out = tiny(torch.zeros(1, 3, dtype=torch.int64), return_routing=True)
    print("our model     : logits", out.logits.dtype, "· router logits", out.routing[0].logits_TE.dtype)

# %% [markdown]
# Not one of a thousand updates arrived: 0.001 is less than half the distance to the next bfloat16 number below 1. And a
# router that decides in bfloat16 would break ties by rounding, so ours computes its logits in float32 even here.

# %% [markdown]
# Does it matter for learning? To find out we need a model and a loop. Three configurations accompany this lab: a sparse
# one, in which K of E experts work; a dense one with the same *active* parameters; and a dense one with the same
# *total*. All share attention, embeddings and vocabulary.

# %%
L, D, HEADS, FF, E, K = (4, 256, 8, 128, 16, 2) if profile == "gpu" else (2, 64, 4, 64, 16, 2)
BATCH, RATE = (64, 3e-3) if profile == "gpu" else (8, 8e-3)
common = {
    "vocab_size": len(tokenizer), "num_layers": L, "d_model": D, "num_heads": HEADS, "num_kv_heads": 2,
    "head_dim": D // HEADS, "qk_norm": "head", "tie_embeddings": True, "max_context": 1024,
}  # fmt: skip
SPARSE = ModelConfig("sparse", moe=MoEConfig(d_model=D, d_expert=FF, num_experts=E, top_k=K), **common)
DENSE = ModelConfig("dense, equal active", moe=None, num_dense_layers=L, d_dense=K * FF, **common)
TOTAL = ModelConfig("dense, equal total", moe=None, num_dense_layers=L, d_dense=E * FF, **common)

# %% [markdown]
# Every run below goes through `labkit.train.loop`, with AdamW, WSD, and for sparse models a small balance loss and
# z-loss (lab 03). A run is decided by its seed, which draws the weights and the order of the text.


# %%
def settings(config, steps, **changes):
    """How a model of this configuration is trained."""
    extra = {"balance_loss": 0.01, "z_loss": 0.001} if config.moe else {}
    rest = {"schedule": "wsd", "warmup": steps // 10, "decay": steps // 4, "log_every": max(1, steps // 20)}
    how = {"steps": steps, "batch": BATCH, "sequence": S, "learning_rate": RATE, "device": str(device)}
    return TrainConfig(**{**how, **rest, **extra, "progress": "quiet", "seed": seed, **changes})


def fresh(config, seed):
    """An untrained model; the seed decides its weights."""
    model = Transformer(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model.to(device)


# %% [markdown]
# `run` trains one model and says what came of it; `pace` only asks how long a step takes.


# %%
def run(config, steps, seed, dtype=torch.float32, **changes):
    """Train from a seed: the model, its log, the seconds it took, and its held-out loss by domain, nats a token."""
    model, source = fresh(config, seed).to(dtype), TokenSource(files["train"], seed=seed)
    started = time.perf_counter()
    result = train(model, source, settings(config, steps, seed=seed, **changes))
    seconds = time.perf_counter() - started
    by_domain = losses(model, held)
    return SimpleNamespace(
        model=model, rows=result.rows, seconds=seconds, by_domain=by_domain, loss=statistics.mean(by_domain.values())
    )


def pace(config, steps=6):
    """Seconds that one training step takes, measured after a warm-up of as many steps."""
    source, how = TokenSource(files["train"], seed=seed), settings(config, 2 * steps, log_every=steps)
    return how.tokens_per_step / train(fresh(config, seed), source, how).rows[-1]["tokens_per_s"]


# %% [markdown]
# First: how fast is this machine? The length of all runs follows from that, with an upper limit, so that nobody waits
# long. The figure shows three measurements for each configuration.

# %%
took = {config.name: [1e3 * pace(config) for _ in range(3)] for config in (SPARSE, DENSE, TOTAL)}
MOST, SECONDS = (200, 2.5) if profile == "gpu" else (40, 1.1)
STEPS = max(20, min(MOST, int(1e3 * SECONDS / min(took["sparse"]))))
short = "" if STEPS == MOST else f" (not {MOST}: this machine is slower than planned for)"
display(figures.bars_with_spread(took, f"a training step of {BATCH * S:,} tokens", "ms"))
display(Markdown(f"Runs of this lab have {STEPS} steps{short}."))

# %% [markdown]
# Now the question of formats. Three short runs from one seed: everything in float32; autocast; and everything in
# bfloat16, weights and optimiser too. How far is autocast from float32 at the end?

# %%
p_half = predict("07.half", "Held-out loss with autocast, minus float32: how many nats a token?", -0.2, 0.2, "nats")

# %%
HALF = STEPS // 2
formats = {
    "float32": run(SPARSE, HALF, seed, precision="float32"),
    "autocast": run(SPARSE, HALF, seed, precision="bfloat16"),
    "all bfloat16": run(SPARSE, HALF, seed, dtype=torch.bfloat16, precision="float32"),
}
p_half.against(formats["autocast"].loss - formats["float32"].loss)

# %% [markdown]
# The three curves, and the held-out losses in numbers:


# %%
def training_curves(runs, title=""):
    """Training loss over steps, one line a run."""
    with style.use():
        fig, (axis,) = picture.new(size=(7.5, 3.0))
        for (name, found), dash in zip(runs.items(), ("-", "--", ":", "-."), strict=False):
            axis.plot([r["step"] for r in found.rows], [r["loss"] for r in found.rows], dash, label=name)
        axis.set(xlabel="step", ylabel="training loss (nats a token)", title=title)
        axis.legend()
    fig.alt = "Training loss over steps; held-out at the end: " + ", ".join(
        f"{name} {found.loss:.3f}" for name, found in runs.items()
    ) + " nats a token."  # fmt: skip
    return fig


display(training_curves(formats))
display(Markdown(" · ".join(f"{name} {found.loss:.3f}" for name, found in formats.items()) + " nats a token"))

# %% [markdown]
# Both others round their products, so neither follows float32 to the last digit. Only the all-bfloat16 run has a second
# reason to part, lost updates, and how far it does depends on how long it trains: early updates are large, late ones
# get lost. In runs as short as these the three may lie within what another seed would change. One seed proves no small
# difference; it is enough to see whether autocast breaks anything.

# %% [markdown]
# ## 3 · Less memory, the same gradients
#
# The backward pass needs what the forward pass computed, so every activation stays until it is used. **Activation
# checkpointing** (Chen et al. 2016) keeps only each block's input and computes the block a second time when its turn
# comes: about a third more FLOPs, far fewer bytes.

# %% [markdown]
# > **Find the bug.** The guide that this course audits has a part on "gradient checkpointing". Its code, in our own
# > words, is the function below. Which line saves memory?


# %%
def guides_checkpointing(model, ids_BS):
    with torch.autocast(ids_BS.device.type, torch.bfloat16):
        return model(ids_BS, labels=ids_BS, output_attentions=True)


# %% [markdown]
# To hold it against something, we need to know what a forward pass leaves in memory. The class below watches every
# operation, remembers which storages were made, without holding them, and adds up those that are still alive.


# %%
class Alive(TorchDispatchMode):
    """The bytes of all tensors made inside the block that still exist."""

    def __enter__(self):
        self.made = {}
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        new = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)]
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.made |= {s._cdata: (StorageWeakRef(s), s.nbytes()) for s in new if s._cdata not in old}
        return out

    def megabytes(self):
        return sum(size for seen, size in self.made.values() if not seen.expired()) / 1e6


def kept_by(forward):
    """Megabytes that a forward pass leaves for its backward pass; the loss is kept, all else may go."""
    with Alive() as alive:
        loss = forward()
    return alive.megabytes(), loss


# %% [markdown]
# The model is our sparse one in the hands of transformers, which can return attention maps. Three ways: as it is, the
# guide's way, and mended: the library's own switch, which really recomputes.

# %%
p_maps = predict("07.maps", "The guide's way needs how much memory, of what plain training needs?", 0, 500, "%")

# %%
folder = fresh(SPARSE, seed).save_pretrained(work / "untrained", tokenizer=tokenizer)
theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).to(device)
fused = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).to(device)
long_BS = torch.randint(len(tokenizer), (4, 512), generator=torch.Generator().manual_seed(0)).to(device)
for each in (theirs, fused):
    each.train()
    each.config.use_cache = False
kept = {"plain": kept_by(lambda: fused(long_BS, labels=long_BS).loss)[0]}
mb, answer = kept_by(lambda: guides_checkpointing(theirs, long_BS))
kept["the guide's"], maps = mb, answer.attentions
getattr(fused, "activation_checkpointing_enable", fused.gradient_checkpointing_enable)()
kept["mended"] = kept_by(lambda: fused(long_BS, labels=long_BS).loss)[0]
del answer
p_maps.against(100 * kept["the guide's"] / kept["plain"])

# %% [markdown]
# In megabytes, for four texts of 512 tokens:

# %%
display(figures.bars_with_spread({n: [v] for n, v in kept.items()}, "kept for the backward pass", "MB"))
size = sum(m.numel() * m.element_size() for m in maps) / 1e6
display(Markdown(
    f"Of the guide's bytes {size:.1f} MB are maps: {len(maps)} layers of shape {tuple(maps[0].shape)}. Fused attention "
    "never writes them down; asking for them switches it off, and each layer keeps B·H·S² numbers and more."
))  # fmt: skip
del maps, theirs

# %% [markdown]
# **What is wrong.** Autocast changes the format of some activations, and drops none. Asking for all attention maps adds
# the largest tensors that attention has. Nothing is recomputed, so nothing is checkpointed: the words are on the wrong
# code. The last bar is what they should mean, and now you write it.

# %% [markdown]
# A `torch.autograd.Function` is the right tool: its `forward` runs without a graph and may save tensors, its `backward`
# is yours to write. What has to be right:
#
# - the forward pass keeps inputs only, and the second run happens in `backward`, with autograd switched on;
# - the gradient from above is used, and every input gets its own, or None if it needs none;
# - **random numbers are the same** in both runs, or dropout drops other units the second time and the gradient belongs
#   to no function at all; and afterwards the generator must stand where it would have stood.


# %% exercise="07.recompute"
def recompute(block, *inputs: Tensor) -> Tensor:
    """`block(*inputs)`, whose activations are not kept but computed a second time in the backward pass.

    Between the passes only the inputs may be in memory. The block runs twice in all, the second time with the same
    random numbers (CPU generator); the generator is left where it would be without the second run.

    Args:
        block: gives one tensor; everything that it reads and that needs a gradient is among the inputs.
        inputs: tensors, some of which need a gradient and some, such as token ids, do not.

    Returns the output; it can be differentiated once, with the same gradients as without recomputation.
    """

    ### BEGIN SOLUTION
    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.random = torch.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx, grad):
            again = [value.detach().requires_grad_(value.requires_grad) for value in ctx.saved_tensors]
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.random)
                output = block(*again)
            wanted = [value for value in again if value.requires_grad]
            found = iter(torch.autograd.grad(output, wanted, grad))
            return tuple(next(found) if value.requires_grad else None for value in again)

    return Recompute.apply(*inputs)
    ### END SOLUTION


# %% check="07.recompute"
recompute = check("07.recompute", recompute)

# %% [markdown]
# Four blocks with dropout in a row on the CPU: plain, yours, and torch's own. The gradients must agree in every bit,
# and torch's generator must be in the same place afterwards.

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(3)
tall, flat = (torch.randn(*shape, generator=draw).requires_grad_() for shape in ((256, 32), (32, 256)))
start = torch.randn(128, 32, generator=draw)


def a_block(x, up, down):
    return x + F.dropout((x @ up.T).relu(), 0.3) @ down.T / 40


def chain(call):
    torch.manual_seed(5)
    x = start
    for _ in range(4):
        x = call(a_block, x, tall, flat)
    return x.square().mean()


outcomes = []
for name, call in {
    "plain": lambda block, *inputs: block(*inputs),
    "yours": recompute,
    "torch's": lambda block, *inputs: torch_checkpoint(block, *inputs, use_reentrant=False),
}.items():
    mb, loss = kept_by(lambda call=call: chain(call))
    found = torch.autograd.grad(loss, (tall, flat))
    outcomes.append((mb, *found, torch.rand(())))
    same = [torch.equal(a, b) for a, b in zip(outcomes[-1][1:], outcomes[0][1:], strict=True)]
    print(f"{name:<8} a tenth of the memory or less: {mb <= outcomes[0][0] / 10!s:<5} · same gradients: {all(same[:2])}"
          f" · same next random number: {same[2]}")  # fmt: skip

# %% [markdown]
# Torch's version also takes over autocast's state: a forward pass in bfloat16 must be recomputed in bfloat16. Yours,
# called under autocast, would run again in float32; a production version has a dozen such cares.

# %% [markdown]
# On the whole model. **Full** keeps block inputs, as you did. **Selective** (Korthikanti et al. 2022, section 5) also
# keeps what is dear to compute, the outputs of matrix products and of attention, and recomputes the cheap rest. The
# loop has both as `recompute="full"` and `"selective"`.

# %%
model, costs = fresh(SPARSE, seed).train(), {}
for policy in 3 * ("none", "selective", "full"):  # three times, and the fastest counts
    with recompute_blocks(model, policy):
        mb, loss = kept_by(lambda: model(long_BS, labels=long_BS).loss)
        started = time.perf_counter()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).cpu()  # waits for the device
        seconds = min(time.perf_counter() - started, costs[policy].seconds if policy in costs else math.inf)
        costs[policy] = SimpleNamespace(mb=mb, seconds=seconds, gradient=gradient)
        model.zero_grad()

# %% [markdown]
# Memory on the left, its price on the right.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9, 2.8))
    for axis, label, values in (
        (axes[0], "MB kept for the backward pass", [c.mb for c in costs.values()]),
        (axes[1], "backward pass (ms)", [1e3 * c.seconds for c in costs.values()]),
    ):
        axis.bar(list(costs), values, color=style.PALETTE[:3])
        axis.set(ylabel=label, ylim=(0, 1.15 * max(values)))
fig.alt = "Kept and backward time: " + "; ".join(
    f"{name} {c.mb:.1f} MB, {1e3 * c.seconds:.0f} ms" for name, c in costs.items()
) + "."  # fmt: skip
display(fig)
off = {n: (c.gradient - costs["none"].gradient).abs().max().item() for n, c in costs.items() if n != "none"}
told = ", ".join(f"{name} {value:.1e}" for name, value in off.items())
display(Markdown(f"Largest difference of any gradient from `none`: {told}"))
del model, costs, loss

# %% [markdown]
# The logits and the head's input are outside of all blocks and stay in every bar: with a large vocabulary they are a
# floor that no checkpointing of blocks gets under. Lab 10 accounts for every byte.

# %% [markdown]
# ## 4 · A run that survives
#
# A run of weeks will be killed: by the scheduler, by a power cut, by the memory of its neighbour. What has to be on
# disk so that it goes on *as if nothing had happened*? Weights; the optimiser's state; the step, from which the
# schedule follows; **where the data stands**; and **the random state**.

# %% [markdown]
# And it has to be there whole or not at all, whenever the end comes. The loop writes a checkpoint into a folder of
# another name, makes the disk confirm it, and renames the folder at the end: a rename either happened or did not.

# %% [markdown]
# The program below, run as a child process, trains a small model on the CPU and saves every four steps. Its router
# draws noise at every step, so that the random state matters.

# %%
CHILD = """
import json, sys, time, torch
from pathlib import Path
from labkit.core.config import ModelConfig
from labkit.nn import Transformer
from labkit.train.loop import TrainConfig, train
from labkit.train.tokens import TokenSource, open_tokens
torch.set_num_threads(1)
work, config = Path(sys.argv[1]), ModelConfig.from_dict(json.loads(sys.argv[2]))
how = TrainConfig.from_dict(json.loads(sys.argv[3]))
torch.manual_seed(7)
source = TokenSource(open_tokens(work / "tokens")["train"], seed=7)
train(Transformer(config), source, how, folder=work / "killed", on_step=lambda step: time.sleep(0.05))
"""
SMALL = SPARSE.replace(
    num_layers=2, d_model=32, num_heads=2, head_dim=16,
    moe=MoEConfig(d_model=32, d_expert=32, num_experts=8, top_k=2, noise_std=0.1),
)  # fmt: skip
how = settings(SMALL, 32, batch=4, sequence=32, device="cpu", precision="float32", save_every=4, log_every=1, keep=2)

# %% [markdown]
# We let it get somewhere, wait a time that nobody chose, and kill it with signal 9, which no program can catch.

# %%
arguments = [str(work), json.dumps(SMALL.to_dict()), json.dumps(how.to_dict())]
child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
deadline = time.monotonic() + 60
while len(checkpoint.checkpoints(work / "killed")) < 2 and child.poll() is None and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(random.Random().uniform(0, 0.4))
child.kill()
print("the child ended with", child.wait(), "· left behind:", *sorted(p.name for p in (work / "killed").iterdir()))

# %% [markdown]
# A negative number is the signal that ended it. Now the same call in this process, with a fresh model and a fresh
# source: it finds the checkpoints and goes on. Beside it, the same run that nobody killed. By how much do the losses of
# the remaining steps differ, at most?

# %%
p_killed = predict("07.killed", "The largest difference of a loss after resuming, in nats?", 0, 0.1, "nats", step=0.001)


# %%
def small_run(folder=None):
    torch.manual_seed(7)
    model = Transformer(SMALL)
    return train(model, TokenSource(files["train"], seed=7), how, folder=folder).rows


whole, reached = small_run(), checkpoint.checkpoints(work / "killed")[-1].name
resumed = small_run(work / "killed")
apart = [abs(a["loss"] - b["loss"]) for a, b in zip(whole, resumed, strict=True)]
p_killed.against(max(apart))
reached_step = int(reached.removeprefix("step-"))
print(f"went on from {reached}; steps with the very same loss: {sum(a == 0 for a in apart)} of {len(apart)}")

# %% [markdown]
# Both curves in one figure, the undisturbed one wide and grey behind the other:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.5, 2.8))
    axis.plot([r["step"] for r in whole], [r["loss"] for r in whole], color=style.GREY, lw=5, label="never killed")
    axis.plot([r["step"] for r in resumed], [r["loss"] for r in resumed], label="killed and resumed")
    axis.axvline(reached_step, color=style.LIT, linestyle="--", label="resumed from here")
    axis.set(xlabel="step", ylabel="training loss (nats a token)")
    axis.legend()
fig.alt = f"Two loss curves over {len(whole)} steps, one killed and resumed; they differ by {max(apart):.2g} at most."
display(fig)

# %% [markdown]
# What if a checkpoint is damaged? Each file's size and SHA-256 stand in a manifest, so a flipped bit and a cut-off copy
# are refused by name. Pickled files are never opened: loading a pickle runs whatever code its author put there.


# %% tags=["nbval-check-output"]
def refused(damage):
    """What loading says of a copy that was damaged."""
    copy = shutil.copytree(checkpoint.checkpoints(work / "killed")[-1], work / "damaged", dirs_exist_ok=True)
    path = copy / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    try:
        checkpoint.verify(copy)
    except ValueError as error:  # checkpoint.Damaged
        return str(error).replace(f"{copy}/", "")
    return "nothing wrong"


print("a bit flipped:", refused(lambda data: data[:-1] + bytes([data[-1] ^ 1])))
print("pickled      :", refused(lambda data: b"\x80\x02" + data[2:]))
print("whole        :", refused(lambda data: data))

# %% [markdown]
# ### Is the loop right? Ask another one
#
# The oracle: transformers' `Trainer`, the same model in transformers' classes, the same batches in the same order, the
# same optimiser settings, on the CPU in float32. Step by step the losses must be equal up to rounding. (`Trainer` needs
# the package `accelerate`.) Its data loader would shuffle, so it is given ours.


# %%
def trainers_losses(folder, drawn, how):
    """The loss of every step of transformers' Trainer on these batches."""
    rows = [{"input_ids": i, "labels": t} for b in drawn for i, t in zip(b.ids_BS, b.labels_BS, strict=True)]
    seen = []

    class Recorded(Trainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(rows, batch_size=how.batch)

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            seen.append(loss.item())
            return loss

    arguments = TrainingArguments(
        str(work / "trainer"), max_steps=how.steps, per_device_train_batch_size=how.batch, optim="adamw_torch",
        learning_rate=how.learning_rate, weight_decay=how.weight_decay, adam_beta1=how.betas[0],
        adam_beta2=how.betas[1], adam_epsilon=how.eps, max_grad_norm=how.clip, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Recorded(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer()
    rates = [how.rates(step) for step in range(1, how.steps + 1)]
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, [*rates, 0.0].__getitem__)
    trainer.train()
    return seen


# %% [markdown]
# Noise is off for this one, since the two libraries draw their random numbers in different places.

# %%
calm = SMALL.replace(moe=SMALL.moe.replace(noise_std=0.0))
plain = how.replace(steps=50, warmup=5, decay=12, balance_loss=0.0, z_loss=0.0, save_every=0)
torch.manual_seed(7)
model, feed = Transformer(calm), TokenSource(files["train"], seed=7)
model.save_pretrained(work / "calm", tokenizer=tokenizer)
drawn = [feed.next(plain.batch, plain.sequence) for _ in range(plain.steps)]
ours = [r["loss"] for r in train(model, TokenSource(files["train"], seed=7), plain).rows]
theirs = trainers_losses(work / "calm", drawn, plain) if find_spec("accelerate") else None

# %% [markdown]
# On the left the two curves, on the right how far apart they are. float32 has about seven digits.

# %%
if theirs is None:
    display(Markdown("`accelerate` is not installed here, so `Trainer` cannot run: `pip install accelerate`."))
else:
    relative = [abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)]
    with style.use():
        fig, axes = picture.new(columns=2, size=(9.5, 2.8))
        axes[0].plot(range(1, 51), theirs, color=style.GREY, lw=5, label="transformers' Trainer")
        axes[0].plot(range(1, 51), ours, label="our loop")
        axes[0].set(xlabel="step", ylabel="training loss (nats a token)")
        axes[0].legend()
        axes[1].semilogy(range(1, 51), [max(r, 1e-9) for r in relative], color=style.PALETTE[2])
        axes[1].set(xlabel="step", ylabel="relative difference", ylim=(1e-9, 1))
    fig.alt = f"Our loss and Trainer's over 50 steps lie on each other; the largest difference is {max(relative):.1e}."
    display(fig)

# %% [markdown]
# Where two loops and two models that share little but torch itself agree to rounding, step after step, it is unlikely
# that both are wrong in the same way.
# What the loop adds to `Trainer` is a log by domain, router losses and biases, and a checkpoint that is exact.

# %% [markdown]
# ## 5 · Dense against sparse
#
# Now the question behind all of this. A sparse and a dense model with the same **active** parameters do the same work
# for a token, and the sparse one has more places to put what it learns. Does it pay? Two comparisons are fair, and they
# are not the same:
#
# - **equal active FLOPs**: both see the same tokens;
# - **equal wall-clock**: both get the same time. Routing, sorting and small products take time that no FLOP count
#   shows, so the dense model sees more tokens.

# %% [markdown]
# First on paper. Parameters and FLOPs of the three configurations, in the sizes of the `gpu` profile, whatever runs
# here, with 64 tokens in sight (attention costs more the more it sees). The third row is the dense model that claim 1
# means: as many parameters as the sparse one has in all, every one of them used for every token.

# %% tags=["nbval-check-output"]
example = {"vocab_size": 4096, "num_layers": 4, "d_model": 256, "num_heads": 8, "num_kv_heads": 2, "head_dim": 32}
sizes = MoEConfig(d_model=256, d_expert=128, num_experts=16, top_k=2)
for name, moe, wide in (("sparse", sizes, 0), ("dense, equal active", None, 256), ("dense, equal total", None, 2048)):
    config = ModelConfig(name, moe=moe, num_dense_layers=0 if moe else 4, d_dense=wide, tie_embeddings=True, **example)
    params, flops = model_params(config), model_flops_per_token(config, 64)
    shown = f"{params.total / 1e6:5.2f} M parameters, {params.active / 1e6:.2f} M active"
    print(f"{name:<20} {shown}, {flops.total / 1e6:.2f} MFLOP a token, of which router {flops.router / 1e6:.2f}")

# %% [markdown]
# Sparse and equally active differ by the router alone, which is next to nothing.

# %% [markdown]
# Now for real. Same seeds, same batches, learning rate and schedule; three seeds each. At equal wall-clock the dense
# model gets as many more steps as it is faster, with its schedule stretched to that length. A positive number means
# that the sparse model is *worse*. What do you expect?

# %%
p_active = predict("07.active", "Equal active FLOPs: sparse minus dense, held-out loss?", -1, 1, "nats a token")
p_wall = predict("07.wall", "Equal wall-clock: sparse minus dense, held-out loss?", -1, 1, "nats a token")

# %%
SEEDS = (seed, seed + 1, seed + 2)
MORE = round(STEPS * statistics.median(took["sparse"]) / statistics.median(took["dense, equal active"]))
arms = {
    "sparse": [run(SPARSE, STEPS, s) for s in SEEDS],
    "dense, same tokens": [run(DENSE, STEPS, s) for s in SEEDS],
    "dense, same time": [run(DENSE, MORE, s) for s in SEEDS],
}

# %% [markdown]
# A comparison is made seed by seed: both models of a pair saw the same text in the same order, so their difference is
# less noisy than either loss.


# %%
def gap(one, other):
    """The difference of held-out losses, seed by seed."""
    return [a.loss - b.loss for a, b in zip(one, other, strict=True)]


def spread(values, sign=""):
    mean, low, high = (format(v, sign + ".3f") for v in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def table(rows, against):
    """Arms in a Markdown table: steps, tokens, time, loss with spread, and the difference from the sparse arm."""
    lines = ["| model | steps | tokens | seconds | held-out loss, nats a token | sparse minus this |", "|---" * 6 + "|"]
    for name, found in rows.items():
        steps, seconds = found[0].rows[-1]["step"], [r.seconds for r in found]
        apart = "" if found is against else spread(gap(against, found), "+")
        lines.append(
            f"| {name} | {steps} | {steps * BATCH * S:,} | {min(seconds):.1f} to {max(seconds):.1f} | "
            f"{spread([r.loss for r in found])} | {apart} |"
        )
    return Markdown("\n".join(lines))


active, wall = (gap(arms["sparse"], arms[f"dense, same {what}"]) for what in ("tokens", "time"))
p_active.against(statistics.mean(active), min(active), max(active))
p_wall.against(statistics.mean(wall), min(wall), max(wall))

# %% [markdown]
# **Equal active FLOPs:**

# %%
display(table({n: arms[n] for n in ("sparse", "dense, same tokens")}, arms["sparse"]))

# %% [markdown]
# **Equal wall-clock:**

# %%
display(table({n: arms[n] for n in ("sparse", "dense, same time")}, arms["sparse"]))

# %% [markdown]
# The seconds are measured, so they are equal only as far as the machine was quiet. Over time, in one figure:


# %%
def verdict(found):
    """Who won, in words, from the differences seed by seed."""
    if max(found) < 0 or min(found) > 0:
        winner = "sparse" if max(found) < 0 else "dense"
        return f"the **{winner}** model wins on every seed, by {abs(statistics.mean(found)):.3f} nats on average"
    return f"**neither** wins on every seed (from {min(found):+.3f} to {max(found):+.3f} nats)"


def against_time(name, color):
    for i, found in enumerate(arms[name]):
        at = [found.seconds * r["step"] / found.rows[-1]["step"] for r in found.rows]
        axis.plot(at, [r["loss"] for r in found.rows], color=color, alpha=0.8, label=None if i else name)


with style.use():
    fig, (axis,) = picture.new(size=(8, 3.2))
    for name, color in zip(arms, style.PALETTE, strict=False):
        against_time(name, color)
    axis.set(xlabel="time of the run (s)", ylabel="training loss (nats a token)")
    axis.legend()
words = f"At equal active FLOPs {verdict(active)}. At equal wall-clock {verdict(wall)}."
fig.alt = f"Training loss over time, three arms, three seeds each. {words}".replace("*", "")
display(fig, Markdown(words))

# %% [markdown]
# Read both sentences with the number of steps in mind. Experts must first divide the work before they profit from it,
# and each sees only K / E of the tokens; so a short run favours the dense model, and the crossing moves with batch,
# width and kernel. Published comparisons that show only one of the two tables have chosen their winner.

# %% [markdown]
# ### Claim 1, on a whole model
#
# Lab 02 measured one layer. Here is the model that you train: attention, embeddings and head are as dense as ever.
# FLOPs are counted by torch while the model runs (with plain attention, so that its counter sees every product), and
# time is that of a whole training step, against the dense model with the same *total* parameters.

# %%
p_saved = predict("07.saved", "FLOPs of a token that this whole model saves, against equal total?", 0, 100, "%")


# %%
def grouped_formula(a_shape, b_shape, *args, out_shape=None, **kwargs):
    return 2 * math.prod(a_shape) * b_shape[-1]


def flops_of(config):
    """FLOPs of a token in a forward pass over a window of text, as torch counts them."""
    known = {torch.ops.aten._grouped_mm: grouped_formula}
    model, ids = fresh(config, seed).eval(), long_BS[:, :S]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        model(ids)
    return counter.get_total_flops() / ids.numel()


flops = {config.name: flops_of(config) for config in (SPARSE, DENSE, TOTAL)}
saved = 100 * (1 - flops["sparse"] / flops["dense, equal total"])
p_saved.against(saved, calculated=True)

# %% [markdown]
# FLOPs on the left; on the right the time of a training step, as section 2 measured it, three times each.

# %%
millions = {name: [value / 1e6] for name, value in flops.items()}
rows = {"FLOPs a token, forward (M)": millions, "training step (ms)": took}
with style.use():
    fig, axes = picture.new(columns=2, size=(10, 2.6))
    for axis, (label, values) in zip(axes, rows.items(), strict=True):
        axis.barh(list(values), [statistics.median(v) for v in values.values()], color=style.PALETTE[:3])
        for y, each in enumerate(values.values()):
            axis.plot(each, [y] * len(each), "o", color=style.INK, markersize=4)
        axis.set(xlabel=label)
        axis.invert_yaxis()
    axes[1].set_yticklabels([])
fig.alt = "; ".join(
    label + ": " + ", ".join(f"{n} {statistics.median(v):.3g}" for n, v in values.items())
    for label, values in rows.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# The claim, recorded with the interval of all nine pairs of timings.

# %%
model_here = (
    f"a whole model of {L} layers, width {D}, {K} of {E} experts of {FF}, vocabulary {len(tokenizer)}, "
    "against a dense one with equal total parameters"
)
ratios = [100 * (1 - a / b) for a in took["sparse"] for b in took["dense, equal total"]]
claim(1, saved, measure="flops_saved", condition=f"{model_here}, forward FLOPs counted by torch")
_ = claim(
    1, statistics.median(ratios), measure="time_saved", low=min(ratios), high=max(ratios), runs=3,
    condition=f"{model_here}, whole training steps of {BATCH * S} tokens on {runtime.device_name(device)}",
)  # fmt: skip

# %% [markdown]
# Two things stand between the experts' own saving, 1 − K/E, and that of a model: what is not in experts at all, and
# time that is not FLOPs. Against the dense model of equal *active* parameters, the middle bar, sparsity saves no FLOP.

# %% [markdown]
# ## 6 · Muon beside AdamW
#
# AdamW scales every entry of a gradient by its own history. **Muon** (Keller Jordan et al. 2024) takes the gradient's
# momentum as what it is, a matrix, and replaces it by the nearest one whose singular values are all 1: every
# direction moves equally far, and no few large ones decide. Nobody computes a singular value for that. A polynomial of
# the matrix acts on the singular values alone,
#
# $$ X \leftarrow a X + b\,(X X^\top) X + c\,(X X^\top)^2 X , \qquad
# \sigma \leftarrow a\sigma + b\sigma^3 + c\sigma^5, $$
#
# with $a, b, c = 3.4445, -4.7750, 2.0315$, and five rounds of it (**Newton–Schulz**) bring whatever is not too small
# near 1. In a sparse model most matrices are experts, stacked in one tensor, so it has to work on a batch.


# %% exercise="07.newton_schulz"
def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of every matrix near 1, by a quintic polynomial.

    Each matrix is first divided by its own Frobenius norm, or by 1e-7 if that is larger.

    Args:
        matrices: [..., rows, columns], float32 or wider; leading dimensions are a batch, such as experts.
        steps: how often the polynomial is applied.

    Returns a tensor like `matrices`: same shape and dtype. A matrix of zeros stays one.
    """
    ### BEGIN SOLUTION
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
    ### END SOLUTION


# %% check="07.newton_schulz"
newton_schulz = check("07.newton_schulz", newton_schulz)

# %% [markdown]
# A diagonal matrix shows what happens, since its entries *are* its singular values.

# %% tags=["nbval-check-output"]
values = torch.tensor([0.9, 0.4, 0.1, 0.01, 0.001])
print("start  :", [f"{v:.3f}" for v in (values / values.norm()).tolist()])
for steps in (1, 3, 5, 8):
    print(f"{steps} steps:", [f"{v:.3f}" for v in newton_schulz(values.diag(), steps).diagonal().tolist()])

# %% [markdown]
# They do not converge to 1, they are kept in a band around it, and that is on purpose: the coefficients buy speed at
# the small end with exactness near 1. What starts a thousand times smaller than the norm still needs more than five.

# %% [markdown]
# A real gradient: the fused `gate_up` tensor of the first sparse layer, after one backward pass. It holds E experts and
# in each of them two matrices, gate and up, so it is a batch of 2·E. One line a matrix.

# %%
model = fresh(SPARSE, seed)
part = TokenSource(files["train"], seed=seed).next(BATCH, S).ids_BS.to(device)
model(part, labels=part).loss.backward()
gradient = model.layers[0].ffn.experts.gate_up_E2FD.grad.float().unflatten(1, (2, -1))
spectrum = {
    "gradient": torch.linalg.svdvals(gradient / gradient.norm(dim=(-2, -1), keepdim=True)),
    "after newton_schulz": torch.linalg.svdvals(newton_schulz(gradient)),
}
same = torch.allclose(newton_schulz(gradient), orthogonalise(gradient, dtype=torch.float32), atol=1e-3)
with style.use():
    fig, (axis,) = picture.new(size=(7.5, 3.0))
    for (name, found), color in zip(spectrum.items(), style.PALETTE, strict=False):
        axis.plot(found.flatten(0, 1).T.cpu().numpy(), color=color, alpha=0.35, lw=1)
        axis.plot([], [], color=color, label=name)
    axis.set(xlabel="singular value, largest first", ylabel="its size (norm of the matrix: 1)")
    axis.set(yscale="log", ylim=(1e-6, 3))
    axis.legend(loc="lower left")
fig.alt = f"Singular values of {2 * E} gradient matrices: spread over decades before, mostly in a band near 1 after."
display(fig)
print("as the loop's own Muon orthogonalises:", same)

# %% [markdown]
# Where a line drops to nothing, an expert got fewer tokens than its matrix has rows, or many that are alike: each token
# adds at most one to the rank of the gradient, and no polynomial makes a direction out of none. In a dense model, where
# every matrix sees every token, that is much rarer.

# %% [markdown]
# Two details make it usable. *Who*: matrices inside the blocks, each expert's own; embeddings, head, router and norms
# stay with AdamW. *How far*: Moonlight (Liu et al. 2025, section 2.2) multiplies by $0.2\sqrt{\max(\text{rows},
# \text{columns})}$, so that the update is as large as AdamW's and the same learning rate serves both.

# %%
p_muon = predict("07.muon", "Muon minus AdamW, held-out loss after the same steps?", -1, 1, "nats a token")

# %%
arms["sparse, Muon"] = [run(SPARSE, STEPS, s, optimizer="muon") for s in SEEDS]
found = gap(arms["sparse, Muon"], arms["sparse"])
p_muon.against(statistics.mean(found), min(found), max(found))
display(table({n: arms[n] for n in ("sparse", "sparse, Muon")}, arms["sparse"]))

# %% [markdown]
# The table compares seed by seed, the curves show one of them.

# %%
display(training_curves({"AdamW": arms["sparse"][0], "Muon": arms["sparse, Muon"][0]}, "One seed of three"))
slower = statistics.mean(r.seconds for r in arms["sparse, Muon"]) / statistics.mean(r.seconds for r in arms["sparse"])
learns = "lower" if max(found) < 0 else "higher" if min(found) > 0 else "lower or higher, by seed,"
display(Markdown(f"With Muon the loss is {learns} than with AdamW, and a run takes {slower:.2f} times as long here."))

# %% [markdown]
# The learning rate was chosen for AdamW and is shared, so this is a comparison of two optimisers at *one* setting. A
# fair race would tune each; and at equal wall-clock the products of Newton–Schulz have to be paid for.

# %% [markdown]
# ## 7 · Further ahead than one token
#
# DeepSeek-V3 (section 2.2) trains with **multi-token prediction**. Module k takes what the model knew at position i and
# the embedding of token i + k, runs one more block, and predicts token i + k + 1 with the same head (equations 21–23).
# Its loss (equations 24 and 25):
#
# $$ L^k = -\frac{1}{T} \sum_{i=2+k}^{T+1} \log P_i^k[t_i] , \qquad
# L_{\mathrm{MTP}} = \frac{\lambda}{D} \sum_{k=1}^{D} L^k . $$
#
# T is the number of targets of the *main* head, at every depth, although a deeper module has fewer.

# %% tags=["nbval-check-output"]
letters = "the_cat"
print("position:", *range(len(letters)))
print("token   :", *letters)
for k in (0, 1, 2):
    row = [letters[i + k + 1] if i + k + 1 < len(letters) else "·" for i in range(len(letters))]
    name = "main" if k == 0 else f"k = {k}"
    print(f"{name:<8}:", *row, f" ({sum(c != '·' for c in row)} targets)")

# %% [markdown]
# Labels come unshifted, as everywhere in this course: position i of the main head is held against label i + 1.


# %% exercise="07.mtp_loss"
def mtp_loss(mtp_logits: tuple[Tensor, ...], labels_BS: Tensor, weight: float) -> Tensor:
    """The loss of multi-token prediction (DeepSeek-V3, equations 24 and 25).

    Args:
        mtp_logits: D tensors; the k-th, counted from 1, is [B, S - k, V], and its position i predicts token i + k + 1.
            Its last position has no target.
        labels_BS: [B, S] int64, not shifted; -100 is padding and is not learned.
        weight: λ.

    Returns a scalar: λ / D times the sum over depths of the summed cross-entropy in nats, divided at every depth by the
    number of real targets of the main head, those of `labels_BS` from the second column on.
    """
    ### BEGIN SOLUTION
    count = (labels_BS[:, 1:] != -100).sum()
    total = mtp_logits[0].new_zeros(())
    for k, logits_BSV in enumerate(mtp_logits, start=1):
        target_BS = labels_BS[:, k + 1 :]
        logits_BSV = logits_BSV[:, : target_BS.shape[1]]
        total = total + F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction="sum")
    return weight / len(mtp_logits) * total / count
    ### END SOLUTION


# %% check="07.mtp_loss"
mtp_loss = check("07.mtp_loss", mtp_loss)

# %% [markdown]
# Does it help the main head? We train the same sparse model with one such module, λ = 0.3, and compare its *main* loss
# with the runs of section 5. The module is thrown away afterwards, or kept to propose tokens for speculative decoding.

# %%
p_mtp = predict("07.mtp", "Main loss with multi-token prediction, minus without?", -0.5, 0.5, "nats a token")

# %%
AHEAD = SPARSE.replace(num_mtp_layers=1)
arms["sparse, MTP"] = [run(AHEAD, STEPS, s, mtp_weight=0.3) for s in SEEDS]
found = gap(arms["sparse, MTP"], arms["sparse"])
p_mtp.against(statistics.mean(found), min(found), max(found))
display(table({n: arms[n] for n in ("sparse", "sparse, MTP")}, arms["sparse"]))

# %% [markdown]
# What is the module good for afterwards? Note what it knows: at position i it is *given* token i + 1. So it is not
# asked to leap; it has the main head's own task one position later, with one more block. Its use is **speculative
# decoding**: the main head says token i + 1, the module at once proposes token i + 2, and the next forward pass of the
# whole model checks the proposal while it does its own work.

# %% [markdown]
# So what counts is how often the proposal is what the main head would have said. Below is that share by domain, on
# held-out text, with a lazy proposer for a baseline: always the main head's most frequent word in that domain.

# %%
p_accept = predict("07.accepted", "Proposals of the module that the main head agrees with, all domains?", 0, 100, "%")

# %%
model, said = arms["sparse, MTP"][0].model.eval(), {d: [] for d in DOMAINS}
with torch.no_grad():
    for part in held:
        ids = part.ids_BS.to(device)
        out = model(ids, return_mtp=True)
        main, proposed = out.logits[:, 1:-1].argmax(-1), out.mtp_logits[0][:, :-1].argmax(-1)
        agrees = [100 * (guess == main).float().mean().item() for guess in (proposed, main.flatten().mode().values)]
        loss = mtp_loss(out.mtp_logits, ids, 1.0).item() * (S - 1) / (S - 2)
        said[part.domains[0]].append((*agrees, loss))
accepted, lazy, second = ({d: statistics.mean(v[i] for v in said[d]) for d in DOMAINS} for i in range(3))
overall = list(accepted.values())
p_accept.against(statistics.mean(overall), min(overall), max(overall))

# %% [markdown]
# The agreement is measured along the text: the module is given the text's own token i + 1. On the right your `mtp_loss`
# with λ = 1, brought to a mean over its own targets, beside the main head's loss.

# %%
pairs = {
    "main head agrees (%)": {"the module": accepted, "lazy": lazy},
    "held-out loss (nats a token)": {"main head": losses(model, held), "module, one token on": second},
}
with style.use():
    fig, axes = picture.new(columns=2, size=(11, 3.0))
    for axis, (label, found) in zip(axes, pairs.items(), strict=True):
        for i, (name, values) in enumerate(found.items()):
            axis.bar([x + 0.4 * i - 0.2 for x in range(len(DOMAINS))], [values[d] for d in DOMAINS], 0.38, label=name)
        axis.set_xticks(range(len(DOMAINS)), DOMAINS)
        axis.set(ylabel=label, ylim=(0, 1.3 * max(v for values in found.values() for v in values.values())))
        axis.legend(loc="upper left", ncols=2)
told = "; ".join(f"{d} {accepted[d]:.0f} %, lazy {lazy[d]:.0f} %" for d in DOMAINS)
fig.alt = f"Agreement with the main head: {told}."
display(fig)

# %% [markdown]
# A proposal that is checked costs nothing when it is wrong but the work of proposing. How much time one that is right
# saves depends on the serving engine; lab 12 builds one.

# %% [markdown]
# ## 8 · Your model
#
# Now one model for keeps. It has the sparse layout from above and trains for longer. At some steps we stop for a moment
# and write down what its routers decide on a fixed set of held-out texts. These records become the atlas.

# %% [markdown]
# How far will it come? The baselines of section 1 are the yardstick. In how many of the four domains will it beat the
# 5-gram?

# %%
p_beats = predict("07.beats", "Your model beats the 5-gram in how many of the four domains?", 0, 4, "domains", step=1)

# %%
PIECE, PIECES = (400, 16) if profile == "gpu" else (150, 8)
atlas_texts = {
    d: [text[i : i + PIECE] for text in texts.validation[d] for i in range(0, len(text) - PIECE, PIECE)][:PIECES]
    for d in DOMAINS
}
LONG = max(40, min(1500, int(15e3 / min(took["sparse"])))) if profile == "gpu" else 2 * STEPS
stops = {0, *(round(LONG * share) for share in (0.03, 0.1, 0.2, 0.4, 0.7, 1.0))}
mine, snapshots = fresh(SPARSE, seed), {}

# %% [markdown]
# `on_step` is called by the loop after every step; `trace` reads the model and leaves it as it was.


# %%
def stop_and_look(step):
    if step.step in stops:
        snapshots[step.step] = trace(mine, atlas_texts, tokenizer=tokenizer, batch_size=32)


snapshots[0] = trace(mine, atlas_texts, tokenizer=tokenizer, batch_size=32)
source, how_long = TokenSource(files["train"], seed=seed), settings(SPARSE, LONG)
result = train(mine, source, how_long, validation=held, on_step=stop_and_look)
at_end = statistics.mean(result.validation.values())
display(training_curves({"yours": SimpleNamespace(rows=result.rows, loss=at_end)}))

# %% [markdown]
# What does the loop say of itself? Tokens a second; on a GPU that it knows also the share of its peak (MFU); and the
# load of the busiest expert over the mean, less one.

# %%
last = result.rows[-1]
share = "not known for this device" if last["mfu"] is None else f"{last['mfu']:.1%}"
display(Markdown(
    f"{last['tokens']:,} tokens, {last['tokens_per_s']:,.0f} tokens a second, MFU {share}; the busiest expert is "
    + ", ".join(f"{v:.0%}" for v in last["max_violation"]) + " above the mean, layer by layer."
))  # fmt: skip

# %% [markdown]
# It is kept, as a Hugging Face folder with its tokenizer, in place of the one that an earlier run kept. From lab 08 on
# `labkit.my_model()` gives you this model; the course also ships one, trained for longer with the same code, for those
# who skip this lab.

# %%
notes = {"steps": LONG, "profile": profile, "seed": seed, "held_out_nats_per_token": result.validation}
kept_in = keep_model(mine, tokenizer, notes)
yours = my_model("yours", device=device)
try:
    shipped = shipped_model(device=device)
except (OSError, ValueError):  # not there in this copy of the course
    shipped = None
print("files:", *sorted(path.name for path in kept_in.iterdir()))
print(yours)
print("the shipped model is not in this copy of the course" if shipped is None else shipped)

# %% [markdown]
# Against the baselines of section 1, in nats per **byte**, because models with different tokenizers stand in one table.
# A model's nats per token are divided by the bytes that its own tokens stand for.


# %%
def per_byte(trained):
    """Held-out nats per byte of each domain, under a model's own tokenizer."""
    own = write_tokens(work / trained.whose, texts, trained.tokenizer)["validation"]
    windows, lengths = evaluation(own, S, HELD), token_lengths(trained.tokenizer)
    nats = losses(trained.model, windows)
    sizes = {d: [lengths[w.ids_BS[:, 1:].numpy()] for w in windows if w.domains[0] == d] for d in DOMAINS}
    return {d: nats[d] * sum(x.size for x in sizes[d]) / sum(int(x.sum()) for x in sizes[d]) for d in DOMAINS}


bpb = {
    name: {d: counted[d][n].nats_per_byte for d in DOMAINS} for name, n in (("unigram", 1), ("5-gram", 5))
}  # fmt: skip
bpb |= {trained.whose: per_byte(trained) for trained in (yours, shipped) if trained is not None}
head = "| held-out nats a byte | " + " | ".join(DOMAINS) + " |\n|" + "---|" * (len(DOMAINS) + 1) + "\n"
lines = [f"| {name} | " + " | ".join(f"{values[d]:.3f}" for d in DOMAINS) + " |" for name, values in bpb.items()]
display(Markdown(head + "\n".join(lines)))

# %% [markdown]
# The same as a figure, and in words.

# %%
beats = {n: [d for d in DOMAINS if v[d] < bpb["5-gram"][d]] for n, v in bpb.items() if n in ("yours", "shipped")}
p_beats.against(len(beats["yours"]))
with style.use():
    fig, (axis,) = picture.new(size=(8.5, 3.0))
    for i, (name, values) in enumerate(bpb.items()):
        axis.bar([x + 0.2 * (i - 1.5) for x in range(len(DOMAINS))], [values[d] for d in DOMAINS], 0.19, label=name)
    axis.set_xticks(range(len(DOMAINS)), DOMAINS)
    axis.set(ylabel="held-out loss (nats a byte)")
    axis.legend()
told = [f"{name}: " + ", ".join(f"{d} {values[d]:.2f}" for d in DOMAINS) for name, values in bpb.items()]
fig.alt = "; ".join(told) + " nats a byte."
words = [
    f"**{n}** beats the 5-gram in {len(won)} of {len(DOMAINS)} domains: {', '.join(won)}." for n, won in beats.items()
]
display(fig, Markdown(" ".join(words).replace("domains: .", "domains.")))

# %% [markdown]
# The n-grams here counted *this* notebook's training text. The shipped model read more of the same kinds, so hold it
# against the baselines on its own card; held out is the same by name in both. And a table is a strong opponent on
# little text: it remembers everything at once, and a network has to be shown it many times.

# %% [markdown]
# What do they write? Each model continues the same four openings, always with its most likely token.

# %%
OPENINGS = dict(zip(DOMAINS, ("def read(path):\n", "Return a new ", "12 + 34 = ", "id,city,amount"), strict=True))
for trained in (t for t in (yours, shipped) if t is not None):
    print(f"--- {trained.whose}")
    for domain, text in OPENINGS.items():
        ids = torch.tensor([trained.tokenizer(text)["input_ids"]], device=device)
        with torch.no_grad():
            out = trained.model.generate(ids, max_new_tokens=16, eos_token_id=trained.tokenizer.eos_token_id)
        print(f"{domain:<11}{trained.tokenizer.decode(out[0], skip_special_tokens=True)!r}")

# %% [markdown]
# ## 9 · The expert atlas
#
# `trace` reads what every router decides, for our model and for any other with routers. The views below show the model
# that has learned most: the shipped one if it is here, else yours; change `look_at` to see the other.

# %%
look_at = yours if shipped is None else shipped
records = trace(look_at.model, atlas_texts, tokenizer=look_at.tokenizer, batch_size=32)
print(f"looking at: {look_at.whose}, {len(records)} sparse layers, {records[0].num_tokens:,} held-out tokens")
display(show.ribbon(records, length=160))

# %% [markdown]
# The **ribbon** shows a text with each token in the colour or number of its expert. Step through the layers. In the
# first, do experts go by the token itself: spaces, digits, line ends? And does the same token keep its expert from one
# domain to the next?

# %% [markdown]
# **Domain lift**: how much more often a domain's tokens choose an expert than all tokens do, $P(e \mid d) / P(e)$. As
# in lab 04, one number for a layer is the *peak*, every expert's highest lift averaged over choices, and its baseline
# is the same number with whole texts shuffled between domains. By what factor is it above chance, over all layers?

# %%
p_lift = predict("07.lift", "Peak lift over that of shuffled texts, mean over the model's layers?", 1, 4, "×")


# %%
def peak_over_chance(record, rounds=50):
    """Peak lift of one layer, divided by its mean over shuffled texts."""
    names = sorted(set(record.domains))
    domain_T = torch.tensor([names.index(d) for d in record.domains])
    _, text_T = record.sequence_T.unique(return_inverse=True)
    count = int(text_T.max()) + 1
    domain_B = torch.zeros(count, dtype=torch.int64).scatter(0, text_T, domain_T)
    counts_BE = torch.zeros(count, record.num_experts).index_add(0, text_T, metrics.choices(record))

    def peak(labels_B):
        counts_GE = torch.zeros(len(names), record.num_experts).index_add(0, labels_B, counts_BE)
        overall_E = counts_GE.sum(0) / counts_GE.sum()
        share_GE = counts_GE / counts_GE.sum(1, keepdim=True)
        return torch.where(overall_E > 0, share_GE.amax(0), overall_E).sum().item()

    draw = torch.Generator().manual_seed(0)
    orders = [torch.randperm(count, generator=draw) for _ in range(rounds)]
    return peak(domain_B) / statistics.mean(peak(domain_B[order]) for order in orders)


def read(model, its_tokenizer=tokenizer):
    return [peak_over_chance(r) for r in trace(model, atlas_texts, tokenizer=its_tokenizer, batch_size=32)]


lifts = {"untrained": read(fresh(SPARSE, seed)), "yours": read(yours.model)}
if shipped is not None:
    lifts["shipped"] = read(shipped.model, shipped.tokenizer)
value = lifts[look_at.whose]
p_lift.against(statistics.mean(value), min(value), max(value))

# %% [markdown]
# Layer by layer, for the untrained model too:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8, 3.0))
    for (name, values), color in zip(lifts.items(), (style.GREY, *style.PALETTE), strict=False):
        axis.plot(range(len(values)), values, "o-", color=color, label=name)
    axis.axhline(1, color=style.INK, linestyle=":", label="shuffled texts")
    axis.axhline(1.5, color=style.LIT, linestyle="--", label="claim 3 counts as holding")
    axis.set(xlabel="sparse layer", ylabel="peak lift over chance (×)", xticks=range(max(map(len, lifts.values()))))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Peak lift over chance by layer: " + "; ".join(
    f"{name} " + ", ".join(f"{v:.2f}" for v in values) for name, values in lifts.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# The grey line is a router that has learned nothing, and it lies above the dotted one: domains differ in their tokens,
# and a random router sees that too. What training added to *your* model is the distance from grey; the shipped one has
# layers and tokens of its own, so grey is no baseline for it. Claim 3 asks only for the distance from shuffled texts;
# so it is recorded as it asks, for the three seeds of section 5 and for the models above. More training need not mean
# more lift: hold the short runs against the long one.

# %%
by_seed = [statistics.mean(read(found.model)) for found in arms["sparse"]]
place = runtime.device_name(device)
claim(
    3, statistics.mean(by_seed), low=min(by_seed), high=max(by_seed), runs=len(by_seed),
    condition=f"{L} layers of {E} experts, width {D}, {STEPS} steps, mean over layers, three seeds, {place}",
)  # fmt: skip
for trained in (t for t in (yours, shipped) if t is not None):
    values = lifts[trained.whose]
    name = "shipped" if trained is shipped else "kept"
    about = f"the {name} model, from the lowest to the highest of its sparse layers, {place}"
    _ = claim(3, statistics.mean(values), low=min(values), high=max(values), condition=about)

# %% [markdown]
# Cell by cell, with the interval that shuffling gives; what lies inside it is hatched away. Brush an expert and see
# what else it takes.

# %%
display(show.lift_map(records))

# %% [markdown]
# **Co-activation**: which experts are chosen together more often than their loads alone would give? A pair that always
# goes together could be one expert.

# %%
display(show.coactivation_map(records))

# %% [markdown]
# **Saturation** (OLMoE, section 5.1): of a token's experts at the end of training, how many had it already at an
# earlier step? The records that you took in section 8 tell. Chance is what two unrelated routers with these loads
# would share. At a tenth of the training, how much is settled?

# %%
p_settled = predict("07.settled", "At a tenth of the steps: share of the final choices already made?", 0, 100, "%")

# %%
steps_seen, final = sorted(snapshots), snapshots[max(snapshots)]
settled = {s: [100 * metrics.saturation(a, b) for a, b in zip(snapshots[s], final, strict=True)] for s in steps_seen}
chance = [100 * K * (metrics.load(a) * metrics.load(b)).sum().item() for a, b in zip(snapshots[0], final, strict=True)]
early = settled[min(steps_seen, key=lambda s: abs(s - LONG / 10))]
p_settled.against(statistics.mean(early), min(early), max(early))
with style.use():
    fig, (axis,) = picture.new(size=(8, 3.0))
    for layer in range(len(final)):
        axis.plot(steps_seen, [settled[s][layer] for s in steps_seen], "o-", label=f"layer {layer}")
    axis.axhline(statistics.mean(chance), color=style.INK, linestyle=":", label="chance")
    axis.set(xlabel="step", ylabel="final choices already made (%)", ylim=(0, 104))
    axis.legend(loc="lower right")
told = "; ".join(f"{s}: {statistics.mean(v):.0f} %" for s, v in settled.items())
fig.alt = f"Saturation by step: {told}; chance {statistics.mean(chance):.0f} %."
display(fig)

# %% [markdown]
# (This is your model whatever is looked at above: only of yours are there records on the way.) A curve that is high
# early says that who works on a token was decided while the experts were still poor, and that the rest of the training
# went into what they do with it. One that climbs to the end says that the run was too short to settle.

# %% [markdown]
# **Ablation**: the strongest test. Take one expert away, let its tokens go to their next best, and see where the loss
# rises. An expert *for* a domain should be missed there and hardly elsewhere. The busiest experts of the last layer
# go in turn.

# %%
layer = len(records) - 1
busiest = records[layer].tokens_per_expert_E.argsort(descending=True)[: 16 if profile == "gpu" else 4].tolist()
number = records[layer].layer
without = {
    e: trace(look_at.model, atlas_texts, tokenizer=look_at.tokenizer, ablate=(number, e), batch_size=32)[layer]
    for e in busiest
}
display(show.ablation(records[layer], without))

# %% [markdown]
# In numbers, with intervals over texts:

# %%
effects = {e: metrics.ablation_effect(records[layer], found) for e, found in without.items()}
clear = [e for e, effect in effects.items() if effect.low > 0]
worst = max(effects, key=lambda e: effects[e].change)
dear = effects[worst]
told = ", ".join(f"{d} {c:+.3f}" for d, c in zip(dear.domains, dear.change_G.tolist(), strict=True))
display(Markdown(
    f"Of {len(effects)} experts, {len(clear)} are missed beyond what texts vary. The dearest is expert {worst}: "
    f"{dear.change:+.3f} nats a token, from {dear.low:+.3f} to {dear.high:+.3f}; by domain {told}."
))  # fmt: skip

# %% [markdown]
# Lift says who *comes*; ablation says who is *needed*. Where they disagree, believe the loss. And remember who steps
# in: the lowest panel of the view shows where an expert's tokens went, and a small rise may only mean a good deputy.

# %% [markdown]
# ## 10 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("07")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 1** (two to four active experts save 90% of the compute), on the model of section 5, against a dense one with
# equal total parameters: the cards there say what this machine measured. FLOPs saved stay below what the experts alone
# save, since attention and head are dense; time saved is another number again. Against equal *active* parameters
# nothing is saved, and section 5's two tables say what is bought.
#
# **Claim 3** (base experts learn what is general and domain experts what is special), on trained transformers: the
# cards of section 9 have the lift over shuffled texts for three seeds and for the kept models. Read them beside the
# untrained router, and beside the ablation.
#
# **The guide's gradient checkpointing** (part 2.3) recomputes nothing and asks for all attention maps: section 3 shows
# what it costs and what the words mean.

# %% [markdown]
# ## Further reading
#
# - Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174; Korthikanti et al. 2022,
#   *Reducing Activation Recomputation in Large Transformer Models*, arXiv 2205.05198: what to keep and what to compute
#   again.
# - Hu et al. 2024, *MiniCPM*, arXiv 2404.06395: the WSD schedule, and what it is good for.
# - Jordan et al. 2024, *Muon: An optimizer for hidden layers in neural networks*; Liu et al. 2025, *Muon is Scalable
#   for LLM Training*, arXiv 2502.16982: the update, and the two changes that let it share AdamW's learning rate.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, arXiv 2412.19437, section 2.2: multi-token prediction.
# - Muennighoff et al. 2024, *OLMoE*, arXiv 2409.02060, section 5: saturation, co-activation and specialisation.
# - Shazeer et al. 2017, *Outrageously Large Neural Networks*, arXiv 1701.06538: dense against sparse, the first time.
