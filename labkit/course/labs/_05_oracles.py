"""Lab 05's oracles: transformers' rotary functions, mask functions and DeepSeek-V3 attention."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.attempt import Case


def _model(family: str):
    import importlib

    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def _rotary(theta: float, d: int, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine as DeepSeek-V3's rotary module makes them: [B, S, d]."""
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(
        rope_parameters={"rope_type": "default", "rope_theta": theta}, qk_rope_head_dim=d, hidden_size=d,
        num_attention_heads=1, head_dim=d,
    )  # fmt: skip
    return _model("deepseek_v3").DeepseekV3RotaryEmbedding(config)(torch.zeros(1), positions_BS)


def rope(x_BHSd: Tensor, positions_BS: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    """DeepSeek-V3's rotary functions; the one for neighbours leaves its result by halves, which is put back here."""
    cos, sin = _rotary(theta, x_BHSd.shape[-1], positions_BS)
    module = _model("deepseek_v3")
    if not interleaved:
        return module.apply_rotary_pos_emb(x_BHSd, x_BHSd, cos, sin)[0]
    halves = module.apply_rotary_pos_emb_interleave(x_BHSd, x_BHSd, cos, sin)[0]
    return halves.unflatten(-1, (2, -1)).mT.flatten(-2)


def cache_bytes(attention: str, num_layers: int, num_heads: int, head_dim: int, positions: int = 1, **sizes) -> int:
    """What transformers' own layers put out for the cache: Qwen3-MoE's key and value, DeepSeek-V3's latent."""
    from transformers import DeepseekV3Config, Qwen3MoeConfig

    if attention == "mla":
        config = DeepseekV3Config(
            hidden_size=8, num_attention_heads=num_heads, num_key_value_heads=num_heads, q_lora_rank=None,
            kv_lora_rank=sizes["kv_rank"], qk_rope_head_dim=sizes["rope_dim"],
        )  # fmt: skip
        with torch.device("meta"):
            width = _model("deepseek_v3").DeepseekV3Attention(config, 0).kv_a_proj_with_mqa.out_features
    else:
        groups = {"mha": num_heads, "gqa": sizes.get("num_kv_heads", 1), "mqa": 1}[attention]
        config = Qwen3MoeConfig(
            hidden_size=8, num_attention_heads=num_heads, num_key_value_heads=groups, head_dim=head_dim
        )
        with torch.device("meta"):
            module = _model("qwen3_moe").Qwen3MoeAttention(config, 0)
        width = module.k_proj.out_features + module.v_proj.out_features
    return num_layers * positions * width * sizes.get("bytes_per_value", 2)


def counts(case: Case) -> bool:
    """Whether the widths of layers answer a case: known kinds without a window."""
    return case.args[0] != "sparse" and not case.kwargs.get("window")


def mask(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    """transformers' causal, sliding and padding functions, with a query's own key added."""
    from transformers import masking_utils as theirs

    seen = theirs.sliding_window_causal_mask_function(window) if window else theirs.causal_mask_function
    seen = theirs.and_masks(seen, theirs.padding_mask_function(real_BK))
    B, K = real_BK.shape
    batch, head = torch.arange(B)[:, None, None, None], torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    query, key = torch.arange(K - num_queries, K)[:, None], torch.arange(K)[None]
    return theirs.or_masks(seen, lambda b, h, q, k: q == k)(batch, head, query, key)


def _attention(H: int, n: int, r: int, v: int, R: int, D: int):
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=H, q_lora_rank=None, kv_lora_rank=R,
        qk_nope_head_dim=n, qk_rope_head_dim=r, v_head_dim=v, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, attn_implementation="sdpa",
    )  # fmt: skip
    return _model("deepseek_v3").DeepseekV3Attention(config, 0).eval()


def mla(
    x_BSD: Tensor, query_HdD: Tensor, kv_down_CD: Tensor, norm_R: Tensor, kv_up_HER: Tensor, positions_BS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """DeepSeek-V3's attention with these weights and no output matrix, and what it would cache."""
    (H, d, D), R = query_HdD.shape, len(norm_R)
    r = len(kv_down_CD) - R
    n, v = d - r, kv_up_HER.shape[1] - d + r
    module, tables = _attention(H, n, r, v, R, D), _rotary(10_000.0, r, positions_BS)
    weights = {
        "q_proj.weight": query_HdD.flatten(0, 1), "kv_a_proj_with_mqa.weight": kv_down_CD,
        "kv_a_layernorm.weight": norm_R, "kv_b_proj.weight": kv_up_HER.flatten(0, 1), "o_proj.weight": torch.eye(H * v),
    }  # fmt: skip
    B, S, _ = x_BSD.shape
    inputs = {"hidden_states": x_BSD, "position_embeddings": tables, "attention_mask": None}
    y_BSA = torch.func.functional_call(module, weights, (), inputs)[0]
    latent_BSR, rotary_BSr = (x_BSD @ kv_down_CD.T).split([R, r], dim=-1)
    latent_BSR = torch.func.functional_call(module.kv_a_layernorm, {"weight": norm_R}, (latent_BSR,))
    return y_BSA.view(B, S, H, v).transpose(1, 2), latent_BSR, rope(rotary_BSr[:, None], positions_BS, 1e4, True)[:, 0]


def absorb(
    query_BHd: Tensor, latent_BKR: Tensor, rotary_BKr: Tensor, kv_up_HER: Tensor, seen_BK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """DeepSeek-V3's eager attention over expanded keys and values.

    The folded query is the gradient of an unscaled score by the latent; what is read of the latents, the same attention
    with every head's values replaced by them.
    """
    (B, H, d), (K, r) = query_BHd.shape, rotary_BKr.shape[1:]
    n, R = d - r, latent_BKR.shape[-1]
    module = _attention(H, n, r, kv_up_HER.shape[1] - n, R, R)
    latent = latent_BKR[:, None].expand(B, H, K, R).detach().requires_grad_()
    with torch.enable_grad():
        up_BHKE = latent @ kv_up_HER.detach().mT
        key = torch.cat([up_BHKE[..., :n], rotary_BKr[:, None].expand(B, H, K, r)], dim=-1)
        scores_BHK = (key @ query_BHd.detach()[..., None])[..., 0]
        (folded_BHKR,) = torch.autograd.grad(scores_BHK.sum(), latent)
    bias = torch.zeros(B, 1, 1, K).masked_fill(~seen_BK[:, None, None], float("-inf"))
    attend, given = _model("deepseek_v3").eager_attention_forward, (module, query_BHd[:, :, None], key.detach())
    y_B1Hv = attend(*given, up_BHKE[..., n:].detach(), bias, scaling=d**-0.5)[0]
    read_B1HR = attend(*given, latent.detach(), bias, scaling=d**-0.5)[0]
    return y_B1Hv[:, 0], folded_BHKR[:, :, 0], read_B1HR[:, 0]
