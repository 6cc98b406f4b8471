"""Generation: transformers' tokens and filters, less work with a cache and the same answer, errors that speak."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import LogitsProcessorList

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn import KVCache, Transformer
from labkit.nn.generate import generate
from labkit.nn.sampling import Sampling, choose, filtered

MOE = MoEConfig(d_model=32, d_expert=16, num_experts=4, top_k=2)
GQA = ModelConfig("gqa", 50, 2, 32, num_heads=4, num_kv_heads=2, head_dim=8, moe=MOE, max_context=64)
MLA = GQA.replace(
    name="mla", num_kv_heads=4, head_dim=12, attention="mla", mla_q_rank=8, mla_kv_rank=8, mla_nope_dim=8,
    mla_rope_dim=4, mla_v_dim=8, num_dense_layers=1, d_dense=24, rope_interleaved=True,
    moe=MOE.replace(norm_topk=False, num_shared_experts=1),
)  # fmt: skip
WINDOW = GQA.replace(name="window", sliding_window=4)
CONFIGS = [GQA, MLA, WINDOW]
PAD, END = 0, 7


def seeded(config: ModelConfig, seed: int = 0) -> Transformer:
    model, generator = Transformer(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=float("norm" in name), std=0.25, generator=generator)
    return model


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Four prompts of 2 to 8 tokens, padded on the left."""
    ids = torch.randint(1, 50, (4, 8), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(8) >= torch.tensor([0, 3, 5, 6])[:, None]).long()
    return ids.where(mask.bool(), PAD), mask


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Our model and transformers' of the same folder."""
    ours, folder = seeded(request.param), tmp_path_factory.mktemp("model")
    return ours, AutoModelForCausalLM.from_pretrained(ours.save_pretrained(folder)).eval()


def test_greedy_tokens_equal_transformers(both) -> None:
    ours, wanted = both
    ids, mask = prompts()
    target = wanted.generate(
        ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=PAD
    )
    assert target.shape == (4, 28)
    assert torch.equal(ours.generate(ids, mask, max_new_tokens=20), target)
    assert len({tuple(row) for row in target[:, 8:].tolist()}) == 4


def test_rows_end_as_in_transformers(both) -> None:
    ours, wanted = both
    ids, mask = prompts()
    free = ours.generate(ids, mask, max_new_tokens=20)
    end = int(free[0, 8 + 4])  # one row says this in the middle of its answer
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": end, "pad_token_id": PAD}
    target = wanted.generate(ids, attention_mask=mask, **options)
    tokens = ours.generate(ids, mask, **options)
    assert torch.equal(tokens, target)
    first = free[0, 8:].tolist().index(end)
    assert tokens[0, 8 : 9 + first].tolist() == free[0, 8 : 9 + first].tolist()
    assert set(tokens[0, 9 + first :].tolist()) <= {PAD}
    alone = ours.generate(ids[:1], max_new_tokens=20, eos_token_id=end)
    assert alone.shape == (1, 9 + first)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_cache_gives_the_same_tokens_for_less_work(config: ModelConfig) -> None:
    model, (ids, mask) = seeded(config), prompts()
    flops, tokens = {}, {}
    cache = KVCache(config, 4, 8 + 12)
    for name, options in (("cached", {"cache": cache}), ("anew", {"use_cache": False})):
        with FlopCounterMode(display=False) as counter:
            tokens[name] = model.generate(ids, mask, max_new_tokens=12, **options)
        flops[name] = counter.get_total_flops()
    assert torch.equal(tokens["cached"], tokens["anew"])
    assert cache.length == 8 + 11
    assert cache.reads == config.num_layers * sum(range(8, 8 + 11))
    # 12 passes over 8 to 19 tokens against one over 8 and 11 over one
    assert flops["anew"] > 4 * flops["cached"] > 0


def test_a_cache_of_its_own_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def kept(*args, **options) -> KVCache:
        made.append(KVCache(*args, **options))
        return made[-1]

    monkeypatch.setattr("labkit.nn.generate.KVCache", kept)
    ids, mask = prompts()
    seeded(GQA).generate(ids, mask, max_new_tokens=5)
    assert len(made) == 1
    assert made[0].reads == 2 * (8 + 9 + 10 + 11)
    seeded(GQA).generate(ids, mask, max_new_tokens=5, use_cache=False)
    assert len(made) == 1


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model, (ids, mask) = seeded(GQA), prompts()
    together = model.generate(ids, mask, max_new_tokens=10)
    for row in range(4):
        alone = model.generate(ids[row : row + 1, mask[row] == 1], max_new_tokens=10)
        assert torch.equal(alone[0, -10:], together[row, -10:])


FILTERS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.3, 7, 0.6), (0.5, 40, 0.95), (2.0, 99, 1e-6)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
def test_filtered_distributions_equal_transformers(both, temperature: float, top_k: int, top_p: float) -> None:
    _, wanted = both
    logits = 3 * torch.randn(16, 50, generator=torch.Generator().manual_seed(3))
    logits[0] = logits[0].round()  # ties
    options = GenerationConfig(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, num_beams=1)
    processors = wanted._get_logits_processor(options, input_ids_seq_length=1, logits_processor=LogitsProcessorList())
    target = processors(torch.zeros(16, 1, dtype=torch.int64), logits.clone())
    assert torch.equal(filtered(logits, Sampling(True, temperature, top_k, top_p)), target)


def test_filters_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()

    def left(**options) -> list[int]:
        return filtered(logits, Sampling(True, **options)).isfinite()[0].nonzero()[:, 0].tolist()

    assert left(top_k=2) == [0, 1]
    assert left(top_k=99) == [0, 1, 2, 3]
    assert left(top_p=0.01) == [0]
    assert left(top_p=0.6) == [0, 1]
    assert left(top_p=0.8) == [0, 1, 2]
    assert left(temperature=0.3, top_p=0.8) == [0]  # a cold distribution needs fewer tokens
    assert left(top_k=2, top_p=0.7) == [0, 1]  # after top-k, the two have 0.67 and 0.33
    assert left(top_k=2, top_p=0.6) == [0]
    even = filtered(torch.zeros(1, 4), Sampling(True, top_p=0.5))
    assert even.isfinite().sum() == 2  # two of four reach the half exactly


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20_000, 4)
    tokens = choose(logits, Sampling(True, top_k=3), torch.Generator().manual_seed(0))
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.15, 0.0]) / 0.9, atol=0.015, rtol=0)


def test_sampling_is_seeded() -> None:
    model, (ids, mask) = seeded(GQA), prompts()
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.9}

    def draw(seed: int, **more) -> torch.Tensor:
        return model.generate(ids, mask, generator=torch.Generator().manual_seed(seed), **options, **more)

    assert torch.equal(draw(0), draw(0))
    assert torch.equal(draw(0), draw(0, use_cache=False))
    assert not torch.equal(draw(0), draw(1))
    state = torch.get_rng_state()
    draw(0)
    assert torch.equal(state, torch.get_rng_state())


def test_one_candidate_is_greedy() -> None:
    model, (ids, mask) = seeded(GQA), prompts()
    greedy = model.generate(ids, mask, max_new_tokens=6)
    assert torch.equal(model.generate(ids, mask, max_new_tokens=6, do_sample=True, top_k=1), greedy)
    assert torch.equal(model.generate(ids, mask, max_new_tokens=6, do_sample=True, top_p=1e-9), greedy)


def test_it_stops_when_all_rows_have_ended() -> None:
    model, ids = seeded(GQA), torch.tensor([[5, 6], [5, 6]])
    first = int(model.generate(ids, max_new_tokens=1)[0, -1])
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = model.generate(ids, max_new_tokens=30, eos_token_id=first, pad_token_id=PAD)
    assert tokens.tolist() == [[5, 6, first]] * 2
    assert len(calls) == 1


def test_padding_after_the_end_is_the_end_token_by_default() -> None:
    model, (ids, mask) = seeded(GQA), prompts()
    free = model.generate(ids, mask, max_new_tokens=6)
    end = int(free[0, 8])
    tokens = model.generate(ids, mask, max_new_tokens=6, eos_token_id=end)
    assert tokens[0, 8:].tolist() == [end] * (tokens.shape[1] - 8)


def test_the_model_is_as_it_was() -> None:
    model, graphs = seeded(GQA).train(), []
    model.register_forward_hook(lambda module, given, output: graphs.append(output.logits.grad_fn))
    generate(model, prompts()[0], prompts()[1], max_new_tokens=3)
    assert model.training
    assert graphs == [None] * 3
    with pytest.raises(ValueError, match="outside the vocabulary"):
        generate(model, torch.tensor([[50]]), max_new_tokens=3)
    assert model.training


def test_nothing_is_drawn_while_training_but_the_tokens() -> None:
    model, (ids, mask) = seeded(GQA.replace(moe=MOE.replace(noise_std=5.0))), prompts()
    wanted = model.generate(ids, mask, max_new_tokens=8)
    assert torch.equal(model.train().generate(ids, mask, max_new_tokens=8), wanted)


def test_up_to_the_last_position() -> None:
    model, ids = seeded(GQA), torch.ones(1, 60, dtype=torch.int64)
    assert model.generate(ids, max_new_tokens=4).shape == (1, 64)
    with pytest.raises(ValueError, match=r"60 tokens of prompt and 5 new ones are 65; the model was made for 64"):
        model.generate(ids, max_new_tokens=5)


def test_bfloat16_generates() -> None:
    model, (ids, mask) = seeded(GQA).bfloat16(), prompts()
    tokens = model.generate(ids, mask, max_new_tokens=4, do_sample=True, top_p=0.9)
    assert tokens.shape == (4, 12)
    assert tokens.dtype == torch.int64


RIGHT = torch.tensor([[1, 1, 1], [1, 1, 0]])
EMPTY = torch.tensor([[1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give a whole number of 1 or more"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0; give a positive number, or do_sample=False"),
        ({"do_sample": True, "temperature": -1.0}, "temperature is -1.0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan"),
        ({"do_sample": True, "top_p": 0.0}, "top_p is 0.0; give a number above 0"),
        ({"do_sample": True, "top_p": 1.1}, "top_p is 1.1"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1"),
        ({"do_sample": True, "top_k": 2.0}, "top_k is 2.0"),
        ({"temperature": 0.5}, "set do_sample=True"),
        ({"top_k": 5}, "set do_sample=True"),
        ({"top_p": 0.5}, "set do_sample=True"),
        ({"eos_token_id": 50}, "eos_token_id is 50; give one token id below 50"),
        ({"eos_token_id": [7]}, r"eos_token_id is \[7\]"),
        ({"eos_token_id": 7, "pad_token_id": -100}, "pad_token_id is -100"),
        ({"attention_mask": RIGHT}, r"row 1 ends with padding.*pad on the left"),
        ({"attention_mask": EMPTY}, r"row 1 ends with padding.*leave empty prompts out"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask has shape \(2, 4\); expected \(2, 3\)"),
        ({"ids_BS": torch.zeros(2, 0, dtype=torch.int64)}, r"shape \(2, 0\).*give prompts"),
        ({"ids_BS": torch.zeros(3, dtype=torch.int64)}, r"shape \(3,\).*give prompts"),
        ({"ids_BS": torch.zeros(2, 3)}, r"dtype torch.float32; give prompts"),
        ({"use_cache": False, "cache": KVCache(GQA, 2, 9)}, "leave one of them out"),
        ({"cache": KVCache(GQA, 2, 3)}, "the cache holds 3 positions"),
    ],
)
def test_bad_arguments(options: dict, says: str) -> None:
    given = {"ids_BS": torch.ones(2, 3, dtype=torch.int64), "max_new_tokens": 4, **options}
    with pytest.raises(ValueError, match=says):
        seeded(GQA).generate(**given)


def test_a_used_cache_is_refused() -> None:
    model, cache = seeded(GQA), KVCache(GQA, 2, 16)
    ids = torch.ones(2, 3, dtype=torch.int64)
    model.generate(ids, max_new_tokens=3, cache=cache)
    with pytest.raises(ValueError, match="the cache holds 5 positions already; give an empty one"):
        model.generate(ids, max_new_tokens=3, cache=cache)
