"""Answers to lab 13 as learners might write them: wrong ones with the mistake to be found, and right ones.

Wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import math

import torch
import torch.nn.functional as F
from edits import wrong

# --------------------------------------------------------------------------------------------------------- soft_loss


def soft(student, teacher, labels, T, hard):
    """Everything at every position; what does not count is weighed with 0."""
    V = student.shape[-1]
    student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
    real = (labels != -100).float()
    if real.sum() == 0:
        raise ValueError("nothing to learn")
    text = F.cross_entropy(student.reshape(-1, V), labels.reshape(-1), reduction="none").view(real.shape)
    p, q = torch.softmax(teacher / T, -1), torch.log_softmax(student / T, -1)
    kl = F.kl_div(q, p, reduction="none").sum(-1)
    each = hard * text + (1 - hard) * T * T * kl
    return (each * real).sum() / real.sum()


MIXED = "each = hard * text + (1 - hard) * T * T * kl\n    return (each * real).sum() / real.sum()"
SOFT = {
    "no_square": {"* T * T *": "*"},
    "linear": {"* T * T *": "* T *"},
    "divided": {"* T * T *": "/ T / T *"},
    "student_only": {"softmax(teacher / T": "softmax(teacher"},
    "teacher_only": {"softmax(student / T": "softmax(student"},
    "multiplied": {"teacher / T": "teacher * T", "student / T": "student * T"},
    "square_on_both": {"hard * text + (1 - hard) * T * T * kl": "T * T * (hard * text + (1 - hard) * kl)"},
    "text_softened": {"student.reshape(-1, V)": "student.reshape(-1, V) / T"},
    "shares_swapped": {"hard * text + (1 - hard) *": "(1 - hard) * text + hard *"},
    "soft_added_whole": {"(1 - hard) * T": "T"},
    "text_added_whole": {"= hard * text": "= text"},
    "reversed": {"kl_div(q, p,": "kl_div(p.log(), q.exp(),"},
    "cross_entropy": {'F.kl_div(q, p, reduction="none").sum(-1)': "-(p * q).sum(-1)"},
    "argmax": {'F.kl_div(q, p, reduction="none").sum(-1)': "-q.gather(-1, p.argmax(-1, keepdim=True))[..., 0]"},
    "not_shifted": {"student[:, :-1], teacher[:, :-1], labels[:, 1:]": "student, teacher, labels"},
    "shifted_back": {
        "student[:, :-1], teacher[:, :-1], labels[:, 1:]": "student[:, 1:], teacher[:, 1:], labels[:, :-1]"
    },
    "teacher_shifted": {"teacher[:, :-1]": "teacher[:, 1:]"},
    "soft_padding": {
        "(each * real).sum() / real.sum()": "((each - soft) * real).sum() / real.sum() + (soft * real).mean()",
        "    each =": "    soft = (1 - hard) * T * T * kl\n    each =",
    },
    "padding_counted": {"/ real.sum()": "/ real.numel()"},
    "last_counted": {"/ real.sum()": "/ (real.sum() + len(real))"},
    "sums": {" / real.sum()": ""},
    "per_sequence": {"* kl": "* kl * real.sum() / len(real)"},
    "vocabulary_mean": {".sum(-1)\n    each": ".mean(-1)\n    each"},
    "unmasked": {
        MIXED: "each = hard * text\n    return (each * real).sum() / real.sum() + (1 - hard) * T * T * kl.mean()"
    },
    "mask_not_shifted": {
        "student, teacher, labels = student[": "now = (labels[:, :-1] != -100).float()\n    student, teacher, labels = "
        "student[",
        MIXED: "each = hard * text"
        "\n    return (each * real).sum() / real.sum() + (1 - hard) * T * T * (kl * now).sum() / now.sum()",
    },
    "mean_of_means": {
        MIXED: "each = hard * text"
        "\n    rows = (kl * real).sum(1) / (real.sum(1) + 1e-9)\n    return (each * real).sum() / real.sum() + "
        "(1 - hard) * T * T * rows.mean()"
    },
    "soft_summed": {"* kl": "* kl * real.sum()"},
    "over_positions": {
        "softmax(teacher / T, -1)": "softmax(teacher / T, 1)",
        "softmax(student / T, -1)": "softmax(student / T, 1)",
    },
    "kl_div_without_log": {"torch.log_softmax(student": "torch.softmax(student"},
    "no_gradient": {"student, teacher, labels = student[": "student, teacher, labels = student.data["},
    "nothing_accepted": {"if real.sum() == 0": "if False"},
}

# -------------------------------------------------------------------------------------------------------- divergence


def apart(student, teacher, beta):
    """Keeps the teacher's possible tokens alone, where it weighs."""

    def kl(a, b):
        possible = a > -math.inf
        ratio = torch.where(possible, a, 0.0) - torch.where(possible, b, 0.0)
        return (a.exp() * ratio).sum(dim=-1)

    s, t = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    if beta in (0, 1):
        return kl(s, t) if beta else kl(t, s)
    weights = torch.tensor([beta, 1 - beta]).log()
    m = torch.stack([t + weights[0], s + weights[1]]).logsumexp(0)
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def apart_in_probabilities(student, teacher, beta):
    """The teacher's entropy apart, by xlogy; the student's logarithms from log_softmax."""
    logq, p = student.log_softmax(-1), teacher.softmax(-1)
    q = logq.exp()
    if beta == 0:
        return torch.special.xlogy(p, p).sum(-1) - (p * logq).sum(-1)
    logp = teacher.log_softmax(-1)
    if beta == 1:
        return (q * (logq - logp)).sum(-1)
    logm = torch.logaddexp(logp + math.log(beta), logq + math.log(1 - beta))
    first = torch.special.xlogy(p, p) - p * logm
    return (beta * first + (1 - beta) * q * (logq - logm)).sum(-1)


APART = {
    "swapped": {"kl(s, t) if beta else kl(t, s)": "kl(t, s) if beta else kl(s, t)", "log()": "flip(0).log()",
                "beta * kl(t, m) + (1 - beta) * kl(s, m)": "(1 - beta) * kl(t, m) + beta * kl(s, m)"},
    "mixture_reversed": {"[beta, 1 - beta]": "[1 - beta, beta]"},
    "half_mixture": {"[beta, 1 - beta]": "[0.5, 0.5]"},
    "weights_reversed": {"beta * kl(t, m) + (1 - beta) * kl(s, m)": "(1 - beta) * kl(t, m) + beta * kl(s, m)"},
    "unweighted": {"beta * kl(t, m) + (1 - beta) * kl(s, m)": "kl(t, m) + kl(s, m)"},
    "from_the_mixture": {"kl(t, m)": "kl(m, t)", "kl(s, m)": "kl(m, s)"},
    "two_kls": {"beta * kl(t, m) + (1 - beta) * kl(s, m)": "beta * kl(s, t) + (1 - beta) * kl(t, s)"},
    "mean_of_logs": {"m = torch.stack([t + weights[0], s + weights[1]]).logsumexp(0)": "m = beta * t + (1 - beta) * s"},
    "no_ends": {"if beta in (0, 1)": "if False"},
    "divided_by_beta": {"beta * kl(t, m) + (1 - beta) * kl": "kl(t, m) + (1 - beta) / beta * kl"},
    "small_number": {"F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)":
                     "torch.log(student.softmax(-1) + 1e-6), torch.log(teacher.softmax(-1) + 1e-6)"},
    "log_of_softmax": {"F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)":
                       "student.softmax(-1).log(), teacher.softmax(-1).log()"},
    "probabilities_twice": {"F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)":
                            "F.log_softmax(student.softmax(-1), -1), F.log_softmax(teacher.softmax(-1), -1)"},
    "half_weights": {"beta * kl(t, m) + (1 - beta) * kl(s, m)": "0.5 * (kl(t, m) + kl(s, m))"},
    "over_positions": {"dim=-1), F": "dim=0), F", "teacher, dim=-1)": "teacher, dim=0)"},
    "nan_hidden": {"torch.where(possible, a, 0.0) - torch.where(possible, b, 0.0)": "a - b",
                   "sum(dim=-1)": "sum(dim=-1).nan_to_num(0.0)"},
    "mixture_underflows": {"m = torch.stack([t + weights[0], s + weights[1]]).logsumexp(0)":
                           "m = (beta * t.exp() + (1 - beta) * s.exp()).log()"},
    "no_gradient": {"F.log_softmax(student, dim": "F.log_softmax(student.detach(), dim"},
    "vocabulary_mean": {"sum(dim=-1)": "mean(dim=-1)"},
    "one_number": {"sum(dim=-1)": "sum(dim=-1).mean()"},
    "nan": {"torch.where(possible, a, 0.0) - torch.where(possible, b, 0.0)": "a - b"},
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------- tail_bucket


def bucket(student, ids, logp, tail):
    """Position by position."""
    found = []
    for row, kept, a, left in zip(student, ids, logp, tail, strict=True):
        other = torch.ones_like(row, dtype=torch.bool)
        other[kept] = False
        total = torch.logsumexp(row, 0)
        value = torch.sum(a.exp() * (a - (row[kept] - total)))
        rest = torch.logsumexp(row[other], 0) - total
        if left > -math.inf:
            value = value + left.exp() * (left - rest)
        found.append(value)
    return torch.stack(found)


BUCKET = {
    "rescaled": {"zip(student, ids, logp, tail,": "zip(student, ids, logp.log_softmax(-1), tail - math.inf,"},
    "both_rescaled": {
        "zip(student, ids, logp, tail,": "zip(student, ids, logp.log_softmax(-1), tail - math.inf,",
        "total = torch.logsumexp(row, 0)": "total = torch.logsumexp(row[kept], 0)",
    },
    "tail_dropped": {"left > -math.inf": "False"},
    "tail_alone": {"value = torch.sum(a.exp() * (a - (row[kept] - total)))": "value = 0.0 * row.sum()"},
    "one_minus": {
        "rest = torch.logsumexp(row[other], 0) - total": "rest = (1 - (row[kept] - total).exp().sum()).log()"
    },
    "one_minus_bounded": {
        "torch.logsumexp(row[other], 0) - total": "(1 - (row[kept] - total).exp().sum()).clamp(min=1e-8).log()"
    },
    "students_top": {"        other = ": "        kept = row.topk(len(kept)).indices\n        other = "},
    "rest_of_the_students_top": {"row[other]": "row.sort(descending=True).values[len(kept) :]"},
    "mean_of_the_rest": {"row[other], 0) - total": "row[other], 0) - total - other.sum().log()"},
    "logits_for_logs": {"total = torch.logsumexp(row, 0)": "total = 0.0"},
    "tail_is_no_log": {
        "left.exp() * (left - rest)": "left.exp().exp() * (left.exp() - rest)",
        "left > -math.inf": "True",
    },
    "first_columns": {"row[kept]": "row[: len(kept)]"},
    "reversed": {
        "a.exp() * (a - (row[kept] - total))": "(row[kept] - total).exp() * ((row[kept] - total) - a)",
        "left.exp() * (left - rest)": "rest.exp() * (rest - left)",
        "left > -math.inf": "True",
    },
    "cross_entropy": {"(a - (row[kept] - total))": "(total - row[kept])", "(left - rest)": "(0.0 - rest)"},
    "mean": {"torch.stack(found)": "torch.stack(found) / (ids.shape[1] + 1)"},
    "one_number": {"torch.stack(found)": "torch.stack(found).mean()"},
    "rest_from_logits": {"torch.logsumexp(row[other], 0) - total": "torch.logsumexp(row[other], 0)"},
    "struck_out_with_zero": {
        "torch.logsumexp(row[other], 0) - total": "torch.where(other, row - total, 0.0).logsumexp(0)"
    },
    "rest_cut": {"torch.logsumexp(row[other], 0) - total": "(torch.logsumexp(row[other], 0) - total).detach()"},
    "no_gradient": {"zip(student,": "zip(student.detach(),"},
    "nan": {"left > -math.inf": "True"},
}

# ------------------------------------------------------------------------------------------------------- equal_steps


def steps_alone(steps, student, teacher, students=1, epochs=1):
    """What the teacher adds, in steps, beside those that were there."""
    work = []
    for model in (student, teacher):
        experts = model["top_k"] * model["expert"] if "top_k" in model else 0
        work.append(model["dense"] + model["head"] + experts)
    more = steps * work[1] // (3 * work[0] * students * epochs)
    return steps + more


STEPS = {
    "counted_alike": {"3 * work[0]": "work[0]"},
    "teacher_free": {"steps + more": "steps"},
    "teacher_alone": {"steps + more": "more"},
    "student_twice": {"3 * work[0]": "2 * work[0]"},
    "all_experts": {'model["top_k"] *': 'model["num_experts"] *'},
    "one_expert": {'model["top_k"] *': "1 *"},
    "experts_forgotten": {" + experts)": ")"},
    "head_left_out": {' + model["head"]': ""},
    "embedding_counted": {' + model["head"]': ' + model["head"] + model["embedding"]'},
    "nothing_shared": {" * students * epochs": ""},
    "epochs_ignored": {" * epochs": ""},
    "students_ignored": {" * students": ""},
    "shared_the_wrong_way": {"work[1] //": "work[1] * students * epochs //", "work[0] * students * epochs": "work[0]"},
    "epochs_the_wrong_way": {"work[1] //": "work[1] * epochs //", " * students * epochs": " * students"},
    "epochs_twice": {"    work = []": "    steps = steps * epochs\n    work = []"},
    "own_steps_shared": {"steps * work[1] //": "steps * (3 * work[0] + work[1]) //", "steps + more": "more"},
    "exchanged": {"(student, teacher):": "(teacher, student):"},
    "sum_for_product": {"students * epochs": "(students + epochs)"},
    "upside_down": {
        "return steps + more": "return int(steps / (1 + work[1] / (3 * work[0] * students * epochs)) + 1e-9)"
    },
    "rounded_up": {"steps * work[1] //": "-(-steps * work[1] //", "* epochs)": "* epochs))"},
    "rounded_early": {
        "steps * work[1] // (3 * work[0] * students * epochs)": "steps * (work[1] // (3 * work[0] * students * epochs))"
    },
    "not_whole": {"steps * work[1] //": "steps * work[1] /"},
}

# ------------------------------------------------------------------------------------------------------------- prune


def fewer(layer, used, number, top_k):
    """Marks who stays."""
    E = len(used)
    if number < 1 or number > E:
        raise ValueError(f"{number} of {E}")
    ranked = sorted(range(E), key=lambda e: (-used[e].item(), e))
    stays = torch.tensor([e in ranked[:number] for e in range(E)])
    new = {}
    for name, tensor in layer.items():
        own = name.split(".")[0] in ("router", "experts")
        new[name] = tensor[stays] if own else tensor
    return new, top_k if top_k <= number else number


FEWER = {
    "rows_kept": {'in ("router", "experts")': '== "experts"'},
    "bias_kept": {'in ("router", "experts")': 'in ("router", "experts") and "bias" not in name'},
    "experts_kept": {'in ("router", "experts")': '== "router"'},
    "down_kept": {'in ("router", "experts")': 'in ("router", "experts") and "down" not in name'},
    "in_order_of_use": {"torch.tensor([e in ranked[:number] for e in range(E)])": "torch.tensor(ranked[:number])"},
    "first_ones": {"ranked = sorted(range(E), key=lambda e: (-used[e].item(), e))": "ranked = list(range(E))"},
    "least_used": {"-used[e].item()": "used[e].item()"},
    "dropped_for_kept": {"e in ranked[:number]": "e not in ranked[:number]"},
    "those_above_average": {"e in ranked[:number]": "bool(used[e] >= used.mean())"},
    "higher_number_wins": {"(-used[e].item(), e)": "(-used[e].item(), -e)"},
    "by_size": {'own = name.split(".")[0] in ("router", "experts")': "own = len(tensor) == E"},
    "equals_all_kept": {"e in ranked[:number]": "bool(used[e] >= used[ranked[number - 1]])"},
    "shared_cut": {"tensor[stays] if own else tensor": "tensor[stays.nonzero()[:, 0]]"},
    "equals_at_random": {"(-used[e].item(), e)": "(-used[e].item(), abs(e - 3))"},
    "refuses_all": {"number > E": "number >= E"},
    "top_k_in_proportion": {"top_k if top_k <= number else number": "max(1, top_k * number // E)"},
    "zeroed": {
        "tensor[stays] if own": "torch.where(stays.view(-1, *[1] * (tensor.ndim - 1)), tensor, torch.zeros(())) if own"
    },
    "shared_dropped": {
        "    return new, ": "    new = {name: t for name, t in new.items() if 'shared' not in name}\n    return new, "
    },
    "top_k_kept": {"top_k if top_k <= number else number": "top_k"},
    "top_k_is_number": {"top_k if top_k <= number else number": "number"},
    "accepts_anything": {"number < 1 or number > E": "False"},
}

# ------------------------------------------------------------------------------------------------------------- align


def in_order(anchor, other):
    """Goes through all pairs from the most alike on."""
    (gu, down), F_ = other, other[1].shape[1]
    a, b = anchor[0].view(2, F_, -1), gu.view(2, F_, -1)
    alike = (a[0] @ b[0].T) + (a[1] @ b[1].T) + (anchor[1].T @ down)
    pairs = sorted((-alike[i, j].item(), i, j) for i in range(F_) for j in range(F_))
    place, taken = {}, set()
    for _, i, j in pairs:
        if i not in place and j not in taken:
            place[i] = j
            taken.add(j)
    order = [place[i] for i in range(F_)]
    return b[:, order].reshape(gu.shape), down[:, order]


ORDER = {
    "gate_without_up": {"b[:, order].reshape(gu.shape)": "torch.cat([b[0][order], b[1]])"},
    "up_without_gate": {"b[:, order].reshape(gu.shape)": "torch.cat([b[0], b[1][order]])"},
    "down_kept": {"down[:, order]": "down"},
    "rows_kept": {"b[:, order].reshape(gu.shape)": "gu"},
    "inverse": {
        "order = [place[i] for i in range(F_)]": "order = [{j: i for i, j in place.items()}[i] for i in range(F_)]"
    },
    "halves_exchanged": {"b[:, order]": "b.flip(0)[:, order]"},
    "interleaved": {"b[:, order]": "b[:, order].transpose(0, 1)"},
    "anchor_moved": {"b[:, order]": "a[:, order]", "down[:, order]": "anchor[1][:, order]"},
    "roles_exchanged": {"    (gu, down)": "    anchor, other = other, anchor\n    (gu, down)"},
    "averaged": {
        "b[:, order].reshape(gu.shape)": "(anchor[0] + b[:, order].reshape(gu.shape)) / 2",
        "down[:, order]": "(anchor[1] + down[:, order]) / 2",
    },
    "row_after_row": {"(-alike[i, j].item(), i, j)": "(i, -alike[i, j].item(), j)", "for _, i, j in": "for i, _, j in"},
    "gate_alone": {" + (a[1] @ b[1].T) + (anchor[1].T @ down)": ""},
    "up_alone": {"(a[0] @ b[0].T) + ": "", " + (anchor[1].T @ down)": ""},
    "down_left_out": {" + (anchor[1].T @ down)": ""},
    "down_alone": {"(a[0] @ b[0].T) + (a[1] @ b[1].T) + ": ""},
    "cosine": {
        "    pairs": "    size = lambda x, d: (x.square().sum((0, 2)) + d.square().sum(0)).sqrt()\n"
        "    alike = alike / size(a, anchor[1])[:, None] / size(b, down)\n    pairs"
    },
    "distance": {
        "    pairs": "    size = lambda x, d: x.square().sum((0, 2)) + d.square().sum(0)\n"
        "    alike = 2 * alike - size(a, anchor[1])[:, None] - size(b, down)\n    pairs"
    },
    "least_alike": {"(-alike": "(alike"},
    "absolute": {"-alike[i, j].item()": "-alike[i, j].abs().item()"},
    "each_its_best": {" and j not in taken": ""},
}

NEAR_MISSES = {
    "13.soft_loss": wrong(soft, SOFT),
    "13.divergence": wrong(apart, APART),
    "13.tail_bucket": wrong(bucket, BUCKET),
    "13.equal_steps": wrong(steps_alone, STEPS),
    "13.prune": wrong(fewer, FEWER),
    "13.align": wrong(in_order, ORDER),
}

RIGHT_ANSWERS = {
    "13.soft_loss": [soft],
    "13.divergence": [apart, apart_in_probabilities],
    "13.tail_bucket": [bucket],
    "13.equal_steps": [steps_alone],
    "13.prune": [fewer],
    "13.align": [in_order],
}
