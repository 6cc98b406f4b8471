"""The tiles in a real JupyterLab: the slider drags, keys walk, and what is drawn is what Python counts."""

from __future__ import annotations

import json

import pytest
from jupyter_browser import shoot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SETUP = """
import json, torch
from labkit import show
from labkit.core.tiling import tiling

def skewed(T, E, K):
    draw = torch.Generator().manual_seed(0)
    logits = 0.45 * torch.randn(E, generator=draw) + torch.randn(T, E, generator=draw)
    return torch.bincount(logits.topk(K).indices.flatten(), minlength=E)

"""
SIXTEEN = SETUP + "rows = skewed(1024, 16, 2); rows[5] = 0\nw = show.tiles(rows)\ndisplay(w)"
STATE = """
t = tiling(rows, w.block_m, w.block_n, multiprocessors=w.multiprocessors)
totals = [
    f"{t.tiles:,}", f"{t.computed:,}", f"{t.padding:,} ({100 * t.waste:.3g} %)",
    f"{t.programs:,} = {t.tiles:,} × {t.columns:,}", f"{t.waves:,}", f"{100 * t.last_wave:.3g} % full",
    f"{t.intensity:.3g}", f"{1 / t.read_per_flop:.3g}",
]
print(json.dumps([w.block_m, w.block_n, w.multiprocessors, w.expert, t.rows_E, t.padding_E, totals]))
"""


def state(notebook) -> list:
    return json.loads(notebook.run(1).strip())


def check_drawing(notebook, view) -> list:
    """Totals and bars as they are drawn against Python's own; gives Python's state."""
    got = state(notebook)
    rows, padding, totals = got[4:]
    assert view.locator("[data-total]").all_inner_texts() == totals
    svg = view.locator("svg[role=img]")
    for name, numbers in (("rows", rows), ("padding", padding)):
        bars = svg.locator(f"[data-{name}]").evaluate_all(
            f"r => r.map(x => [+x.dataset.{name}, +x.getAttribute('height')])"
        )
        assert [n for n, _ in bars] == [n for n in numbers if n]
        most, height = max(bars)
        assert all(h == pytest.approx(n / most * height, abs=0.02) for n, h in bars)
    return got


def test_the_slider_is_dragged_and_keys_walk(lab, tmp_path):
    with lab.open([SIXTEEN, STATE]) as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Tiles and padding")
        said = view.get_by_role("status")
        said.filter(has_text="in tiles of 128 rows").wait_for()
        assert check_drawing(notebook, view)[:3] == [128, 256, 132]
        shoot(notebook, tmp_path, "tiles-16")

        slider = view.get_by_role("slider", name="Rows of a tile")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.78, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, y, steps=4)
        page.mouse.move(box["x"] + box["width"] * 0.22, y, steps=4)
        page.mouse.up()
        said.filter(has_text="in tiles of 16 rows").wait_for()
        assert slider.get_attribute("aria-valuetext") == "16 rows"
        assert check_drawing(notebook, view)[:3] == [16, 256, 132]

        view.focus()
        for key in ("Home", "ArrowRight", "ArrowUp", "[", "m"):
            page.keyboard.press(key)
        said.filter(has_text="in tiles of 32 rows").wait_for()
        said.filter(has_text="Expert 1:").wait_for()
        view.locator("[data-panel='waves of 40 programs']").wait_for()
        assert check_drawing(notebook, view)[:4] == [32, 128, 40, 1]

        view.get_by_label("Columns of a tile").select_option("64")
        view.get_by_label("Multiprocessors").select_option("108")
        view.locator("[data-panel='waves of 108 programs'] rect").first.click(position={"x": 10, "y": 60})
        said.filter(has_text="in tiles of 8 rows").wait_for()
        said.filter(has_text="8 × 64").wait_for()
        assert check_drawing(notebook, view)[:3] == [8, 64, 108]
        assert lab.outside == []


def test_hovering_over_an_expert_tells_its_rows(lab, tmp_path):
    with lab.open([SIXTEEN, STATE]) as notebook:
        notebook.run_all()
        page, view = notebook.page, notebook.page.get_by_role("group", name="Tiles and padding")
        said = view.get_by_role("status")
        said.filter(has_text="in tiles of 128 rows").wait_for()
        plot = view.locator("[data-plot] rect").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        for e in (3, 5, 15):
            page.mouse.move(box["x"] + (e + 0.5) * box["width"] / 16, box["y"] + box["height"] * 0.6, steps=3)
            said.filter(has_text=f"Expert {e}:").wait_for()
        page.mouse.click(box["x"] + 5.5 * box["width"] / 16, box["y"] + 30)
        said.filter(has_text="Expert 5: no rows, no tile, no padding.").wait_for()
        page.keyboard.press("ArrowRight")
        said.filter(has_text="Expert 6:").wait_for()
        got = state(notebook)
        assert got[3] == 6
        assert f"Expert 6: {got[4][6]} rows" in said.last.inner_text()
        assert lab.outside == []


SIZES = (
    SETUP
    + """
rows = skewed(2048, 512, 8)
w = show.tiles(rows, block_m=32)
a, b, c = show.tiles(skewed(4096, 64, 8), block_m=64), show.tiles([37]), show.tiles([0, 0, 0])
"""
)


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_at_every_size(lab, tmp_path, dark):
    cells = [SIZES + "display(w, a)", STATE, "display(b, c)"]
    with lab.open(cells, dark=dark) as notebook:
        notebook.run_all()
        views = notebook.page.get_by_role("group", name="Tiles and padding")
        large, medium, one, none = (views.nth(i) for i in range(4))
        large.get_by_role("status").filter(has_text="512 experts in tiles of 32 rows").wait_for()
        check_drawing(notebook, large)
        for name, view in (("512", large), ("64", medium), ("1", one), ("0", none)):
            view.scroll_into_view_if_needed()
            assert overlapping(view) == []
            shoot(notebook, tmp_path, f"tiles-{name}-{'dark' if dark else 'light'}")
        notebook.page.set_viewport_size({"width": 700, "height": 1500})
        for name, view in (("512", large), ("64", medium), ("1", one)):
            view.and_(notebook.page.locator(".narrow")).wait_for()
            view.scroll_into_view_if_needed()
            assert overlapping(view) == []
            shoot(notebook, tmp_path, f"tiles-{name}-narrow-{'dark' if dark else 'light'}")
        none.get_by_role("status").filter(has_text="nothing to multiply").wait_for()
        assert lab.outside == []


def overlapping(view) -> list[tuple[str, str]]:
    """The pairs of texts in a drawing or above it that lie over each other."""
    boxes = view.locator("svg[role=img] text, .totals span, .totals b").evaluate_all(
        "all => all.map(t => [t.textContent, ...Object.values(t.getBoundingClientRect().toJSON())])"
    )
    found = []
    for i, (first, x0, y0, w0, h0, *_) in enumerate(boxes):
        for second, x1, y1, w1, h1, *_ in boxes[i + 1 :]:
            if min(x0 + w0, x1 + w1) - max(x0, x1) > 1 and min(y0 + h0, y1 + h1) - max(y0, y1) > 3:
                found.append((first, second))
    return found


def test_what_a_page_asks_of_another_host_fails_and_is_seen(lab):
    asked = ["http://example.org/x", "http://93.184.216.34/y", "http://localhost:1/z"]
    with lab.open([SIXTEEN]) as notebook:
        fetch = "url => fetch(url, {mode: 'no-cors'}).then(() => 'came', () => 'failed')"
        assert [notebook.page.evaluate(fetch, url) for url in asked] == ["failed"] * 3
    assert lab.outside == asked
    lab.outside.clear()
