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
# # 10 · Memory: where it goes, and what precision costs
#
# "It does not fit" is the most frequent error message of this field. In this lab you take one training step apart,
# byte by byte, and hold the sum against what the allocator says. Then you get rid of bytes, in four ways: by keeping
# less, by computing again, by never writing the largest tensor down, and by fewer bits. Each has its price, and you
# measure that, too.
#
# After this lab you can
#
# - say before a run what its weights, gradients, optimizer and activations will take, and which of them will not fit;
# - find out what an operation keeps for its backward pass, and write one that keeps less;
# - choose between ways of checkpointing by memory *and* time, and know when the √n law holds;
# - write flash attention in Triton, from one step of online softmax to a kernel;
# - say what float32, tf32, bfloat16, float16 and fp8 each cost in accuracy, and what must stay in float32;
# - weigh claim 6 (*one 16 GB card is enough for a 7B model with gradient checkpointing; four A100-80G train it and two
#   T4 serve it*) with a real step.
#
# It takes about two hours. Without a GPU there is no allocator to ask, so bytes are counted tensor by tensor, and
# kernels are interpreted.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** `cpu` works on little tensors
# and counts; `gpu` measures at real sizes and asks the allocator; `auto` asks the machine.

# %% tags=["setup"]
import contextlib
import math
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from labkit.core import runtime

profile = runtime.resolve_profile(profile)
if profile == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from labkit import check, claim, hint, predict, recap, reveal
from labkit.core import memory
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.cost import model_params
from labkit.core.presets import preset
from labkit.course.mine import my_model
from labkit.kernels import dispatch, interpreter, measure
from labkit.kernels.attention import attention
from labkit.kernels.language import INTERPRETED, tl, triton
from labkit.nn import Transformer
from labkit.nn.cache import KVCache
from labkit.show import picture, style
from labkit.train import documents
from labkit.train.evaluate import losses
from labkit.train.optim import adamw
from labkit.train.recompute import DEAR, recompute
from labkit.train.tokens import TokenSource, evaluation, write_tokens

gpu = profile == "gpu"
device = runtime.device() if gpu else torch.device("cpu")
where = runtime.device_name(device)
half = runtime.dtype() if gpu else torch.float32
runtime.seed_all(seed)
draw = torch.Generator(device).manual_seed(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other
MB, GB = 10**6, 10**9


def randn(*shape, dtype=torch.float32):
    """Seeded normal numbers on this lab's device."""
    return torch.randn(*shape, generator=draw, device=device).to(dtype)


# %% [markdown]
# ## 1 · One training step
#
# The model is your own from lab 07, if you have trained one, else the one that comes with the course. It reads real
# text.

# %%
trained = my_model(device=device)
model, config = trained.model.train(), trained.model.config
scratch = tempfile.TemporaryDirectory(prefix="lab10-")
texts = documents.collect(
    train_bytes=600_000 if gpu else 40_000, validation_bytes=60_000 if gpu else 8000, seed=seed
)  # fmt: skip
files = write_tokens(Path(scratch.name), texts, trained.tokenizer)
B, S = (16, 512) if gpu else (4, 128)
ids_BS = TokenSource(files["train"], seed=seed).next(B, S).ids_BS.to(device)
print(trained)

# %% [markdown]
# First the part that can be counted before anything runs. Every module and every parameter lives in one of four rooms:

# %%
ROOMS = ("embedding, head, loss", "attention", "router", "experts")


def room(name):
    """The room of a module or a parameter."""
    found = (r for key, r in (("router", "router"), ("attention", "attention"), ("ffn", "experts")) if key in name)
    return next(found, ROOMS[0])


params = {name: sum(p.nbytes for n, p in model.named_parameters() if room(n) == name) for name in ROOMS}
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 1.9))
    axis.barh(ROOMS, [size / MB for size in params.values()], color=style.PALETTE[0])
    axis.set(xlabel="weights (MB, 10⁶ bytes), in float32")
    axis.invert_yaxis()
fig.alt = "Weights by room: " + ", ".join(f"{name} {size / MB:.2f} MB" for name, size in params.items()) + "."
display(fig)

# %% [markdown]
# One step: forward, backward, AdamW. Its learning rate is zero, so that the model stays what it is. The first step is
# not looked at, because the optimizer makes its state in it.

# %%
optimizer = adamw(model, lr=0.0)


def forward_and_back():
    model(ids_BS, labels=ids_BS).loss.backward()


def finish():
    optimizer.step()
    optimizer.zero_grad()


forward_and_back()
finish()
STATES = {
    "weights": sum(p.nbytes for p in model.parameters()),
    "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values()),
}

# %% [markdown]
# To see bytes come and go, the class below looks after **every operation**: which storages were made since it began,
# without holding them, and which of them are still alive. (A storage is the memory behind a tensor; views share one.)


# %%
def storages(tree):
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, Tensor)]


class Watch(TorchDispatchMode):
    """Bytes after each operation: of gradients, of all else made since it began, and as the allocator counts."""

    def __init__(self, parameters=()):
        super().__init__()
        self.parameters, self.made, self.rows = list(parameters), {}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        old = {s._cdata for s in storages((args, kwargs))}
        out = function(*args, **(kwargs or {}))
        self.made |= {s._cdata: (StorageWeakRef(s), s.nbytes()) for s in storages(out) if s._cdata not in old}
        look(self)
        return out


# %% [markdown]
# A look forgets what is gone, and adds up the rest. What has become a parameter's gradient is counted apart. On a GPU
# torch's allocator is asked at the same moment.


# %%
def look(watch):
    """Add a row: gradients, the rest, the rest with each storage rounded up to 512 bytes, the allocator's number."""
    watch.made = {at: (seen, size) for at, (seen, size) in watch.made.items() if not seen.expired()}
    sizes = [size for _, size in watch.made.values()]
    grads = sum(p.grad.nbytes for p in watch.parameters if p.grad is not None)
    rounded = sum(-(-size // 512) * 512 for size in sizes)
    watch.rows.append((grads, sum(sizes) - grads, rounded, torch.cuda.memory_allocated() if gpu else 0))


def most(watch):
    """The most bytes that were alive at once, gradients left out."""
    return max(rest for _, rest, *_ in watch.rows)


# %% [markdown]
# Weights, gradients and optimizer are the **states**: they do not depend on the batch. All else are activations. At the
# moment when most is in memory, what share of it are states?

# %%
p_states = predict("10.states", "At the peak of this step, states are what share of all bytes?", 0, 100, "%")

# %%
before = torch.cuda.memory_allocated() if gpu else 0
with Watch(model.parameters()) as watch:
    loss = model(ids_BS, labels=ids_BS).loss
    look(watch)
    turn = len(watch.rows)
    loss.backward()
    done = len(watch.rows)
    finish()
    look(watch)
del loss
fixed = sum(STATES.values())
totals = [fixed + grads + rest for grads, rest, *_ in watch.rows]
top = totals.index(max(totals))
p_states.against(100 * (fixed + watch.rows[top][0]) / totals[top])

# %% [markdown]
# That number belongs to this batch and this model: a small model on many tokens is mostly activations, a large one on
# few tokens hardly any.

# %% [markdown]
# The whole step, operation by operation. The forward pass climbs, because everything that is needed on the way back
# stays; the backward pass gives it back and makes gradients. Between them stands a peak that neither needs for long.

# %%
LAYERS = {
    "weights": [STATES["weights"]] * len(totals), "optimizer": [STATES["optimizer"]] * len(totals),
    "gradients": [grads for grads, *_ in watch.rows], "activations": [rest for _, rest, *_ in watch.rows],
}  # fmt: skip
with style.use():
    fig, (axis,) = picture.new(size=(9.2, 3.6))
    stacked = [[size / MB for size in sizes] for sizes in LAYERS.values()]
    axis.stackplot(range(len(totals)), *stacked, labels=LAYERS, colors=[style.PALETTE[i] for i in (0, 2, 1, 3)])
    if gpu:
        axis.plot([(fixed + row[3] - before) / MB for row in watch.rows], ":", color=style.INK, label="the allocator")
    for at, text in ((turn, "backward"), (done, "update ")):
        axis.axvline(at, color=style.INK, linewidth=1)
        side = "right" if at == done else "left"
        axis.text(at, 1.02, text, transform=axis.get_xaxis_transform(), fontsize=9, ha=side)
    axis.set(xlabel="operation", ylabel="MB (10⁶ bytes)", xlim=(0, len(totals)))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
parts = ", ".join(f"{name} {sizes[top] / MB:.1f} MB" for name, sizes in LAYERS.items())
fig.alt = f"Memory over the operations of a step; at the peak, operation {top} of {len(totals)}: {parts}."
display(fig)

# %% [markdown]
# In words, from this run:

# %%
summed = sum(max(sizes) for sizes in LAYERS.values())
said = f"The peak is {totals[top] / MB:.1f} MB at operation {top} of {len(totals)}; the backward pass begins at "
said += (
    f"{turn}. The largest sizes of the four parts add up to {100 * summed / totals[top] - 100:.0f} % more than that, "
)
said += "because gradients are complete only when the activations are gone. "
at_work, left = (watch.rows[at][1] for at in (turn - 2, turn - 1))
said += f"At the last operation of the forward pass {at_work / MB:.1f} MB of activations are alive, and "
said += f"{left / MB:.1f} when its functions have returned: the rest was theirs, above all the logits at work. "
if gpu:
    grads, rest, rounded, now = watch.rows[turn - 1]
    said += (
        f"After the forward pass {rest:,} bytes of activations are counted, {rounded:,} when each tensor is rounded "
    )
    said += f"up to 512, and the allocator has given out {now - before:,}."
else:
    said += "There is no allocator to ask on a CPU: these are the bytes of tensors, counted."
display(Markdown(said))

# %% [markdown]
# So the sum of all parts, which most calculators give, is an upper bound. How far below it a step stays depends on
# which is larger, gradients or activations.

# %% [markdown]
# Lab 00 estimated activations by a formula, without looking (`labkit.core.memory`, after Korthikanti et al. 2022). How
# far is it off? Below zero means that it says too little.

# %%
p_formula = predict("10.formula", "Formula of lab 00, against what the forward pass leaves: off by?", -80, 80, "%")

# %%
estimate = memory.training_memory(config, ids_BS.numel(), S, precision="fp32")
p_formula.against(100 * (estimate.activations / left - 1))
print(f"states: by formula {estimate.states:,} bytes, here {fixed + max(LAYERS['gradients']):,}")

# %% [markdown]
# For the states the formula is exact, up to a step counter for each tensor. For activations it follows a list of what
# each operation keeps; other implementations of the same mathematics keep other things. So the question is: who keeps
# what?

# %% [markdown]
# ### Room by room
#
# `torch.autograd.graph.saved_tensors_hooks` calls a function with every tensor that is saved for the backward pass. And
# modules can say when they begin and end. Together they tell which room saves what.


# %%
@contextlib.contextmanager
def announced(model, running):
    """Inside the block, the last of `running` is the room that is at work."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(room(name))))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
    yield
    for handle in handles:
        handle.remove()


# %% [markdown]
# Each saved storage goes on the account of the room that saved it first. Weights are no activations.


# %%
def saved_by_room(model, forward):
    """Bytes that each room keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, running = {}, [ROOMS[0]]

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.setdefault(storage.data_ptr(), (running[-1], storage.nbytes()))
        return tensor

    with announced(model, running), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return {name: sum(size for r, size in kept.values() if r == name) for name in ROOMS}


# %% [markdown]
# Which room keeps most is not the one with most parameters, necessarily. What share do the experts have of each?

# %%
p_experts = predict("10.experts", "The experts' share of all saved activations?", 0, 100, "%")

# %%
activations = saved_by_room(model, lambda: model(ids_BS, labels=ids_BS).loss)
saved = sum(activations.values())
p_experts.against(100 * activations["experts"] / saved)
print(f"saved in all: {saved:,} bytes, {100 * saved / left:.2f} % of what the forward pass left")

# %% [markdown]
# So what a forward pass leaves is what autograd saved, and nothing else. Here is the formula's list, room by room
# (that of the experts is what remains of its sum):

# %%
c, floats = config, 4 * ids_BS.numel()
listed = {
    ROOMS[0]: floats * (2 * c.d_model + 2 * c.vocab_size),
    "attention": floats * c.num_layers * (2 * c.d_model + 2 * c.head_dim * (c.num_heads + c.num_kv_heads)),
    "router": floats * c.num_sparse_layers * 2 * c.moe.num_experts,
}
listed["experts"] = estimate.activations - sum(listed.values())
for name in ROOMS:
    print(f"{name:<21} counted {activations[name] / MB:6.1f} MB, by formula {listed[name] / MB:6.1f} MB")

# %% [markdown]
# States and activations side by side. (The router is small in parameters, attention too: what they keep is another
# matter.)

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 2.6))
    starts = dict.fromkeys(ROOMS, 0.0)
    for label, times, color in (("weights", 1, 0), ("gradients", 1, 1), ("optimizer", 2, 2)):
        axis.barh(ROOMS, [times * params[r] / MB for r in ROOMS], left=list(starts.values()),
                  color=style.PALETTE[color], label=label)  # fmt: skip
        starts = {r: starts[r] + times * params[r] / MB for r in ROOMS}
    kept = [activations[r] / MB for r in ROOMS]
    axis.barh(ROOMS, kept, left=list(starts.values()), color=style.PALETTE[3], label="activations")
    ends = [starts[r] + listed[r] / MB for r in ROOMS]
    at = range(len(ROOMS))
    axis.vlines(ends, [y - 0.4 for y in at], [y + 0.4 for y in at], color=style.INK, label="by formula, to here")
    axis.set(xlabel=f"MB (10⁶ bytes), {ids_BS.numel():,} tokens")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "States and saved activations by room: " + "; ".join(
    f"{r} {4 * params[r] / MB:.1f} and {activations[r] / MB:.1f} MB (by formula {listed[r] / MB:.1f})" for r in ROOMS
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# No room is as the formula has it, and the errors have either sign. It counts the logits twice, as they are and widened
# to float32; the loss keeps one tensor of their size. It has no norms of queries and keys, which keep their inputs like
# any other, where a model has them. The normed input of router and experts is counted where it is saved first, at the
# router. And between the experts' products it counts all that torch's operations make; a fused kernel keeps a part of
# that (section 3). Added up, some of it cancels: a sum that comes out right says little about its terms.

# %% [markdown]
# States stay as they are when the batch grows; activations grow in proportion. From how many tokens on do activations
# outweigh states, in this model?

# %%
p_tokens = predict("10.tokens", "Tokens from which on this model's activations outweigh its states?", 0, 6000, "tokens")

# %%
per_token = saved / ids_BS.numel()
p_tokens.against(4 * sum(params.values()) / per_token)
big = preset("olmoe-1b-7b")
states = memory.training_memory(big, 1024, 1024).states
theirs = states * 1024 / memory.activation_bytes(big, 1024, 1024)
print(f"here {per_token:,.0f} bytes a token; OLMoE-1B-7B, by formula: {theirs:,.0f} tokens outweigh its states")

# %% [markdown]
# That is why the same advice helps one person and not another. *Checkpoint!* is advice about activations, *use another
# optimizer!* is advice about states; which of them you need can be calculated beforehand.

# %% [markdown]
# ### What the allocator adds
#
# Asking the driver for memory is slow, so torch asks for large pieces and hands out parts of them. What is freed goes
# back to torch, not to the driver. That costs three times:
#
# - **rounding**: every tensor takes a multiple of 512 bytes;
# - **the cache**: `nvidia-smi` shows what torch has *reserved*, which is more than what tensors *have*;
# - **fragmentation**: a tensor needs one piece. Free places that do not lie side by side cannot be joined.

# %% [markdown]
# A shelf of 32 places, 16 tensors of two places each, and every second one is freed: half of the shelf is empty. Now a
# tensor of four places comes.

# %% tags=["nbval-check-output"]
shelf = [i // 2 if i // 2 % 2 else None for i in range(32)]
holes = [len(run) for run in "".join("x" if taken is not None else " " for taken in shelf).split("x") if run]
print(f"free places: {shelf.count(None)}, longest run of them: {max(holes)}, needed: 4")
with style.use():
    fig, (axis,) = picture.new(size=(9.0, 1.1))
    for at, owner in [*enumerate(shelf), *((at, "new") for at in range(33, 37))]:
        shown = {None: "white", "new": style.LIT}.get(owner, style.PALETTE[0])
        axis.add_patch(Rectangle((at, 0), 0.94, 0.8, facecolor=shown, edgecolor=style.GREY))
    for color, label in ((style.PALETTE[0], "in use"), ("white", "free"), (style.LIT, "new, asked from the driver")):
        axis.add_patch(Rectangle((0, 0), 0, 0, facecolor=color, edgecolor=style.GREY, label=label))
    axis.set(xlim=(-0.2, 37.2), ylim=(0, 0.85))
    axis.set_axis_off()
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
fig.alt = "A shelf of 32 places, every second pair taken; a tensor of four places stands behind its end."
display(fig)

# %% [markdown]
# Sixteen places are free, and four in a row are not to be had. Nobody can move a tensor: its address is in use.

# %% [markdown]
# The same on a GPU, in earnest, if there is one: 32 tensors of 32 MiB, every second one freed, then one of 64 MiB.

# %%
if gpu:
    torch.cuda.empty_cache()
    before, in_use = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    held = [torch.empty(32 * 2**20, dtype=torch.uint8, device=device) for _ in range(32)]
    del held[::2]
    reserved, in_use = torch.cuda.memory_reserved(), torch.cuda.memory_allocated() - in_use
    held.append(torch.empty(64 * 2**20, dtype=torch.uint8, device=device))
    more = (torch.cuda.memory_reserved() - reserved) / 2**20
    grown = (reserved - before) / 2**20
    said = (
        f"After freeing, torch holds {grown:.0f} MiB more than before, and {in_use / 2**20:.0f} MiB more are in use; "
    )
    said += f"for 64 MiB it asked the driver for {more:.0f}. "
    if grown < 1024:
        said += f"({1024 - grown:.0f} MiB of the 1,024 found room in what it held already.)"
    del held
    torch.cuda.empty_cache()
else:
    said = "No GPU here, and so no caching allocator; the picture is all there is."
display(Markdown(said))

# %% [markdown]
# `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True` maps pages of physical memory side by side, which mends most of it.
# A run that dies "with 10 GB free" should try that first.

# %% [markdown]
# ## 2 · What an operation keeps
#
# The derivative of tanh is 1 − tanh², so its result is all that the backward pass needs. A square needs its input. A
# sum needs nothing. What torch chose to keep can be found out, and with *storages* it gets interesting: two saved
# tensors may be views of one memory, and a saved input was there anyway.

# %% [markdown]
# Write the measuring device. Count what autograd **adds** to memory: the storages that a call saves, each once, without
# those of its inputs.


# %% exercise="10.saved_bytes"
def saved_bytes(call, *inputs: Tensor) -> int:
    """The bytes that a call leaves in memory for its backward pass.

    Args:
        call: a function of the inputs that gives one tensor; weights are inputs, too.

    Returns the bytes of all storages that autograd saves during the call, each storage once and as a whole, even where
    only a view of it is saved; storages of the inputs do not count.
    """
    ### BEGIN SOLUTION
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(*inputs)
    del output
    return sum(kept.values())
    ### END SOLUTION


# %% check="10.saved_bytes"
saved_bytes = check("10.saved_bytes", saved_bytes)

# %% [markdown]
# Some elementwise operations of a tensor x, in multiples of x:

# %% tags=["nbval-check-output"]
x = torch.linspace(-1, 1, 6000).reshape(1000, 6).requires_grad_()
for name, call in {
    "x + 1": lambda x: x + 1, "x²": torch.square, "exp": torch.exp, "tanh": torch.tanh,
    "tanh(tanh)": lambda x: x.tanh().tanh(),
    "softmax": lambda x: x.softmax(-1), "SiLU": F.silu, "SiLU by hand": lambda x: x * x.sigmoid(),
    "tanh in float64": lambda x: x.double().tanh(),
}.items():  # fmt: skip
    print(f"{name:<15} keeps {saved_bytes(call, x) / x.nbytes:g} × x")

# %% [markdown]
# `F.silu` and `x * x.sigmoid()` are the same function, and one of them keeps a tensor more. Formulas cannot know such
# things; that is why theirs and the count differed.

# %% [markdown]
# Now an expert, as torch computes it: `(F.silu(x @ gate) * (x @ up)) @ down`, gate and up in one product of width 2F.
# For each token and each of the F hidden units, how many numbers stay in memory?

# %%
p_swiglu = predict("10.swiglu", "An expert of torch keeps how many numbers for each token and hidden unit?", 0, 8)

# %%
T, D, FF = 64, 32, 48
x, gate_up, down = (randn(*shape).requires_grad_() for shape in ((T, D), (2 * FF, D), (D, FF)))


def plain_expert(x, gate_up, down):
    """SwiGLU in torch's own operations."""
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


p_swiglu.against(saved_bytes(plain_expert, x, gate_up, down) / (4 * T * FF))

# %% [markdown]
# Which are they? Gate and up, the two halves of the first product, which is called the **pre-activation**; the SiLU of
# the gate; and its product with up, which the last matrix needs for its own gradient. The latter two follow from the
# former, with a few FLOPs that no matrix product takes part in.

# %% [markdown]
# ## 3 · Compute the activation again
#
# So keep the pre-activation only. In the backward pass, one look at gate and up has to give three things: the hidden
# values once more, and both gradients. With σ the sigmoid, SiLU(g) = g · σ(g), and
#
# $$ h = \mathrm{SiLU}(g)\,u, \qquad \frac{\partial L}{\partial g} = \frac{\partial L}{\partial h}\, u\,
# \mathrm{SiLU}'(g), \qquad \frac{\partial L}{\partial u} = \frac{\partial L}{\partial h}\, \mathrm{SiLU}(g). $$

# %% [markdown]
# The slope of SiLU is yours to find.


# %% exercise="10.swiglu_backward"
def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden values of a SwiGLU and its two gradients, from its pre-activation.

    Args:
        grad: ∂L/∂hidden, what comes from above to hidden = SiLU(gate) · up, [..., F]; gate, up: the same shape.

    Returns hidden, the gradient of gate and the gradient of up, [..., F] each.
    """
    ### BEGIN SOLUTION
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    return silu * up, grad * up * slope, grad * silu
    ### END SOLUTION


# %% check="10.swiglu_backward"
swiglu_backward = check("10.swiglu_backward", swiglu_backward)

# %% [markdown]
# As an operation of autograd: save the pre-activation, and in the backward pass call your function.


# %%
class LeanExpert(torch.autograd.Function):
    """SwiGLU that keeps its inputs and its pre-activation."""

    @staticmethod
    def forward(ctx, x, gate_up, down):
        pre = x @ gate_up.T
        ctx.save_for_backward(x, gate_up, down, pre)
        gate, up = pre.chunk(2, dim=-1)
        return (F.silu(gate) * up) @ down.T

    @staticmethod
    def backward(ctx, grad):
        x, gate_up, down, pre = ctx.saved_tensors
        hidden, grad_gate, grad_up = swiglu_backward(grad @ down, *pre.chunk(2, dim=-1))
        grad_pre = torch.cat([grad_gate, grad_up], dim=-1)
        return grad_pre @ gate_up, grad_pre.T @ x, grad.T @ hidden


# %% [markdown]
# The gradients are those of autograd, and half of the memory is gone:

# %% tags=["nbval-check-output"]
outcomes = []
for name, call in {"torch": plain_expert, "lean": LeanExpert.apply}.items():
    kept = saved_bytes(call, x, gate_up, down) / (4 * T * FF)
    outcomes.append(torch.autograd.grad(call(x, gate_up, down).square().sum(), (x, gate_up, down)))
    print(f"{name:<6} keeps {kept:g} numbers for each token and hidden unit")
print("same gradients:", all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*outcomes, strict=True)))

# %% [markdown]
# And the time? What is computed again is elementwise: few FLOPs, but written with torch's operations each of them is a
# trip to memory and back (lab 08). Forward and backward of the lean one, as a share of torch's:

# %%
p_lean = predict("10.lean", "The lean expert's time for forward and backward, of torch's?", 50, 300, "%")

# %%
T, D, FF = (8192, 2048, 1024) if gpu else (512, 128, 256)
x, gate_up, down = (randn(*s, dtype=half).requires_grad_() for s in ((T, D), (2 * FF, D), (D, FF)))


def both_ways(call):
    call(x, gate_up, down).sum().backward()
    x.grad = gate_up.grad = down.grad = None


timed = {
    name: measure.timing(partial(both_ways, call), device, samples=9)
    for name, call in (("torch", plain_expert), ("lean", LeanExpert.apply))
}
p_lean.against(100 * timed["lean"].median / timed["torch"].median)

# %% [markdown]
# Half of the memory, at that price. A kernel that computes all three results in one pass over the pre-activation pays
# hardly any of it, and one of `labkit.kernels.grouped_mm_backward` does just that.

# %% [markdown]
# ### A whole sparse layer

# %% [markdown]
# An expert is called with rows that were gathered for it, and each token's result is a weighted sum: two more tensors
# of N = T·K rows, the pairs of token and expert. What do the implementations of this course keep of a layer? The
# Triton kernels (`labkit.kernels.experts`) gather inside the product and save the pre-activation alone. What share of
# what torch's `grouped_mm` needs is that?

# %%
p_layer = predict("10.layer", "Our kernels keep what share of what the layer on grouped_mm keeps?", 0, 100, "%")

# %%
T, D, FF, E, K = (16_384, 2048, 1024, 64, 8) if gpu else (32, 32, 16, 4, 2)
rows, gate_up, down = (randn(*s, dtype=half).requires_grad_() for s in ((T, D), (E, 2 * FF, D), (E, D, FF)))
best, ids_TK = randn(T, E).softmax(-1).topk(K)
best.requires_grad_()


def layer(name):
    return lambda x, scores, gate_up, down: dispatch.experts(x, (ids_TK, scores), gate_up, down, implementation=name)


kept = {
    name: saved_bytes(layer(name), rows, best, gate_up, down) / (T * K * rows.element_size())
    for name in ("sorted", "grouped_mm", "triton")
}
p_layer.against(100 * kept["triton"] / kept["grouped_mm"])

# %% [markdown]
# In numbers for each pair of token and expert. The line is the pre-activation, 2·F; what the kernels have beyond it is
# the map that says which row is whose.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.2))
    axis.barh(list(kept), list(kept.values()), color=style.PALETTE[0])
    axis.axvline(2 * FF, color=style.INK, linestyle=":", label="the pre-activation, 2·F")
    axis.set(xlabel=f"numbers kept for each pair, D = {D:,}, F = {FF:,}")
    axis.invert_yaxis()
    axis.legend(loc="lower right")
told = ", ".join(f"{name} {value:,.1f}" for name, value in kept.items())
fig.alt = f"Numbers kept for each pair at D = {D}, F = {FF}: {told}."
display(fig)

# %% [markdown]
# Gathered rows, SiLU, product, weighted product: each was a tensor with a row for every pair. With K = 8 a layer works
# on eight times as many rows as there are tokens: with torch's operations that is where a sparse model's activations
# are. (On a GPU, section 1 already ran on the kernels.)

# %% [markdown]
# ## 4 · Checkpointing
#
# The same thought on a larger scale: keep the *input* of a stretch of layers, throw away everything inside, and run
# the stretch a second time when its turn comes (Chen et al. 2016). Lab 07 wrote it. Here the question is where to cut.

# %% [markdown]
# Let a model have n layers. The input of each takes a bytes, and a layer keeps b bytes for its backward pass, its input
# among them. In segments of s layers the forward pass keeps one input a segment. The backward pass takes the segments
# from the last to the first: it runs one again, whose layers then keep everything, while the inputs of all segments
# *before* it still wait. What is the most that is there at once?


# %% exercise="10.checkpoint_peak"
def checkpoint_peak(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    """The most bytes of activations at any time of a checkpointed backward pass.

    Args:
        layers: how many there are.
        input_bytes: of what goes into a layer; one such input is kept for each segment still waiting.
        layer_bytes: what one layer keeps for its backward pass, its own input included.
        segment: layers that are recomputed together; the last segment has what is left.

    Returns a whole number. Raises ValueError for a segment of less than one layer.
    """
    ### BEGIN SOLUTION
    if segment < 1:
        raise ValueError(f"a segment has {segment} layers; give 1 or more")
    peaks = [
        number * input_bytes + min(segment, layers - start) * layer_bytes
        for number, start in enumerate(range(0, layers, segment))
    ]
    return max(peaks)
    ### END SOLUTION


# %% check="10.checkpoint_peak"
checkpoint_peak = check("10.checkpoint_peak", checkpoint_peak)

# %% [markdown]
# About n/s inputs wait, and one segment keeps s·b. The sum n/s·a + s·b is smallest at
#
# $$ s = \sqrt{n\,a/b}, \qquad \text{and is then} \quad 2\sqrt{n\,a\,b}: $$
#
# the **√n law**. Take 64 layers that keep four times their input each. Which segment is best?

# %%
p_segment = predict("10.segment", "64 layers, each keeps 4 times its input: the best segment?", 1, 64, "layers", step=1)

# %%
LENGTHS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
curves = {ratio: [checkpoint_peak(64, 1, ratio, s) for s in range(1, 65)] for ratio in (1, 4, 16, 40)}
p_segment.against(1 + curves[4].index(min(curves[4])), calculated=True)

# %% [markdown]
# For several kinds of layers. The dot is the best segment of each.

# %% tags=["nbval-check-output"]
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 3.3))
    for ratio, peaks in curves.items():
        least = min(peaks)
        (line,) = axis.plot(range(1, 65), [p / (64 * ratio) for p in peaks], label=f"keeps {ratio} × its input")
        axis.plot(1 + peaks.index(least), least / (64 * ratio), "o", color=line.get_color())
        print(
            f"a layer keeps {ratio:>2} × its input: best segment {1 + peaks.index(least)}, at {least / 64 / ratio:.0%}"
        )
    axis.set(xscale="log", xlabel="layers in a segment, of 64", ylabel="peak, of no checkpointing", ylim=(0, 1.05))
    axis.set_xticks(LENGTHS, [str(s) for s in LENGTHS])
    axis.minorticks_off()
    axis.legend()
fig.alt = (
    "Peak by segment length: " + "; ".join(f"ratio {r}: best {1 + p.index(min(p))}" for r, p in curves.items()) + "."
)
display(fig)

# %% [markdown]
# (For a = b the law says 8; between 6 and 11 nothing changes, since segments are whole.) A block of a transformer keeps
# dozens of times its input, so in practice a segment is **one block**: the √n law is for layers that keep little.
# (Uneven segments can do a little better. Chen et al. also checkpoint recursively: log n, and more than one extra
# pass.)

# %% [markdown]
# Does the formula hold? To find out, we need the peak of anything that can be called: the allocator's on a GPU, else
# that of the tensors alive.


# %%
def peak_of(call, parameters=()):
    """The most bytes at once, beyond what was there: the allocator's on a GPU, else counted, without gradients."""
    if not gpu:
        with Watch(parameters) as watch:
            call()
        return most(watch)
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - base


# %% [markdown]
# Here is a chain whose layers keep exactly twice their input: `x + tanh(x @ w)` keeps its input and its tanh. Segments
# go through torch's own `checkpoint`.


# %%
DEPTH = 36
x, w = (randn(*shape).requires_grad_() for shape in (((4096, 1024), (1024, 1024)) if gpu else ((256, 64), (64, 64))))


def chain(segment):
    y = x
    for start in range(0, DEPTH, segment):
        y = checkpoint(stretch, y, min(segment, DEPTH - start), use_reentrant=False)
    y.sum().backward()
    x.grad = w.grad = None


def stretch(y, count):
    for _ in range(count):
        y = y + torch.tanh(y @ w)
    return y


# %% [markdown]
# In units of x. A formula that leaves something out should still find the best segment. By how many units of x will the
# measured peak lie above it, on average?

# %%
p_above = predict("10.above", "Measured peak minus formula, in units of x?", -5, 15, "× x")

# %%
TRIED = (1, 2, 3, 4, 6, 9, 12, 18, 36)
measured = [peak_of(partial(chain, s), (x, w)) / x.nbytes for s in TRIED]
formula = [checkpoint_peak(DEPTH, 1, 2, s) for s in TRIED]
gaps = [m - f for m, f in zip(measured, formula, strict=True)]
p_above.against(statistics.mean(gaps), min(gaps), max(gaps))
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.9))
    axis.plot(TRIED, formula, color=style.INK, label="your formula")
    axis.plot(TRIED, measured, "o", color=style.PALETTE[1], label="allocator" if gpu else "tensors alive, counted")
    axis.set(xscale="log", xlabel=f"layers in a segment, of {DEPTH}", ylabel="peak, in units of x", ylim=(0, None))
    axis.set_xticks(TRIED, [str(s) for s in TRIED])
    axis.minorticks_off()
    axis.legend()
best = TRIED[measured.index(min(measured))]
fig.alt = f"Peak by segment: formula and measurement; the least measured is {min(measured):.1f} at segments of {best}."
display(fig)

# %% [markdown]
# What lies above the line is what the backward pass itself needs: the gradient that travels down, and the results of
# the operation at work. The formula is about what is *kept*.

# %% [markdown]
# ### What to keep: time against memory
#
# Not all that is thrown away costs the same to get back. A matrix product takes long; a norm, an activation, a softmax
# takes next to nothing. **Selective** checkpointing (Korthikanti et al. 2022) keeps what is dear and computes the cheap
# again. One class can do all of it, around some blocks of our model:


# %%
class Segment(nn.Module):
    """Blocks that are recomputed together; results of operations in `keep` are kept all the same."""

    def __init__(self, blocks, keep=()):
        super().__init__()
        self.blocks, self.keep = nn.ModuleList(blocks), keep

    def run(self, x_BSD, positions, ids_BS):
        for block in self.blocks:
            x_BSD, _ = block(x_BSD, positions, None, ids_BS)
        return x_BSD

    def policy(self, context, operator, *args, **kwargs):
        dear = operator._opname.startswith(self.keep)
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    def forward(self, x_BSD, positions, cache=None, ids_BS=None):
        how = {"context_fn": partial(create_selective_checkpoint_contexts, self.policy)} if self.keep else {}
        return checkpoint(self.run, x_BSD, positions, ids_BS, use_reentrant=False, **how), None


# %% [markdown]
# A policy is a length of segments and what is kept in them; None stands for no checkpointing. On a GPU there is one
# more: keep everything, but in the memory of the *host*, and fetch it back over the bus.

# %%
ATTENTION = ("_scaled_dot_product",)
PRODUCTS = (*DEAR, *ATTENTION)
POLICIES = {
    "nothing recomputed": None, "keep products and attention": (1, PRODUCTS), "each block": (1, ()),
    "all blocks at once": (len(model.layers), ()),
}  # fmt: skip
if gpu:
    POLICIES |= {"keep attention": (1, ATTENTION), "pairs of blocks": (2, ())}


@contextlib.contextmanager
def cut(model, policy):
    """Inside the block the model's layers stand in segments."""
    layers = model.layers
    if policy is not None:
        length, keep = policy
        groups = [list(layers)[i : i + length] for i in range(0, len(layers), length)]
        model.layers = nn.ModuleList(Segment(group, keep) for group in groups)
    try:
        yield
    finally:
        model.layers = layers


# %% [markdown]
# For each of them, first the most activations at once, then the time of a step that nobody watches. Products run in
# bfloat16 where there is a GPU.


# %%
few_BS = TokenSource(files["train"], seed=seed).next(*((16, 1024) if gpu else (2, 64))).ids_BS.to(device)


def there_and_back(inside=contextlib.nullcontext):
    with torch.autocast(device.type, half, enabled=gpu), inside():
        loss = model(few_BS, labels=few_BS).loss
    loss.backward()
    model.zero_grad()


def seconds(step):
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def price(policy, **how):
    """Peak of activations in MB, and milliseconds of a step."""
    step = partial(there_and_back, **how)
    with cut(model, policy):
        if gpu:
            step()
            return peak_of(step) / MB, 1e3 * measure.timing(step, device).median
        return peak_of(step, model.parameters()) / MB, 1e3 * min(seconds(step) for _ in range(2))


# %% [markdown]
# Recomputing each block is one more forward pass. A step has one already, and a backward pass that costs two. So by how
# much longer should a step take?

# %%
p_full = predict("10.full", "Each block recomputed: a step takes how much longer?", 0, 150, "%")

# %%
prices = {name: price(policy) for name, policy in POLICIES.items()}
if gpu:
    to_host = partial(torch.autograd.graph.save_on_cpu, pin_memory=True)
    prices["kept in the host's memory"] = price(None, inside=to_host)
least, fast = prices["each block"], prices["nothing recomputed"]
p_full.against(100 * (least[1] / fast[1] - 1))

# %% [markdown]
# Left is less memory, down is less time. A point with another one to its left *and* below it need not be considered.

# %%
front = [
    n for n, (mb, ms) in prices.items() if not any(o != (mb, ms) and o[0] <= mb and o[1] <= ms for o in prices.values())
]
with style.use():
    fig, (axis,) = picture.new(size=(9.2, 3.6))
    for (name, (mb, ms)), color in zip(prices.items(), style.PALETTE, strict=False):
        look_like = {"color": color, "markerfacecolor": color if name in front else "white", "markersize": 9}
        axis.plot(mb, ms, "o", label=f"{name}: {mb:.0f} MB, {ms:.0f} ms", **look_like)
    axis.set(xlabel="peak of activations (MB)", ylabel="time of a step (ms)", ylim=(0, None))
    axis.set_xlim(0, 1.05 * max(mb for mb, _ in prices.values()))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = "; ".join(f"{name} {mb:.1f} MB, {ms:.0f} ms" for name, (mb, ms) in prices.items())
fig.alt = f"Policies by memory and time on {where}: {told}."
display(fig)
said = f"Full dots are beaten by none in both: {', '.join(front)}. Recomputing each block takes "
said += f"{least[0] / fast[0]:.0%} of the memory and {least[1] / fast[1]:.0%} of the time of keeping everything."
display(Markdown(said))

# %% [markdown]
# (On a GPU the peak is the allocator's, so finished gradients are in it; on a CPU it is counted without them. A model
# as small as this one waits for Python more than for products, and checkpointing runs more Python.)

# %% [markdown]
# What no policy touches is what lies outside of the blocks: logits, and their gradient. With a large vocabulary that is
# the next thing to cut into pieces (`labkit.train.crossentropy` does). Where blocks outweigh the logits, *all blocks at
# once* saves nothing: while its one segment runs again, everything is kept. Where the peak is at the loss, only the
# inputs that wait count, and longer segments look better than they would in a deeper model.

# %% [markdown]
# And look at what keeps products, or attention. They are dear, and still it need not be quicker than recomputing
# everything: to decide for each operation costs Python, in a small model more than the products.

# %% [markdown]
# ## 5 · The largest tensor, never written

# %% [markdown]
# Attention computes a score for every pair of tokens. Written down, that is S² numbers for each head. Take one layer of
# OLMoE-1B-7B, 16 heads of width 128, and a sequence of 4096 tokens: how many times as many numbers are that as its
# queries, keys, values and outputs together?

# %%
p_scores = predict("10.scores", "Scores, in multiples of q, k, v and output together, at S = 4096?", 0, 40, "×")

# %%
p_scores.against(16 * 4096**2 / (4 * 16 * 4096 * 128), calculated=True)

# %% [markdown]
# And torch's plain way keeps the probabilities for the backward pass, too. Lab 05 showed that fused attention avoids
# this. How can a softmax be computed without its row? Its sum and its maximum need *all* scores:
#
# $$ o = \frac{\sum_k e^{s_k - m} v_k}{\sum_k e^{s_k - m}}, \qquad m = \max_k s_k . $$

# %% [markdown]
# Take the keys block by block, and carry three things along: the maximum so far, the sum of powers so far, and the
# weighted sum of values so far, both relative to that maximum. When a block brings a higher score, what was summed so
# far was relative to the wrong number, and both sums are put right by one factor, $e^{m_\text{old} - m_\text{new}}$.
# (Milakov and Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022. Lab 08 did it for the sum alone.)

# %% [markdown]
# Nothing is divided until the last block is in. A masked score is −∞, and a query may meet a whole block of them, even
# as its first: mind −∞ − (−∞).


# %% exercise="10.absorb"
def absorb(
    top_S: Tensor, total_S: Tensor, out_Sd: Tensor, scores_SK: Tensor, values_Kd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of online softmax: S queries take in a block of K keys.

    Args:
        top_S: the largest score that each query has seen so far, −∞ if none.
        total_S: its sum of exp(score − top) over the keys seen so far, 0 if none.
        out_Sd: its sum of exp(score − top) · value over them, not divided by anything.
        scores_SK: scores of the block's keys, −∞ where a query must not look.
        values_Kd: their values.

    Returns the three of them with the block's keys taken in, relative to the new maximum.
    """
    ### BEGIN SOLUTION
    higher_S = torch.maximum(top_S, scores_SK.amax(dim=-1))
    finite_S = torch.where(higher_S.isinf(), 0.0, higher_S)  # a row that has seen nothing yet: −∞ − −∞ is no number
    shrink_S = torch.exp(top_S - finite_S)
    powers_SK = torch.exp(scores_SK - finite_S[:, None])
    return higher_S, total_S * shrink_S + powers_SK.sum(-1), out_Sd * shrink_S[:, None] + powers_SK @ values_Kd
    ### END SOLUTION


# %% check="10.absorb"
absorb = check("10.absorb", absorb)

# %% [markdown]
# Step by step, for one query with 40 keys in eight blocks. On the left its scores with the maximum so far; on the right
# what `out / total` would be if the keys ended here.

# %% tags=["nbval-check-output"]
source = torch.Generator().manual_seed(5)
scores, values = 2 * torch.randn(1, 40, generator=source), torch.randn(40, 2, generator=source)
state, history = (torch.full((1,), -math.inf), torch.zeros(1), torch.zeros(1, 2)), []
for first in range(0, 40, 5):
    state = absorb(*state, scores[:, first : first + 5], values[first : first + 5])
    history.append((state[0].item(), *(state[2] / state[1])[0].tolist()))
exact = (scores.softmax(-1) @ values)[0]
with style.use():
    fig, axes = picture.new(columns=2, size=(9.4, 2.7))
    axes[0].bar(range(1, 41), scores[0].tolist(), color=style.GREY)
    axes[0].step(range(5, 41, 5), [h[0] for h in history], where="post", color=style.LIT)
    axes[0].set(xlabel="key", ylabel="score; line: maximum")
    for i in (0, 1):
        axes[1].plot(range(5, 41, 5), [h[1 + i] for h in history], "o-", label=f"value {i}")
        axes[1].axhline(exact[i].item(), color=style.PALETTE[i], linestyle=":", label=f"exact value {i}")
    axes[1].set(xlabel="keys taken in", ylabel="out / total")
    axes[1].legend()
fig.alt = "Left: scores and their running maximum. Right: two running averages that end on the exact ones, dotted."
display(fig)
print("the same as a softmax over the whole row:", torch.allclose(state[2][0] / state[1], exact, atol=1e-6))

# %% [markdown]
# Whenever the maximum jumps, all that came before loses weight at one stroke. At the end nothing is approximate: it is
# the same sum in another order.

# %% [markdown]
# ### The kernel
#
# One program takes a tile of queries, keeps it in registers together with the three things, and walks over the keys a
# tile at a time. Scores exist for one tile only. This is FlashAttention (Dao et al. 2022; the order of loops is that of
# FlashAttention-2, Dao 2023, algorithm 1).

# %% [markdown]
# Some help with Triton: `tl.dot(a, b, input_precision="ieee")` multiplies two tiles of the **same** format, and gives
# float32; `tl.trans` transposes; `tl.max(x, axis=1)` and `tl.sum(x, axis=1)` go along rows; `range(0, last, BLOCK_K)`
# counts in a loop. Causally a program need not walk beyond its last query.


# %% exercise="10.flash_kernel"
@triton.jit
def flash_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Attention of one head; program p works on queries p · BLOCK_S to (p + 1) · BLOCK_S - 1.

    Args:
        q_ptr: [S, D], k_ptr and v_ptr: [K, D], contiguous, float32 or 16 bits wide; S and K are any numbers from 1.
        out_ptr: [S, D] float32.
        scale: multiplies the scores before the softmax.
        CAUSAL: whether query s sees keys 0 to s only (then S = K); else it sees all.
        D, BLOCK_S, BLOCK_K: powers of two, 16 or more.
    """
    ### BEGIN SOLUTION
    column = tl.arange(0, D)
    row = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + column[None, :], mask=(row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    last = K
    if CAUSAL:
        last = tl.minimum(K, (tl.program_id(0) + 1) * BLOCK_S)
    for first in range(0, last, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        at, inside = key[:, None] * D + column[None, :], (key < K)[:, None]
        k = tl.load(k_ptr + at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = (key < K)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= row[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        powers = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        v = tl.load(v_ptr + at, mask=inside, other=0.0)
        total = total * shrink + tl.sum(powers, axis=1)
        out = out * shrink[:, None] + tl.dot(powers.to(v.dtype), v, input_precision="ieee")
        top = higher
    tl.store(out_ptr + row[:, None] * D + column[None, :], out / total[:, None], mask=(row < S)[:, None])
    ### END SOLUTION


# %% check="10.flash_kernel"
flash_kernel = check("10.flash_kernel", flash_kernel)

# %% [markdown]
# The wrapper launches it once for each head, which is simple and leaves a GPU half empty when sequences are short.
# Against torch's attention, in float32:


# %% tags=["nbval-check-output"]
SIDE = 16 if INTERPRETED else 64 if torch.cuda.get_device_capability() >= (8, 0) else 32


def flash(q, k, v, causal=True):
    """Attention of H heads, [H, S, d] each, on your kernel; float32 out."""
    if causal and q.shape != k.shape:
        raise ValueError(f"causal attention needs as many queries as keys, got {tuple(q.shape)} and {tuple(k.shape)}")
    q, k, v, out = q.contiguous(), k.contiguous(), v.contiguous(), torch.empty(q.shape, device=q.device)
    (H, S, d), K = q.shape, k.shape[1]
    for h in range(H):
        flash_kernel[(triton.cdiv(S, SIDE),)](
            q[h], k[h], v[h], out[h], S, K, d**-0.5, CAUSAL=causal, D=d, BLOCK_S=SIDE, BLOCK_K=SIDE, num_stages=2
        )
    return out


for H, S, d, causal in ((1, 1, 16, False), (2, 37, 16, True), (1, 50, 32, False)):
    q, k, v = (randn(H, S, d) for _ in range(3))
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    same = torch.allclose(flash(q, k, v, causal), exact, atol=1e-4)
    print(f"{H} heads, {S:>2} tokens, causal {causal!s:<5} same as torch: {same}")

# %% [markdown]
# How many bytes go through memory? Those of the kernel can be counted access by access, in the interpreter. The plain
# way writes the scores, reads and writes them to scale them, again for the softmax, and reads them for the second
# product: 6·S² numbers beside q, k, v and output. For 256 tokens, heads of width 16, tiles of 64:

# %%
p_moved = predict("10.moved", "The plain way moves how many times the bytes of the kernel?", 1, 60, "×")


# %%
def moved_by_flash():
    q, k, v, out = (torch.randn(256, 16) for _ in range(4))
    with interpreter.watch({"q": q, "k": k, "v": v, "out": out}) as log:
        flash_kernel[(4,)](q, k, v, out, 256, 256, 0.25, CAUSAL=False, D=16, BLOCK_S=64, BLOCK_K=64)
    return sum(interpreter.moved(log))


counted = moved_by_flash() if INTERPRETED else interpreter.run(moved_by_flash, flash_kernel).result()
p_moved.against(4 * (6 * 256**2 + 4 * 256 * 16) / counted)

# %% [markdown]
# Keys and values are read once for every tile of queries, so larger tiles mean fewer bytes, and registers set the
# limit. The FLOPs are the same as before, even a few more. (For the backward pass flash attention computes the scores
# once more, from q, k and one number for each query. That is checkpointing, inside of a kernel.)

# %% [markdown]
# One more look at the softmax: it is exact. Flash attention is no approximation and no trick of the hardware, only
# another order of the same sums; that is why it could replace the plain way everywhere, without retraining a model.

# %% [markdown]
# ### Memory and time by length
#
# The plain way, torch's fused one, and on a GPU also yours and `labkit.kernels.attention`, all causal. At the longest
# sequence that the plain way is asked for, how many times the memory of the fused one does it take, forward and
# backward?

# %%
p_plain = predict("10.plain", "Plain attention's peak, in multiples of the fused one's?", 1, 300, "×")


# %%
def plain_attention(q, k, v):
    S = q.shape[1]
    hidden = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ v


def fused_attention(q, k, v):
    return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


WAYS = {"plain": plain_attention, "torch, fused": fused_attention}
if gpu:
    WAYS |= {"labkit": lambda q, k, v: attention(q[None], k[None], v[None])[0], "yours, forward": flash}
H, d, LENGTHS, MOST = (16, 128, [2**p for p in range(9, 16)], 8192) if gpu else (4, 32, [64, 128, 256, 512, 1024], 1024)

# %% [markdown]
# Memory is that of forward *and* backward (yours has no backward), time that of the forward pass.


# %%
def both(call, q, k, v):
    torch.autograd.grad(call(q, k, v).sum(), (q, k, v))


peaks, times = ({name: {} for name in WAYS} for _ in range(2))
for length in LENGTHS:
    qkv = [randn(H, length, d, dtype=half).requires_grad_() for _ in range(3)]
    for name, call in WAYS.items():
        if name == "plain" and length > MOST:
            continue
        with torch.no_grad():
            times[name][length] = measure.timing(partial(call, *qkv), device, samples=3).median
        if name != "yours, forward":
            peaks[name][length] = peak_of(partial(both, call, *qkv))
p_plain.against(peaks["plain"][MOST] / peaks["torch, fused"][MOST])

# %% [markdown]
# Both axes are logarithmic: a line that rises twice as steeply grows with the square. Left the peak of forward and
# backward, right the time of the forward pass.

# %%
panels = ((peaks, MB, "peak (MB)"), (times, 1e-3, "time (ms)"))
with style.use():
    fig, axes = picture.new(columns=2, size=(9.8, 3.2))
    for axis, (found, unit, label) in zip(axes, panels, strict=True):
        for name, mark in zip(WAYS, "os^D", strict=False):
            if found[name]:
                axis.plot(list(found[name]), [v / unit for v in found[name].values()], f"{mark}-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS], rotation=45 if gpu else 0)
        axis.minorticks_off()
    axes[1].legend()
said = "; ".join(f"{name} {1e3 * found[max(found)]:.3g} ms at {max(found):,}" for name, found in times.items())
said = f"Forward on {where}, {H} heads of width {d}: {said}."
fig.alt = (
    said + " Peaks: " + "; ".join(f"{n} {f[max(f)] / MB:.3g} MB at {max(f):,}" for n, f in peaks.items() if f) + "."
)
display(fig, Markdown(said))

# %% [markdown]
# Where yours is slower than the others, look at what they do besides: 128 queries a tile, loads that run ahead of the
# products, no mask where a tile lies wholly below the diagonal, all heads in one launch. `labkit.kernels.attention` is
# the same algorithm with these four.

# %% [markdown]
# ## 6 · The precision ladder
#
# Fewer bits are the most direct way to fewer bytes. A floating-point number has a sign, e bits of exponent for its
# *range*, and m bits of mantissa for its *spacing*: between a power of two and the next lie 2^m numbers, evenly.


# %%
class Rung:
    """A number format: bits of exponent and mantissa, and how to round float32 values to it."""

    def __init__(self, exponent, mantissa, dtype=None):
        self.exponent, self.mantissa, self.dtype = exponent, mantissa, dtype

    def round(self, x):
        """Values of a float32 tensor as the format has them, in float32."""
        if self.dtype is not None:
            return x.to(self.dtype).float()
        return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)  # tf32: ten bits stay


LADDER = {
    "float32": Rung(8, 23, torch.float32), "tf32": Rung(8, 10), "bfloat16": Rung(8, 7, torch.bfloat16),
    "float16": Rung(5, 10, torch.float16), "fp8 e5m2": Rung(5, 2, torch.float8_e5m2),
    "fp8 e4m3": Rung(4, 3, torch.float8_e4m3fn),
}  # fmt: skip

# %% [markdown]
# tf32 is no format for storing: of float32's 23 bits a tensor core keeps ten (here: rounded). To warm up: which number
# comes after 256 in bfloat16?

# %%
p_next = predict("10.next", "The next bfloat16 after 256?", 256, 264, step=0.25)

# %%
p_next.against(256 * (1 + 2**-7), calculated=True)

# %% [markdown]
# The same for all of them: the spacing at 1, and where the range ends.

# %% tags=["nbval-check-output"]
for name, rung in LADDER.items():
    info = torch.finfo(rung.dtype or torch.float32)
    about = f"{rung.exponent} + {rung.mantissa:>2} bits, spacing at 1: {2.0**-rung.mantissa:.1e}, "
    print(f"{name:<9} {about}largest {info.max:.2g}, smallest normal {info.tiny:.1e}")

# %% [markdown]
# As a picture: numbers of every magnitude are rounded; how large is the error at worst, as a share of the number? Flat
# is where a format has all its digits. At the left they fade out, and at 1 the number is gone. A line ends on the right
# where a format has nothing larger. fp8 e4m3 has no infinity: torch gives NaN there, or stays at its largest number and
# is wrong.

# %%
powers = torch.arange(-50, 24)
ones = 1 + torch.rand(len(powers), 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
sample = 2.0 ** powers[:, None] * ones
with style.use():
    fig, (axis,) = picture.new(size=(8.4, 3.2))
    for name, rung in LADDER.items():
        error = ((rung.round(sample.float()) - sample).abs() / sample).amax(1)
        finite = torch.isfinite(error) & (error <= 1) & (error > 0)
        axis.plot(powers[finite], error[finite].tolist(), "--" if name == "float16" else "-", label=name)
    axis.set(yscale="log", xlabel="magnitude, as a power of two", ylabel="largest relative error")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Relative rounding error by magnitude: flat for each format within its range, rising to 1 below it."
display(fig)

# %% [markdown]
# bfloat16 is as wide as float32 and coarse; float16 is fine and narrow; each fp8 has given up one of the two.
# Everything below follows from this picture.

# %% [markdown]
# ### A product
#
# Operands are rounded, products are added up in float32: so do tensor cores. By how much is a matrix product off, as a
# share of its size? Beside it the speed: on a GPU all rungs in their own hardware, on a CPU those formats that torch
# multiplies there.

# %%
p_product = predict("10.product", "Relative error of a product of normal matrices in bfloat16?", 0, 2, "%")

# %%
n = 4096 if gpu else 256
factors = randn(n, n), randn(n, n)


def product(name):
    """How this machine multiplies in a format; None if it does not."""
    dtype, (a, b) = LADDER[name].dtype or torch.float32, factors
    if name == "fp8 e4m3" and gpu and runtime.capability("fp8").available:
        one, left, right = torch.ones((), device=device), a.to(dtype), b.T.contiguous().to(dtype).T
        return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    if name.startswith("fp8") or (not gpu and name in ("tf32", "float16")):
        return None
    left, right = a.to(dtype), b.to(dtype)
    return lambda: left @ right


# %% [markdown]
# The error is measured on operands that were rounded and multiplied in float32, against float64.

# %%
rates, errors = {}, {}
exact = factors[0].double() @ factors[1].double()
for name, rung in LADDER.items():
    rounded = rung.round(factors[0]) @ rung.round(factors[1])
    errors[name] = 100 * ((rounded - exact).norm() / exact.norm()).item()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    if (call := product(name)) is not None:
        rates[name] = 2 * n**3 / measure.timing(call, device).median / (1e12 if gpu else 1e9)
    torch.set_float32_matmul_precision("highest")
p_product.against(errors["bfloat16"])

# %% [markdown]
# Error on the left, speed on the right. The error hardly depends on the size of the matrix, since errors of either sign
# average out as the products do.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 2.6))
    axes[0].barh(list(errors), list(errors.values()), color=style.PALETTE[1])
    axes[0].set(xscale="log", xlabel="relative error of the product (%)")
    axes[1].barh(list(errors), [rates.get(name, 0) for name in errors], color=style.PALETTE[0])
    axes[1].set(
        xlabel=f"{'10¹²' if gpu else '10⁹'} FLOP/s on {where}", yticklabels=[], xlim=(0, 1.25 * max(rates.values()))
    )
    told = {name: f"{rates[name]:,.4g}" if name in rates else "not here" for name in errors}
    for row, (name, text) in enumerate(told.items()):
        axes[1].text(rates.get(name, 0), row, f" {text}", va="center", fontsize=9)
    for axis in axes:
        axis.invert_yaxis()
fig.alt = f"A product of {n} × {n}: " + "; ".join(f"{m} off by {e:.2g} %, {told[m]}" for m, e in errors.items()) + "."
display(fig)

# %% [markdown]
# Rounding the operands to 16 bits costs a few tenths of a per cent at most, and buys speed wherever there are units for
# it. (A CPU without them is slower in bfloat16.)

# %% [markdown]
# ### A sum
#
# Products forgive; sums do not. Ten thousand numbers between 0 and 1 are added up, one after the other, and the sum so
# far is kept in the format. The right answer is about 5000. What comes out in bfloat16?

# %%
p_sum = predict("10.sum", "10,000 numbers between 0 and 1, added up in bfloat16: what comes out?", 0, 6000)


# %%
def running(terms, rung):
    """The sum so far after each term, kept in a format."""
    total, sums = torch.zeros(()), []
    for term in terms:
        total = rung.round(total + term)
        sums.append(total.item())
    return sums


terms = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
sums = {name: running(terms, LADDER[name]) for name in ("float32", "bfloat16", "float16", "fp8 e4m3")}
p_sum.against(sums["bfloat16"][-1])

# %% [markdown]
# The sum stops where half of the spacing is larger than any term, and from there on nothing arrives any more.

# %% tags=["nbval-check-output"]
exact = terms.double().sum().item()
print(f"exact {exact:.1f}; torch.sum of the terms in bfloat16 {terms.bfloat16().sum().item():g}")
print(", ".join(f"{name} {values[-1]:.6g}" for name, values in sums.items()))
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.9))
    shown = sorted({round(1.05**i) for i in range(1, 189)} | {10_000})
    for name, values in sums.items():
        axis.plot(shown, [values[i - 1] for i in shown], label=name)
    axis.set(xscale="log", yscale="log", xlabel="terms", ylabel="the sum so far")
    axis.legend()
fig.alt = "Running sums: " + ", ".join(f"{name} ends at {values[-1]:.4g}" for name, values in sums.items())
display(fig)

# %% [markdown]
# `torch.sum` took bfloat16 terms and was right up to its last rounding, because it adds up in float32. So do `tl.dot`,
# softmax, norms, and your two kernels. *Store in few bits, add up in many* is the first rule of mixed precision.

# %% [markdown]
# ### An update
#
# Training is a sum as well: a weight is its start plus all updates. Adam's updates are about as large as the learning
# rate, whatever the gradient. Say 0.0003. How many of the model's weights would *not* move, if they were kept in
# bfloat16?

# %%
p_lost = predict(
    "10.lost", "Share of the model's weights that an update of 0.0003 does not move in bfloat16?", 0, 100, "%"
)

# %%
flat = torch.cat([p.detach().flatten() for p in model.parameters()]).bfloat16()
stays = (flat.float() - 3e-4).bfloat16() == flat
p_lost.against(100 * stays.float().mean().item())

# %% [markdown]
# Those weights will not move in the next step either, nor in any other whose update is as small. Large weights are
# the first to freeze, because their spacing is wider.

# %% [markdown]
# Two ways out. A **master copy** in float32 takes the updates, and the 16 bits are rounded from it: four more bytes for
# each parameter. Or **stochastic rounding**: go up as often as the number is near to the upper neighbour. Then one of
# many small updates arrives in full, and the mean is right, without a byte (Gupta et al. 2015).

# %% [markdown]
# In bits it is short. A bfloat16 is the upper half of a float32. The lower half, as a number from 0 to 65,535, says how
# far the value is on its way to the next bfloat16.


# %% exercise="10.stochastic_round"
def stochastic_round(x: Tensor, noise: Tensor) -> Tensor:
    """Round to a neighbour in bfloat16: to the one further from zero as often as the value is near to it.

    Args:
        x: float32, any shape; finite or infinite, far from bfloat16's largest number.
        noise: int32, x's shape, uniform from 0 to 65535. A number whose lower 16 bits are L goes to the neighbour that
            is further from zero exactly if L + noise is 65536 or more.

    Returns bfloat16, x's shape.
    """
    ### BEGIN SOLUTION
    bits = x.view(torch.int32) + noise
    return (bits & -65536).view(torch.float32).to(torch.bfloat16)
    ### END SOLUTION


# %% check="10.stochastic_round"
stochastic_round = check("10.stochastic_round", stochastic_round)

# %% [markdown]
# A weight of 1 and a thousand updates of 0.001, three times. Rounded to nearest it never leaves its place.

# %%
WALKS = ("float32", "nearest", "stochastic", "stochastic", "stochastic")
dice, weights = torch.Generator().manual_seed(seed), torch.ones(len(WALKS))
walked = [weights]
for _ in range(1000):
    exact = weights + 0.001
    noise = torch.randint(65_536, exact.shape, generator=dice, dtype=torch.int32)
    weights = torch.cat([exact[:1], exact[1:2].bfloat16().float(), stochastic_round(exact[2:], noise[2:]).float()])
    walked.append(weights)
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.9))
    colors = {"float32": style.INK, "nearest": style.LIT, "stochastic": style.PALETTE[0]}
    for i, name in enumerate(WALKS):
        label = name if name not in WALKS[:i] else None
        axis.plot([w[i].item() for w in walked], color=colors[name], linewidth=1.4, label=label)
    axis.set(xlabel="updates of 0.001", ylabel="the weight")
    axis.legend()
ends = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(WALKS, weights.tolist(), strict=True))
fig.alt = f"A weight after 1000 updates: {ends}."
display(fig)

# %% [markdown]
# Rounded by chance, the weight is right on average, and no single walk is: noise is the price. A model has millions of
# weights, and their noise averages out in what it computes.

# %% [markdown]
# ### Gradients in float16
#
# float16 has digits enough and no range. Below 6·10⁻⁸ there is nothing, and gradients are small. Here are those of our
# model for one batch, in float32. How many of those that are not zero would be zero in float16?

# %%
p_zero = predict("10.zero", "Share of the model's gradients that become zero in float16?", 0, 20, "%", step=0.1)

# %%
model.zero_grad()
forward_and_back()
grads = torch.cat([p.grad.flatten() for p in model.parameters()])
grads = grads[grads != 0].cpu()
model.zero_grad()


def lost(scale):
    """Share of the gradients that a scale does not save from zero, and of those that it makes infinite, in per cent."""
    scaled = (grads * scale).half()
    return [100 * found.float().mean().item() for found in (scaled == 0, scaled.isinf())]


p_zero.against(lost(1)[0])

# %% [markdown]
# **Loss scaling** (Micikevicius et al. 2018) multiplies the loss by a large number before the backward pass, and with
# it every gradient, and divides before the update. If something becomes infinite, the step is left out and the factor
# halved.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 2.9))
    sizes, powers = grads[::8].abs().log2(), torch.arange(-60, 20)
    counts = 100 * torch.histc(sizes, 80, -60, 20) / len(sizes)
    axis.bar(powers, counts, 1.0, align="edge", color=style.GREY, label="gradients")
    axis.step(powers + 16, counts, where="post", color=style.PALETTE[0], label="× 2¹⁶")
    axis.axvspan(-60, -25, color=style.LIT, alpha=0.15, label="zero in float16")
    axis.axvline(16, color=style.LIT, linestyle=":", label="infinite from here")
    axis.set(xlabel="magnitude, as a power of two", ylabel="share of gradients (%)", xlim=(-60, 20))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
scales = {f"2^{power}": lost(2.0**power) for power in (0, 8, 16, 24)}
fig.alt = "Gradients by magnitude; zero and infinite in float16: " + "; ".join(
    f"scale {s} {z:.1f} % and {i:.2f} %" for s, (z, i) in scales.items()
) + "."  # fmt: skip
display(fig)
told = "; ".join(f"scale {s}: {z:.1f} % zero, {i:.2f} % infinite" for s, (z, i) in scales.items())
display(Markdown(f"Of the gradients that are not zero in float32: {told}."))

# %% [markdown]
# bfloat16 has float32's range and needs none of this, which is the main reason why it won.

# %% [markdown]
# ### Does it show in the loss?
#
# A small model is trained in float32 for a while, and from there on in every format, with equal steps on equal batches
# at a small learning rate, as in the last part of a run. The batches differ between seeds.


# %%
width = 256 if gpu else 64
small = ModelConfig(
    "small", len(trained.tokenizer), 4 if gpu else 2, width, num_heads=4, num_kv_heads=2, head_dim=width // 4,
    qk_norm="head", tie_embeddings=True, max_context=1024,
    moe=MoEConfig(d_model=width, d_expert=128 if gpu else 64, num_experts=8, top_k=2),
)  # fmt: skip
START, STEPS, BATCH, SEQ = (200, 40, 32, 256) if gpu else (24, 12, 4, 48)
held = evaluation(files["validation"], SEQ, 65_536 if gpu else 1536)
FORMATS = {  # what products are computed in; how weights are kept after an update; whether the loss is scaled
    "float32": (torch.float32, "float32", False),
    "weights bfloat16, nearest": (half, "nearest", False),
    "weights bfloat16, stochastic": (half, "stochastic", False),
}
if gpu:
    FORMATS |= {
        "tf32 products": ("tf32", "float32", False), "bfloat16 products": (torch.bfloat16, "float32", False),
        "float16 products, scaled loss": (torch.float16, "float32", True),
    }  # fmt: skip

# %% [markdown]
# Weights "in bfloat16" lie in float32 tensors here whose lower halves are zero after each update: the numbers are the
# same, and one loop does for all. The moments of AdamW stay in float32 everywhere.


# %%
@torch.no_grad()
def keep(model, how, dice):
    """Round all weights to bfloat16, if the format says so."""
    for p in model.parameters():
        if how == "nearest":
            p.copy_(p.bfloat16())
        elif how == "stochastic":
            noise = torch.randint(65_536, p.shape, generator=dice, dtype=torch.int32, device=device)
            p.copy_(stochastic_round(p.detach(), noise))


# %% [markdown]
# The loop itself. `GradScaler` is torch's loss scaling; switched off, it does nothing.


# %%
def go_on(net, steps, rate, form, seed):
    """Train for some steps in a format; the held-out loss, nats a token."""
    products, kept, scaled = form
    source, dice = TokenSource(files["train"], seed=seed), torch.Generator(device).manual_seed(seed)
    optimizer, scaler = adamw(net, rate), torch.amp.GradScaler(device.type, enabled=scaled)
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    narrow = products in (torch.bfloat16, torch.float16)
    for _ in range(steps):
        ids_BS = source.next(BATCH, SEQ).ids_BS.to(device)
        with torch.autocast(device.type, products if narrow else None, enabled=narrow):
            loss = net(ids_BS, labels=ids_BS).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        keep(net, kept, dice)
    torch.set_float32_matmul_precision("highest")
    return statistics.mean(losses(net, held).values())


# %% [markdown]
# With weights kept in bfloat16 and rounded to nearest, how far from float32 does the run end?

# %%
p_train = predict("10.train", "Weights in bfloat16, nearest: loss minus float32's?", -0.01, 0.05, "nats", step=0.001)

# %%
net = Transformer(small).to(device)
net.reset_parameters(torch.Generator(device).manual_seed(seed))
began = go_on(net, START, 3e-3 if gpu else 8e-3, FORMATS["float32"], seed)
start = {name: value.clone() for name, value in net.state_dict().items()}
ends = {name: [] for name in FORMATS}
for name, form in FORMATS.items():
    for other in (1, 2, 3) if gpu else (1, 2):
        net.load_state_dict(start)
        ends[name].append(go_on(net, STEPS, 3e-4, form, seed + other))
apart = {name: [e - f for e, f in zip(found, ends["float32"], strict=True)] for name, found in ends.items()}
p_train.against(statistics.mean(apart["weights bfloat16, nearest"]))

# %% [markdown]
# Each dot is a run, minus the float32 run on the same batches. The grey band is as wide as float32's own spread over
# seeds.

# %%
spread = max(ends["float32"]) - min(ends["float32"])
means = {name: statistics.mean(values) for name, values in apart.items()}
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 1.1 + 0.4 * len(apart)))
    axis.axvspan(-spread / 2, spread / 2, color=style.GREY, alpha=0.4, linewidth=0, label="spread over seeds")
    for row, values in enumerate(apart.values()):
        axis.plot(values, [row] * len(values), "o", color=style.PALETTE[row])
    axis.axvline(0, color=style.INK, linestyle=":")
    axis.set(xlabel="held-out loss minus float32's (nats a token)", yticks=range(len(apart)))
    axis.set_yticklabels(list(apart))
    axis.set_ylim(len(apart) - 0.6, -0.4)
    axis.locator_params(axis="x", nbins=6)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = ", ".join(f"{name} {mean:+.4f}" for name, mean in means.items())
fig.alt = f"Loss minus float32's after {STEPS} steps: {told}; spread of float32 over seeds {spread:.4f} nats."
display(fig)

# %% [markdown]
# In words: how much of what float32 gains in these steps is left?

# %%
gained = began - statistics.mean(ends["float32"])
left = ", ".join(f"{name} {1 - mean / gained:.0%}" for name, mean in means.items() if name != "float32")
apart_by = [abs(means[f"weights bfloat16, {how}"]) for how in ("nearest", "stochastic")]
beyond = ["more" if by > spread / 2 else "less" for by in apart_by]
said = (
    f"In {STEPS} steps float32 gains {gained:.3f} nats. Of that gain have: {left}. Nearest ends {apart_by[0]:.4f} nats "
)
said += (
    f"from float32, which is {beyond[0]} than half of its spread over seeds; stochastic {apart_by[1]:.4f}, {beyond[1]}."
)
display(Markdown(said))

# %% [markdown]
# Formats are compared on the same batches here, so that much smaller differences show than seeds would let through. And
# mind when this was measured: an update of 0.0003 is about half a spacing for many weights. Earlier in a run updates
# are larger and arrive; later, when the rate falls, more of them vanish.

# %% [markdown]
# ## 7 · Claim 6: which card is enough?

# %% [markdown]
# The guide says: one card of 16 GB is enough for a 7B model *with gradient checkpointing*; four A100-80G train it; two
# T4 serve it. Lab 00 estimated all three by formula. Now a real step is weighed: OLMoE-1B-7B, 6.9 thousand million
# parameters, AdamW in mixed precision (weights and gradients in bfloat16, master copy and moments in float32), every
# block checkpointed, one sequence.

# %% [markdown]
# That takes a card with more than 110 GB. A smaller card gets as many of the model's layers as it can hold, a CPU a
# model of two thin layers, and what is learned there is how far the formula is off.


# %%
olmoe = preset("olmoe-1b-7b")


def cut_down():
    """The largest part of OLMoE that this machine can train in float32 and bfloat16."""
    if not gpu:
        sizes = {"d_model": 128, "num_heads": 2, "num_kv_heads": 2, "head_dim": 64, "vocab_size": 2048}
        return olmoe.replace(num_layers=2, moe=olmoe.moe.replace(d_model=128, d_expert=64), **sizes)
    room = torch.cuda.mem_get_info()[0] - 6 * GB
    for layers in range(olmoe.num_layers, 0, -1):
        part = olmoe.replace(num_layers=layers)
        if memory.training_memory(part, 2048, 2048, checkpointing=True).total < room:
            return part
    raise runtime.Unavailable("not even one layer of OLMoE-1B-7B fits; give this GPU more room")


model = optimizer = net = start = rows = gate_up = down = x = w = qkv = factors = exact = grads = None  # make room
if gpu:
    torch.cuda.empty_cache()
PART, TOKENS = cut_down(), 2048 if gpu else 64
whole, formula = olmoe == PART, memory.training_memory(PART, TOKENS, TOKENS, checkpointing=True)
print(f"{model_params(PART).total / 1e6:,.0f} M parameters in {PART.num_layers} layers, {TOKENS} tokens")

# %% [markdown]
# The step, as ZeRO's convention has it. The optimizer goes from parameter to parameter, so that only one gradient at a
# time is widened to float32.


# %%
def in_bfloat16(config):
    """An untrained model whose weights are in bfloat16 from the start."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return Transformer(config)
    finally:
        torch.set_default_dtype(torch.float32)


def real_steps(config, tokens, steps=2):
    """Train for some steps in mixed precision with checkpointing."""
    net = in_bfloat16(config)
    ids_BS = torch.randint(config.vocab_size, (1, tokens), device=device)
    master = [p.detach().float() for p in net.parameters()]
    optimizers = [torch.optim.AdamW([m], lr=1e-5, fused=True) for m in master]
    for _ in range(steps):
        with recompute(net, "full"):
            net(ids_BS, labels=ids_BS).loss.backward()
        for p, m, optimizer in zip(net.parameters(), master, optimizers, strict=True):
            m.grad, p.grad = p.grad.float(), None
            optimizer.step()
            m.grad = None
            p.data.copy_(m)


# %% [markdown]
# By how much will the peak of the second step differ from the formula of lab 00, states and activations together?

# %%
p_weigh = predict("10.weigh", "Measured peak of the training step, against the formula?", -30, 60, "%")

# %%
weighed = peak_of(partial(real_steps, PART, TOKENS))
off = weighed / formula.total
p_weigh.against(100 * (off - 1))
print(f"formula {formula.total / GB:.3f} GB, of which states {formula.states / GB:.3f}; measured {weighed / GB:.3f} GB")

# %% [markdown]
# The formula counts all gradients and all activations at once; they never meet, so it is too high by the smaller of the
# two. It leaves out one gradient in float32 during the update, and what a block's backward pass needs while it runs.
# Which is larger decides the sign.

# %% [markdown]
# To serve: the weights in 16 bits, a cache for some readers of 4096 tokens, and the working memory of reading a prompt.


# %%
def real_prompt(config, readers, context):
    """Read a prompt of half the context for one of the readers, with the cache of all of them in memory."""
    net = in_bfloat16(config).eval()
    caches = [KVCache(config, 1, context, dtype=torch.bfloat16, device=device) for _ in range(readers)]
    with torch.no_grad():
        net(torch.randint(config.vocab_size, (1, context // 2), device=device), cache=caches[0])


if gpu:
    torch.cuda.empty_cache()
READERS, CONTEXT = (8, 4096) if gpu else (2, 128)
served = peak_of(partial(real_prompt, PART, READERS, CONTEXT))
by_formula = memory.inference_memory(PART, READERS, CONTEXT).total
print(f"to serve {READERS} readers: formula {by_formula / GB:.3f} GB, measured {served / GB:.3f} GB")

# %% [markdown]
# The difference is working memory: while a prompt is read, the largest layer's activations and the logits of every
# position are there for a moment. A server reads long prompts in pieces for that reason (lab 14).

# %% [markdown]
# Into the ledger. If the whole model was weighed, the entry is a measurement. If only a part was, it is lab 00's
# formula for the whole model, from as it stands to as far off as it was here, and the entry says *estimated*.

# %%
step = memory.training_memory(olmoe, 2048, 2048, checkpointing=True)
serve = memory.inference_memory(olmoe, 8, 4096).total
how = "OLMoE-1B-7B, AdamW in mixed precision, every block checkpointed, 1 × 2,048 tokens"


def enter(measure, formula, measured, ratio, condition):
    """A measurement if the whole model was weighed, else the formula as far as it was off."""
    if whole:
        return claim(6, measured / GB, measure=measure, condition=f"{condition}, {where}'s allocator")
    low, high = sorted((formula / GB, formula * ratio / GB))
    part = f"by formula, to as far off as it was with {PART.num_layers} layers on {where}"
    about = {"low": low, "high": high, "estimated": True, "condition": f"{condition}, {part}"}
    return claim(6, formula / GB, measure=measure, **about)


entries = [
    enter("train_16gb", step.total, weighed, off, how),
    enter("train_4xa100", step.total, weighed, off, f"{how}, everything once, as sharding spreads it"),
    enter("serve_2xt4", serve, served, served / by_formula, "OLMoE-1B-7B in 16 bits, 8 readers of 4,096 tokens"),
]

# %% [markdown]
# Beside the bounds. The first bar is the formula's, in its parts; what is estimated reaches from one end of its
# interval to the other.

# %%
stack = {"weights": step.weights, "gradients": step.gradients, "master copy": step.master}
stack |= {"optimizer": step.optimizer, "activations": step.activations}
with style.use():
    fig, (axis,) = picture.new(size=(9.2, 2.7))
    start = 0.0
    for (name, size), color in zip(stack.items(), (0, 1, 4, 2, 3), strict=True):
        axis.barh("by formula, to train", size / GB, left=start, color=style.PALETTE[color], label=name)
        start += size / GB
    for entry, label in zip(entries[1:], ("to train", "to serve"), strict=True):
        row = f"{'estimated' if entry.estimated else 'measured'}, {label}"
        axis.barh(row, entry.low, color=style.PALETTE[6])
        axis.barh(row, entry.high - entry.low, left=entry.low, color=style.GREY)
        found = f"{entry.low:.1f} to {entry.high:.1f}" if entry.estimated else f"{entry.value:.1f}"
        axis.text(entry.high + 3, row, f"{found} GB", va="center", fontsize=9, backgroundcolor="white")
    for bound, text, side in ((16, "16 GB", "right"), (32, "2 × T4", "left"), (320, "4 × A100", "right")):
        axis.axvline(bound, color=style.INK, linestyle="--", linewidth=1)
        axis.text(bound, 1.03, f" {text} ", transform=axis.get_xaxis_transform(), ha=side, fontsize=9)
    axis.set(xlabel="GB (10⁹ bytes)", xlim=(0, 340))
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "; ".join(f"{e.measure}: {e.value:.1f} GB, {e.verdict}" for e in entries) + "."
display(fig)

# %% [markdown]
# Checkpointing does its work: activations are a sliver. It cannot touch the rest, and the rest alone is several times
# the card that the guide names.

# %% [markdown]
# ## 8 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("10")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 6**, hardware, with the cards of section 7 as the evidence of this machine:
#
# - *16 GB with checkpointing*: sixteen bytes a parameter stand there before the first token, so no way of checkpointing
#   brings a 7B model near it. Fewer bytes a parameter do, and lab 11 has some.
# - *Four A100-80G*: in bytes there is room, if the states are shared out between the cards. Each of them holding
#   everything is another claim, and false.
# - *Two T4*: for a few readers. With many, the cache decides (lab 00).
#
# **Gradient checkpointing** is worth what section 4 measured: a large part of the activations, for one more forward
# pass in FLOPs, and for the time that is written there. It is an answer to long sequences and large batches, not to a
# large model.

# %% [markdown]
# ## Further reading
#
# - Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174; Korthikanti et al. 2022,
#   *Reducing Activation Recomputation in Large Transformer Models*, arXiv 2205.05198.
# - Milakov and Gimelshein 2018, *Online normalizer calculation for softmax*, arXiv 1805.02867; Rabe and Staats 2021,
#   *Self-attention Does Not Need O(n²) Memory*, arXiv 2112.05682.
# - Dao et al. 2022, *FlashAttention*, arXiv 2205.14135; Dao 2023, *FlashAttention-2*, arXiv 2307.08691.
# - Micikevicius et al. 2018, *Mixed Precision Training*, arXiv 1710.03740; Kalamkar et al. 2019, *A Study of BFLOAT16
#   for Deep Learning Training*, arXiv 1905.12322; Micikevicius et al. 2022, *FP8 Formats for Deep Learning*, arXiv
#   2209.05433.
# - Gupta et al. 2015, *Deep Learning with Limited Numerical Precision*, arXiv 1502.02551; Zamirai et al. 2020,
#   *Revisiting BFloat16 Training*, arXiv 2010.06192: stochastic rounding of updates.
# - Guo et al. 2025, *SonicMoE*: an MoE layer that saves its pre-activation and little else.
