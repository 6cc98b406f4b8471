"""Lab 13: mistakes in counting, pruning and aligning. Each class is its exercise's answer with one thing wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class EqualSteps:
    """`equal_steps` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, steps: int, student: Mapping[str, int], teacher: Mapping[str, int], students: int = 1, epochs: int = 1
    ) -> int:
        wrong = self.wrong
        s, t = self._forward(student), self._forward(teacher)
        if wrong == "exchanged":
            s, t = t, s
        shared = {"nothing_shared": 1, "epochs_ignored": students, "students_ignored": epochs}.get(
            wrong, students * epochs
        )
        if wrong == "shared_the_wrong_way":
            t, shared = t * shared, 1
        if wrong == "epochs_the_wrong_way":
            t, shared = t * epochs, students
        if wrong == "epochs_twice":
            steps *= epochs
        if wrong == "sum_for_product":
            shared = students + epochs
        step = {"student_twice": 2}.get(wrong, 3) * s * shared
        reading = {"counted_alike": 3, "teacher_free": 0}.get(wrong, 1) * t
        if wrong == "teacher_alone":
            step, reading = step + reading, 0
            return steps * t // (3 * s * shared)
        if wrong == "own_steps_shared":
            return steps * (3 * s + t) // (3 * s * shared)
        if wrong == "upside_down":
            return steps * step // (step + reading)
        if wrong == "rounded_up":
            return -(-steps * (step + reading) // step)
        if wrong == "rounded_early":
            return steps * ((step + reading) // step)
        if wrong == "not_whole":
            return steps * (step + reading) / step
        return steps * (step + reading) // step

    def _forward(self, model: Mapping[str, int]) -> int:
        wrong, K = self.wrong, model.get("top_k", 0)
        if wrong == "all_experts":
            K = model.get("num_experts", 0)
        if wrong == "one_expert":
            K = min(K, 1)
        found = model["dense"] + model["head"] + K * model.get("expert", 0)
        if wrong == "head_left_out":
            found -= model["head"]
        if wrong == "embedding_counted":
            found += model["embedding"]
        if wrong == "experts_forgotten":
            found -= K * model.get("expert", 0)
        return 2 * found


class Prune:
    """`prune` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, layer: Mapping[str, Tensor], used_E: Tensor, number: int, top_k: int
    ) -> tuple[dict[str, Tensor], int]:
        wrong, E = self.wrong, len(used_E)
        if not 1 <= number <= E and wrong != "accepts_anything":
            raise ValueError("number")
        keep = self._keep(used_E, number)
        kept = {name: tensor[keep] if self._cut(name, tensor, E) else tensor for name, tensor in layer.items()}
        if wrong == "bias_in_another_order" and "router.expert_bias_E" in kept:
            kept["router.expert_bias_E"] = kept["router.expert_bias_E"].flip(0)
        if wrong == "zeroed":
            dropped = torch.ones(E).index_fill(0, keep, 0.0).bool()
            kept = {
                name: tensor.masked_fill(dropped.view(-1, *[1] * (tensor.ndim - 1)), 0.0)
                if name.startswith(("router.", "experts."))
                else tensor
                for name, tensor in layer.items()
            }
        if wrong == "shared_dropped":
            kept = {name: tensor for name, tensor in kept.items() if not name.startswith("shared.")}
        new_top_k = {
            "top_k_kept": top_k,
            "top_k_is_number": number,
            "top_k_in_proportion": max(1, top_k * number // E),
        }
        return kept, new_top_k.get(wrong, min(top_k, number))

    def _keep(self, used_E: Tensor, number: int) -> Tensor:
        wrong = self.wrong
        order = torch.sort(used_E, descending=wrong != "least_used", stable=True).indices
        if wrong == "first_ones":
            order = torch.arange(len(used_E))
        if wrong == "those_above_average":
            order = (used_E >= used_E.mean()).nonzero()[:, 0]
        if wrong == "higher_number_wins":
            order = len(used_E) - 1 - torch.sort(used_E.flip(0), descending=True, stable=True).indices
        if wrong == "equals_all_kept":
            return (used_E >= used_E[order[number - 1]]).nonzero()[:, 0]
        if wrong == "dropped_for_kept":
            return order[number:].sort().values
        return order[:number] if wrong == "in_order_of_use" else order[:number].sort().values

    def _cut(self, name: str, tensor: Tensor, E: int) -> bool:
        wrong = self.wrong
        if wrong == "rows_kept":
            return name.startswith("experts.")
        if wrong == "bias_kept":
            return name.startswith("experts.") or name == "router.weight_ED"
        if wrong == "experts_kept":
            return name.startswith("router.")
        if wrong == "down_kept":
            return name.startswith("router.") or name == "experts.gate_up_E2FD"
        if wrong == "shared_cut":
            return True
        if wrong == "by_size":
            return tensor.shape[0] == E
        return name.startswith(("router.", "experts."))


class Align:
    """`align` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, anchor: Pair, other: Pair) -> Pair:
        if self.wrong == "roles_exchanged":
            anchor, other = other, anchor
        gate_up, down = anchor if self.wrong == "anchor_moved" else other
        order = self._order(anchor, other)
        moved = self._moved(gate_up, down, order)
        if self.wrong == "averaged":
            moved = tuple((a + b) / 2 for a, b in zip(anchor, moved, strict=True))
        return moved

    def _units(self, gate_up: Tensor, down: Tensor) -> Tensor:
        parts = {
            "gate_alone": [gate_up.chunk(2)[0]],
            "up_alone": [gate_up.chunk(2)[1]],
            "down_left_out": [*gate_up.chunk(2)],
            "down_alone": [down.T],
        }
        return torch.cat(parts.get(self.wrong, [*gate_up.chunk(2), down.T]), 1)

    def _order(self, anchor: Pair, other: Pair) -> Tensor:
        wrong, ours, theirs = self.wrong, self._units(*anchor), self._units(*other)
        F = len(ours)
        alike = ours @ theirs.T
        if wrong == "cosine":
            alike = torch.nn.functional.normalize(ours, dim=1) @ torch.nn.functional.normalize(theirs, dim=1).T
        if wrong == "distance":
            alike = -torch.cdist(ours, theirs)
        if wrong == "least_alike":
            alike = -alike
        if wrong == "absolute":
            alike = alike.abs()
        if wrong == "each_its_best":
            return alike.argmax(1)
        if wrong == "by_norm":
            return theirs.norm(dim=1).argsort()[ours.norm(dim=1).argsort().argsort()]
        order = torch.empty(F, dtype=torch.int64)
        for n in range(F):
            place, unit = divmod(int(alike.argmax()), F)
            if wrong == "row_after_row":
                place, unit = n, int(alike[n].argmax())
            order[place] = unit
            alike[place], alike[:, unit] = -math.inf, -math.inf
        return order

    def _moved(self, gate_up: Tensor, down: Tensor, order: Tensor) -> Pair:
        wrong, F = self.wrong, down.shape[1]
        if wrong == "inverse":
            order = order.argsort()
        gate, up = gate_up.chunk(2)
        rows = torch.cat([gate[order], up[order]])
        if wrong == "gate_without_up":
            rows = torch.cat([gate[order], up])
        if wrong == "up_without_gate":
            rows = torch.cat([gate, up[order]])
        if wrong == "halves_exchanged":
            rows = torch.cat([up[order], gate[order]])
        if wrong == "rows_kept":
            rows = gate_up
        if wrong == "interleaved":
            rows = torch.stack([gate[order], up[order]], 1).flatten(0, 1)
        columns = down if wrong == "down_kept" else down[:, order]
        if wrong == "wrong_axis":
            columns = down[order] if len(down) >= F else down
            if len(down) > F:
                columns = torch.cat([columns, down[F:]])
        return rows, columns
