"""Lab 08: first kernels, from a measured roofline to a fused router. Its exercises and words that help.

What they are tested on lies in `_08_cases`, right answers in `_08_kernels`, the mistakes that their checks know in
`_08_words` and `_08_more_words`, as `_08_mistakes` makes them. Kernels are launched by `kernels.guard`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _08_cases as inputs
from labkit.course.labs import _08_kernels as right
from labkit.course.labs import _08_more_words as more
from labkit.course.labs import _08_oracles as theirs
from labkit.course.labs import _08_words as words
from labkit.course.labs._08_recap import QUESTIONS

MATMUL_BOUND = Exercise(
    id="08.matmul_bound",
    title="The least time of a matrix product",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.matmul_bound,
    cases=inputs.bound_cases,
    hints=(
        "Two clocks run at the same time, one for arithmetic and one for memory. What does each have to get through, "
        "and which of them ends the product?",
        "Each of the M·N results is a sum of K products: two FLOPs for each. Moved is every operand once, and the "
        "result once, `itemsize` bytes a number.",
        "flops = 2 * M * N * K; moved = itemsize * (M * K + K * N + M * N); computing = flops / peak_flops; moving = "
        'moved / bandwidth. Return max(computing, moving), flops / moved, and "compute" if computing >= moving.',
    ),
    mistakes=words.MATMUL_BOUND,
    oracle=Oracle("torch's FLOP counter", theirs.matmul_bound),
    atol=1e-15,
)

ADD_KERNEL = Exercise(
    id="08.add_kernel",
    title="A first kernel, with its mask",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.add_kernel,
    cases=inputs.add_cases,
    hints=(
        "Which BLOCK elements belong to program 0, which to program 1? Write the list of places as a vector first.",
        "at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK). A pointer plus a vector is a vector of pointers, which "
        "tl.load and tl.store take, with a mask of the same length.",
        "inside = at < n; x = tl.load(x_ptr + at, mask=inside); y likewise; tl.store(out_ptr + at, x + y, "
        "mask=inside).",
    ),
    mistakes=words.ADD_KERNEL,
    oracle=Oracle("torch.add", theirs.add),
)

SOFTMAX_KERNEL = Exercise(
    id="08.softmax_kernel",
    title="Row softmax in one pass",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.softmax_kernel,
    cases=inputs.softmax_cases,
    hints=(
        "One program has a whole row in a vector of BLOCK lanes. What value must a lane without an element have, so "
        "that neither the maximum nor the sum notices it?",
        'Load with `mask=inside, other=float("-inf")` from x_ptr + row * x_stride + at, then widen: .to(tl.float32). '
        "tl.max(x, axis=0) and tl.sum(e, axis=0) reduce a vector to one number.",
        "e = tl.exp(x - tl.max(x, axis=0)); tl.store(out_ptr + row * out_stride + at, e / tl.sum(e, axis=0), "
        "mask=inside), with row = tl.program_id(0), at = tl.arange(0, BLOCK), inside = at < width.",
    ),
    mistakes=words.SOFTMAX_KERNEL,
    oracle=Oracle("torch.softmax", theirs.softmax),
)

TOP_K_KERNEL = Exercise(
    id="08.top_k_kernel",
    title="The K largest of a row, ties in order",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.top_k_kernel,
    cases=inputs.top_k_cases,
    hints=(
        "K rounds: find the largest, write it down, take it out. A loop over `tl.static_range(K)` is unrolled.",
        "The largest value is tl.max(x, axis=0). Its lowest place is the smallest of the places that hold it: "
        "tl.min(tl.where(x == best, at, BLOCK), axis=0). Take out one place, not one value.",
        "for k in tl.static_range(K): best = tl.max(x, axis=0); first = as above; tl.store(ids_ptr + row * K + k, "
        'first); tl.store(values_ptr + row * K + k, best); x = tl.where(at == first, float("-inf"), x).',
    ),
    mistakes=more.TOP_K_KERNEL,
    oracle=Oracle("torch's stable sort", theirs.top_k),
)

ROUTER_KERNEL = Exercise(
    id="08.router_kernel",
    title="Softmax, top-k and renormalisation in one kernel",
    difficulty=3,
    minutes=30,
    points=4,
    reference=right.router_kernel,
    cases=inputs.router_cases,
    hints=(
        "You have both halves. What must survive the K rounds, besides what is written in them? The scores as they "
        "were, and which were chosen.",
        "Keep the scores p untouched and a second vector that says what is left, or in which round an expert was "
        "taken. The sum of the chosen is tl.sum(tl.where(chosen, p, 0.0), axis=0); `if NORM:` is decided when the "
        "kernel is compiled.",
        "slot = tl.full([BLOCK], K, tl.int32). Each round: left = real & (slot == K); best and first among those "
        "left, with -1.0 for the others; slot = tl.where(e == first, k, slot). Then chosen = slot < K, divide if NORM, "
        "and tl.store(ids_ptr + t * K + slot, e, mask=chosen), the weights likewise.",
    ),
    mistakes=more.ROUTER_KERNEL,
    oracle=Oracle("transformers' routers of OLMoE and Qwen3-MoE", theirs.router, fits=theirs.no_ties),
)

LAB = Lab(
    number="08",
    name="first_kernels",
    title="First kernels: a roofline, Triton, a fused router",
    minutes=110,
    hardware="any CPU with Linux (kernels are interpreted); a GPU for every time of a kernel",
    claims=(),
    exercises=(MATMUL_BOUND, ADD_KERNEL, SOFTMAX_KERNEL, TOP_K_KERNEL, ROUTER_KERNEL),
    questions=QUESTIONS,
)
