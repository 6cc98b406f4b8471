"""Lab 13: the inputs that answers are compared on."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.given import input_gradient


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _ids(seed: int, V: int, *shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------- soft_loss


def soft_cases(seed: int) -> list[Case]:
    def case(
        at: int, sizes: tuple[int, int, int], T: float, hard: float, label: str, real: tuple[int, ...] = ()
    ) -> Case:
        """`real`: how many tokens of each sequence have a label."""
        B, S, V = sizes
        labels_BS = _ids(at + 2, V, B, S)
        if real:
            labels_BS = labels_BS.masked_fill(torch.arange(S) >= torch.tensor(real)[:, None], -100)
        student, teacher = _normal(at, B, S, V, scale=2.0), _normal(at + 1, B, S, V, scale=2.0)
        return Case((student, teacher, labels_BS, T, hard), label=label)

    to_learn = case(seed + 90, (2, 4, 5), 2.0, 0.4, "the student's gradient, at temperature 2", (4, 3))
    return [
        case(seed, (1, 2, 3), 1.0, 0.0, "one prediction, the teacher alone"),
        case(seed + 10, (1, 2, 3), 1.0, 1.0, "one prediction, the text alone"),
        case(seed + 20, (2, 4, 5), 1.0, 0.3, "both, at temperature 1"),
        case(seed + 30, (2, 4, 5), 3.0, 0.0, "the teacher alone, at temperature 3"),
        case(seed + 40, (2, 5, 7), 2.0, 0.4, "both, at temperature 2"),
        case(seed + 50, (3, 6, 5), 0.5, 0.6, "both, at temperature 1/2"),
        case(seed + 60, (2, 6, 4), 2.0, 0.25, "the second sequence is padded", (6, 3)),
        case(seed + 70, (3, 5, 4), 4.0, 0.5, "one sequence has no label", (5, 0, 2)),
        case(seed + 80, (2, 3, 4), 2.0, 0.5, "no label at all: ValueError", (0, 0)),
        Case(to_learn.args, label=to_learn.label, through=input_gradient),
    ]


# -------------------------------------------------------------------------------------------------------- divergence


def divergence_cases(seed: int) -> list[Case]:
    def pair(at: int, T: int, V: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        return _normal(at, T, V, scale=scale), _normal(at + 1, T, V, scale=scale)

    impossible = _normal(seed + 91, 3, 5)
    impossible[0, 1], impossible[1, 3:] = -inf, -inf
    far = (torch.tensor([[0.0, 200.0, -50.0]]), torch.tensor([[150.0, 0.0, -300.0]]))
    through = {"through": input_gradient}
    return [
        Case((*pair(seed, 1, 2), 0.0), label="two tokens, forward"),
        Case((*pair(seed, 1, 2), 1.0), label="two tokens, reverse"),
        Case((*pair(seed, 1, 2), 0.5), label="two tokens, half-way"),
        Case((*pair(seed + 10, 4, 7), 0.0), label="forward"),
        Case((*pair(seed + 20, 4, 7), 1.0), label="reverse"),
        Case((*pair(seed + 30, 4, 7), 0.1), label="β = 0.1"),
        Case((*pair(seed + 40, 4, 7), 0.9), label="β = 0.9"),
        Case((*far, 0.0), label="forward, logits of hundreds"),
        Case((*far, 1.0), label="reverse, logits of hundreds"),
        Case((*far, 0.3), label="β = 0.3, logits of hundreds"),
        Case((_normal(seed + 90, 3, 5), impossible, 0.0), label="forward, tokens that the teacher rules out"),
        Case((_normal(seed + 90, 3, 5), impossible, 0.3), label="β = 0.3, tokens that the teacher rules out"),
        Case((*pair(seed + 50, 3, 5), 0.25), label="the student's gradient at β = 0.25", **through),
        Case((_normal(seed + 92, 3, 5), impossible, 0.0), label="the student's gradient, tokens ruled out", **through),
    ]


# ------------------------------------------------------------------------------------------------------- tail_bucket


def tail_cases(seed: int) -> list[Case]:
    def kept(teacher_TV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's k likeliest tokens, not in order, and the log of the rest's mass."""
        logp_TV = teacher_TV.double().log_softmax(-1)
        top = logp_TV.topk(k, dim=-1)
        rest_T = logp_TV.scatter(-1, top.indices, -inf).logsumexp(-1)
        turned = torch.arange(k).roll(1)
        return top.indices[:, turned], top.values[:, turned].float(), rest_T.float()

    def case(at: int, T: int, V: int, k: int, label: str, student: float = 2.0, teacher: float = 2.0) -> Case:
        return Case((_normal(at, T, V, scale=student), *kept(_normal(at + 1, T, V, scale=teacher), k)), label=label)

    sure = _normal(seed + 60, 2, 6)
    sure[:, 2] += 25.0  # the rest has a mass of about 10⁻¹¹: 1 − the others is 0 in float32
    alike = _normal(seed + 70, 3, 8)
    certain = torch.full((2, 5), -inf)
    certain[:, 1] = 0.0
    gradient = Case(
        (_normal(seed + 80, 3, 6), *kept(_normal(seed + 81, 3, 6), 2)), label="the student's gradient",
        through=input_gradient,
    )  # fmt: skip
    return [
        case(seed, 1, 3, 1, "three tokens, one kept"),
        case(seed + 10, 4, 9, 3, "nine tokens, three kept"),
        case(seed + 20, 3, 40, 8, "forty tokens, eight kept", 1.0, 1.0),
        case(seed + 30, 5, 6, 5, "one token is the rest"),
        Case((sure, *kept(sure * 0.5, 1)), label="a student that is sure of a kept token"),
        Case((-sure, *kept(_normal(seed + 61, 2, 6), 3)), label="a student that rules a token out"),
        Case((alike, *kept(alike, 3)), label="student and teacher alike: 0"),
        Case((_normal(seed + 71, 2, 5), *kept(certain, 1)), label="a teacher without any rest"),
        gradient,
    ]


# ------------------------------------------------------------------------------------------------------- equal_steps


def steps_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draw))

    def dense(size: int, vocab: int = 0) -> dict[str, int]:
        return {"embedding": vocab, "dense": size, "head": vocab}

    def sparse(size: int, vocab: int, expert: int, E: int, K: int) -> dict[str, int]:
        return dense(size, vocab) | {"expert": expert, "num_experts": E, "top_k": K}

    drawn = sparse(between(900, 2000), between(300, 900), between(100, 400), 16, between(2, 5))
    small = dense(between(100, 300), between(200, 400))
    return [
        Case((10, dense(10), dense(60)), label="a teacher of six students' work"),
        Case((100, dense(10), dense(10)), label="a teacher as large as the student"),
        Case((10, dense(4, 6), dense(40, 20)), label="with embeddings and heads"),
        Case((10, dense(10), sparse(20, 0, 5, 16, 2)), label="a teacher with experts"),
        Case((30, sparse(6, 2, 1, 4, 2), sparse(30, 10, 5, 16, 4)), label="a student with experts, too"),
        Case((300, small, drawn), label="larger numbers"),
        Case((300, small, drawn, 3), label="three students listen"),
        Case((300, small, drawn, 1, 4), label="four epochs over what the teacher said"),
        Case((300, small, drawn, 2, 5), label="two students, five epochs"),
        Case((1, dense(10), dense(14)), label="a single step"),
    ]


# ------------------------------------------------------------------------------------------------------------- prune


def prune_cases(seed: int) -> list[Case]:
    def layer(at: int, E: int, D: int, F: int, bias: bool = False, shared: bool = False) -> dict[str, Tensor]:
        found = {"router.weight_ED": _normal(at, E, D)}
        if bias:
            found["router.expert_bias_E"] = _normal(at + 1, E)
        found |= {"experts.gate_up_E2FD": _normal(at + 2, E, 2 * F, D), "experts.down_EDF": _normal(at + 3, E, D, F)}
        if shared:
            found |= {"shared.gate_up_2FD": _normal(at + 4, 2 * F, D), "shared.down_DF": _normal(at + 5, D, F)}
        return found

    used_8 = torch.rand(8, generator=torch.Generator().manual_seed(seed)) + 0.1
    tied = torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1, 0.1])
    return [
        Case((layer(seed, 3, 2, 1), torch.tensor([0.2, 0.5, 0.3]), 2, 1), label="three experts, two stay"),
        Case((layer(seed + 10, 8, 3, 2), used_8, 4, 2), label="eight experts, four stay"),
        Case((layer(seed + 20, 8, 3, 2, bias=True), used_8.flip(0), 5, 2), label="with a selection bias"),
        Case((layer(seed + 30, 8, 4, 2, True, True), used_8, 3, 2), label="with a shared expert and a bias"),
        Case((layer(seed + 40, 8, 3, 4, shared=True), used_8, 6, 2), label="a shared expert of eight rows"),
        Case((layer(seed + 50, 8, 8, 3), used_8.roll(3), 2, 4), label="fewer stay than a token chose"),
        Case((layer(seed + 60, 6, 3, 2), tied, 3, 2), label="equals: the lower number stays"),
        Case((layer(seed + 70, 4, 3, 2), used_8[:4], 4, 2), label="all stay"),
        Case((layer(seed + 80, 4, 3, 2), used_8[:4], 5, 2), label="more than there are: ValueError"),
        Case((layer(seed + 80, 4, 3, 2), used_8[:4], 0, 2), label="none: ValueError"),
    ]


# ------------------------------------------------------------------------------------------------------------- align


def align_cases(seed: int) -> list[Case]:
    def expert(at: int, F: int, D: int) -> tuple[Tensor, Tensor]:
        return _normal(at, 2 * F, D), _normal(at + 1, D, F)

    def shuffled(at: int, one: tuple[Tensor, Tensor], noise: float) -> tuple[Tensor, Tensor]:
        """The same units in another order, and a little different."""
        gate_up, down = one
        F = down.shape[1]
        order = torch.randperm(F, generator=torch.Generator().manual_seed(at))
        gate, up = gate_up.chunk(2)
        moved = torch.cat([gate[order], up[order]]), down[:, order]
        return tuple(part + _normal(at + 1 + i, *part.shape, scale=noise) for i, part in enumerate(moved))

    def case(at: int, F: int, D: int, noise: float, label: str) -> Case:
        one = expert(at, F, D)
        return Case((one, shuffled(at + 5, one, noise)), label=label)

    ones = torch.ones(4, 1)
    swapped = (torch.tensor([[1.0], [5.0], [2.0], [7.0]]), torch.tensor([[3.0, -4.0]]))
    return [
        Case(((torch.tensor([[5.0], [1.0], [7.0], [2.0]]), torch.tensor([[-4.0, 3.0]])), swapped), label="two units"),
        Case(((ones, torch.tensor([[3.0, -4.0]])), (ones, torch.tensor([[-4.0, 3.0]]))), label="told apart by down"),
        case(seed, 3, 4, 0.0, "three units, shuffled"),
        case(seed + 10, 6, 6, 0.0, "six units in width six"),
        case(seed + 20, 7, 5, 0.3, "seven units that differ a little"),
        Case((expert(seed + 30, 5, 3), expert(seed + 40, 5, 3)), label="two experts that have nothing in common"),
        Case((expert(seed + 50, 8, 2), expert(seed + 60, 8, 2)), label="eight units, some of them wanted twice"),
        case(seed + 70, 1, 3, 0.2, "a single unit"),
    ]
