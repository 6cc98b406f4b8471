"""Lab 13: distillation, pruning and merging. Its exercises and words that help.

What they are tested on lies in `_13_cases`, right answers in `_13_answers`, the mistakes that their checks know in
`_13_words` and `_13_more_words`, as `_13_mistakes` and `_13_more_mistakes` make them.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _13_answers as right
from labkit.course.labs import _13_cases as inputs
from labkit.course.labs import _13_more_words as more
from labkit.course.labs import _13_oracles as theirs
from labkit.course.labs import _13_words as words
from labkit.course.labs._13_recap import QUESTIONS

SOFT_LOSS = Exercise(
    id="13.soft_loss",
    title="Hinton's loss: the text and the teacher",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.soft_loss,
    cases=inputs.soft_cases,
    hints=(
        "First get rid of everything that does not count: the last position of every sequence, and those whose label "
        "is -100. What is left is a list of positions for both models.",
        "target = labels[:, 1:]; learned = target != -100; logits[:, :-1][learned] is [T, V]. The divergence is Σ p·"
        "(log p − log q) over the vocabulary, with both distributions at temperature T; then the mean over positions.",
        "logp = F.log_softmax(teacher / T, -1); logq = F.log_softmax(student / T, -1); soft = (logp.exp() * (logp - "
        "logq)).sum(-1).mean(); return hard * F.cross_entropy(student, target[learned]) + (1 - hard) * T**2 * soft. "
        "Before: ValueError if not learned.any().",
    ),
    mistakes=words.SOFT_LOSS,
    oracle=Oracle("TRL's GKD loss and torch's cross_entropy", theirs.soft_loss, needs="trl"),
)

DIVERGENCE = Exercise(
    id="13.divergence",
    title="Forward, reverse, and between",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.divergence,
    cases=inputs.divergence_cases,
    hints=(
        "Write one helper, KL(a ‖ b) from log-probabilities, and use it four times. What is a term of it where a is 0?",
        "log_softmax for both. β = 0 and β = 1 are returned at once. Between them the mixture's logarithm is torch."
        "logaddexp(logp + log β, logq + log(1 − β)); where a probability is 0 the term is 0: torch.where.",
        "kl = lambda loga, logb: torch.where(loga.exp() == 0, 0.0, loga.exp() * (loga - logb)).sum(-1). β = 0: "
        "kl(logp, logq). β = 1: kl(logq, logp). Else logm = torch.logaddexp(logp + math.log(beta), logq + math.log1p("
        "-beta)); return beta * kl(logp, logm) + (1 - beta) * kl(logq, logm).",
    ),
    mistakes=words.DIVERGENCE,
    oracle=Oracle("TRL's generalized Jensen–Shannon loss", theirs.divergence, fits=theirs.possible, needs="trl"),
)

TAIL_BUCKET = Exercise(
    id="13.tail_bucket",
    title="A teacher of a few tokens, and all the rest",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.tail_bucket,
    cases=inputs.tail_cases,
    hints=(
        'There are K + 1 outcomes: the kept tokens, and "something else". What does the student say about the last?',
        "log_softmax over the whole vocabulary, then gather at ids_TK. For the rest put −∞ at the kept tokens "
        "(scatter) and take logsumexp: 1 − Σ would lose everything below 10⁻⁷.",
        "logq = student.log_softmax(-1); rest = logq.scatter(-1, ids, -inf).logsumexp(-1); a = torch.cat([logp, tail[:,"
        " None]], -1); b = torch.cat([logq.gather(-1, ids), rest[:, None]], -1); return torch.where(a == -inf, 0.0, "
        "a.exp() * (a - b)).sum(-1).",
    ),
    mistakes=words.TAIL_BUCKET,
    oracle=Oracle("torch's kl_div in float64, on grouped probabilities", theirs.tail_bucket, fits=theirs.with_rest),
)

EQUAL_STEPS = Exercise(
    id="13.equal_steps",
    title="What a teacher costs, in steps without one",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.equal_steps,
    cases=inputs.steps_cases,
    hints=(
        "Which parameters does a token multiply with? And how many forward passes is one step of training?",
        "forward = 2 · (dense + head + top_k · expert): the embedding is looked up. A step of the student is 3 "
        "forwards, the teacher's reading 1, divided by students · epochs.",
        "shared = students * epochs; step = 3 * forward(student) * shared; return steps * (step + forward(teacher)) // "
        "step. A model without experts has no top_k: model.get('top_k', 0).",
    ),
    mistakes=more.EQUAL_STEPS,
)

PRUNE = Exercise(
    id="13.prune",
    title="Fewer experts, and a router that knows it",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.prune,
    cases=inputs.prune_cases,
    hints=(
        "Whose numbers does a router's row carry? List the tensors that have an entry for every expert.",
        "torch.sort(used, descending=True, stable=True) gives the order; take the first `number`, sort them by number. "
        "Everything whose name begins with router. or experts. is indexed with them.",
        "keep = torch.sort(used_E, descending=True, stable=True).indices[:number].sort().values; {name: t[keep] if "
        "name.startswith(('router.', 'experts.')) else t for name, t in layer.items()}, min(top_k, number). Before: "
        "ValueError unless 1 <= number <= len(used_E).",
    ),
    mistakes=more.PRUNE,
)

ALIGN = Exercise(
    id="13.align",
    title="Units in the same order (optional)",
    difficulty=3,
    minutes=25,
    points=3,
    reference=right.align,
    cases=inputs.align_cases,
    hints=(
        "Make one row for each unit, of everything that belongs to it. Then it is a table of inner products, and pairs "
        "are taken from the largest on.",
        "rows = torch.cat([gate, up, down.T], dim=1) for both experts; alike = anchor's rows @ other's.T. F times: "
        "place, unit = divmod(int(alike.argmax()), F); order[place] = unit; fill that row and that column with −∞.",
        "gate, up = gate_up.chunk(2); return torch.cat([gate[order], up[order]]), down[:, order]: rows of gate and of "
        "up, columns of down, all in the same order.",
    ),
    mistakes=more.ALIGN,
)

LAB = Lab(
    number="13",
    name="distillation",
    title="Distillation: large teachers, small students",
    minutes=120,
    hardware="any CPU shows the mechanics; a GPU trains students worth judging",
    claims=(5,),
    exercises=(SOFT_LOSS, DIVERGENCE, TAIL_BUCKET, EQUAL_STEPS, PRUNE, ALIGN),
    questions=QUESTIONS,
)
