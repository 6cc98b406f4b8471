"""Configurations check themselves, ignore nothing, and survive a round trip."""

import pytest

from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.presets import PRESETS

MOE = {"d_model": 8, "d_expert": 16, "num_experts": 8, "top_k": 2}
MODEL = {
    "name": "tiny", "vocab_size": 32, "num_layers": 2, "d_model": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2,
}  # fmt: skip
MLA = {
    "attention": "mla", "num_kv_heads": 4, "head_dim": 4, "mla_kv_rank": 4, "mla_nope_dim": 2, "mla_rope_dim": 2,
    "mla_v_dim": 2,
}  # fmt: skip
YARN = {"factor": 4.0, "original_context": 16}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"d_model": 0}, "d_model is 0; give 1"),
        ({"d_model": 8.0}, "whole number"),
        ({"num_experts": True}, "whole number"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 9}, "only 8 experts"),
        ({"num_shared_experts": -1}, "num_shared_experts"),
        ({"score_fn": "tanh"}, "choose one of"),
        ({"group_score": "mean"}, "choose one of"),
        ({"num_groups": 3}, "does not divide"),
        ({"num_groups": 2, "top_groups": 3}, "only 2 groups"),
        ({"num_groups": 8, "top_groups": 1}, "hold only 1"),
        ({"route_scale": 0.0}, "positive"),
        ({"noise_std": -0.1}, "zero or more"),
        ({"activation": "gelu"}, "choose one of"),
        ({"swiglu_limit": 0.0}, "swiglu_limit is 0.0; give a positive"),
        ({"swiglu_alpha": True}, "swiglu_alpha"),
        ({"expert": 3}, "no key 'expert'"),
    ],
)
def test_a_wrong_layer_says_what_is_wrong(bad: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MoEConfig.from_dict({**MOE, **bad})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_kv_heads": 3}, "does not divide"),
        ({"num_dense_layers": 3, "d_dense": 4}, "of 2 layers"),
        ({"num_dense_layers": 1}, "give d_dense"),
        ({"moe": None}, "all 2 layers are dense"),
        ({"moe": {**MOE, "d_model": 16}}, "d_model 16"),
        ({"moe": {**MOE, "topk": 2}}, "did you mean 'top_k'"),
        ({"attention": "mha"}, "choose one of"),
        ({"qk_norm": "both"}, "choose one of"),
        ({**MLA, "mla_kv_rank": 0}, "mla_kv_rank is 0; give 1"),
        ({"sliding_window": -1}, "sliding_window"),
        ({"full_attention_every": 2}, "no sliding_window"),
        ({"num_layer": 3}, "did you mean 'num_layers'"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; give a positive"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"max_context": 0}, "max_context is 0"),
        ({"num_mtp_layers": -1}, "num_mtp_layers"),
        ({"head_dim": 3}, "even number"),
        ({**MLA, "head_dim": 6}, "mla_nope_dim [+] mla_rope_dim = 4"),
        ({**MLA, "num_kv_heads": 2}, "one key for each head"),
        ({**MLA, "qk_norm": "head"}, "no qk_norm"),
        ({"yarn": {**YARN, "factor": 0}}, "factor is 0; give a positive"),
        ({"yarn": {**YARN, "beta_slow": 64}}, "beta_fast must be larger"),
        ({"yarn": {**YARN, "mscale": -1}}, "mscale is -1"),
        ({"yarn": {"factor": 2.0, "original_contexts": 4}}, "did you mean 'original_context'"),
    ],
)
def test_a_wrong_model_says_what_is_wrong(bad: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelConfig.from_dict({**MODEL, "moe": MOE, **bad})


def test_a_dense_and_a_latent_model_are_fine() -> None:
    assert ModelConfig.from_dict({**MODEL, "moe": None, "num_dense_layers": 2, "d_dense": 4}).num_sparse_layers == 0
    assert ModelConfig.from_dict({**MODEL, **MLA, "moe": MOE}).moe.sparsity == 0.25
    assert ModelConfig.from_dict({**MODEL, **MLA, "moe": MOE, "yarn": YARN}).yarn.factor == 4


def test_which_layers_slide_and_which_are_sparse() -> None:
    more = {"moe": MOE, "num_layers": 5, "num_dense_layers": 1, "d_dense": 4}
    model = ModelConfig.from_dict({**MODEL, **more, "sliding_window": 8, "full_attention_every": 2})
    assert [model.slides(layer) for layer in range(5)] == [True, False, True, False, True]
    assert sum(model.slides(layer) for layer in range(5)) == model.num_window_layers
    assert model.sparse_layers == (1, 2, 3, 4)
    assert not ModelConfig.from_dict({**MODEL, "moe": MOE}).slides(0)


@pytest.mark.parametrize("model", PRESETS.values(), ids=PRESETS.keys())
def test_round_trip(model: ModelConfig) -> None:
    assert ModelConfig.from_dict(model.to_dict()) == model
    assert MoEConfig.from_dict(model.moe.to_dict()) == model.moe


def test_replace_checks_again() -> None:
    config = MoEConfig(**MOE)
    assert config.replace(top_k=4).top_k == 4
    with pytest.raises(ValueError, match="only 8 experts"):
        config.replace(top_k=9)
    with pytest.raises(ValueError, match="did you mean 'top_k'"):
        config.replace(topk=9)


def test_window_layers() -> None:
    model = ModelConfig.from_dict({**MODEL, "num_layers": 5, "moe": MOE, "sliding_window": 4})
    assert model.num_window_layers == 5
    assert model.replace(full_attention_every=2).num_window_layers == 3
    assert model.replace(sliding_window=0).num_window_layers == 0
