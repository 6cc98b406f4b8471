"""A step's chunks as tensors, and decoding steps with fixed sizes, as a graph has them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_models import FAMILIES, build

from labkit.serve.cache.paged import Layout
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.engine.batch import Packer, Shape
from labkit.serve.engine.graphs import GraphRunner, refuses, sizes, token_sizes
from labkit.serve.engine.runner import TorchRunner, extent
from labkit.serve.scheduler import Chunk, Limits

LIMITS = Limits(num_blocks=30, block_size=3, max_context=33, max_tokens_per_step=13, max_sequences=6)

BLOCKS = 90  # more than six chunks hold


@st.composite
def steps(draw):
    size, free = draw(st.integers(1, 4)), iter(draw(st.permutations(range(BLOCKS))))
    chunks = []
    for at in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 9))
        tokens = tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=5)))
        count = -(-(start + len(tokens)) // size)
        chunks.append(Chunk(str(at), start, tokens, tuple(next(free) for _ in range(count)), draw(st.booleans())))
    return size, chunks


@settings(max_examples=150, deadline=None)
@given(steps())
def test_packed_bytes_are_the_layout_and_the_rows_that_sample(drawn):
    size, chunks = drawn
    packer = Packer(size, BLOCKS)
    shape = packer.shape(chunks)
    batch = shape.batch(packer.pack(chunks, shape), *extent(chunks))
    wanted = Layout.of(chunks, size)
    for name in ("positions_T", "rows_T", "starts_N", "lengths_N", "tables_NM"):
        found, right = getattr(batch.layout, name), getattr(wanted, name)
        assert found.dtype == right.dtype
        assert torch.equal(found, right), name
    for name in ("longest", "longest_context", "decodes"):
        assert getattr(batch.layout, name) == getattr(wanted, name)
    assert batch.ids_T.tolist() == [token for chunk in chunks for token in chunk.tokens]
    ends = wanted.starts_N[1:] - 1
    assert batch.wanted_R.tolist() == [end for end, chunk in zip(ends.tolist(), chunks, strict=True) if chunk.samples]


@settings(max_examples=150, deadline=None)
@given(steps(), *[st.integers(0, 4)] * 4)
def test_padding_reads_nothing_and_writes_into_the_spare_block(drawn, tokens, sequences, wider, wanted):
    size, chunks = drawn
    packer = Packer(size, BLOCKS)
    tight = packer.shape(chunks)
    T, N, M, R = tight.T, tight.N, tight.M, tight.R
    wide = Shape(T + tokens, N + sequences, M + wider, R + wanted)
    batch = wide.batch(packer.pack(chunks, wide), T, 99, 0)
    found, exact = batch.layout, Layout.of(chunks, size)
    for name, real in (("positions_T", T), ("rows_T", T), ("starts_N", N + 1), ("lengths_N", N)):
        assert torch.equal(getattr(found, name)[:real], getattr(exact, name)), name
    assert torch.equal(found.tables_NM[:N, :M], exact.tables_NM)
    assert set(found.rows_T[T:].tolist()) <= {BLOCKS * size}
    assert not found.lengths_N[N:].any()
    assert set(found.starts_N[N:].tolist()) == {T}
    assert (batch.wanted_R < T).all()
    assert set(batch.source_T.tolist()) == {-1}


def test_tables_follow_blocks_that_change_and_forget_who_left():
    packer = Packer(2, 400)
    for blocks in ((0, 1), (0, 2), (5, 2, 7)):
        chunk = Chunk("a", 2 * len(blocks) - 1, (3,), blocks, True)
        shape = packer.shape([chunk])
        assert shape.batch(packer.pack([chunk], shape), *extent([chunk])).layout.tables_NM.tolist() == [list(blocks)]
    for at in range(300):
        chunk = Chunk(f"b{at}", 0, (3,), (at,), True)
        packer.pack([chunk], packer.shape([chunk]))
    assert len(packer._tables) < 100


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_sizes_change_no_answer_and_no_count(family):
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [1, 2, 3], [30, 31, 32, 33] * 4, [9, 9]]
    model, found = build(family), []
    for runner in (TorchRunner(model, LIMITS), GraphRunner(model, LIMITS, record=lambda compute: compute)):
        engine, reports = Engine(model, limits=LIMITS, runner=runner), []
        engine.observers.append(reports.append)
        params = [
            SamplingParams(max_tokens=9, temperature=at % 2, seed=at, n=1 + at % 2, logprobs=at % 3) for at in range(5)
        ]
        results = engine.generate(prompts, params)
        engine.check()
        found.append(([one.completions for one in results], [report.experts for report in reports]))
    assert [[one.token_ids for one in answers] for answers in found[0][0]] == [
        [one.token_ids for one in answers] for answers in found[1][0]
    ]
    assert found[0][1] == found[1][1]


def test_there_is_a_size_for_every_number_of_sequences():
    for most in (1, 2, 7, 24, 40, 48, 49, 63, 64, 65, 100, 256, 300):
        found = sizes(most)
        assert found[-1] >= most
        assert list(found) == sorted(set(found))
        assert len(found) == 1 or found[-2] < most or found[-1] < most + 32
    assert sizes(256)[-1] == 256


def test_there_is_a_size_for_every_number_of_tokens():
    for most in (1, 2, 31, 32, 33, 48, 100, 300, 2048, 5000):
        found = token_sizes(most)
        assert found[-1] == most
        assert list(found) == sorted(set(found))
        assert all(small >= 32 and large <= 1.5 * small for small, large in pairwise(found))


def test_a_step_takes_the_next_larger_graph():
    runner, taken = GraphRunner(build("mixtral"), LIMITS, record=lambda compute: compute), []
    runner._replays = {
        each: lambda each=each, replay=replay: taken.append(each) or replay()
        for each, replay in runner._replays.items()
    }
    chunk = lambda at, count: Chunk(str(at), 0, (3,) * count, (3 * at, 3 * at + 1, 3 * at + 2), True)  # noqa: E731
    for counts in ((1, 1, 1), (1, 4), (2,), (1,) * 6):
        runner.run([chunk(at, count) for at, count in enumerate(counts)])
    assert taken == [(True, 4), (False, 13), (False, 13), (True, 8)]


def test_without_a_gpu_graphs_are_refused():
    model = build("mixtral")
    assert "GPU" in refuses(model)
    with pytest.raises(ValueError, match="graphs is True, and cannot be"):
        Engine(model, limits=LIMITS, graphs=True)
