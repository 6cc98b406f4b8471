"""The map of names loses nothing, refuses what it cannot say, and its oracle counts the same parameters."""

import subprocess
import sys

import pytest

from labkit.core.config import ModelConfig
from labkit.core.cost import model_params
from labkit.core.names import (
    FAMILIES,
    family_of,
    from_hf_config,
    glossary,
    hf_config,
    hf_meta_model,
    to_hf_config,
    undescribed,
)
from labkit.core.presets import PRESETS, preset

FAMILY = {
    "mixtral-8x7b": "mixtral", "mixtral-8x22b": "mixtral", "olmoe-1b-7b": "olmoe", "qwen3-30b-a3b": "qwen3_moe",
    "qwen3-235b-a22b": "qwen3_moe", "deepseek-v2-lite": "deepseek_v2", "deepseek-v3": "deepseek_v3",
    "gpt-oss-20b": "gpt_oss", "gpt-oss-120b": "gpt_oss",
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_equal_transformers(name: str) -> None:
    theirs = hf_meta_model(preset(name))
    ours = model_params(preset(name))
    assert ours.total == sum(p.numel() for p in theirs.parameters())
    assert {p.device.type for p in theirs.parameters()} == {"meta"}
    experts = sum(p.numel() for key, p in theirs.named_parameters() if ".mlp.experts." in key)
    shared = sum(p.numel() for key, p in theirs.named_parameters() if ".shared_experts." in key)
    attention = sum(p.numel() for key, p in theirs.named_parameters() if ".self_attn." in key)
    assert (ours.routed_experts, ours.shared_experts, ours.attention) == (experts, shared, attention)


VARIANTS = [
    ("olmoe-1b-7b", {"attention_bias": True}),
    ("qwen3-30b-a3b", {"num_dense_layers": 2, "d_dense": 96, "attention_bias": True}),
    ("deepseek-v3", {"attention_bias": True}),
    ("deepseek-v2-lite", {"mla_q_rank": 24, "attention_bias": True}),
    ("mixtral-8x7b", {"tie_embeddings": True, "sliding_window": 64}),
    ("gpt-oss-20b", {"sliding_window": 0, "full_attention_every": 0}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_variants_count_and_come_back(name: str, changes: dict) -> None:
    model = preset(name).replace(num_layers=4, vocab_size=64, **changes)
    config = hf_config(model)
    assert model_params(model).total == sum(p.numel() for p in hf_meta_model(model).parameters())
    assert from_hf_config(config, name=model.name) == model


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    model = preset(name)
    assert family_of(model) == FAMILY[name]
    assert from_hf_config(to_hf_config(model, FAMILY[name]), name=name) == model
    assert from_hf_config(hf_config(model), name=name) == model


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_deepseek_inference_names(name: str) -> None:
    theirs = to_hf_config(preset(name), "deepseek_inference")
    assert theirs["n_activated_experts"] == preset(name).moe.top_k
    assert from_hf_config(theirs, name=name) == preset(name)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("mixtral-8x7b", {"model_type": "llama"}, "the known ones are mixtral"),
        ("mixtral-8x7b", {"model_type": None}, "the known ones are"),
        ("mixtral-8x7b", {"hidden_act": "gelu"}, "only 'silu'"),
        ("mixtral-8x7b", {"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ("mixtral-8x7b", {"hidden_sizes": 3}, "does not know"),
        ("mixtral-8x7b", {"num_experts": 9}, "give one"),
        ("olmoe-1b-7b", {"clip_qkv": 8.0}, "clip_qkv"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, "dense layers first"),
        ("qwen3-30b-a3b", {"use_sliding_window": True}, "use_sliding_window"),
        ("deepseek-v2-lite", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek-v2-lite", {"mlp_bias": True}, "mlp_bias"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"] + ["sliding_attention"] * 23}, "layer_types"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types"),
        ("mixtral-8x7b", {"rope_theta": 5e5}, "rope_theta is given as"),
        ("mixtral-8x7b", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ("mixtral-8x7b", {"rope_parameters": {"rope_type": "default", "beta_fats": 3}}, "beta_fats"),
        ("mixtral-8x7b", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(name: str, change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_hf_config({**to_hf_config(preset(name), FAMILY[name]), **change})


def test_a_missing_size_is_an_error() -> None:
    theirs = to_hf_config(preset("mixtral-8x7b"), "mixtral")
    del theirs["hidden_size"]
    with pytest.raises(ValueError, match="lacks hidden_size"):
        from_hf_config(theirs)
    with pytest.raises(ValueError, match="takes a dict"):
        from_hf_config(7)


def test_aliases_and_harmless_keys_are_read() -> None:
    theirs = to_hf_config(preset("gpt-oss-20b"), "gpt_oss")
    theirs["experts_per_token"] = theirs.pop("num_experts_per_tok")
    extra = {"use_cache": False, "rope_theta": 150_000, "router_aux_loss_coef": 0.9}
    assert from_hf_config({**theirs, **extra}, name="gpt-oss-20b") == preset("gpt-oss-20b")
    assert undescribed({**theirs, **extra, "dtype": "bfloat16"}) == {"dtype": "bfloat16"}


OLD = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 10_000, "rope_scaling": OLD},
        {"rope_theta": 10_000, "rope_scaling": {**OLD, "rope_type": "yarn", "beta_fast": 32, "beta_slow": 1}},
        {"rope_parameters": {**OLD, "rope_type": "yarn", "rope_theta": 10_000.0}},
        {"rope_scaling": {**OLD, "factor": None}},
    ],
)
def test_positions_old_and_new(written: dict) -> None:
    theirs = to_hf_config(preset("deepseek-v3"), "deepseek_v3")
    del theirs["rope_parameters"]
    assert from_hf_config({**theirs, **written}, name="deepseek-v3") == preset("deepseek-v3")


def test_without_positions_the_family_decides() -> None:
    for name in ("mixtral-8x7b", "gpt-oss-20b", "olmoe-1b-7b"):
        theirs = to_hf_config(preset(name), FAMILY[name])
        del theirs["rope_parameters"]
        assert from_hf_config(theirs, name=name) == preset(name)


@pytest.mark.parametrize(
    ("name", "family", "says"),
    [
        ("olmoe-1b-7b", "mixtral", "qk_norm = 'full'"),
        ("deepseek-v3", "deepseek_v2", "moe.score_fn = 'sigmoid'"),
        ("gpt-oss-20b", "qwen3_moe", "attention_sinks = True"),
        ("olmoe-1b-7b", "olmo", "the known ones are"),
    ],
)
def test_a_family_that_cannot_say_it_refuses(name: str, family: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_hf_config(preset(name), family)


def test_what_nobody_can_say() -> None:
    strange = preset("olmoe-1b-7b").replace(moe=preset("olmoe-1b-7b").moe.replace(noise_std=1.0))
    with pytest.raises(ValueError, match="no family"):
        family_of(strange)
    dense = ModelConfig("d", 8, 1, 8, 2, 2, 4, None, num_dense_layers=1, d_dense=8)
    with pytest.raises(ValueError, match="no sparse layer"):
        to_hf_config(dense, "mixtral")
    with pytest.raises(ValueError, match="takes a ModelConfig"):
        to_hf_config({}, "mixtral")


def test_glossary_has_every_family() -> None:
    table = glossary()
    assert len(table.header) == len(FAMILIES) + 1
    assert all(len(row) == len(table.header) for row in table.rows)
    assert "num_experts_per_tok" in repr(table)
    assert table._repr_html_().count("<tr>") == len(table.rows) + 1


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, labkit.core.names, labkit.core.cost; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
