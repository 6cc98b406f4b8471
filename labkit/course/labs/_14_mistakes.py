"""Lab 14: mistakes as a learner makes them, in letting requests in, in drawing tokens, and in reading a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from labkit.course.judge import Failure
from labkit.course.labs import _14_answers as right


class Admit:
    """`admit` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, level: float, elapsed: float, cost: int, rate: float, burst: int) -> tuple[float, float]:
        wrong, before = self.wrong, level
        if cost > burst and wrong != "never_refused":
            if wrong == "refused_for_now":
                return min(burst, level + rate * elapsed), math.ceil(cost / rate)
            raise ValueError("never")
        if wrong != "not_filled":
            level += elapsed if wrong == "seconds_for_tokens" else rate * elapsed
        if wrong == "reset_by_time" and elapsed >= 1:
            level = burst
        if wrong != "overflows":
            level = min(burst, level)
        if (cost < level) if wrong == "exact_is_refused" else (cost <= level):
            return (level if wrong == "takes_nothing" else level - cost), 0
        missing = cost if wrong == "waits_for_all" else cost - level
        if wrong == "waits_until_full":
            missing = burst - level
        wait = missing * rate if wrong == "times_rate" else missing / rate
        wait = {"rounded_down": int(wait), "rounded": round(wait), "not_rounded": wait, "one_more": int(wait) + 1}.get(
            wrong, math.ceil(wait)
        )
        if wrong == "tokens_for_seconds":
            wait = math.ceil(missing)
        left = {"takes_from_refused": level - cost, "refill_forgotten": before, "emptied": 0.0}.get(wrong, level)
        return left, wait

    @staticmethod
    def float_seconds(level: float, elapsed: float, cost: int, rate: float, burst: int) -> tuple[float, float]:
        """Whole seconds, as a float."""
        level, wait = right.admit(level, elapsed, cost, rate, burst)
        return level, float(wait)


class Draw:
    """`draw` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, logits_NV: Tensor, temperature_N: Tensor, keys_N3: Tensor) -> Tensor:
        wrong, N = self.wrong, len(logits_NV)
        ids_N = torch.empty(N, dtype=torch.int64)
        stream = self._generator(keys_N3[0].tolist(), 0) if N and wrong == "one_stream" else None
        if wrong == "torchs_generator":
            torch.manual_seed(int(keys_N3[0, 0]) if N else 0)
        for n in range(N):
            ids_N[n] = self._one(logits_NV[n].double(), float(temperature_N[n]), keys_N3[n].tolist(), n, stream)
        return ids_N.int() if wrong == "int32" else ids_N

    def _one(
        self, logits_V: Tensor, temperature: float, key: list[int], n: int, stream: np.random.Generator | None
    ) -> int:
        wrong, greedy = self.wrong, temperature == 0
        if self._refused(logits_V):
            return 0 if wrong == "nan_is_token_0" else -1
        if wrong == "nan_gets_out":
            logits_V = logits_V.nan_to_num(0.0, neginf=-math.inf)
        if greedy and wrong not in ("noise_when_cold", "zero_divided"):
            return int(logits_V.argmax())
        if wrong == "always_greedy":
            return int(logits_V.argmax())
        if wrong == "torchs_generator":
            return int(torch.multinomial((logits_V / temperature).softmax(-1), 1))
        uniform_V = torch.from_numpy((stream or self._generator(key, n)).random(len(logits_V)))
        if wrong == "uniform_added":
            return int((logits_V / temperature + uniform_V).argmax())
        noise_V = {"log_once": -uniform_V.log(), "sign_lost": (-uniform_V.log()).log()}.get(
            wrong, -(-uniform_V.log()).log()
        )
        if wrong == "probabilities_not_logits":
            return int(((logits_V / temperature).softmax(-1) + noise_V).argmax())
        if wrong == "temperature_multiplies":
            return int((logits_V * temperature + noise_V).argmax())
        if wrong == "temperature_left_out":
            return int((logits_V + noise_V).argmax())
        if wrong == "cumulative":
            total_V = (logits_V / temperature).softmax(-1).cumsum(-1)
            return min(int((total_V < uniform_V[0]).sum()), len(logits_V) - 1)
        if wrong == "zero_divided" and greedy:
            score_V = logits_V / temperature + noise_V
            return -1 if score_V.isnan().any() else int(score_V.argmax())
        return int((logits_V / max(temperature, 1e-6 if wrong != "noise_when_cold" else 1.0) + noise_V).argmax())

    def _refused(self, logits_V: Tensor) -> bool:
        if self.wrong == "forbidden_is_broken":
            return not bool(logits_V.isfinite().all())
        if self.wrong == "only_all_nan":
            return bool(logits_V.isnan().all())
        if self.wrong == "nan_gets_out":
            return False
        return bool(logits_V.isnan().any())

    def _generator(self, key: list[int], n: int) -> np.random.Generator:
        seed, k, i = key
        counter = {
            "overlaps": [i, k, 0, 0], "overlaps, k in the next": [i, 0, k, 0], "same_at_every_step": [0, 0, k, 0],
            "same_for_every_continuation": [0, 0, 0, i], "swapped": [0, 0, i, k], "row_counts": [0, n, k, i],
            "i_plus_k": [0, 0, 0, i + k],
        }.get(self.wrong, [0, 0, k, i])  # fmt: skip
        if self.wrong == "seed_left_out":
            seed = 0
        if self.wrong == "seeds_added":
            return np.random.Generator(np.random.Philox(key=seed + k + i))
        if self.wrong == "default_generator":
            return np.random.default_rng([seed, k, i])
        return np.random.Generator(np.random.Philox(key=seed, counter=counter))


class Quantile:
    """`quantile` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, q: float, edges: Sequence[float], counts: Sequence[int]) -> tuple[float, ...] | float:
        wrong = self.wrong
        if not (0 <= q < 1 if wrong == "one_refused" else 0 < q <= 1) and wrong != "any_q":
            raise ValueError("q")
        counts = self._counts(counts)
        total = counts[-1]
        if wrong == "finite_total" and len(counts) > 1:
            total = counts[-2]
        if not total:
            return (0.0, 0.0, 0.0) if wrong == "nobody_is_zero" else (math.nan,) * 3
        rank = math.ceil(q * total) if wrong == "whole_rank" else q * total
        at = next((i for i, count in enumerate(counts) if self._reaches(count, rank)), len(counts) - 1)
        if wrong == "bucket_before":
            at = max(0, at - 1)
        first = edges[0] if wrong == "starts_at_the_first_edge" and edges[0] < math.inf else 0.0
        lower, below = (edges[at - 1], counts[at - 1]) if at else (first, 0)
        found = self._inside(rank, lower, edges[at], below, counts[at], total)
        return found if wrong == "bare_number" else (found, lower, edges[at])

    def _counts(self, counts: Sequence[int]) -> list[int]:
        if self.wrong == "summed_again":
            return [sum(counts[: i + 1]) for i in range(len(counts))]
        return list(counts)

    def _reaches(self, count: float, rank: float) -> bool:
        return count > rank if self.wrong == "strictly_above" else count >= rank

    def _inside(self, rank: float, lower: float, upper: float, below: int, count: int, total: int) -> float:
        wrong = self.wrong
        if upper == math.inf:
            return math.inf if wrong == "infinite" else math.nan if wrong == "nan_beyond" else lower
        inside = count - below
        share = (rank - below) / inside if inside else 0.0
        if wrong == "rank_not_lowered":
            share = rank / inside if inside else 0.0
        if wrong == "share_of_all":
            share = (rank - below) / total
        if wrong == "rank_over_count":
            share = rank / count if count else 0.0
        if wrong == "geometric" and lower > 0:
            return lower * (upper / lower) ** share
        share = {"middle": 0.5, "upper_edge": 1.0, "lower_edge": 0.0}.get(wrong, share)
        if wrong == "from_above":
            share = 1 - share
        return lower + share * (upper - lower)


# ------------------------------------------------------------------------------------ what has no single implementation


def let_in(failure: Failure) -> bool:
    """Whether something came back where the input should be refused for good."""
    return bool(failure.refusal) and failure.outcome.status == "value"


def cold_given_up(failure: Failure) -> bool:
    """Whether every row was given up, where nothing is wrong but that all are at temperature 0."""
    return bool((failure.case.args[1] == 0).all() and (failure.got == -1).all() and (failure.expected >= 0).all())


def some_nan_drawn(failure: Failure) -> bool:
    """Whether only rows that hold NaN among others have a token, and should not."""
    nan_NV, wrong_N = failure.case.args[0].isnan(), failure.got != failure.expected
    return bool(wrong_N.any() and nan_NV[wrong_N].any(-1).all() and not nan_NV[wrong_N].all(-1).any())


def nobody_fails(failure: Failure) -> bool:
    """Whether it raised because there was nothing to divide by, or no row at all."""
    error = failure.outcome.error_type
    empty = failure.case.label in ("nobody was observed", "nobody")
    return empty and error != "" and not failure.refusal


def below_edges(failure: Failure) -> bool:
    """Whether the estimate is right, and the edges that it lies between are not."""
    got, expected = failure.got, failure.expected
    return len(got) == 3 and math.isclose(got[0], expected[0], rel_tol=1e-4) and got[1:] != expected[1:]
