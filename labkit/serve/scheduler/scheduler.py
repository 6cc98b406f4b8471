"""Which sequences compute which tokens in the next step.

One step, in this order: every sequence that decodes gets its one token; what is left of the step's tokens goes to
prompts that have begun, the first come first; then new ones start, while there is room. Where a decoding sequence needs
a block and none is free, the one that came last loses its blocks and waits again, its tokens kept: it will compute them
anew (preemption by recompute: Kwon et al. 2023, arXiv 2309.06180, section 4.5).

Why everything ends: sequences have one order, arrival plus `patience` for each level of priority, fixed when they are
added. Nobody starts before who stands in front in that order, and only a later one is ever preempted for an earlier
one. So the first of those that run moves on at every step, and whoever waits comes to be first: those who can still
overtake it arrived within `patience` × the difference in priority.

Left out on purpose: one step ahead of the results (the next step is known only when the last one's tokens are), and
swapping blocks to the host. Sequences that start in the same step do not share what they both compute in it: a block
can be found once it is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from labkit.serve.cache.blocks import BlockPool
from labkit.serve.scheduler.invariants import broken
from labkit.serve.scheduler.limits import Full, Limits
from labkit.serve.scheduler.line import Line
from labkit.serve.scheduler.plan import Plan
from labkit.serve.scheduler.sequence import Sequence, Status
from labkit.serve.scheduler.step import Chunk, Load, Step

RUNNING = Status.RUNNING


class Scheduler:
    """Continuous batching over a paged cache.

    The caller's loop: `schedule`, compute what it says, sample, `update`, `finish` what has ended. In between it may
    `add`, `cancel` and `fork`. Not safe from several threads at once.

    Args:
        limits: see `Limits`.

    >>> scheduler = Scheduler(Limits(num_blocks=4, block_size=2))
    >>> scheduler.add(Sequence("a", prompt=(5, 6, 7), max_tokens=2))
    >>> step = scheduler.schedule()
    >>> step.chunks
    (Chunk(id='a', start=0, tokens=(5, 6, 7), blocks=(0, 1), samples=True),)
    >>> scheduler.update(step, {"a": 8})
    >>> scheduler.schedule().chunks
    (Chunk(id='a', start=3, tokens=(8,), blocks=(0, 1), samples=True),)
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks, limits.block_size)
        self.waiting, self.running = Line(), Line()
        self.waiting_tokens = 0
        self.sequences: dict[str, Sequence] = {}
        self._step: Step | None = None
        self._work: list[tuple[Sequence, Chunk]] = []
        self._added = self._steps = self._computed = self._queried = self._cached = 0
        self._preemptions = self._finished = self._cancelled = 0

    def __len__(self) -> int:
        return len(self.sequences)

    def __contains__(self, id: str) -> bool:
        return id in self.sequences

    def __getitem__(self, id: str) -> Sequence:
        """A sequence that waits or runs. Raises ValueError for any other."""
        try:
            return self.sequences[id]
        except KeyError:
            raise ValueError(f"no sequence {id!r} waits or runs; it has ended, or was never added") from None

    # --- what comes and goes

    def add(self, sequence: Sequence, *, insist: bool = False) -> None:
        """Let it wait for its turn, though the queue be full if you `insist` (it had been accepted before).

        Raises ValueError for one that could not run even alone, or was added before, and `Full` if the queue is full.
        """
        if sequence.status is not None:
            raise ValueError(f"sequence {sequence.id!r} was added before; make a new one")
        self._need_new(sequence.id)
        self.limits.fit(len(sequence.prompt), sequence.max_tokens)
        tokens = len(sequence.prompt) + sequence.max_tokens
        if not insist and self.limits.full(len(self.waiting), self.waiting_tokens, tokens):
            raise Full(f"{len(self.waiting)} sequences of {self.waiting_tokens} tokens wait; try again later")
        self._enter(sequence, sequence.arrival + self.limits.patience * sequence.priority)
        self._wait(sequence)

    def cancel(self, id: str) -> bool:
        """Drop a sequence and free its blocks at once; False if it has ended already."""
        if id not in self.sequences:
            return False
        self._leave(self.sequences[id], Status.CANCELLED)
        self._cancelled += 1
        return True

    def finish(self, id: str, *, forget: bool = False) -> Sequence:
        """A sequence has all its tokens: free its blocks.

        Args:
            forget: let nobody find the blocks again, as when they hold something that is no number.

        Raises ValueError if it neither waits nor runs.
        """
        sequence = self[id]
        if forget:
            self.pool.forget(sequence.blocks)
        self._leave(sequence, Status.FINISHED)
        self._finished += 1
        return sequence

    def fork(self, id: str, new_ids: Iterable[str]) -> None:
        """More continuations of a sequence as it stands, on the same blocks; who writes first copies.

        Between `schedule` and `update` of a step that samples, the forks take part in that step: `update` wants a token
        for each. Those for which there is no place run later, from what the cache still has.

        Raises ValueError if it does not run, its prompt is not computed yet, or an id is taken.
        """
        parent, new_ids = self[id], list(new_ids)
        chunk = next((chunk for sequence, chunk in self._work if sequence is parent), None)
        if parent.status is not RUNNING or not (chunk.samples if chunk else parent.todo == 1 and parent.num_computed):
            raise ValueError(f"sequence {id!r} has not computed its prompt; fork it at the step that samples, or later")
        for at, new in enumerate(new_ids):
            self._need_new(new)
            if new in new_ids[:at]:
                raise ValueError(f"{new!r} is given twice; every fork needs an id of its own")
        for new in new_ids:
            twin = parent.twin(new)
            self._enter(twin, parent.rank[0])
            if len(self.running) < self.limits.max_sequences:
                self.pool.share(parent.blocks)
                twin.blocks, twin.num_computed, twin.status = parent.blocks, parent.num_computed, RUNNING
                self.running.add(twin)
            else:
                self._wait(twin)
            if chunk:
                self._work.append((twin, chunk))

    def reset(self) -> list[str]:
        """All that was computed is lost (the worker died): whoever runs waits again, and nothing is in the cache.

        Returns the ids of those that ran. A step that was in flight is void.
        """
        lost = list(self.running.items)
        for sequence in lost:
            self._preempt(sequence)
        self.pool.forget()
        self._step, self._work = None, []
        return [sequence.id for sequence in lost]

    # --- one step

    def schedule(self, now: float = 0.0) -> Step:
        """The next step; an empty one only if nothing waits or runs.

        Args:
            now: seconds, on the clock of the arrivals; noted in the step, and for sequences that start.

        Raises ValueError while a step's tokens are missing (`update`), or the step was lost (`reset`).
        """
        if self._step is not None:
            raise ValueError(f"step {self._step.number} is in flight; call update with its tokens, or reset")
        plan = Plan(self.limits.max_tokens_per_step)
        prompts = self._decode(plan)
        for sequence in prompts:
            if not plan.budget:
                break
            plan.compute(sequence)
        self._admit(plan, now)
        if not plan.work:
            return Step(self._steps)
        self._steps += 1
        self._step, self._work = plan.step(self._steps, now), plan.work
        return self._step

    def _decode(self, plan: Plan) -> list[Sequence]:
        """One token for each sequence that needs no more; returns those that need more."""
        prompts, running, size = [], self.running.items, self.limits.block_size
        references, work, at = self.pool.references, plan.work, 0
        while at < len(running):  # it grows shorter at the end when one is preempted
            sequence = running[at]
            start, tokens = sequence.num_computed, sequence.tokens
            if len(tokens) - start > 1:
                prompts.append(sequence)
            else:
                blocks = sequence.blocks
                if start == len(blocks) * size or references[blocks[-1]] > 1:
                    if not self._writable(sequence, plan):
                        break
                    blocks = sequence.blocks
                work.append((sequence, Chunk(sequence.id, start, (tokens[-1],), blocks, True)))
            at += 1
        plan.budget -= len(work)
        return prompts

    def _writable(self, sequence: Sequence, plan: Plan) -> bool:
        """Give it a block of its own to write its next position into; False if it had to go itself."""
        blocks, pool = sequence.blocks, self.pool
        new = sequence.num_computed == len(blocks) * self.limits.block_size
        while not pool.free and (new or pool.shared(blocks[-1])):
            last = self.running.items[-1]
            self._preempt(last)
            plan.preempted.append(last.id)
            if last is sequence:
                return False
        if new:
            sequence.blocks = (*blocks, *pool.allocate(1))
        elif pool.shared(blocks[-1]):
            (copy,) = pool.allocate(1)
            plan.copies.append((blocks[-1], copy))
            pool.release(blocks[-1:])
            sequence.blocks = (*blocks[:-1], copy)
        return True

    def _admit(self, plan: Plan, now: float) -> None:
        """Start those that wait, strictly in order; not in a step that had to preempt."""
        waiting, running = self.waiting.items, self.running.items
        while plan.budget and waiting and not plan.preempted and len(running) < self.limits.max_sequences:
            sequence = waiting[0]
            if not self._start(sequence):
                return
            self.running.add(sequence)
            if sequence.admitted is None:
                sequence.admitted, sequence.cached_tokens = now, sequence.num_computed
                plan.cached[sequence.id] = sequence.num_computed
            plan.compute(sequence)

    def _start(self, sequence: Sequence) -> bool:
        """Take blocks for all its tokens, known ones first; False if there are too few."""
        pool, size, tokens = self.pool, self.limits.block_size, len(sequence.tokens)
        found: list[int] = []
        if self.limits.reuse_prefixes and sequence.reuse:  # one token at least is computed: its logits are needed
            found = pool.find(sequence.name_blocks((tokens - 1) // size, size))
        missing, others = -(-tokens // size) - len(found), len(self.running.items)
        if missing + self.limits.reserve * others > pool.free_without(found):
            return False
        pool.share(found)
        self._stop_waiting(sequence)
        sequence.blocks = (*found, *pool.allocate(missing))
        sequence.num_computed, sequence.status = len(found) * size, RUNNING
        self._queried += tokens
        self._cached += sequence.num_computed
        return True

    def update(self, step: Step, tokens: Mapping[str, int]) -> None:
        """The step was computed: note how far each sequence is, and its new token.

        Args:
            step: as `schedule` gave it.
            tokens: by id, for each chunk that samples and each fork of it; those that left meanwhile may be missing.

        Raises ValueError, with nothing changed, for another step, a missing token, or one that nobody asked for.
        """
        if step is not self._step:
            raise ValueError(f"step {step.number} is not in flight; update each step once, right after it ran")
        self._check_tokens(tokens)
        size, reuse = self.limits.block_size, self.limits.reuse_prefixes
        for sequence, chunk in self._work:
            if sequence.status is RUNNING:
                start = chunk.start
                sequence.num_computed = done = start + len(chunk.tokens)
                if reuse and done // size > start // size:
                    self._keep(sequence, start // size, done // size)
            elif sequence.status is not Status.WAITING:
                continue
            if chunk.samples:
                sequence.tokens.append(tokens[sequence.id])
        self._computed += step.num_tokens
        self._step, self._work = None, []

    def _check_tokens(self, tokens: Mapping[str, int]) -> None:
        live = (RUNNING, Status.WAITING)  # one that waits was forked in this step
        wanted = [sequence for sequence, chunk in self._work if chunk.samples and sequence.status in live]
        for sequence in wanted:
            if type(token := tokens.get(sequence.id)) is not int:
                raise ValueError(f"the token of sequence {sequence.id!r} is {token!r}; its chunk samples: give an id")
            if len(sequence.tokens) - len(sequence.prompt) >= sequence.max_tokens:
                raise ValueError(f"sequence {sequence.id!r} has its {sequence.max_tokens} tokens; call finish for it")
        if len(tokens) > len(wanted):
            known = {sequence.id for sequence, chunk in self._work if chunk.samples}
            if unknown := [id for id in tokens if id not in known]:
                raise ValueError(f"tokens for {', '.join(map(repr, unknown))}, of which no chunk samples one")

    def _keep(self, sequence: Sequence, first: int, end: int) -> None:
        """Let its blocks from `first` up to `end` be found: they are full now."""
        digests = sequence.name_blocks(end, self.limits.block_size)
        for at in range(first, end):
            self.pool.keep(sequence.blocks[at], digests[at])

    # --- lines and books

    def _need_new(self, id: str) -> None:
        if id in self.sequences:
            raise ValueError(f"a sequence {id!r} waits or runs already; ids must differ")

    def _enter(self, sequence: Sequence, due: float) -> None:
        sequence.rank = (due, self._added)
        self._added += 1
        self.sequences[sequence.id] = sequence

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        self.waiting.add(sequence)
        self.waiting_tokens += len(sequence.prompt) + sequence.max_tokens

    def _stop_waiting(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.waiting_tokens -= len(sequence.prompt) + sequence.max_tokens

    def _drop_blocks(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = ()

    def _preempt(self, sequence: Sequence) -> None:
        self._drop_blocks(sequence)
        sequence.num_computed = 0
        sequence.preemptions += 1
        self._preemptions += 1
        self._wait(sequence)

    def _leave(self, sequence: Sequence, status: Status) -> None:
        if sequence.status is RUNNING:
            self._drop_blocks(sequence)
        else:
            self._stop_waiting(sequence)
        sequence.status = status
        del self.sequences[sequence.id]

    def load(self) -> Load:
        """How busy it is."""
        return Load(
            len(self.waiting), self.waiting_tokens, len(self.running),
            self.pool.num_blocks, self.pool.free, self.pool.kept,
            self._steps, self._computed, self._queried, self._cached,
            self._preemptions, self.pool.evictions, self._finished, self._cancelled,
        )  # fmt: skip

    def check(self) -> None:
        """Raise RuntimeError if its books or the pool's contradict themselves; slow, made for tests."""
        if wrong := broken(self):
            raise RuntimeError(f"the scheduler is broken: {'; '.join(wrong)}")
        self.pool.check([sequence.blocks for sequence in self.running.items])
