"""Lab 12: references against the scheduler, the cache and the measures that the course serves with."""

from __future__ import annotations

import itertools
import random
from functools import lru_cache

import pytest
import torch

from labkit.core.config import ModelConfig, MoEConfig
from labkit.course import labs
from labkit.course.grade import grade
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.nn import Transformer
from labkit.serve.scheduler import Limits, Scheduler, Sequence
from labkit.serve.scheduler.simulate import Spread

EXERCISES = {exercise.name: exercise for exercise in labs.lab("12").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}


# ------------------------------------------------------------------------------------- references do as labkit does


def test_a_padded_batch_answers_as_each_prompt_alone():
    torch.manual_seed(0)
    config = ModelConfig(
        "small", 32, 2, 16, num_heads=2, num_kv_heads=1, head_dim=8,
        moe=MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2),
    )  # fmt: skip
    model = Transformer(config).eval()
    prompts = [[3, 4, 5, 6, 7], [8], [9, 1, 1]]
    ids, mask, positions = PART["left_pad"](prompts, 1)
    with torch.no_grad():
        together = model(ids, mask, position_ids=positions).logits[:, -1]
        alone = torch.cat([model(torch.tensor([prompt])).logits[:, -1] for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_buckets_keep_to_their_bound_and_no_partition_has_fewer(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 14))]
    size, percent = draw.randint(1, 5), draw.choice([0, 10, 30, 50, 80])
    batches = PART["bucket"](lengths, size, percent)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    ordered = sorted(lengths)

    def fits(batch):
        return len(batch) <= size and all(100 * (max(batch) - one) <= percent * max(batch) for one in batch)

    @lru_cache
    def fewest(start):
        ends = [end for end in range(start + 1, len(ordered) + 1) if fits(tuple(ordered[start:end]))]
        return min((1 + fewest(end) for end in ends), default=0)

    assert all(fits([lengths[i] for i in batch]) for batch in batches)
    assert len(batches) == fewest(0)


@pytest.mark.parametrize("seed", range(12))
def test_a_step_is_what_the_scheduler_decides(seed):
    """Step after step, from the same state, until everything has its answer."""
    draw = random.Random(seed)
    limits = Limits(
        draw.randint(8, 14), block_size=draw.randint(2, 4), max_tokens_per_step=draw.randint(6, 20), max_sequences=6,
        reserve=0, reuse_prefixes=False,
    )  # fmt: skip
    scheduler, preempted, steps = Scheduler(limits), 0, 0
    for i in range(6):
        scheduler.add(Sequence(f"s{i}", tuple(range(draw.randint(1, 7))), draw.randint(1, 9)))

    def state(line):
        return [
            {"id": s.id, "tokens": len(s.tokens), "computed": s.num_computed, "blocks": len(s.blocks)}
            for s in line.items
        ]

    while len(scheduler):
        before = state(scheduler.running), state(scheduler.waiting), scheduler.pool.free
        step = scheduler.schedule()
        chunks, gone, free = PART["next_step"](*before, limits.max_tokens_per_step, limits.block_size)
        assert chunks == [(chunk.id, len(chunk.tokens)) for chunk in step.chunks]
        assert (tuple(gone), free) == (step.preempted, scheduler.pool.free)
        scheduler.update(step, {chunk.id: 0 for chunk in step.chunks if chunk.samples})
        for sequence in list(scheduler.running.items):
            if len(sequence.produced) == sequence.max_tokens:
                scheduler.finish(sequence.id)
        preempted, steps = preempted + len(gone), steps + 1
    assert steps > 4
    scheduler.check()


def test_the_steps_of_that_test_do_preempt():
    """Six sequences in so few blocks do not fit, or the test above would show less than it says."""
    step = PART["next_step"]
    full = [{"id": id, "tokens": 5, "computed": 4, "blocks": 2} for id in "ab"]
    assert step(full, [], 0, 8, 2) == ([("a", 1)], ["b"], 1)


@pytest.mark.parametrize("seed", range(12))
def test_forked_sequences_never_write_into_each_other(seed):
    """Tokens stand for keys; forks come and go, and each must always read its own."""
    draw, size = random.Random(seed), 3
    holders, memory = [0] * 40, [None] * (40 * size)
    texts, tables = [[]], [[]]
    for now in range(120):
        at = draw.randrange(len(texts))
        if draw.random() < 0.12 and len(texts) < 5:
            texts.append(list(texts[at]))
            tables.append(list(tables[at]))
            for block in tables[at]:
                holders[block] += 1
        elif draw.random() < 0.1 and len(texts) > 1:
            texts.pop(at)
            for block in tables.pop(at):
                holders[block] -= 1
        elif len(texts[at]) < 20:
            row, tables[at], holders, copy = PART["place"](len(texts[at]), tables[at], holders, size)
            if copy:
                old, new = copy
                memory[new * size : (new + 1) * size] = memory[old * size : (old + 1) * size]
            memory[row] = now
            texts[at].append(now)
        for text, table in zip(texts, tables, strict=True):
            assert [memory[table[p // size] * size + p % size] for p in range(len(text))] == text
        counted = [block for table in tables for block in table]
        assert [counted.count(block) for block in range(40)] == holders


def test_percentiles_are_the_simulators():
    draw = random.Random(5)
    arrived = {f"r{i}": i / 8 for i in range(23)}
    tokens = sorted((arrived[id] + 0.25 + draw.randint(0, 40) / 16, id) for id in arrived for _ in range(4))
    for percent in (1, 25, 50, 90, 99, 100):
        ttft, gap = PART["latencies"](arrived, tokens, percent)
        times = [[second for second, who in tokens if who == id] for id in arrived]
        first = [seconds[0] - start for seconds, start in zip(times, arrived.values(), strict=True)]
        gaps = [b - a for seconds in times for a, b in itertools.pairwise(seconds)]
        for found, values in ((ttft, first), (gap, gaps)):
            assert found == Spread({value: values.count(value) for value in values}).at(percent / 100)


def test_numpy_still_makes_the_mistake_for_which_one_case_is_kept_from_it():
    values = list(range(25))
    arrived, tokens = dict.fromkeys(map(str, values), 0.0), [(float(v), str(v)) for v in values]
    assert PART["latencies"](arrived, tokens, 56)[0] == 13.0
    assert EXERCISES["latencies"].oracle.call(arrived, tokens, 56)[0] == 14.0


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(name for name, exercise in EXERCISES.items() if exercise.oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("left_pad", "mask_from_ids"),
        ("left_pad", "columns"),
        ("paged_attention", "heads_in_turn"),
        ("paged_attention", "nan"),
        ("latencies", "interpolated"),
        ("latencies", "between_any_two"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_no_case_of_this_lab_is_dropped_for_another():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            assert [c.label for c in exercise.inputs((seed,))] == [c.label for c in exercise.cases(seed)]


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_lab_12_is_graded_in_the_sandbox(tmp_path):
    """One wrong answer is found among right ones."""
    notebook = solved_notebook("12")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("12.place"):
            cell.source = cell.source.replace("holders[table[at]] -= 1", "pass")
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert wrong == {"12.place": "old_not_released"}
