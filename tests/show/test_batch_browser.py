"""The batch timeline in a real JupyterLab: hands and keys reach the kernel, it plays, and the record is drawn."""

from __future__ import annotations

import json
import re

import pytest
from jupyter_browser import shoot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SETUP = """
import json
from labkit import show
from labkit.serve.scheduler import Limits, Scheduler
from labkit.serve.scheduler.simulate import simulate
from labkit.serve.timeline import ladder, record
from labkit.serve.workload import arrivals, lognormal_lengths

lengths = [(p // 8 + 1, o // 8 + 1) for p, o in lognormal_lengths(8, seed=1)]
small = Limits(24, block_size=4, max_tokens_per_step=24, max_sequences=6, reserve=0)
ways = ladder(list(arrivals(lengths, beginnings=1, beginning_tokens=8)), small, 4)

def served(count, blocks, rate):
    scheduler = Scheduler(Limits(blocks, max_tokens_per_step=256, max_sequences=24, reserve=0))
    look = record(scheduler)
    simulate(scheduler, arrivals(lognormal_lengths(count), rate, beginnings=3, beginning_tokens=64), look=look)
    return look.timeline("served")

"""
FEW = SETUP + "w = show.batch_timeline(ways)\nw.way = 4\ndisplay(w)"
STATE = """
t, now = w.timeline, w.moment
print(json.dumps([w.way, w.step, w.selected, w.shown, {b: len(rows) for b, rows in now.holders.items()}, len(now.kept),
    [[s.row, s.kind, max(s.first, w.rows["first"]), min(s.end, w.rows["end"])] for s in t.spans]]))
"""


def state(notebook) -> list:
    return json.loads(notebook.run(1).strip())


def opened(notebook):
    """The view, once it is drawn."""
    notebook.run_all()
    view = notebook.page.get_by_role("group", name="Batch timeline")
    view.get_by_role("status").filter(has_text="Step ").first.wait_for()
    return view


def check_drawing(notebook, view) -> list:
    """What is drawn against the timeline in the kernel; gives the kernel's state."""
    got = state(notebook)
    way, step, _, _, holders, kept, spans = got
    view.locator(f"[data-pool='{step}']").wait_for()
    title = view.locator("svg[aria-label^='Block pool']").get_attribute("aria-label")
    assert title == f"Block pool at step {step}: {len(holders)} held, {kept} kept for reuse", way
    drawn = view.locator("[data-row] [data-kind]").evaluate_all(
        "all => all.map(x => [+x.parentNode.dataset.row, x.dataset.kind, +x.dataset.first, +x.dataset.end])"
    )
    for row in {row for row, *_ in drawn}:
        mine = [(kind, first, end) for r, kind, first, end in drawn if r == row]
        want = [(kind, first, end) for r, kind, first, end in spans if r == row]
        steps = lambda runs: [kind for kind, first, end in runs for _ in range(first, end)]  # noqa: E731
        assert steps(mine) == steps(want)
    return got


def test_keys_walk_and_a_click_lights_a_sequence(lab, tmp_path):
    with lab.open([FEW, STATE]) as notebook:
        view, page = opened(notebook), notebook.page
        said = view.get_by_role("status")
        assert check_drawing(notebook, view)[:4] == [4, 0, -1, 120]
        view.focus()
        for key in ("PageDown", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        said.filter(has_text="Step 12 (").wait_for()
        shoot(notebook, tmp_path, "batch-few")
        assert check_drawing(notebook, view)[:3] == [4, 12, -1]

        row = view.locator("[data-row='2'] [data-kind='decode']").last
        row.click()
        said.filter(has_text="Sequence 2:").wait_for()
        got = check_drawing(notebook, view)
        assert got[2] == 2
        first, end = (int(row.get_attribute(f"data-{name}")) for name in ("first", "end"))
        assert first < got[1] < end
        assert len(view.locator("[data-row] rect[fill='#009E73']").all()) >= 2
        assert view.locator("[data-row='0'] rect[fill='#0072B2']").count() == 0
        shoot(notebook, tmp_path, "batch-lit")

        view.focus()
        for key, words in (("ArrowDown", "Sequence 3:"), ("ArrowUp", "Sequence 2:"), ("p", "Preempted:")):
            page.keyboard.press(key)
            said.filter(has_text=words).first.wait_for()
        page.keyboard.press("0")
        page.keyboard.press("End")
        said.filter(has_text="Finished: 7").wait_for()
        got = check_drawing(notebook, view)
        assert (got[1], got[2]) == (97, -1)
        view.focus()
        page.keyboard.press("Home")
        said.filter(has_text="Step 0 (").wait_for()
        page.keyboard.press("[")
        view.locator("[data-row='2'] text, svg text").filter(has_text="60").first.wait_for()
        assert state(notebook)[3] == 60
        assert lab.outside == []


def test_it_plays_and_pauses(lab, tmp_path):
    with lab.open([FEW, STATE]) as notebook:
        view, page = opened(notebook), notebook.page
        said = view.get_by_role("status")
        view.focus()
        page.keyboard.press("Space")
        view.get_by_role("button", name="Pause").wait_for()
        said.filter(has_text=re.compile(r"^Step [1-8]\d \(")).wait_for()
        page.keyboard.press("Space")
        view.get_by_role("button", name="Play").wait_for()
        at = check_drawing(notebook, view)[1]
        assert 10 <= at < 97
        assert state(notebook)[1] == at
        view.focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        view.get_by_role("button", name="Play").click()
        said.filter(has_text="Finished: 7").wait_for()
        view.get_by_role("button", name="Play").wait_for()
        assert state(notebook)[1] == 97
        assert lab.outside == []


def test_ways_are_compared_and_blocks_tell_whose_they_are(lab, tmp_path):
    with lab.open([FEW, STATE]) as notebook:
        view, page = opened(notebook), notebook.page
        said = view.get_by_role("status")
        view.get_by_role("button", name="longest").click()
        said.filter(has_text="compute a prompt").first.wait_for()
        view.focus()
        page.keyboard.press("PageDown")
        said.filter(has_text="compute padding").wait_for()
        assert check_drawing(notebook, view)[:2] == [1, 10]
        shoot(notebook, tmp_path, "batch-padded")
        view.focus()
        page.keyboard.press("End")
        view.get_by_role("button", name="bucket").click()
        view.locator("tr:has(button[aria-pressed=true])").filter(has_text="bucket").wait_for()
        assert check_drawing(notebook, view)[0] == 2
        view.focus()
        page.keyboard.press("w")
        page.keyboard.press("w")
        page.keyboard.press("Home")
        view.locator("tr:has(button[aria-pressed=true])").filter(has_text="reused").wait_for()
        assert check_drawing(notebook, view)[:2] == [4, 0]
        pool = view.locator("[data-pool='0'] path").first
        pool.scroll_into_view_if_needed()
        box = pool.bounding_box()
        page.mouse.move(box["x"] + 8, box["y"] + 8)
        view.locator(".tip").filter(has_text="Block 0, steps 0 to").filter(has_text="held by sequence 0").wait_for()
        page.mouse.click(box["x"] + 8, box["y"] + 8)
        said.filter(has_text="Sequence 0:").wait_for()
        assert state(notebook)[:3] == [4, 0, 0]
        view.locator("[data-row='1'] [data-kind='waiting']").first.hover(position={"x": 1, "y": 0}, force=True)
        view.locator(".tip").filter(has_text="Sequence 1").filter(has_text="waits").wait_for()

        small = view.locator("[data-small] rect").first
        box = small.bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 5, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, y, steps=4)
        page.mouse.up()
        said.filter(has_text=re.compile(r"^Step 4[89] \(")).wait_for()
        assert check_drawing(notebook, view)[1] in (48, 49)
        assert lab.outside == []


SIZES = (
    SETUP
    + """
many = served(400, 300, 300.0)
w = show.batch_timeline(many); w.step = 300; w.selected = 40
b = show.batch_timeline(served(30, 2500, float("inf"))); b.step = 40
c = show.batch_timeline(ways); c.way = 1; c.step = 20
one = show.batch_timeline(served(1, 64, float("inf")))
"""
)


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_at_every_size(lab, tmp_path, dark):
    with lab.open([SIZES + "display(w)", STATE, "display(b)", "display(c)", "display(one)"], dark=dark) as notebook:
        notebook.run_all()
        views = notebook.page.get_by_role("group", name="Batch timeline")
        views.nth(3).get_by_role("status").filter(has_text="Step ").first.wait_for()
        names = ("many", "pool", "padded", "one")
        check_drawing(notebook, views.nth(0))
        for width in (1200, 700):
            notebook.page.set_viewport_size({"width": width, "height": 1500})
            for i, name in enumerate(names):
                view = views.nth(i)
                if width == 700:
                    view.and_(notebook.page.locator(".narrow")).wait_for()
                view.scroll_into_view_if_needed()
                assert overlapping(view) == []
                shoot(notebook, tmp_path, f"batch-{name}-{width}-{'dark' if dark else 'light'}")
        assert lab.outside == []


def overlapping(view) -> list[tuple[str, str]]:
    """The pairs of texts in a drawing that lie over each other."""
    boxes = view.locator("svg[role=img] text").evaluate_all(
        "all => all.map(t => [t.textContent, ...Object.values(t.getBoundingClientRect().toJSON())])"
    )
    found = []
    for i, (first, x0, y0, w0, h0, *_) in enumerate(boxes):
        for second, x1, y1, w1, h1, *_ in boxes[i + 1 :]:
            if min(x0 + w0, x1 + w1) - max(x0, x1) > 1 and min(y0 + h0, y1 + h1) - max(y0, y1) > 3:
                found.append((first, second))
    return found
