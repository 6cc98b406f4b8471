"""The kernels over a paged store, interpreted: decode, prefill and write equal torch's specification."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from paged_batches import batch, draw, num_blocks, plain

from labkit.kernels import paged_attention, paged_decode
from labkit.kernels.attention_tiles import Block
from labkit.kernels.interpreter import brisk
from labkit.kernels.paged_attention import attend, choose, force, turn_and_write, write
from labkit.kernels.paged_decode import decode, shares
from labkit.kernels.paged_layout import Layout
from labkit.nn.rope import rotate

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.1])


def check(sizes, b, H, G, d, *, latent=0, window=0, sinks=None):
    layout = batch(sizes, b)
    tensors = draw(layout, b, H, G, d, latent=latent)
    with force("triton"), brisk():
        y = attend(*tensors, layout, scale=0.3, window=window, sinks=sinks)
    assert y.shape == (len(layout.positions_T), H, d - latent)
    want = plain(*tensors, layout, scale=0.3, window=window, sinks=sinks)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 7, 40])
@pytest.mark.parametrize("sinks", [None, SINKS])
def test_decode(window, sinks):
    check([(0, 1), (40, 1), (31, 1)], 5, 4, 2, 20, window=window, sinks=sinks)


@pytest.mark.parametrize("window", [0, 7, 40])
@pytest.mark.parametrize("sinks", [None, SINKS])
def test_prefill(window, sinks):
    check([(0, 9), (33, 1), (50, 18)], 4, 4, 2, 16, window=window, sinks=sinks)


def test_more_heads_than_a_tile_has_rows():
    check([(20, 1), (3, 1), (5, 3)], 4, 34, 1, 16)


def test_heads_that_fill_no_tile():
    check([(20, 1), (30, 8), (0, 6)], 3, 6, 2, 8)


@pytest.mark.parametrize("heads", [3, 20])
def test_latents(heads):
    check([(0, 1), (45, 1), (10, 9)], 4, heads, 1, 28, latent=8)


def test_decoding_and_prefill_in_one_batch_with_single_tokens_among_the_chunks():
    check([(40, 1), (2, 1), (7, 21), (0, 1), (12, 2), (33, 1)], 4, 2, 1, 16)


@pytest.mark.parametrize(("latent", "sinks"), [(0, SINKS), (8, None)])
def test_what_a_graph_has_left_over_gives_zeros(latent, sinks):
    real = batch([(40, 1), (2, 1), (7, 21), (12, 2)], 4)
    more = [F.pad(t, (0, room), value=value) for t, room, value in (
        (real.positions_T, 9, 0), (real.rows_T, 9, 0), (real.starts_N, 5, 25), (real.lengths_N, 5, 0)
    )]  # fmt: skip
    layout = Layout(*more, F.pad(real.tables_NM, (0, 2, 0, 5)), 34, 99)
    query, *stores = draw(real, 4, 4, 1, 16 + latent, latent=latent)
    query = torch.cat([query, torch.full_like(query[:9], torch.nan)])
    with force("triton"), brisk():
        y = attend(query, *stores, layout, scale=0.3, sinks=sinks)
    want = plain(query[:25], *stores, real, scale=0.3, sinks=sinks)
    torch.testing.assert_close(y[:25].double(), want, rtol=1e-5, atol=1e-5)
    assert y[25:].eq(0).all()
    with force("torch"):
        torch.testing.assert_close(attend(query, *stores, layout, scale=0.3, sinks=sinks), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 50])
def test_shares_of_every_length_are_put_together(window):
    layout = batch([(0, 1), (32, 1), (127, 1)], 4)
    layout.lengths_N[0] = 0
    tensors = draw(layout, 4, 4, 1, 16)
    want = plain(*tensors, layout, scale=0.3, window=window, sinks=SINKS)
    for split in ((1, 1), (2, 1), (3, 2), (5, 1)):
        y = torch.full((3, 4, 16), torch.nan)
        with brisk():
            decode(y, *tensors, layout, scale=0.3, window=window, sinks=SINKS, split=split, tile=Block(16, 32, 4, 1))
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    assert y[0].eq(0).all()


def test_contexts_are_split_where_programs_are_few(monkeypatch):
    monkeypatch.setattr(paged_decode, "multiprocessors", lambda index: 100)
    for programs in (1, 7, 64, 399):
        count, least = shares(programs, 4096, 64)
        assert least == 1
        assert 1 <= count <= 64
        assert count * programs >= 400 or count == 64
    assert shares(1, 100, 64) == (2, 1)  # never finer than a tile
    assert shares(400, 2000, 64) == (1, 8)
    assert shares(400, 16384, 64) == (8, 8)


@pytest.mark.parametrize("shape", [(2, 24, 2, 24), (1, 40, 1, 8), (3, 700, 1, 5)])
def test_write(shape):
    G, d, G2, d2 = shape
    layout = batch([(3, 2), (0, 5), (9, 1)], 4)
    g = torch.Generator().manual_seed(0)
    fresh = torch.randn(1, G, 8, d, generator=g)[0].transpose(0, 1), torch.randn(8, G2, d2, generator=g)
    both = torch.zeros(num_blocks(layout), 4, 1, G * d + G2 * d2)
    first, second = (torch.zeros(num_blocks(layout), 4, heads, width) for heads, width in ((G, d), (G2, d2)))
    stores = (both[..., :d], both[..., d:]) if G == G2 == 1 else (first, second)
    want = tuple(store.clone() for store in stores)
    with force("triton"), brisk():
        write(stores, fresh, layout)
    write(want, fresh, layout)
    for store, expected in zip(stores, want, strict=True):
        assert torch.equal(store, expected)
        assert store.ne(0).any(-1).any(-1).sum() == 8


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2, 12, 12), (5, 1, 6, 20)])
def test_turning_and_writing_in_one(sizes, interleaved):
    H, G, r, d = sizes
    layout = batch([(3, 2), (0, 5), (9, 1)], 4)
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, 8, w, generator=g) for h, w in ((H, r), (G, r), (G, d)))
    angles = layout.positions_T[None, :, None] * torch.rand(r // 2, generator=g)
    turn = angles.cos(), angles.sin(), interleaved
    stores = tuple(torch.zeros(num_blocks(layout), 4, G, width) for width in (r, d))
    if G == 1:
        both = torch.zeros(num_blocks(layout), 4, 1, r + d)
        stores = both[..., d:], both[..., :d]
    want = tuple(store.clone() for store in stores)
    turned, key_turned = (rotate(t, *turn)[0].transpose(0, 1) for t in (query, key))
    fresh = tuple(t[0].transpose(0, 1) for t in (key, value))
    write(want, (key_turned, fresh[1]), layout)
    query_THr = query[0].transpose(0, 1)
    assert not turn_and_write(query_THr, stores, fresh, turn, layout)  # on a CPU, only where it is asked for
    with force("triton"), brisk():
        assert turn_and_write(query_THr, stores, fresh, turn, layout)
    torch.testing.assert_close(query_THr, turned)
    for store, expected in zip(stores, want, strict=True):
        torch.testing.assert_close(store, expected)


def test_who_computes_is_told():
    layout = batch([(3, 1)], 4)
    query, key, value = draw(layout, 4, 4, 2, 8)
    assert choose(query, key, value).name == "torch"
    with force("triton"):
        assert choose(query, key, value).name == "triton"
        for tensors, said in (
            ([t.double() for t in (query, key, value)], "not float64"),
            ((query.half(), key, value), "they want one dtype"),
            (draw(layout, 4, 2, 1, 600), "tile holds equal widths up to 256"),
            (draw(layout, 4, 2, 1, 800, latent=100), "a latent of 700 with 100 beside it"),
            ((query, key.transpose(1, 2), value.transpose(1, 2)), "stores must be contiguous"),
        ):
            with pytest.raises(ValueError, match=said):
                choose(*tensors)
    with force("torch"):
        assert choose(query, key, value) == paged_attention.Choice("torch", "forced")
    with pytest.raises(ValueError, match="choose one of triton, torch"), force("loop"):
        pass
