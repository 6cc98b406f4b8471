"""Lab 07: the mistakes in activation checkpointing that its check knows, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _07_again as again


def _gradient_missing(failure: Failure) -> bool:
    got, wanted = failure.got["gradients"], failure.expected["gradients"]
    return any(g is None and w is not None for g, w in zip(got, wanted, strict=True))


def _keeps(failure: Failure) -> bool:
    return failure.got["activations kept"] > failure.expected["activations kept"]


def _no_tensor(failure: Failure) -> bool:
    return failure.outcome.status == "value" and failure.got is None


def _wrong_number(failure: Failure) -> bool:
    return "incorrect number of gradients" in failure.outcome.error


def _upstream_missing(failure: Failure) -> bool:
    return "implicitly created only for scalar outputs" in failure.outcome.error


def _ran_too_often(failure: Failure) -> bool:
    return failure.got["block ran"] > failure.expected["block ran"]


def _generator_elsewhere(failure: Failure) -> bool:
    return abs(failure.got["next random number"] - failure.expected["next random number"]) > 1e-4


RECOMPUTE = (
    Mistake(
        "nothing_saved",
        "Right, and nothing is saved: the block ran once, and the graph of that run, with all its activations, stays "
        "in memory for the backward pass. Keep the inputs only (inside a `torch.autograd.Function` the forward pass "
        "makes no graph), and compute a second time.",
        like=again.again_nothing,
    ),
    Mistake(
        "twice_and_kept",
        "It computes a second time and *still* keeps the activations of the first: twice the work, nothing saved. "
        "Something holds the first graph (a tensor stored on `ctx`?).",
        like=again.again_graph_kept_and_again,
    ),
    Mistake(
        "no_gradient",
        "Nothing is kept, and nothing can be learned either: no gradient came back at all. Autograd does not see where "
        "the output came from. Did the block run under `no_grad` or on detached inputs, or did the inputs go into "
        "`apply` as one tuple, without the star?",
        like=again.again_no_gradient,
    ),
    Mistake(
        "weights_get_nothing",
        "The first input gets its gradient, the others get None. What autograd should differentiate must go *through* "
        "the Function: pass all inputs to `apply`, and return a gradient for each.",
        like=again.again_captured,
    ),
    Mistake(
        "other_random_numbers",
        "The second run drew other random numbers than the first, so the gradient belongs to another dropout mask than "
        "the output. Keep `torch.get_rng_state()` in the forward pass and set it for the second run.",
        like=again.again_other_numbers,
    ),
    Mistake(
        "other_random_numbers_forked",
        "The generator is put back afterwards, but the second run started from where it stood *now*, so it drew other "
        "numbers than the first. Inside the fork, set the state that the forward pass started from.",
        like=again.again_other_numbers_forked,
    ),
    Mistake(
        "generator_left_behind",
        "The second run has the right random numbers, and leaves the generator there: whatever is drawn next repeats "
        "itself. `torch.random.fork_rng` puts it back.",
        like=again.again_generator_left,
    ),
    Mistake(
        "state_kept_too_late",
        "The random state was kept *after* the block had run, so the second run goes on where the first one ended and "
        "drops other units. Keep it before the block draws anything.",
        like=again.again_state_too_late,
    ),
    Mistake(
        "upstream_ignored",
        "The gradient that came from above was not used: this is the gradient of the output's *sum*. Pass it on, "
        "`torch.autograd.grad(output, inputs, grad)`.",
        like=again.again_upstream_ignored,
    ),
    Mistake(
        "no_graph_in_backward",
        "Inside `backward` autograd is off, and detached copies ask for no gradient. So the second run made no graph. "
        "It needs `torch.enable_grad()`, and copies with `requires_grad_()` where the original had it.",
        like=again.again_no_graph,
    ),
    Mistake(
        "integers_asked",
        "Every saved input was asked for a gradient. Integers have none: take over each one's own `requires_grad`.",
        like=again.again_integers_asked,
    ),
    Mistake(
        "not_detached",
        "`backward` ran on the saved tensors themselves, so it went on into the layers before and added to gradients "
        "that are not this block's. Detach copies first; the graph of the second run should end at them.",
        like=again.again_not_detached,
    ),
    Mistake(
        "once_for_each_input",
        "The block ran again for every input that needs a gradient. One second run gives them all.",
        like=again.again_once_for_each,
    ),
    Mistake(
        "no_tensor_returned",
        "`recompute` gave back no tensor. Does it end with `return Recompute.apply(*inputs)`? The class itself is not "
        "called, and `apply` returns the block's output.",
        when=_no_tensor,
    ),
    Mistake(
        "wrong_number_of_gradients",
        "`backward` returned another number of gradients than `apply` got arguments. Return a tuple (a list counts as "
        "one value) with an entry for each, in order: None for an input that needs none, and None for the block if it "
        "was passed too.",
        when=_wrong_number,
    ),
    Mistake(
        "upstream_missing",
        "The second run's output was differentiated without the gradient from above. That works for a scalar only; "
        "pass it on, `torch.autograd.grad(output, inputs, grad)`.",
        when=_upstream_missing,
    ),
    Mistake(
        "ran_too_often",
        "The block ran more than twice: once in the forward pass and once in the backward pass are enough.",
        when=_ran_too_often,
    ),
    Mistake(
        "gradient_missing",
        "A gradient is None that should not be. Return one for every input, in the order of `apply`.",
        when=_gradient_missing,
    ),
    Mistake(
        "activations_kept",
        "Activations of the forward pass are still in memory before the backward pass. Only inputs should be.",
        when=_keeps,
    ),
    Mistake(
        "generator_elsewhere",
        "The generator is not where it would be without recomputation: the next random number is another one. Do not "
        "seed anything; read its state, set it for the second run, and put it back (`torch.random.fork_rng`).",
        when=_generator_elsewhere,
    ),
)
