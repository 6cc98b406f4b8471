"""Attention over a paged store equals the formula, token by token; the layout says where each token stands."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_batches import batch, draw, num_blocks, plain

from labkit.kernels.paged_attention import attend, write
from labkit.kernels.paged_layout import Layout

MIXED = [(0, 1), (9, 1), (4, 1), (300, 1), (0, 7), (5, 3), (17, 1), (5, 3)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_equals_the_formula(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=6), "sizes")
    b, G = data.draw(st.integers(1, 5), "b"), data.draw(st.integers(1, 3), "G")
    H, latent = G * data.draw(st.integers(1, 3), "heads a key head"), data.draw(st.sampled_from([0, 3]), "latent")
    layout = batch(sizes, b, seed=data.draw(st.integers(0, 99), "seed"))
    tensors = draw(layout, b, H, G, 8, dtype=torch.float64, latent=latent)
    sinks = torch.randn(H, dtype=torch.float64) if data.draw(st.booleans(), "sinks") else None
    how = {"scale": 0.3, "window": data.draw(st.sampled_from([0, 1, 2, 5, 40]), "window"), "sinks": sinks}
    torch.testing.assert_close(attend(*tensors, layout, **how), plain(*tensors, layout, **how), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [0, 64])
def test_mixed_company(window):
    layout = batch(MIXED, 16)
    tensors = draw(layout, 16, 4, 2, 16, dtype=torch.float64)
    y = attend(*tensors, layout, scale=0.25, window=window)
    torch.testing.assert_close(y, plain(*tensors, layout, scale=0.25, window=window), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("latent", [0, 8])
@pytest.mark.parametrize("sinks", [None, torch.tensor([1.0, -1.0, 0.5, 0.0])])
def test_narrow_numbers(dtype, latent, sinks):
    layout = batch(MIXED, 16)
    tensors, how = draw(layout, 16, 4, 1, 24, dtype=dtype, latent=latent), {"scale": 0.2, "sinks": sinks}
    y, want = attend(*tensors, layout, **how), plain(*tensors, layout, **how)
    assert y.dtype == dtype
    assert (y.double() - want).norm() < 4 * torch.finfo(dtype).eps * want.norm()


def test_decoding_is_few_calls_whatever_the_number_of_sequences(monkeypatch):
    calls = []
    theirs = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *a, **k: calls.append(len(q)) or theirs(q, *a, **k),
    )
    layout = batch([(n, 1) for n in range(100)] + [(500, 1)], 16)
    attend(*draw(layout, 16, 2, 1, 8), layout, scale=1.0)
    assert calls == [100, 1]


def test_an_empty_place_gives_zeros():
    layout = batch([(3, 1), (5, 1), (2, 1)], 4)
    layout.lengths_N[1] = 0
    y = attend(*draw(layout, 4, 2, 1, 8), layout, scale=1.0)
    assert y[1].eq(0).all()
    assert y[[0, 2]].ne(0).all()


def test_entries_go_where_the_layout_says_in_the_dtype_of_the_store():
    layout = batch([(3, 2), (0, 3)], 4)
    store = torch.zeros(num_blocks(layout), 4, 2, 8, dtype=torch.bfloat16)
    fresh = torch.randn(2, 5, 8).transpose(0, 1)
    write((store[..., :5], store[..., 5:]), (fresh[..., :5], fresh[..., 5:]), layout)
    assert torch.equal(store.view(-1, 2, 8)[layout.rows_T], fresh.bfloat16())
    assert store.ne(0).any(-1).sum() == 10


def test_a_layout_says_where_everything_stands():
    chunks = [
        SimpleNamespace(start=4, tokens=(1,), blocks=(7, 2)),
        SimpleNamespace(start=0, tokens=(1,), blocks=(5,)),
        SimpleNamespace(start=2, tokens=(1, 1, 1), blocks=(1, 0)),
        SimpleNamespace(start=0, tokens=(1,), blocks=(3, 4, 6)),
    ]
    layout = Layout.of(chunks, 3)
    assert layout.positions_T.tolist() == [4, 0, 2, 3, 4, 0]
    assert layout.rows_T.tolist() == [2 * 3 + 1, 5 * 3, 1 * 3 + 2, 0, 1, 3 * 3]
    assert layout.starts_N.tolist() == [0, 1, 2, 5, 6]
    assert layout.lengths_N.tolist() == [5, 1, 5, 1]
    assert layout.tables_NM.tolist() == [[7, 2, 0], [5, 0, 0], [1, 0, 0], [3, 4, 6]]
    assert (layout.longest, layout.longest_context, layout.decodes) == (3, 5, 2)
    assert Layout.of(chunks[:2], 3).decodes == 2
    kinds = [t.dtype for t in (layout.positions_T, layout.rows_T, layout.starts_N, layout.lengths_N, layout.tables_NM)]
    assert kinds == [torch.int64, torch.int64, torch.int32, torch.int32, torch.int32]


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([], "there are no chunks"),
        ([SimpleNamespace(start=0, tokens=(), blocks=(1,))], "chunk 0 has no tokens"),
        (
            [SimpleNamespace(start=3, tokens=(1, 1), blocks=(1, 2))],
            "chunk 0 reaches position 4 and its 2 blocks hold 4",
        ),
    ],
)
def test_chunks_that_do_not_fit_are_told(chunks, said):
    with pytest.raises(ValueError, match=said):
        Layout.of(chunks, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query_THd": torch.zeros(5, 4, 8)}, "there are 5 queries, the layout has 2 tokens"),
        ({"query_THd": torch.zeros(2, 3, 8)}, "with G a divisor of H"),
        ({"query_THd": torch.zeros(2, 4, 6)}, "queries, keys and values have shapes"),
        ({"value_AbGv": torch.zeros(9, 3, 2, 8)}, "queries, keys and values have shapes"),
        ({"window": -1}, "window is -1"),
        ({"sinks": torch.zeros(2)}, r"expected \(4,\), one for each head"),
    ],
)
def test_bad_input_is_told(change, said):
    layout = batch([(3, 1), (5, 1)], 4)
    query, key, value = draw(layout, 4, 4, 2, 8)
    given = {"query_THd": query, "key_AbGd": key, "value_AbGv": value, "layout": layout, "scale": 1.0}
    with pytest.raises(ValueError, match=said):
        attend(**{**given, **change})
