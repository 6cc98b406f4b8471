"""Lab 07: the mistakes in schedule and accumulation that their checks know, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _07_mistakes as wrong


def _refuses_what_fits(failure: Failure) -> bool:
    _, steps, warmup, decay, *_ = failure.case.args
    return warmup + decay == steps and failure.outcome.error_type in ("ValueError", "AssertionError")


def _refuses_one_empty(failure: Failure) -> bool:
    empty = any(bool((target_BS == -100).all()) for _, target_BS in failure.case.args[1])
    return empty and not failure.refusal and failure.outcome.error_type in ("ValueError", "AssertionError")


def _gradient_missing(failure: Failure) -> bool:
    return any(gradient is None for gradient in failure.got["gradients"])


def _only_report_wrong(failure: Failure) -> bool:
    pairs = zip(failure.got["gradients"], failure.expected["gradients"], strict=True)
    return not failure.outcome.changed_input and all(
        torch.allclose(got, wanted, rtol=1e-4, atol=1e-5) for got, wanted in pairs
    )


SCHEDULE = (
    Mistake(
        "starts_at_zero",
        "The first step's rate is 0: a whole batch is computed and nothing moves. Steps are counted from 1 here, so "
        "step s of a warm-up of W has s / W.",
        like=wrong.schedule_from_zero,
    ),
    Mistake(
        "one_step_late",
        "The decay begins one step late, so the last step still stands above `final`. The first step after the stable "
        "stretch is already lower, and step `steps` is `final` itself.",
        like=wrong.schedule_late,
    ),
    Mistake(
        "one_step_early",
        "The decay begins one step early: the last stable step is already lower, and `final` is reached a step before "
        "the end. How many steps lie after the one that has the factor 1 for the last time?",
        like=wrong.schedule_early,
    ),
    Mistake(
        "no_plateau",
        "The rate falls from the end of the warm-up on. That is a linear schedule; WSD stays at 1 until only `decay` "
        "steps are left, which is why its length need not be known beforehand.",
        like=wrong.schedule_no_plateau,
    ),
    Mistake(
        "decays_first",
        "The decay comes right after the warm-up and the low rate stays. Warm-up, *stable*, then decay: it fills the "
        "last `decay` steps.",
        like=wrong.schedule_decay_first,
    ),
    Mistake(
        "cosine",
        "The end is right and the way down is half a cosine. The exercise asks for a straight line.",
        like=wrong.schedule_cosine,
    ),
    Mistake("final_ignored", "The rate falls to 0 whatever `final` is.", like=wrong.schedule_to_zero),
    Mistake(
        "floor",
        "The line goes to 0 and is cut off at `final`, so it arrives too early and with the wrong slope. Scale the "
        "line: from 1 at the last stable step to `final` at the last step.",
        like=wrong.schedule_floor,
    ),
    Mistake(
        "final_added",
        "`final` was added to a line that goes from 1 to 0, so the decay begins with a jump up. The line should run "
        "from 1 to `final`.",
        like=wrong.schedule_final_added,
    ),
    Mistake(
        "warms_from_final",
        "The warm-up starts from `final` (transformers' schedule does that too). Here it starts from nothing: s / W.",
        like=wrong.schedule_warm_from_final,
    ),
    Mistake(
        "divides_by_warmup",
        "A warm-up of 0 steps divides by zero. Ask whether the step lies in the warm-up before you divide.",
        like=wrong.schedule_divides_by_zero,
    ),
    Mistake(
        "divides_by_decay",
        "A decay of 0 steps divides by zero, also where the step is a stable one. Divide only in the decay.",
        like=wrong.schedule_no_decay_divides,
    ),
    Mistake(
        "accepts_misfit",
        "Warm-up and decay together are longer than the run, and a number came back. Such a plan is a mistake of the "
        "caller: raise ValueError.",
        like=wrong.schedule_accepts,
    ),
    Mistake(
        "one_step_ahead",
        "This is the factor of the *next* step, as if steps were counted from 0. They are counted from 1: a list of "
        "factors has that of step s at place s - 1.",
        like=wrong.schedule_ahead,
    ),
    Mistake(
        "never_reaches_one",
        "The warm-up was divided by warmup + 1, so its last step is still below 1. Step s of a warm-up of W has s / W.",
        like=wrong.schedule_below_one,
    ),
    Mistake(
        "whole_division",
        "`//` divides whole numbers and drops the rest: the factor is 0 up to the last step of the warm-up. Use `/`.",
        like=wrong.schedule_whole_division,
    ),
    Mistake(
        "goes_up_again",
        "The decay begins at `final` and ends at 1: the line runs backwards. Which share of the way is *done*, and "
        "which is left?",
        like=wrong.schedule_backwards,
    ),
    Mistake(
        "divided_by_all_steps",
        "The way down was divided by all `steps`, so it does not join on to the stable stretch. The line goes from 1 "
        "to `final` within `decay` steps.",
        like=wrong.schedule_over_all_steps,
    ),
    Mistake(
        "falls_by_final",
        "The rate falls *by* `final`, from 1 to 1 - final. It should fall *to* `final`: by 1 - final.",
        like=wrong.schedule_falls_by_final,
    ),
    Mistake(
        "exponential",
        "The end is right and the way down is a power of `final`. The exercise asks for a straight line.",
        like=wrong.schedule_exponential,
    ),
    Mistake(
        "one_interval_short",
        "The first step of the decay still has 1, and the line was divided into decay - 1 parts (as "
        "`linspace(1, final, decay)` does). The last *stable* step has 1; from there it is `decay` steps to `final`.",
        like=wrong.schedule_linspace,
    ),
    Mistake(
        "decay_as_a_place",
        "`decay` was read as the step at which the decay begins. It is a length: the last `decay` steps.",
        like=wrong.schedule_decay_is_a_place,
    ),
    Mistake(
        "refuses_what_fits",
        "A plan that fits was refused. Warm-up and decay may fill the whole run; only together *longer* than it is a "
        "mistake.",
        when=_refuses_what_fits,
    ),
)

ACCUMULATE = (
    Mistake(
        "mean_of_means",
        "Every micro-batch counts the same, however few real targets it has: a token in a short one weighs more. This "
        "is the bug that was in many libraries' accumulation until October 2024. Divide each *sum* by the number of "
        "real targets of all micro-batches.",
        like=wrong.accumulate_mean_of_means,
    ),
    Mistake(
        "mean_of_means_without_empty",
        "Micro-batches without a target are left out, and the others count the same, however few real targets each "
        "has. A token in a short one weighs more: divide each *sum* by the number of all real targets.",
        like=wrong.accumulate_empty_skipped,
    ),
    Mistake(
        "means_added",
        "The means were added up without dividing: with N micro-batches the gradient is about N times too large.",
        like=wrong.accumulate_means_added,
    ),
    Mistake(
        "sums_added",
        "The losses were summed and never divided by the number of targets, so the step's size depends on how much "
        "text it holds.",
        like=wrong.accumulate_sums_added,
    ),
    Mistake(
        "divided_by_micro_batches",
        "The sums were divided by the number of micro-batches; the mean is over real targets.",
        like=wrong.accumulate_sum_over_micros,
    ),
    Mistake(
        "padding_counted",
        "The sum was divided by all positions. Those whose target is -100 teach nothing and do not count.",
        like=wrong.accumulate_positions,
    ),
    Mistake(
        "weighted_by_sequences",
        "Each mean was weighted by its micro-batch's sequences (or positions, padding among them). Sequences differ in "
        "real targets; weight by these.",
        like=wrong.accumulate_by_sequences,
    ),
    Mistake(
        "empty_is_nan",
        "The mean over a micro-batch without a real target is 0 / 0, which is NaN, and NaN times 0 is NaN: one such "
        "batch ruins every gradient. Sum first, and divide by the total, which is not 0.",
        like=wrong.accumulate_nan,
    ),
    Mistake(
        "only_the_last",
        "Gradients were cleared before each micro-batch, so only the last one's is left. They are to add up.",
        like=wrong.accumulate_last,
    ),
    Mistake(
        "divided_by_those_so_far",
        "Each sum was divided by the targets seen *so far*, so early micro-batches count more. Count them all first.",
        like=wrong.accumulate_so_far,
    ),
    Mistake(
        "loss_misreported",
        "The gradients are right, the reported loss is a mean of means. What is shown should be what was minimised.",
        like=wrong.accumulate_wrong_report,
    ),
    Mistake(
        "one_backward_pass",
        "Right numbers, at the price that accumulation is there to avoid: the activations of all micro-batches were in "
        "memory together. Either the losses were added and differentiated once, or graphs were held on to "
        "(`retain_graph=True`, a list of losses). Call `backward` for each, and keep only its `.item()`.",
        like=wrong.accumulate_one_backward,
    ),
    Mistake(
        "one_big_batch",
        "Right numbers, but all micro-batches went through the model together. They are apart because together they do "
        "not fit.",
        like=wrong.accumulate_one_batch,
    ),
    Mistake(
        "nothing_accepted",
        "Without a single real target a number came back. There is no mean over nothing: raise ValueError.",
        like=wrong.accumulate_unasked,
    ),
    Mistake(
        "nothing_is_nan",
        "Without a single real target NaN came back, and the next optimiser step would write it into every weight. "
        "Raise ValueError.",
        like=wrong.accumulate_nothing_is_nan,
    ),
    Mistake(
        "running_sum_differentiated",
        "`backward` ran on the loss added up *so far*, so the first micro-batch was differentiated again with every "
        "later one. Differentiate each micro-batch's own loss, once.",
        like=wrong.accumulate_running_sum,
    ),
    Mistake(
        "divided_twice",
        "Divided by the number of all real targets, and by the number of micro-batches as well: the gradient is too "
        "small. The first division is the mean already.",
        like=wrong.accumulate_divided_twice,
    ),
    Mistake(
        "divided_by_the_average",
        "Each sum was divided by the *average* number of real targets of a micro-batch, so with N of them the gradient "
        "is N times too large. Divide by the number of all.",
        like=wrong.accumulate_over_average,
    ),
    Mistake(
        "shifted_again",
        "Targets were shifted against the logits. Here a target is already the token to predict at *its own* position; "
        "hold position i against target i.",
        like=wrong.accumulate_shifted,
    ),
    Mistake(
        "classes_in_the_wrong_place",
        "`cross_entropy` takes dimension 1 for the classes, and logits [B, S, V] have positions there; where S happens "
        "to be V it does not even complain. Flatten to [B·S, V] and [B·S], or move V to dimension 1.",
        like=wrong.accumulate_classes,
    ),
    Mistake(
        "padding_learned",
        "Positions whose target is -100 were learned as a token. They are to be left out.",
        like=wrong.accumulate_padding_learned,
    ),
    Mistake(
        "softmax_twice",
        "`cross_entropy` takes logits and makes the probabilities itself; they went through a softmax before.",
        like=wrong.accumulate_softmax_twice,
    ),
    Mistake(
        "moved_in_between",
        "The parameters were moved between micro-batches, so later gradients are those of another model. Only leave "
        "the gradients; the optimiser moves afterwards, once.",
        like=wrong.accumulate_moved,
    ),
    Mistake(
        "gradient_missing",
        "No gradient is left in the parameters' `.grad`. Was `backward` called for every micro-batch, and were the "
        "gradients cleared at the end? The optimiser needs them after the return.",
        when=_gradient_missing,
    ),
    Mistake(
        "empty_refused",
        "ValueError was raised although other micro-batches have real targets. One without any adds nothing and is "
        "legal; refuse only if there is no real target in all of them.",
        when=_refuses_one_empty,
    ),
    Mistake(
        "only_the_report_is_wrong",
        "The gradients are right, and what is returned is not. Return the mean loss over all real targets, as a "
        "number: the loss whose gradient this is.",
        when=_only_report_wrong,
    ),
)
