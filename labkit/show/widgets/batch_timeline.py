"""The batch timeline: who computes what in every step, and whose the blocks of the cache are.

Python cuts the window that is drawn out of a `Timeline` (`batch_views`) and says in words what is seen; JavaScript
draws it, walks and plays. Several timelines of the same sequences can be compared, as `labkit.serve.timeline.ladder`
makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import traitlets

from labkit.core.timeline import PREEMPTED, Timeline
from labkit.show.picture import Picture
from labkit.show.style import GREY, LIT, PALETTE
from labkit.show.widgets import batch_views, batch_words
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange, within

SIZES = (30, 60, 120, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000)
WHOLE = 250  # so many steps are shown at once without being asked
MOST_WAYS = 8
MOST_NOTED = 400


class BatchTimeline(LabWidget):
    """A live view of one timeline, or of several of the same sequences.

    Args:
        timelines: a `Timeline`, or up to eight of them, or a mapping to them.

    Traits that browser and kernel share: `step`; `selected`, the row in hand, −1 for none; `way`, the timeline in
    hand; `shown`, how many steps are drawn at once, one of `sizes`. `timeline` and `moment` are the timeline and the
    step in hand. Raises ValueError for no timeline, too many, or other sequences in one than in another, and for values
    out of range.
    """

    _esm = esm("batch_timeline")

    step = traitlets.Int(0).tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)
    way = traitlets.Int(0).tag(sync=True)
    shown = traitlets.Int(SIZES[0]).tag(sync=True)
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    num_steps = traitlets.Int(1).tag(sync=True)
    num_rows = traitlets.Int(1).tag(sync=True)
    ids = traitlets.List(traitlets.Unicode()).tag(sync=True)
    ways = traitlets.List().tag(sync=True)
    rows = traitlets.Dict().tag(sync=True)
    pool = traitlets.Dict().tag(sync=True)
    whole = traitlets.Dict().tag(sync=True)
    preempted = traitlets.List(traitlets.Int()).tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    says = traitlets.Unicode("").tag(sync=True)
    detail = traitlets.Unicode("").tag(sync=True)

    def __init__(self, timelines: Timeline | Iterable[Timeline] | Mapping[str, Timeline]) -> None:
        self._timelines = _checked(timelines)
        self._window = self._page = None  # what is drawn now
        most = max(t.num_steps for t in self._timelines)
        self._sizes = [size for size in SIZES if size < most]
        self._sizes.append(next((size for size in SIZES if size >= most), most))
        many = len(self._timelines[0].ids) > len(PALETTE)
        super().__init__(
            sizes=self._sizes, shown=self._sizes[-1] if most <= WHOLE else 120, selected=0 if many else -1,
            ways=[_summary(t) for t in self._timelines], num_rows=len(self._timelines[0].ids),
            ids=[batch_words.short(id) for id in self._timelines[0].ids],
        )  # fmt: skip
        self._change_way()
        self.observe(self._change_way, names="way")
        self.observe(self._look, names=["step", "selected", "shown"])

    @property
    def timeline(self) -> Timeline:
        """The one in hand."""
        return self._timelines[self.way]

    @property
    def moment(self) -> Any:
        """The step in hand, a `labkit.core.timeline.Moment`."""
        return self.timeline.at(self.step)

    @traitlets.validate("way")
    def _check_way(self, proposal: Any) -> int:
        return within("BatchTimeline.way", proposal["value"], 0, len(self._timelines) - 1)

    @traitlets.validate("step")
    def _check_step(self, proposal: Any) -> int:
        return within("BatchTimeline.step", proposal["value"], 0, self.timeline.num_steps - 1)

    @traitlets.validate("selected")
    def _check_selected(self, proposal: Any) -> int:
        return within("BatchTimeline.selected", proposal["value"], -1, len(self._timelines[0].ids) - 1)

    @traitlets.validate("shown")
    def _check_shown(self, proposal: Any) -> int:
        if proposal["value"] not in self._sizes:
            raise OutOfRange(
                f"BatchTimeline.shown is {proposal['value']}; choose one of {', '.join(map(str, self._sizes))}"
            )
        return proposal["value"]

    def _change_way(self, change: Any = None) -> None:
        t = self.timeline
        self.num_steps, self.whole, self.note = t.num_steps, batch_views.overview(t), batch_words.of_all(t)
        self.preempted = sorted({event.step for event in t.events if event.what == PREEMPTED})[:MOST_NOTED]
        self.step = min(self.step, t.num_steps - 1)
        self._look()

    def _look(self, change: Any = None) -> None:
        t, now = self.timeline, self.moment
        window = (self.way, self.shown, self.step // self.shown, self.selected)
        if window != self._window:
            self.rows, self._window = batch_views.rows_view(t, self.step, self.shown, self.selected), window
        page = (self.way, self.selected)
        if page != self._page or not self.pool["first"] <= self.step < self.pool["end"]:
            self.pool, self._page = batch_views.pool_view(t, self.step, self.selected), page
        self.says = batch_words.of_step(t, now)
        self.detail = batch_words.of_row(t, self.selected, now) if self.selected >= 0 else ""
        self.sampled = self._left_out()

    def _left_out(self) -> str:
        count, shown, said = self.rows["count"], len(self.rows["rows"]), []
        if shown < count:
            said.append(f"{shown} of {count:,} sequences of these steps are drawn; ↑ ↓ and Shift bring the others.")
        if self.rows["least"] > 1:
            said.append(f"Bars of fewer than {self.rows['least']} steps are drawn as their neighbours.")
        if self.pool["per_cell"] > 1:
            said.append(f"A cell of the pool stands for {self.pool['per_cell']} blocks.")
        if self.timeline.missing:
            said.append(f"{self.timeline.missing:,} later steps were not recorded.")
        return " ".join(said)

    def color(self, row: int) -> str:
        """The colour of a row: its own among few, else grey; while one is in hand, all others are grey."""
        few, held = len(self.ids) <= len(PALETTE), self.selected
        if few and held in (-1, row) and row >= 0:
            return PALETTE[row]
        return LIT if row == held >= 0 else GREY

    def picture(self) -> Picture:
        """The rows and steps in sight, and the pool at the step in hand."""
        from labkit.show.widgets.batch_timeline_picture import draw

        return draw(self)


def _checked(timelines: Any) -> tuple[Timeline, ...]:
    if isinstance(timelines, Timeline):
        return (timelines,)
    if not isinstance(timelines, Iterable):
        raise ValueError(f"batch_timeline got {type(timelines).__name__}; give a Timeline, or several")
    given = tuple(timelines.values() if isinstance(timelines, Mapping) else timelines)
    if not given or not all(isinstance(t, Timeline) for t in given):
        kinds = ", ".join(sorted({type(t).__name__ for t in given})) or "nothing"
        raise ValueError(f"batch_timeline got {kinds}; give a Timeline, or several (labkit.serve.timeline.record)")
    if len(given) > MOST_WAYS:
        raise ValueError(f"batch_timeline got {len(given)} timelines; give at most {MOST_WAYS}")
    for t in given:
        if t.ids != given[0].ids:
            raise ValueError(f"{t.name!r} has other sequences than {given[0].name!r}; compare the same ones")
    return given


def _summary(t: Timeline) -> list[Any]:
    """Name, steps, seconds, tokens computed, share of them wasted."""
    return [t.name, t.num_steps, t.lasted, t.tokens, round(t.wasted, 5)]


def batch_timeline(timelines: Timeline | Iterable[Timeline] | Mapping[str, Timeline]) -> BatchTimeline:
    """Who computes what in every step of a batch, and whose the blocks of the cache are; see `BatchTimeline`.

    >>> from labkit.core.timeline import Span
    >>> w = batch_timeline(Timeline("one", ("a",), (3,), (1,), 1, (Span(0, "prefill", 0, 1, 0, 3),)))
    >>> w.says
    'Step 0: 1 compute a prompt (3 tokens).'
    """
    return BatchTimeline(timelines)
