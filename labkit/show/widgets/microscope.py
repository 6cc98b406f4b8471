"""The router microscope: one token's decision in four steps, with the balancing bias of each expert in your hand.

Python decides, with the function it is given, whenever token or bias changes; JavaScript only draws `view`. What it is
for: the bias moves the choice, and the weight of a chosen expert still comes from its score without the bias
(DeepSeek-V3, arXiv 2412.19437, section 2.1.2, equation 16).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.show import style
from labkit.show.picture import Picture, new
from labkit.show.style import expert_color, expert_colors
from labkit.show.widgets.base import LabWidget, esm

Decide = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

STEPS = ("Logits", "Score + bias", "Top-k", "Weights")
MAX_TOKENS = 24


def decide_as(config: MoEConfig) -> Decide:
    """A plain decision function for a configuration, for when no router of your own is at hand.

    From logits_TE [T, E] and bias_E [E] to scores_TE [T, E], topk_ids_TK [T, K] int64 and topk_scores_TK [T, K].

    >>> decide = decide_as(MoEConfig(d_model=4, d_expert=4, num_experts=2, top_k=1))
    >>> decide(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0]))[1:]
    (tensor([[1]]), tensor([[1.]]))
    """
    if not isinstance(config, MoEConfig):
        raise ValueError(f"decide_as got {type(config).__name__}; give the layer's MoEConfig")
    return lambda logits_TE, bias_E: _decide(config, logits_TE, bias_E)


def _decide(c: MoEConfig, logits_TE: Tensor, bias_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    score = {
        "softmax": lambda x: x.softmax(-1),
        "sigmoid": torch.sigmoid,
        "sqrtsoftplus": lambda x: torch.nn.functional.softplus(x).sqrt(),
        "topk_softmax": lambda x: x,
    }[c.score_fn]
    scores_TE = score(logits_TE.float())
    choice_TE = scores_TE + bias_E
    if c.top_groups < c.num_groups:
        grouped = choice_TE.view(-1, c.num_groups, c.num_experts // c.num_groups)
        worth = grouped.topk(2 if c.group_score == "top2_sum" else 1, dim=-1).values.sum(-1)
        shut = torch.ones_like(worth, dtype=torch.bool).scatter_(1, worth.topk(c.top_groups, dim=-1).indices, False)
        choice_TE = grouped.masked_fill(shut[:, :, None], -math.inf).view_as(choice_TE)
    ids_TK = choice_TE.sort(dim=-1, descending=True, stable=True).indices[:, : c.top_k]
    weights_TK = scores_TE.gather(1, ids_TK)
    if c.score_fn == "topk_softmax":
        weights_TK = weights_TK.softmax(-1)
    elif c.norm_topk:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return scores_TE, ids_TK, weights_TK * c.route_scale


class Microscope(LabWidget):
    """A live view of one token's routing.

    Args:
        routing: the record whose logits are looked at; its first 24 tokens can be picked, or those you name.
        decide: from (logits_TE, bias_E) to (scores_TE, topk_ids_TK, topk_scores_TK), each for T = 1 here: your router.
        tokens: which rows of the record can be picked.
        token: the one to start on, a position in `tokens`.
        bias: the starting expert_bias_E, E numbers; zeros if not given.
        bias_step: what one press of an arrow key changes a bias by; with Shift five times as much.
        score_name: what the scores are called on the axis, such as "sigmoid score".

    Traits that the browser and the kernel share: `token` (a position in `tokens`), `step` (1 to 4), `expert` (the one
    in hand) and `bias` (E numbers). After each change `chosen` and `weights` hold the decision.
    Raises ValueError for a record without tokens, positions outside it, a bias of the wrong length, or a `decide`
    whose answer has the wrong shapes.
    """

    _esm = esm("microscope")

    token = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(1).tag(sync=True)
    expert = traitlets.Int(0).tag(sync=True)
    bias = traitlets.List(traitlets.Float()).tag(sync=True)
    bias_step = traitlets.Float(0.1).tag(sync=True)
    bias_limit = traitlets.Float(1.0).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        routing: Routing,
        decide: Decide,
        *,
        tokens: Sequence[int] | None = None,
        token: int = 0,
        bias: Sequence[float] | None = None,
        bias_step: float = 0.1,
        score_name: str = "score",
    ) -> None:
        if not isinstance(routing, Routing):
            raise ValueError(f"Microscope got {type(routing).__name__}; give a Routing record")
        if not callable(decide):
            raise ValueError("Microscope needs decide(logits_TE, bias_E) -> (scores_TE, topk_ids_TK, topk_scores_TK)")
        if not bias_step > 0:
            raise ValueError(f"Microscope.bias_step is {bias_step}; give a positive number")
        routing = routing.detach()
        rows = _rows(routing, tokens)
        self._logits = routing.logits_TE[rows].float()
        self._decide, self._score_name = decide, score_name
        E = routing.num_experts
        names = [_label(routing, row) for row in rows]
        start = [0.0] * E if bias is None else [float(b) for b in bias]
        super().__init__(labels=names, token=token, bias=start, bias_step=bias_step, palette=expert_colors(E))
        spread = [self._ask(t, [0.0] * E)[0] for t in range(len(rows))]
        self.bias_limit = float(max(1, math.ceil(max((max(s) - min(s)) for s in spread))))
        self.expert = self._ask(token, start)[1][0]
        self.view = self._look()
        self.observe(self._refresh, names=["token", "bias", "expert", "step"])

    @property
    def chosen(self) -> list[int]:
        """The chosen experts, best first."""
        return list(self.view["chosen"])

    @property
    def weights(self) -> list[float]:
        """The weight of each chosen expert's output, in the order of `chosen`."""
        return list(self.view["weights"])

    @traitlets.validate("bias")
    def _check_bias(self, proposal: Any) -> list[float]:
        E, value = self._logits.shape[1], proposal["value"]
        if len(value) != E or not all(math.isfinite(b) for b in value):
            raise ValueError(f"Microscope.bias has {len(value)} values; give {E} finite numbers, one an expert")
        return value

    @traitlets.validate("token", "step", "expert")
    def _check_position(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        low, high = {"token": (0, len(self._logits) - 1), "step": (1, 4), "expert": (0, self._logits.shape[1] - 1)}[
            name
        ]
        if not low <= value <= high:
            raise ValueError(f"Microscope.{name} is {value}; give {low} to {high}")
        return value

    def _refresh(self, change: Any = None) -> None:
        try:
            self.view = self._look()
        except Exception as error:
            self.view = {**self.view, "error": f"Your router raised {type(error).__name__}: {error}"}

    def _ask(self, token: int, bias: list[float]) -> tuple[list[float], list[int], list[float]]:
        logits_1E = self._logits[token : token + 1]
        answer = self._decide(logits_1E.clone(), torch.tensor(bias, dtype=torch.float32))
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise ValueError("decide must return (scores_TE, topk_ids_TK, topk_scores_TK)")
        scores, ids, weights = (torch.as_tensor(part).detach().reshape(-1).tolist() for part in answer)
        E = logits_1E.shape[1]
        if len(scores) != E or len(ids) != len(weights) or not all(i in range(E) for i in ids):
            raise ValueError(
                f"decide gave {len(scores)} scores, experts {ids} and {len(weights)} weights for {E} experts; "
                f"give {E} scores, and as many weights as experts from 0 to {E - 1}"
            )
        return scores, [int(i) for i in ids], weights

    def _look(self) -> dict[str, Any]:
        scores, ids, weights = self._ask(self.token, self.bias)
        plain = self._ask(self.token, [0.0] * len(self.bias))[1]
        return {
            "logits": self._logits[self.token].tolist(),
            "scores": scores,
            "chosen": ids,
            "weights": weights,
            "without": plain,
            "score_name": self._score_name,
            "note": self._note(scores, ids, weights, plain),
            "error": "",
        }

    def _note(self, scores: list[float], ids: list[int], weights: list[float], plain: list[int]) -> str:
        e = self.expert
        score, biased = _plain(scores[e]), _plain(scores[e] + self.bias[e])
        total = f"score {score} + bias {self.bias[e]:+.2f} = {biased}"
        came, went = [i for i in ids if i not in plain], [i for i in plain if i not in ids]
        moved = (
            f"The bias brought in {_names(came)} for {_names(went)}." if came else "The bias changes no choice here."
        )
        if e not in ids:
            return f"Expert {e}: {total}; not chosen. {moved}"
        weight = f"its weight {_plain(weights[ids.index(e)])} comes from the score {score} alone, without the bias"
        return f"Expert {e}: {total}; chosen, and {weight}. {moved}"

    def picture(self) -> Picture:
        """The four steps side by side, as they stand."""
        v, E = self.view, len(self.bias)
        with style.use():
            figure, axes = new(4, size=(11, 2.9))
            weight = dict(zip(v["chosen"], v["weights"], strict=True))
            for ax, name, values in zip(
                axes,
                [f"{i}. {name}" for i, name in enumerate(STEPS, 1)],
                [v["logits"], v["scores"], None, [weight.get(e, 0.0) for e in range(E)]],
                strict=True,
            ):
                _panel(ax, name, values, v, self.bias, self.expert)
            figure.suptitle(f"Token {self.labels[self.token]}", x=0.01, ha="left", fontsize=12)
        figure.alt = (
            f"Router microscope, token {self.labels[self.token]}, {E} experts. Chosen: "
            + ", ".join(f"expert {i} with weight {_plain(w)}" for i, w in weight.items())
            + f". Without bias: {_names(v['without'])}. {v['note']}"
        )
        return figure


def _panel(ax: Any, name: str, values: list[float] | None, v: dict, bias: list[float], expert: int) -> None:
    E = len(bias)
    colors = [expert_color(e, E, expert) for e in range(E)]
    if values is None:
        values = [s + b for s, b in zip(v["scores"], bias, strict=True)]
        colors = [c if e in v["chosen"] else style.GREY for e, c in enumerate(colors)]
        ax.axhline(min(values[e] for e in v["chosen"]), color=style.INK, linestyle="--", linewidth=1)
    ax.bar(range(E), values, color=colors)
    if "bias" in name and any(bias):
        ax.bar(range(E), bias, bottom=values, fill=False, edgecolor=style.INK, hatch="///", linewidth=0.8)
    ax.axhline(0, color=style.INK, linewidth=0.8)
    units = {
        "1": "logit",
        "2": f"{v['score_name']} + bias",
        "3": f"{v['score_name']} + bias",
        "4": "weight of the output",
    }
    ax.set(title=name, xlabel="expert", ylabel=units[name[0]])
    ax.set_xticks(range(0, E, max(1, math.ceil(E / 8))))


def _rows(routing: Routing, tokens: Sequence[int] | None) -> list[int]:
    T = routing.num_tokens
    rows = list(range(min(T, MAX_TOKENS))) if tokens is None else [int(t) for t in tokens]
    if not rows or not all(0 <= row < T for row in rows):
        raise ValueError(f"Microscope.tokens is {rows}; give at least one position from 0 to {T - 1}")
    return rows


def _label(routing: Routing, row: int) -> str:
    if routing.tokens is None:
        return f"{row}"
    domain = f" ({routing.domains[row]})" if routing.domains else ""
    return f"{row}: {routing.tokens[row]!r}{domain}"


def _plain(value: float) -> str:
    """Three decimals, or two significant digits where those would be lost.

    >>> _plain(0.25), _plain(0.00123), _plain(0.0)
    ('0.250', '0.0012', '0.000')
    """
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.0995 else f"{value:#.2g}"


def _names(experts: list[int]) -> str:
    return ("expert " if len(experts) == 1 else "experts ") + ", ".join(map(str, experts))


def microscope(
    routing: Routing,
    config: MoEConfig,
    decide: Decide | None = None,
    tokens: Sequence[int] | None = None,
    bias_step: float = 0.1,
    token: int = 0,
) -> Microscope:
    """The microscope on a record, deciding as `config` says or with `decide`, your own router.

    It starts on `token`, a position in `tokens`.

    Raises ValueError if the record's experts are not as many as the configuration's.
    """
    if not isinstance(config, MoEConfig):
        raise ValueError(f"microscope got {type(config).__name__}; give the layer's MoEConfig")
    if isinstance(routing, Routing) and routing.num_experts != config.num_experts:
        raise ValueError(f"the record has {routing.num_experts} experts, the configuration {config.num_experts}")
    name = "logit" if config.score_fn == "topk_softmax" else f"{config.score_fn} score"
    return Microscope(
        routing, decide or decide_as(config), tokens=tokens, token=token, bias_step=bias_step, score_name=name
    )
