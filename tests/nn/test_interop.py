"""Hugging Face folders: transformers' own files in and out, nothing missing, nothing extra."""

import json
from pathlib import Path

import pytest
import torch
from random_models import FAMILIES, saved, theirs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig
from labkit.core.presets import PRESETS, preset
from labkit.nn import Transformer, interop
from labkit.nn.tensor_names import WORDS, pieces

MOE = MoEConfig(d_model=16, d_expert=6, num_experts=4, top_k=2)
PLAIN = ModelConfig("plain", 40, 2, 16, num_heads=4, num_kv_heads=2, head_dim=4, moe=MOE, rope_theta=1e6)
LATENT = PLAIN.replace(
    num_kv_heads=4, head_dim=8, attention="mla", mla_kv_rank=6, mla_nope_dim=4, mla_rope_dim=4, mla_v_dim=3,
    num_dense_layers=1, d_dense=20, rope_interleaved=True, yarn=YarnConfig(4.0, 16, mscale=1.0, mscale_all_dim=0.5),
    moe=MOE.replace(num_shared_experts=2, norm_topk=False, num_groups=2, top_groups=1),
)  # fmt: skip
CONFIGS = {
    "mixtral": PLAIN,
    "olmoe": PLAIN.replace(qk_norm="full", tie_embeddings=True, moe=MOE.replace(norm_topk=False)),
    "qwen3_moe": PLAIN.replace(qk_norm="head", num_dense_layers=1, d_dense=20, attention_bias=True),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT.replace(
        mla_q_rank=6, attention_bias=True,
        moe=LATENT.moe.replace(score_fn="sigmoid", selection_bias=True, group_score="top2_sum", norm_topk=True),
    ),
    "gpt_oss": PLAIN.replace(
        attention_bias=True, attention_sinks=True, sliding_window=3, full_attention_every=2,
        yarn=YarnConfig(8.0, 16, truncate=False),
        moe=MOE.replace(score_fn="topk_softmax", router_bias=True, expert_bias=True, activation="clamped_swiglu"),
    ),
}  # fmt: skip


def seeded(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model in which no two tensors are alike."""
    model, generator = Transformer(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values():
            tensor.normal_(std=0.2, generator=generator)
    return model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def altered(folder: Path, change) -> Path:
    """The folder, its one file written again after `change(tensors)`; without our checksums."""
    tensors = stored(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def equal(a: Transformer, b: Transformer) -> bool:
    ours, other = a.state_dict(), b.state_dict()
    return ours.keys() == other.keys() and all(torch.equal(ours[name], other[name]) for name in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_values_are_transformers_own(family: str, tmp_path: Path) -> None:
    wanted = stored(saved(theirs(CONFIGS[family], family), tmp_path))
    model = Transformer.from_pretrained(tmp_path)
    ours = interop.to_hf(model)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert model.config.replace(name="") == CONFIGS[family].replace(name="")
    assert WORDS[family].architecture == json.loads((tmp_path / "config.json").read_text())["architectures"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_ours_whole(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = seeded(CONFIGS[family])
    model.save_pretrained(tmp_path, max_shard_bytes=5000)
    loaded, told = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, experts_implementation="eager"
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded).__name__ == WORDS[family].architecture
    assert loaded.dtype == torch.float32
    ids = torch.arange(7)[None] % 5
    torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id is None
    assert loaded.config.eos_token_id is None


@pytest.mark.parametrize("limit", [10**9, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_changes_nothing(family: str, dtype: torch.dtype, limit: int, tmp_path: Path) -> None:
    config = CONFIGS[family].replace(name="a/name")
    model = seeded(config).to(dtype)
    if family == "deepseek_v3":
        for block in model.layers[1:]:
            block.ffn.router.expert_bias_E = block.ffn.router.expert_bias_E.to(
                torch.promote_types(dtype, torch.float32)
            )
    assert model.save_pretrained(tmp_path, max_shard_bytes=limit) == tmp_path
    again = Transformer.from_pretrained(tmp_path)
    assert equal(again, model)
    assert (again.config, again.dtype, again.training) == (config, dtype, False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or limit == 4000
    assert all(p.requires_grad for p in again.parameters())
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert (again.head.weight is again.embed.weight) == config.tie_embeddings


def test_the_dtype_asked_for(tmp_path: Path) -> None:
    seeded(CONFIGS["deepseek_v3"]).save_pretrained(tmp_path)
    half = Transformer.from_pretrained(str(tmp_path), dtype=torch.bfloat16, device="cpu", implementation="loop")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.layers[1].ffn.router.expert_bias_E.dtype == torch.float32
    assert half.layers[1].ffn.experts.implementation == "loop"
    for bad in (torch.int64, "float32", torch.float8_e4m3fn):
        with pytest.raises(ValueError, match="dtype is"):
            Transformer.from_pretrained(tmp_path, dtype=bad)


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).moe])
def test_published_sizes(name: str) -> None:
    """Every element of every published model has one place in the files."""
    config = preset(name)
    family = interop.family_of(config)
    with torch.device("meta"):
        model = Transformer(config)
    names, elements = set(), 0
    for ours, tensor in model.state_dict().items():
        if ours == "head.weight" and config.tie_embeddings:
            continue
        found = pieces(ours, tensor.shape, config, family)
        parts = [tensor[piece.where] if piece.where else tensor for piece in found]
        assert sum(part.numel() for part in parts) == tensor.numel()
        assert names.isdisjoint(piece.name for piece in found)
        names.update(piece.name for piece in found)
        elements += tensor.numel()
    assert elements == sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())


def test_names_that_no_file_has() -> None:
    for name in ("layers.0.ffn.experts.bias", "other.weight", "layers.0.ffn.other.weight"):
        with pytest.raises(ValueError, match="files"):
            pieces(name, torch.Size([4, 4]), PLAIN, "mixtral")


def mtp_names(config: ModelConfig) -> set[str]:
    block = {name.removeprefix("model.layers.1.") for name in interop.to_hf(seeded(config)) if ".layers.1." in name}
    return {f"model.layers.2.{name}" for name in block | {
        "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"
    }}  # fmt: skip


def test_multi_token_modules(tmp_path: Path) -> None:
    config = CONFIGS["deepseek_v3"].replace(num_mtp_layers=1)
    model = seeded(config)
    model.save_pretrained(tmp_path)
    assert {name for name in stored(tmp_path) if ".layers.2." in name} == mtp_names(config)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert equal(Transformer.from_pretrained(tmp_path), model)


def test_multi_token_modules_repeat_embedding_and_head(tmp_path: Path) -> None:
    model = seeded(CONFIGS["deepseek_v3"].replace(num_mtp_layers=1))
    model.save_pretrained(tmp_path)
    copies = {
        "model.layers.2.embed_tokens.weight": model.embed.weight.detach().clone(),
        "model.layers.2.shared_head.head.weight": model.head.weight.detach().clone(),
    }
    altered(tmp_path, lambda tensors: tensors.update(copies))
    assert equal(Transformer.from_pretrained(tmp_path), model)
    for name in copies:
        altered(tmp_path, lambda tensors, name=name: tensors.update(copies | {name: copies[name] + 1}))
        with pytest.raises(ValueError, match=f"{name} should repeat"):
            Transformer.from_pretrained(tmp_path)


def test_multi_token_modules_are_all_there_or_none(tmp_path: Path) -> None:
    config = CONFIGS["deepseek_v3"].replace(num_mtp_layers=2)
    model = seeded(config)
    model.save_pretrained(tmp_path)
    altered(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.3." in name])
    with pytest.raises(ValueError, match=r"lacks model\.layers\.3"):
        Transformer.from_pretrained(tmp_path)
    altered(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.2." in name])
    without = Transformer.from_pretrained(tmp_path)
    assert without.config == config.replace(num_mtp_layers=0)
    ids = torch.arange(5)[None]
    assert torch.equal(without(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        ("mixtral", lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight"),
        ("mixtral", lambda t: t.pop("model.layers.1.block_sparse_moe.experts.3.w2.weight"), "lacks .*experts.3.w2"),
        ("mixtral", lambda t: t.pop("lm_head.weight"), "lacks lm_head.weight"),
        ("mixtral", lambda t: t.update({"model.layers.0.mlp.gate.weight": torch.ones(4)}), "has .*mlp.gate.weight"),
        ("mixtral", lambda t: t.update({f"x{i}": torch.ones(1) for i in range(5)}), "has x0, x1, x2 and 2 more"),
        ("qwen3_moe", lambda t: t.pop("model.layers.1.self_attn.q_proj.bias"), "lacks .*q_proj.bias"),
        ("qwen3_moe", lambda t: t.update({"model.norm.weight": torch.ones(17)}), r"norm.weight has shape \(17,\)"),
        ("qwen3_moe", lambda t: t.update({"model.norm.weight": torch.ones(1)}), r"norm.weight has shape \(1,\)"),
        (
            "olmoe",
            lambda t: t.update({"model.layers.0.mlp.experts.1.up_proj.weight": torch.ones(16, 6)}),
            r"experts.1.up_proj.weight has shape \(16, 6\), but config.json says \(6, 16\)",
        ),
        ("olmoe", lambda t: t.update({"lm_head.weight": torch.ones(40, 16)}), "lm_head.weight should repeat"),
        (
            "gpt_oss",
            lambda t: t.update({"model.layers.0.mlp.experts.gate_up_proj": torch.ones(4, 12, 16)}),
            r"gate_up_proj has shape \(4, 12, 16\), but config.json says \(4, 16, 12\)",
        ),
        ("gpt_oss", lambda t: t.update({"model.layers.0.mlp.experts.down_proj": torch.ones(4)}), r"shape \(4,\)"),
        ("gpt_oss", lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int32)}), "stored as I32"),
    ],
)
def test_what_does_not_fit_is_named(family: str, change, says: str, tmp_path: Path) -> None:
    seeded(CONFIGS[family]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=says):
        Transformer.from_pretrained(altered(tmp_path, change))


def test_what_nobody_reads_may_be_there(tmp_path: Path) -> None:
    model = seeded(CONFIGS["olmoe"])
    model.save_pretrained(tmp_path)
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.rotary_emb.inv_freq": torch.ones(2),
        "lm_head.weight": model.embed.weight.detach().clone(),
    }
    assert equal(Transformer.from_pretrained(altered(tmp_path, lambda tensors: tensors.update(old))), model)


def test_damage_is_told(tmp_path: Path) -> None:
    seeded(PLAIN).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        Transformer.from_pretrained(tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    with pytest.raises(ValueError, match="was altered after it was written"):
        Transformer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no .*config.json"),
        ("{", "is no configuration of a model"),
        ("[]", "is no configuration of a model"),
        ("{}", "model_type"),
        ('{"model_type": "llama"}', "no map for model_type 'llama'"),
        ('{"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}', "weights are quantised"),
    ],
)
def test_configurations_that_are_none(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        Transformer.from_pretrained(tmp_path)


def test_a_model_that_no_family_expresses(tmp_path: Path) -> None:
    model = Transformer(PLAIN.replace(qk_norm="head", sliding_window=3))
    with pytest.raises(ValueError, match="no family of transformers can express"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def words():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", "a", "cat", "sat"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("raw", [True, False])
def test_the_tokenizer_goes_along(raw: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = words()
    if not raw:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", padding_side="left"
        )
    seeded(PLAIN).save_pretrained(tmp_path, tokenizer=tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode("a cat sat dog", add_special_tokens=False) == [3, 4, 5, 2]
    ends = (None, None) if raw else (1, 0)
    assert (again.eos_token_id, again.pad_token_id) == ends
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for config in (loaded.config, loaded.generation_config):
        assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (*ends, None)
    if not raw:
        batch = again(["a", "a cat sat"], padding=True, return_tensors="pt")
        assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


def test_tokenizers_that_do_not_belong(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    large = Tokenizer(WordLevel({str(i): i for i in range(41)}, unk_token="0"))
    with pytest.raises(ValueError, match="the tokenizer has 41 tokens, the model 40"):
        seeded(PLAIN).save_pretrained(tmp_path, tokenizer=large)
    with pytest.raises(ValueError, match="tokenizer is a dict"):
        seeded(PLAIN).save_pretrained(tmp_path, tokenizer={})
    assert not list(tmp_path.iterdir())


def test_a_later_save_replaces_the_earlier_one(tmp_path: Path) -> None:
    for seed, limit in ((0, 3000), (1, 10**9), (2, 3000)):
        model = seeded(PLAIN, seed)
        model.save_pretrained(tmp_path, max_shard_bytes=limit)
        assert equal(Transformer.from_pretrained(tmp_path), model)


def test_every_file_can_be_read_by_the_group_as_the_umask_says(tmp_path: Path) -> None:
    seeded(PLAIN).save_pretrained(tmp_path)
    (tmp_path / "other").write_text("")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_metadata_says_torch(tmp_path: Path) -> None:
    seeded(PLAIN).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_packed_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    from labkit.nn.quant import quantize

    model = seeded(PLAIN)
    quantize(model, "int8")
    for act in (lambda: model.save_pretrained(tmp_path / "out"), lambda: interop.to_hf(model)):
        with pytest.raises(ValueError, match=r"layers\.0.* packed weights.*labkit\.nn\.quant\.save"):
            act()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [
    "layers.0.attention.query.held.codes", "layers.0.attention.other.weight", "layers.0.ffn.router.table",
    "layers.0.ffn.gate", "layers.0.ffn.experts.gate_up_bias_E2F",
])  # fmt: skip
def test_names_that_no_layer_has(name: str) -> None:
    with pytest.raises(ValueError, match="files"):
        pieces(name, torch.Size([4, 4]), PLAIN, "mixtral")


def test_deepseek_v3_says_what_other_servers_read(tmp_path: Path) -> None:
    seeded(CONFIGS["deepseek_v3"]).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert (said["scoring_func"], said["topk_method"], said["moe_layer_freq"]) == ("sigmoid", "noaux_tc", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_positions_are_said_in_the_words_of_transformers_4_too(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family]
    seeded(config).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["rope_theta"] == config.rope_theta
    assert (said["rope_scaling"] or {}).get("factor") == (config.yarn.factor if config.yarn else None)
    del said["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert Transformer.from_pretrained(tmp_path).config == config
