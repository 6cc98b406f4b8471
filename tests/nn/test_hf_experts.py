"""One line puts a transformers model on our experts: same logits and gradients, and clear words where it cannot."""

import pytest
import torch
import transformers

from labkit.nn import use_kernels
from labkit.nn.hf_experts import NAME

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = ["Qwen3Moe", "Olmoe", "Mixtral"]


def build(family, device="cpu", dtype=torch.float32):
    sizes = dict(SMALL)
    if family == "Mixtral":
        sizes["num_local_experts"] = sizes.pop("num_experts")
    config = getattr(transformers, f"{family}Config")(**sizes)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).to(device, dtype)


def logits_and_gradient(model, ids):
    model.zero_grad()
    out = model(ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(model, ids, limit):
    want, want_grads = logits_and_gradient(model, ids)
    assert use_kernels(model) is model
    assert model.config._experts_implementation == NAME
    ours, grads = logits_and_gradient(model, ids)
    assert ((ours - want).norm() / want.norm()).item() < limit
    assert grads.keys() == want_grads.keys()
    for name, gradient in grads.items():
        assert ((gradient - want_grads[name]).norm() / want_grads[name].norm().clamp_min(1e-6)).item() < 4 * limit, name


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_stay(family):
    same(build(family), torch.arange(3, 43).view(2, 20), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_the_triton_kernels_run(family):
    from labkit.kernels import dispatch

    model = build(family, "cuda")
    with dispatch.force("triton"):
        same(model, torch.arange(3, 43, device="cuda").view(2, 20), 2e-3)


def test_other_experts_are_refused_and_nothing_changes():
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        layer_types=["full_attention"], pad_token_id=0,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config)
    before = model.config._experts_implementation
    with pytest.raises(ValueError, match="GptOssExperts has biases and"):
        use_kernels(model)
    assert model.config._experts_implementation == before


def test_a_dense_model_is_refused():
    with pytest.raises(ValueError, match="Linear has no fused experts"):
        use_kernels(torch.nn.Linear(2, 2))
