"""Lab 10: where training memory goes, flash attention, and precision. Its exercises and words that help.

What they are tested on lies in `_10_cases`, right answers in `_10_answers`, the mistakes that their checks know in
the `_10_…words`, as the `_10_…mistakes` make them. Kernels are launched by `kernels.guard`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _10_answers as right
from labkit.course.labs import _10_cases as inputs
from labkit.course.labs import _10_flash_words as flash
from labkit.course.labs import _10_more_words as more
from labkit.course.labs import _10_oracles as theirs
from labkit.course.labs import _10_words as words
from labkit.course.labs._10_recap import QUESTIONS

SAVED_BYTES = Exercise(
    id="10.saved_bytes",
    title="What autograd keeps of a call, in bytes",
    difficulty=2,
    minutes=20,
    points=2,
    reference=right.saved_bytes,
    cases=inputs.saved_cases,
    hints=(
        "`torch.autograd.graph.saved_tensors_hooks(pack, unpack)` calls pack with every tensor that is saved. Which of "
        "them share their memory, and whose memory exists without autograd?",
        "A tensor's memory is `tensor.untyped_storage()`; it has an address, `data_ptr()`, a size, `nbytes()`. Keep "
        "a dict from address to size, leaving out the addresses of the inputs' storages.",
        "given = {t.untyped_storage().data_ptr() for t in inputs}; in pack: s = tensor.untyped_storage(); if "
        "s.data_ptr() not in given: kept[s.data_ptr()] = s.nbytes(); return tensor. Then, with saved_tensors_hooks("
        "pack, lambda t: t): output = call(*inputs). Return sum(kept.values()).",
    ),
    mistakes=words.SAVED_BYTES,
    oracle=Oracle("the nodes of torch's own graph", theirs.saved_bytes),
)

CHECKPOINT_PEAK = Exercise(
    id="10.checkpoint_peak",
    title="The peak of a checkpointed backward pass",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.checkpoint_peak,
    cases=inputs.peak_cases,
    hints=(
        "The backward pass goes through the segments from the last to the first. What is in memory while it works on "
        "segment n, counted from 0?",
        "The inputs of the n segments before it, and what its own layers keep. A segment that begins at layer `start` "
        "has min(segment, layers - start) layers.",
        "ValueError if segment < 1. return max(n * input_bytes + min(segment, layers - start) * layer_bytes for n, "
        "start in enumerate(range(0, layers, segment))).",
    ),
    mistakes=words.CHECKPOINT_PEAK,
)

SWIGLU_BACKWARD = Exercise(
    id="10.swiglu_backward",
    title="SwiGLU's gradient from its pre-activation",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.swiglu_backward,
    cases=inputs.swiglu_cases,
    hints=(
        "hidden = SiLU(g) · u, and SiLU(g) = g · σ(g). The gradient in u is short. For the one in g you need the slope "
        "of SiLU: the product rule.",
        "SiLU′(g) = σ + g·σ·(1 − σ), with σ = torch.sigmoid(gate). Compute σ once and everything from it.",
        "sigmoid = torch.sigmoid(gate); silu = gate * sigmoid; slope = sigmoid * (1 + gate * (1 - sigmoid)); return "
        "silu * up, grad * up * slope, grad * silu.",
    ),
    mistakes=words.SWIGLU_BACKWARD,
    oracle=Oracle("torch's autograd in float64", theirs.swiglu_backward),
)

ABSORB = Exercise(
    id="10.absorb",
    title="Online softmax: one more block of keys",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.absorb,
    cases=inputs.absorb_cases,
    hints=(
        "What would total and out have been, had you known the new maximum from the start? Every power in them would "
        "have been smaller by the same factor.",
        "higher = the larger of the old maximum and the block's; the old sums are multiplied by exp(old − higher), the "
        "new powers are exp(score − higher). Where higher is still −∞, subtract 0 instead.",
        "higher = torch.maximum(top_S, scores_SK.amax(-1)); finite = torch.where(higher.isinf(), 0.0, higher); shrink "
        "= (top_S - finite).exp(); powers = (scores_SK - finite[:, None]).exp(). Return higher, total_S * shrink + "
        "powers.sum(-1), out_Sd * shrink[:, None] + powers @ values_Kd.",
    ),
    mistakes=more.ABSORB,
    oracle=Oracle("torch's logsumexp and softmax in float64", theirs.absorb),
)

FLASH_KERNEL = Exercise(
    id="10.flash_kernel",
    title="Flash attention, forward, in Triton",
    difficulty=3,
    minutes=35,
    points=5,
    reference=right.flash_kernel,
    cases=inputs.flash_cases,
    hints=(
        "It is your `absorb`, once for every tile of keys, on a tile of queries that stays in registers. What does the "
        "loop carry from one tile to the next?",
        "Tile of keys `key = first + tl.arange(0, BLOCK_K)`; load k and v as q was loaded, with the mask (key < K)[:, "
        "None]. scores = tl.dot(q, tl.trans(k), input_precision='ieee') * scale, then tl.where(seen, scores, minus "
        "infinity), with seen = (key < K)[None, :], and causally also key[None, :] <= row[:, None].",
        "In the loop: higher = tl.maximum(top, tl.max(scores, axis=1)); powers = tl.exp(scores - higher[:, None]); "
        "shrink = tl.exp(top - higher); total = total * shrink + tl.sum(powers, axis=1); out = out * shrink[:, None] + "
        "tl.dot(powers.to(v.dtype), v, input_precision='ieee'); top = higher. Then store out / total[:, None] with "
        "(row < S)[:, None].",
    ),
    mistakes=flash.FLASH_KERNEL,
    oracle=Oracle("torch's plain attention in float64", theirs.flash),
    rtol=2e-3,
    atol=2e-3,
)

STOCHASTIC_ROUND = Exercise(
    id="10.stochastic_round",
    title="Rounding up as often as it is right",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.stochastic_round,
    cases=inputs.round_cases,
    hints=(
        "A bfloat16 is the upper half of a float32. The lower 16 bits say how far the number is on its way to the next "
        "one: which random event has just that probability?",
        "Adding a random 16-bit number to the lower half carries over into the upper half with that probability. "
        "`x.view(torch.int32)` has the bits of x.",
        "bits = x.view(torch.int32) + noise; clear the lower half, bits & -65536 (that is 0xFFFF0000); then "
        ".view(torch.float32).to(torch.bfloat16), which has nothing left to round.",
    ),
    mistakes=more.STOCHASTIC_ROUND,
    oracle=Oracle("torch's conversion, where nearest is meant", theirs.stochastic_round, fits=theirs.to_nearest),
    rtol=1e-6,
    atol=1e-38,
)

LAB = Lab(
    number="10",
    name="memory",
    title="Memory: where it goes, and what precision costs",
    minutes=120,
    hardware="any CPU with Linux (kernels are interpreted); a GPU for the allocator's own numbers and for times",
    claims=(6,),
    exercises=(SAVED_BYTES, CHECKPOINT_PEAK, SWIGLU_BACKWARD, ABSORB, FLASH_KERNEL, STOCHASTIC_ROUND),
    questions=QUESTIONS,
)
