"""Reports arrive as they were, and do not tell what is known."""

from __future__ import annotations

import pickle
import random

from labkit.serve.engine import StepReport
from labkit.serve.scheduler import Chunk, Limits, Scheduler, Sequence, Step
from labkit.serve.worker.reports import Reports


def report(step: Step) -> StepReport:
    return StepReport(step, 1.0, 0.5, 1, 2, ((1, 2),), (("1.0", "stop"),))


def test_a_scheduler_s_steps_arrive_whole():
    """With copies on write, preemptions, prefixes found again, and sequences that miss a step."""
    draw = random.Random(1)
    scheduler = Scheduler(Limits(num_blocks=14, block_size=2, max_context=20, max_tokens_per_step=7, max_sequences=5))
    here, there = Reports(), Reports()
    preempted = copied = steps = 0
    for number in range(60):
        prompt = tuple(draw.randrange(2) for _ in range(draw.randrange(1, 9)))
        scheduler.add(Sequence(str(number), prompt, draw.randrange(1, 9)))
        for _ in range(draw.randrange(1, 6)):
            if step := scheduler.schedule():
                assert there.unpack(pickle.loads(pickle.dumps(here.pack(report(step))))) == report(step)
                scheduler.update(step, {chunk.id: draw.randrange(2) for chunk in step.chunks if chunk.samples})
            steps, preempted, copied = steps + bool(step), preempted + len(step.preempted), copied + len(step.copies)
            for sequence in list(scheduler.running.items):
                if len(sequence.tokens) >= len(sequence.prompt) + sequence.max_tokens:
                    scheduler.finish(sequence.id)
                elif sequence.todo == 1 and sequence.num_computed and draw.random() < 0.1:
                    scheduler.fork(sequence.id, [f"{sequence.id}+{steps}"])
    assert min(steps, preempted, copied) > 0


def test_blocks_are_told_once():
    here = Reports()
    many = tuple(range(1_000, 1_500))
    first = len(pickle.dumps(here.pack(report(Step(1, (Chunk("a", 7_000, (5,), many, True),))))))
    second = len(pickle.dumps(here.pack(report(Step(2, (Chunk("a", 7_001, (5,), (*many, 7), True),))))))
    assert first > 1_500
    assert second < 700


def test_a_sequence_that_comes_back_elsewhere_is_told_anew():
    here, there = Reports(), Reports()
    for blocks in ((1, 2, 3), (4, 5), (4, 9), (4, 9, 1), (7,), ()):
        step = Step(1, (Chunk("a", 0, (5,), blocks, True),))
        assert there.unpack(here.pack(report(step))).step == step
