"""The engine over models: its answers are the model's own, whoever else is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_models import FAMILIES, V, build
from stub_runner import answers, run_out

from labkit.core.runtime import data_path
from labkit.nn import Transformer
from labkit.nn.generate import generate
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.engine.runner import Tally, TorchRunner
from labkit.serve.scheduler import Limits

LIMITS = Limits(num_blocks=24, block_size=3, max_context=40, max_tokens_per_step=11, max_sequences=5)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 9, 9], [8], [1, 2, 3], [30, 31, 32, 33] * 4, [1, 2, 3, 4, 5, 6, 7]]
TEN = SamplingParams(max_tokens=10)


def by_itself(model, prompt, count=10):
    return generate(model, torch.tensor([prompt]), max_new_tokens=count)[0, len(prompt) :].tolist()


def known_to_transformers(family):
    """The family's model, changed where transformers could not write it down."""
    model = build(family)
    if family == "olmoe":
        model = Transformer(replace(model.config, head_dim=6))
    if family == "deepseek_v2":
        model = Transformer(replace(model.config, moe=replace(model.config.moe, norm_topk=False)))
    model.reset_parameters(torch.Generator().manual_seed(3))
    return model.double().eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_in_company_are_the_models_own(family):
    model = build(family)
    engine = Engine(model, limits=LIMITS)
    results = engine.generate(PROMPTS, TEN)
    engine.check()
    assert [list(result.completions[0].token_ids) for result in results] == [by_itself(model, p) for p in PROMPTS]
    assert {result.completions[0].finish_reason for result in results} == {"length"}
    assert engine.scheduler.pool.held == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_transformers_own(family, tmp_path):
    from transformers import AutoModelForCausalLM

    model = known_to_transformers(family)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    engine = Engine(model, limits=LIMITS)
    for prompt, result in zip(PROMPTS, engine.generate(PROMPTS, TEN), strict=True):
        ids = torch.tensor([prompt])
        found = theirs.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert list(result.completions[0].token_ids) == found[0, len(prompt) :].tolist()


def test_the_checkpoints_answers_are_transformers_own():
    from transformers import AutoModelForCausalLM

    folder = data_path("checkpoints/four-domains")
    engine = Engine.from_pretrained(folder, dtype=torch.float64, device="cpu", limits=Limits(64, max_context=1024))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    prompts = ["def main(", "The quick", "12 + 7 =", "Returns the"]
    results = engine.generate(prompts, SamplingParams(max_tokens=16))
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([engine.vocabulary.encode(prompt)])
        found = theirs.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
        assert list(result.completions[0].token_ids) == found
        assert result.text == engine.vocabulary.decode(found)


def test_a_preempted_answer_is_the_same_and_tight_pools_preempt():
    model = build("mixtral")
    engine = Engine(
        model,
        limits=Limits(num_blocks=9, block_size=2, max_context=18, max_tokens_per_step=8, max_sequences=4, reserve=0),
    )
    for at, prompt in enumerate(PROMPTS[:4]):
        engine.add(str(at), prompt, SamplingParams(max_tokens=8))
    found = answers(run_out(engine))
    assert engine.load().preemptions > 0
    assert [found[str(at), 0][0] for at in range(4)] == [by_itself(model, p, 8) for p in PROMPTS[:4]]


def test_a_prefix_is_found_and_told():
    engine = Engine(build("olmoe"), limits=LIMITS)
    first, second = (engine.generate([PROMPTS[0]], TEN)[0] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 6)
    assert first.completions == second.completions


def test_the_end_of_sequence_token_ends_an_answer_unless_ignored():
    model = build("qwen3_moe")
    own = by_itself(model, PROMPTS[0])
    end = own[4]
    first = own.index(end)
    engine = Engine(model, limits=LIMITS, eos_token_ids=[end])
    ended, ignored = engine.generate([PROMPTS[0]] * 2, [TEN, SamplingParams(max_tokens=10, ignore_eos=True)])
    assert (list(ended.completions[0].token_ids), ended.completions[0].finish_reason) == (own[: first + 1], "stop")
    assert (list(ignored.completions[0].token_ids), ignored.completions[0].finish_reason) == (own, "length")
    (stopped,) = engine.generate([PROMPTS[0]], SamplingParams(max_tokens=10, ignore_eos=True, stop_token_ids=(own[0],)))
    assert (stopped.completions[0].token_ids, stopped.completions[0].finish_reason) == ((own[0],), "stop")


@pytest.mark.parametrize("step", [3, 11, 40])
def test_logprobs_are_the_models_and_so_are_the_prompts(step):
    model = build("deepseek_v3")
    limits = Limits(num_blocks=40, block_size=3, max_context=40, max_tokens_per_step=step, max_sequences=3)
    engine = Engine(model, limits=limits)
    engine.generate([PROMPTS[0]], TEN)  # its blocks are in the cache, and must not be taken for prompt logprobs
    params = SamplingParams(max_tokens=4, logprobs=2, prompt_logprobs=3)
    results = engine.generate(PROMPTS[:3], params)
    for prompt, result in zip(PROMPTS[:3], results, strict=True):
        (answer,) = result.completions
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        with torch.no_grad():
            wide = model(ids).logits[0].log_softmax(-1)
        told = [*result.prompt_logprobs, *answer.logprobs]
        assert told[0] is None
        assert len(told) == ids.shape[1]
        for at, one in enumerate(told[1:]):
            assert one.token_id == ids[0, at + 1]
            torch.testing.assert_close(one.logprob, wide[at, one.token_id].item())
            best = wide[at].topk(3 if at + 1 < len(prompt) else 2)
            assert [token for token, _, _ in one.top] == best.indices.tolist()
            torch.testing.assert_close(torch.tensor([value for _, _, value in one.top]), best.values.float())


def test_continuations_share_the_prompt_and_draw_their_own():
    engine = Engine(build("mixtral"), limits=LIMITS)
    params = SamplingParams(max_tokens=6, temperature=1.5, n=4, seed=5)
    (together,) = engine.generate([PROMPTS[0]], params)
    assert len({answer.token_ids for answer in together.completions}) > 1
    assert engine.load().computed_tokens <= len(PROMPTS[0]) + 4 * 5
    (greedy,) = engine.generate([PROMPTS[0]], SamplingParams(max_tokens=6, n=3))
    assert len({answer.token_ids for answer in greedy.completions}) == 1


def test_a_row_that_is_no_number_ends_its_request_alone():
    model = build("qwen3_moe")
    model.embed.weight.data[40] = torch.nan
    engine = Engine(model, limits=LIMITS)
    prompts = [PROMPTS[0], [1, 2, 3, 40, 5], PROMPTS[1], PROMPTS[2], [40, 7]]
    for at, prompt in enumerate(prompts):
        engine.add(str(at), prompt, SamplingParams(max_tokens=8, n=1 + at % 2, temperature=at % 4 / 2, seed=at))
    found = answers(run_out(engine))
    assert {key for key, (_, reason) in found.items() if reason == "error"} == {("1", 0), ("1", 1), ("4", 0)}
    assert not any(tokens for tokens, reason in found.values() if reason == "error")
    assert engine.scheduler.pool.held == 0
    again = Engine(model, limits=LIMITS)
    for at in (0, 2, 3):
        again.add(str(at), prompts[at], SamplingParams(max_tokens=8, n=1 + at % 2, temperature=at / 2, seed=at))
    wanted = answers(run_out(again))
    assert {key: found[key] for key in wanted} == wanted
    assert found["0", 0][0] == by_itself(model, PROMPTS[0], 8)


def test_reports_tell_what_each_step_did():
    model = build("deepseek_v3")
    engine, reports = Engine(model, limits=LIMITS), []
    engine.observers.append(reports.append)
    engine.generate(PROMPTS, SamplingParams(max_tokens=5))
    tokens = sum(report.step.num_tokens for report in reports)
    assert sum(report.decode_tokens + report.prefill_tokens for report in reports) == tokens
    assert sum(report.decode_tokens for report in reports) == len(PROMPTS) * 4
    c = model.config
    for report in reports:
        assert [sum(layer) for layer in report.experts] == [report.step.num_tokens * c.moe.top_k] * 2
    assert sorted(end for report in reports for end in report.ended) == [(f"{at}.0", "length") for at in range(6)]
    assert reports[-1].load.running == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_experts_that_are_counted_rarely_are_told_when_nothing_is_left_to_do(ahead):
    model = build("olmoe")
    runner = TorchRunner(model, LIMITS)
    runner._tally = Tally(model, LIMITS, every=1000)
    engine, reports = Engine(model, limits=LIMITS, runner=runner, ahead=ahead), []
    engine.observers.append(reports.append)
    for round in (1, 2):
        engine.generate(PROMPTS, SamplingParams(max_tokens=5))
        assert [report.experts for report in reports if report.experts][-1] is reports[-1].experts
        assert sum(report.experts is not None for report in reports) == round
    c, tokens = model.config, sum(report.step.num_tokens for report in reports)
    told = [sum(map(sum, report.experts)) for report in reports if report.experts]
    assert sum(told) == tokens * c.moe.top_k * c.num_layers


def test_what_can_never_be_answered_is_refused_at_once():
    engine = Engine(build("mixtral"), limits=LIMITS)
    for prompt, params, named in [
        ([], TEN, "empty"),
        ([V], TEN, f"0 to {V - 1}"),
        ([1.0], TEN, "no token"),
        ([True], TEN, "no token"),
        ([1] * 35, TEN, "at most 40"),
        ("text", TEN, "no tokenizer"),
        ([1], SamplingParams(stop="x"), "no tokenizer"),
        ([1], SamplingParams(json_object=True), "no tokenizer"),
        ([1], SamplingParams(stop_token_ids=(V,)), "stop_token_ids"),
    ]:
        with pytest.raises(ValueError, match=named):
            engine.add("x", prompt, params)
    assert not engine.busy
    engine.add("x", [1], TEN)
    with pytest.raises(ValueError, match="ids must differ"):
        engine.add("x", [1], TEN)
    with pytest.raises(ValueError, match="under way"):
        engine.generate([[1]])
    with pytest.raises(ValueError, match="made for"):
        Engine(build("mixtral"), limits=Limits(1 << 10, max_context=1 << 20))
