"""Draws: the filters of `nn.sampling`, the right frequencies, and nothing that depends on the other rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.nn.sampling import Sampling
from labkit.nn.sampling import filtered as one_filtered
from labkit.serve.engine import noise
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.sampler import NO_TOKEN, Choice, best, choose, filtered, logprobs

ROWS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
)


def logits(rows: int, width: int = 12, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 99))
def test_every_row_is_filtered_as_it_asks(params, seed):
    logits_RV = logits(len(params), seed=seed)
    logits_RV[:, 3] = logits_RV[:, 7]  # equals stay or go together
    found = filtered(logits_RV, params)
    for row, one in enumerate(params):
        wanted = one_filtered(logits_RV[row : row + 1], Sampling(True, one.temperature, one.top_k, one.top_p))[0]
        torch.testing.assert_close(found[row].softmax(-1), wanted.softmax(-1))


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({}, None), ({"temperature": 0.5}, None), ({"top_k": 3}, None), ({"top_p": 0.7}, None), ({}, [0, 2, 5, 6])],
)
def test_tokens_come_as_often_as_they_should(options, allowed):
    count, row = 20_000, logits(1, 8, seed=4)
    params = SamplingParams(**{"temperature": 1.0, **options})
    mask = None
    if allowed is not None:
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[:, allowed] = True
        mask = mask.expand(count, -1)
    key = noise.stream_key(11, 0)
    tokens = choose(row.expand(count, -1), [Choice(params, noise.draw_key(key, at)) for at in range(count)], mask)
    masked = row if mask is None else row.masked_fill(~mask[:1], -torch.inf)
    wanted = one_filtered(masked, Sampling(True, params.temperature, params.top_k, params.top_p))[0].softmax(-1)
    seen = torch.bincount(tokens, minlength=8)
    assert not seen[wanted == 0].any()
    real = wanted > 0
    chi = ((seen - count * wanted)[real] ** 2 / (count * wanted[real])).sum()
    assert chi < 30  # seven degrees of freedom at most: p < 1e-4


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS | st.just(SamplingParams()), min_size=1, max_size=7), st.randoms())
def test_a_draw_depends_on_its_row_and_key_alone(params, draw):
    logits_RV = logits(len(params), 40, seed=2)
    choices = [Choice(one, noise.draw_key(at, at)) for at, one in enumerate(params)]
    together = choose(logits_RV, choices).tolist()
    order = draw.sample(range(len(params)), len(params))
    shuffled = choose(logits_RV[order], [choices[at] for at in order]).tolist()
    assert shuffled == [together[at] for at in order]
    assert [choose(logits_RV[at : at + 1], [choices[at]]).item() for at in range(len(params))] == together


def test_keys_of_seeds_continuations_and_tokens_differ():
    keys = {
        noise.draw_key(noise.stream_key(seed, index), token)
        for seed in (-1, 0, 1, 2, 1 << 64, (1 << 70) + 5)
        for index in range(4)
        for token in range(50)
    }
    assert len(keys) == 5 * 4 * 50  # 1 << 64 is 0 again
    drawn = [choose(torch.zeros(1, 500), [Choice(SamplingParams(temperature=1.0), key)]).item() for key in sorted(keys)]
    assert len(set(drawn)) > 400


def test_noise_is_splitmix_and_gumbel():
    key, width = noise.stream_key(3, 1), 6
    words = [noise.mixed(key, at + 1) >> 12 for at in range(width)]
    wanted = -np.log(-np.log((np.array(words) + 0.5) * 2.0**-52))
    found = noise.gumbel(torch.tensor(noise.signed([key])), width)
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-12)
    many = noise.gumbel(torch.arange(50), 2000)
    assert many.isfinite().all()
    assert abs(many.mean() - 0.5772) < 0.02
    assert abs(many.std() - 1.2825) < 0.02


def test_greedy_takes_the_lowest_of_equals_whatever_the_filters_say():
    logits_RV = torch.tensor([[1.0, 5.0, 5.0], [7.0, 0.0, 7.0]])
    odd = SamplingParams(temperature=0, top_k=1, top_p=0.1)
    assert choose(logits_RV, [Choice(SamplingParams()), Choice(odd)]).tolist() == [1, 0] == best(logits_RV).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_no_numbers_get_no_token(bad, temperature):
    logits_RV = logits(3)
    logits_RV[1, 4] = bad
    choices = [Choice(SamplingParams(temperature=temperature), at) for at in range(3)]
    assert (choose(logits_RV, choices) == NO_TOKEN).tolist() == [False, True, False]
    assert (best(logits_RV) == NO_TOKEN).tolist() == [False, True, False]
    allowed = torch.ones(3, 12, dtype=torch.bool)
    allowed[1, 4] = allowed[2] = (
        False  # what is wrong with the model may hide behind the grammar; it is wrong all the same
    )
    assert (choose(logits_RV, choices, allowed) == NO_TOKEN).tolist() == [False, True, True]


def test_no_temperature_overflows():
    row = torch.tensor([[-3e38, 1e30, 3e38]])
    for temperature in (1e-5, 1e-3, 1e6):
        token = choose(row, [Choice(SamplingParams(temperature=temperature), 5)])
        assert token.item() == 2


def test_logprobs_are_of_the_model_and_have_their_own_number_of_alternatives():
    logits_RV = logits(3)
    found = logprobs(logits_RV.bfloat16(), [5, 0, 11], [0, 2, 20], None)
    wide = logits_RV.bfloat16().float().log_softmax(-1)
    assert [one.token_id for one in found] == [5, 0, 11]
    assert [len(one.top) for one in found] == [0, 2, 12]
    for at, one in enumerate(found):
        assert one.logprob == pytest.approx(wide[at, one.token_id].item())
        assert [value for _, _, value in one.top] == sorted((value for _, _, value in one.top), reverse=True)
    assert logprobs(logits_RV, [1, 2, 3], [0, 0, 0], None)[0].top == ()
