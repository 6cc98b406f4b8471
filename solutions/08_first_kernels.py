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
# # 08 · First kernels: a roofline, Triton, a fused router
#
# So far torch has done the work, one operation at a time. Each of them reads its inputs from memory and writes its
# result back, and for most of what stands between two matrix products that traffic *is* the time. In this lab you
# measure what your machine can do at best, and then write the operations yourself, so that what belongs together stays
# on the chip: from the sum of two vectors to a router that is one single kernel.
#
# After this lab you can
#
# - measure the two ceilings of a machine, and say which of them an operation will hit before you run it;
# - write Triton kernels with masks, blocks and strides: a sum, a softmax, the K largest, a fused router;
# - count the bytes that a kernel moves, from the kernel that really ran;
# - debug kernels on a CPU, and know five things that the interpreter will not tell you;
# - read what a profiler says about launches, and say what coalescing, occupancy and CUDA graphs are good for.
#
# It takes a little under two hours. Without a GPU every kernel runs in Triton's interpreter, in NumPy: right, and slow.
# Times of kernels need a GPU.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** With `cpu`, kernels are
# interpreted, on tiny tensors in float32; `gpu` compiles them and measures at the sizes of published models; `auto`
# asks the machine. Which of the two it is must be known before Triton is imported, hence the order.

# %% tags=["setup"]
import os
import signal
from functools import partial
from math import nan

os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # the profiler's own log stays out of the notebook

import torch
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle
from torch.profiler import ProfilerActivity, profile as profiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.core import hardware, runtime

profile = runtime.resolve_profile(profile)
if profile == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from labkit import check, hint, predict, recap, reveal
from labkit.core.config import MoEConfig
from labkit.kernels import dispatch, guard, interpreter, measure
from labkit.kernels.language import INTERPRETED, tl, triton
from labkit.nn.oracle import hf_route
from labkit.show import picture, style

gpu = profile == "gpu"
device = runtime.device() if gpu else torch.device("cpu")
where = runtime.device_name(device)
runtime.seed_all(seed)
draw = torch.Generator(device).manual_seed(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other


def randn(*shape, dtype=torch.float32):
    """Seeded normal numbers on this lab's device."""
    return torch.randn(*shape, generator=draw, device=device).to(dtype)


# %% [markdown]
# ## 1 · Two ceilings
#
# A GPU is a hundred or so small processors (*streaming multiprocessors*, SM). Each has registers and a piece of shared
# memory that nobody else sees; all share one L2 cache; behind it lies the memory in which tensors live. The nearer, the
# faster, and the smaller.

# %% [markdown]
# How much smaller? On a GPU the cell below asks the driver. Without one it takes an H100: its memory and bandwidth from
# the course's table of datasheets (`labkit.core.hardware`), what is on the chip from NVIDIA's Hopper tuning guide.

# %%
if gpu:
    chip = torch.cuda.get_device_properties(device)
    SMS, THREADS = chip.multi_processor_count, chip.max_threads_per_multi_processor
    REGISTERS = getattr(chip, "regs_per_multiprocessor", 65_536)
    SHARED = getattr(chip, "shared_memory_per_multiprocessor", 228 * 2**10)
    L2, MEMORY = chip.L2_cache_size, chip.total_memory
    about = f"{chip.name}, as its driver says"
else:
    SMS, REGISTERS, THREADS, SHARED, L2 = 132, 65_536, 2048, 228 * 2**10, 50 * 2**20
    MEMORY, about = hardware.gpu("H100-80GB").memory, "an H100, from its documents"
levels = {"registers": 4 * REGISTERS * SMS, "shared memory": SHARED * SMS, "L2 cache": L2, "memory": MEMORY}
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.5))
    axis.barh(list(levels), [size / 2**20 for size in levels.values()], color=style.PALETTE[0])
    for name, size in levels.items():
        axis.text(size / 2**20 * 1.1, name, f"{size / 2**20:,.0f} MiB", va="center", fontsize=10)
    axis.set(xscale="log", xlabel=f"MiB in all, {about}", xlim=(1, 1e6))
    axis.invert_yaxis()
fig.alt = "Sizes on a log scale: " + ", ".join(f"{n} {s / 2**20:,.0f} MiB" for n, s in levels.items()) + "."
display(fig)

# %% [markdown]
# All registers together hold about as much as the L2 cache, and neither is a thousandth of the memory. A tensor of any
# size comes through the narrow door again with every operation.

# %% [markdown]
# ### How wide is the door?
#
# Copying does nothing but move bytes. We copy tensors of growing size on **this** machine, each many times in a row, so
# that small ones may stay in a cache.

# %%
p_copy = predict("08.copy", "The fastest of these copies moves how many times as many bytes/s as the largest?", 1, 30)

# %%
SIZES = [2**power for power in range(12, 32 if gpu else 27)]
copies = measure.copy_rates(SIZES, device)
p_copy.against(max(copies.values()) / copies[SIZES[-1]])

# %% [markdown]
# From left to right: at first the call itself takes longer than the copy. Then the caches show what they can do. At the
# right end nothing but memory is left, and that number is the ceiling.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.9))
    axis.plot([size / 2**20 for size in SIZES], [rate / 1e9 for rate in copies.values()], "o-")
    axis.axhline(copies[SIZES[-1]] / 1e9, color=style.INK, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="MiB read and written", ylabel="10⁹ bytes/s")
fig.alt = (
    f"Rate of a copy by its size on {where}: the best is {max(copies.values()) / 1e9:.3g}, the largest "
    f"{copies[SIZES[-1]] / 1e9:.3g} · 10⁹ bytes/s."
)
display(fig)

# %% [markdown]
# ### How fast does it calculate?
#
# The other ceiling is arithmetic, and nothing gets nearer to it than the product of two large matrices: 2·n³ FLOPs on
# 3·n² numbers. Divide one ceiling by the other and you have the **ridge**: so many FLOPs a machine can do in the time
# in which one byte arrives.

# %%
p_ridge = predict("08.ridge", "How many FLOPs does this machine do in the time of one byte?", 0, 400, "FLOPs a byte")

# %%
fast = runtime.dtype() if gpu else torch.float32
products = measure.matmul_rates((1024, 2048, 4096, 8192) if gpu else (64, 128, 256, 512, 1024), fast, device)
ceiling = measure.ceilings(copies, products)
p_ridge.against(ceiling.ridge)
print(f"{where}, {str(fast).removeprefix('torch.')}:", end=" ")
print(f"{ceiling.flops / 1e12:.3g} TFLOP/s, {ceiling.bandwidth / 1e12:.3g} TB/s")

# %% [markdown]
# An operation that does fewer FLOPs with each byte than that waits for memory. Williams, Waterman and Patterson (2009)
# draw it as a roof over the *intensity* I, the FLOPs for each byte moved:
#
# $$ \text{attainable FLOP/s} = \min(\text{peak}, \; \text{bandwidth} \cdot I),
# \qquad t \ge \max\left(\frac{\text{FLOPs}}{\text{peak}}, \frac{\text{bytes}}{\text{bandwidth}}\right) . $$

# %% [markdown]
# You write it for the operation that matters most: [M, K] times [K, N]. Count the least that could be moved, each
# operand once and the result once.


# %% exercise="08.matmul_bound"
def matmul_bound(
    M: int, K: int, N: int, itemsize: int, peak_flops: float, bandwidth: float
) -> tuple[float, float, str]:
    """The least time of a matrix product, if arithmetic and traffic overlap perfectly.

    Args:
        M, K, N: the product of [M, K] and [K, N]; a multiplication and an addition are two FLOPs.
        itemsize: bytes a number, in both operands and in the result.
        peak_flops: FLOP/s; bandwidth: bytes/s.

    Returns seconds, the intensity in FLOPs a byte, and what binds: "memory" or "compute" (also if both are equal).
    """
    ### BEGIN SOLUTION
    flops = 2 * M * N * K
    moved = itemsize * (M * K + K * N + M * N)
    computing, moving = flops / peak_flops, moved / bandwidth
    return max(computing, moving), flops / moved, "compute" if computing >= moving else "memory"
    ### END SOLUTION


# %% check="08.matmul_bound"
matmul_bound = check("08.matmul_bound", matmul_bound)

# %% [markdown]
# Why mixtures of experts care: an expert is a small matrix, and it gets only the tokens that were sent to it. Take one
# of OLMoE's up-projections, 2048 to 1024, in bfloat16, on an H100 as its datasheet has it. From how many tokens on is
# it arithmetic that binds?

# %%
p_tokens = predict("08.tokens", "From how many tokens on is that product bound by compute?", 1, 2000, "tokens")

# %%
h100 = hardware.gpu("H100-80GB")
bound = partial(matmul_bound, K=2048, N=1024, itemsize=2, peak_flops=h100.tflops * 1e12, bandwidth=h100.bandwidth)
p_tokens.against(next(tokens for tokens in range(1, 10_000) if bound(tokens)[2] == "compute"), calculated=True)

# %% [markdown]
# Below that a batch of tokens costs what *one* token costs: the weights have to come in, whoever asks.

# %% tags=["nbval-check-output"]
for tokens in (1, 16, 64, 256, 1024, 4096):
    seconds, intensity, binds = bound(tokens)
    print(f"{tokens:>5} tokens: at least {1e6 * seconds:6.2f} µs, {intensity:6.1f} FLOPs a byte, bound by {binds}")

# %% [markdown]
# ### Real operations under the roof
#
# Now operations of a sparse layer as torch computes them. For each we count its FLOPs and the least bytes it could move
# (inputs once, outputs once) and measure its time. In a softmax an exponential counts as one FLOP, in a router a
# comparison does; it will not matter.

# %%
T, E, K = (16_384, 128, 8) if gpu else (2048, 64, 8)
N, ROWS, WIDE, SIDE, D, FF, MANY = (
    (2**27, 8192, 4096, 8192, 2048, 1024, 4096) if gpu else (2**22, 512, 1024, 512, 256, 128, 512)
)


def eager_route(logits_TE, top_k, norm_topk=True):
    """Softmax, top-k, renormalise: four operations of torch."""
    scores_TE = logits_TE.softmax(dim=-1)
    weights_TK, ids_TK = scores_TE.topk(top_k, dim=-1)
    if norm_topk:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return ids_TK, weights_TK


def expert(x_TD, gate_up, down):
    """SwiGLU in three operations."""
    gate, up = (x_TD @ gate_up).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ down


# %% [markdown]
# Of these, the router is the one to watch. It reads one row of logits a token and writes 2·K numbers. Which share of
# its roof does torch reach with it?

# %%
p_share = predict("08.share", "Eager router: what share of its roof?", 0, 100, "%")

# %%
x, y, rows, logits = randn(N), randn(N), randn(ROWS, WIDE), randn(T, E)
a, b, gate_up, down = (randn(*s, dtype=fast) for s in ((SIDE, SIDE), (SIDE, SIDE), (D, 2 * FF), (FF, D)))
few, many, size = randn(8, D, dtype=fast), randn(MANY, D, dtype=fast), fast.itemsize
sums, shares = torch.empty_like(x), torch.empty_like(rows)  # room for results, so that no time goes into finding it
operations = {  # a call, its FLOPs, the least bytes
    "vector add": (lambda: torch.add(x, y, out=sums), N, 12 * N),
    "softmax": (lambda: torch.softmax(rows, -1, out=shares), 5 * rows.numel(), 8 * rows.numel()),
    "router": (lambda: eager_route(logits, K), (5 + K) * T * E, 4 * T * E + 12 * T * K),
    "matrix product": (lambda: a @ b, 2 * SIDE**3, 3 * size * SIDE**2),
    "expert, 8 tokens": (lambda: expert(few, gate_up, down), 48 * D * FF, size * (3 * D * FF + 16 * D)),
    f"expert, {MANY} tokens": (
        lambda: expert(many, gate_up, down), 6 * MANY * D * FF, size * (3 * D * FF + 2 * MANY * D)
    ),
}  # fmt: skip
points = {}
for name, (call, flops, moved) in operations.items():
    took = measure.timing(call, device, cold=True).median
    roof = hardware.roofline(flops, moved, ceiling.flops, ceiling.bandwidth)
    points[name] = (roof.intensity, flops / took, roof.seconds / took)
p_share.against(100 * points["router"][2])

# %% [markdown]
# The roof is the line; each dot is an operation; what is missing between a dot and the line above it is what a better
# implementation could win.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 3.8))
    span = [0.05, ceiling.ridge, 20 * ceiling.ridge]
    axis.plot(span, [min(ceiling.flops, i * ceiling.bandwidth) / 1e9 for i in span], color=style.INK)
    for (name, (intensity, rate, share)), color in zip(points.items(), style.PALETTE, strict=False):
        roof = min(ceiling.flops, intensity * ceiling.bandwidth)
        axis.plot([intensity] * 2, [rate / 1e9, roof / 1e9], ":", color=color, linewidth=1.2)
        axis.plot(intensity, rate / 1e9, "o", color=color, label=f"{name}: {share:.0%}")
    axis.set(xscale="log", yscale="log", xlabel="FLOPs for each byte that must be moved", ylabel="10⁹ FLOP/s")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), title="share of the roof")
reached = ", ".join(f"{name} {share:.0%}" for name, (_, _, share) in points.items())
fig.alt = f"Roofline of {where}, ridge at {ceiling.ridge:.3g} FLOPs a byte. Shares of the roof: {reached}."
display(fig)

# %% [markdown]
# Left of the ridge everything is bound by memory; there FLOPs are free. An operation that reaches little of its roof
# *there* moves more bytes than it must, or lets the memory wait while it does something else. The router does both, and
# you are going to mend it. (More than 100 % means that part of the data came from a cache, or that a copy moves more
# than is counted: a CPU reads a line before it overwrites it.)

# %% [markdown]
# ## 2 · One kernel, many programs
#
# A Triton **kernel** is a function that is written once and runs as many **programs** at the same time. Each has a
# number, its *program id*, and nothing else tells it what to do: it works out from that number which piece of memory is
# its own.

# %% [markdown]
# Inside, everything is a block: `tl.arange(0, BLOCK)` is a vector of BLOCK places, a pointer plus such a vector is a
# vector of pointers, and `tl.load` fetches all of them at once.

# %% [markdown]
# BLOCK must be a power of two and is known when the kernel is compiled (`tl.constexpr`). Tensors have any length. So
# the last block mostly reaches beyond the end, and a **mask** says which lanes are real: a masked lane loads nothing
# and stores nothing.

# %% [markdown]
# Write the sum of two vectors. The check launches your kernel with poison around every tensor; the next section shows
# why. Tensors arrive as pointers to their first element.


# %% exercise="08.add_kernel"
@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out = x + y, element by element; program p works on elements p · BLOCK to (p + 1) · BLOCK - 1.

    Args:
        x_ptr, y_ptr, out_ptr: n elements each, contiguous.
        n: how many; any number, and there may be more programs than needed.
        BLOCK: elements a program, a power of two.
    """
    ### BEGIN SOLUTION
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside)
    y = tl.load(y_ptr + at, mask=inside)
    tl.store(out_ptr + at, x + y, mask=inside)
    ### END SOLUTION


# %% check="08.add_kernel"
add_kernel = check("08.add_kernel", add_kernel)

# %% [markdown]
# A kernel knows nothing of tensors: no shapes, no devices, no promises. All of that is owned by its **wrapper**, a
# plain function right beside it. `kernel[grid](…)` starts the programs; the grid says how many.


# %% tags=["nbval-check-output"]
def add(x, y, block=1024):
    """The sum of two tensors of equal shape, dtype and device."""
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(f"x is {tuple(x.shape)} of {x.dtype}, y {tuple(y.shape)} of {y.dtype}; give two alike")
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), block),)](x, y, out, x.numel(), BLOCK=block)
    return out


for shape in ((1,), (1000,), (3, 5, 7)):
    x, y = randn(*shape), randn(*shape)
    print(f"{shape!s:<10} same as torch: {torch.equal(add(x, y), x + y)}")

# %% [markdown]
# ### Seeing memory
#
# Which program touches what? Under the interpreter that can be *noted*: `interpreter.watch` writes down every address
# before it is touched. Beside your kernel runs the same one without a mask. It is given room to err: its ten elements
# lie inside a tensor of sixteen.


# %%
@triton.jit
def bare_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at) + tl.load(y_ptr + at))


def accesses():
    found = []
    for kernel in (add_kernel, bare_kernel):
        x, y, out = (torch.ones(16) for _ in range(3))
        with interpreter.watch({"x": x, "y": y, "out": out}) as log:
            kernel[(3,)](x, y, out, 10, BLOCK=4)
        found.append([(a.buffer, a.program[0], a.offsets.tolist()) for a in log])
    return found


# %% [markdown]
# Where kernels are compiled, the interpreter needs a process of its own; `interpreted` sees to that. (On a CPU it just
# calls the function.)


# %%
def interpreted(function, *kernels):
    """What a function returns when the kernels it launches are interpreted."""
    return function() if INTERPRETED else interpreter.run(function, *kernels).result()


def memory(axis, log, n, title):
    """One row of cells a tensor; a cell has the colour of the program that touches it."""
    for row, name in enumerate(("x", "y", "out")):
        for at in range(12):
            by = [program for buffer, program, offsets in log if buffer == name and at in offsets]
            face = style.PALETTE[by[0]] if by else "white"
            edge = style.LIT if by and at >= n else face if by else style.GREY
            axis.add_patch(Rectangle((at, row), 0.9, 0.8, facecolor=face, edgecolor=edge, linewidth=2))
            axis.text(at + 0.45, row + 0.4, str(at), ha="center", va="center", color="white" if by else style.GREY)
    axis.axvline(n - 0.05, color=style.INK, linestyle=":")
    axis.set(title=title, xlim=(-0.2, 12.2), ylim=(3, -0.2), xticks=[], yticks=[0.4, 1.4, 2.4])
    axis.set_yticklabels(["x", "y", "out"])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.grid(False)


with_mask, bare = interpreted(accesses, add_kernel, bare_kernel)
with style.use():
    fig, axes = picture.new(columns=2, size=(9.6, 2.4))
    memory(axes[0], with_mask, 10, "with a mask: n = 10")
    memory(axes[1], bare, 10, "without: two lanes too far")
fig.alt = (
    "Twelve cells each of x, y and out. Programs 0, 1 and 2 touch cells 0 to 3, 4 to 7 and 8 to 9; without a mask "
    "program 2 also touches cells 10 and 11, which lie beyond the end."
)
display(fig)

# %% [markdown]
# Every colour is a program. Nobody said in which order they run, and nothing may depend on it.

# %% [markdown]
# The same notes say what a kernel costs. How many bytes does the sum of two vectors of a thousand float32 move?

# %%
p_bytes = predict(
    "08.bytes", "The sum of two vectors of 1000 float32: how many bytes are moved?", 1000, 20_000, "bytes"
)


# %%
def sum_of_a_thousand():
    x, y, out = (torch.ones(1000) for _ in range(3))
    with interpreter.watch({"x": x, "y": y, "out": out}) as log:
        add_kernel[(4,)](x, y, out, 1000, BLOCK=256)
    return interpreter.moved(log)


p_bytes.against(sum(interpreted(sum_of_a_thousand, add_kernel)))

# %% [markdown]
# Twelve bytes for one FLOP: deep in the left of the roofline. No trick makes it faster than a copy.

# %% [markdown]
# And how fast is yours? That depends on where you are. On a GPU the picture shows its rate by block size, against the
# copy from above.

# %% [markdown]
# Without one it shows what interpreting costs: programs run **one after another**, so the time grows with their number.
# No time of an interpreted kernel says anything about a GPU, and none is shown below.

# %%
if gpu:
    BLOCKS, x, y = (64, 128, 256, 512, 1024, 2048, 4096), randn(2**26), randn(2**26)
    seen = [12 * 2**26 / measure.timing(partial(add, x, y, block), device, cold=True).median / 1e9 for block in BLOCKS]
    labels = {"xlabel": "BLOCK, elements a program", "ylabel": "10⁹ bytes/s"}
else:
    BLOCKS, x, y = (1, 2, 4, 8, 16, 32), randn(1024), randn(1024)
    seen = [1e3 * measure.timing(partial(add, x, y, 1024 // programs), samples=3).median for programs in BLOCKS]
    labels = {"xlabel": "programs", "ylabel": "ms, interpreted"}
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.7))
    axis.plot(BLOCKS, seen, "o-")
    if gpu:
        axis.axhline(ceiling.bandwidth / 1e9, color=style.INK, linestyle=":")
    axis.set(xscale="log" if gpu else "linear", ylim=(0, None), **labels)
    axis.set_xticks(BLOCKS, [str(block) for block in BLOCKS])
    axis.minorticks_off()
fig.alt = f"Your sum on {where}: {labels['ylabel']} from {seen[0]:.3g} to {seen[-1]:.3g} over {labels['xlabel']}."
display(fig)

# %% [markdown]
# ## 3 · Five things the interpreter does not say
#
# `TRITON_INTERPRET=1` makes a kernel a NumPy program: `print` works in it, so does a debugger. That is how you develop
# without a GPU, and it pays to know what it hides. If the notebook's process ever dies on you ("kernel died"), run it
# again from the top, put the suspicious call into `guard.launch`, as the checks of this lab do, and read what it says.

# %% [markdown]
# **One: bfloat16 is silently wrong.** NumPy has no such format, so the interpreter carries its bits as integers. Before
# you look: what is the sum of 1 to 8?

# %%
p_bf16 = predict("08.bf16", "1 + 2 + … + 8, in bfloat16, as the interpreter has it?", 0, 100)


# %%
@triton.jit
def total_kernel(x_ptr, out_ptr, WIDEN: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    if WIDEN:
        x = x.to(tl.float32)
    tl.store(out_ptr, tl.sum(x, axis=0))


def totals():
    found = {}
    for name, dtype, widen in (("float16", torch.float16, False), ("bfloat16", torch.bfloat16, False),
                               ("bfloat16, widened after the load", torch.bfloat16, True)):  # fmt: skip
        x, out = torch.arange(1, 9).to(dtype), torch.zeros(1)
        total_kernel[(1,)](x, out, WIDEN=widen, BLOCK=8)
        found[name] = out.item()
    return found


sums = interpreted(totals, total_kernel)
p_bf16.against(round(sums["bfloat16"], 6))

# %% [markdown]
# No error, no warning. A product of matrices (`tl.dot`) goes wrong in the same way.

# %% tags=["nbval-check-output"]
for name, value in sums.items():
    print(f"{name:<33} {value:.6g}")

# %% [markdown]
# So everything here is float32 on a CPU, and a kernel that should take bfloat16 widens right after the load, which it
# should do anyway: sums want float32.

# %% [markdown]
# **Two: `tl.device_assert` never fails.** The interpreter skips it. (A GPU skips it as well, unless `TRITON_DEBUG=1` is
# set.)


# %% tags=["nbval-check-output"]
@triton.jit
def positive_kernel(x_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.device_assert(x > 0, "every x must be positive")
    tl.store(x_ptr + tl.arange(0, BLOCK), x + 1)


def asserted():
    x = torch.tensor([-3.0, -2.0, -1.0, 0.0])
    positive_kernel[(1,)](x, BLOCK=4)
    return x.tolist()


print("nothing was raised, and x became", interpreted(asserted, positive_kernel))

# %% [markdown]
# **Three: no race ever shows.** Here every program adds its part into one element, with a load and a store. Programs of
# the interpreter wait for each other, so the sum is right. On a GPU two of them load before either stores, and one
# addition is lost. The notes of the interpreter can tell all the same: an element that one program writes and another
# touches.


# %% tags=["nbval-check-output"]
@triton.jit
def collect_kernel(x_ptr, out_ptr, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    part = tl.sum(tl.load(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)), axis=0)
    if ATOMIC:
        tl.atomic_add(out_ptr, part)
    else:
        tl.store(out_ptr, tl.load(out_ptr) + part)


def collected():
    found = []
    for atomic in (False, True):
        x, out = torch.ones(12), torch.zeros(1)
        with interpreter.watch({"x": x, "out": out}) as log:
            collect_kernel[(3,)](x, out, ATOMIC=atomic, BLOCK=4)
        found.append((atomic, out.item(), len(interpreter.races(log))))
    return found


for atomic, value, races in interpreted(collected, collect_kernel):
    print(f"{'atomic_add    ' if atomic else 'load and store'}: sum {value:g} of 12, elements with a race: {races}")

# %% [markdown]
# What a GPU makes of these two, the sum in bfloat16 and the race, now of 4096 programs, if there is one here:

# %%
if gpu:
    ones, found = torch.ones(4096 * 4, device=device), torch.zeros(2, device=device)
    for atomic in (False, True):
        collect_kernel[(4096,)](ones, found[int(atomic) :], ATOMIC=atomic, BLOCK=4)
    raced, right = found.tolist()
    total_kernel[(1,)](torch.arange(1, 9, device=device).bfloat16(), found, WIDEN=False, BLOCK=8)
    said = f"On {where}: 1 + 2 + … + 8 in bfloat16 is {found[0].item():g}. The sum by load and store is **{raced:g}**, "
    display(Markdown(said + f"by atomics {right:g}, of {4096 * 4}."))
else:
    display(Markdown("No GPU here, so nothing can race. On one, additions get lost, and bfloat16 is a format."))

# %% [markdown]
# **Four: a forgotten mask is mostly right.** Memory is handed out in round pieces. Whatever lies behind a tensor can be
# read, and overwritten, without a word; the result that you look at is fine. Below the kernel without a mask sums five
# elements of two tensors which happen to have room for eight.


# %% tags=["nbval-check-output"]
def lucky():
    x, y, out = torch.arange(8.0), torch.arange(8.0), torch.full((8,), -1.0)
    bare_kernel[(2,)](x, y, out, 5, BLOCK=4)
    return out.tolist()


result = interpreted(lucky, bare_kernel)
print("its result :", result[:5], "which is right")
print("behind it  :", result[5:], "which was [-1.0, -1.0, -1.0]: somebody else's")

# %% [markdown]
# The remedy is **poison**: lay every tensor between guard zones full of NaN, run the kernel, and look at the zones.
# Here the five elements of the result begin at the third of twelve cells.


# %%
def poisoned():
    x, room = torch.arange(8.0), torch.full((12,), nan)
    bare_kernel[(2,)](x, x, room[2:], 5, BLOCK=4)
    return room.tolist()


room = interpreted(poisoned, bare_kernel)
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 1.3))
    for at, value in enumerate(room):
        own, hit = 2 <= at < 7, value == value
        face = style.PALETTE[0] if own else style.LIT if hit else "white"
        axis.add_patch(Rectangle((at, 0), 0.9, 0.8, facecolor=face, edgecolor=style.GREY))
        axis.text(at + 0.45, 0.4, f"{value:g}", ha="center", va="center", color="white" if own or hit else style.GREY)
    for at, text in ((0, "before it"), (2, "the result's own five cells"), (7, "behind it")):
        axis.text(at, 0.92, text, fontsize=9)
    axis.set(xlim=(-0.2, 12.2), ylim=(-0.1, 1.2))
    axis.set_axis_off()
fig.alt = "Twelve cells: two of NaN, five results, three numbers that should still be NaN, two of NaN."
display(fig)

# %% [markdown]
# The checks of this lab do it with `guard.launch`, which reads the interpreter's notes as well, so that *reads* beyond
# the end are seen, too.


# %% tags=["nbval-check-output"]
def guarded():
    x = torch.arange(5.0)
    try:
        guard.launch(bare_kernel, x, x, guard.Out((5,)), 5, grid=(2,), constants={"BLOCK": 4})
    except guard.OutOfBounds as error:
        return str(error).split("; ")


print("\n".join(interpreted(guarded, bare_kernel)))

# %% [markdown]
# On a GPU, `compute-sanitizer python script.py` finds the same in compiled kernels, and races with `--tool racecheck`.

# %% [markdown]
# **Five: far out of bounds ends the process.** The interpreter reads real addresses. One that belongs to nobody is a
# segmentation fault: no exception, no traceback, the notebook's kernel is gone. So this one runs elsewhere. (A GPU says
# *illegal memory access*, and every later call of that process fails with the same words: restart it, too.)


# %% tags=["nbval-check-output"]
@triton.jit
def far_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at.to(tl.int64) * 100_000_000_000))


def far_away():
    x, out = torch.ones(4), torch.zeros(4)
    far_kernel[(1,)](x, out, 4, BLOCK=4)
    print("this line is never reached")


def far_between_guards():
    try:
        guard.launch(far_kernel, torch.ones(4), guard.Out((4,)), 4, grid=(1,), constants={"BLOCK": 4})
    except guard.OutOfBounds as error:
        return str(error)


ended = interpreter.run(far_away, far_kernel)
print(f"it ended with {signal.Signals(-ended.status).name} and had printed {ended.printed!r}")
print("between guards:", interpreted(far_between_guards, far_kernel))

# %% [markdown]
# ## 4 · A row at a time: softmax
#
# The first kernel in which lanes talk to each other. A softmax needs the row's maximum, then a sum, then a division:
#
# $$ y_j = \frac{e^{x_j - m}}{\sum_i e^{x_i - m}}, \qquad m = \max_i x_i . $$

# %% [markdown]
# Written with torch's elementary operations each of them goes through memory. We count: every tensor that goes into an
# operation is read, every one that comes out is written.


# %%
class Traffic(TorchDispatchMode):
    """Adds up the bytes of all operations' inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def softmax_by_hand(x):
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)


# %% [markdown]
# The least is one read and one write. How many times that does the line above move?

# %%
p_hand = predict("08.hand", "Softmax by hand moves how many times the least?", 1, 10, "×")

# %%
x = randn(64, 1000)
with Traffic() as by_hand:
    softmax_by_hand(x)
p_hand.against(by_hand.bytes / (2 * x.numel() * 4), calculated=True)

# %% [markdown]
# Now one program a row, with the whole row in one block. It is loaded once, everything happens in registers, and the
# result is written once.

# %% [markdown]
# Three things to mind: the lanes beyond the end take part in the maximum and in the sum, unless they are loaded as
# something harmless; a row begins `stride` elements after the one before it, which need not be its width; and whatever
# format comes in, compute in float32.


# %% exercise="08.softmax_kernel"
@triton.jit
def softmax_kernel(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    """Softmax of each row; program r works on row r.

    Args:
        x_ptr: rows of `width` elements, row r beginning at r · x_stride; float32 or float16, of any size.
        out_ptr: float32, row r beginning at r · out_stride.
        BLOCK: a power of two, at least `width`.
    """
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * x_stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * out_stride + at, e / tl.sum(e, axis=0), mask=inside)
    ### END SOLUTION


# %% check="08.softmax_kernel"
softmax_kernel = check("08.softmax_kernel", softmax_kernel)

# %% [markdown]
# A program id has 32 bits. With more than two thousand million elements `row * stride` overflows, silently, and so
# kernels that may meet such tensors widen it: `tl.program_id(0).to(tl.int64)`.

# %% [markdown]
# The wrapper, and a comparison with torch on rows that do not lie side by side:


# %% tags=["nbval-check-output"]
def softmax(x):
    """Softmax over the last dimension of a matrix, float32 out."""
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(x.shape, device=x.device)
    if x.numel():
        block = triton.next_power_of_2(x.shape[1])
        how = {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
        softmax_kernel[(len(x),)](x, out, x.stride(0), out.stride(0), x.shape[1], **how)
    return out


for name, x in {"7 by 33": randn(7, 33), "a slice": randn(5, 64)[:, 3:40], "transposed": randn(9, 4).T,
                "values of 10,000": 1e4 * randn(3, 5), "no rows": randn(0, 8)}.items():  # fmt: skip
    print(f"{name:<17} same as torch: {torch.allclose(softmax(x), x.softmax(-1), atol=1e-6)}")

# %% [markdown]
# What if a row is too long for registers? Then a program goes over it in blocks, as often as the formula needs: for the
# maximum, for the sum, for the result. **Three passes** are three reads.

# %% [markdown]
# A running maximum merges the first two (Milakov and Gimelshein 2018): whenever a larger value turns up, the sum so far
# is rescaled.


# %%
@triton.jit
def long_softmax_kernel(x_ptr, out_ptr, width, ONLINE: tl.constexpr, BLOCK: tl.constexpr):
    x_row, out_row = x_ptr + tl.program_id(0) * width, out_ptr + tl.program_id(0) * width
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    if not ONLINE:
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            top = tl.maximum(top, tl.max(tl.load(x_row + at, mask=at < width, other=float("-inf")), axis=0))
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + at, mask=at < width, other=float("-inf"))
        higher = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), axis=0)
        top = higher
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + at, mask=at < width, other=float("-inf"))
        tl.store(out_row + at, tl.exp(x - top) / total, mask=at < width)


# %% [markdown]
# Predict: how many times the least do three passes move?

# %%
p_three = predict("08.three", "Softmax in three passes moves how many times the least?", 1, 5, "×")


# %%
def passes():
    x, least, found = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), 2 * 3 * 50 * 4, {}
    for name, start in {
        "three passes": lambda x, out: long_softmax_kernel[(3,)](x, out, 50, ONLINE=False, BLOCK=16),
        "two passes, running maximum": lambda x, out: long_softmax_kernel[(3,)](x, out, 50, ONLINE=True, BLOCK=16),
        "one pass": lambda x, out: softmax_kernel[(3,)](x, out, 50, 50, 50, BLOCK=64),
    }.items():
        out = torch.empty_like(x)
        with interpreter.watch({"x": x, "out": out}) as log:
            start(x, out)
        found[name] = sum(interpreter.moved(log)) / least if torch.allclose(out, x.softmax(-1)) else float("nan")
    return found


counted = {"by hand, in torch": by_hand.bytes / (2 * 64 * 1000 * 4)}
counted |= interpreted(passes, long_softmax_kernel, softmax_kernel)
p_three.against(counted["three passes"])

# %% [markdown]
# Bytes for all four ways, as multiples of the least. On a GPU their times follow, on rows of 16,384.

# %%
times = {}
if gpu:
    x = randn(4096, 16_384)
    out = torch.empty_like(x)
    long = partial(long_softmax_kernel[(4096,)], x, out, x.shape[1], BLOCK=2048, num_warps=8)
    ways = (partial(softmax_by_hand, x), partial(long, ONLINE=False), partial(long, ONLINE=True), partial(softmax, x))
    fastest = 8 * x.numel() / ceiling.bandwidth
    times = {n: measure.timing(way, device, cold=True).median / fastest for n, way in zip(counted, ways, strict=True)}
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 2.5))
    for shift, (values, label) in enumerate(((counted, "bytes"), (times, f"time on {where}"))):
        if values:
            places = [i + 0.35 * shift for i in range(len(values))]
            axis.barh(places, list(values.values()), 0.33, color=style.PALETTE[shift], label=label)
    axis.axvline(1, color=style.INK, linestyle=":")
    axis.set(xlabel="times the least", yticks=range(len(counted)), yticklabels=list(counted))
    axis.invert_yaxis()
    axis.legend(loc="lower right")
fig.alt = "Multiples of the least. Bytes: " + ", ".join(f"{n} {v:.3g}" for n, v in counted.items()) + (
    ". Time: " + ", ".join(f"{n} {v:.3g}" for n, v in times.items()) if times else ""
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# That is all there is to **fusion**: the same arithmetic, or a little more of it, with fewer trips to memory. Where
# time is less than the bytes say, a cache held the row between two passes.

# %% [markdown]
# ## 5 · The router as one kernel
#
# Now the operation that was far below its roof. First, what happens today? A **profiler** writes down what was started.

# %% [markdown]
# In `eager_route` stand a softmax, a top-k, a sum and a division. How many things does torch start for them: kernels on
# a GPU, operators on a CPU?

# %%
p_kernels = predict("08.kernels", "Started for one eager router call: how many?", 1, 20)


# %%
def started(call):
    """What one call starts, in order: kernels on a GPU, operators that nobody else called on a CPU."""
    call()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profiler(activities=kinds, acc_events=True) as prof:
        call()
        if gpu:
            torch.cuda.synchronize()
    kernels = [e for e in prof.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return kernels or [e for e in prof.events() if e.cpu_parent is None]


logits = randn(T, E)
eager_events = started(lambda: eager_route(logits, K))
p_kernels.against(len(eager_events))

# %% [markdown]
# When each of them began and how long it took, in this one call:

# %%
began = min(e.time_range.start for e in eager_events)
lasted = [(e.name[:60], e.time_range.start - began, e.time_range.elapsed_us()) for e in eager_events]
with style.use():
    fig, (axis,) = picture.new(size=(9.2, 0.8 + 0.32 * len(lasted)))
    for row, (_, start, us) in enumerate(lasted):
        axis.barh(row, us, left=start, color=style.PALETTE[0])
    axis.set(xlabel="µs", yticks=range(len(lasted)), yticklabels=[name for name, *_ in lasted])
    axis.invert_yaxis()
fig.alt = "Timeline: " + ", ".join(f"{name} for {us:.1f} µs" for name, _, us in lasted) + "."
display(fig)
longest = max(lasted, key=lambda event: event[2])
display(Markdown(f"The longest: `{longest[0]}`, {longest[2] / sum(us for *_, us in lasted):.0%} of what was worked."))

# %% [markdown]
# Torch's top-k is a general one, for any width and any K; it may even sort. A router's row has a few dozen or hundred
# experts and its K is small. There the obvious way is good: **K rounds**, each of which finds the largest and takes it
# out.

# %% [markdown]
# Ties decide who is right. Torch's `topk` leaves open which of two equal values comes first, and need not choose the
# same on every device. Here the lower number wins, always.


# %% exercise="08.top_k_kernel"
@triton.jit
def top_k_kernel(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    """The K largest values of each row and their places, best first, equal ones by place; program r has row r.

    Args:
        x_ptr: rows of `width` elements, row r beginning at r · stride; some may be minus infinity, at least K are not.
        ids_ptr, values_ptr: K a row, contiguous; int64 and float32.
        K: from 1 to `width`; BLOCK: a power of two, at least `width`.
    """
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    left = at < width
    x = tl.load(x_ptr + row * stride + at, mask=left, other=float("-inf")).to(tl.float32)
    for k in tl.static_range(K):
        best = tl.max(tl.where(left, x, float("-inf")), axis=0)
        first = tl.min(tl.where(left & (x == best), at, BLOCK), axis=0)
        tl.store(ids_ptr + row * K + k, first)
        tl.store(values_ptr + row * K + k, best)
        left = left & (at != first)
    ### END SOLUTION


# %% check="08.top_k_kernel"
top_k_kernel = check("08.top_k_kernel", top_k_kernel)

# %% [markdown]
# Three of these eight experts share the first place. Who comes in which round?


# %% tags=["nbval-check-output"]
def rounds(x, k):
    """The places of a row's k largest, in the order in which your kernel takes them."""
    x = torch.tensor([x], device=device)
    ids, values = torch.empty(1, k, dtype=torch.int64, device=device), torch.empty(1, k, device=device)
    top_k_kernel[(1,)](x, ids, values, x.stride(0), x.shape[1], K=k, BLOCK=triton.next_power_of_2(x.shape[1]))
    return ids[0].tolist()


row = [0.1, 0.9, 0.4, 0.9, -0.5, 0.9, 0.6, 0.0]
taken = rounds(row, 5)
print("in this order:", taken)
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.3))
    axis.bar(range(8), row, color=[style.PALETTE[0] if e in taken else style.GREY for e in range(8)])
    for k, e in enumerate(taken):
        axis.text(e, row[e] + 0.04, f"round {k}", ha="center", fontsize=9)
    axis.set(xlabel="expert", ylabel="score", xticks=range(8), ylim=(-0.6, 1.15))
fig.alt = "Eight scores as bars; the five largest are marked with the round that takes them: " + str(taken)
display(fig)

# %% [markdown]
# It matters more than it seems: after a training step on another machine, or in the backward pass of a checkpointed
# block, a tie that falls the other way sends a token to another expert.

# %% [markdown]
# Now put it together: softmax over all experts, the K largest of the scores, and, if `NORM`, a division by their sum.
# `NORM` is a constant, so `if NORM:` costs nothing: two kernels are compiled from one source.


# %% exercise="08.router_kernel"
@triton.jit
def router_kernel(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """From logits to a decision; program t works on token t.

    Args:
        logits_ptr: E a token, token t beginning at t · stride.
        ids_ptr: [T, K] int64, contiguous: the experts of the K largest scores, best first, equal ones by number.
        weights_ptr: [T, K] float32, contiguous: their softmax scores, divided by the sum of the K if NORM.
        BLOCK: a power of two, at least E.
    """
    ### BEGIN SOLUTION
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    real = e < E
    x = tl.load(logits_ptr + t * stride + e, mask=real, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    p = p / tl.sum(p, axis=0)
    slot = tl.full([BLOCK], K, tl.int32)  # where in the answer an expert stands; K: nowhere yet
    for k in tl.static_range(K):
        left = real & (slot == K)
        best = tl.max(tl.where(left, p, -1.0), axis=0)
        first = tl.min(tl.where(left & (p == best), e, BLOCK), axis=0)
        slot = tl.where(e == first, k, slot)
    chosen = slot < K
    if NORM:
        p = p / tl.sum(tl.where(chosen, p, 0.0), axis=0)
    tl.store(ids_ptr + t * K + slot, e, mask=chosen)
    tl.store(weights_ptr + t * K + slot, p, mask=chosen)
    ### END SOLUTION


# %% check="08.router_kernel"
router_kernel = check("08.router_kernel", router_kernel)

# %% [markdown]
# The wrapper says how many threads share a program's block: a row of 64 or 128 experts is work for a single warp of 32,
# whose lanes can talk without shared memory.


# %%
def route(logits_TE, top_k, norm_topk=True):
    """`topk_ids_TK` int64 and `topk_weights_TK` float32 from logits [T, E]."""
    tokens, experts = logits_TE.shape
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k}; give 1 to {experts}, the number of experts")
    logits_TE = logits_TE if logits_TE.stride(1) == 1 else logits_TE.contiguous()
    ids_TK = torch.empty(tokens, top_k, dtype=torch.int64, device=logits_TE.device)
    weights_TK = torch.empty(tokens, top_k, device=logits_TE.device)
    if tokens:
        block = triton.next_power_of_2(experts)
        router_kernel[(tokens,)](
            logits_TE, ids_TK, weights_TK, logits_TE.stride(0), experts, K=top_k, NORM=norm_topk, BLOCK=block,
            num_warps=max(1, block // 256),
        )  # fmt: skip
    return ids_TK, weights_TK


# %% [markdown]
# Against routers that others wrote: those of `transformers`, through a matrix of ones on the diagonal, so that hidden
# states are the logits.

# %% tags=["nbval-check-output"]
for family, experts, top_k, norm in (("olmoe", 64, 8, False), ("qwen3_moe", 128, 8, True), ("mixtral", 8, 2, True)):
    config = MoEConfig(d_model=experts, d_expert=2, num_experts=experts, top_k=top_k, norm_topk=norm)
    x_TE = torch.randn(6, experts, generator=torch.Generator().manual_seed(1))
    their_ids, their_weights, _ = hf_route(family, config, x_TE, torch.eye(experts))
    ids, weights = (t.cpu() for t in route(x_TE.to(device), top_k, norm))
    alike = torch.equal(ids, their_ids), torch.allclose(weights, their_weights, atol=1e-6)
    print(f"{family:<10} same experts: {alike[0]}, same weights: {alike[1]}")

# %% [markdown]
# What did it save? The eager router's bytes are counted as before, yours from the interpreter's notes, both for one
# token of a published router.

# %%
p_saved = predict("08.saved", "OLMoE's router: eager moves how many times the bytes of the fused one?", 1, 6, "×")

# %%
ROUTERS = {"OLMoE": (64, 8, False), "Qwen3-30B-A3B": (128, 8, True), "DeepSeek-V3": (256, 8, True)}


def fused_bytes():
    found = []
    for E, K, NORM in ((64, 8, False), (128, 8, True), (256, 8, True)):
        x, ids, weights = torch.randn(1, E), torch.empty(1, K, dtype=torch.int64), torch.empty(1, K)
        with interpreter.watch({"x": x, "ids": ids, "weights": weights}) as log:
            router_kernel[(1,)](x, ids, weights, E, E, K=K, NORM=NORM, BLOCK=E)
        found.append(sum(interpreter.moved(log)))
    return found


def eager_bytes(E, K, NORM):
    with Traffic() as traffic:
        eager_route(torch.zeros(1, E), K, NORM)
    return traffic.bytes


fused = dict(zip(ROUTERS, interpreted(fused_bytes, router_kernel), strict=True))
eager = {name: eager_bytes(*sizes) for name, sizes in ROUTERS.items()}
p_saved.against(eager["OLMoE"] / fused["OLMoE"])

# %% [markdown]
# (DeepSeek-V3 scores with a sigmoid and chooses within groups. Here it stands for its size; `labkit.kernels.topk` has
# the rest.)

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 2.8))
    for shift, (values, label) in enumerate(((eager, "eager, one operation at a time"), (fused, "one kernel"))):
        axis.bar([i + 0.4 * shift for i in range(3)], list(values.values()), 0.38, label=label)
    axis.set(ylabel="bytes a token", xticks=[i + 0.2 for i in range(3)], xticklabels=list(ROUTERS))
    axis.legend()
fig.alt = "Bytes a token, eager against one kernel: " + ", ".join(
    f"{name} {eager[name]:,} against {fused[name]:,}" for name in ROUTERS
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# ### And the time
#
# `torch.compile` fuses, too: it writes Triton kernels from your torch code, and softmax and renormalisation disappear
# into them, though top-k does not. So on a GPU there are four to compare: eager, compiled, yours, and `labkit`'s own.
# Without a GPU there is eager and its bound: the least time of one pass at this machine's bandwidth.

# %%
p_times = predict("08.times", "At Qwen3's size: eager takes how many times the bound?", 1, 200, "×")

# %%
contestants = {"eager": eager_route}
if gpu:
    contestants |= {"torch.compile": torch.compile(eager_route, dynamic=False), "yours": route}
    if hasattr(dispatch, "route"):
        contestants["labkit"] = lambda x, k, norm: dispatch.route(x, top_k=k, norm_topk=norm)
timed = {name: {} for name in contestants}
least = {}
for model, (experts, top_k, norm) in ROUTERS.items():
    x = randn(T, experts)
    least[model] = T * fused[model] / ceiling.bandwidth
    for name, call in contestants.items():
        timed[name][model] = measure.timing(partial(call, x, top_k, norm), device, cold=True, samples=9).median
p_times.against(timed["eager"]["Qwen3-30B-A3B"] / least["Qwen3-30B-A3B"])

# %% [markdown]
# All of them, with the bound as a dash:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.2, 3.0))
    width = 0.8 / len(timed)
    for shift, (name, times) in enumerate(timed.items()):
        axis.bar([i + width * shift for i in range(3)], [1e6 * t for t in times.values()], 0.92 * width, label=name)
    for i, bound_s in enumerate(least.values()):
        label = None if i else "bound"
        axis.plot([i - width / 2, i + 0.8 - width / 2], [1e6 * bound_s] * 2, "--", color=style.INK, label=label)
    axis.set(ylabel=f"µs for {T:,} tokens", xticks=[i + 0.4 - width / 2 for i in range(3)])
    axis.set_xticklabels(ROUTERS)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Router times on {where}, µs for {T:,} tokens: " + "; ".join(
    f"{name} " + ", ".join(f"{1e6 * t:.3g}" for t in times.values()) for name, times in timed.items()
) + "; bound " + ", ".join(f"{1e6 * t:.3g}" for t in least.values()) + "."  # fmt: skip
display(fig)

# %% [markdown]
# In words, from this run, and what the profiler says of yours:

# %%
qwen = {name: times["Qwen3-30B-A3B"] for name, times in timed.items()}
said = f"On {where}, Qwen3's router for {T:,} tokens: " + ", ".join(f"{n} {1e6 * t:.3g} µs" for n, t in qwen.items())
said += f"; the bound is {1e6 * least['Qwen3-30B-A3B']:.3g} µs. "
if gpu:
    events = started(lambda: route(logits, K))
    said += f"Eager starts {len(eager_events)} kernels, yours {len(events)}. "
    said += f"Yours is {qwen['eager'] / qwen['yours']:.1f} times as fast as eager and reaches "
    said += f"{least['Qwen3-30B-A3B'] / qwen['yours']:.0%} of the bound."
else:
    said += "Your kernel was interpreted here, so it has no time; its bytes are counted above."
display(Markdown(said))

# %% [markdown]
# A bound is not a promise: K rounds of reductions take their time, too, while the memory waits. One program a token is
# the simplest division of the work. Several tokens a program, and fewer instructions for each round, are how the rest
# is won; that is what `labkit.kernels.topk` does.

# %% [markdown]
# ## 6 · When nothing is large: launches
#
# Starting a kernel takes the host some microseconds: Python, checks, the driver. A large kernel hides that, since the
# host runs ahead. A small one is over before the next is started. Up to what size does a sum cost the same as the sum
# of sixteen numbers?

# %%
p_floor = predict("08.floor", "Up to 2 to the power of what do n elements take as long as 16 (within half)?", 4, 24)

# %%
POWERS = range(4, 25 if gpu else 23, 2)
launches = {"torch.add": []}
if gpu:
    launches |= {"your kernel": [], "one of 20 in a CUDA graph": []}
for power in POWERS:
    x, y = randn(2**power), randn(2**power)
    out = torch.empty_like(x)
    launches["torch.add"].append(measure.timing(partial(torch.add, x, y, out=out), device).median)
    if gpu:
        launches["your kernel"].append(measure.timing(partial(add, x, y), device).median)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(20):
                torch.add(x, y, out=out)
        launches["one of 20 in a CUDA graph"].append(measure.timing(graph.replay, device).median / 20)
flat = [p for p, t in zip(POWERS, launches["torch.add"], strict=True) if t < 1.5 * launches["torch.add"][0]]
p_floor.against(max(flat))

# %% [markdown]
# A **CUDA graph** records what the host starts, once, and replays all of it with a single launch. Shapes and addresses
# are fixed, and nothing in it may wait for the host: no `.item()`, no allocation that depends on a result. (On a CPU
# there is nothing to record; the line is torch's own overhead for a call.)

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.0))
    for (name, seconds), dash in zip(launches.items(), ("o-", "s--", "^:"), strict=False):
        axis.plot([2**p for p in POWERS], [1e6 * s for s in seconds], dash, label=name)
    axis.set(xscale="log", yscale="log", xlabel="elements", ylabel="µs a call, many in a row")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Time of a sum by its size on {where}: " + "; ".join(
    f"{name} {1e6 * s[0]:.3g} µs at 16 elements, {1e6 * s[-1]:.3g} µs at 2^{POWERS[-1]}" for name, s in launches.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# Left, the flat part is the price of starting. A model that writes one token at a time lives there, with hundreds of
# small kernels a token, and that is why engines record the whole step as a graph (lab 14), and why fusing pays even
# where memory is not the limit: several launches became one.

# %% [markdown]
# ## 7 · Neighbours
#
# Memory does not come in single numbers. A GPU fetches *sectors* of 32 bytes, a CPU lines of 64. If neighbouring lanes
# want neighbouring addresses, one sector serves eight of them: the access is **coalesced**. If they want every
# sixteenth, each lane brings a whole sector along, and the rest of it is thrown away.

# %% [markdown]
# Below, the same number of elements is gathered with growing strides: on a GPU by a kernel, on a CPU by torch from a
# list of places. How many times as long as side by side does it take at a stride of 32?

# %%
p_stride = predict("08.stride", "32 apart instead of side by side: how many times the time?", 1, 40, "×")


# %%
@triton.jit
def stride_kernel(x_ptr, out_ptr, n, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at * STRIDE, mask=at < n), mask=at < n)


COUNT, STRIDES = (2**23 if gpu else 2**20), (1, 2, 4, 8, 16, 32)
source, target = torch.ones(COUNT * STRIDES[-1], device=device), torch.empty(COUNT, device=device)


def gather(stride):
    if gpu:
        return partial(stride_kernel[(triton.cdiv(COUNT, 1024),)], source, target, COUNT, STRIDE=stride, BLOCK=1024)
    return partial(torch.index_select, source, 0, stride * torch.arange(COUNT), out=target)


strided = [measure.timing(gather(s), device, cold=True, least=1e-4).median for s in STRIDES]
p_stride.against(strided[-1] / strided[0])

# %% [markdown]
# The dotted line is what sectors alone would predict: bytes that come and go, against those at stride 1.

# %%
SECTOR = 32 if gpu else 64
BESIDE = 4 if gpu else 12  # bytes an element that are moved whatever the stride: the result, and its place in the list
fetched = [(min(4 * s, SECTOR) + BESIDE) / (4 + BESIDE) for s in STRIDES]
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.9))
    axis.plot(STRIDES, [t / strided[0] for t in strided], "o-", label=f"time on {where}")
    axis.plot(
        STRIDES, fetched, ":", color=style.INK, label=f"sectors of {SECTOR} bytes" if gpu else "lines of 64 bytes"
    )
    axis.set(xscale="log", xlabel="elements from one lane to the next", ylabel="times that of stride 1", ylim=(0, None))
    axis.set_xticks(STRIDES, [str(s) for s in STRIDES])
    axis.minorticks_off()
    axis.legend()
fig.alt = f"Time of a gather by stride on {where}: " + ", ".join(
    f"{t / strided[0]:.2g} at {s}" for s, t in zip(STRIDES, strided, strict=True)
) + " times that of stride 1."  # fmt: skip
display(fig)

# %% [markdown]
# Where the measured line climbs above the dotted one, more than sectors is at stake: pages to be looked up, and a
# prefetcher that brings the wrong things.

# %% [markdown]
# So the fastest dimension of a tensor belongs to neighbouring lanes. In your router, lanes are experts and logits are
# [T, E]: neighbours. Had it been one token a lane, each would have walked down a column.

# %% [markdown]
# ## 8 · Occupancy
#
# A load takes hundreds of nanoseconds to come back. An SM hides that by having many warps at hand: while one waits,
# another works. How many fit is a matter of registers. An SM of the Hopper generation has 65,536 of them, takes 64
# warps of 32 threads, and gives each warp registers in portions of 256.


# %% tags=["nbval-check-output"]
def resident_warps(registers):
    """Warps that fit on one SM at so many registers a thread (shared memory and blocks aside)."""
    portion = -(-registers * 32 // 256) * 256
    return min(64, 65_536 // portion)


for registers in (24, 32, 48, 64, 128, 255):
    warps = resident_warps(registers)
    print(f"{registers:>3} registers a thread: {warps:>2} warps of 64, occupancy {warps / 64:.0%}")

# %% [markdown]
# Is more always better? No: what counts is how many bytes are *on their way*. Little's law: to keep a pipe busy that
# delivers B bytes/s and takes t seconds, B·t bytes must be in it at any time.

# %% [markdown]
# On a GPU the next cell measures t, with a single thread that walks through memory and needs each load for the next.
# Without one it takes the H100's bandwidth and supposes 0.6 µs. How many bytes must be on their way in all?

# %%
p_flight = predict("08.flight", "Bytes on their way that keep the memory busy?", 0, 10, "million bytes")


# %%
@triton.jit
def walk_kernel(next_ptr, out_ptr, steps):
    at = tl.load(next_ptr)
    for _ in range(1, steps):
        at = tl.load(next_ptr + at)
    tl.store(out_ptr, at)


def latency(cells=2**25, steps=10_000):
    """Seconds from one load to the next when each needs the one before."""
    order = torch.randperm(cells, device=device)
    chain = torch.empty_like(order)
    chain[order] = order.roll(-1)
    end = torch.empty(1, dtype=chain.dtype, device=device)
    return measure.timing(lambda: walk_kernel[(1,)](chain, end, steps, num_warps=1), device).median / steps


wait, rate = (latency(), ceiling.bandwidth) if gpu else (0.6e-6, h100.bandwidth)
p_flight.against(wait * rate / 1e6, calculated=not gpu)

# %% [markdown]
# What that means for a kernel: a sum of vectors whose programs loop, started with more and more of them. Each has 128
# threads, and each thread asks for 16 bytes of x and 16 of y before it needs them.


# %%
@triton.jit
def loop_add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        x, y = tl.load(x_ptr + at, mask=at < n), tl.load(y_ptr + at, mask=at < n)
        tl.store(out_ptr + at, x + y, mask=at < n)


PROGRAMS = [max(1, SMS * share // 4) for share in (1, 2, 4, 8, 16, 32, 64)]
dots = []
if gpu:
    n = 2**27
    x, y, out = torch.ones(n, device=device), torch.ones(n, device=device), torch.empty(n, device=device)
    for programs in PROGRAMS:
        call = partial(loop_add_kernel[(programs,)], x, y, out, n, BLOCK=512, num_warps=4)
        dots.append(12 * n / measure.timing(call, device, cold=True).median)
    del x, y, out

# %% [markdown]
# The line is the law (for two bytes that come, one goes); the dots, on a GPU, are measured.


# %%
def law(programs):
    """Bytes/s that come and go, if every thread always has 32 bytes on their way."""
    return 1.5 * 128 * programs * 32 / wait


warps = [4 * p / SMS for p in PROGRAMS]
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.0))
    axis.plot(warps, [min(1, law(p) / rate) for p in PROGRAMS], color=style.INK, label="Little's law")
    if dots:
        axis.plot(warps, [d / rate for d in dots], "o", color=style.PALETTE[1], label=f"measured on {where}")
    axis.axvline(THREADS / 32, color=style.GREY, linestyle=":", label="full occupancy")
    axis.set(xscale="log", xlabel="warps on an SM", ylabel="share of the bandwidth", ylim=(0, 1.1))
    axis.set_xticks(warps, [f"{w:.0f}" for w in warps])
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Share of the bandwidth by warps on an SM, {about}: by Little's law full from " + (
    f"{next((w for w, p in zip(warps, PROGRAMS, strict=True) if law(p) >= rate), warps[-1]):.0f} warps on"
) + ("; measured " + ", ".join(f"{d / rate:.0%}" for d in dots) if dots else "") + "."  # fmt: skip
display(fig)

# %% [markdown]
# The line is full long before the SM is. Beyond that, more warps only wait, and a kernel may spend its registers on
# something better, such as larger tiles (lab 09). A *low* occupancy matters when too few bytes are on their way, and a
# *spill*, registers that did not fit and went to memory, always does.

# %% [markdown]
# What your own kernels take, if they were compiled:

# %%
if gpu:
    lines = ["| kernel | registers | spills | warps that fit |", "|---|---|---|---|"]
    ids, weights, x = torch.empty(T, 8, dtype=torch.int64, device=device), torch.empty(T, 8, device=device), logits
    built = {
        "add_kernel": add_kernel[(1,)](x, x, weights, 1, BLOCK=1024),
        "softmax_kernel, 1024": softmax_kernel[(1,)](x, weights, E, 8, 8, BLOCK=1024),
        "router_kernel": router_kernel[(T,)](x, ids, weights, E, E, K=8, NORM=True, BLOCK=E, num_warps=1),
    }
    for name, made in built.items():
        lines.append(f"| {name} | {made.n_regs} | {made.n_spills} | {resident_warps(made.n_regs)} |")
    display(Markdown("\n".join(lines)))
else:
    display(Markdown("Nothing was compiled here: registers are given out by the compiler for a GPU."))

# %% [markdown]
# ## 9 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("08")

# %% [markdown]
# ## Claim verdicts
#
# No claim of the ledger is decided in this lab. It leaves the yardstick: the ceilings that it measured are what lab 09
# holds its grouped products against, and the bounds are what claims about speed have to be divided by.

# %% [markdown]
# ## Further reading
#
# - Williams, Waterman and Patterson 2009, *Roofline: an insightful visual performance model*, doi
#   10.1145/1498765.1498785.
# - Tillet, Kung and Cox 2019, *Triton: an intermediate language and compiler for tiled neural network computations*,
#   doi 10.1145/3315508.3329973; Triton's own tutorials, from vector addition on.
# - Milakov and Gimelshein 2018, *Online normalizer calculation for softmax*, arXiv 1805.02867: the running maximum, and
#   softmax fused with top-k.
# - Volkov 2010, *Better performance at lower occupancy*, GTC: what has to be in flight, and that it is not threads.
# - NVIDIA, *Hopper tuning guide* and *CUDA C++ programming guide*: sectors, occupancy, graphs.
