"""The microscope's kernel side: it shows the router it was given, and the bias moves the choice only."""

from __future__ import annotations

import base64

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels.reference import route
from labkit.show import Microscope, microscope
from labkit.show.style import expert_colors
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.microscope import decide_as

SIGMOID = MoEConfig(d_model=4, d_expert=4, num_experts=8, top_k=2, score_fn="sigmoid", selection_bias=True)


def record(config: MoEConfig = SIGMOID, T: int = 3, **names) -> Routing:
    logits = torch.randn(T, config.num_experts, generator=torch.Generator().manual_seed(0))
    _, ids, weights = decide_as(config)(logits, torch.zeros(config.num_experts))
    return Routing.of(logits, ids, weights, **names)


@pytest.mark.parametrize(
    "config",
    [
        SIGMOID,
        SIGMOID.replace(score_fn="softmax", norm_topk=False),
        SIGMOID.replace(score_fn="sqrtsoftplus", route_scale=2.5),
        SIGMOID.replace(score_fn="topk_softmax"),
        SIGMOID.replace(num_experts=16, top_k=4, num_groups=4, top_groups=2, group_score="top2_sum"),
        SIGMOID.replace(num_experts=16, top_k=4, num_groups=4, top_groups=1),
    ],
)
def test_decides_as_the_reference_does(config):
    E = config.num_experts
    torch.manual_seed(1)
    logits, bias = torch.randn(64, E), 0.3 * torch.randn(E)
    _, ids, weights = decide_as(config)(logits, bias)
    names = ("top_k", "score_fn", "norm_topk", "route_scale", "num_groups", "top_groups", "group_score")
    answer = route(logits, bias_E=bias, **{name: getattr(config, name) for name in names})
    assert torch.equal(ids, next(a for a in answer if not a.is_floating_point()))
    torch.testing.assert_close(weights, next(a for a in answer if a.is_floating_point()))


def test_bias_moves_the_choice_but_not_the_score():
    m = microscope(record(), SIGMOID)
    before, scores = m.chosen, m.view["scores"]
    outsider = next(e for e in range(8) if e not in before)
    m.expert = outsider
    m.bias = [1.0 if e == outsider else 0.0 for e in range(8)]
    assert m.chosen[0] == outsider
    assert m.view["scores"] == scores
    assert m.view["without"] == before
    kept = m.chosen[1]
    expected = scores[outsider] / (scores[outsider] + scores[kept])
    assert m.weights[0] == pytest.approx(expected, rel=1e-5)
    assert f"brought in expert {outsider}" in m.view["note"]
    assert "without the bias" in m.view["note"]


def test_token_changes_the_decision_and_uses_the_routers_own_answer():
    calls = []

    def mine(logits_TE, bias_E):
        calls.append((logits_TE.shape, bias_E.dtype))
        return logits_TE, torch.tensor([[0]]), torch.tensor([[0.25]])

    m = Microscope(record(tokens=("a", "b", "c"), domains=("x", "y", "z")), mine, tokens=[2, 0])
    assert m.labels == ["2: 'c' (z)", "0: 'a' (x)"]
    m.token = 1
    assert (m.chosen, m.weights) == ([0], [0.25])
    assert m.view["logits"] == record().logits_TE[0].tolist()
    assert set(calls) == {((1, 8), torch.float32)}


def test_starts_on_the_token_it_is_told_and_takes_its_favourite_in_hand():
    m = microscope(record(), SIGMOID, tokens=[2, 0, 1], token=2)
    assert m.view["logits"] == record().logits_TE[1].tolist()
    assert m.expert == m.chosen[0] == int(record().topk_ids_TK[1, 0])
    assert m.expert != microscope(record(), SIGMOID).expert


def test_low_scores_keep_two_digits_in_words():
    low = Routing.of(torch.tensor([[-6.0, -7.0]]), torch.tensor([[0]]), torch.tensor([[1.0]]))
    note = microscope(low, SIGMOID.replace(num_experts=2, top_k=1)).view["note"]
    assert "score 0.0025 + bias +0.00 = 0.0025" in note


def test_a_router_that_breaks_later_is_shown_and_the_widget_lives_on():
    def fragile(logits_TE, bias_E):
        if bias_E.abs().sum() > 0:
            raise RuntimeError("broken")
        return decide_as(SIGMOID)(logits_TE, bias_E)

    m = Microscope(record(), fragile)
    m.bias = [0.1] * 8
    assert "RuntimeError: broken" in m.view["error"]
    m.bias = [0.0] * 8
    assert m.view["error"] == ""


@pytest.mark.parametrize("E", [8, 64])
def test_bundle_has_view_picture_text_and_the_palette(E):
    config = SIGMOID.replace(num_experts=E)
    m = microscope(record(config), config)
    data, meta = m._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data[VIEW_MIME]["model_id"] == m.model_id
    assert "0x" not in data["text/plain"]
    assert meta["image/png"]["alt"] == data["text/plain"]
    assert f"Chosen: expert {m.chosen[0]}" in data["text/plain"]
    assert m.palette == expert_colors(E)
    assert not callable(m._ipython_display_)


def test_script_asks_nothing_of_the_network():
    source = str(Microscope._esm)
    assert "export default { render }" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


def bad_shape(logits_TE, bias_E):
    return logits_TE, torch.tensor([[9]]), torch.tensor([[1.0]])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Microscope("record", decide_as(SIGMOID)), "give a Routing record"),
        (lambda: Microscope(record(), None), "needs decide"),
        (lambda: Microscope(record(), bad_shape), "experts from 0 to 7"),
        (lambda: Microscope(record(), lambda x, b: x), "must return"),
        (lambda: Microscope(record(), decide_as(SIGMOID), tokens=[3]), "position from 0 to 2"),
        (lambda: Microscope(record(), decide_as(SIGMOID), bias=[0.0]), "give 8 finite"),
        (lambda: Microscope(record(), decide_as(SIGMOID), bias_step=0), "positive"),
        (lambda: microscope(record(), SIGMOID.replace(num_experts=4)), "8 experts, the configuration 4"),
        (lambda: microscope(record(), None), "MoEConfig"),
        (lambda: decide_as("softmax"), "MoEConfig"),
        (lambda: setattr(microscope(record(), SIGMOID), "token", 3), "give 0 to 2"),
        (lambda: microscope(record(), SIGMOID, token=3), "token is 3; give 0 to 2"),
        (lambda: microscope(record(), SIGMOID, token=-1), "token is -1; give 0 to 2"),
        (lambda: setattr(microscope(record(), SIGMOID), "step", 5), "give 1 to 4"),
        (lambda: setattr(microscope(record(), SIGMOID), "expert", 8), "give 0 to 7"),
        (lambda: setattr(microscope(record(), SIGMOID), "bias", [float("nan")] * 8), "finite"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
