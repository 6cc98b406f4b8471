"""Lab 10: the mistakes in accounting, checkpointing and SwiGLU that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _10_mistakes as wrong

SAVED_BYTES = (
    Mistake(
        "nothing_recorded",
        "Zero everywhere: the call made no graph. Autograd saves tensors only where an input needs a gradient and "
        "gradients are on; is there a `no_grad` around the call, or did the hooks end before it began?",
        like=wrong.saved_nothing,
    ),
    Mistake(
        "the_result",
        "That is the size of the result. What is saved may be more (a layer keeps what lies between), or nothing (a "
        "SiLU keeps its input, which is there anyway). Let the hooks tell.",
        like=wrong.saved_result,
    ),
    Mistake(
        "storage_twice",
        "A storage that is saved twice was counted twice. Two operations may keep one tensor, or two halves of it: "
        "remember storages by their address.",
        like=wrong.saved_views_twice,
    ),
    Mistake(
        "each_view",
        "Each saved tensor was counted by itself. Some are views of one storage (gate and up are two halves of one "
        "product, and a half may be saved by two operations), which lies in memory once.",
        like=wrong.saved_each_view,
    ),
    Mistake(
        "view_for_storage",
        "Storages are told apart, and then a *view's* bytes were taken. A view keeps the whole storage alive: "
        "`tensor.untyped_storage().nbytes()`.",
        like=wrong.saved_last_view,
    ),
    Mistake(
        "inputs_counted",
        "The inputs are counted, too. They exist whether autograd keeps them or not; count only what it adds.",
        like=wrong.saved_inputs_too,
    ),
    Mistake(
        "same_object_only",
        "An input was recognised only when the very same tensor object was saved. Autograd often saves a view of it, "
        "such as a transposed weight: compare storages.",
        like=wrong.saved_same_objects_only,
    ),
    Mistake("elements", "These are elements, not bytes.", like=wrong.saved_elements),
    Mistake(
        "four_bytes_each",
        "Right for float32 only: four bytes were taken for every element. The storage knows its own size, `nbytes()`.",
        like=wrong.saved_of_four,
    ),
)

CHECKPOINT_PEAK = (
    Mistake(
        "own_input_twice",
        "A segment's own input was counted twice: what its layers keep contains their inputs, and the first one's is "
        "the segment's. Only the inputs of the segments *before* it come on top.",
        like=wrong.peak_own_input_too,
    ),
    Mistake(
        "all_inputs",
        "All segments' inputs were added to one segment's layers. While the backward pass works on a segment, those "
        "after it are done, and their inputs are gone; its own is among what its layers keep.",
        like=wrong.peak_all_inputs,
    ),
    Mistake(
        "last_segment_only",
        "Right where all segments are equally long. The last may be shorter, and then the peak can come one segment "
        "later in the backward pass: take the largest of all.",
        like=wrong.peak_last_only,
    ),
    Mistake(
        "last_is_full",
        "The last segment was taken to be as long as the others. It has the rest: `min(segment, layers - start)`.",
        like=wrong.peak_last_is_full,
    ),
    Mistake(
        "inputs_only",
        "These are the kept inputs. When a segment is computed again, all that its layers keep is there as well.",
        like=wrong.peak_inputs_only,
    ),
    Mistake(
        "nothing_recomputed",
        "That is the memory without checkpointing: every layer's bytes at once.",
        like=wrong.peak_everything,
    ),
    Mistake(
        "no_inputs",
        "One segment's layers are right; the inputs of the segments before it wait in memory, too.",
        like=wrong.peak_first_segment,
    ),
    Mistake(
        "longer_than_the_model",
        "A segment longer than the model has only the model's layers in it.",
        like=wrong.peak_longer_than_the_model,
    ),
    Mistake(
        "accepts_no_layers",
        "A segment of 0 layers came back with a number. Nothing can be cut that way: raise ValueError.",
        like=wrong.peak_accepts,
    ),
)

SWIGLU_BACKWARD = (
    Mistake(
        "slope_of_sigmoid",
        "The slope is σ·(1 − σ): that is the derivative of the sigmoid. SiLU is g·σ(g), a product, so its derivative "
        "has two terms: σ + g·σ·(1 − σ).",
        like=wrong.swiglu_slope_of_sigmoid,
    ),
    Mistake(
        "sigmoid_taken_as_constant",
        "The slope is σ(g) alone, as if the sigmoid did not depend on g. The product rule has a second term, "
        "g·σ·(1 − σ).",
        like=wrong.swiglu_constant_sigmoid,
    ),
    Mistake(
        "first_term_missing",
        "The slope is g·σ·(1 − σ); the first term of the product rule, σ itself, is missing. At g = 0 the slope is a "
        "half.",
        like=wrong.swiglu_second_half_missing,
    ),
    Mistake("plus_for_minus", "There is 1 + σ where 1 − σ belongs.", like=wrong.swiglu_slope_plus_one),
    Mistake(
        "swapped",
        "The two gradients are in each other's place: first that of the gate, then that of up.",
        like=wrong.swiglu_gradients_swapped,
    ),
    Mistake(
        "up_forgotten",
        "The gate's gradient lacks a factor: hidden is SiLU(g)·u, so what reaches the gate is multiplied by u.",
        like=wrong.swiglu_up_forgotten,
    ),
    Mistake(
        "upstream_ignored",
        "The gradient from above was not used: this is the gradient of the sum of hidden.",
        like=wrong.swiglu_upstream_forgotten,
    ),
    Mistake(
        "gate_for_silu",
        "Up's gradient was multiplied by the gate itself. It was SiLU(gate) that up was multiplied by.",
        like=wrong.swiglu_gate_for_silu,
    ),
    Mistake(
        "sigmoid_for_silu",
        "Up's gradient was multiplied by σ(g). SiLU(g) is g·σ(g).",
        like=wrong.swiglu_sigmoid_for_silu,
    ),
    Mistake(
        "silu_of_up",
        "SiLU was applied to up. It acts on the gate: hidden = SiLU(gate) · up.",
        like=wrong.swiglu_silu_of_up,
    ),
    Mistake(
        "hidden_last",
        "The three results are right and in another order: hidden first, then the gradients of gate and up.",
        like=wrong.swiglu_hidden_last,
    ),
)

STOCHASTIC_ROUND = (
    Mistake(
        "to_nearest",
        "That is rounding to nearest: the noise has no part in it, and a small update is lost every time.",
        like=wrong.round_to_nearest,
    ),
    Mistake(
        "cut_off",
        "The lower bits were cut off and the noise was not used: every number moves towards zero.",
        like=wrong.round_cut_off,
    ),
    Mistake(
        "rounded_twice",
        "The noise was added, and the conversion to bfloat16 then rounded to nearest on top of it: half a step too "
        "much, on average. Clear the lower 16 bits before the conversion, so that it has nothing to round.",
        like=wrong.round_twice,
    ),
    Mistake(
        "subtracted",
        "The noise was subtracted: the larger it is, the further *down* the number goes. Added to the bits, it carries "
        "over into the upper half as often as the lower half is full.",
        like=wrong.round_subtracts,
    ),
    Mistake(
        "added_to_the_number",
        "The noise was added to the number, not to its bits. The distance between two bfloat16 grows with the number; "
        "the lower 16 bits are a share of that distance, whatever it is.",
        like=wrong.round_adds_numbers,
    ),
    Mistake(
        "relative_noise",
        "A noise in proportion to the number is near, and not it: the distance of neighbours doubles at every power of "
        "two and is the same in between. `x.view(torch.int32)` gives the bits.",
        like=wrong.round_relative,
    ),
    Mistake(
        "cut_before",
        "The lower bits were cleared before the noise came: then it cannot carry over as often as they ask.",
        like=wrong.round_after_cut,
    ),
    Mistake(
        "half_the_noise",
        "Only half of the noise was added, so that numbers rarely go up. All 16 bits of it belong to the lower half.",
        like=wrong.round_half_the_noise,
    ),
    Mistake(
        "still_float32",
        "The values are those of bfloat16 and the format is still float32: four bytes each.",
        like=wrong.round_stays_wide,
    ),
    Mistake(
        "value_not_bits",
        "`.to(torch.int32)` converts the *number*. Its bits are `x.view(torch.int32)`.",
        like=wrong.round_of_integers,
    ),
)
