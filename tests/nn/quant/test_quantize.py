"""Whole models: every family's experts shrink, outputs are those of the weights made whole, and refusals speak."""

import copy

import pytest
import tiny_models
import torch
from small import MLA, ids, ours, whole

import labkit
from labkit.nn import quantize
from labkit.nn.quant import SCHEMES
from labkit.nn.quant.experts import QuantExperts
from labkit.nn.quant.modules import held_of
from labkit.nn.quant.rooms import sizes

PACKED = [name for name, scheme in SCHEMES.items() if scheme.dtype is None]
WEIGHTS_ONLY = [name for name in PACKED if name not in ("llm_int8", "w8a8", "fp8_block")]
KEEP = {
    "deepseek_v4": ("*o_a_proj", "*_hc.fn"),  # a grouped layer of its own, and streams that are mixed
    "jamba": ("*A_log",),
}
EVERYTHING = ("embedding", "attention", "experts", "shared experts", "feed-forward", "head")


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def logits(model, of=None):
    return model(ids() if of is None else of).logits


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_of_transformers(family):
    """Biases, interleaved and transposed experts (GPT-OSS) too; experts are 4 bytes a weight before."""
    model = tiny_models.build(family)
    batch, packed = tiny_models.batch().ids_BS, copy.deepcopy(model)
    report = quantize(packed, "int8", keep=KEEP.get(family, ()))
    before, after = report.rooms["experts"]
    assert after < 0.32 * before
    experts = [module for module in packed.modules() if isinstance(module, QuantExperts)]
    there = [t for module in experts for t in (*module.parameters(), *module.buffers())]
    assert after == sum(tensor.untyped_storage().nbytes() for tensor in there)
    assert len(experts) == len(tiny_models.FAMILIES[family][2])
    assert difference(logits(packed, batch), logits(whole(model, packed), batch)) < 1e-5
    assert logits(packed, batch).isfinite().all()


@pytest.mark.parametrize("scheme", PACKED)
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_every_scheme_on_transformers(family, scheme):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
    model = tiny_models.build(family, **(sizes if family != "gpt_oss" else {**sizes, "sliding_window": 8}))
    batch, packed = tiny_models.batch().ids_BS, copy.deepcopy(model)
    quantize(packed, scheme)
    limit = 1e-5 if scheme in WEIGHTS_ONLY else 0.5  # random routers: a token may change its expert
    assert difference(logits(packed, batch), logits(whole(model, packed), batch)) < limit


@pytest.mark.parametrize("scheme", PACKED)
@pytest.mark.parametrize("kind", ["plain", "mla", "gpt_oss"])
def test_every_scheme_on_ours(kind, scheme):
    changes = {
        "plain": {},
        "mla": MLA,
        "gpt_oss": {
            "moe": {"expert_bias": True, "activation": "clamped_swiglu", "num_shared_experts": 0},
            "num_dense_layers": 0,
        },
    }[kind]  # fmt: skip
    model = ours(**changes)
    packed = copy.deepcopy(model)
    report = quantize(packed, scheme)
    limit = 1e-5 if scheme in WEIGHTS_ONLY else 0.2
    assert difference(logits(packed), logits(whole(model, packed))) < limit
    bytes_a_weight = {"nf4": 0.6, "nf4_double": 0.56}.get(scheme, 1.13)
    for room in ("attention", "experts"):
        before, after = report.rooms[room]
        slack = 4096 if kind == "gpt_oss" else 100  # biases stay
        assert after <= bytes_a_weight / 4 * before + slack, room


def test_a_cache_works_over_packed_latent_attention():
    """Its absorbed form reads `kv_up.weight` without calling the layer."""
    model = ours(**MLA)
    quantize(model, "int8")
    out = model.generate(ids(), max_new_tokens=4)
    again = ids()
    for _ in range(4):
        again = torch.cat([again, logits(model, again)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, again)


def test_the_report_tells_every_byte():
    model = ours()
    before = sum(sizes(model).values())
    report = quantize(model, "int8")
    assert report.before == before
    assert report.after == sum(sizes(model).values())
    assert sum(after for _, after in report.rooms.values()) == report.after
    packed = sum(held.packed.nbytes for held in held_of(model).values())
    assert sum(change.after for change in report.changes if change.scheme) == packed
    unpacked = [c for c in report.changes if not c.scheme and c.after]
    assert all(c.before == c.after for c in unpacked)
    assert set(report.rooms) == {
        "embedding", "attention", "router", "experts", "shared experts", "feed-forward", "norms", "head",
    }  # fmt: skip
    told = repr(report)
    assert "experts" in told
    assert "as it was" in told
    assert "<td" in report._repr_html_()
    assert len(report.table) == len(report.rooms) + 2
    assert {kept.name for kept in report.kept} >= {"embed.weight", "norm.weight", "head.weight"}


def test_what_stays_inside_a_packed_room_is_named():
    report = quantize(tiny_models.build("gpt_oss"), "int8", keep=["*layers.0.self_attn"])
    text = "\n".join(report.lines)
    assert "stayed, a bias: model.layers.0.mlp.experts.gate_up_proj_bias" in text
    assert "stayed, asked for: model.layers.0.self_attn" in text
    assert text in repr(report)


def test_calls_add_up():
    model = ours()
    first = quantize(model, "nf4", rooms="experts")
    second = quantize(model, "int8")
    assert second.rooms["experts"] == (first.rooms["experts"][1],) * 2
    assert second.rooms["attention"][1] < 0.3 * second.rooms["attention"][0]
    assert {held.format.__name__ for held in held_of(model).values()} == {"NF4", "Int8"}
    with pytest.raises(ValueError, match="nothing to pack in experts: it is quantised already"):
        quantize(model, "int8", rooms="experts")


@pytest.mark.parametrize("scheme", PACKED)
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head(scheme, tied):
    model = ours(tie_embeddings=tied)
    packed = copy.deepcopy(model)
    report = quantize(packed, scheme, rooms=EVERYTHING)
    assert report.rooms["embedding"][1] < 0.4 * report.rooms["embedding"][0]
    assert ("head" in report.rooms) == (not tied)
    limit = 1e-5 if scheme in WEIGHTS_ONLY else 0.2
    assert difference(logits(packed), logits(whole(model, packed))) < limit
    if tied:
        assert packed.embed.held is packed.head.held


def test_tied_tensors_go_together():
    with pytest.raises(ValueError, match=r"shares its memory with embed.weight; choose the rooms of both"):
        quantize(ours(tie_embeddings=True), "int8", rooms="head")


@pytest.mark.parametrize(("scheme", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_casting(scheme, dtype):
    model = ours(moe={"selection_bias": True})
    want = logits(model)
    report = quantize(model, scheme)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.layers[1].ffn.router.expert_bias_E.dtype == torch.float32
    assert report.rooms["experts"][1] * 2 == report.rooms["experts"][0]
    assert difference(logits(model).float(), want) < 0.05
    with pytest.raises(ValueError, match="casts the whole model"):
        quantize(model, scheme, rooms="experts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scheme": "int4"}, "scheme is 'int4'; choose one of int8, int8_tensor"),
        ({"rooms": "expert"}, "rooms has 'expert'; choose from embedding"),
        ({"keep": ["*layers.7*"]}, "keep has '\\*layers.7\\*', which matches no parameter"),
        ({"scheme": "int8", "block": 32}, "scheme 'int8' has no option 'block'; it has none"),
        ({"scheme": "nf4", "group": 32}, "scheme 'nf4' has no option 'group'; it has block"),
        ({"scheme": "int8_group", "group": 1}, "would not shrink: .* choose larger blocks"),
        ({"rooms": "router"}, "cannot be: layers.1.ffn.router.weight_ED: a matrix"),
    ],
)
def test_refusals_change_nothing(arguments, words):
    model = ours()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        quantize(model, **arguments)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad):
    model = ours()
    model.layers[1].ffn.experts.down_EDF.data[2, 3, 4] = bad
    with pytest.raises(ValueError, match=r"layers.1.ffn.experts.down_EDF holds NaN or infinite values"):
        quantize(model, "nf4")
    assert not held_of(model)


def test_without_values_or_place():
    with torch.device("meta"):
        model = labkit.nn.Transformer(ours().config)
    with pytest.raises(ValueError, match="has no values"):
        quantize(model, "int8")
    with pytest.raises(ValueError, match="give a module that holds it"):
        quantize(torch.nn.Linear(64, 64), "int8", rooms="other")
    with pytest.raises(ValueError, match="Sequential has nothing to pack"):
        quantize(torch.nn.Sequential(torch.nn.ReLU()), "int8")


def test_experts_that_are_called_otherwise_are_refused():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.Module()
            self.experts.gate_up_proj = torch.nn.Parameter(torch.ones(2, 4, 8))
            self.experts.down_proj = torch.nn.Parameter(torch.ones(2, 4, 4))

    with pytest.raises(ValueError, match="Module is called otherwise than with tokens, ids and scores"):
        quantize(Odd(), "int8")


def test_experts_with_a_norm_behind_them_are_refused():
    model = tiny_models.build("qwen3_moe")
    model.model.layers[1].mlp.experts.has_post_expert_norm = True
    with pytest.raises(ValueError, match=r"layers.1.mlp.experts: Qwen3MoeExperts normalises what its experts give"):
        quantize(model, "int8")


@pytest.mark.parametrize("scheme", PACKED)
def test_formats_stay_when_the_model_is_cast(scheme):
    model = ours()
    quantize(model, scheme, rooms=EVERYTHING)
    formats = {name: tensor.dtype for name, tensor in model.named_buffers() if "held" in name or ".up." in name}
    want = logits(model)
    model.bfloat16()
    assert {name: model.get_buffer(name).dtype for name in formats} == formats
    got = logits(model)
    assert got.dtype == torch.bfloat16
    assert difference(got.float(), want) < 0.3


def test_gradients_pass_through_and_reach_what_is_plain():
    model = ours()
    quantize(model, "nf4")
    model(ids(), labels=ids()).loss.backward()
    assert model.embed.weight.grad.abs().sum() > 0
    assert model.layers[0].norm_ffn.weight.grad.isfinite().all()


def test_no_tokens_and_one_token():
    model = ours()
    quantize(model, "w8a8")
    experts = model.layers[1].ffn.experts
    none = torch.zeros(0, 2)
    assert experts(torch.zeros(0, 64), (none.long(), none)).shape == (0, 64)
    assert logits(model, ids(1, 1)).shape == (1, 1, 64)


@pytest.mark.parametrize("scheme", PACKED)
def test_experts_add_up_token_by_token(scheme):
    """A scale belongs to a token, so company changes nothing; LLM.int8's columns of outliers belong to a batch."""
    model = ours()
    plain = copy.deepcopy(model.layers[1].ffn.experts)
    quantize(model, scheme)
    experts, draw = model.layers[1].ffn.experts, torch.Generator().manual_seed(3)
    x_TD, scores_TK = torch.randn(7, 64, generator=draw), torch.rand(7, 2, generator=draw)
    ids_TK = torch.rand(7, 4, generator=draw).argsort(1)[:, :2]
    got = experts(x_TD, ids_TK, scores_TK)
    one_by_one = [
        sum(score * experts.expert(x[None], expert)[0] for expert, score in zip(row, scores, strict=True))
        for x, row, scores in zip(x_TD, ids_TK.tolist(), scores_TK, strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(one_by_one), atol=1e-5, rtol=1e-4)
    assert torch.equal(got, experts(x_TD, (ids_TK, scores_TK)))
    assert torch.equal(got, experts(x_TD, top_k_index=ids_TK, top_k_weights=scores_TK))
    assert difference(got, plain(x_TD, (ids_TK, scores_TK))) < (0.2 if "nf4" in scheme else 0.08)


def test_experts_say_what_they_were_not_given():
    model = ours()
    quantize(model, "int8")
    with pytest.raises(ValueError, match="give a Routing, or ids and scores"):
        model.layers[1].ffn.experts(torch.zeros(1, 64), torch.zeros(1, 2))


def test_memory_that_two_tensors_share_counts_once():
    memory, model = torch.ones(8, 4), torch.nn.Module()
    model.a, model.b = torch.nn.Parameter(memory[:4]), torch.nn.Parameter(memory[4:])
    assert sizes(model) == {"a": 128, "b": 0}
