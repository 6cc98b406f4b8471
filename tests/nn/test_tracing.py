"""A trace is what the experts were really given, in every family, and the model never notices."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import FAMILIES, V, batch, build, dense, experts, given_to, routers, seeded
from torch import nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn import Labelled, MoE, WindowModel, trace
from labkit.nn.fixed import FrozenRouter, HashRouter, RandomRouter, StaticRouter
from labkit.train import data

MOE = MoEConfig(d_model=24, d_expert=12, num_experts=6, top_k=2)
every_family = pytest.mark.parametrize("family", FAMILIES)
RIGHT = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7])
LEFT = RIGHT.flip(1)


def window(layer=MoE, **fields) -> WindowModel:
    torch.manual_seed(0)
    return WindowModel(MOE, **{"num_layers": 2, "window": 4, "d_embed": 8, "layer": layer, **fields}).eval()


def same(a: Routing, b: Routing, *, tolerance: float = 1e-5) -> None:
    """The same record: choices and labels exactly, values within a tolerance."""
    torch.testing.assert_close(a.logits_TE, b.logits_TE, atol=tolerance, rtol=tolerance)
    E = a.num_experts
    torch.testing.assert_close(
        dense(a.topk_ids_TK, a.topk_scores_TK, E), dense(b.topk_ids_TK, b.topk_scores_TK, E), atol=tolerance, rtol=0
    )
    torch.testing.assert_close(a.loss_T, b.loss_T, equal_nan=True, atol=tolerance, rtol=tolerance)
    assert (a.layer, a.tokens, a.domains) == (b.layer, b.tokens, b.domains)
    assert torch.equal(a.sequence_T, b.sequence_T)


@every_family
def test_ids_and_scores_are_what_the_experts_were_given(family):
    model, text = build(family), batch()
    records = trace(model, text, batch_size=3)
    given = given_to(experts(model), lambda: model(text.ids_BS))
    assert len(given) == len(records)
    for r, (_, ids_TK, scores_TK) in zip(records, given, strict=True):
        torch.testing.assert_close(dense(r.topk_ids_TK, r.topk_scores_TK), dense(ids_TK, scores_TK), atol=1e-6, rtol=0)
        assert (r.topk_scores_TK[:, :-1] >= r.topk_scores_TK[:, 1:]).all()  # best first
        assert (r.tokens_per_expert_E > 0).sum() >= 4  # the test would see a wrong order of experts


@every_family
def test_logits_are_the_linear_layer_of_what_the_router_was_given(family):
    model, text = build(family), batch()
    deciding = routers(model)
    given = given_to(deciding, lambda: model(text.ids_BS))
    records = trace(model, text)
    assert [r.layer for r in records] == FAMILIES[family][2]
    for r, router, (x, *_) in zip(records, deciding, given, strict=True):
        weight_ED = next(p for p in router.parameters() if p.ndim == 2 and len(p) == r.num_experts)
        bias_E = getattr(router, "bias", None)
        expected_TE = x.flatten(0, -2).double() @ weight_ED.double().T
        expected_TE = expected_TE if bias_E is None else expected_TE + bias_E.double()
        torch.testing.assert_close(r.logits_TE.double(), expected_TE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "gpt_oss", "phimoe"])
def test_logits_are_those_that_the_model_itself_reports(family):
    model, text = build(family), batch()
    with torch.no_grad():
        reported = model(text.ids_BS, output_router_logits=True).router_logits
    for r, logits_TE in zip(trace(model, text), reported, strict=True):
        torch.testing.assert_close(r.logits_TE, logits_TE.view(r.logits_TE.shape), atol=1e-5, rtol=1e-5)


@every_family
@pytest.mark.parametrize("mask_BS", [RIGHT, LEFT], ids=["right", "left"])
def test_a_padded_sequence_is_traced_as_if_it_were_alone(family, mask_BS):
    model, text = build(family), batch(mask_BS=mask_BS)
    padded = trace(model, text)
    assert all(r.num_tokens == int(mask_BS.sum()) for r in padded)
    for row, domain in enumerate(text.domains):
        alone = trace(model, Labelled(text.ids_BS[row : row + 1, mask_BS[row].bool()], (domain,)))
        for r, one in zip(padded, alone, strict=True):
            part = r.keep(r.sequence_T == row)
            same(Routing.of(part.logits_TE, part.topk_ids_TK, part.topk_scores_TK, layer=part.layer,
                            domains=part.domains, sequence_T=part.sequence_T - row, loss_T=part.loss_T), one,
                 tolerance=1e-4)  # fmt: skip


@every_family
def test_mini_batches_give_the_same_as_one_batch(family):
    model, text = build(family), batch(B=5, mask_BS=torch.cat([RIGHT, LEFT[1:]]))
    whole, parts = trace(model, text, batch_size=5), trace(model, text, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        same(a, b, tolerance=1e-4)


@every_family
def test_the_loss_is_the_cross_entropy_of_the_next_token(family):
    model, text = build(family), batch()
    (first, *others) = trace(model, text)
    with torch.no_grad():
        log_BSV = model(text.ids_BS).logits.double().log_softmax(-1)
    losses_BS = first.loss_T.view(text.ids_BS.shape)
    assert losses_BS[:, -1].isnan().all()
    expected_BS = -log_BSV[:, :-1].gather(2, text.ids_BS[:, 1:, None])[..., 0]
    torch.testing.assert_close(losses_BS[:, :-1].double(), expected_BS, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(r.loss_T.nan_to_num(), first.loss_T.nan_to_num()) for r in others)
    assert first.sequence_T.tolist() == [0] * 9 + [1] * 9 + [2] * 9


class Stop(Exception):
    pass


def _state(model) -> tuple:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    counts = [(name, kind, len(getattr(m, kind))) for name, m in model.named_modules() for kind in hooks]
    return counts, {name: m.training for name, m in model.named_modules()}


@pytest.mark.parametrize("ablate", [(), (1, 2)], ids=["whole", "ablated"])
@pytest.mark.parametrize("breaks", ["nowhere", "in the last layer", "in a router"])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_the_model_is_as_before(family, breaks, ablate):
    model = build(family, attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    broken = {"nowhere": None, "in the last layer": model.model.layers[-1].mlp, "in a router": routers(model)[0]}[
        breaks
    ]
    if broken is not None:
        handle = broken.register_forward_hook(lambda *_: (_ for _ in ()).throw(Stop))
    weights, before = copy.deepcopy(model.state_dict()), _state(model)
    random_state, python_state = torch.get_rng_state(), random.getstate()
    grad_before = torch.is_grad_enabled()
    if broken is None:
        assert not any(v.requires_grad for r in trace(model, batch(), ablate=ablate) for v in (r.logits_TE, r.loss_T))
    else:
        with pytest.raises(Stop):
            trace(model, batch(), ablate=ablate)
    assert _state(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert random.getstate() == python_state
    assert torch.is_grad_enabled() == grad_before
    assert all(torch.equal(now, weights[name]) for name, now in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert F.linear(torch.ones(1, 2), torch.ones(8, 2)).isfinite().all()  # nothing is still taken out
    if broken is not None:
        handle.remove()
        same(trace(model, batch())[0], trace(build(family), batch())[0])


def test_training_noise_and_dropout_are_off():
    model = build("qwen3_moe", attention_dropout=0.5)
    expected = trace(model, batch())
    for a, b in zip(trace(model.train(), batch()), expected, strict=True):
        same(a, b)


def test_bfloat16():
    model = build("qwen3_moe").bfloat16()
    text = batch()
    given = given_to(experts(model), lambda: model(text.ids_BS))
    for r, (_, ids_TK, scores_TK) in zip(trace(model, text), given, strict=True):
        assert {r.logits_TE.dtype, r.topk_scores_TK.dtype, r.loss_T.dtype} == {torch.float32}
        assert torch.equal(dense(r.topk_ids_TK, r.topk_scores_TK), dense(ids_TK, scores_TK))


def test_float64_stays():
    assert trace(window().double(), batch())[0].logits_TE.dtype == torch.float64


@pytest.mark.parametrize(
    "layer",
    [
        MoE,
        lambda c: MoE(c, router=HashRouter(c, 256)),
        lambda c: MoE(c, router=FrozenRouter(c)),
        lambda c: MoE(c, router=StaticRouter(c)),
    ],
    ids=["learned", "hash", "frozen", "static"],
)
def test_our_own_model_is_traced_as_it_reports_itself(layer):
    model = window(layer)
    text = data.sample(data.corpus(bytes_per_domain=8192), num_sequences=6, sequence_length=12)
    records = trace(model, text, batch_size=6)
    with torch.no_grad():
        logits_BSV, expected = model(text.ids_BS, return_routing=True)
    assert [r.layer for r in records] == [0, 1]
    loss_BS = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), text.ids_BS[:, 1:].flatten(), reduction="none")
    for r, e in zip(records, expected, strict=True):
        assert torch.equal(r.logits_TE, e.logits_TE)
        assert torch.equal(dense(r.topk_ids_TK, r.topk_scores_TK, 6), dense(e.topk_ids_TK, e.topk_scores_TK, 6))
        assert (r.tokens, r.domains) == (text.tokens, text.token_domains)
        torch.testing.assert_close(r.loss_T.view(6, 12)[:, :-1].flatten(), loss_BS)


def test_a_random_router_is_read_where_it_runs():
    model = window(lambda c: MoE(c, router=RandomRouter(c)))
    given = []
    for layer in model.modules():
        if type(layer).__name__ == "Experts":
            layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    records = trace(model, batch())
    for r, seen in zip(records, given[2:], strict=True):  # the first two are of the one token that looks for routers
        assert torch.equal(dense(r.topk_ids_TK, r.topk_scores_TK, 6), dense(seen.topk_ids_TK, seen.topk_scores_TK, 6))


def test_a_model_that_draws_goes_on_where_it_was():
    model = window(lambda c: MoE(c, router=RandomRouter(c)))
    model.head.register_forward_pre_hook(lambda module, given: (torch.rand(3), None)[1])
    (own, *_) = [m.draws for m in model.modules() if isinstance(m, RandomRouter)]
    before = torch.get_rng_state(), own.get_state()
    first, again = trace(model, batch()), trace(model, batch())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(own.get_state(), before[1])
    assert torch.equal(first[0].topk_ids_TK, again[0].topk_ids_TK)


def test_our_model_has_a_vocabulary_too():
    with pytest.raises(ValueError, match="token id 256 is outside the model's vocabulary of 256"):
        trace(window(), torch.tensor([[255, 256]]))


def test_our_model_takes_padding_on_the_right_only():
    model, text = window(), batch(mask_BS=RIGHT)
    padded = trace(model, text)[1]
    alone = trace(model, Labelled(text.ids_BS[1:2, :6], ("b",)))[1]
    torch.testing.assert_close(padded.keep(padded.sequence_T == 1).logits_TE, alone.logits_TE)
    with pytest.raises(ValueError, match="pad on the right"):
        trace(model, batch(mask_BS=LEFT))


def _config(name: str, **fields):
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return getattr(transformers, name)(**{**sizes, "vocab_size": V, "bos_token_id": 0, "eos_token_id": 1, **fields})


def test_a_model_without_routers_says_what_was_looked_for():
    llama = seeded(transformers.AutoModelForCausalLM.from_config(_config("LlamaConfig")))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no router.*router or …gate.*no module has such a name"):
        trace(llama, batch())


class Strange(nn.Module):
    """Routers of other kinds: a bare linear layer, and one that answers scores of all experts and logits."""

    class AnswersAPair(nn.Linear):
        def forward(self, x):
            logits = super().forward(x.flatten(0, 1))
            values, ids = logits.topk(2)
            return torch.zeros_like(logits).scatter(1, ids, values), logits

    def __init__(self):
        super().__init__()
        self.embed, self.gate, self.router = nn.Embedding(V, 8), nn.Linear(8, 4), self.AnswersAPair(8, 4)

    def forward(self, ids):
        x = self.embed(ids)
        self.gate(x), self.router(x)
        return x


def test_routers_of_another_kind_are_named():
    with pytest.raises(ValueError, match=r"something else: gate \(Linear\); router \(AnswersAPair\)"):
        trace(Strange(), batch())


@pytest.mark.parametrize("name", ["T5Config", "SwitchTransformersConfig"])
def test_an_encoder_and_decoder_is_refused(name):
    config = getattr(transformers, name)(d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=V)
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        trace(transformers.AutoModelForSeq2SeqLM.from_config(config), batch())


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        (Labelled(torch.tensor([[3, V]])), {}, f"token id {V} is outside"),
        (Labelled(torch.tensor([[3, -1]])), {}, "token id -1 is outside"),
        (Labelled(torch.full((1, 33), 3)), {}, "33 tokens, the model takes 32"),
        (batch(), {"batch_size": 0}, "batch_size is 0"),
        (batch(), {"batch_size": True}, "batch_size is True"),
        (batch(), {"batch_size": 2.0}, "batch_size is 2.0"),
        ({"a": ["text"]}, {}, "no tokenizer"),
        (torch.zeros(2, 3), {}, "give whole numbers"),
        (torch.zeros(3, dtype=torch.int64), {}, "give whole numbers"),
        (17, {}, "cannot read int"),
    ],
)
def test_bad_input(given, options, says):
    with pytest.raises(ValueError, match=says):
        trace(build("mixtral"), given, **options)


@pytest.mark.parametrize("model", ["allenai/OLMoE-1B-7B-0924", None, MOE])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(ValueError, match="give the model itself"):
        trace(model, batch())


def test_ids_under_padding_do_not_matter():
    model, text = build("deepseek_v4"), batch(mask_BS=RIGHT)
    ids_BS = text.ids_BS.clone()
    ids_BS[~text.mask_BS] = -100
    with pytest.raises(IndexError):
        model(ids_BS)
    for a, b in zip(trace(model, Labelled(ids_BS, text.domains, RIGHT)), trace(model, text), strict=True):
        same(a, b)
