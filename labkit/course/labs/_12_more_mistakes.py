"""Lab 12: more mistakes as learners make them: a right answer spoilt, or a step of the batch decided otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labkit.course.judge import Failure
from labkit.course.labs import _12_answers as right
from labkit.course.labs._12_book_mistakes import Bucket, Latencies


class LeftPadAfterwards:
    """`left_pad`, right until something is done with the result, or with the prompts before."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
        wrong = self.wrong
        if wrong == "by_length":
            prompts = sorted(prompts, key=len)
        ids_BS, mask_BS, positions_BS = right.left_pad(prompts, pad)
        if wrong == "positions_from_ids":
            positions_BS = ((ids_BS != pad).long().cumsum(1) - 1).clamp(min=0)
        if wrong == "one_at_padding":
            positions_BS = positions_BS.masked_fill(mask_BS == 0, 1)
        if wrong == "before_zero":
            positions_BS = torch.arange(ids_BS.shape[1]) - (1 - mask_BS).sum(1, keepdim=True)
        return ids_BS, mask_BS, positions_BS


class BucketOtherwise(Bucket):
    """`bucket` with another order, or another way to say how much padding is too much."""

    def _order(self, lengths: Sequence[int]) -> list[int]:
        if self.wrong == "first_of_equals":
            return [list(lengths).index(length) for length in sorted(lengths)]
        return super()._order(lengths)

    def _alike(self, batch: list[int], new: int, percent: int) -> bool:
        wrong, first = self.wrong, batch[0]
        return {
            "before_joining": 100 * (batch[-1] - first) <= percent * batch[-1],
            "whole_percents": 100 * (new - first) // new <= percent,
            "hundredfold": (new - first) / new * 100 <= percent,
            "kept": first >= (1 - percent / 100) * new,
            "allowed": new - first <= percent / 100 * new,
        }.get(wrong, super()._alike(batch, new, percent))


class Step:
    """`next_step` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong, _, self.how = wrong.partition(", ")

    def __call__(
        self, running: Sequence[Mapping], waiting: Sequence[Mapping], free: int, budget: int, block_size: int
    ) -> tuple[list[tuple[str, int]], list[str], int]:
        wrong, self.size, self.free = self.wrong, block_size, free
        self.line, self.chunks, self.gone = list(running), [], []
        whole = self._decode()
        budget -= len(running) if wrong == "running_counted" else len(self.chunks)
        if not (wrong == "ends_with_the_last" and not whole):
            prompts = running if wrong == "sent_back_goes_on" else self.line
            prompts = prompts[: self.came] if self.how == "as far as it came" else prompts
            for one in prompts:
                budget = self._chunk(one, one["tokens"] - one["computed"], budget) if self._begun(one) else budget
            self._admit([*(self.gone if wrong == "back_at_once" else []), *waiting], budget)
        if wrong == "in_order_of_running":
            place = [one["id"] for one in (*running, *waiting)].index
            self.chunks.sort(key=lambda chunk: place(chunk[0]))
        return self.chunks, [one["id"] for one in self.gone], self.free

    def _begun(self, one: Mapping) -> bool:
        return one["tokens"] - one["computed"] > 1 and not (self.wrong == "begun_decodes" and one["computed"])

    def _decode(self) -> bool:
        """Whether nobody who needed a block had to go."""
        wrong, at = self.wrong, 0
        while at < len(self.line):
            self.came = at
            one = self.line[at]
            if not self._begun(one):
                full = one["computed"] % self.size == 0 if wrong == "multiples" else (
                    one["computed"] == one["blocks"] * self.size
                )  # fmt: skip
                while full and not self.free and one in self.line:
                    self.gone.append(self.line.pop(self._last()))
                    self.free += self.gone[-1]["blocks"]
                if wrong != "still_computes" and one not in self.line:
                    return False
                at = self.line.index(one) if one in self.line else at
                self.free -= full and wrong != "block_not_taken"
                self.chunks.append((one["id"], 1))
            at += 1
        self.came = at
        return True

    def _last(self) -> int:
        begun = [at for at, one in enumerate(self.line) if self._begun(one)]
        others = [at for at in range(len(self.line)) if at not in begun]
        if self.wrong == "decoding_preempted":
            return others[-1]
        if self.wrong == "prompts_preempted" and begun and begun[-1] > len(self.chunks):
            return begun[-1]
        return -1

    def _chunk(self, one: Mapping, wanted: int, budget: int) -> int:
        if chunk := max(min(budget, wanted), 0):
            self.chunks.append((one["id"], chunk))
        return budget - chunk

    def _admit(self, waiting: Sequence[Mapping], budget: int) -> None:
        for one in waiting:
            blocks = -(-one["tokens"] // self.size)
            if (self.gone and self.wrong != "back_at_once") or budget <= 0 or blocks > self.free:
                return
            self.free -= 0 if self.wrong == "starts_take_nothing" else blocks
            budget = self._chunk(one, one["tokens"], budget)


class PlaceOtherwise:
    """`place` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, position: int, table: Sequence[int], holders: Sequence[int], block_size: int
    ) -> tuple[int, list[int], list[int], tuple[int, int] | None]:
        wrong, at = self.wrong, position // block_size
        if wrong == "refuses_early" and 0 not in holders:
            raise ValueError("no block is free")
        needs = at == len(table) or holders[table[at]] > 1
        if wrong == "zero_is_none" and needs and not holders[0]:
            raise ValueError("no block is free")
        if wrong == "last_block" and at < len(table) - 1:
            position += (len(table) - 1 - at) * block_size
        row, after, holders, copy = right.place(position, table, holders, block_size)
        if wrong == "copy_in_rows" and copy:
            copy = copy[0] * block_size, copy[1] * block_size
        if wrong == "added_on_copy" and copy:
            after = [*table, copy[1]]
        if wrong == "new_is_copied" and at == len(table):
            copy = None, after[-1]
        return row, after, holders, copy


class LatenciesOtherwise(Latencies):
    """`latencies` that leaves out some of the values, or takes another percentile of them."""

    def __call__(
        self, arrived: Mapping[str, float], tokens: Sequence[tuple[float, str]], percent: int
    ) -> tuple[float | None, float | None]:
        first, gaps = super().__call__(arrived, tokens, percent)
        if self.wrong == "swapped_pair":
            return gaps, first
        if self.wrong == "percentile_of_each":
            each = [right.latencies(arrived, [one for one in tokens if one[1] == id], percent)[1] for id in arrived]
            gaps = self._at([gap for gap in each if gap is not None], percent)
        return first, gaps

    def _gaps(self, tokens: Sequence[tuple[float, str]], by_id: dict[str, list[float]], first: list[float]) -> list:
        gaps = super()._gaps(tokens, by_id, first)
        return [gap for gap in gaps if gap] if self.wrong == "zeros_left_out" else gaps

    def _at(self, values: list[float], percent: int) -> float | None:
        if self.wrong == "rank_from_0, to the end" and values:
            return sorted(values)[-(-percent * len(values) // 100)]
        if self.wrong == "rank_from_0" and values:
            return sorted(values)[min(-(-percent * len(values) // 100), len(values) - 1)]
        return super()._at(list(set(values)) if self.wrong == "each_once" else values, percent)


def beyond_the_list(failure: Failure) -> bool:
    """Whether a rank was asked for that the list does not have."""
    return failure.outcome.error_type == "IndexError" and any(failure.expected)


def zero_refused(failure: Failure) -> bool:
    """Whether a pool was called full whose first free block is block 0."""
    return failure.outcome.error_type == "ValueError" and not failure.case.args[2][0]


def refused_early(failure: Failure) -> bool:
    """Whether a full pool was complained of where no block is needed."""
    return failure.outcome.error_type == "ValueError" and 0 not in failure.case.args[2]
