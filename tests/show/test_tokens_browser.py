"""Ribbon, flow and contexts in a real JupyterLab: what hands and keys do reaches the kernel, and it looks right."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from jupyter_browser import shoot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SETUP = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from records import make
from labkit.show.widgets.ribbon import ribbon
from labkit.show.widgets.flow import flow
from labkit.show.widgets.contexts import contexts
"""
SHOW = {
    "ribbon": "w = ribbon(make(T=700, L=3)); display(w)",
    "flow": "w = flow(make(T=700, L=3, domains=('code', 'english', 'numbers'))); display(w)",
    "contexts": "w = contexts(make(T=700, L=3, domains=('code', 'english', 'numbers')), word=' for'); display(w)",
}
STATE = {
    "ribbon": "print(json.dumps([w.token, w.layer, w.lit_expert, w.start, w.choices[w.layer][0][0]]))",
    "flow": "print(json.dumps([w.layer, w.capacity_factor, w.policy, w.path, w.drop_rate, w.capacity]))",
    "contexts": "print(json.dumps([w.word, w.layer, w.occurrence, w.lit_expert, w.matches, w.whole]))",
}
NAMES = {"ribbon": "Token ribbon", "flow": "Token to expert flow", "contexts": "Same word in other contexts"}


def opened(notebook, name: str):
    """The widget on the page, and a way to ask the kernel for its state."""
    notebook.run_all()
    scope = notebook.page.get_by_role("group", name=NAMES[name], exact=True)
    scope.wait_for()
    return scope, lambda: json.loads(notebook.run(2).strip())


def press(scope, page, *keys: str) -> None:
    """Keys on the widget itself; running a cell moved the focus away."""
    scope.focus()
    for key in keys:
        page.keyboard.press(key)


def test_ribbon_answers_to_mouse_and_keys(lab, tmp_path):
    with lab.open([SETUP, SHOW["ribbon"], STATE["ribbon"]], name="ribbon.ipynb") as notebook:
        scope, state = opened(notebook, "ribbon")
        page, status = notebook.page, scope.get_by_role("status")
        assert state()[:4] == [0, 0, -1, 0]
        assert scope.locator(".tok").count() == 300

        scope.locator(".tok").nth(45).click()
        status.filter(has_text="Token 45,").wait_for()
        shoot(notebook, tmp_path, "ribbon-clicked")
        token, layer, lit, start, first = state()
        assert (token, layer, lit, start) == (45, 0, -1, 0)

        scope.locator(f"td[data-layer='0'][data-expert='{first}']").click()
        status.filter(has_text=f"Expert {first} of layer 0 is chosen by").wait_for()
        assert state()[:4] == [45, 0, first, 0]

        press(scope, page, "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowUp", "2")
        status.filter(has_text="Token 46,").filter(has_text="layer 1").wait_for()
        token, layer, lit, start, first = state()
        assert (token, layer, start) == (46, 1, 0)
        assert lit not in (-1, first)
        shoot(notebook, tmp_path, "ribbon-lit")

        press(scope, page, "0", "PageDown")
        status.filter(has_text="Token 300,").wait_for()
        assert state()[:4] == [300, 1, -1, 300]
        scope.get_by_label("Go to token").fill("699")
        page.keyboard.press("Enter")
        status.filter(has_text="Token 699,").wait_for()
        assert state()[:4] == [699, 1, -1, 600]
        assert scope.locator(".tok").count() == 100
        scope.get_by_label("Go to token").fill("700")
        page.keyboard.press("Enter")
        scope.get_by_role("alert").filter(has_text="no token 700; give 0 to 699").wait_for()
        assert state()[0] == 699
        scope.locator(".tok").first.click()
        status.filter(has_text="Token 600,").wait_for()
        assert scope.get_by_role("alert").inner_text() == ""
        scope.get_by_text("1–2 light that choice of the token").wait_for()
        shoot(notebook, tmp_path, "ribbon-last")
        assert lab.outside == []


def test_flow_answers_to_mouse_and_keys(lab, tmp_path):
    with lab.open([SETUP, SHOW["flow"], STATE["flow"]], name="flow.ipynb") as notebook:
        scope, state = opened(notebook, "flow")
        page, status = notebook.page, scope.get_by_role("status")
        assert state() == [0, None, "position", [-1, -1], 0.0, None]
        shoot(notebook, tmp_path, "flow")

        scope.locator("[data-path='1,4']").hover()
        status.filter(has_text="“english” → expert 4").wait_for()
        shoot(notebook, tmp_path, "flow-hovered")
        page.mouse.move(5, 5)
        assert state()[3] == [1, 4]

        press(scope, page, "ArrowDown", "ArrowRight", "]", "-")
        status.filter(has_text="capacity factor 4)").wait_for()
        press(scope, page, *["-"] * 12)
        status.filter(has_text="capacity factor 1)").wait_for()
        press(scope, page, "-")
        status.filter(has_text="capacity factor 0.75)").wait_for()
        layer, factor, policy, path, dropped, capacity = state()
        assert (layer, factor, policy, path, capacity) == (1, 0.75, "position", [2, 5], 132)
        assert dropped > 0.2
        shoot(notebook, tmp_path, "flow-dropped")

        scope.get_by_role("button", name="highest score").click()
        status.filter(has_text="the highest score first").wait_for()
        assert state()[2] == "score"
        slider = scope.get_by_role("slider", name="Capacity factor")
        slider.focus()
        page.keyboard.press("End")
        status.filter(has_text="no limit").wait_for()
        press(scope, page, "-")
        status.filter(has_text="capacity factor 4)").wait_for()
        press(scope, page, "+")
        status.filter(has_text="no limit").wait_for()
        assert slider.get_attribute("aria-valuetext") == "no limit"
        press(scope, page, "Escape")
        status.filter(has_text="Hover over a band").wait_for()
        assert state() == [1, None, "score", [-1, -1], 0.0, None]
        assert lab.outside == []


def test_contexts_answers_to_mouse_and_keys(lab, tmp_path):
    with lab.open([SETUP, SHOW["contexts"], STATE["contexts"]], name="contexts.ipynb") as notebook:
        scope, state = opened(notebook, "contexts")
        page, status = notebook.page, scope.get_by_role("status")
        first = state()
        assert first[:3] == [" for", 0, 0]
        assert first[4] > 40
        assert scope.locator(".line").count() == 40

        press(scope, page, "ArrowDown", "ArrowDown", "]")
        status.filter(has_text="Occurrence 3 of 40").wait_for()
        status.filter(has_text="in layer 1").wait_for()
        before = state()
        assert before[:3] == [" for", 1, 2]
        press(scope, page, "ArrowRight")
        status.filter(has_text=f"Lit: expert {(before[3] + 1) % 8}, with").wait_for()
        scope.locator(".line").nth(5).locator(".where").click()
        status.filter(has_text="Occurrence 6 of 40").wait_for()
        shoot(notebook, tmp_path, "contexts")
        assert state()[2:4] == [5, (before[3] + 1) % 8]

        press(scope, page, "/")
        page.keyboard.type("return")
        page.keyboard.press("Enter")
        status.filter(has_text="“return” does not occur. But “␣return” does.").wait_for()
        shoot(notebook, tmp_path, "contexts-nothing")
        assert state()[0::4] == ["return", 0]
        scope.get_by_label("Word", exact=True).fill(" return")
        page.keyboard.press("Enter")
        status.filter(has_text="“␣return” occurs").wait_for()
        scope.locator(".line .right span").first.click()
        status.filter(has_not_text="return").filter(has_text="occurs").wait_for()
        word = state()[0]
        assert word != " return"
        scope.get_by_label("Frequent").select_option(label="def")
        status.filter(has_text="“def” occurs").wait_for()
        scope.get_by_label("Whole words only").check()
        scope.locator("[data-expert='7']").click(position={"x": 5, "y": 40})
        scope.get_by_text("“def” occurs").wait_for()
        assert [state()[i] for i in (0, 3, 5)] == ["def", 7, True]
        scope.get_by_label("Word", exact=True).fill("")
        page.keyboard.press("Enter")
        scope.get_by_role("alert").filter(has_text="The word is empty").wait_for()
        for word in (".*", "🙂", "(?", "long" * 1000):
            scope.get_by_label("Word", exact=True).fill(word)
            page.keyboard.press("Enter")
            status.filter(has_text=f"“{word[:40]}").filter(has_text="does not occur").wait_for()
        assert scope.get_by_role("alert").inner_text() == ""
        assert scope.evaluate("e => e.scrollWidth <= e.clientWidth")
        assert state()[0] == "long" * 1000
        assert lab.outside == []


def test_a_view_with_the_keyboard_shows_it_lets_tab_out_and_grows_its_letters_on_a_narrow_page(lab):
    with lab.open([SETUP, SHOW["flow"], STATE["flow"]], name="focus.ipynb") as notebook:
        scope, _ = opened(notebook, "flow")
        page = notebook.page
        scope.focus()
        page.keyboard.press("ArrowDown")
        outline = scope.evaluate("e => getComputedStyle(e).outlineStyle + ' ' + getComputedStyle(e).outlineWidth")
        assert outline == "solid 3px"
        for _ in range(12):
            page.keyboard.press("Tab")
        assert not scope.evaluate("e => e.contains(document.activeElement)")
        letters = "e => parseFloat(getComputedStyle(e.querySelector('svg text')).fontSize)"
        wide = scope.evaluate(letters)
        page.set_viewport_size({"width": 700, "height": 900})
        page.locator(".lk.narrow").wait_for()
        assert scope.evaluate(letters) > wide
        assert lab.outside == []


BIG = """
records = make(T=20_000, E=64, K=8, L=16, domains=("code", "english", "numbers"))
r, f, c = ribbon(records, start=500), flow(records, layer=3, capacity_factor=1.0), contexts(records, layer=5)
r.layer = 5; f.path = (1, f.kept_GE[1].argmax().item()); c.occurrence = 4
display(r, f, c)
"""
SMALL = """
tiny = make(T=1, E=2, K=1, L=1)
display(ribbon(tiny), flow(tiny), contexts(tiny))
text = make(T=500, L=2, text="def f(x):⏎␣␣return␣x␣+␣1␣#␣the␣other⏎")
display(ribbon(text), flow(make(T=9, E=4)), contexts(text, word="the"))
display(contexts(make(T=90, E=200, K=4)))
"""


@pytest.mark.parametrize("dark", [True, False])
def test_big_and_tiny_records_draw_in_both_themes(lab, tmp_path, dark):
    theme = "dark" if dark else "light"
    with lab.open([SETUP, BIG, SMALL], name=f"{theme}.ipynb", dark=dark) as notebook:
        notebook.page.set_viewport_size({"width": 1200, "height": 5400})
        notebook.run_all()
        groups = [notebook.page.get_by_role("group", name=name, exact=True) for name in NAMES.values()]
        for group in groups:
            group.nth(2).wait_for()
        numbers = groups[2].nth(3).locator("svg text.small").filter(has_text=re.compile(r"^\d+$"))
        boxes = sorted((box["x"], box["x"] + box["width"]) for box in (n.bounding_box() for n in numbers.all()))
        assert len(boxes) > 10
        assert all(end < start for (_, end), (start, _) in pairwise(boxes))
        assert groups[0].nth(0).locator(".tok[aria-selected=true]").get_attribute("title").startswith("token 500,")
        assert groups[1].nth(0).locator("[data-path]").count() > 100
        assert groups[2].nth(0).locator(".line").count() == 40
        assert groups[1].nth(1).locator("[data-path]").count() == 1
        assert notebook.page.locator(".lk .error:not(:empty)").count() == 0
        shoot(notebook, tmp_path, f"tokens-{theme}")
        assert lab.outside == []
