"""Lab 16: mistakes in numbers. Each class is its exercise's answer with one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence


class Replicate:
    """`replicate` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, load_E: Sequence[float], num_slots: int) -> list[int]:
        wrong, E = self.wrong, len(load_E)
        extra = num_slots - E
        if extra < 0:
            if wrong == "too_few_accepted":
                return [1] * num_slots + [0] * -extra
            raise ValueError("each expert needs a slot")
        order = sorted(range(E), key=lambda e: -load_E[e])
        if wrong == "hottest_takes_all":
            return [1 + extra * (e == order[0]) for e in range(E)]
        if wrong == "one_each":
            return [1 + extra // E + (order.index(e) < extra % E) for e in range(E)]
        if wrong == "in_proportion":
            total = sum(load_E)
            return [max(1, round(num_slots * load / total)) if total else 1 for load in load_E]
        copies = [0 if wrong == "cold_dropped" else 1] * E
        experts = range(E)[::-1] if wrong == "last_of_equals" else range(E)
        ahead = wrong in ("with_the_new_one", "cold_dropped")
        for _ in range(num_slots - sum(copies)):
            copies[max(experts, key=lambda e: load_E[e] / self._shared(copies[e] + ahead))] += 1
        if wrong == "only_the_extra":
            return [count - 1 for count in copies]
        if wrong == "slots":
            return [e for e in range(E) for _ in range(copies[e])]
        return copies

    def _shared(self, copies: int) -> int:
        """What the load is divided by."""
        return 2 ** (copies - 1) if self.wrong == "halved_again" else copies


class Pack:
    """`pack` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, load_S: Sequence[float], num_ranks: int) -> list[int]:
        wrong, S = self.wrong, len(load_S)
        if S % num_ranks and wrong != "remainder_accepted":
            raise ValueError("slots that cannot be shared evenly")
        order = list(range(S)) if wrong == "in_order" else sorted(range(S), key=lambda s: -load_S[s])
        if wrong == "lightest_first":
            order = sorted(range(S), key=lambda s: load_S[s])
        if wrong == "last_slot_first":
            order = sorted(range(S), key=lambda s: (-load_S[s], -s))
        placed = self._dealt(order, num_ranks) or self._greedy(order, load_S, num_ranks)
        if wrong == "in_order_of_load":
            return placed
        if wrong == "by_rank":
            return [slot for rank in range(num_ranks) for slot, at in zip(order, placed, strict=True) if at == rank]
        where = dict(zip(order, placed, strict=True))
        return [where[slot] for slot in range(S)]

    def _dealt(self, order: Sequence[int], num_ranks: int) -> list[int]:
        """Dealt out like cards, where the mistake is of that kind."""
        wrong, each = self.wrong, max(len(order) // num_ranks, 1)
        if wrong == "dealt":
            return [i % num_ranks for i in range(len(order))]
        if wrong == "to_and_fro":
            turn = [*range(num_ranks), *reversed(range(num_ranks))]
            return [turn[i % len(turn)] for i in range(len(order))]
        return [i // each for i in range(len(order))] if wrong == "blocks" else []

    def _greedy(self, order: Sequence[int], load_S: Sequence[float], num_ranks: int) -> list[int]:
        wrong, each = self.wrong, -(-len(order) // num_ranks)
        total, held, placed = [0.0] * num_ranks, [0] * num_ranks, []
        ranks = range(num_ranks)[::-1] if wrong == "last_of_equals" else range(num_ranks)
        for slot in order:
            open_ = [rank for rank in ranks if held[rank] < each or wrong == "no_limit"]
            rank = min(open_, key=lambda rank: total[rank])
            if wrong == "fewest_slots":
                rank = min(open_, key=lambda rank: (held[rank], total[rank]))
            placed.append(rank)
            total[rank] += load_S[slot]
            held[rank] += 1
        return placed


class StepTime:
    """`step_time` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, compute: float, network_bytes: float, nvlink_bytes: float, network_gbit: float, nvlink_gbyte: float,
        stages: int, micro_batches: int, overlap: bool,
    ) -> tuple[float, float, str]:  # fmt: skip
        wrong = self.wrong
        bits = 1 if wrong == "bits_for_bytes" else 8
        giga = 2**30 if wrong == "binary_giga" else 1e9
        network = network_bytes * bits / (network_gbit * giga)
        nvlink = nvlink_bytes / (nvlink_gbyte * giga) * (8 if wrong == "nvlink_in_bits" else 1)
        exchange = network + nvlink if wrong == "links_in_turn" else max(network, nvlink)
        exchange = {"network_only": network, "twofold": 2 * exchange}.get(wrong, exchange)
        hidden = {"never_hidden": False, "always_hidden": True, "upside_down": not overlap}.get(wrong, overlap)
        one = max(compute, exchange) if hidden else compute + exchange
        slots = micro_batches + stages - 1
        slots = {"no_bubble": micro_batches, "one_too_many": slots + 1, "in_turn": micro_batches * stages}.get(
            wrong, slots
        )
        bubble = 1 - micro_batches / (micro_batches + stages - 1)
        bubble = {"of_the_work": (stages - 1) / micro_batches, "bubble_in_seconds": (stages - 1) * one}.get(
            wrong, bubble
        )
        parts = {"compute": compute, "network": network, "nvlink": nvlink}
        if wrong == "links_only":
            del parts["compute"]
        bound = (min if wrong == "shortest" else max)(parts, key=parts.get)
        return slots * one, bubble, bound
