"""The palette can be told apart, also without green or red receptors, and `use` leaves no trace."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.show import style
from labkit.show.style import PALETTE, expert_color, expert_colors

# Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113), severity 1.0, on linear RGB.
MACHADO = {
    "none": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def linear(color: str) -> np.ndarray:
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    f = np.cbrt(xyz / np.array([0.95047, 1.0, 1.08883]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def least_distance(colors: tuple[str, ...], sight: str) -> float:
    seen = [lab(MACHADO[sight] @ linear(color)) for color in colors]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("sight", list(MACHADO))
def test_every_pair_of_experts_differs(sight):
    assert least_distance(PALETTE, sight) > 15


def test_the_distance_would_notice_a_bad_palette():
    assert least_distance(("#2CA02C", "#D62728", "#8C564B"), "deuteranopia") < 15
    assert least_distance(("#0072B2", "#0A76B5"), "none") < 5


@given(st.integers(1, 300), st.data())
def test_up_to_eight_each_its_own_then_one_is_lit(n, data):
    lit = data.draw(st.integers(0, n - 1))
    colors = expert_colors(n, lit)
    if n <= 8:
        assert len(set(colors)) == n
    else:
        assert colors[lit] == style.LIT
        assert {c for i, c in enumerate(colors) if i != lit} == {style.GREY}


def test_use_restores_everything():
    before = dict(matplotlib.rcParams)
    with style.use():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("i", "n", "lit"), [(8, 8, None), (-1, 8, None), (0, 64, 64), (0, 0, None)])
def test_bad_expert(i, n, lit):
    with pytest.raises(ValueError, match="expert_color got"):
        expert_color(i, n, lit)


def test_bad_count():
    with pytest.raises(ValueError, match="at least one expert"):
        expert_colors(0)
