"""Lab 07: training a sparse transformer on real text. Its exercises and words that help.

What they are tested on lies in `_07_cases`, what watches them in `course.watch`. The mistakes that their checks know:
`_07_words`, `_07_more_words` and `_07_again_words`, as `_07_mistakes`, `_07_more_mistakes` and `_07_again` make them.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _07_again_words as again
from labkit.course.labs import _07_cases as right
from labkit.course.labs import _07_more_words as more
from labkit.course.labs import _07_oracles as theirs
from labkit.course.labs import _07_words as words
from labkit.course.labs._07_recap import QUESTIONS

SCHEDULE = Exercise(
    id="07.schedule",
    title="Warm-up, stable, decay",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.schedule,
    cases=right.schedule_cases,
    hints=(
        "Three stretches, so three returns. Where does each begin and end, and what is the factor at its last step?",
        "Up: step / warmup, for steps up to `warmup`. Stable: 1, up to step `steps - decay`. Down: a line that is 1 at "
        "step `steps - decay` and `final` at step `steps`.",
        "if step <= warmup: return step / warmup; start = steps - decay; if step <= start: return 1.0; return 1 - "
        "(1 - final) * (step - start) / decay. Before all: ValueError if warmup + decay > steps.",
    ),
    mistakes=words.SCHEDULE,
    oracle=Oracle("transformers' get_wsd_schedule", theirs.schedule, fits=theirs.in_wsd),
)

ACCUMULATE = Exercise(
    id="07.accumulate",
    title="Many small batches, one step",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.accumulate,
    cases=right.accumulate_cases,
    hints=(
        "What would one big batch divide by? Find that number before the first forward pass.",
        "cross_entropy with reduction='sum' gives a micro-batch's share of the numerator; -100 is left out by itself. "
        "`backward` adds to `.grad`, and frees the graph.",
        "total = sum(int((t != -100).sum()) for _, t in micro_batches), ValueError if 0. For each: loss = F.cross_"
        "entropy(model(ids).flatten(0, 1), t.flatten(), reduction='sum') / total; loss.backward(). Return the "
        "sum of loss.item().",
    ),
    mistakes=words.ACCUMULATE,
    oracle=Oracle("torch's gradient of one big batch", theirs.accumulate),
)

RECOMPUTE = Exercise(
    id="07.recompute",
    title="Activation checkpointing",
    difficulty=3,
    minutes=30,
    points=4,
    reference=right.recompute,
    cases=right.recompute_cases,
    hints=(
        "A torch.autograd.Function whose forward runs the block (autograd is off in there) and saves its inputs, and "
        "whose backward runs the block again, with autograd on, and differentiates that.",
        "In backward: detached copies of the saved inputs, each with the requires_grad of its original; inside "
        "torch.enable_grad() and torch.random.fork_rng(devices=[]), set the random state kept in forward and run the "
        "block; then torch.autograd.grad(output, those that need it, grad). Return None for the others.",
        "forward: ctx.random = torch.get_rng_state(); ctx.save_for_backward(*inputs); return block(*inputs). backward: "
        "again = [v.detach().requires_grad_(v.requires_grad) for v in ctx.saved_tensors]; … found = iter(torch."
        "autograd.grad(output, wanted, grad)); return tuple(next(found) if v.requires_grad else None for v in again).",
    ),
    mistakes=again.RECOMPUTE,
    oracle=Oracle("torch.utils.checkpoint", theirs.recompute),
)

NEWTON_SCHULZ = Exercise(
    id="07.newton_schulz",
    title="Muon's orthogonalisation, for all experts at once",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.newton_schulz,
    cases=right.newton_schulz_cases,
    hints=(
        "The polynomial acts on singular values without anybody computing them: X·Xᵀ·X has the singular vectors of X "
        "and the cubes of its singular values.",
        "Divide each matrix by its own Frobenius norm (`norm(dim=(-2, -1), keepdim=True)`, bounded from below). Then, "
        "`steps` times: gram = X @ X.mT; X = a·X + (b·gram + c·gram @ gram) @ X. `.mT` transposes the last two "
        "dimensions only.",
        "x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7); for _ in range(steps): gram = x @ "
        "x.mT; x = a * x + (b * gram + c * gram @ gram) @ x. Tall matrices are cheaper on their side: transpose before "
        "and after.",
    ),
    mistakes=more.NEWTON_SCHULZ,
    oracle=Oracle("torch.optim.Muon's own iteration", theirs.newton_schulz),
    rtol=1e-3,
    atol=1e-4,
)

MTP_LOSS = Exercise(
    id="07.mtp_loss",
    title="The loss of tokens further ahead",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.mtp_loss,
    cases=right.mtp_cases,
    hints=(
        "Write down, for module 1 and a sequence of five tokens, which position predicts which token. How many "
        "positions have a target?",
        "Module k's targets are labels[:, k + 1:]; cut its logits to that length. Sum the cross-entropies, with -100 "
        "left out. What does equation 24 divide by, and is it the same for every k?",
        "count = (labels_BS[:, 1:] != -100).sum(); for k from 1: target = labels_BS[:, k + 1:]; total += F.cross_"
        "entropy(logits[:, :target.shape[1]].flatten(0, 1), target.flatten(), reduction='sum'). Return weight / D * "
        "total / count.",
    ),
    mistakes=more.MTP_LOSS,
    oracle=Oracle("transformers' loss of causal language models", theirs.mtp_loss),
)

LAB = Lab(
    number="07",
    name="training",
    title="Training: a sparse transformer on real text",
    minutes=120,
    hardware="any CPU; a GPU trains models worth reading",
    claims=(1, 3),
    exercises=(SCHEDULE, ACCUMULATE, RECOMPUTE, NEWTON_SCHULZ, MTP_LOSS),
    questions=QUESTIONS,
)
