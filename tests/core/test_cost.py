"""Costs against hand counts, torch's FLOP counter, what autograd keeps, and what must always hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from labkit.core import cost
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.presets import PRESETS, preset

TINY = MoEConfig(d_model=8, d_expert=16, num_experts=4, top_k=2, num_shared_experts=1)
OLMOE = preset("olmoe-1b-7b")


@st.composite
def layers(draw: st.DrawFn) -> MoEConfig:
    experts = draw(st.integers(1, 16))
    return MoEConfig(
        d_model=draw(st.integers(1, 32)), d_expert=draw(st.integers(1, 32)), num_experts=experts,
        top_k=draw(st.integers(1, experts)), num_shared_experts=draw(st.integers(0, 3)),
        router_bias=draw(st.booleans()), expert_bias=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=100, derandomize=True, deadline=None)
@given(layers(), st.integers(0, 50))
def test_layers_always(config: MoEConfig, tokens: int) -> None:
    p, flops = cost.layer_params(config), cost.moe_flops(config, tokens)
    assert p.active <= p.total
    assert (p.active == p.total) == (config.top_k == config.num_experts)
    assert cost.moe_flops(cost.dense_equivalent(config), tokens).total >= flops.total
    if not (config.router_bias or config.expert_bias):
        assert flops.total == 2 * tokens * p.active
    one = cost.expert_bytes(config, 1)
    assert one.weights <= 2 * p.active
    assert cost.expert_bytes(config, 1000).weights == 2 * (p.routed_experts + p.shared_experts)
    assert cost.expected_experts(config, 1) == pytest.approx(config.top_k)
    assert cost.expected_experts(config, tokens) <= min(config.num_experts, tokens * config.top_k) + 1e-9


def experts_forward(config: MoEConfig, x_TD: torch.Tensor) -> None:
    """Every token through the router, its K experts and the shared ones, with plain matrix products."""
    x_TD @ torch.zeros(config.d_model, config.num_experts)
    for _ in range(config.top_k + config.num_shared_experts):
        hidden_TF = (x_TD @ torch.zeros(config.d_model, config.d_expert)) * (
            x_TD @ torch.zeros(config.d_model, config.d_expert)
        )
        hidden_TF @ torch.zeros(config.d_expert, config.d_model)


@pytest.mark.parametrize("tokens", [1, 7])
def test_flops_equal_torchs_counter(tokens: int) -> None:
    with FlopCounterMode(display=False) as counter:
        experts_forward(TINY, torch.zeros(tokens, TINY.d_model))
    assert cost.moe_flops(TINY, tokens).total == counter.get_total_flops()


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v3"])
def test_model_flops_equal_torchs_counter_on_transformers(name: str) -> None:
    from transformers import AutoModelForCausalLM

    from labkit.core.names import hf_config

    moe = preset(name).moe.replace(d_model=32, d_expert=16, num_experts=8, top_k=8, num_groups=1, top_groups=1)
    widths = {"d_dense": 48, "mla_q_rank": 12, "mla_kv_rank": 8, "mla_nope_dim": 8, "mla_rope_dim": 4, "mla_v_dim": 6}
    latent = preset(name).attention == "mla"
    small = preset(name).replace(
        vocab_size=40, num_layers=4, d_model=32, num_heads=4, num_kv_heads=4 if latent else 2,
        head_dim=12 if latent else 8, moe=moe, **(widths if latent else {}),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        hf_config(small, bos_token_id=0, eos_token_id=1, pad_token_id=None),
        attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    tokens = 5
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, tokens, dtype=torch.int64))
    by_module = counter.get_flop_counts()
    rotary = sum(sum(ops.values()) for key, ops in by_module.items() if key.endswith("rotary_emb"))
    # eager attention computes the masked half too: every token sees all five
    assert tokens * cost.model_flops_per_token(small, tokens).total == counter.get_total_flops() - rotary


def test_counts_by_hand() -> None:
    p = cost.layer_params(MoEConfig(2, 3, 4, 1, num_shared_experts=1, router_bias=True, expert_bias=True))
    assert (p.router, p.expert, p.routed_experts, p.shared_experts) == (12, 26, 104, 26)
    assert (p.total, p.active) == (142, 64)
    mixtral = cost.model_params(preset("mixtral-8x7b"))
    assert mixtral.embedding == mixtral.head == 131_072_000
    assert mixtral.routed_experts == 32 * 8 * 3 * 4096 * 14_336
    assert sum(mixtral.parts().values()) == mixtral.total


@pytest.mark.parametrize("name", PRESETS)
def test_models_always(name: str) -> None:
    model = preset(name)
    p, every = cost.model_params(model), model.replace(moe=cost.dense_equivalent(model.moe))
    assert p.active < p.total == cost.model_params(every).active
    matrices = p.active - p.embedding - cost.vector_params(model)
    flops = cost.model_flops_per_token(model, 1)
    if not model.moe.expert_bias:
        assert flops.total - flops.scores == 2 * matrices


def test_a_dense_model_and_a_tied_one() -> None:
    dense = ModelConfig("d", 10, 2, 8, 2, 2, 4, None, num_dense_layers=2, d_dense=16)
    p = cost.model_params(dense)
    assert p.active == p.total == 2 * 80 + 2 * (256 + 384) + 5 * 8
    assert cost.model_params(dense.replace(tie_embeddings=True)).total == p.total - 80
    assert cost.model_flops_per_token(dense, 3).experts == 0
    assert cost.training_memory(dense, 4, 2).activations > 0


def test_cache_by_hand() -> None:
    assert cost.kv_cache_bytes_per_token(preset("olmoe-1b-7b")) == 16 * 2 * 16 * 128 * 2
    assert cost.kv_cache_bytes_per_token(preset("deepseek-v3")) == 61 * (512 + 64) * 2
    assert cost.kv_cache_bytes_per_token(preset("deepseek-v3"), bytes_per_value=1) == 61 * (512 + 64)
    gpt = preset("gpt-oss-20b")
    per_layer = 2 * 8 * 64 * 2
    assert cost.kv_cache_bytes(gpt, 3, 100) == 3 * 100 * cost.kv_cache_bytes_per_token(gpt)
    assert cost.kv_cache_bytes(gpt, 1, 1000) == 12 * per_layer * (1000 + 128)
    assert cost.kv_cache_bytes(gpt, 1, 1000, kv_bits=8) * 2 == cost.kv_cache_bytes(gpt, 1, 1000)


def test_cache_equals_what_transformers_keeps() -> None:
    from transformers import AutoModelForCausalLM

    from labkit.core.names import hf_config

    small = OLMOE.replace(
        vocab_size=16, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4,
        moe=OLMOE.moe.replace(d_model=16, d_expert=8, num_experts=4, top_k=2),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(hf_config(small, pad_token_id=None, eos_token_id=1))
    with torch.no_grad():
        kept = model(torch.zeros(3, 7, dtype=torch.int64), use_cache=True).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert cost.kv_cache_bytes(small, batch=3, context=7, kv_bits=32) == size


def test_training_states() -> None:
    total = cost.model_params(OLMOE).total
    states = {(p, o): cost.training_memory(OLMOE, 8, 8, precision=p, optimizer=o) for p in ("mixed", "fp32")
              for o in ("adam", "adamw8bit", "sgd", "muon")}  # fmt: skip
    assert states["mixed", "adam"].states == states["fp32", "adam"].states == 16 * total
    assert states["mixed", "sgd"].states == states["fp32", "sgd"].states == 8 * total
    assert states["fp32", "adam"].master == 0
    assert states["mixed", "adam"].optimizer > states["mixed", "muon"].optimizer > 4 * total
    assert 2 * total < states["mixed", "adamw8bit"].optimizer < 2.04 * total


def test_expert_activations_are_what_autograd_keeps() -> None:
    x_TD = torch.randn(5, 8, requires_grad=True)
    gate_FD, up_FD, down_DF = (torch.randn(s, requires_grad=True) for s in ((16, 8), (16, 8), (8, 16)))
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in {w.untyped_storage().data_ptr() for w in (gate_FD, up_FD, down_DF)}:
            kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        hidden_TF = torch.nn.functional.silu(x_TD @ gate_FD.T) * (x_TD @ up_FD.T)
        out_TD = hidden_TF @ down_DF.T
    assert out_TD.shape == x_TD.shape
    dense = ModelConfig("d", 10, 1, 8, 2, 2, 4, None, num_dense_layers=1, d_dense=16)
    wide = dense.replace(d_dense=32)
    per_width = (cost.activation_bytes(wide, 5, 5) - cost.activation_bytes(dense, 5, 5)) // (2 * 5 * 16)
    assert sum(kept.values()) == 5 * (8 + per_width * 16)


def test_activations_respond_to_what_they_should() -> None:
    plain = cost.activation_bytes(OLMOE, 4096, 2048)
    assert cost.activation_bytes(OLMOE, 8192, 2048) == 2 * plain
    assert cost.activation_bytes(OLMOE, 4096, 4096) == plain
    rows = 16 * 4096 * 16 * 2048 * 2  # layers, tokens, heads, positions, bytes
    assert cost.activation_bytes(OLMOE, 4096, 2048, flash=False) - plain == rows
    assert cost.activation_bytes(OLMOE, 4096, 2048, precision="fp32") > plain
    assert cost.activation_bytes(OLMOE, 4096, 2048, checkpointing=True) < plain


def test_inference_has_no_gradients() -> None:
    m = cost.inference_memory(OLMOE, 2, 100, weight_bits=4)
    assert m.weights == cost.model_params(OLMOE).total // 2
    assert m.total == m.weights + cost.kv_cache_bytes(OLMOE, 2, 100)
    assert not hasattr(m, "gradients")


def test_gpus_and_fit() -> None:
    assert all(g.memory >= 16e9 and g.tflops > 0 and g.source for g in cost.GPUS.values())
    assert [cost.gpu(n).bf16 for n in ("T4", "V100-16GB", "A100-40GB")] == [False, False, True]
    assert [cost.gpu(n).fp8 for n in ("A100-80GB", "L4", "H100-80GB")] == [False, True, True]
    fit = cost.fits(17 * 10**9, "T4", count=2, reserve=0)
    assert fit
    assert fit.spare == 15 * 10**9
    assert not cost.fits(17 * 10**9, "T4")


def test_roofline_bounds() -> None:
    memory = cost.roofline(flops=1e9, moved=1e9, peak_flops=1e14, bandwidth=1e12)
    assert (memory.bound, memory.attainable, memory.seconds) == ("memory", 1e12, 1e-3)
    assert cost.roofline(1e14, 1e9, 1e14, 1e12).attainable == 1e14


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cost.layer_params(OLMOE), "takes a MoEConfig"),
        (lambda: cost.dense_equivalent(OLMOE), "takes a MoEConfig"),
        (lambda: cost.model_params(TINY), "takes a ModelConfig"),
        (lambda: cost.vector_params(TINY), "takes a ModelConfig"),
        (lambda: cost.moe_flops(TINY, -1), "zero or more"),
        (lambda: cost.moe_flops(TINY, 1.5), "whole number"),
        (lambda: cost.model_flops_per_token(OLMOE, 0), "at least itself"),
        (lambda: cost.expected_experts(TINY, -1), "zero or more"),
        (lambda: cost.expert_bytes(TINY, 1, visited=3), "reach 2 at most"),
        (lambda: cost.expert_bytes(TINY, 1, bytes_per_value=0), "positive"),
        (lambda: cost.kv_cache_bytes_per_token(OLMOE, 0), "positive"),
        (lambda: cost.kv_cache_bytes(OLMOE, 0, 1), "batch is 0"),
        (lambda: cost.kv_cache_bytes(OLMOE, 1, 1, kv_bits=3), "choose one of"),
        (lambda: cost.inference_memory(OLMOE, 1, 0), "context is 0"),
        (lambda: cost.inference_memory(OLMOE, 1, 1, weight_bits=5), "choose one of"),
        (lambda: cost.activation_bytes(OLMOE, 10, 4), "multiple of sequence_length"),
        (lambda: cost.training_memory(OLMOE, 8, 8, optimizer="lion"), "choose one of adam"),
        (lambda: cost.training_memory(OLMOE, 8, 8, precision="bf16"), "choose one of mixed"),
        (lambda: cost.training_memory(OLMOE, 0, 8), "tokens is 0"),
        (lambda: cost.gpu("A100"), "did you mean 'A100"),
        (lambda: cost.fits(-1, "T4"), "zero or more"),
        (lambda: cost.fits(1, "T4", count=0), "one or more"),
        (lambda: cost.fits(1, "T4", reserve=1), "share"),
        (lambda: cost.roofline(0, 1, 1, 1), "flops is 0"),
    ],
)
def test_bad_input_says_what_is_wrong(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
