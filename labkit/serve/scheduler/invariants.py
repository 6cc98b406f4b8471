"""What must hold of a scheduler between any two calls."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from labkit.serve.scheduler.sequence import Sequence, Status

if TYPE_CHECKING:
    from labkit.serve.scheduler.scheduler import Scheduler


def broken(scheduler: Scheduler) -> list[str]:
    """What does not hold, as sentences; slow, made for tests. The pool's own books are checked by `BlockPool.check`."""
    limits, waiting, running = scheduler.limits, scheduler.waiting.items, scheduler.running.items
    wrong = []
    for name, line in (("waiting", waiting), ("running", running)):
        if any(sequence.status is not Status(name) for sequence in line):
            wrong.append(f"a sequence in the {name} line says otherwise")
        if any(before.rank >= after.rank for before, after in pairwise(line)):
            wrong.append(f"the {name} line is out of order")
    if {sequence.id: sequence for sequence in [*waiting, *running]} != scheduler.sequences:
        wrong.append("a sequence stands in no line, or in two")
    if sum(len(sequence.prompt) + sequence.max_tokens for sequence in waiting) != scheduler.waiting_tokens:
        wrong.append("the tokens that wait are counted wrongly")
    if len(running) > limits.max_sequences:
        wrong.append("more sequences run than may")
    for sequence in waiting:
        if sequence.blocks or sequence.num_computed:
            wrong.append(f"sequence {sequence.id!r} waits and holds blocks")
    for sequence in running:
        size, held = limits.block_size, len(sequence.blocks)
        if len(set(sequence.blocks)) != held:
            wrong.append(f"sequence {sequence.id!r} holds a block twice")
        if not sequence.num_computed <= held * size < len(sequence.tokens) + size:
            wrong.append(f"sequence {sequence.id!r} holds too few blocks, or too many")
        if len(sequence.tokens) > len(sequence.prompt) + sequence.max_tokens:
            wrong.append(f"sequence {sequence.id!r} has more tokens than it asked for")
        fresh = Sequence("fresh", tuple(sequence.tokens), 1, salt=sequence.salt)
        if sequence.digests != fresh.name_blocks(len(sequence.digests), size):
            wrong.append(f"sequence {sequence.id!r} names its blocks wrongly")
    return wrong
