"""One run: every shape in turn; inputs, reference, contestants, checks, and then rounds."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from labkit.kernels.bench.calls import BOTH, Timed, restored, saved, timed
from labkit.kernels.bench.machine import Ceilings
from labkit.kernels.bench.peers import Call, Make, called, reason
from labkit.kernels.bench.plan import HOMES, Plan, plain
from labkit.kernels.bench.result import LEFT_OUT, Absent, Measured, Result
from labkit.kernels.bench.rounds import take_turns
from labkit.kernels.bench.shapes import Shape, letters

Say = Callable[[str], None]


class DeviceLost(RuntimeError):
    """A contestant broke the device for this process (an illegal address, say): nothing runs on it any more."""


@dataclass
class _Stand:
    """One contestant on one shape, while it is being prepared: what is timed and known of it, by mode."""

    note: str = ""
    saved: int | None = None
    timed: dict[str, Timed] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def measure(plan: Plan, say: Say = lambda line: None) -> Iterator[Result]:
    """Measure shape by shape: a result for each mode of each shape, in order, as soon as its shape is done.

    Args:
        say: told what is about to happen.

    A contestant that fails is in the result with its reason; the rest goes on. One that breaks the device for the whole
    process is named in the results of that shape and of all that follow, where nothing can be measured any more.
    """
    ceilings = Ceilings(plan.dtype, plan.device)
    lost = ""
    for subject, shapes in plan.shapes.items():
        for shape in shapes:
            if not lost:
                say(f"{subject} {shape.name}: {letters(shape)} …")
            try:
                results = _nothing(plan, subject, shape, lost) if lost else _shape(plan, subject, shape, ceilings)
            except DeviceLost as error:
                lost = str(error)
                results = _nothing(plan, subject, shape, lost)
            except Exception as error:  # out of memory for the inputs or the reference
                results = _nothing(plan, subject, shape, reason(error))
            _clean(plan.device)
            yield from results


def _shape(plan: Plan, subject: str, shape: Shape, ceilings: Ceilings) -> list[Result]:
    if plan.device.type == "cuda":
        torch.compiler.reset()  # or the ninth shape finds torch.compile's list of variants full, and runs uncompiled
    case = HOMES[subject].draw(shape, plan.dtype, plan.device, plan.seed)
    modes = plan.modes(subject)
    with _exact_products():
        wanted = case.wanted(BOTH in modes)
    stands = {}
    for name, make in plan.contestants(subject).items():
        stands[name] = _stand(plan, name, make, case, modes, wanted)
        _alive(name, case.device)
    del wanted
    _clean(plan.device)
    return [_rounds(plan, subject, case, mode, stands, ceilings) for mode in modes]


def _stand(plan: Plan, name: str, make: Make, case: Any, modes: Sequence[str], wanted: Any) -> _Stand:
    """Let one contestant lay its weights out, run in every mode, and be checked."""
    stand = _Stand()
    if name in plan.without:
        stand.absent = dict.fromkeys(modes, LEFT_OUT)
        return stand
    try:
        call = called(make(case))
    except Exception as error:  # whatever one does, the others go on
        stand.absent = dict.fromkeys(modes, reason(error))
        return stand
    stand.note = _note(call, case, modes)
    for mode in modes:
        try:
            run = timed(call, case, mode)
            output, gradients = run()
            stand.errors[mode] = case.errors(wanted, output, restored(call, gradients))
            del output, gradients
            if mode == BOTH:
                stand.saved = saved(call, case.device)
            stand.timed[mode] = run
        except Exception as error:  # the same
            stand.absent[mode] = reason(error)
            _clean(case.device)
    return stand


def _alive(name: str, device: torch.device) -> None:
    """Raise DeviceLost if the device does not answer any more after a contestant's calls."""
    try:
        _settle(device)
    except RuntimeError as error:
        raise DeviceLost(f"{name} broke the device; leave it out with --without {name!r}. {reason(error)}") from error


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _note(call: Call, case: Any, modes: Sequence[str]) -> str:
    missing = [name for name in case.leaves if name not in call.leaves] if BOTH in modes and call.leaves else []
    return "; ".join(filter(None, (call.note, f"no gradient of {', '.join(missing)}" if missing else "")))


def _rounds(plan: Plan, subject: str, case: Any, mode: str, stands: Mapping[str, _Stand], ceilings: Ceilings) -> Result:
    calls = {name: stand.timed[mode] for name, stand in stands.items() if mode in stand.timed}
    turns = {**calls, **ceilings.calls}
    seconds, failed = take_turns(turns, plan.device, rounds=plan.rounds, repeats=plan.repeats)
    absent = {name: stand.absent[mode] for name, stand in stands.items() if mode in stand.absent}
    absent |= {name: why for name, why in failed.items() if name in stands}
    measured = tuple(
        Measured(
            name,
            times,
            each.errors[mode],
            each.saved if mode == BOTH else None,
            each.note,
            limit=getattr(case, "limit", None),
        )
        for name, times in seconds.items()
        if (each := stands.get(name))
    )
    rates = ceilings.rates({name: statistics.median(seconds[name]) for name in ceilings.calls if name in seconds})
    return _result(plan, subject, case.shape, mode, absent, measured, rates, case.load, case.visited)


def _result(
    plan: Plan, subject: str, shape: Shape, mode: str, absent: Mapping[str, str],
    measured: tuple[Measured, ...] = (), rates: tuple[float | None, float | None] = (None, None),
    load: float | None = None, visited: int | None = None,
) -> Result:  # fmt: skip
    backward, itemsize = mode == BOTH, plan.dtype.itemsize
    return Result(
        subject=subject, mode=mode, shape=asdict(shape), dtype=plain(plan.dtype), load=load,
        flops=shape.flops(backward), bytes=shape.bytes(backward, itemsize, visited), saved=shape.saved(itemsize),
        flop_rate=rates[0], byte_rate=rates[1], interpreted=plan.interpreted, measured=measured,
        absent=(*(Absent(name, why) for name, why in absent.items()), *plan.failed),
    )  # fmt: skip


def _nothing(plan: Plan, subject: str, shape: Shape, why: str) -> list[Result]:
    absent = dict.fromkeys(plan.contestants(subject), f"nothing could be measured: {why}")
    return [_result(plan, subject, shape, mode, absent) for mode in plan.modes(subject)]


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """No TF32 in the reference, whatever a peer's import has set."""
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before


def _clean(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # a lost device cannot give its memory back either
            torch.cuda.empty_cache()
