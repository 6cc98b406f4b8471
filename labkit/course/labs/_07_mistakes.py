"""Lab 07: mistakes in schedule and accumulation, as a learner's function makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.labs import _07_cases as right

Micros = Sequence[tuple[Tensor, Tensor]]
IGNORED = -100

# ---------------------------------------------------------------------------------------------------------- schedule


def _fits(steps: int, warmup: int, decay: int) -> None:
    if warmup + decay > steps:
        raise ValueError("does not fit")


def schedule_from_zero(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return (step - 1) / warmup if step <= warmup else right.schedule(step, steps, warmup, decay, final)


def schedule_late(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    if warmup < step and step > steps - decay:
        return right.schedule(step - 1, steps, warmup, decay, final)
    return right.schedule(step, steps, warmup, decay, final)


def schedule_early(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    _fits(steps, warmup, decay)
    start = steps - decay
    if step <= warmup or step < start or not decay:
        return right.schedule(step, steps, warmup, decay, final)
    return max(final, 1 - (1 - final) * (step - start + 1) / decay)


def schedule_no_plateau(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    _fits(steps, warmup, decay)
    return step / warmup if step <= warmup else 1 - (1 - final) * (step - warmup) / (steps - warmup)


def schedule_decay_first(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    _fits(steps, warmup, decay)
    if step <= warmup:
        return step / warmup
    done = step - warmup
    return 1 - (1 - final) * done / decay if done < decay else final


def schedule_cosine(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    import math

    linear = right.schedule(step, steps, warmup, decay, 0.0)
    if step <= max(warmup, steps - decay):
        return linear
    return final + (1 - final) * (1 - math.cos(math.pi * linear)) / 2


def schedule_to_zero(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return right.schedule(step, steps, warmup, decay, 0.0)


def schedule_floor(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    falling = step > warmup and step > steps - decay
    value = right.schedule(step, steps, warmup, decay, 0.0)
    return max(final, value) if falling else value


def schedule_final_added(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    falling = step > warmup and step > steps - decay
    return right.schedule(step, steps, warmup, decay, 0.0) + (final if falling else 0.0)


def schedule_warm_from_final(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    value = right.schedule(step, steps, warmup, decay, final)
    return final + (1 - final) * value if step <= warmup else value


def schedule_divides_by_zero(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    _fits(steps, warmup, decay)
    up = step / warmup
    return up if step <= warmup else right.schedule(step, steps, warmup, decay, final)


def schedule_no_decay_divides(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    _fits(steps, warmup, decay)
    fall = 1 - (1 - final) * (step - steps + decay) / decay
    return min(right.schedule(step, steps, warmup, decay, final), fall)


def schedule_accepts(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return right.schedule(step, max(steps, warmup + decay), warmup, decay, final)


def schedule_ahead(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return right.schedule(step + 1, steps, warmup, decay, final)


def schedule_below_one(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    value = right.schedule(step, steps, warmup, decay, final)
    return step / (warmup + 1) if step <= warmup else value


def schedule_whole_division(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    value = right.schedule(step, steps, warmup, decay, final)
    return float(step // warmup) if step <= warmup else value


def _down(step: int, steps: int, warmup: int, decay: int, fall: Callable[[float], float]) -> float:
    """A schedule whose decay is a function of the share of it that is done."""
    value, start = right.schedule(step, steps, warmup, decay), steps - decay
    return value if step <= max(warmup, start) else fall((step - start) / decay)


def schedule_backwards(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return _down(step, steps, warmup, decay, lambda done: final + (1 - final) * done)


def schedule_over_all_steps(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return _down(step, steps, warmup, decay, lambda done: final + (1 - final) * (steps - step) / steps)


def schedule_falls_by_final(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return _down(step, steps, warmup, decay, lambda done: 1 - final * done)


def schedule_exponential(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return _down(step, steps, warmup, decay, lambda done: final**done)


def schedule_linspace(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    return _down(step, steps, warmup, decay, lambda done: 1 - (1 - final) * (done * decay - 1) / max(1, decay - 1))


def schedule_decay_is_a_place(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    _fits(steps, warmup, decay)
    if step <= warmup or step <= decay:
        return min(1.0, step / warmup) if warmup else 1.0
    return 1 - (1 - final) * (step - decay) / (steps - decay)


# -------------------------------------------------------------------------------------------------------- accumulate

Model = Callable[[Tensor], Tensor]


def _real(micros: Micros) -> list[int]:
    counts = [int((target != IGNORED).sum()) for _, target in micros]
    if not sum(counts):
        raise ValueError("nothing to learn")
    return counts


def _sum(model: Model, micro: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(micro[0]).flatten(0, 1), micro[1].flatten(), reduction="sum")


def _weighted(model: Model, micros: Micros, weights: Sequence[float], reported: Sequence[float] | None = None) -> float:
    """Every micro-batch's summed loss times its weight."""
    mean = 0.0
    for micro, weight, shown in zip(micros, weights, reported or weights, strict=True):
        loss = _sum(model, micro)
        (loss * weight).backward()
        mean += (loss * shown).item()
    return mean


def _each(counts: Sequence[int]) -> list[float]:
    """1 over each count; infinite for none, so that a mean over nothing is 0 · ∞ = NaN, as torch has it."""
    return [1 / count if count else float("inf") for count in counts]


def accumulate_mean_of_means(model: Model, micros: Micros) -> float:
    return _weighted(model, micros, [weight / len(micros) for weight in _each(_real(micros))])


def accumulate_empty_skipped(model: Model, micros: Micros) -> float:
    counts = _real(micros)
    full = [(micro, count) for micro, count in zip(micros, counts, strict=True) if count]
    return _weighted(model, [micro for micro, _ in full], [1 / count / len(full) for _, count in full])


def accumulate_means_added(model: Model, micros: Micros) -> float:
    return _weighted(model, micros, _each(_real(micros)))


def accumulate_sums_added(model: Model, micros: Micros) -> float:
    _real(micros)
    return _weighted(model, micros, [1.0] * len(micros))


def accumulate_sum_over_micros(model: Model, micros: Micros) -> float:
    _real(micros)
    return _weighted(model, micros, [1 / len(micros)] * len(micros))


def accumulate_positions(model: Model, micros: Micros) -> float:
    _real(micros)
    positions = sum(target.numel() for _, target in micros)
    return _weighted(model, micros, [1 / positions] * len(micros))


def accumulate_by_sequences(model: Model, micros: Micros) -> float:
    counts, rows = _real(micros), [len(target) for _, target in micros]
    pairs = zip(_each(counts), rows, strict=True)
    return _weighted(model, micros, [each * row / sum(rows) for each, row in pairs])


def accumulate_nan(model: Model, micros: Micros) -> float:
    counts = _real(micros)
    weights = [1 / sum(counts) if count else float("nan") for count in counts]
    return _weighted(model, micros, weights)


def accumulate_last(model: Model, micros: Micros) -> float:
    counts, mean = _real(micros), 0.0
    for micro in micros:
        model.zero_grad()
        loss = _sum(model, micro) / sum(counts)
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_so_far(model: Model, micros: Micros) -> float:
    counts = _real(micros)
    return _weighted(model, micros, [1 / max(1, sum(counts[: i + 1])) for i in range(len(counts))])


def accumulate_wrong_report(model: Model, micros: Micros) -> float:
    counts = _real(micros)
    reported = [each / len(micros) for each in _each(counts)]
    return _weighted(model, micros, [1 / sum(counts)] * len(micros), reported)


def accumulate_one_backward(model: Model, micros: Micros) -> float:
    counts = _real(micros)
    loss = sum(_sum(model, micro) for micro in micros) / sum(counts)
    loss.backward()
    return loss.item()


def accumulate_one_batch(model: Model, micros: Micros) -> float:
    counts = _real(micros)
    both = (torch.cat([ids for ids, _ in micros]), torch.cat([target for _, target in micros]))
    loss = _sum(model, both) / sum(counts)
    loss.backward()
    return loss.item()


def accumulate_unasked(model: Model, micros: Micros) -> float:
    total = max(1, sum(int((target != IGNORED).sum()) for _, target in micros))
    return _weighted(model, micros, [1 / total] * len(micros))


def accumulate_nothing_is_nan(model: Model, micros: Micros) -> float:
    total = sum(int((target != IGNORED).sum()) for _, target in micros)
    return _weighted(model, micros, [1 / total if total else float("nan")] * len(micros))


def accumulate_running_sum(model: Model, micros: Micros) -> float:
    counts, total = _real(micros), torch.zeros(())
    for micro in micros:
        total = total + _sum(model, micro) / sum(counts)
        total.backward(retain_graph=True)
    return total.item()


def accumulate_divided_twice(model: Model, micros: Micros) -> float:
    return _weighted(model, micros, [1 / sum(_real(micros)) / len(micros)] * len(micros))


def accumulate_over_average(model: Model, micros: Micros) -> float:
    return _weighted(model, micros, [len(micros) / sum(_real(micros))] * len(micros))


def _changed(model: Model, micros: Micros, loss_of: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The right mean of another loss, from logits [B, S, V] and targets [B, S] to a sum."""
    counts, mean = _real(micros), 0.0
    for ids_BS, target_BS in micros:
        loss = loss_of(model(ids_BS), target_BS) / sum(counts)
        loss.backward()
        mean += loss.item()
    return mean


def _summed(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction="sum")


def accumulate_shifted(model: Model, micros: Micros) -> float:
    return _changed(model, micros, lambda logits, target: _summed(logits[:, :-1], target[:, 1:]))


def accumulate_classes(model: Model, micros: Micros) -> float:
    return _changed(model, micros, lambda logits, target: F.cross_entropy(logits, target, reduction="sum"))


def accumulate_padding_learned(model: Model, micros: Micros) -> float:
    return _changed(model, micros, lambda logits, target: _summed(logits, target.clamp_min(0)))


def accumulate_softmax_twice(model: Model, micros: Micros) -> float:
    return _changed(model, micros, lambda logits, target: _summed(logits.softmax(-1), target))


def accumulate_moved(model: Model, micros: Micros) -> float:
    counts, mean = _real(micros), 0.0
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for micro in micros:
        loss = _sum(model, micro) / sum(counts)
        loss.backward()
        optimiser.step()
        mean += loss.item()
    return mean
