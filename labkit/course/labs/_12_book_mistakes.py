"""Lab 12: mistakes as a learner makes them, in lists and counts. Each class is an answer with one thing wrong."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence


class Bucket:
    """`bucket` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, lengths: Sequence[int], size: int, percent: int) -> list[list[int]]:
        wrong, batches = self.wrong, []
        for i in self._order(lengths):
            batch = batches[-1] if batches else []
            if batch and self._room(batch, size) and self._alike([lengths[j] for j in batch], lengths[i], percent):
                batch.append(i)
            else:
                batches.append([i])
        if wrong == "in_order_inside":
            return [sorted(batch) for batch in batches]
        if wrong == "lengths_returned":
            return [[lengths[i] for i in batch] for batch in batches]
        if wrong == "last_lost":
            return batches[:-1]
        return batches

    def _order(self, lengths: Sequence[int]) -> list[int]:
        order = range(len(lengths))
        if self.wrong == "unsorted":
            return list(order)
        if self.wrong == "longest_first":
            return sorted(order, key=lambda i: -lengths[i])
        if self.wrong == "ties_reversed":
            return sorted(order, key=lambda i: (lengths[i], -i))
        return sorted(order, key=lambda i: lengths[i])

    def _room(self, batch: list[int], size: int) -> bool:
        return {"no_size": True, "one_too_many": len(batch) <= size, "one_too_few": len(batch) < max(size - 1, 1)}.get(
            self.wrong, len(batch) < size
        )

    def _alike(self, batch: list[int], new: int, percent: int) -> bool:
        wrong, first = self.wrong, batch[0]
        if wrong == "longest_first":
            return 100 * (first - new) <= percent * first
        if wrong == "no_bound":
            return True
        if wrong == "neighbours":
            return 100 * (new - batch[-1]) <= percent * new
        if wrong == "of_the_shortest":
            return 100 * (new - first) <= percent * first
        if wrong == "whole_batch":
            wide = (len(batch) + 1) * new
            return 100 * (wide - sum(batch) - new) <= percent * wide
        if wrong == "strict":
            return 100 * (new - first) < percent * new or (new == first and percent > 0)
        if wrong == "rounded":
            return 1 - first / new <= percent / 100
        if wrong == "tokens":
            return new - first <= percent
        if wrong == "share_kept":
            return 100 * first <= percent * new or first == new
        return 100 * (new - first) <= percent * new


class NextStep:
    """`next_step` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong, _, self.how = wrong.partition(", ")

    def __call__(
        self, running: Sequence[Mapping], waiting: Sequence[Mapping], free: int, budget: int, block_size: int
    ) -> tuple[list[tuple[str, int]], list[str], int]:
        self.free, self.size, self.chunks, self.preempted = free, block_size, [], []
        self.running, whole = list(running), budget
        if self.wrong == "waiting_first":
            budget = self._admit(waiting, budget)
        prompts = self._decode()
        if self.wrong != "decode_is_free":
            budget -= sum(1 for id, _ in self.chunks if any(s["id"] == id for s in running))
        if self.wrong != "begun_forgotten":
            budget = self._go_on(prompts, budget)
        if self.wrong == "budget_each":
            budget = whole
        if self.wrong != "waiting_first":
            self._admit(waiting, budget)
        if self.wrong == "preempted_reversed":
            self.preempted.reverse()
        return self.chunks, self.preempted, self.free

    def _decode(self) -> list[Mapping]:
        wrong, at, prompts = self.wrong, 0, []
        while at < len(self.running):
            sequence = self.running[at]
            if sequence["tokens"] - sequence["computed"] > 1:
                prompts.append(sequence)
            else:
                needs = self._needs(sequence)
                if needs and not self.free and not self._make_room(sequence):
                    if wrong == "waits_instead":
                        at += 1
                        continue
                    break
                self.free -= needs
                self.chunks.append((sequence["id"], 1))
            at += 1
        return prompts

    def _needs(self, sequence: Mapping) -> bool:
        full = sequence["blocks"] * self.size
        if self.wrong == "always_a_block":
            return True
        if self.wrong == "block_too_early":
            return sequence["tokens"] == full
        if self.wrong == "block_too_late":
            return sequence["computed"] > full
        return sequence["computed"] == full

    def _make_room(self, sequence: Mapping) -> bool:
        """Whether there is a free block now, and the sequence still runs."""
        wrong = self.wrong
        if wrong == "waits_instead":
            return False
        while not self.free:
            at = {"first_preempted": 0, "itself_preempted": self.running.index(sequence)}.get(wrong, -1)
            if wrong == "largest_preempted":
                at = max(
                    range(self.running.index(sequence), len(self.running)), key=lambda i: self.running[i]["blocks"]
                )
            if wrong == "others_only" and self.running[-1] is sequence:
                return False
            last = self.running.pop(at)
            self.preempted.append(last["id"])
            if self.how != "chunk kept":
                self.chunks = [chunk for chunk in self.chunks if chunk[0] != last["id"]]
            self.free += {"one_block_back": 1, "blocks_lost": 0}.get(wrong, last["blocks"])
            if last is sequence or (wrong == "first_preempted" and sequence not in self.running):
                return False
        return True

    def _go_on(self, prompts: Sequence[Mapping], budget: int) -> int:
        for sequence in prompts:
            if sequence not in self.running and self.how != "chunk kept":
                continue
            chunk = sequence["tokens"] - sequence["computed"]
            if self.wrong == "all_tokens_again":
                chunk = sequence["tokens"]
            chunk = chunk if self.wrong == "prompts_whole" else min(budget, chunk)
            if self.wrong == "begun_take_blocks":
                self.free -= -(-chunk // self.size)
            if chunk or self.wrong == "empty_chunks":
                self.chunks.append((sequence["id"], chunk))
            budget = max(budget - chunk, 0)
        return budget

    def _admit(self, waiting: Sequence[Mapping], budget: int) -> int:
        wrong = self.wrong
        for sequence in waiting:
            blocks = self._blocks(sequence["tokens"], budget)
            if (self.preempted and wrong != "admits_after_preempting") or (not budget and wrong != "empty_chunks"):
                break
            if blocks > self.free and wrong != "overbooked":
                if wrong == "overtakes":
                    continue
                break
            if blocks == self.free and wrong == "one_kept_back":
                break
            chunk = sequence["tokens"] if wrong == "prompts_whole" else min(budget, sequence["tokens"])
            if wrong == "only_whole_prompts" and chunk < sequence["tokens"]:
                break
            self.chunks.append((sequence["id"], chunk))
            self.free -= blocks
            budget = max(budget - chunk, 0)
            if wrong == "one_admitted":
                break
        return budget

    def _blocks(self, tokens: int, budget: int) -> int:
        if self.wrong == "rounded_down":
            return tokens // self.size
        if self.wrong == "a_block_more":
            return tokens // self.size + 1
        if self.wrong == "blocks_of_the_chunk":
            return -(-min(tokens, budget) // self.size)
        return -(-tokens // self.size)


class Place:
    """`place` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, position: int, table: Sequence[int], holders: Sequence[int], block_size: int
    ) -> tuple[int, list[int], list[int], tuple[int, int] | None]:
        wrong, table, holders, copy = self.wrong, list(table), list(holders), None
        at, offset = divmod(position, block_size)
        new, block = at == len(table), None if at == len(table) else table[at]
        if new or self._copies(table, at, holders):
            old, block = block, self._free(holders)
            holders[block] = 0 if wrong == "new_not_counted" else 1
            if new:
                table.append(block)
            else:
                copy = (old, block)
                holders[old] -= {"old_not_released": 0, "old_freed": holders[old]}.get(wrong, 1)
                table[at] = old if wrong == "table_kept" else block
                block = old if wrong == "old_row" else block
        row = {
            "no_offset": block * block_size, "position": position, "block_plus_offset": block + offset,
            "whole_position": block * block_size + position, "block": block,
        }.get(wrong, block * block_size + offset)  # fmt: skip
        copy = copy[::-1] if copy and wrong == "copy_reversed" else copy
        return row, table, holders, None if wrong == "copy_not_said" else copy

    def _copies(self, table: list[int], at: int, holders: list[int]) -> bool:
        wrong, count = self.wrong, holders[table[at]]
        if wrong == "any_shared":
            return any(holders[block] > 1 for block in table)
        return {"never_copies": False, "always_copies": True, "two_may_share": count > 2}.get(wrong, count > 1)

    def _free(self, holders: list[int]) -> int:
        wrong = self.wrong
        if 0 not in holders:
            if wrong == "takes_anothers":
                return min(range(len(holders)), key=holders.__getitem__)
            if wrong == "grows":
                holders.append(0)
                return len(holders) - 1
            raise ValueError("no block is free")
        free = [block for block, count in enumerate(holders) if count == 0]
        return free[-1] if wrong == "highest_free" else free[0]


class Latencies:
    """`latencies` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, arrived: Mapping[str, float], tokens: Sequence[tuple[float, str]], percent: int
    ) -> tuple[float | None, float | None]:
        wrong, by_id = self.wrong, {}
        for second, id in tokens:
            by_id.setdefault(id, []).append(second)
        start = min(arrived.values(), default=0.0)
        first = [times[0] - arrived[id] for id, times in by_id.items()]
        if wrong == "from_the_start":
            first = [times[0] - start for times in by_id.values()]
        if wrong == "not_since_arrival":
            first = [times[0] for times in by_id.values()]
        if wrong == "to_the_last":
            first = [times[-1] - arrived[id] for id, times in by_id.items()]
        if wrong == "waiting_as_zero":
            first += [0.0] * (len(arrived) - len(by_id))
        if wrong == "waiting_as_infinite":
            first += [math.inf] * (len(arrived) - len(by_id))
        gaps = self._gaps(tokens, by_id, first)
        return self._at(first, percent), self._at(gaps, percent)

    def _gaps(self, tokens: Sequence[tuple[float, str]], by_id: dict[str, list[float]], first: list[float]) -> list:
        wrong = self.wrong
        if wrong == "between_any_two":
            return [b[0] - a[0] for a, b in itertools.pairwise(tokens)]
        each = [[b - a for a, b in itertools.pairwise(times)] for times in by_id.values()]
        if wrong == "mean_of_each":
            return [statistics.fmean(gaps) for gaps in each if gaps]
        if wrong == "longest_of_each":
            return [max(gaps) for gaps in each if gaps]
        if wrong == "since_the_first":
            return [time - times[0] for times in by_id.values() for time in times[1:]]
        flat = [gap for gaps in each for gap in gaps]
        return [*first, *flat] if wrong == "first_among_gaps" else flat

    def _at(self, values: list[float], percent: int) -> float | None:
        wrong, count = self.wrong, len(values)
        if not count:
            return 0.0 if wrong == "nothing_is_zero" else None
        if wrong == "mean":
            return statistics.fmean(values)
        if wrong == "interpolated":
            at = (count - 1) * percent / 100
            low, high = sorted(values)[math.floor(at)], sorted(values)[math.ceil(at)]
            return low + (high - low) * (at - math.floor(at))
        ordered = values if wrong == "unsorted" else sorted(values, reverse=wrong == "from_the_longest")
        if wrong == "one_further":
            return ordered[min(percent * count // 100, count - 1)]
        if wrong == "rounded_down":
            return ordered[max(percent * count // 100 - 1, 0)]
        if wrong == "float_rank":
            return ordered[math.ceil(percent / 100 * count) - 1]
        return ordered[-(-percent * count // 100) - 1]
