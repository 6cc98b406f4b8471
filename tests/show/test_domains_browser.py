"""Domain lift and ablation in a real JupyterLab: what hands and keys do reaches the kernel, and it looks right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jupyter_browser import shoot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

RECORDS = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import json, torch
from records import make
from test_ablation import removals
"""
LIFT = f"""{RECORDS}
from labkit.show.widgets.lift import lift_map
w = lift_map(make(T=2000, L=3, domains=("code", "english", "numbers"), sequence=20))
display(w)
"""
LIFT_STATE = """
print(json.dumps([w.layer, w.domain, w.sort, w.brush, {d: [s.share, s.low, s.high] for d, s in w.brushed.items()}]))
"""
ABLATION = f"""{RECORDS}
from labkit.show.widgets.ablation import ablation
records = make(T=800, sequence=20)
w = ablation(records, removals(records, range(7)))
display(w)
"""
ABLATION_STATE = """
print(json.dumps([w.expert, w.domain, w.sort, {d: c.change for d, c in w.effect.items()}, w.heirs, w.view["order"]]))
"""


def state(notebook) -> list:
    return json.loads(notebook.run(1).strip())


def centre(spot) -> tuple[float, float]:
    """The middle of an element; one that is just being drawn anew is waited for."""
    for _ in range(100):
        spot.wait_for()
        if (box := spot.bounding_box()) is not None:
            return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        spot.page.wait_for_timeout(50)
    raise AssertionError("the element was drawn and taken away again for five seconds")


def test_lift_answers_to_mouse_and_keys(lab, tmp_path):
    with lab.open([LIFT, LIFT_STATE], name="lift.ipynb") as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Domain lift")
        view.wait_for()
        assert state(notebook) == [0, "code", "number", [], {}]
        view.focus()
        page.keyboard.press("ArrowRight")
        view.get_by_role("status").filter(has_text="expert 0 takes").wait_for()
        assert state(notebook)[3] == [0]
        view.focus()
        page.keyboard.press("Escape")
        shoot(notebook, tmp_path, "lift")

        first, last = (centre(view.locator(f"circle[data-expert='{e}']")) for e in (2, 5))
        page.mouse.move(*first)
        page.mouse.down()
        page.mouse.move(last[0] - 40, last[1], steps=4)
        page.mouse.move(*last, steps=3)
        page.mouse.up()
        view.get_by_role("status").filter(has_text="experts 2–5 take").wait_for()
        layer, domain, _, brush, brushed = state(notebook)
        assert (layer, domain, brush) == (0, "code", [2, 3, 4, 5])
        assert set(brushed) == {"code", "english", "numbers"}
        share, low, high = brushed["code"]
        said = view.get_by_role("status").inner_text()
        assert f"{100 * share:.1f} % of the choices of code" in said
        assert f"{100 * low:.1f} to {100 * high:.1f} %" in said
        assert view.get_by_role("row").count() == 4
        shoot(notebook, tmp_path, "lift-brushed")

        view.locator("text.name", has_text="english").click()
        view.get_by_role("status").filter(has_text="of the choices of english").wait_for()
        assert view.get_by_label("Domain", exact=True).input_value() == "1"
        view.get_by_label("Layer", exact=True).select_option("2")
        view.get_by_role("status").filter(has_text="layer 2, experts 2–5 take").wait_for()
        assert state(notebook)[:4] == [2, "english", "number", [2, 3, 4, 5]]

        view.focus()
        for key in ("Escape", "[", "ArrowDown", "ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowLeft"):
            page.keyboard.press(key)
        view.get_by_role("status").filter(has_text="layer 1, experts 2–4 take").wait_for()
        assert state(notebook)[:4] == [1, "numbers", "number", [2, 3, 4]]
        view.focus()
        page.keyboard.press("s")
        view.get_by_role("button", name="By lift", pressed=True).wait_for()
        shoot(notebook, tmp_path, "lift-by-lift")
        view.get_by_role("button", name="Clear brush").click()
        view.get_by_role("status").filter(has_text="8 experts lie outside").wait_for()
        assert state(notebook) == [1, "numbers", "lift", [], {}]
        assert lab.outside == []


def test_ablation_answers_to_mouse_and_keys(lab, tmp_path):
    with lab.open([ABLATION, ABLATION_STATE], name="ablation.ipynb") as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Expert ablation")
        view.wait_for()
        start = state(notebook)
        assert start[1:3] == ["all tokens", "number"]
        assert start[3]["all tokens"] > 0
        shoot(notebook, tmp_path, "ablation")

        page.mouse.click(*centre(view.locator("circle[data-expert='2']")))
        view.get_by_role("status").filter(has_text="layer 0, expert 2 (").wait_for()
        expert, _, _, effect, heirs, _ = state(notebook)
        assert expert == 2
        assert effect != start[3]
        best = max(heirs, key=heirs.get)
        assert f"expert {best} takes over {100 * heirs[best]:.0f} %" in view.get_by_role("status").inner_text()
        assert view.get_by_role("row").count() == 7

        view.focus()
        for key in ("ArrowRight", "ArrowDown", "s", "s"):
            page.keyboard.press(key)
        view.get_by_role("button", name="By effect", pressed=True).wait_for()
        view.get_by_role("status").filter(has_text="expert 3 (").filter(has_text="the loss of code").wait_for()
        expert, domain, sort, _, _, order = state(notebook)
        assert (expert, domain, sort) == (3, "code", "effect")
        assert order[-1] == 7  # of which no record was given
        shoot(notebook, tmp_path, "ablation-by-effect")

        view.get_by_label("Expert", exact=True).select_option("7")
        view.get_by_role("status").filter(has_text="no record without it").wait_for()
        view.get_by_label("Domain", exact=True).select_option("2")
        view.get_by_role("button", name="By number").click()
        view.get_by_role("button", name="By number", pressed=True).wait_for()
        assert state(notebook)[:4] == [7, "english", "number", {}]
        shoot(notebook, tmp_path, "ablation-untraced")
        assert lab.outside == []


BIG = f"""{RECORDS}
from labkit.show.widgets.ablation import ablation
from labkit.show.widgets.lift import lift_map
big = make(T=4000, E=64, K=6, L=16, domains=("code", "english", "numbers"), sequence=40)
w = lift_map(big, layer=3)
w.brush, w.sort = [1, 9, 30], "lift"
display(w)
"""
BIG_ABLATION = """
a = ablation(big, removals(big, range(0, 64, 2)))
a.sort = "effect"
display(a)
"""
TINY = """
tiny = make(T=1, E=2, K=1, L=1)
t = lift_map(tiny)
display(t, ablation(tiny))
"""


@pytest.mark.parametrize("dark", [True, False])
def test_the_kernel_moves_big_and_tiny_drawings_in_both_themes(lab, tmp_path, dark):
    move = "w.layer, w.domain = 15, 'numbers'; t.brush = [1]"
    with lab.open([BIG, BIG_ABLATION, TINY, move], name=f"big-{dark}.ipynb", dark=dark) as notebook:
        notebook.page.set_viewport_size({"width": 1200, "height": 3100})
        notebook.run_all()
        views = notebook.page.get_by_role("group", name="Domain lift")
        views.first.get_by_role("status").filter(has_text="layer 15, experts 1, 9 and 30 take").wait_for()
        assert views.first.get_by_label("Layer", exact=True).input_value() == "15"
        views.nth(1).get_by_role("status").filter(has_text="expert 1 takes 0.0 %").wait_for()
        notebook.page.get_by_role("group", name="Expert ablation").nth(1).wait_for()
        shoot(notebook, tmp_path, f"domains-big-{'dark' if dark else 'light'}")
        views.nth(1).focus()
        notebook.page.keyboard.press("Shift+ArrowLeft")  # goes on from the brush that the kernel made
        views.nth(1).get_by_role("status").filter(has_text="experts 0 and 1 take").wait_for()
        assert lab.outside == []
