"""The whole model: counts equal the formulas, errors speak, what comes out fits, and MTP equals transformers'."""

from pathlib import Path

import pytest
import torch

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig
from labkit.core.cost import model_params
from labkit.nn import SwiGLU, Transformer, trace
from labkit.nn.model import next_token_loss

MOE = MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2)
GQA = ModelConfig("gqa", 40, 3, 16, num_heads=4, num_kv_heads=2, head_dim=6, moe=MOE)
MLA = GQA.replace(
    name="mla", num_kv_heads=4, head_dim=8, attention="mla", mla_q_rank=6, mla_kv_rank=5, mla_nope_dim=4,
    mla_rope_dim=4, mla_v_dim=3, num_dense_layers=1, d_dense=20, rope_interleaved=True,
    moe=MOE.replace(num_shared_experts=1, score_fn="sigmoid", selection_bias=True),
)  # fmt: skip
OSS = GQA.replace(
    name="oss", attention_bias=True, attention_sinks=True, sliding_window=3, full_attention_every=2,
    yarn=YarnConfig(8.0, 32, truncate=False),
    moe=MOE.replace(score_fn="topk_softmax", router_bias=True, expert_bias=True, activation="clamped_swiglu"),
)  # fmt: skip
CONFIGS = [GQA, GQA.replace(tie_embeddings=True, qk_norm="head"), GQA.replace(qk_norm="full"), MLA, OSS]


def ids(B: int = 2, S: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randint(40, (B, S), generator=torch.Generator().manual_seed(seed))


def seeded(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.qk_norm}")
def test_parameters_equal_the_formula(config: ModelConfig) -> None:
    model, counted = Transformer(config), model_params(config)
    assert sum(p.numel() for p in model.parameters()) == counted.total
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    attention = sum(p.numel() for name, p in model.named_parameters() if ".attention." in name)
    assert (routed, attention) == (counted.routed_experts, counted.attention)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.qk_norm}")
def test_forward_and_backward(config: ModelConfig) -> None:
    model = seeded(config)
    output = model(ids(), labels=ids(), return_routing=True)
    assert output.logits.shape == (2, 7, 40)
    assert [record.layer for record in output.routing] == list(config.sparse_layers)
    torch.testing.assert_close(output.loss, next_token_loss(output.logits, ids()))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model(ids()).routing is None


def test_the_first_layers_are_dense() -> None:
    kinds = [isinstance(block.ffn, SwiGLU) for block in Transformer(MLA).layers]
    assert kinds == [True, False, False]


def test_a_model_without_sparse_layers() -> None:
    config = GQA.replace(moe=None, num_dense_layers=3, d_dense=20)
    output = seeded(config)(ids(), return_routing=True)
    assert output.routing == ()
    assert sum(p.numel() for p in Transformer(config).parameters()) == model_params(config).total


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.qk_norm}")
def test_a_token_never_sees_what_follows(config: ModelConfig) -> None:
    model, changed = seeded(config), ids()
    changed[:, 4] = (changed[:, 4] + 1) % 40
    before, after = model(ids()).logits, model(changed).logits
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", [GQA, MLA, OSS], ids=lambda c: c.name)
def test_padding_changes_nothing(config: ModelConfig, side: str) -> None:
    model, alone = seeded(config), ids(1, 5)
    pads = torch.zeros(1, 3, dtype=torch.int64)
    parts = [pads, alone] if side == "left" else [alone, pads]
    mask = torch.cat([part * 0 + (part is alone) for part in parts], dim=1)
    padded = model(torch.cat(parts, dim=1), mask).logits
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[mask.bool()], model(alone).logits[0], rtol=1e-4, atol=1e-5)


def test_labels_of_minus_100_are_left_out() -> None:
    model, labels = seeded(GQA), ids()
    labels[0, 3:] = -100
    logits = model(ids()).logits
    kept = [(0, i) for i in range(2)] + [(1, i) for i in range(6)]
    losses = [torch.nn.functional.cross_entropy(logits[b, i], ids()[b, i + 1]) for b, i in kept]
    torch.testing.assert_close(model(ids(), labels=labels).loss, torch.stack(losses).mean())


def test_multi_token_modules_equal_transformers(tmp_path: Path) -> None:
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this transformers has no multi-token modules")
    from transformers import AutoModelForCausalLM

    config = MLA.replace(num_mtp_layers=2, moe=MLA.moe.replace(group_score="top2_sum"))
    model = seeded(config)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[34]\."]  # they name layer 61, DeepSeek-V3's own
    mtp = layers.MtpModel.from_pretrained(theirs).eval()
    ours = model(ids(), return_mtp=True)
    torch.testing.assert_close(theirs(ids()).logits, ours.logits, rtol=1e-4, atol=1e-5)
    hidden = ours.hidden
    for depth in (1, 2):
        S = 7 - depth
        embedded = theirs.get_input_embeddings()(ids()[:, depth:])
        tables = mtp.rotary_emb(embedded, torch.arange(S)[None])
        mask = torch.full((S, S), float("-inf")).triu(1)[None, None]
        hidden = mtp.layers[depth - 1](embedded, hidden[:, :-1], tables, mask, None, None)
        torch.testing.assert_close(theirs.lm_head(hidden), ours.mtp_logits[depth - 1], rtol=1e-4, atol=1e-5)


def test_multi_token_modules_are_for_training() -> None:
    config = GQA.replace(num_mtp_layers=2)
    model = seeded(config)
    assert model(ids()).mtp_logits == ()
    training = model.train()(ids())
    assert [logits.shape for logits in training.mtp_logits] == [(2, 6, 40), (2, 5, 40)]
    assert [record.layer for record in training.mtp_routing] == [3, 4]
    assert len(model(ids(2, 2)).mtp_logits) == 1


def test_trace_reads_it() -> None:
    records = trace(seeded(MLA), ids())
    assert [record.layer for record in records] == [1, 2]
    assert records[0].loss_T.shape == (14,)


def test_bfloat16_and_autocast() -> None:
    model = seeded(GQA)
    wanted = model(ids()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(ids()).logits.float(), wanted, rtol=0.1, atol=0.1)
    assert model.bfloat16()(ids()).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: model(torch.tensor([[40]])), "outside the vocabulary of 40"),
        (lambda model: model(torch.tensor([[-1]])), "run from -1"),
        (lambda model: model(torch.zeros(3)), "give integers"),
        (lambda model: model(torch.zeros(1, 0, dtype=torch.int64)), "give integers"),
        (lambda model: model(ids(), torch.ones(2, 6)), "expected [(]2, 7[)]"),
        (lambda model: model(ids(), labels=ids(2, 6)), "labels has shape"),
        (lambda model: Transformer({"vocab_size": 3}), "takes a ModelConfig"),
    ],
)
def test_bad_input(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(seeded(GQA))
