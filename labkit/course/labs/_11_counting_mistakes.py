"""Lab 11: mistakes as a learner makes them, in weighing a model and in spending a budget of bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.course.judge import Failure


class BytesByRoom:
    """`bytes_by_room` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, model: nn.Module, room: Callable[[str], str]) -> dict[str, int] | int:
        found, seen = {}, set()
        for name, tensor in self._tensors(model):
            if self.wrong not in ("shared_twice", "four_bytes_each, by tensor"):
                key = self._key(name, tensor)
                if key in seen:
                    if self.wrong == "empty_rooms":
                        found.setdefault(room(name), 0)
                    continue
                seen.add(key)
            where = name if self.wrong == "by_tensor" else room(name)
            size = self._size(tensor)
            found[where] = size if self.wrong == "last_only" else found.get(where, 0) + size
        return sum(found.values()) if self.wrong == "only_the_sum" else found

    def _tensors(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        if self.wrong == "parameters_only":
            return list(model.named_parameters())
        if self.wrong == "buffers_only":
            return list(model.named_buffers())
        if self.wrong == "what_is_saved":
            return list(model.state_dict().items())
        if self.wrong == "buffers_first":
            return [*model.named_buffers(), *model.named_parameters()]
        if self.wrong == "top_only":
            return [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
        if self.wrong == "last_room":
            return [*model.named_parameters(), *model.named_buffers()][::-1]
        duplicates = self.wrong != "shared_twice"
        return [
            *model.named_parameters(remove_duplicate=duplicates),
            *model.named_buffers(remove_duplicate=duplicates),
        ]

    def _key(self, name: str, tensor: Tensor) -> object:
        if self.wrong == "views_apart":
            return id(tensor)
        if self.wrong == "nobody_shares":
            return name
        if self.wrong.startswith("by_first_element"):
            return tensor.data_ptr()
        return tensor.untyped_storage().data_ptr()

    def _size(self, tensor: Tensor) -> int:
        if self.wrong == "four_bytes_each":
            return 4 * (tensor.untyped_storage().nbytes() // tensor.element_size())
        if self.wrong == "elements":
            return tensor.untyped_storage().nbytes() // tensor.element_size()
        if self.wrong == "four_bytes_each, by tensor":
            return 4 * tensor.numel()
        if self.wrong in ("view_for_storage", "nobody_shares", "by_first_element, the view"):
            return tensor.numel() * tensor.element_size()
        return tensor.untyped_storage().nbytes()


def nobody_refused(failure: Failure) -> bool:
    """Whether it raised where the budget is just what everybody costs in low precision."""
    _, low_bits, _, budget = failure.case.args
    return failure.outcome.status == "error" and budget == low_bits


def other_equals(failure: Failure) -> bool:
    """Whether as many tokens were chosen, and as good ones, but others."""
    feature_T, got, expected = failure.case.args[0], failure.got, failure.expected
    same = torch.equal(feature_T[got].sort().values, feature_T[expected].sort().values)
    return got.dtype == torch.bool and same and not torch.equal(got, expected)


def more_than_all(failure: Failure) -> bool:
    """Whether it raised where the budget is more than everybody costs."""
    _, _, high_bits, budget = failure.case.args
    return failure.outcome.status == "error" and budget > high_bits


class PickPrecision:
    """`pick_precision` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, feature_T: Tensor, low_bits: float, high_bits: float, budget: float) -> Tensor:
        wrong, T = self.wrong, len(feature_T)
        if budget < low_bits and wrong != "accepts_less":
            raise ValueError("too little")
        share = (budget - low_bits) / (high_bits - low_bits)
        share = {"of_high": budget / high_bits, "low_free": (budget - low_bits) / high_bits}.get(wrong, share)
        if wrong == "cheap_share":
            share = 1 - share
        number = round(T * share) if wrong == "rounds" else int(T * share)
        if wrong == "rounds_up":
            number = -int(-T * share // 1)
        number = max(0, min(T, number))
        high_T = torch.zeros(T, dtype=torch.bool)
        if wrong in ("threshold_lets_ties_in", "threshold_keeps_ties_out"):
            return self._by_threshold(feature_T, number)
        if wrong == "first_come":
            order = torch.arange(T)
        elif wrong == "by_size":
            order = feature_T.abs().argsort(descending=True, stable=True)
        elif wrong == "later_first":
            order = T - 1 - feature_T.flip(0).argsort(descending=True, stable=True)
        else:
            order = feature_T.argsort(descending=wrong != "smallest", stable=True)
        if wrong == "numbers_of_tokens":
            return order[:number]
        high_T[order[:number]] = True
        if wrong == "rank_for_place":
            high_T = order < number
        return {"turned": ~high_T, "whole_numbers": high_T.int()}.get(wrong, high_T)

    def _by_threshold(self, feature_T: Tensor, number: int) -> Tensor:
        if number == 0:
            return torch.zeros(len(feature_T), dtype=torch.bool)
        sorted_T = feature_T.sort(descending=True).values
        if self.wrong == "threshold_lets_ties_in":
            return feature_T >= sorted_T[number - 1]
        return feature_T > (sorted_T[number] if number < len(feature_T) else float("-inf"))
