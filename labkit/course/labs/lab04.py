"""Lab 04: fine-grained, shared and grouped experts, and what they specialise in. Its exercises and words that help.

What they are tested on lies in `_04_cases`. The mistakes that their checks know: those in the layer in `_04_words` and
`_04_mistakes`, those in measuring in `_04_measured_words` and `_04_measured`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _04_cases as right
from labkit.course.labs import _04_measured_words as measured
from labkit.course.labs import _04_oracles as theirs
from labkit.course.labs import _04_words as words
from labkit.course.labs._04_recap import QUESTIONS

SPLIT_EXPERTS = Exercise(
    id="04.split_experts",
    title="Finer experts, the same function",
    difficulty=3,
    minutes=20,
    points=3,
    reference=right.split_experts,
    cases=right.split_cases,
    hints=(
        "A SwiGLU expert is a sum over its F hidden units, so any division of the units into m sets gives m small "
        "experts whose plain sum is the big one. What do the m twins' scores come to, and who can make up for it?",
        "Give F two dimensions, m and F/m (in gate_up there is a dimension of 2 before it), bring m next to E, and "
        "merge these two. Router rows: repeat_interleave. The lost factor m goes into down, the last linear map.",
        "gate_up.reshape(E, 2, m, F // m, D).transpose(1, 2).reshape(E * m, 2 * F // m, D); down.reshape(E, D, m, "
        "F // m).transpose(1, 2).reshape(E * m, D, F // m) * m; router.repeat_interleave(m, dim=0). Raise ValueError "
        "first if F % m.",
    ),
    mistakes=words.SPLIT_EXPERTS,
)

SHARED_EXPERT = Exercise(
    id="04.shared_expert",
    title="Experts that every token passes",
    difficulty=1,
    minutes=10,
    points=2,
    reference=right.shared_expert,
    cases=right.shared_cases,
    hints=(
        "Two sums, both over what experts make of the same x. Only one of them has weights.",
        "`reference.experts_loop` computes the routed sum, `reference.swiglu` one shared expert. How many shared ones "
        "are there, and may there be none?",
        "y = reference.experts_loop(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF); then for each pair of "
        "zip(shared_gate_up_S2FD, shared_down_SDF): y = y + reference.swiglu(x_TD, gate_up_2FD, down_DF).",
    ),
    mistakes=words.SHARED_EXPERT,
    oracle=Oracle("transformers' DeepSeek-V3 block", theirs.shared_expert, fits=lambda case: len(case.args[5]) > 0),
)

GROUP_LIMITED_TOP_K = Exercise(
    id="04.group_limited_top_k",
    title="A choice that stays within a few groups",
    difficulty=3,
    minutes=20,
    points=3,
    reference=right.group_limited_top_k,
    cases=right.group_cases,
    hints=(
        "Three steps on the biased scores: how much is each group worth, which groups stay, who wins among their "
        "experts. And one step on the scores without the bias.",
        "unflatten(1, (num_groups, -1)) gives [T, G, E/G]. topk over the last dimension, one or two, summed, is a "
        "group's worth; topk over the groups, scattered into a mask, says which stay. What do the others get?",
        "choice = (scores + bias).unflatten(1, (num_groups, -1)); worth = choice.topk(best, -1).values.sum(-1); keep = "
        "zeros_like(worth, dtype=bool).scatter(1, worth.topk(top_groups).indices, True); masked = "
        "choice.masked_fill(~keep[..., None], -inf).flatten(1); ids = masked.topk(k).indices; scores.gather(1, ids).",
    ),
    mistakes=words.GROUP_LIMITED_TOP_K,
    oracle=Oracle("transformers' DeepSeek-V2 and DeepSeek-V3 routers", theirs.group_limited_top_k, fits=theirs.decides),
)

LIFT = Exercise(
    id="04.lift",
    title="Specialisation, measured",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.lift,
    cases=right.lift_cases,
    hints=(
        "Count first: how many choices of each expert come from each domain? Both probabilities follow from that "
        "table. What should be said of an expert without any choice?",
        "A matrix of zeros and ones [T, E] (scatter), added up by domain (index_add), is the table. Rows divided by "
        "their sums are P(e | d); column sums divided by the total are P(e).",
        "chosen = zeros(T, E).scatter(1, ids, 1.0); counts = zeros(G, E).index_add(0, domain_T, chosen); share = "
        "counts / counts.sum(1, keepdim=True); overall = counts.sum(0) / counts.sum(); torch.where(overall > 0, share "
        "/ overall, 1.0).",
    ),
    mistakes=measured.LIFT,
    oracle=Oracle("numpy's histogram over its outer product", theirs.lift),
)

ABLATION = Exercise(
    id="04.ablation",
    title="What is lost without an expert, and where",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.ablation,
    cases=right.ablation_cases,
    hints=(
        "Take the difference token by token first; the mean comes last. Which tokens have no loss at all?",
        "A boolean mask for each domain, and one for what is not NaN. Positive should mean: worse without.",
        "rise = loss_without_T - loss_T; torch.stack([rise[~rise.isnan() & (domain_T == d)].mean() for d in "
        "range(num_domains)]).",
    ),
    mistakes=measured.ABLATION,
    oracle=Oracle("numpy's mean without NaN", theirs.ablation),
)

LAB = Lab(
    number="04",
    name="hierarchy",
    title="Hierarchy: fine-grained, shared and grouped experts",
    minutes=90,
    hardware="any CPU; a GPU trains longer and larger",
    claims=(3,),
    exercises=(SPLIT_EXPERTS, SHARED_EXPERT, GROUP_LIMITED_TOP_K, LIFT, ABLATION),
    questions=QUESTIONS,
)
