"""The ladder, counted again the slow way: by laying out every batch and marking every position."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.cost import model_flops_per_token
from labkit.core.presets import preset
from labkit.serve.batching import Work, by_bucket, continuous, span, to_longest, to_maximum
from labkit.serve.scheduler import Limits
from labkit.serve.workload import Lengths, arrivals, lognormal_lengths

PAIRS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=14)


def laid_out(batches, to=None) -> tuple[int, Work, Work]:
    """Steps, and what every row of every step computes: all, and for a real token of an answer that goes on."""
    steps, all_, real = 0, [0, 0, 0], [0, 0, 0]
    for batch in batches:
        width = to[0] if to else max(prompt for prompt, _ in batch)
        longest = to[1] if to else max(output for _, output in batch)
        for step in range(longest):
            steps += 1
            for prompt, output in batch:
                new = range(width) if step == 0 else range(width + step - 1, width + step)
                for at in new:
                    all_[0] += 1
                    all_[1] += at + 1
                    own = at - (width - prompt)  # padded on the left
                    if own >= 0 and step < output:
                        real[0] += 1
                        real[1] += own + 1
                all_[2] += 1
                real[2] += step < output
    return steps, Work(*all_), Work(*real)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.integers(1, 5))
def test_static_batches_are_counted_as_they_are_laid_out(lengths, size):
    in_order = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    longest, maximum = to_longest(lengths, size), to_maximum(lengths, size, 9, 6)
    assert (longest.steps, longest.computed, longest.useful) == laid_out(in_order)
    assert (maximum.steps, maximum.computed, maximum.useful) == laid_out(in_order, (9, 6))
    buckets = [[row for row in lengths if low < row[0] <= high] for low, high in ((0, 3), (3, 6), (6, 99))]
    sliced = [bucket[at : at + size] for bucket in buckets for at in range(0, len(bucket), size)]
    bucketed = by_bucket(lengths, size, [3, 6])
    assert (bucketed.steps, bucketed.computed, bucketed.useful) == laid_out(sliced)
    assert longest.useful == maximum.useful == bucketed.useful
    assert longest.wasted <= maximum.wasted


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.integers(8, 40), st.integers(1, 4), st.booleans())
def test_continuous_batching_computes_what_was_asked_for_and_what_it_lost(lengths, blocks, sequences, reuse):
    limits = Limits(
        blocks,
        block_size=2,
        max_sequences=sequences,
        max_tokens_per_step=sequences + 3,
        reserve=0,
        reuse_prefixes=reuse,
    )
    tally = continuous(arrivals(lengths, vocab_size=2), limits)
    asked = sum((span(0, prompt + output - 1, output) for prompt, output in lengths), Work())
    assert tally.useful.samples == asked.samples
    if reuse:
        assert tally.useful.tokens <= asked.tokens <= tally.computed.tokens + tally.reused_tokens
    else:
        assert (tally.useful, tally.reused_tokens) == (asked, 0)
    if blocks == 40:
        assert tally.wasted == 0


def test_a_preempted_answer_is_computed_again_and_that_is_the_waste():
    limits = Limits(5, block_size=2, max_sequences=2, max_tokens_per_step=20, reserve=0, reuse_prefixes=False)
    tally = continuous(arrivals([(4, 5), (4, 5)]), limits)
    assert (tally.computed - tally.useful).tokens == 4  # the prompt of the second one
    assert tally.wasted == pytest.approx(4 / 20)


def test_common_beginnings_are_computed_once():
    lengths = [(40, 4)] * 10
    limits = Limits(200, block_size=4, max_sequences=1, max_tokens_per_step=64)
    with_reuse = continuous(arrivals(lengths, beginnings=1, beginning_tokens=32), limits)
    assert with_reuse.reused_tokens == 9 * 32
    assert with_reuse.computed.tokens == 10 * 43 - 9 * 32


def test_flops_are_those_of_every_token_at_its_place():
    model = preset("olmoe-1b-7b")
    single = sum(model_flops_per_token(model, at).total for at in range(1, 6))
    head = model_flops_per_token(model, 1).head
    assert span(0, 5, samples=2).flops(model) == single - 3 * head
    tally = to_longest([(4, 1), (2, 3)], batch_size=2)
    assert tally.wasted_flops(model) == 1 - tally.useful.flops(model) / tally.computed.flops(model)
    assert 0.3 < tally.wasted_flops(model) < 0.4


def test_the_workload_is_the_one_of_the_comparisons():
    lengths = lognormal_lengths()
    assert (len(lengths), sum(prompt for prompt, _ in lengths), sum(output for _, output in lengths)) == (
        256, 51_559, 28_303,
    )  # fmt: skip
    assert lengths[0] == Lengths(*lengths[0])
    assert lognormal_lengths(256, seed=1) != lengths
    assert {min(p for p, _ in lengths), max(o for _, o in lengths)} <= set(range(8, 1025))


def test_the_ladder_goes_down_on_the_workload():
    lengths = lognormal_lengths()
    rungs = [
        to_maximum(lengths, 32, 1024, 256), to_longest(lengths, 32), by_bucket(lengths, 32, [64, 128, 256, 512]),
        continuous(arrivals(lengths), Limits(8192, reuse_prefixes=False)),
        continuous(arrivals(lengths, beginnings=4, beginning_tokens=64), Limits(8192, max_sequences=64)),
    ]  # fmt: skip
    tokens = [rung.computed.tokens for rung in rungs]
    assert tokens == sorted(tokens, reverse=True)
    assert len(set(tokens)) == 5
    assert tokens[3] == 51_559 + 28_303 - 256


def test_arrivals_have_the_lengths_the_rate_and_the_beginnings_they_were_asked_for():
    jobs = list(arrivals([(10, 2)] * 2000 + [(3, 1)], rate=50.0, beginnings=2, beginning_tokens=4, vocab_size=1000))
    assert {(len(job.prompt), job.output) for job in jobs} == {(10, 2), (3, 1)}
    assert jobs[-1].arrival == pytest.approx(2001 / 50, rel=0.1)
    assert [job.arrival for job in jobs] == sorted(job.arrival for job in jobs)
    assert len({job.prompt[:4] for job in jobs[:-1]}) == 2
    assert len({job.prompt for job in jobs[:-1]}) == 2000
    assert {job.prompt[:2] for job in jobs} == {job.prompt[:2] for job in jobs[:-1]}
    assert {job.arrival for job in arrivals([(1, 1)] * 3)} == {0.0}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: to_maximum([(5, 1)], 1, 4, 4), "longer than 4 and 4"),
        (lambda: to_longest([], 1), "hold no request"),
        (lambda: to_longest([(0, 1)], 1), "without a prompt"),
        (lambda: to_longest([(1, 1)], 0), "batch_size is 0"),
        (lambda: by_bucket([(1, 1)], 1, [4, 2]), "edges are"),
        (lambda: continuous(arrivals([(1, 1)] * 3), Limits(4, max_waiting=1)), "found the queue full"),
        (lambda: lognormal_lengths(0), "count is 0"),
        (lambda: list(arrivals([(1, 1)], rate=0)), "rate is 0"),
        (lambda: list(arrivals([(1, 1)], beginnings=2)), "or neither"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()
