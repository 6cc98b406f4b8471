"""Every figure has alt text with the facts, labelled axes, and shows the numbers it was given."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from labkit.core.routing import Routing
from labkit.show import figures, style
from labkit.show.picture import Picture, png

PNG = b"\x89PNG\r\n"


def record(E: int = 4, T: int = 10, tokens=None) -> Routing:
    torch.manual_seed(0)
    logits = torch.randn(T, E)
    scores, ids = logits.softmax(-1).topk(2)
    return Routing.of(logits, ids, scores, tokens=tokens)


XY = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])


def half(grid: np.ndarray) -> np.ndarray:
    return (grid[:, 0] > 1).astype(int)


ALL = {
    "load_bars": lambda: figures.load_bars(record()),
    "load_bars_many": lambda: figures.load_bars(record(E=64)),
    "decision_regions": lambda: figures.decision_regions(XY, ["a", "b", "a"], {0: half, 10: half}, 2),
    "routing_matrix": lambda: figures.routing_matrix(record(tokens=tuple("abc\n$efghi"))),
    "prediction_line": lambda: figures.prediction_line(2, 3, 0, 10, "ms", 0.5),
    "bars_with_spread": lambda: figures.bars_with_spread({"a": [1, 2, 9], "b": [3]}, "time", "ms", ("dense", 4)),
    "cost_curve": lambda: figures.cost_curve([1, 2], {"a": [1, 2], "b": [2, 3]}, "tokens", "FLOPs"),
    "parameter_blocks": lambda: figures.parameter_blocks(100 * 10**9, 25 * 10**9, "m"),
    "memory_stack": lambda: figures.memory_stack({"train": {"weights": 10**9}, "serve": {"cache": 0}}, 2 * 10**9, "T4"),
}


@pytest.mark.parametrize("name", list(ALL))
def test_draws_with_alt_text_and_labels(name):
    figure = ALL[name]()
    assert isinstance(figure, Picture)
    assert len(figure.alt) > 20
    assert png(figure).startswith(PNG)
    assert png(figure) == png(figure)
    for ax in figure.axes[:1]:
        assert ax.get_xlabel()
    data, meta = figure._repr_mimebundle_()
    assert data["text/plain"] == meta["image/png"]["alt"] == figure.alt


@pytest.mark.parametrize("name", list(ALL))
def test_the_picture_is_the_one_that_savefig_makes(name):
    figure, stream = ALL[name](), io.BytesIO()
    with style.use():
        figure.savefig(stream, format="png", dpi=figure.dpi, facecolor="white", metadata={"Software": None})
    other = ALL[name]()
    before = other.canvas, other.get_facecolor()
    assert png(other) == stream.getvalue()
    assert (other.canvas, other.get_facecolor()) == before


def test_load_bars_shows_shares_that_sum_to_a_hundred():
    routing = record()
    heights = [bar.get_height() for bar in figures.load_bars(routing).axes[0].patches]
    assert sum(heights) == pytest.approx(100)
    assert heights[0] == pytest.approx(100 * int(routing.tokens_per_expert_E[0]) / 20)


def test_regions_say_who_owns_how_much():
    alt = figures.decision_regions(XY, [0, 1, 0], {5: half(figures.region_grid(XY))}, 2).alt
    assert "expert 0 owns 50 %, expert 1 owns 50 %" in alt


def test_labels_show_what_can_be_shown():
    figure = figures.routing_matrix(record(), tokens=["é", "␣", "a\n"] + ["x"] * 7)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[:3] == ["é", "␣", "a\\n"]


def test_routing_matrix_says_what_it_leaves_out():
    routing = record(T=50)
    figure = figures.routing_matrix(routing, limit=5)
    assert "first 5 of 50" in figure.axes[0].get_title(loc="left")
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (5, 4)
    np.testing.assert_allclose(shown.sum(1), routing.topk_scores_TK[:5].sum(1), rtol=1e-6)


def test_bars_show_the_median_not_the_mean():
    widths = [bar.get_width() for bar in ALL["bars_with_spread"]().axes[0].patches]
    assert widths == [2.0, 3.0]


def test_prediction_line_says_how_the_number_came_about():
    assert "calculated 3 ms" in figures.prediction_line(2, 3, 0, 10, "ms", how="calculated").alt
    assert "measured 3 ms" in ALL["prediction_line"]().alt


def test_a_part_of_memory_has_its_colour_in_every_figure():
    def colors(plan):
        axes = figures.memory_stack({"plan": dict.fromkeys(plan, 1e9)}).axes[0]
        return {bars.get_label(): bars.patches[0].get_facecolor() for bars in axes.containers}

    one, other = colors(["weights", "gradients", "optimizer"]), colors(["scales", "optimizer", "KV cache", "weights"])
    assert one["weights"] == other["weights"]
    assert one["optimizer"] == other["optimizer"]
    assert len(set(other.values())) == 4


def test_memory_stack_draws_the_limit_and_what_is_usable_of_it():
    figure = figures.memory_stack({"a": {"weights": 1e9}}, 16e9, "T4", usable=14.4e9)
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [16, 14.4]
    assert "T4: 16 GB" in figure.alt
    assert "14.4 GB" in figure.alt


def test_bfloat16_is_fine():
    assert figures.array(torch.ones(2, dtype=torch.bfloat16)).tolist() == [1, 1]


BAD = [
    (lambda: figures.load_bars(record(T=0)), "without tokens"),
    (lambda: figures.region_grid([1, 2]), "give .T, 2."),
    (lambda: figures.region_grid(XY, 1), "2 or more"),
    (lambda: figures.decision_regions(XY, [0], {0: half}, 2), "1 labels for 3"),
    (lambda: figures.decision_regions(XY, [0, 1, 0], {0: half}, 9), "1 to 8 experts"),
    (lambda: figures.decision_regions(XY, [0, 1, 0], {}, 2), "at least one"),
    (lambda: figures.decision_regions(XY, [0, 1, 0], {0: half}, 1), "must lie in"),
    (lambda: figures.decision_regions(XY, [0, 1, 0], {0: [0, 1, 0]}, 2), "every point"),
    (lambda: figures.routing_matrix(record(), tokens=["a"]), "1 labels for 10"),
    (lambda: figures.routing_matrix(record(), limit=0), "1 or more"),
    (lambda: figures.prediction_line(1, float("nan"), 0, 1), "finite"),
    (lambda: figures.prediction_line(1, 1, 2, 1), "low must be less"),
    (lambda: figures.prediction_line(1, 1, 0, 1, spread=-1), "zero or more"),
    (lambda: figures.bars_with_spread({}, "q", "u"), "at least one"),
    (lambda: figures.bars_with_spread({"a": []}, "q", "u"), "no finite"),
    (lambda: figures.cost_curve([1, 2], {"a": [1]}, "x", "y"), "1 values for 2"),
    (lambda: figures.cost_curve([0, 2], {"a": [1, 1]}, "x", "y"), "positive"),
    (lambda: figures.cost_curve([1], {}, "x", "y"), "1 to 8 curves"),
    (lambda: figures.parameter_blocks(1, 2), "active"),
    (lambda: figures.memory_stack({"a": {"b": -1}}), "negative"),
    (lambda: figures.memory_stack({}), "1 to 8 kinds"),
    (lambda: figures.memory_stack({"a": {"b": 1}}, 0), "above zero"),
    (lambda: figures.memory_stack({"a": {"b": 1}}, usable=1), "give a limit"),
    (lambda: figures.memory_stack({"a": {"b": 1}}, 1, usable=2), "a part of it"),
    (lambda: png("figure"), "matplotlib Figure"),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
