"""Lab 06: what a learner's name map and sampling do when they have made a known mistake."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.judge import Failure
from labkit.course.labs import _06_cases as right

# ---------------------------------------------------------------------------------------------------------- name_map


def _fused(ours: dict[str, Tensor], change, *endings: str) -> dict[str, Tensor]:
    """The right answer with the tensors of some endings changed."""
    return {name: change(tensor) if name.endswith(endings) else tensor for name, tensor in ours.items()}


def names_up_first(theirs, renames, layers, dense, experts):
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return _fused(ours, lambda t: t.roll(t.shape[-2] // 2, dims=-2), "gate_up_2FD", "gate_up_E2FD")


def names_interleaved(theirs, renames, layers, dense, experts):
    def alternate(t: Tensor) -> Tensor:
        gate, up = t.chunk(2, dim=-2)
        return torch.stack([gate, up], dim=-2).flatten(-3, -2)

    return _fused(right.name_map(theirs, renames, layers, dense, experts), alternate, "gate_up_2FD", "gate_up_E2FD")


def names_sorted(theirs, renames, layers, dense, experts):
    order = torch.tensor([int(e) for e in sorted(map(str, range(experts)))], dtype=torch.int64)
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return _fused(ours, lambda t: t[order], "gate_up_E2FD", "down_EDF")


def names_transposed(theirs, renames, layers, dense, experts):
    return _fused(right.name_map(theirs, renames, layers, dense, experts), lambda t: t.mT.contiguous(), "_E2FD", "_EDF")


def names_down_transposed(theirs, renames, layers, dense, experts):
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return _fused(ours, lambda t: t.mT.contiguous(), "down_EDF", "down_DF")


def names_gate_is_up(theirs, renames, layers, dense, experts):
    def twice(t: Tensor) -> Tensor:
        return torch.cat([t.chunk(2, dim=-2)[0]] * 2, dim=-2)

    return _fused(right.name_map(theirs, renames, layers, dense, experts), twice, "gate_up_2FD", "gate_up_E2FD")


def names_not_stacked(theirs, renames, layers, dense, experts):
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return _fused(ours, lambda t: t.flatten(0, 1), "gate_up_E2FD", "down_EDF")


def names_first_expert_everywhere(theirs, renames, layers, dense, experts):
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return _fused(ours, lambda t: t[:1].expand_as(t).contiguous(), "gate_up_E2FD", "down_EDF")


def names_gate_up_apart(theirs, renames, layers, dense, experts):
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return _fused(ours, lambda t: torch.stack(t.chunk(2, dim=-2), dim=-3), "gate_up_2FD", "gate_up_E2FD")


def names_extra_dropped(theirs, renames, layers, dense, experts):
    known = right.qwen3_tensors(0, layers, dense, experts)
    return right.name_map({n: t for n, t in theirs.items() if n in known}, renames, layers, dense, experts)


def names_missing_skipped(theirs, renames, layers, dense, experts):
    try:
        return right.name_map(theirs, renames, layers, dense, experts)
    except ValueError as error:
        if "missing" not in str(error):
            raise
        return {}


def names_only_renamed(theirs, renames, layers, dense, experts):
    named = {t.format(i=i): m.format(i=i) for t, m in renames.items() for i in range(layers)}
    ours = right.name_map(theirs, renames, layers, dense, experts)
    return {mine: ours[mine] for mine in named.values()}


def names_key_error(theirs, renames, layers, dense, experts):
    try:
        return right.name_map(theirs, renames, layers, dense, experts)
    except ValueError as error:
        if "missing" in str(error):
            raise KeyError(str(error).split()[0]) from None
        raise


def dense_read_as_sparse(failure: Failure) -> bool:
    """A dense layer's router was looked for, or an expert of it."""
    dense, said = failure.case.args[3], failure.outcome.error
    looked_for = any(f"layers.{i}.mlp.{part}" in said for i in range(dense) for part in ("gate.weight", "experts."))
    return failure.refusal == "" and failure.outcome.status == "error" and looked_for


def sparse_read_as_dense(failure: Failure) -> bool:
    """A sparse layer was looked through for the one network of a dense one."""
    _, _, layers, dense, _ = failure.case.args
    looked_for = any(f"layers.{i}.mlp.{part}_proj" in failure.outcome.error for i in range(dense, layers)
                     for part in ("gate", "up", "down"))  # fmt: skip
    return failure.refusal == "" and failure.outcome.status == "error" and looked_for


# ------------------------------------------------------------------------------------------------------------ sample

_OUT = float("-inf")


def _checked(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}")


def _top_k(logits: Tensor, k: int) -> Tensor:
    if k <= 0:
        return logits
    return logits.masked_fill(logits < logits.topk(min(k, logits.shape[1])).values[:, -1:], _OUT)


def _top_p(logits: Tensor, p: float, *, crossing: bool = True, least: int = 1) -> Tensor:
    """Without `crossing`, the token that reaches p is thrown away too; `least` tokens stay whatever they hold."""
    if p >= 1:
        return logits
    falling, order = logits.sort(dim=1, descending=True)
    chances = falling.softmax(1)
    before = chances.cumsum(1) - (chances if crossing else 0)
    out = before >= p if crossing else before > p
    out[:, :least] = False
    return logits.masked_fill(out.scatter(1, order, out), _OUT)


def sample_multiplied(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return right.sample(logits, 1 / temperature, top_k, top_p)


def sample_cold_after(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return (_top_p(_top_k(logits, top_k), top_p) / temperature).softmax(1)


def sample_temperature_last_and_multiplied(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return (_top_p(_top_k(logits, top_k), top_p) * temperature).softmax(1)


def sample_temperature_ignored(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return right.sample(logits, 1.0, top_k, top_p)


def sample_p_before_k(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return _top_k(_top_p(logits / temperature, top_p), top_k).softmax(1)


def sample_crossing_lost(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return _top_p(_top_k(logits / temperature, top_k), top_p, crossing=False).softmax(1)


def sample_crossing_lost_and_empty(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return _top_p(_top_k(logits / temperature, top_k), top_p, crossing=False, least=0).softmax(1)


def sample_nothing_left(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return _top_p(_top_k(logits / temperature, top_k), top_p, least=0).softmax(1)


def sample_ties_cut(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    logits = logits / temperature
    if top_k > 0:
        kept = logits.topk(min(top_k, logits.shape[1]))
        logits = torch.full_like(logits, _OUT).scatter(1, kept.indices, kept.values)
    return _top_p(logits, top_p).softmax(1)


def sample_filled_with_zero(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    kept = _top_p(_top_k(logits / temperature, top_k), top_p)
    return kept.masked_fill(kept.isinf(), 0.0).softmax(1)


def sample_not_renormalised(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    kept = right.sample(logits, temperature, top_k, top_p) > 0
    return (logits / temperature).softmax(1) * kept


def sample_logits(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return _top_p(_top_k(logits / temperature, top_k), top_p)


def sample_not_unsorted(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    logits = _top_k(logits / temperature, top_k)
    if top_p < 1:
        logits = _top_p(logits.sort(dim=1, descending=True).values, top_p)
    return logits.softmax(1)


def sample_minimum_p(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    logits = _top_k(logits / temperature, top_k)
    if top_p < 1:
        chances = logits.softmax(1)
        logits = logits.masked_fill(chances < (1 - top_p) * chances.amax(1, keepdim=True), _OUT)
    return logits.softmax(1)


def sample_strict_k(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits <= logits.topk(top_k).values[:, -1:], _OUT)
    return _top_p(logits, top_p).softmax(1)


def sample_one_threshold(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    logits = logits / temperature
    if top_k > 0:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[1])).values.min(), _OUT)
    return _top_p(logits, top_p).softmax(1)


def sample_k_plus_one(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return right.sample(logits, temperature, top_k + 1 if top_k else 0, top_p)


def sample_k_beyond(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    logits = logits / temperature
    if top_k > 0:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], _OUT)
    return _top_p(logits, top_p).softmax(1)


def sample_k_or_p(logits, temperature=1.0, top_k=0, top_p=1.0):
    return right.sample(logits, temperature, top_k, 1.0 if top_k else top_p)


def sample_k_ignored(logits, temperature=1.0, top_k=0, top_p=1.0):
    return right.sample(logits, temperature, 0, top_p)


def sample_p_ignored(logits, temperature=1.0, top_k=0, top_p=1.0):
    return right.sample(logits, temperature, top_k)


def sample_softmax_over_rows(logits, temperature=1.0, top_k=0, top_p=1.0):
    return sample_logits(logits, temperature, top_k, top_p).softmax(0)


def sample_softmax_twice(logits, temperature=1.0, top_k=0, top_p=1.0):
    return right.sample(logits, temperature, top_k, top_p).softmax(1)


def sample_filters_chances_as_logits(logits, temperature=1.0, top_k=0, top_p=1.0):
    _checked(temperature)
    return right.sample(logits.softmax(1), temperature, top_k, top_p)


def sample_logarithms(logits, temperature=1.0, top_k=0, top_p=1.0):
    return right.sample(logits, temperature, top_k, top_p).log()


def _masked_in_order(logits, temperature, top_k, top_p, place):
    """Top-p with the mask of the sorted tokens brought elsewhere: `place(order, out)`."""
    _checked(temperature)
    logits = _top_k(logits / temperature, top_k)
    if top_p < 1:
        falling, order = logits.sort(dim=1, descending=True)
        out = falling.softmax(1).cumsum(1) - falling.softmax(1) >= top_p
        out[:, 0] = False
        logits = logits.masked_fill(place(order, out), _OUT)
    return logits.softmax(1)


def sample_mask_left_sorted(logits, temperature=1.0, top_k=0, top_p=1.0):
    return _masked_in_order(logits, temperature, top_k, top_p, lambda order, out: out)


def sample_mask_gathered(logits, temperature=1.0, top_k=0, top_p=1.0):
    return _masked_in_order(logits, temperature, top_k, top_p, lambda order, out: out.gather(1, order))


def sample_rising_to_p(logits, temperature=1.0, top_k=0, top_p=1.0):
    return right.sample(logits, temperature, top_k, 1 - top_p if top_p < 1 else 1.0)


def zero_lets_none_through(failure: Failure) -> bool:
    """Nothing is left, or an error, where k is 0."""
    k = failure.case.args[2] if len(failure.case.args) > 2 else 0
    p = failure.case.args[3] if len(failure.case.args) > 3 else 1.0
    empty = failure.outcome.status == "value" and bool(failure.got.isnan().all())
    clash = failure.outcome.error_type == "RuntimeError" and "size of tensor" in failure.outcome.error
    return k == 0 and p == 1.0 and failure.refusal == "" and (empty or clash)


def drawn(failure: Failure) -> bool:
    """Whole numbers instead of probabilities."""
    return failure.outcome.status == "value" and not failure.got.is_floating_point()
