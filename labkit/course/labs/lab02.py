"""Lab 02: dispatch, compute, combine. Its exercises, what each is tested on, and the words for each mistake.

The exercises on moving tokens live in `_02_dispatch` and `_02_combine`, the mistaken implementations in
`_02_mistakes`, the oracles in `_02_oracles` and the recap in `_02_recap`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.exercise import Exercise, Oracle
from labkit.course.judge import Mistake
from labkit.course.labs import Lab
from labkit.course.labs import _02_mistakes as wrong
from labkit.course.labs import _02_oracles as theirs
from labkit.course.labs._02_combine import COMBINE
from labkit.course.labs._02_dispatch import DISPATCH_BY_SORT, TOKENS_PER_EXPERT
from labkit.course.labs._02_recap import QUESTIONS


def _normal(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


# ----------------------------------------------------------------------------------------------------- swiglu_expert


def swiglu_expert(x_TD: Tensor, w_gate_FD: Tensor, w_up_FD: Tensor, w_down_DF: Tensor) -> Tensor:
    gate_TF = x_TD @ w_gate_FD.T
    up_TF = x_TD @ w_up_FD.T
    return (torch.nn.functional.silu(gate_TF) * up_TF) @ w_down_DF.T


def _expert(seed: int, T: tuple[int, ...], D: int, F: int, **like: object) -> tuple[Tensor, ...]:
    shapes = ((*T, D), (F, D), (F, D), (D, F))
    return tuple(_normal(seed + i, *shape, **like) for i, shape in enumerate(shapes))


def _swiglu_cases(seed: int) -> list[Case]:
    return [
        Case(_expert(seed, (1,), 2, 3), label="one token"),
        Case(_expert(seed + 10, (7,), 4, 6)),
        Case(_expert(seed + 20, (3,), 4, 4), label="F = D: a missing transpose does not crash"),
        Case(_expert(seed + 30, (0,), 4, 6), label="no token at all: an empty expert"),
        Case(_expert(seed + 40, (2, 3), 4, 6), label="a batch of sequences"),
        Case(_expert(seed + 50, (5,), 4, 6, scale=6.0), label="large activations"),
        Case(_expert(seed + 60, (5,), 4, 6, dtype=torch.float64), label="float64 stays float64"),
        Case(_expert(seed + 70, (3,), 4, 6), label="gradients flow back", needs_grad=True),
    ]


SWIGLU_EXPERT = Exercise(
    id="02.swiglu_expert",
    title="One expert: a SwiGLU feed-forward network",
    difficulty=1,
    minutes=8,
    points=2,
    reference=swiglu_expert,
    cases=_swiglu_cases,
    hints=(
        "Three matrices, three products. Two of them read the token; the third brings F values back to D.",
        "silu(z) = z · sigmoid(z) is applied to one branch only, the gate. The two branches meet in an element-wise "
        "product. Weights are stored as [out, in], so each product needs a transpose.",
        "(silu(x_TD @ w_gate_FD.T) * (x_TD @ w_up_FD.T)) @ w_down_DF.T",
    ),
    mistakes=(
        Mistake(
            "activates_the_wrong_branch",
            "SiLU sits on the up branch and the gate goes through bare. The two matrices have the same shape, so "
            "nothing crashes, and a model trained elsewhere gives nonsense. Which branch opens and closes the other?",
            like=wrong.swiglu_on_up,
        ),
        Mistake(
            "sigmoid_gate",
            "The gate is a plain sigmoid: that is GLU, the ancestor. SwiGLU's gate is SiLU, the sigmoid times its "
            "own input, so that it is not limited to values between 0 and 1.",
            like=wrong.swiglu_sigmoid,
        ),
        Mistake(
            "gelu_gate",
            "The gate is GELU: that is GEGLU, a sister of SwiGLU. GELU and SiLU are similar in shape, so nothing looks "
            "wrong; weights trained with one gate still need that gate.",
            like=wrong.swiglu_gelu,
        ),
        Mistake(
            "tanh_gelu_gate",
            "The gate is the tanh approximation of GELU. Some models do use it, as GEGLU; SwiGLU's gate is SiLU, z "
            "times its own sigmoid.",
            like=wrong.swiglu_tanh_gelu,
        ),
        Mistake(
            "relu_gate",
            "The gate is ReLU: that is ReGLU. It shuts off everything below zero; SiLU lets a little through there, "
            "and has a gradient with which to come back.",
            like=wrong.swiglu_relu,
        ),
        Mistake(
            "activates_both",
            "SiLU was applied to both branches. One branch opens and closes, the other carries the values; it stays "
            "linear.",
            like=wrong.swiglu_both,
        ),
        Mistake(
            "adds_the_input",
            "The token was added to its own output. That residual connection exists in the model, but around the "
            "whole layer, once; inside an expert it would be added K times, weighted by scores.",
            like=wrong.swiglu_residual,
        ),
        Mistake(
            "no_up_branch",
            "The result does not depend on `w_up_FD`. An expert has three matrices; without the up branch it is an "
            "ordinary two-matrix network with SiLU.",
            like=wrong.swiglu_no_up,
        ),
        Mistake(
            "activates_the_product",
            "SiLU was applied after the branches had been multiplied. Then the gate no longer gates: two negative "
            "branches open it. Look at what is inside the brackets.",
            like=wrong.swiglu_late,
        ),
        Mistake(
            "branches_added",
            "The branches were added. A gate multiplies: where it is zero, nothing may come through.",
            like=wrong.swiglu_added,
        ),
        Mistake(
            "missing_transpose",
            "The products use the weights as they are stored. With F = D that runs and computes something else. The "
            "names say [out, in]; which index of `x_TD` must meet which index of `w_gate_FD`?",
            like=wrong.swiglu_untransposed,
        ),
    ),
    oracle=Oracle("transformers' Mixtral expert", theirs.one_expert),
)

# --------------------------------------------------------------------------------------------------------- moe_flops


def moe_flops(T: int, D: int, F: int, E: int, K: int) -> int:
    router = 2 * T * D * E
    experts = T * K * 3 * (2 * D * F)
    return router + experts


def _flops_cases(seed: int) -> list[Case]:
    return [
        Case((1, 2, 5, 3, 1), label="one token"),
        Case((5 + seed % 7, 8, 6, 4, 2)),
        Case((3, 4, 8, 4, 4), label="K = E: the dense layer, and a router"),
        Case((7, 8, 4, 16, 3), label="narrow experts: the router shows"),
        Case((4096, 4096, 14_336, 8, 2), label="Mixtral-8x7B, large"),
        Case((4096, 2048, 768, 128, 8), label="Qwen3-30B-A3B, large"),
    ]


MOE_FLOPS = Exercise(
    id="02.moe_flops",
    title="The FLOPs of one sparse layer",
    difficulty=2,
    minutes=10,
    points=2,
    reference=moe_flops,
    cases=_flops_cases,
    hints=(
        "A product of [a, b] with [b, c] has a·b·c multiply-adds, each of them two FLOPs. List the matrix products "
        "of the layer, the router's first.",
        "The router scores every expert for every token. After that, each token goes through K experts, and each "
        "expert has three matrices of D·F weights.",
        "2·T·D·E for the router, plus T·K tokens through 3 matrices of 2·D·F each.",
    ),
    mistakes=(
        Mistake(
            "counts_every_expert",
            "This charges each token for all E experts: the dense layer's bill. What is sparse about the layer is "
            "that a token visits K of them.",
            like=wrong.flops_every_expert,
        ),
        Mistake(
            "no_router",
            "The experts are right, the router is missing. It is small beside wide experts and no longer small "
            "beside many narrow ones; and it looks at all E.",
            like=wrong.flops_no_router,
        ),
        Mistake(
            "multiply_adds",
            "Exactly half: these are multiply-adds. A FLOP is one operation, and a multiply-add is two. Published "
            "figures use both units; mixing them is a factor of two.",
            like=wrong.flops_multiply_adds,
        ),
        Mistake(
            "two_matrices",
            "Two matrices for each expert: that is a network without a gate. SwiGLU has gate, up and down.",
            like=wrong.flops_two_matrices,
        ),
        Mistake(
            "router_over_k",
            "The router was charged for K experts. It has to score all E before it knows which K are best.",
            like=wrong.flops_router_k,
        ),
        Mistake(
            "router_reads_f",
            "The router was charged for tokens of width F. It looks at the token as it enters the layer, which is D "
            "wide. Or D and F were taken in the other order; the experts would not show that.",
            like=wrong.flops_swapped_widths,
        ),
        Mistake(
            "counts_silu",
            "SiLU and the product of the branches were counted too. They are real work, F values a visit, but the "
            "question (and torch's counter) takes matrix products only.",
            like=wrong.flops_with_silu,
        ),
        Mistake(
            "one_token",
            "This is the cost of one token. T is missing.",
            like=wrong.flops_one_token,
        ),
        Mistake(
            "one_expert",
            "Each token was charged for a single expert; it visits K.",
            like=wrong.flops_one_expert,
        ),
        Mistake(
            "includes_backward",
            "Three times too much: that is forward and backward. The question is about the forward pass.",
            like=wrong.flops_with_backward,
        ),
    ),
    oracle=Oracle(
        "torch's FLOP counter over transformers' OLMoE layer",
        theirs.counted_flops,
        fits=lambda case: "large" not in case.label,
    ),
)

LAB = Lab(
    number="02",
    name="experts",
    title="Experts: dispatch, compute, combine",
    minutes=100,
    hardware="CPU; a GPU for the real widths",
    claims=(1,),
    exercises=(SWIGLU_EXPERT, TOKENS_PER_EXPERT, DISPATCH_BY_SORT, COMBINE, MOE_FLOPS),
    questions=QUESTIONS,
)
