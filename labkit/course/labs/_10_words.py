"""Lab 10: the mistakes in accounting, checkpointing and SwiGLU that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _10_counting_mistakes as counting
from labkit.course.labs import _10_mistakes as wrong

SAVED_BYTES = (
    Mistake(
        "nothing_recorded",
        "Zero everywhere: the call made no graph. Autograd saves tensors only where an input needs a gradient and "
        "gradients are on; is there a `no_grad` around the call, did the hooks end before it began, or are they "
        "counted in unpack?",
        like=counting.saved_nothing,
    ),
    Mistake(
        "the_result",
        "That is the size of the result. What is saved may be more (a layer keeps what lies between), or nothing (a "
        "SiLU keeps its input, which is there anyway). Let the hooks tell.",
        like=counting.saved_result,
    ),
    Mistake(
        "storage_twice",
        "A storage that is saved twice was counted twice. Two operations may keep one tensor, or two halves of it: "
        "remember storages by their address.",
        like=counting.saved_views_twice,
    ),
    Mistake(
        "each_view",
        "Each saved tensor was counted by itself. Some are views of one storage (gate and up are two halves of one "
        "product, and a half may be saved by two operations), which lies in memory once.",
        like=counting.saved_each_view,
    ),
    Mistake(
        "view_for_storage",
        "Storages are told apart, and then a *view's* bytes were taken. A view keeps the whole storage alive: "
        "`tensor.untyped_storage().nbytes()`.",
        like=counting.saved_last_view,
    ),
    Mistake(
        "inputs_counted",
        "The inputs are counted, too. They exist whether autograd keeps them or not; count only what it adds.",
        like=counting.saved_inputs_too,
    ),
    Mistake(
        "same_object_only",
        "An input was recognised only when the very same tensor object was saved. Autograd often saves a view of it, "
        "such as a transposed weight: compare storages.",
        like=counting.saved_same_objects_only,
    ),
    Mistake(
        "one_node",
        "That is what one node of the graph keeps, the last operation. The layer has several: walk `next_functions`, "
        "or use hooks.",
        like=counting.saved_one_node,
    ),
    Mistake(
        "result_left_out",
        "The result's memory is left out. Where the backward pass needs it, autograd keeps it, and it counts: only "
        "the inputs do not.",
        like=counting.saved_result_left_out,
    ),
    Mistake(
        "result_counted",
        "The result is counted everywhere. It counts only where autograd saves it: a tanh does, a SiLU does not.",
        like=counting.saved_result_too,
    ),
    Mistake(
        "those_with_gradient_skipped",
        "Tensors that require a gradient were skipped. What lies between requires one as well, and so does a result "
        "that is kept: tell inputs by their storage.",
        like=counting.saved_with_gradient_skipped,
    ),
    Mistake(
        "frozen_inputs_counted",
        "An input that needs no gradient was counted. It exists without autograd like the others: leave out all "
        "inputs.",
        like=counting.saved_frozen_inputs_too,
    ),
    Mistake("elements", "These are elements, not bytes.", like=counting.saved_elements),
    Mistake(
        "four_bytes_each",
        "Right for float32 only: four bytes were taken for every element. The storage knows its own size, `nbytes()`.",
        like=counting.saved_of_four,
    ),
)

CHECKPOINT_PEAK = (
    Mistake(
        "own_input_twice",
        "A segment's own input was counted twice: what its layers keep contains their inputs, and the first one's is "
        "the segment's. Only the inputs of the segments *before* it come on top.",
        like=counting.peak_own_input_too,
    ),
    Mistake(
        "all_inputs",
        "All segments' inputs were added to one segment's layers. While the backward pass works on a segment, those "
        "after it are done, and their inputs are gone; its own is among what its layers keep.",
        like=counting.peak_all_inputs,
    ),
    Mistake(
        "last_segment_only",
        "Right where all segments are equally long. The last may be shorter, and then the peak can come one segment "
        "later in the backward pass: take the largest of all.",
        like=counting.peak_last_only,
    ),
    Mistake(
        "last_is_full",
        "The last segment was taken to be as long as the others: it has the rest, `min(segment, layers - start)`. Or "
        "the waiting inputs were taken to be those *after* it; the backward pass begins with the last segment, so "
        "those before it wait.",
        like=counting.peak_last_is_full,
    ),
    Mistake(
        "waits_by_layer",
        "An input waits for every layer before the segment. Only one does for each *segment*: the rest is computed "
        "again.",
        like=counting.peak_waits_by_layer,
    ),
    Mistake(
        "inputs_of_layers_twice",
        "Inputs were added to what the segment's layers keep. `layer_bytes` has each layer's own input in it.",
        like=counting.peak_inputs_of_layers_too,
    ),
    Mistake(
        "one_layer_only",
        "Only one layer's bytes are there. A segment is computed again as a whole before its backward pass begins.",
        like=counting.peak_one_layer,
    ),
    Mistake(
        "sum",
        "The segments' peaks were added up. They come one after the other: take the largest.",
        like=counting.peak_sum,
    ),
    Mistake(
        "inputs_only",
        "These are the kept inputs. When a segment is computed again, all that its layers keep is there as well.",
        like=counting.peak_inputs_only,
    ),
    Mistake(
        "nothing_recomputed",
        "That is the memory without checkpointing: every layer's bytes at once.",
        like=counting.peak_everything,
    ),
    Mistake(
        "no_inputs",
        "One segment's layers are right; the inputs of the segments before it wait in memory, too.",
        like=counting.peak_first_segment,
    ),
    Mistake(
        "longer_than_the_model",
        "A segment longer than the model has only the model's layers in it.",
        like=counting.peak_longer_than_the_model,
    ),
    Mistake(
        "accepts_no_layers",
        "A segment of 0 layers came back with a number. Nothing can be cut that way: raise ValueError.",
        like=counting.peak_accepts,
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
        "silu_for_slope",
        "The gate's gradient has SiLU(g) where its slope belongs: σ + g·σ·(1 − σ).",
        like=wrong.swiglu_silu_for_slope,
    ),
    Mistake(
        "slope_for_silu",
        "Up's gradient was multiplied by the slope of SiLU. It was SiLU(gate) itself that up was multiplied by.",
        like=wrong.swiglu_slope_for_silu,
    ),
    Mistake(
        "wrong_sign",
        "The second term of the slope has the wrong sign: σ *plus* g·σ·(1 − σ).",
        like=wrong.swiglu_wrong_sign,
    ),
    Mistake(
        "hidden_times_grad",
        "The gradients are right. Hidden itself was multiplied by the gradient; it is SiLU(g)·u alone.",
        like=wrong.swiglu_hidden_times_grad,
    ),
    Mistake(
        "hidden_of_sigmoid",
        "The gradients are right. Hidden is σ(g)·u; it should be SiLU(g)·u, and SiLU(g) is g·σ(g).",
        like=wrong.swiglu_hidden_of_sigmoid,
    ),
    Mistake(
        "upstream_not_in_gate",
        "The gradient from above is missing in the gate's gradient.",
        like=wrong.swiglu_gate_upstream_forgotten,
    ),
    Mistake(
        "upstream_not_in_up",
        "The gradient from above is missing in up's gradient.",
        like=wrong.swiglu_up_upstream_forgotten,
    ),
    Mistake(
        "overflow",
        "Right up to g = 88. exp(g) is infinite from g = 89 on, and infinity / infinity is NaN: `torch.sigmoid`.",
        like=wrong.swiglu_overflow,
    ),
    Mistake(
        "hidden_last",
        "The three results are right and in another order: hidden first, then the gradients of gate and up.",
        like=wrong.swiglu_hidden_last,
    ),
)
