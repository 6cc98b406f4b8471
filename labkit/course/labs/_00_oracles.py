"""Lab 00's oracles: modules of transformers and the optimizer of torch, really built, and their tensors counted."""

from __future__ import annotations

import torch


def expert_params(d_model: int, d_expert: int) -> int:
    """Parameters of transformers' SwiGLU feed-forward network, on the meta device."""
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP

    with torch.device("meta"):
        network = DeepseekV3MLP(DeepseekV3Config(hidden_size=d_model), intermediate_size=d_expert)
    return sum(parameter.numel() for parameter in network.parameters())


def layer_params(
    d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared_experts: int = 0
) -> tuple[int, int]:
    """Parameters of transformers' sparse block, and those that one token uses.

    Total: counted. Active: the router (it scores every expert), and each expert that one token's gradient reaches.
    """
    from labkit.core.config import MoEConfig
    from labkit.nn.oracle import hf_block

    config = MoEConfig(d_model, d_expert, num_experts, top_k, num_shared_experts)
    shared = config.replace(score_fn="sigmoid")
    block = hf_block("deepseek_v3", shared) if num_shared_experts else hf_block("qwen3_moe", config)
    x = torch.randn(1, 1, d_model, generator=torch.Generator().manual_seed(0))
    block(x).sum().backward()
    total = active = 0
    for name, parameter in block.named_parameters():
        total += parameter.numel()
        active += parameter.numel() if name.startswith("gate.") else _reached(parameter)
    return total, active


def _reached(parameter: torch.nn.Parameter) -> int:
    """How many values lie in an expert (a slice of a fused tensor, or the whole) with a gradient other than zero."""
    fused = parameter.ndim == 3
    slices = parameter.grad.flatten(1) if fused else parameter.grad.flatten()[None]
    return int((slices != 0).any(dim=1).sum()) * slices.shape[1]


def kv_bytes(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    """By how much the cache of a tiny transformers Mixtral grows with one more token, in bytes."""
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(
        vocab_size=8, hidden_size=16, intermediate_size=4, num_hidden_layers=num_layers, num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    config._experts_implementation = "eager"
    model = MixtralModel(config).to({2: torch.bfloat16, 4: torch.float32}[bytes_per_value]).eval()
    sizes = []
    with torch.no_grad():
        for length in (3, 4):
            cache = model(torch.zeros(1, length, dtype=torch.long), use_cache=True).past_key_values
            sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
    return sizes[1] - sizes[0]


def adam_memory(num_params: int, mixed: bool = True) -> dict[str, int]:
    """One step of torch's AdamW on real tensors, each weighed: with a master copy if `mixed`, without one if not."""
    weights = torch.zeros(num_params, dtype=torch.bfloat16 if mixed else torch.float32, requires_grad=True)
    weights.sum().backward()
    trained = weights.detach().float().requires_grad_() if mixed else weights
    if mixed:
        trained.grad = weights.grad.float()
    optimizer = torch.optim.AdamW([trained])
    optimizer.step()
    state = optimizer.state[trained]
    return {
        "weights": weights.nbytes,
        "gradients": weights.grad.nbytes,
        "master": trained.nbytes if mixed else 0,
        "moments": state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes,
    }
