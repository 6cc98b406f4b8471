"""Microscope and planner in a real JupyterLab: what hands and keys do reaches the kernel, and it looks right."""

from __future__ import annotations

import json
import re

import pytest
from jupyter_browser import shoot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SETUP = """
import json, torch
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.show.widgets.microscope import decide_as, microscope
config = MoEConfig(d_model=4, d_expert=4, num_experts=8, top_k=2, score_fn="sigmoid", selection_bias=True)
logits = torch.tensor([[-1.0, -1.2, -0.2, -0.4, 0.9, 0.7, -0.3, -2.0], [0.5, 0.4, 0.1, 0.0, -0.5, -1.0, 1.5, 2.0]])
scores, ids, weights = decide_as(config)(logits, torch.zeros(8))
m = microscope(Routing.of(logits, ids, weights, tokens=("for", "cat"), domains=("code", "english")), config)
display(m)
"""
STATE = "print(json.dumps([m.token, m.step, m.expert, [round(b, 2) for b in m.bias], m.chosen, m.weights]))"


def state(notebook) -> list:
    return json.loads(notebook.run(1).strip())


def test_microscope_answers_to_mouse_and_keys(lab, tmp_path):
    with lab.open([SETUP, STATE]) as notebook:
        notebook.run_all()
        page, scope = notebook.page, notebook.page.get_by_role("group", name="Router microscope")
        scope.wait_for()
        assert state(notebook)[:5] == [0, 1, 4, [0.0] * 8, [4, 5]]
        first = state(notebook)[5]

        scope.get_by_role("tab", name="2 Score + bias").click()
        slider = scope.get_by_role("slider", name="Bias of expert 3")
        box = slider.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x, y - box["height"] * 0.1, steps=3)
        page.mouse.move(x, y - box["height"] * 0.22, steps=3)
        page.mouse.up()
        scope.get_by_role("status").filter(has_text="brought in expert 3").wait_for()
        shoot(notebook, tmp_path, "microscope-dragged")
        token, step, expert, bias, chosen, weights = state(notebook)
        assert (token, step, expert) == (0, 2, 3)
        assert 0.3 < bias[3] < 0.7
        assert [b for i, b in enumerate(bias) if i != 3] == [0.0] * 7
        assert chosen == [3, 4]
        assert weights != first

        slider.focus()
        for key in ("r", "ArrowRight", "ArrowUp", "Shift+ArrowUp", "ArrowDown", "4"):
            page.keyboard.press(key)
        scope.get_by_role("tab", name="4 Weights", selected=True).wait_for()
        scope.get_by_role("status").filter(has_text="bias +0.50").wait_for()
        shoot(notebook, tmp_path, "microscope-keys")
        token, step, expert, bias, chosen, _ = state(notebook)
        assert (token, step, expert, chosen) == (0, 4, 4, [4, 5])
        assert bias == [0, 0, 0, 0, 0.5, 0, 0, 0]

        scope.get_by_label("Token", exact=True).select_option("1")
        scope.get_by_role("tab", name="3 Top-k").click()
        page.keyboard.press("[")
        scope.get_by_role("tab", name="2 Score + bias", selected=True).wait_for()
        scope.get_by_role("button", name="Reset every bias").click()
        scope.get_by_role("slider", name="Bias of expert 4").filter(has_not_text="0.5").wait_for()
        assert state(notebook)[:5] == [1, 2, 4, [0.0] * 8, [7, 6]]
        assert lab.outside == []


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two CSS colours (WCAG 2.1, relative luminance)."""

    def luminance(color: str) -> float:
        rgb = [int(float(part)) / 255 for part in re.findall(r"[\d.]+", color)[:3]]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_kernel_moves_the_drawing_and_dark_theme_is_readable(lab, tmp_path):
    more = """
from labkit.show import Card
m.step = 3; m.token = 1; m.expert = 2; m.bias = [0, 0, 0.6, 0, 0, 0, 0, 0]
display(*(Card(kind, f"a {kind} card", ["with `code`"], [("case", "got"), ("tie", 1)]) for kind in ("fail", "todo")))
"""
    wide = """
config64 = MoEConfig(d_model=4, d_expert=4, num_experts=64, top_k=6)
torch.manual_seed(0)
s, i, w = decide_as(config64)(2 * torch.randn(3, 64), torch.zeros(64))
m64 = microscope(Routing.of(s.log(), i, w), config64)
m64.step = 3
display(m64)
"""
    with lab.open([SETUP, more, wide], name="dark.ipynb", dark=True) as notebook:
        notebook.run_all()
        scope = notebook.page.get_by_role("group", name="Router microscope").first
        scope.get_by_role("tab", name="3 Top-k", selected=True).wait_for()
        slider = scope.get_by_role("slider", name="Bias of expert 2")
        assert slider.get_attribute("aria-valuenow") == "0.6"
        assert slider.get_attribute("aria-valuetext") == "+0.60, chosen"
        assert scope.get_by_label("Token", exact=True).input_value() == "1"
        notebook.page.get_by_role("group", name="Router microscope").nth(1).wait_for()
        card = notebook.page.get_by_role("note", name="fail: a fail card")
        assert "with code" in card.inner_text()
        text, ground = (card.evaluate(f"e => getComputedStyle(e).{name}") for name in ("color", "backgroundColor"))
        assert contrast(text, ground) > 4.5
        assert card.locator("tbody tr").evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"
        shoot(notebook, tmp_path, "microscope-dark")


PLANNER = """
from labkit.show.widgets.planner import planner
p = planner()
display(p)
"""
PLAN = "print(p.model.value, p.gpu.value, p.checkpointing.value, bool(p.plan.train_fit), bool(p.plan.serve_fit))"


def test_planner_answers_to_keys(lab, tmp_path):
    with lab.open([PLANNER, PLAN], name="planner.ipynb") as notebook:
        notebook.run_all()
        page = notebook.page
        page.get_by_text("Model", exact=True).first.wait_for()
        shoot(notebook, tmp_path, "planner")
        before = notebook.run(1)
        page.get_by_label("GPU", exact=True).select_option("H200")
        page.get_by_label("Gradient checkpointing").focus()
        page.keyboard.press("Space")
        page.get_by_text("on H200").first.wait_for()
        after = notebook.run(1)
        assert after != before
        assert "H200" in after
        assert before.split()[2] != after.split()[2]
        shoot(notebook, tmp_path, "planner-changed")
        assert lab.outside == []


CLUSTERED = """
from labkit.show import planner
c = planner("deepseek-v3", cluster="h800", nodes=256)
display(c)
"""
COST = "print(c.view.value, c.cluster.all['tp'].value, c.cluster.all['pp'].value, c.estimate and c.estimate.binds)"


@pytest.mark.parametrize("dark", [False, True])
def test_planner_of_clusters_answers_to_keys(lab, tmp_path, dark):
    with lab.open([CLUSTERED, COST], name=f"cluster-{dark}.ipynb", dark=dark) as notebook:
        notebook.run_all()
        page = notebook.page
        page.get_by_text("of the 16-bit peak").first.wait_for()
        assert notebook.run(1).split()[:3] == ["cluster", "1", "1"]
        page.get_by_label("Pipeline", exact=True).focus()
        page.keyboard.press("2")
        page.get_by_text("2 pipeline").first.wait_for()
        page.get_by_label("Tensor", exact=True).select_option("2")
        page.get_by_text("2 tensor").first.wait_for()
        assert notebook.run(1).split()[:3] == ["cluster", "2", "2"]
        page.get_by_role("button", name="Best plan").focus()
        page.keyboard.press("Enter")
        page.get_by_text("to spare").first.wait_for()
        shoot(notebook, tmp_path, f"planner-cluster-{'dark' if dark else 'light'}")
        image = page.get_by_role("img", name="Stacked bars of time and memory")
        assert "A step on one GPU" in image.get_attribute("alt")
        page.get_by_role("button", name="GPUs", exact=True).click()
        page.get_by_text("billion parameters").first.wait_for()
        assert page.get_by_label("Pipeline", exact=True).is_hidden()
        assert lab.outside == []
