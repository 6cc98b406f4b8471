"""Masks: their definition entry by entry, no empty row, and none where causality is enough."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.nn.mask import attention_mask

EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def situations(draw):
    total = draw(st.integers(1, 9))
    S, window = draw(st.integers(1, total)), draw(st.integers(0, 10))
    real = draw(st.none() | st.lists(st.lists(st.booleans(), min_size=total, max_size=total), min_size=1, max_size=3))
    return S, total, window, real


def seen_by_definition(i: int, j: int, window: int, row: list[bool] | None) -> bool:
    allowed = j <= i and (not window or j > i - window) and (row is None or row[j])
    return allowed or (row is not None and i == j)


@EXAMPLES
@given(situations())
def test_every_entry_is_its_definition(situation) -> None:
    S, total, window, real = situation
    mask = attention_mask(S, total, None if real is None else torch.tensor(real).long(), window=window)
    rows = [None] if real is None else real
    wanted = [
        [[seen_by_definition(i, j, window, row) for j in range(total)] for i in range(total - S, total)] for row in rows
    ]
    if mask is None:
        assert real is None
        causal = torch.ones(S, total, dtype=torch.bool).tril(total - S)
        assert S in (1, total)
        assert torch.equal(torch.tensor(wanted[0]), causal)
        return
    assert mask.dtype == torch.bool
    assert mask[:, 0].tolist() == wanted
    assert mask.any(-1).all()


@pytest.mark.parametrize(
    ("S", "total", "window", "none"),
    [(5, 5, 0, True), (5, 5, 5, True), (5, 5, 9, True), (1, 5, 0, True), (1, 5, 5, True), (1, 1, 1, True),
     (5, 5, 4, False), (1, 5, 4, False), (2, 5, 0, False)],
)  # fmt: skip
def test_no_mask_where_causality_is_enough(S: int, total: int, window: int, none: bool) -> None:
    assert (attention_mask(S, total, window=window) is None) == none
    assert attention_mask(S, total, torch.ones(1, total), window=window) is not None


def test_the_total_is_the_queries_unless_said() -> None:
    assert torch.equal(attention_mask(3, window=2), attention_mask(3, 3, window=2))


def test_a_padding_mask_of_any_kind() -> None:
    whole = torch.tensor([[0, 1, 1], [1, 1, 1]])
    for real in (whole.bool(), whole.float(), whole.int()):
        assert torch.equal(attention_mask(3, 3, real), attention_mask(3, 3, whole))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: attention_mask(0), "0 queries"),
        (lambda: attention_mask(4, 3), "4 queries and 3 keys"),
        (lambda: attention_mask(3, window=-1), "give 0 for all"),
        (lambda: attention_mask(3, 5, torch.ones(2, 3)), r"expected \(B, 5\)"),
        (lambda: attention_mask(3, 3, torch.ones(3)), r"expected \(B, 3\)"),
    ],
)
def test_bad_input(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
