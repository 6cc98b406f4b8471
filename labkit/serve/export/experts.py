"""The sparse layer in ONNX's words: the router decides, and a loop runs over the experts that somebody chose.

One turn of the loop computes one expert for its own tokens, so that what is not routed costs nothing, and the graph is
as large for two experts as for two hundred.

Shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token, n tokens of one expert.
"""

from __future__ import annotations

import math

from torch import Tensor

from labkit.core.config import MoEConfig
from labkit.kernels.reference import RENORMALISE_EPS
from labkit.nn.experts import Experts, SwiGLU
from labkit.nn.moe import MoE
from labkit.nn.router import Router
from labkit.serve.export.graph import Graph, Value
from labkit.serve.export.need import need

TINY = 1.1754943508222875e-38  # what `kernels.reference` clamps softplus at before its root


def feed_forward(graph: Graph, module: SwiGLU | MoE, x_TD: str) -> str:
    """A dense or a sparse feed-forward layer, [T, D] to [T, D]."""
    if isinstance(module, SwiGLU):
        return _swiglu(graph, module, x_TD)
    with graph.inside("router"):
        ids_TK, scores_TK = route(graph, module.router, x_TD)
    with graph.inside("experts"):
        y_TD = experts(graph, module.experts, x_TD, ids_TK, scores_TK)
    if module.shared is None:
        return y_TD
    with graph.inside("shared"):
        return graph.op("Add", y_TD, _swiglu(graph, module.shared, x_TD))


def route(graph: Graph, router: Router, x_TD: str) -> tuple[str, str]:
    """Ids [T, K] and scores [T, K] of the chosen experts, as `kernels.reference.route`.

    Of equal scores the lower number is taken, here as there: TopK promises it.
    """
    c = router.config
    logits_TE = graph.linear(x_TD, "logits", router.weight_ED, router.bias_E)
    scores_TE = _scores(graph, logits_TE, c.score_fn)
    choice_TE = scores_TE
    if router.expert_bias_E is not None:
        choice_TE = graph.op("Add", scores_TE, graph.weight("expert_bias_E", router.expert_bias_E))
    if c.top_groups < c.num_groups:
        choice_TE = _best_groups(graph, choice_TE, c)
    _, ids_TK = graph.ops("TopK", 2, choice_TE, graph.constant([c.top_k]), axis=-1)
    scores_TK = graph.op("GatherElements", scores_TE, ids_TK, axis=1)
    if c.score_fn == "topk_softmax":
        scores_TK = graph.op("Softmax", scores_TK, axis=-1)
    elif c.norm_topk:
        total = graph.op("ReduceSum", scores_TK, graph.constant([-1]), keepdims=1)
        scores_TK = graph.op("Div", scores_TK, graph.op("Add", total, graph.constant(RENORMALISE_EPS)))
    return ids_TK, graph.op("Mul", scores_TK, graph.constant(float(c.route_scale)))


def experts(graph: Graph, module: Experts, x_TD: str, ids_TK: str, scores_TK: str) -> str:
    """Every chosen expert on its own tokens; weighted outputs are added where they came from."""
    chosen = graph.op("Unique", ids_TK, sorted=1)
    nothing_TD = graph.op("Mul", x_TD, graph.constant(0.0))
    body = Graph(graph)
    turn, going, sum_TD = (f"{graph.room}{name}" for name in ("turn", "going", "sum"))
    next_TD = _one_expert(body, module, x_TD, ids_TK, scores_TK, body.op("Gather", chosen, turn, axis=0), sum_TD)
    goes_on = body.op("Identity", going)
    onnx = need("onnx")
    loop = onnx.helper.make_graph(
        body.nodes, f"{graph.room}expert",
        [Value(turn, "INT64", ()).proto(), Value(going, "BOOL", ()).proto(), Value(sum_TD, "FLOAT", None).proto()],
        [Value(goes_on, "BOOL", ()).proto(), Value(next_TD, "FLOAT", None).proto()],
    )  # fmt: skip
    return graph.op("Loop", graph.op("Size", chosen), "", nothing_TD, body=loop)


def _one_expert(body: Graph, module: Experts, x_TD: str, ids_TK: str, scores_TK: str, expert: str, sum_TD: str) -> str:
    places_2n = body.op("NonZero", body.op("Equal", ids_TK, expert))
    token_n = body.op("Gather", places_2n, body.constant(0), axis=0)
    x_nD = body.op("Gather", x_TD, token_n, axis=0)
    up = _product(body, x_nD, expert, "gate_up_E2FD", module.gate_up_E2FD, module.gate_up_bias_E2F)
    hidden = _activate(body, up, module.config)
    y_nD = _product(body, hidden, expert, "down_EDF", module.down_EDF, module.down_bias_ED)
    score_n = body.op("GatherND", scores_TK, body.transpose(places_2n, 1, 0))
    last = body.constant([-1])
    weighted_nD = body.op("Mul", y_nD, body.op("Unsqueeze", score_n, last))
    return body.op("ScatterND", sum_TD, body.op("Unsqueeze", token_n, last), weighted_nD, reduction="add")


def _product(body: Graph, x_nC: str, expert: str, name: str, weight_ERC: Tensor, bias_ER: Tensor | None) -> str:
    taken = [body.op("Gather", body.weight(name, weight_ERC), expert, axis=0)]
    if bias_ER is not None:
        taken.append(body.op("Gather", body.weight(f"{name}.bias", bias_ER), expert, axis=0))
    return body.op("Gemm", x_nC, *taken, transB=1)


def _swiglu(graph: Graph, module: SwiGLU, x_TD: str) -> str:
    up = graph.linear(x_TD, "gate_up", module.gate_up_2FD)
    return graph.linear(_silu_product(graph, up, module.down_DF.shape[1]), "down", module.down_DF)


def _silu_product(graph: Graph, up: str, width: int) -> str:
    gate, up = graph.split(up, [width, width])
    return graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), up)


def _activate(graph: Graph, up: str, config: MoEConfig) -> str:
    """What stands between an expert's matrices, as `kernels.variant.activate`."""
    if config.activation == "swiglu":
        return _silu_product(graph, up, config.d_expert)
    gate, up = graph.split(up, [config.d_expert, config.d_expert])
    limit = graph.constant(float(config.swiglu_limit))
    gate = graph.op("Min", gate, limit)
    up = graph.op("Clip", up, graph.constant(-float(config.swiglu_limit)), limit)
    steep = graph.op("Sigmoid", graph.op("Mul", gate, graph.constant(float(config.swiglu_alpha))))
    return graph.op("Mul", graph.op("Mul", graph.op("Add", up, graph.constant(1.0)), gate), steep)


def _scores(graph: Graph, logits_TE: str, score_fn: str) -> str:
    match score_fn:
        case "softmax":
            return graph.op("Softmax", logits_TE, axis=-1)
        case "sigmoid":
            return graph.op("Sigmoid", logits_TE)
        case "sqrtsoftplus":
            return graph.op("Sqrt", graph.op("Max", graph.op("Softplus", logits_TE), graph.constant(TINY)))
    return logits_TE


def _best_groups(graph: Graph, choice_TE: str, config: MoEConfig) -> str:
    """The choice with every expert outside the best groups at minus infinity."""
    groups, size = config.num_groups, config.num_experts // config.num_groups
    grouped = graph.reshape(choice_TE, -1, groups, size)
    best = 1 if config.group_score == "max" else 2
    top, _ = graph.ops("TopK", 2, grouped, graph.constant([best]), axis=-1)
    worth = graph.op("ReduceSum", top, graph.constant([-1]), keepdims=0)
    _, kept = graph.ops("TopK", 2, worth, graph.constant([config.top_groups]), axis=-1)
    marks = graph.op("OneHot", kept, graph.constant(groups), graph.constant([0.0, 1.0]), axis=-1)
    marks = graph.op("ReduceMax", marks, graph.constant([1]), keepdims=0)
    keep = graph.op("Unsqueeze", graph.op("Cast", marks, to=9), graph.constant([-1]))
    return graph.reshape(graph.op("Where", keep, grouped, graph.constant(-math.inf)), -1, config.num_experts)
