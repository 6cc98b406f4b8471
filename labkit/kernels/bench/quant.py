"""Experts with quantised weights beside bfloat16: prefill and decode, by format, and other libraries' formats.

Errors are those of the whole layer against exact weights, so they hold what the format costs: a contestant is called
wrong only from `LIMIT` on. What the weights weigh is in each one's note. Nobody is "ours": each format is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from labkit.core.runtime import Unavailable
from labkit.kernels import dispatch
from labkit.kernels.bench import apart, moe
from labkit.kernels.bench.moe import MoECase
from labkit.kernels.bench.peers import Call, Make
from labkit.kernels.bench.shapes import MoEShape

LIMIT = 0.25  # NF4, the coarsest, is 0.16 away in the tiny shape
MIB = 2**20
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, eq=False)
class QuantCase(MoECase):
    """As for the experts; `limit` is the error from which a contestant computes something else."""

    limit = LIMIT


def draw(shape: MoEShape, dtype: torch.dtype, device: torch.device, seed: int) -> QuantCase:
    """The inputs of `moe.draw`."""
    case = moe.draw(shape, dtype, device, seed)
    return QuantCase(**{field.name: getattr(case, field.name) for field in fields(case)})


def _weighing(*tensors: Tensor) -> str:
    return f"weights {sum(tensor.untyped_storage().nbytes() for tensor in tensors) / MIB:.3g} MiB"


def _exact(case: QuantCase) -> Call:
    given = case.x_TD, (case.topk_ids_TK, case.topk_scores_TK), case.gate_up_E2FD, case.down_EDF
    note = f"{_weighing(case.gate_up_E2FD, case.down_EDF)}"
    return Call(lambda: dispatch.experts(*given, implementation="triton"), note=note)


def _ours(form: str, activations: bool, case: QuantCase) -> Call:
    from labkit.kernels import fp8, nf4, quant, quant_experts

    shape = case.shape
    kind, how = case.device.type, {"form": form, "activations": activations}
    why_not = quant_experts.refuses(form, case.dtype, kind, shape.D, shape.F, activations=activations)
    if why_not:
        raise Unavailable(why_not)
    make = {"int8": quant.int8, "fp8": fp8.fp8, "nf4": nf4.nf4}[form]
    weights = []
    for matrices in (case.gate_up_E2FD, case.down_EDF):
        packed = [make(matrix) for matrix in matrices.detach()]  # one by one: float32 copies are large
        scales = [one.scale[..., 0] if form == "int8" else one.scale if form == "fp8" else one.absmax for one in packed]
        weights += [torch.stack([one.codes for one in packed]), torch.stack(scales)]
    given = case.x_TD, case.topk_ids_TK, case.topk_scores_TK.detach()
    note = _weighing(*weights)
    if form == "fp8" and activations and (plain := quant_experts.why_plain()):
        note += f"; plain Triton: {plain}"
    return Call(lambda: quant_experts.experts(*given, *weights, **how), note=note)


def _scaled_grouped_mm(case: QuantCase) -> Call:
    """torch's grouped product in E4M3, a scale for every row on both sides; sorted, copied and rounded in torch."""
    product = getattr(torch, "_scaled_grouped_mm", None)
    if product is None:
        raise Unavailable("this torch has no _scaled_grouped_mm")
    if case.device.type != "cuda":
        raise Unavailable("torch._scaled_grouped_mm is for GPUs")
    shape = case.shape
    experts = torch.arange(shape.E, device=case.device)
    x, ids, scores = case.x_TD, case.topk_ids_TK, case.topk_scores_TK
    weights = [_fp8_by_rows(matrices.detach()) for matrices in (case.gate_up_E2FD, case.down_EDF)]

    def times(rows: Tensor, codes: Tensor, scale: Tensor, ends: Tensor) -> Tensor:
        a, scale_a = _fp8_by_rows(rows)
        return product(a, codes.mT, scale_a, scale, offs=ends, out_dtype=torch.bfloat16)

    def forward() -> Tensor:
        order = ids.flatten().argsort(stable=True)
        ends = (ids.flatten()[None, :] == experts[:, None]).sum(1).cumsum(0).int()
        gate, up = times(x[order // shape.K], *weights[0], ends).chunk(2, -1)
        y = torch.empty(len(order), shape.D, dtype=torch.bfloat16, device=case.device)
        y[order] = times(silu(gate) * up, *weights[1], ends)
        return (y.view(shape.T, shape.K, shape.D) * scores[..., None]).sum(1)

    return Call(forward, note=_weighing(*weights[0], *weights[1]))


def _fp8_by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1).float().clamp_min(1e-12) / 448
    return (x / scale[..., None]).to(FP8), scale


def _looped(pack: Callable[[nn.Linear, QuantCase], nn.Module], note: str, case: QuantCase) -> Call:
    """Another library's linear layers, two an expert, one expert after another; experts without tokens are left out."""
    x, ids, scores = case.x_TD.detach(), case.topk_ids_TK, case.topk_scores_TK.detach()
    before = torch.cuda.memory_allocated() if x.is_cuda else 0
    modules = [
        [pack(_linear(matrices[expert]), case) for matrices in (case.gate_up_E2FD, case.down_EDF)]
        for expert in range(case.shape.E)
    ]

    if x.is_cuda:
        note += f", weights {(torch.cuda.memory_allocated() - before) / MIB:.3g} MiB"

    def forward() -> Tensor:
        out = torch.zeros_like(x, dtype=torch.float32)
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            up, down = modules[expert]
            gate, rest = up(x[token]).chunk(2, -1)
            out.index_add_(0, token, down(silu(gate) * rest).float() * scores[token, slot, None])
        return out.to(x.dtype)

    return Call(forward, note=f"{note}; one expert after another", graphs=False)


def _linear(matrix: Tensor) -> nn.Linear:
    linear = nn.Linear(*matrix.shape[::-1], bias=False, device="meta")
    linear.weight = nn.Parameter(matrix.detach().clone(), requires_grad=False)
    return linear


def _bitsandbytes(bits: int, case: QuantCase) -> Call:
    import bitsandbytes as bnb

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at each call it says that it rounds to float16

    def pack(linear: nn.Linear, case: QuantCase) -> nn.Module:
        sizes = linear.in_features, linear.out_features
        if bits == 8:
            made = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=0.0)
            made.weight = bnb.nn.Int8Params(linear.weight.data.half().cpu(), requires_grad=False)
        else:
            made = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=case.dtype, quant_type="nf4")
            made.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        return made.to(case.device)

    return _looped(pack, f"bitsandbytes {bnb.__version__}", case)


def _torchao(case: QuantCase) -> Call:
    torchao = apart.load("torchao")
    made = apart.load("torchao.quantization")

    def pack(linear: nn.Linear, case: QuantCase) -> nn.Module:
        made.quantize_(linear, made.Int8WeightOnlyConfig())
        return linear

    return _looped(pack, f"torchao {torchao.__version__}", case)


CONTESTANTS: dict[str, Make] = {
    "labkit, not quantised": _exact,
    "labkit INT8, both sides": partial(_ours, "int8", True),
    "labkit FP8, both sides": partial(_ours, "fp8", True),
    "labkit INT8 weights": partial(_ours, "int8", False),
    "labkit FP8 weights": partial(_ours, "fp8", False),
    "labkit NF4 weights": partial(_ours, "nf4", False),
    "torch FP8 by rows": _scaled_grouped_mm,
    "bitsandbytes INT8": partial(_bitsandbytes, 8),
    "bitsandbytes NF4": partial(_bitsandbytes, 4),
    "torchao INT8 weights": _torchao,
}
"""Who is measured without being asked, by format."""
