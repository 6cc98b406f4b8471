"""Which implementation computes the experts, and why; what each costs stands in `kernels.traffic`, routing in `routes`.

Implementations register here with a function that says what they cannot do, so later kernels join without a change.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.core.routing import Routing
from labkit.kernels import reference, rows
from labkit.kernels import variant as variants
from labkit.kernels.choice import Choice, Forced
from labkit.kernels.routes import route
from labkit.kernels.traffic import Traffic, traffic
from labkit.kernels.variant import Variant

__all__ = [
    "Choice",
    "Problem",
    "Traffic",
    "Variant",
    "choose",
    "experts",
    "force",
    "names",
    "register",
    "route",
    "traffic",
]


@dataclass(frozen=True)
class Problem:
    """What an implementation has to know before it says yes: sizes, dtype, the device's type, and a variant if any."""

    T: int
    D: int
    F: int
    E: int
    K: int
    dtype: torch.dtype
    device: str
    plain: bool = True  # SwiGLU without biases


@dataclass(frozen=True)
class _Entry:
    fn: Callable[..., Tensor]
    supports: Callable[[Problem], str]
    rank: int
    variant_fn: Callable[..., Tensor] | None
    devices: tuple[str, ...] | None

    def refuses(self, problem: Problem) -> str:
        """Why it cannot compute the problem; empty if it can."""
        if not problem.plain and self.variant_fn is None:
            return "it has neither biases nor another activation than SwiGLU"
        return self.supports(problem)


_REGISTRY: dict[str, _Entry] = {}
_forced = Forced("experts")


def register(
    name: str,
    fn: Callable[..., Tensor],
    *,
    supports: Callable[[Problem], str] | None = None,
    rank: int = 0,
    variant_fn: Callable[..., Tensor] | None = None,
    devices: tuple[str, ...] | None = None,
) -> None:
    """Add an implementation.

    Args:
        name: how it is asked for; ValueError if taken.
        fn: called as `fn(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)`, returns [T, D].
        supports: from a `Problem` to why it cannot be computed, or "" if it can. Left out: it can do everything.
        rank: "auto" takes the highest rank that supports the problem.
        variant_fn: called as `fn`, with a `Variant` after its arguments, for experts that are not plain SwiGLU. Left
            out: it cannot compute those.
        devices: the types of device where "auto" considers it; elsewhere it must be asked for. Left out: everywhere.
    """
    if name in _REGISTRY or name == "auto":
        raise ValueError(f"name is {name!r}, which is taken; give another")
    _REGISTRY[name] = _Entry(fn, supports or (lambda problem: ""), rank, variant_fn, devices)


def names() -> tuple[str, ...]:
    """Every registered implementation, the one that "auto" prefers first."""
    return tuple(sorted(_REGISTRY, key=lambda name: -_REGISTRY[name].rank))


def choose(problem: Problem, implementation: str = "auto") -> Choice:
    """The implementation for a problem: the forced one, else the named one, else the best that supports it.

    Raises ValueError for an unknown name, and when the one forced or named cannot do it, saying why.

    >>> choose(Problem(T=8, D=6, F=6, E=4, K=2, dtype=torch.float64, device="cpu"))
    Choice(name='sorted', reason='grouped_mm cannot: it takes float32, float16 and bfloat16, not float64')
    """
    forced = _forced.name
    name = forced or implementation
    if name != "auto":
        why_not = _entry(name).refuses(problem)
        if why_not:
            raise ValueError(
                f"{name} cannot compute this: {why_not}; use implementation='auto' or another of {names()}"
            )
        return Choice(name, "forced" if forced else "asked for")
    refused = []
    for name in names():
        devices = _REGISTRY[name].devices
        if devices is not None and problem.device not in devices:
            continue
        why_not = _REGISTRY[name].refuses(problem)
        if not why_not:
            return Choice(name, "; ".join(refused) or "the first choice supports this")
        refused.append(f"{name} cannot: {why_not}")
    raise ValueError(f"no implementation can compute this: {'; '.join(refused)}")


@contextlib.contextmanager
def force(name: str) -> Iterator[None]:
    """Inside the block every call of `experts` runs this implementation, in this thread or task only.

    >>> with force("loop"):
    ...     choose(Problem(8, 8, 8, 4, 2, torch.float32, "cpu"), "sorted").name
    'loop'
    """
    _entry(name)
    with _forced.to(name):
        yield


def experts(
    x_TD: Tensor,
    decision: Routing | tuple[Tensor, Tensor],
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    *,
    variant: Variant | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Send every token through its chosen experts and add up the weighted outputs.

    Args:
        x_TD: [T, D].
        decision: a `Routing`, or `(topk_ids_TK int64, topk_scores_TK)`.
        gate_up_E2FD: [E, 2F, D]; down_EDF: [E, D, F], in x's dtype.
        variant: biases and activation; None is plain SwiGLU.
        implementation: "auto" or one of `names()`.

    Returns [T, D] in x's dtype. Raises ValueError if sizes do not fit or the implementation cannot do it.
    """
    if isinstance(decision, Routing):
        ids_TK, scores_TK = decision.topk_ids_TK, decision.topk_scores_TK
        if decision.num_experts != gate_up_E2FD.shape[0]:
            raise ValueError(f"the routing has {decision.num_experts} experts, the weights {gate_up_E2FD.shape[0]}")
    else:
        ids_TK, scores_TK = decision
    reference.check_experts(x_TD, ids_TK, scores_TK, gate_up_E2FD, down_EDF)
    plain = variant is None or variant.plain
    if not plain:
        variant.check(gate_up_E2FD, down_EDF)
    E, D, F_ = down_EDF.shape
    problem = Problem(x_TD.shape[0], D, F_, E, ids_TK.shape[1], x_TD.dtype, x_TD.device.type, plain)
    entry = _REGISTRY[choose(problem, implementation).name]
    if plain:
        return entry.fn(x_TD, ids_TK, scores_TK, gate_up_E2FD, down_EDF)
    return entry.variant_fn(x_TD, ids_TK, scores_TK, gate_up_E2FD, down_EDF, variant)


def experts_grouped_mm(
    x_TD: Tensor,
    topk_ids_TK: Tensor,
    topk_scores_TK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    variant: Variant = variants.PLAIN,
) -> Tensor:
    """Sort the pairs by expert, then two grouped matrix products over all experts at once, then put them back.

    The scores weigh what goes into the second product, which is narrower than what comes out, in x's dtype. Arguments
    and result as `reference.experts_loop`, and a variant, of which each pair reads its expert's biases; rows of D and F
    elements must be multiples of 16 bytes.
    """
    order_N, token_N, offsets_E = reference.sort_by_expert(topk_ids_TK, gate_up_E2FD.shape[0])
    place_TK = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    place_TK = place_TK.view(topk_ids_TK.shape)
    score_N = topk_scores_TK.reshape(-1)[order_N].to(x_TD.dtype)
    x_ND = rows.spread(x_TD, token_N, place_TK)
    gate_up_N2F = F.grouped_mm(x_ND, gate_up_E2FD.mT, offs=offsets_E)
    biased = variant.gate_up_bias_E2F is not None
    expert_N = topk_ids_TK.reshape(-1)[order_N] if biased else None
    if biased:
        gate_up_N2F = gate_up_N2F + variant.gate_up_bias_E2F[expert_N]
    hidden_NF = variants.activate(gate_up_N2F, variant) * score_N[:, None]
    y_ND = F.grouped_mm(hidden_NF, down_EDF.mT, offs=offsets_E)
    if biased:
        y_ND = y_ND + variant.down_bias_ED[expert_N] * score_N[:, None]
    return rows.gather_sum(y_ND, token_N, place_TK)


def _grouped_mm_supports(problem: Problem) -> str:
    if not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm (it comes with 2.11)"
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
    for letter in ("D", "F"):
        width = getattr(problem, letter) * problem.dtype.itemsize
        if width % 16:
            return f"{letter} = {getattr(problem, letter)} makes rows of {width} bytes; it needs a multiple of 16"
    if problem.T == 0:
        return "there are no tokens"
    return ""


def _triton(*given: Tensor) -> Tensor:
    from labkit.kernels.experts import experts as fused  # Triton is loaded by the first call that needs it

    return fused(*given)


def _triton_supports(problem: Problem) -> str:
    if find_spec("triton") is None:
        return 'Triton is not installed; pip install "labkit[gpu]"'
    from labkit.kernels.experts import refuses

    return refuses(problem.dtype, problem.device, problem.D, problem.F)


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        raise ValueError(f"implementation is {name!r}; choose 'auto' or one of {', '.join(names())}")
    return _REGISTRY[name]


register("triton", _triton, supports=_triton_supports, rank=40, devices=("cuda",))  # on a CPU, interpreted
register("grouped_mm", experts_grouped_mm, supports=_grouped_mm_supports, rank=30, variant_fn=experts_grouped_mm)
register("sorted", reference.experts_sorted, rank=20)
register("loop", reference.experts_loop, rank=10, variant_fn=variants.experts_loop)
register("onehot", reference.experts_onehot, rank=0)

if torch.cuda.is_available() and find_spec("triton") is not None:
    # Now and not at the first call: a counter of FLOPs knows only the operators that existed when it was made.
    importlib.import_module("labkit.kernels.experts")
