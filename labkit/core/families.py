"""What other projects call things: transformers' configurations and DeepSeek's inference code, one `Family` each.

`core.names` reads and writes configurations with these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labkit.core import positions
from labkit.core.config import ModelConfig, YarnConfig

UNDESCRIBED = frozenset(
    {
        "quantization_config", "dtype", "max_batch_size", "scale_fmt",
    }
)  # fmt: skip
"""Keys that say how a model is stored or served, not what it computes: no `ModelConfig` holds them."""

_NO_EFFECT = frozenset(
    {
        "_name_or_path", "architectures", "auto_map", "transformers_version", "torch_dtype", "return_dict",
        "use_cache", "output_attentions", "output_hidden_states", "output_router_logits",
        "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type", "pad_token_id",
        "bos_token_id", "eos_token_id", "initializer_range", "attention_dropout", "router_aux_loss_coef",
        "aux_loss_alpha", "seq_aux", "ep_size", "max_window_layers", "_attn_implementation",
        "_experts_implementation", "initial_context_length",
    }
)  # fmt: skip
_MODEL = {
    "vocab_size": "vocab_size", "num_layers": "num_hidden_layers", "d_model": "hidden_size",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps", "max_context": "max_position_embeddings",
}  # fmt: skip
_MLA = {
    "mla_q_rank": "q_lora_rank", "mla_kv_rank": "kv_lora_rank", "mla_nope_dim": "qk_nope_head_dim",
    "mla_rope_dim": "qk_rope_head_dim", "mla_v_dim": "v_head_dim",
}  # fmt: skip
_DEEPSEEK = {
    **_MODEL, **_MLA, "num_dense_layers": "first_k_dense_replace", "d_dense": "intermediate_size",
    "attention_bias": "attention_bias", "moe.d_expert": "moe_intermediate_size", "moe.num_experts": "n_routed_experts",
    "moe.top_k": "num_experts_per_tok", "moe.num_shared_experts": "n_shared_experts",
    "moe.route_scale": "routed_scaling_factor", "moe.num_groups": "n_group", "moe.top_groups": "topk_group",
}  # fmt: skip
_SILU = {"hidden_act": ("silu",)}
_PLAIN_TP = {"pretraining_tp": (1, None)}

Fields = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """How one project names things.

    `names` maps our field ("moe.top_k") to their key; `fixed` holds our fields that this family cannot vary; `defaults`
    what a missing key means; `must` the only values of a key that we can express; `aliases` their second name of a key;
    `derived` keys that follow from others; `theta` the rotary base where none is given, None where the family does not
    write positions as transformers does; `read` and `write` finish what a renaming cannot do.
    """

    title: str
    names: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[str, tuple] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: frozenset[str] = frozenset()
    theta: float | None = 10_000.0
    read: Callable[[Fields, Fields], None] = lambda theirs, ours: None
    write: Callable[[ModelConfig, Fields], None] = lambda model, theirs: None

    def knows(self, key: str) -> bool:
        """Whether a key of theirs is accounted for."""
        rope = () if self.theta is None else positions.KEYS
        names = self.names.values()
        groups = (names, self.defaults, self.must, self.aliases, self.derived, rope, UNDESCRIBED, _NO_EFFECT)
        return any(key in group for group in groups)


def _read_heads(theirs: Fields, ours: Fields) -> None:
    if ours["num_kv_heads"] is None:
        ours["num_kv_heads"] = ours["num_heads"]
    if ours.get("head_dim") is None:
        ours["head_dim"] = ours["d_model"] // ours["num_heads"]


def _read_mixtral(theirs: Fields, ours: Fields) -> None:
    _read_heads(theirs, ours)
    ours["sliding_window"] = theirs["sliding_window"] or 0


def _write_mixtral(model: ModelConfig, theirs: Fields) -> None:
    theirs["sliding_window"] = model.sliding_window or None


def _read_qwen3(theirs: Fields, ours: Fields) -> None:
    _read_heads(theirs, ours)
    dense = sorted(theirs["mlp_only_layers"] or [])
    if dense != list(range(len(dense))):
        raise ValueError(f"mlp_only_layers is {dense}: a ModelConfig has its dense layers first, none in between")
    ours["num_dense_layers"] = len(dense)
    ours["d_dense"] = theirs["intermediate_size"] if dense else 0


def _write_qwen3(model: ModelConfig, theirs: Fields) -> None:
    theirs["mlp_only_layers"] = list(range(model.num_dense_layers))
    if model.num_dense_layers:
        theirs["intermediate_size"] = model.d_dense


def _read_gpt_oss(theirs: Fields, ours: Fields) -> None:
    _read_heads(theirs, ours)
    layers = ours["num_layers"]
    kinds = theirs["layer_types"] or [("full", "sliding")[(i + 1) % 2] + "_attention" for i in range(layers)]
    full = [i + 1 for i, kind in enumerate(kinds) if kind == "full_attention"]
    every = full[0] if full else 0
    ours["sliding_window"] = 0 if len(full) == layers else theirs["sliding_window"] or 0
    ours["full_attention_every"] = every if ours["sliding_window"] else 0
    if not any(theirs.get(key) for key in positions.KEYS):  # what its transformers configuration says by default
        theirs["rope_parameters"] = {
            "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False,
        }  # fmt: skip
    if len(kinds) != layers or (every and full != list(range(every, layers + 1, every))):
        raise ValueError(f"layer_types is {kinds}: a ModelConfig needs every n-th of its {layers} layers to be full")


def _write_gpt_oss(model: ModelConfig, theirs: Fields) -> None:
    every, slides = model.full_attention_every, model.sliding_window > 0
    theirs["sliding_window"] = model.sliding_window or 128  # transformers wants a number even where no layer slides
    theirs["layer_types"] = [
        "sliding_attention" if slides and (not every or (i + 1) % every) else "full_attention"
        for i in range(model.num_layers)
    ]


def _read_mla(theirs: Fields, ours: Fields) -> None:
    if ours["num_kv_heads"] is None:
        ours["num_kv_heads"] = ours["num_heads"]
    ours["head_dim"] = ours["mla_nope_dim"] + ours["mla_rope_dim"]
    for key, empty in (("mla_q_rank", 0), ("num_dense_layers", 0), ("moe.num_shared_experts", 0)):
        ours[key] = ours[key] or empty
    for key in ("moe.num_groups", "moe.top_groups"):
        ours[key] = ours[key] or 1
    if not ours["num_dense_layers"]:
        ours["d_dense"] = 0


def _read_v2(theirs: Fields, ours: Fields) -> None:
    _read_mla(theirs, ours)
    if theirs["topk_method"] == "greedy":
        ours["moe.num_groups"] = ours["moe.top_groups"] = 1


def _write_mla(model: ModelConfig, theirs: Fields) -> None:
    theirs["q_lora_rank"] = model.mla_q_rank or None
    if not model.num_dense_layers:
        del theirs["intermediate_size"]


def _write_v2(model: ModelConfig, theirs: Fields) -> None:
    _write_mla(model, theirs)
    theirs["topk_method"] = "greedy" if model.moe.num_groups == 1 else "group_limited_greedy"


def _write_v3(model: ModelConfig, theirs: Fields) -> None:
    """What transformers takes for granted in this family, and vLLM and SGLang read: vLLM would take a softmax."""
    _write_mla(model, theirs)
    theirs |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}


def _read_inference(theirs: Fields, ours: Fields) -> None:
    ours["num_kv_heads"] = None
    _read_mla(theirs, ours)
    large = ours["d_model"] == 7168  # their code gives the selection bias to the model of this width
    ours.update({"moe.selection_bias": large, "moe.group_score": "top2_sum" if large else "max"})
    ours["moe.norm_topk"] = ours["moe.score_fn"] == "sigmoid"
    if theirs["max_seq_len"] > theirs["original_seq_len"]:
        mscale = theirs["mscale"]
        ours["yarn"] = YarnConfig(
            theirs["rope_factor"], theirs["original_seq_len"], theirs["beta_fast"], theirs["beta_slow"], mscale, mscale
        )


def _write_inference(model: ModelConfig, theirs: Fields) -> None:
    if not model.num_dense_layers:
        del theirs["inter_dim"]
    yarn = model.yarn
    theirs["original_seq_len"] = yarn.original_context if yarn else model.max_context
    if yarn:
        values = {"rope_factor": yarn.factor, "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow}
        theirs.update(values, mscale=yarn.mscale)


_KV = {"num_key_value_heads": None, "tie_word_embeddings": False}


def _norm(eps: float, context: int) -> dict[str, Any]:
    """What a missing epsilon and a missing context mean."""
    return {"rms_norm_eps": eps, "max_position_embeddings": context}


_MLA_KEYS = frozenset({"head_dim", "qk_head_dim"})

FAMILIES: Mapping[str, Family] = {
    "mixtral": Family(
        "Mixtral (transformers)",
        {**_MODEL, "head_dim": "head_dim", "moe.d_expert": "intermediate_size", "moe.num_experts": "num_local_experts",
         "moe.top_k": "num_experts_per_tok"},
        defaults={**_KV, **_norm(1e-5, 131_072), "head_dim": None, "sliding_window": None}, theta=1e6,
        must={**_SILU, "router_jitter_noise": (0, 0.0)}, aliases={"num_experts": "num_local_experts"},
        read=_read_mixtral, write=_write_mixtral,
    ),
    "olmoe": Family(
        "OLMoE (transformers)",
        {**_MODEL, "attention_bias": "attention_bias", "moe.d_expert": "intermediate_size",
         "moe.num_experts": "num_experts", "moe.top_k": "num_experts_per_tok", "moe.norm_topk": "norm_topk_prob"},
        fixed={"qk_norm": "full"},
        defaults={**_KV, **_norm(1e-5, 4096), "attention_bias": False, "norm_topk_prob": False},
        must={**_SILU, "clip_qkv": (None,)}, aliases={"num_local_experts": "num_experts"}, read=_read_heads,
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE (transformers)",
        {**_MODEL, "head_dim": "head_dim", "attention_bias": "attention_bias", "moe.d_expert": "moe_intermediate_size",
         "moe.num_experts": "num_experts", "moe.top_k": "num_experts_per_tok", "moe.norm_topk": "norm_topk_prob"},
        fixed={"qk_norm": "head"},
        defaults={**_KV, **_norm(1e-6, 32_768), "head_dim": None, "attention_bias": False, "norm_topk_prob": False,
                  "mlp_only_layers": None, "intermediate_size": 6144, "sliding_window": None},
        must={**_SILU, "decoder_sparse_step": (1,), "use_sliding_window": (False,)},
        aliases={"num_local_experts": "num_experts"}, read=_read_qwen3, write=_write_qwen3,
    ),
    "deepseek_v2": Family(
        "DeepSeek-V2 (transformers)", _DEEPSEEK,
        fixed={"attention": "mla", "moe.norm_topk": False, "rope_interleaved": True},
        defaults={**_KV, **_norm(1e-6, 2048), "attention_bias": False, "first_k_dense_replace": 0,
                  "intermediate_size": 0, "n_group": None,
                  "topk_group": None, "routed_scaling_factor": 1.0, "topk_method": "greedy"},
        # transformers never renormalises this family's scores, DeepSeek's own code does when norm_topk_prob is set
        must={**_SILU, **_PLAIN_TP, "norm_topk_prob": (False, None), "mlp_bias": (False,), "moe_layer_freq": (1,),
              "scoring_func": ("softmax",), "topk_method": ("greedy", "group_limited_greedy")},
        aliases={"num_experts": "n_routed_experts"}, derived=_MLA_KEYS, read=_read_v2, write=_write_v2,
    ),
    "deepseek_v3": Family(
        "DeepSeek-V3 (transformers)",
        {**_DEEPSEEK, "moe.norm_topk": "norm_topk_prob", "rope_interleaved": "rope_interleave",
         "num_mtp_layers": "num_nextn_predict_layers"},
        fixed={"attention": "mla", "moe.score_fn": "sigmoid", "moe.selection_bias": True,
               "moe.group_score": "top2_sum"},
        defaults={**_KV, **_norm(1e-6, 4096), "attention_bias": False, "first_k_dense_replace": 3,
                  "intermediate_size": 0, "norm_topk_prob": True, "rope_interleave": True,
                  "num_nextn_predict_layers": 0},
        must={**_SILU, **_PLAIN_TP, "moe_layer_freq": (1,), "scoring_func": ("sigmoid",),
              "topk_method": ("noaux_tc",)},
        aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
        derived=_MLA_KEYS, read=_read_mla, write=_write_v3,
    ),
    "gpt_oss": Family(
        "GPT-OSS (transformers)",
        {**_MODEL, "head_dim": "head_dim", "attention_bias": "attention_bias", "moe.d_expert": "intermediate_size",
         "moe.num_experts": "num_local_experts", "moe.top_k": "num_experts_per_tok",
         "moe.swiglu_alpha": "swiglu_alpha", "moe.swiglu_limit": "swiglu_limit"},
        fixed={"attention_sinks": True, "moe.score_fn": "topk_softmax", "moe.router_bias": True,
               "moe.expert_bias": True, "moe.activation": "clamped_swiglu"},
        defaults={**_KV, **_norm(1e-5, 131_072), "head_dim": 64, "attention_bias": True, "sliding_window": 128,
                  "layer_types": None, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        theta=150_000.0, must=_SILU,
        aliases={"experts_per_token": "num_experts_per_tok", "num_experts": "num_local_experts"},
        read=_read_gpt_oss, write=_write_gpt_oss,
    ),
    "deepseek_inference": Family(
        "DeepSeek's inference code",
        {"vocab_size": "vocab_size", "num_layers": "n_layers", "d_model": "dim", "num_heads": "n_heads",
         **_MLA, "num_dense_layers": "n_dense_layers", "rope_theta": "rope_theta", "max_context": "max_seq_len",
         "d_dense": "inter_dim", "moe.d_expert": "moe_inter_dim", "moe.num_experts": "n_routed_experts",
         "moe.top_k": "n_activated_experts", "moe.num_shared_experts": "n_shared_experts",
         "moe.route_scale": "route_scale", "moe.num_groups": "n_expert_groups", "moe.top_groups": "n_limited_groups",
         "moe.score_fn": "score_func"},
        fixed={"attention": "mla", "rope_interleaved": True}, theta=None,
        defaults={"rope_theta": 10_000.0, "max_seq_len": 16_384, "original_seq_len": 4096, "rope_factor": 40,
                  "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "q_lora_rank": 0,
                  "inter_dim": 0, "n_dense_layers": 1, "n_expert_groups": 1, "n_limited_groups": 1,
                  "score_func": "softmax", "route_scale": 1.0},
        must={"score_func": ("softmax", "sigmoid")}, read=_read_inference, write=_write_inference,
    ),
}  # fmt: skip
"""Projects whose configurations we read and write, by transformers' `model_type`; the last has no such type."""
