"""Balance over training, load map and co-activation in a real JupyterLab: hands and keys reach the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jupyter_browser import shoot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

RUNS = """
import json, torch
from labkit.core.routing import Routing
from labkit.show.widgets.training import balance_over_training

def record(strength, seed, layer, E, K):
    noise = torch.randn(300, E, generator=torch.Generator().manual_seed(seed))
    logits = noise + strength * torch.linspace(2, -2, E).roll(layer)
    scores, ids = logits.softmax(-1).topk(K)
    return Routing.of(logits, ids, scores, layer=layer, loss_T=torch.full((300,), 3 - strength))

def runs(names, E=8, K=2, L=2):
    strength = lambda name, u: {"none": 0.2 + 2 * u, "loss": 0.3 * (1 - u)}.get(name, 1 - u)
    return {
        name: {
            s: tuple(record(strength(name, s / 200), s + n, layer, E, K) for layer in range(L))
            for s in range(0, 201, 20)
        }
        for n, name in enumerate(names)
    }

"""
THREE = RUNS + 'w = balance_over_training(runs(["none", "loss", "bias"]))\ndisplay(w)'
BALANCE = "print(json.dumps([w.step, w.run, w.shown, w.layer, w.loads, w.max_violation]))"


def state(notebook, cell: int = 1) -> list:
    return json.loads(notebook.run(cell).strip())


def test_balance_over_training_scrubs_plays_and_picks_runs(lab, tmp_path):
    with lab.open([THREE, BALANCE]) as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Balance over training")
        says = view.get_by_role("status")
        says.filter(has_text="Step 0.").wait_for()
        step, run, shown, layer, loads, violation = state(notebook)
        assert (step, run, shown, layer) == (0, "none", ["none", "loss", "bias"], 0)
        at_start = loads["none"]

        curve = view.locator("[data-curve=max_violation]")
        box = curve.locator("rect").first.bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.2, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, y, steps=4)
        page.mouse.move(box["x"] + box["width"] * 0.81, y, steps=4)
        page.mouse.up()
        says.filter(has_text="Step 160.").wait_for()
        shoot(notebook, tmp_path, "training-scrubbed")
        step, _, _, _, loads, violation = state(notebook)
        assert step == 160
        assert loads["none"] != at_start
        assert max(loads["none"]) * 8 - 1 == pytest.approx(violation["none"], abs=1e-5)
        heights = view.locator("[data-run=none] rect").evaluate_all(
            "r => r.slice(-8).map(x => +x.getAttribute('height'))"
        )
        assert [round(h / max(heights), 3) for h in heights] == [
            round(v / max(loads["none"]), 3) for v in loads["none"]
        ]

        view.locator("svg[role=img]").locator("text", has_text="loss").click()
        says.filter(has_text="Step 160. loss:").wait_for()
        view.get_by_role("button", name="none").click()
        for key in ("ArrowDown", "End", "ArrowLeft"):
            page.keyboard.press(key)
        says.filter(has_text="Step 180. bias:").wait_for()
        assert state(notebook)[:3] == [180, "bias", ["loss", "bias"]]

        view.get_by_label("Layer", exact=True).select_option("2")
        says.filter(has_text="busiest expert of a layer").wait_for()
        view.get_by_role("slider", name="Step").focus()
        for key in ("Home", "ArrowRight", "1"):
            page.keyboard.press(key)
        says.filter(has_text="none)").wait_for()
        shoot(notebook, tmp_path, "training-by-rank")
        assert state(notebook)[:4] == [20, "bias", ["none", "loss", "bias"], -1]

        view.focus()
        page.keyboard.press(" ")
        view.get_by_role("button", name="Pause").wait_for()
        says.filter(has_text="Step 200.").wait_for()
        view.get_by_role("button", name="Play").wait_for()
        assert state(notebook)[0] == 200
        assert lab.outside == []


def test_balance_over_training_of_many_experts_is_readable_in_the_dark(lab, tmp_path):
    six = RUNS + 'w = balance_over_training(runs(["none", "loss", "bias", "hash", "random", "frozen"], 64, 6, 3))\n'
    tiny = "tiny = balance_over_training({'one': {7: record(1.0, 0, 0, 2, 1)}})\n"
    with lab.open([six + tiny + "w.step = 90; w.run = 'hash'\ndisplay(w, tiny)", BALANCE], dark=True) as notebook:
        notebook.run_all()
        view = notebook.page.get_by_role("group", name="Balance over training").first
        view.get_by_role("status").filter(has_text="Step 80. hash:").wait_for()
        assert view.locator("[data-run]").count() == 6
        for number in "23456":
            view.focus()
            notebook.page.keyboard.press(number)
        view.get_by_role("button", name="frozen", pressed=False).wait_for()
        notebook.page.keyboard.press("1")
        view.get_by_role("status").filter(has_text="only run shown").wait_for()
        for number in "23456":
            notebook.page.keyboard.press(number)
        view.get_by_role("button", name="frozen", pressed=True).wait_for()
        shoot(notebook, tmp_path, "training-dark")
        assert state(notebook)[:2] == [80, "none"]
        assert lab.outside == []


MAP = """
import json, sys
sys.path.insert(0, TESTS)
from records import make
from labkit.show.widgets.load_map import load_map
w = load_map(make(T=400, E=8, K=2, L=4))
display(w)
"""
PICKED = "print(json.dumps([w.layer, w.expert, w.sort, w.order, w.loads]))"


def cells(text: str) -> str:
    """A cell's text that finds the tests' own builder of records."""
    return text.replace("TESTS", repr(str(Path(__file__).parent)))


def click_cell(view, row: float, column: float, rows: int, columns: int) -> None:
    """Click into a drawn grid: its cells are the paths of the group that carries data-map."""
    svg = view.locator("svg:has([data-map])")
    svg.scroll_into_view_if_needed()
    frame = svg.bounding_box()
    boxes = [path.bounding_box() for path in svg.locator("[data-map] path").all()]
    left, top = min(b["x"] for b in boxes) - frame["x"], min(b["y"] for b in boxes) - frame["y"]
    right = max(b["x"] + b["width"] for b in boxes) - frame["x"]
    bottom = max(b["y"] + b["height"] for b in boxes) - frame["y"]
    x, y = left + (column + 0.5) * (right - left) / columns, top + (row + 0.5) * (bottom - top) / rows
    svg.click(position={"x": x, "y": y})


def test_load_map_picks_and_sorts(lab, tmp_path):
    with lab.open([cells(MAP), PICKED]) as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Load map")
        says = view.get_by_role("status")
        says.filter(has_text="Layer 0").wait_for()
        layer, expert, sort, order, loads = state(notebook)
        assert (layer, sort, order) == (0, "number", list(range(8)))
        assert loads[expert] == max(loads)

        click_cell(view, 2, 5, 4, 8)
        says.filter(has_text="Layer 2, expert 5").wait_for()
        for key in ("ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp"):
            page.keyboard.press(key)
        says.filter(has_text="Layer 1, expert 6").wait_for()
        shoot(notebook, tmp_path, "load-map")
        assert state(notebook)[:2] == [1, 6]

        view.get_by_role("button", name="By load in this layer").click()
        view.get_by_role("button", name="By load in this layer", pressed=True).wait_for()
        assert state(notebook)[2] == "layer"  # the order comes from the kernel; a cell's answer comes after it
        view.focus()
        page.keyboard.press("Home")
        says.filter(has_text="number 1 of 8").wait_for()
        layer, expert, sort, order, loads = state(notebook)
        assert (layer, sort, expert) == (1, "layer", order[0])
        assert [loads[e] for e in order] == sorted(loads, reverse=True)

        view.focus()
        page.keyboard.press("s")
        says.filter(has_text="Overall is the sum").wait_for()
        page.keyboard.press("End")
        view.get_by_role("button", name="By overall load", pressed=True).wait_for()
        shoot(notebook, tmp_path, "load-map-overall")
        layer, expert, sort, order, _ = state(notebook)
        assert (sort, expert) == ("overall", order[-1])
        assert lab.outside == []


def test_load_map_is_readable_large_tiny_and_dark(lab, tmp_path):
    sizes = "a = load_map(make(T=2000, E=64, K=8, L=16, spread=2))\nb = load_map(make(T=1, E=2, K=1, L=1))\n"
    more = sizes + "a.layer, a.expert, a.sort = 5, 9, 'layer'\ndisplay(a, b)"
    with lab.open([cells(MAP).replace("display(w)", more), PICKED.replace("w.", "a.")], dark=True) as notebook:
        notebook.run_all()
        view = notebook.page.get_by_role("group", name="Load map").first
        view.get_by_role("status").filter(has_text="Layer 5, expert 9").wait_for()
        _, _, _, order, _ = state(notebook)
        click_cell(view, 15, 63, 16, 64)
        view.get_by_role("status").filter(has_text=f"Layer 15, expert {order[63]}").wait_for()
        shoot(notebook, tmp_path, "load-map-dark")
        assert state(notebook)[:2] == [15, order[63]]
        assert lab.outside == []


PAIRS = """
import json, sys
sys.path.insert(0, TESTS)
from records import make
from labkit.show.widgets.coactivation import coactivation_map
w = coactivation_map(make(T=1200, E=8, K=2, L=2, domains=("code", "english", "numbers"), spread=2))
display(w)
"""
PAIR = "print(json.dumps([w.pair, w.mode, w.layer, w.order_by, w.order, [e['position'] for e in w.examples]]))"


def test_coactivation_shows_the_tokens_of_a_pair(lab, tmp_path):
    with lab.open([cells(PAIRS), PAIR]) as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Co-activation")
        says = view.get_by_role("status")
        says.filter(has_text="Layer 0, experts").wait_for()
        pair, mode, layer, order_by, order, positions = state(notebook)
        assert (mode, layer, order_by, order) == ("lift", 0, "number", list(range(8)))
        assert view.locator("li small").all_inner_texts() == [str(p) for p in positions]

        click_cell(view, 2, 5, 8, 8)
        says.filter(has_text="experts 2 and 5").wait_for()
        for key in ("ArrowRight", "ArrowUp", "m", "]"):
            page.keyboard.press(key)
        says.filter(has_text="Layer 1, experts 1 and 6").wait_for()
        view.get_by_role("button", name="Share of tokens", pressed=True).wait_for()
        shoot(notebook, tmp_path, "coactivation-raw")
        assert state(notebook)[:4] == [[1, 6], "raw", 1, "number"]

        view.get_by_role("button", name="By cluster").click()
        view.get_by_role("button", name="By cluster", pressed=True).wait_for()
        view.get_by_role("button", name="Lift over chance").click()
        view.get_by_label("Layer", exact=True).select_option("0")
        says.filter(has_text="Layer 0, experts 1 and 6").wait_for()
        pair, mode, layer, order_by, order, _ = state(notebook)
        assert (pair, mode, layer, order_by) == ([1, 6], "lift", 0, "cluster")
        assert sorted(order) == list(range(8))
        assert order != list(range(8))
        click_cell(view, 0, 1, 8, 8)
        says.filter(has_text=f"experts {order[0]} and {order[1]}").wait_for()
        shoot(notebook, tmp_path, "coactivation-cluster")
        pair, *_, positions = state(notebook)
        assert pair == order[:2]
        assert view.locator("li small").all_inner_texts() == [str(p) for p in positions]
        assert lab.outside == []


def test_coactivation_is_readable_large_tiny_and_dark(lab, tmp_path):
    sizes = "w = coactivation_map(make(T=4000, E=64, K=8, L=2, spread=1.5))\n"
    sizes += "b = coactivation_map(make(T=1, E=2, K=1, L=1))\n"
    with lab.open(
        [cells(PAIRS).replace("display(w)", sizes + "w.order_by = 'cluster'\ndisplay(w, b)"), PAIR], dark=True
    ) as notebook:
        notebook.run_all()
        views = notebook.page.get_by_role("group", name="Co-activation")
        views.nth(1).get_by_role("status").filter(has_text="no two can be chosen together").wait_for()
        order = state(notebook)[4]
        click_cell(views.first, 3, 60, 64, 64)
        views.first.get_by_role("status").filter(has_text=f"experts {order[3]} and {order[60]}").wait_for()
        shoot(notebook, tmp_path, "coactivation-dark")
        assert state(notebook)[0] == [order[3], order[60]]
        assert lab.outside == []
