"""Lab 13: the mistakes in losses that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs._13_mistakes import Divergence, SoftLoss, TailBucket


def not_a_number(failure: Failure) -> bool:
    """Whether NaN came."""
    return bool(failure.got.isnan().any())


def bounded(failure: Failure) -> bool:
    """Whether logits of hundreds gave much too little, but not nothing."""
    return "hundreds" in failure.case.label and bool((failure.got > 0).all() & (failure.got < failure.expected).all())


def known(kind: type, words: dict[str, str]) -> tuple[Mistake, ...]:
    """A mistake for each name that the class knows."""
    return tuple(Mistake(name, says, like=kind(name)) for name, says in words.items())


SOFT_LOSS = known(
    SoftLoss,
    {
        "no_square": "The softened term's gradient falls as about 1/T², so at a higher temperature the text decides "
        "alone. Multiply the divergence by T², so that `hard` means the same at every temperature.",
        "linear": "The divergence was multiplied by T. Its gradient falls with the square: one T comes from the "
        "student's logits, one from how near the two softened distributions are.",
        "divided": "The divergence was divided by T². It is small already at a high temperature; multiply.",
        "student_only": "Only the student was softened. Both distributions are taken at T, or the student is taught to "
        "be T times too sure.",
        "teacher_only": "Only the teacher was softened, so the student is taught a blurred distribution as if it were "
        "its own at T = 1.",
        "multiplied": "The logits were multiplied by T. Softening divides them.",
        "square_on_both": "T² also went on the cross-entropy. That term has no temperature and needs no repair.",
        "text_softened": "The text's term was softened as well. Cross-entropy is taken at temperature 1: it is what "
        "the student will be judged by.",
        "shares_swapped": "`hard` is the share of the *text*; here it went to the teacher.",
        "soft_added_whole": "The teacher's term has the share 1 − hard; it was added whole.",
        "text_added_whole": "The text's term has the share `hard`; it was added whole.",
        "reversed": "That is KL(student ‖ teacher). The forward direction weighs with the teacher's probabilities: "
        "Σ p·(log p − log q), p the teacher's.",
        "cross_entropy": "That is the cross-entropy between the two distributions. It has the divergence's gradient, "
        "but not its value: subtract the teacher's entropy, so that a perfect student has 0.",
        "argmax": "Only the teacher's likeliest token was taught. What it says of all others is the reason for asking "
        "it.",
        "not_shifted": "Position i's logits were held against label i. They are about the *next* token: logits "
        "[:, :-1], labels [:, 1:].",
        "shifted_back": "Shifted the wrong way: logits [:, 1:] against labels [:, :-1] ask for the token before.",
        "teacher_shifted": "The teacher's logits were shifted with the labels. Teacher and student read the same "
        "text and speak about the same next token: cut both alike.",
        "soft_padding": "The teacher's term was averaged over all positions, padding included. Both terms are means "
        "over the positions that have a label.",
        "unmasked": "The divergence went over all positions, those with the label -100 included. Cross-entropy leaves "
        "them out by itself (`ignore_index`); the divergence has to be told: keep the positions whose next token has a "
        "label.",
        "mask_not_shifted": "The divergence was taken where the *current* token has a label. Position i speaks about "
        "token i + 1: labels[:, 1:] != -100.",
        "mean_of_means": "The divergence was averaged in every sequence first, then over sequences, so positions of a "
        "short one count more. All positions with a label count the same.",
        "padding_counted": "The mean went over all positions. Those whose label is -100 do not count, for either term.",
        "last_counted": "The mean counted the last position of every sequence, too; it has nothing to predict.",
        "sums": "Both terms are means over positions; here they were summed.",
        "soft_summed": "The divergence was summed over positions, the cross-entropy is a mean. Both are means, or "
        "`hard` says nothing.",
        "over_positions": "The softmax went along the positions. A distribution is over the vocabulary, the last "
        "dimension.",
        "kl_div_without_log": "F.kl_div takes *log*-probabilities first, and probabilities came. Give it "
        "log_softmax(student / T).",
        "per_sequence": "The divergence was summed over positions and divided by the number of sequences, as "
        "`batchmean` does with the first dimension. Divide by the number of positions with a label.",
        "vocabulary_mean": "The divergence was averaged over the vocabulary as well (`reduction='mean'` does). Over "
        "tokens of the vocabulary it is a *sum*; the mean is over positions.",
        "log_student_missing": "Only the teacher's own entropy is in there: the student's log-probabilities are "
        "missing from Σ p·(log p − log q).",
        "no_gradient": "The value is right, but no gradient flows back to the student: it left autograd (detach, "
        "no_grad, .item, a new torch.tensor). Nothing would be learned.",
        "nothing_accepted": "Without a single label there is no mean, and NaN came back. Raise ValueError.",
    },
)

DIVERGENCE = (
    *known(
        Divergence,
        {
            "swapped": "Student and teacher were exchanged, or β was read the other way round, which is the same. "
            "β = 0 is forward KL, weighed with the *teacher's* probabilities; the student is the first argument.",
            "mixture_reversed": "The mixture has β on the wrong side. m = β · teacher + (1 − β) · student.",
            "half_mixture": "The mixture is half and half whatever β is. m = β · teacher + (1 − β) · student.",
            "weights_reversed": "The mixture is right, its two divergences have each other's weights: "
            "β · KL(teacher ‖ m) + (1 − β) · KL(student ‖ m).",
            "unweighted": "The two divergences from the mixture were added without their weights β and 1 − β.",
            "from_the_mixture": "That is KL(m ‖ ·). The mixture stands on the right: KL(teacher ‖ m), KL(student ‖ m).",
            "two_kls": "That blends forward and reverse KL. Jensen–Shannon goes by the mixture m, and stays finite "
            "where one of them gives probability 0.",
            "mean_of_logs": "The mixture was formed from log-probabilities, which is a geometric mean. Mix the "
            "probabilities: logaddexp(log p + log β, log q + log(1 − β)).",
            "no_ends": "At β = 0 the mixture is the student itself, and everything vanishes: 0 came back where the "
            "forward KL belongs. Both ends are cases of their own.",
            "divided_by_beta": "Divided by β. Then it nears the forward KL for β → 0, but it is not what the equation "
            "says, nor what TRL computes.",
            "half_weights": "The two divergences from the mixture were weighed half and half whatever β is: "
            "β · KL(teacher ‖ m) + (1 − β) · KL(student ‖ m).",
            "over_positions": "The softmax went along the positions. A distribution is over the vocabulary, the last "
            "dimension.",
            "nan_hidden": "NaN was turned into 0 after the sum, and a whole position's divergence went with it. Only "
            "the *term* with p = 0 is 0: torch.where before the sum.",
            "mixture_underflows": "The mixture was added up from probabilities, and its logarithm taken. Where both "
            "are too small for float32 that is log 0. Use logaddexp(log p + log β, log q + log(1 − β)).",
            "no_gradient": "The value is right, but no gradient flows back to the student: it left autograd (detach, "
            "no_grad, .item, a new torch.tensor). Nothing would be learned.",
            "log_of_softmax": "log(softmax(z)) is log 0 for logits of hundreds. `log_softmax` subtracts instead of "
            "taking the logarithm of a number that is no more.",
            "probabilities_twice": "Softmax was taken twice: its result is no logit.",
            "vocabulary_mean": "A divergence is a sum over the vocabulary; here it was averaged.",
            "one_number": "One number came back for all positions. Return [T]: who averages wants to leave some out.",
        },
    ),
    Mistake(
        "small_number",
        "A small number inside the logarithm shifts every value, and hides that the teacher's 1e-9 and the student's "
        "1e-30 differ. log_softmax needs no such help.",
        like=Divergence("small_number"),
        when=bounded,
    ),
    Mistake(
        "nan",
        "0 · (−∞) is NaN: a token that the teacher rules out has probability 0 and log-probability −∞. Its term is 0; "
        "say so with torch.where(p == 0, 0.0, …).",
        like=Divergence("nan"),
        when=not_a_number,
    ),
)

TAIL_BUCKET = (
    *known(
        TailBucket,
        {
            "rescaled": "The kept tokens were scaled to sum to one and the rest forgotten: the best student then says "
            "that everything else is impossible. Keep the rest as one more outcome, with its mass.",
            "both_rescaled": "Both distributions were renormalised over the kept tokens. Then nothing says how much "
            "mass the student may leave to the rest.",
            "tail_dropped": "The rest has no term. Its mass is known, exp(tail), and the student's has to match it.",
            "tail_alone": "Only the rest's term came back; the kept tokens have theirs.",
            "one_minus": "1 − Σ of the kept probabilities is 0 in float32 when the student is sure, and log 0 is −∞. "
            "Sum the rest itself: logsumexp over its own log-probabilities.",
            "one_minus_bounded": "A bound under 1 − Σ hides that the difference is lost in float32: a rest of 10⁻¹¹ "
            "looks like one of 10⁻⁸, and has no gradient. Sum the rest itself, with logsumexp.",
            "students_top": "The student's own likeliest tokens were looked at. Teacher and student are compared on "
            "the tokens that the *teacher* kept: gather them by ids_TK.",
            "rest_of_the_students_top": "The student's rest is all but the *teacher's* tokens, not all but "
            "its own likeliest.",
            "mean_of_the_rest": "The rest's mass was divided by its number of tokens. It is one outcome: their sum.",
            "logits_for_logs": "The student's logits went in where log-probabilities belong: log_softmax first, over "
            "the whole vocabulary.",
            "tail_is_no_log": "tail_T is the *logarithm* of the rest's mass, as the others are; exp was taken too "
            "early.",
            "first_columns": "The first K columns are tokens 0 to K − 1. The kept ones are named in ids_TK: gather.",
            "reversed": "That is the reverse direction. Weigh with the teacher's probabilities.",
            "cross_entropy": "That is a cross-entropy; the teacher's own entropy is missing, so that a perfect student "
            "would not have 0.",
            "mean": "The outcomes were averaged; a divergence is their sum.",
            "one_number": "One number came back for all positions. Return [T]: who averages wants to leave some out.",
            "rest_from_logits": "The kept tokens' log-probabilities are right, the rest's comes from raw logits. Take "
            "log_softmax over the whole vocabulary once, and both from it.",
            "struck_out_with_zero": "The kept tokens were struck out with 0, and a logarithm of 0 is a probability of "
            "1. Strike out with −∞.",
            "rest_cut": "The value is right, but no gradient flows through the rest's mass: it left autograd (detach, "
            "no_grad, .item).",
            "no_gradient": "No gradient flows back to the student: it left autograd (detach, no_grad, .item, a new "
            "torch.tensor). Nothing would be learned.",
        },
    ),
    Mistake(
        "nan",
        "A teacher that leaves nothing over has a tail of −∞, and 0 · (−∞) is NaN. Such a term is 0.",
        like=TailBucket("nan"),
        when=not_a_number,
    ),
)
