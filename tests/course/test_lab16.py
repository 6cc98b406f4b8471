"""Lab 16: references against transformers' block, labkit's plan and placement, EPLB's example, a simulated pipeline."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from labkit.core import placement
from labkit.core.config import MoEConfig
from labkit.course import labs
from labkit.course.grade import grade
from labkit.course.ranks import together
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.nn.oracle import hf_block
from labkit.train.parallel import traffic

EXERCISES = {exercise.name: exercise for exercise in labs.lab("16").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}


def fractions(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- references do as others


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_visits_are_the_rows_that_labkit_sends(ranks):
    ids = [fractions(7 * ranks + r, 3 * r, 8).topk(3).indices for r in range(ranks)]
    send, receive, visits = PART["splits"](ids, torch.arange(8) * ranks // 8, ranks)
    assert visits.tolist() == traffic(ids, 8, d_model=4).rows_RR.tolist()
    assert send.sum().item() == sum(each.numel() for each in ids)
    assert torch.equal(receive, send.T)


@pytest.mark.parametrize("cuts", [[0, 23], [0, 9, 23], [0, 9, 9, 23], [0, 1, 2, 22, 23]])
def test_a_layer_over_ranks_is_transformers_block_with_its_gradients(cuts):
    config = MoEConfig(
        d_model=16, d_expert=8, num_experts=8, top_k=3, num_shared_experts=1, score_fn="sigmoid",
        group_score="top2_sum",
    )  # fmt: skip
    block = hf_block("deepseek_v3", config, seed=2)
    x = fractions(3, 23, 16) - 0.5
    with torch.no_grad():
        _, scores, ids = block.gate(x)
    owner = torch.randint(len(cuts) - 1, (8,), generator=torch.Generator().manual_seed(5))

    def experts(rows, which):
        return block.experts(rows, which[:, None], torch.ones(len(which), 1))

    def slopes(y, x):
        return torch.autograd.grad((y * fractions(4, *y.shape)).sum(), [x, *block.experts.parameters()])

    def on_ranks(x):
        parts = [tuple(t[a:b] for t in (x, ids, scores)) for a, b in itertools.pairwise(cuts)]
        return torch.cat(
            together(lambda r, exchange: PART["dispatch"](*parts[r], owner, len(parts), exchange, experts), len(parts))
        )

    one, many = x.clone().requires_grad_(), x.clone().requires_grad_()
    whole, spread = block.experts(one, ids, scores), on_ranks(many)
    torch.testing.assert_close(spread, whole, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(slopes(spread, many), slopes(whole, one), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_no_token_visits_more_nodes_than_it_may_and_no_better_choice_lies_on_them():
    scores = fractions(1, 200, 64) - 0.5
    for limit in (1, 2, 4, 8):
        ids = PART["node_limited"](scores, 8, limit, 8)
        for row, nodes in zip(scores, (ids // 8).tolist(), strict=True):
            assert len(set(nodes)) <= limit
            open_ = torch.tensor([e // 8 in nodes for e in range(64)])
            assert row[open_].topk(8).values.sum() <= row.topk(8).values.sum()
    assert torch.equal(PART["node_limited"](scores, 8, 8, 8), scores.topk(8).indices)


@pytest.mark.parametrize("seed", range(20))
def test_copies_make_the_largest_load_of_a_copy_as_small_as_it_can_be(seed):
    draw = random.Random(seed)
    load = [draw.randint(0, 40) for _ in range(4)]
    slots = draw.randint(4, 9)
    copies = PART["replicate"](load, slots)
    assert copies == placement.copies_for(load, slots).tolist()
    every = (c for c in itertools.product(range(1, slots), repeat=4) if sum(c) == slots)
    best = min(max(value / count for value, count in zip(load, c, strict=True)) for c in every)
    assert max(value / count for value, count in zip(load, copies, strict=True)) == best


@pytest.mark.parametrize("seed", range(20))
def test_packing_is_labkits_before_it_swaps_and_near_the_best(seed):
    draw = random.Random(seed)
    load = [draw.randint(0, 40) for _ in range(6)]
    ranks = PART["pack"](load, 3)
    assert ranks == placement.pack(load, 3, exchange=False).tolist()
    assert all(ranks.count(rank) == 2 for rank in range(3))
    best = min(
        max(sum(value for value, at in zip(load, way, strict=True) if at == rank) for rank in range(3))
        for way in itertools.product(range(3), repeat=6)
        if all(way.count(rank) == 2 for rank in range(3))
    )
    worst = max(sum(value for value, at in zip(load, ranks, strict=True) if at == rank) for rank in range(3))
    assert worst <= best * 4 / 3 + 1e-9


PUBLISHED = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)
"""Each slot's expert, two slots a GPU, four GPUs a node: EPLB's README (github.com/deepseek-ai/EPLB at d52c72d)."""


@pytest.mark.parametrize("layer", [0, 1])
def test_groups_then_copies_then_packing_load_gpus_as_eplb_does_on_its_example(layer):
    from labkit.course.labs._16_cases import EPLB

    load = EPLB[layer]
    node_of = PART["pack"]([sum(load[3 * g : 3 * g + 3]) for g in range(4)], 2)
    ours = []
    for node in range(2):
        members = [e for e in range(12) if node_of[e // 3] == node]
        copies = PART["replicate"]([load[e] for e in members], 8)
        each = [load[e] / count for e, count in zip(members, copies, strict=True) for _ in range(count)]
        at = PART["pack"](each, 4)
        ours += [sum(value for value, rank in zip(each, at, strict=True) if rank == r) for r in range(4)]
    share = [load[e] / PUBLISHED[layer].count(e) for e in PUBLISHED[layer]]
    theirs = [share[2 * gpu] + share[2 * gpu + 1] for gpu in range(8)]
    assert sorted(ours) == pytest.approx(sorted(theirs))


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (1, 5), (4, 1), (4, 6), (7, 3)])
def test_a_pipeline_takes_as_long_as_one_that_is_played_through(stages, micro_batches):
    done = [[0.0] * micro_batches for _ in range(stages)]
    for p, m in itertools.product(range(stages), range(micro_batches)):
        ready = max(done[p - 1][m] if p else 0.0, done[p][m - 1] if m else 0.0)
        done[p][m] = ready + 0.5
    seconds, bubble, binds = PART["step_time"](0.5, 1e9, 1e9, 400, 160, stages, micro_batches, True)
    assert seconds == pytest.approx(done[-1][-1])
    assert bubble == pytest.approx(1 - micro_batches * 0.5 / seconds)
    assert binds == "compute"


# ------------------------------------------------------------------------------------------------- ranks in one process


def test_rows_go_where_they_are_sent_and_gradients_come_back():
    x = [torch.arange(3.0, requires_grad=True), torch.arange(10.0, 12.0, requires_grad=True)]
    plan = [([1, 2], [1, 2]), ([2, 0], [2, 0])]
    got = together(lambda rank, exchange: exchange(x[rank], *plan[rank]), 2)
    assert [part.tolist() for part in got] == [[0, 10, 11], [1, 2]]
    (got[0].sum() + 2 * got[1].sum()).backward()
    assert [part.grad.tolist() for part in x] == [[1, 2, 2], [1, 1]]


def test_a_group_that_does_not_agree_says_what_is_wrong():
    one = torch.zeros(1)
    with pytest.raises(RuntimeError, match="rank 1 has returned, and rank 0 waits for it in exchange 1"):
        together(lambda rank, exchange: exchange(one, [1, 0], [1, 0]) if rank == 0 else None, 2)
    with pytest.raises(RuntimeError, match="rank 0 sends 1 rows to rank 0, which expects 0"):
        together(lambda rank, exchange: exchange(one, [1, 0], [0, 0]), 2)
    with pytest.raises(ValueError, match="sum up to others"):
        together(lambda rank, exchange: exchange(one, [1, 1], [1, 1]), 2)


# ----------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(name for name, exercise in EXERCISES.items() if exercise.oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 6


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("splits", "experts_visited"), ("splits", "even_blocks"), ("node_limited", "equal_shares"),
     ("node_limited", "best_expert")],
)  # fmt: skip
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_one_practice_seed_is_enough_to_tell_every_mistake(name):
    exercise = EXERCISES[name]
    for mistake in exercise.mistakes:
        assert exercise.test(mistake.like, (0,)).diagnosis == mistake.name


def test_no_case_of_this_lab_is_dropped_for_another():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            assert [c.label for c in exercise.inputs((seed,))] == [c.label for c in exercise.cases(seed)]


@pytest.mark.sandbox
def test_lab_16_is_graded_in_the_sandbox(tmp_path):
    """One wrong answer is found among right ones, and ranks in one process work there."""
    notebook = solved_notebook("16")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("16.dispatch"):
            cell.source = cell.source.replace("back_ND[order_N.argsort()]", "back_ND[order_N]")
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert wrong == {"16.dispatch": "wrong_inverse"}
