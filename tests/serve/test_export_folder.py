"""What is wrong with a folder is found and named; what is right passes without a word."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_models import FAMILIES, PLAIN, seeded
from safetensors.torch import load_file, save_file
from test_export_hf import words

from labkit.core.names import to_hf_config
from labkit.core.presets import PRESETS, preset
from labkit.nn import interop
from labkit.serve.export import check_folder, end_of_answers, served_by, to_hf

SHAPE_OF_NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """A folder in one file, one in shards, and one of DeepSeek-V3, with nothing wrong."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("plain", "shards", "deepseek_v3", "mtp")}
    for name, folder in folders.items():
        config = FAMILIES.get(name, PLAIN) if name != "mtp" else FAMILIES["deepseek_v3"].replace(num_mtp_layers=1)
        size = 8000 if name == "shards" else 10**9
        report = to_hf(seeded(config), folder, tokenizer=words(), check=False, max_shard_bytes=size)
        assert report.check.findings == ()
        assert "nothing is missing or contradictory" in str(report.check)
    return folders


def configured(file: str = "config.json", **changes):
    """A change to a JSON file; None removes a key."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


def tensors(**changes):
    """A change to the one file of tensors; None removes one."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        values = {**load_file(path), **changes}
        save_file({key: value for key, value in values.items() if value is not None}, path, metadata={"format": "pt"})

    return change


def widened(folder: Path) -> None:
    tensors(**{key: value.double() for key, value in load_file(folder / "model.safetensors").items()})(folder)


def first_shard(folder: Path) -> Path:
    return next(folder.glob("model-00001-of-*.safetensors"))


def written(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def removed(name: str):
    return lambda folder: (folder / name).unlink()


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


NO_END = both(
    configured(eos_token_id=None), configured("generation_config.json", eos_token_id=None),
    configured("tokenizer_config.json", eos_token=None),
)  # fmt: skip
CASES = {
    "no configuration": ("plain", removed("config.json"), "error", r"config\.json: is missing"),
    "broken configuration": ("plain", written("config.json", "{"), "error", "cannot be read"),
    "a list": ("plain", written("config.json", "[]"), "error", "holds no JSON object"),
    "another family": ("plain", configured(model_type="llama"), "error", "no map for model_type 'llama'"),
    "an unknown key": ("plain", configured(wings=2), "error", "a key 'wings'"),
    "no architectures": ("plain", configured(architectures=None), "error", "architectures is missing"),
    "wrong architectures": (
        "plain", configured(architectures=["OlmoeForCausalLM"]), "error", r"means \['MixtralForCausalLM'\]",
    ),
    "no score function": ("deepseek_v3", configured(scoring_func=None), "error", "scoring_func is missing.*'sigmoid'"),
    "no method": ("deepseek_v3", configured(topk_method=None), "error", "topk_method is missing.*'noaux_tc'"),
    "no frequency": ("deepseek_v3", configured(moe_layer_freq=None), "error", "moe_layer_freq is missing"),
    "no theta": ("plain", configured(rope_theta=None), "warning", "rope_theta is missing"),
    "two thetas": ("plain", configured(rope_theta=5.0), "error", "rope_theta is given as 5.0 and as 10000.0"),
    "no dtype": ("plain", configured(dtype=None), "warning", "dtype is missing"),
    "two dtypes": ("plain", configured(torch_dtype="bfloat16"), "error", "dtype is 'float32' but torch_dtype"),
    "another dtype": ("plain", configured(dtype="bfloat16"), "warning", "stored as float32; servers convert"),
    "a wide dtype": ("plain", both(configured(dtype="float64"), widened), "warning", "no server computes"),
    "packed": ("plain", configured(quantization_config={"quant_method": "labkit"}), "error", "packed by labkit"),
    "a pickle": ("plain", written("old.bin", ""), "warning", "old.bin: is a pickle"),
    "no tokenizer": ("plain", removed("tokenizer.json"), "warning", "token ids only"),
    "half a tokenizer": ("plain", removed("tokenizer_config.json"), "warning", "special tokens are not known"),
    "a large tokenizer": ("plain", configured(vocab_size=4), "error", r"holds token 5, but vocab_size is 4"),
    "a new class": (
        "plain", configured("tokenizer_config.json", tokenizer_class="TokenizersBackend"), "warning",
        "transformers 4 does not know",
    ),
    "no chat": ("plain", removed("chat_template.jinja"), "note", "no chat_template"),
    "an end out of range": ("plain", configured(eos_token_id=40), "error", r"eos_token_id is \[40\]; the vocabulary"),
    "two ends": ("plain", configured("generation_config.json", eos_token_id=3), "error", "give one everywhere"),
    "another end in the tokenizer": (
        "plain", configured("tokenizer_config.json", eos_token="w4"), "error", r"\[4\] in tokenizer_config\.json",
    ),
    "no end": ("plain", NO_END, "warning", "answers end at their longest"),
    "a tensor less": ("plain", tensors(**{SHAPE_OF_NORM: None}), "error", "lacks model.norm.weight"),
    "a tensor more": ("plain", tensors(extra=torch.ones(1)), "error", "holds extra, which"),
    "another shape": ("plain", tensors(**{SHAPE_OF_NORM: torch.ones(3)}), "error", r"shape \(3,\).* says \(16,\)"),
    "tied, but a head": ("plain", configured(tie_word_embeddings=True), "note", "lm_head.weight beside tied"),
    "untied, but no head": ("plain", tensors(**{"lm_head.weight": None}), "error", "lacks lm_head.weight"),
    "a wrong total": (
        "shards", configured("model.safetensors.index.json", metadata={"total_size": 5}), "warning",
        "total_size is 5, but the shards hold",
    ),
    "a shard too many": (
        "shards", lambda folder: save_file({"a": torch.ones(1)}, folder / "more.safetensors"), "warning",
        "more.safetensors: is not named by the index",
    ),
    "a shard too few": ("shards", lambda folder: first_shard(folder).unlink(), "error", "lacks model-00001"),
    "a cut file": (
        "plain", lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "error",
        "no whole safetensors file",
    ),
    "no multi-token modules": (
        "mtp", lambda folder: tensors(**{
            name: None for name in load_file(folder / "model.safetensors") if name.startswith("model.layers.2.")
        })(folder), "note", "lacks the multi-token modules",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(case, sound, tmp_path):
    which, change, level, says = CASES[case]
    folder = Path(shutil.copytree(sound[which], tmp_path / "folder"))
    change(folder)
    report = check_folder(folder)
    found, *others = report.findings
    assert found.level == level
    assert re.search(says, str(report))
    assert report.ok == (level != "error")
    if level != "error":
        assert others == []


def test_no_folder_is_no_finding(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        check_folder(tmp_path / "none")


def test_the_end_of_answers(sound, tmp_path):
    assert end_of_answers(sound["plain"]) == 1
    assert end_of_answers(tmp_path) is None
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert end_of_answers(tmp_path) == 3
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
    assert end_of_answers(tmp_path) == 5


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).moe])
def test_published_models_are_served_by_all(name):
    config = preset(name)
    found = served_by(config)
    assert [each.program for each in found] == ["vLLM", "SGLang", "transformers", "ONNX Runtime"]
    assert all(each.serves and not each.why and each.source for each in found)
    assert served_by(to_hf_config(config, interop.family_of(config))) == found


@pytest.mark.parametrize(
    ("name", "changes", "program", "says"),
    [
        ("olmoe-1b-7b", {"tie_embeddings": True}, "vLLM", "lm_head.weight"),
        ("olmoe-1b-7b", {"norm_eps": 1e-6}, "vLLM", "epsilon of 1e-5"),
        ("olmoe-1b-7b", {"moe": {"norm_topk": True}}, "SGLang", "never renormalised"),
        ("olmoe-1b-7b", {"num_kv_heads": 4}, "SGLang", "as many key heads"),
        ("qwen3-30b-a3b", {"attention_bias": True}, "vLLM", "no biases"),
        ("qwen3-30b-a3b", {"tie_embeddings": True}, "SGLang", "lm_head.weight"),
        ("qwen3-30b-a3b", {"num_dense_layers": 1, "d_dense": 64}, "SGLang", "every layer is sparse"),
        ("mixtral-8x7b", {"sliding_window": 64}, "SGLang", "no sliding window"),
        ("mixtral-8x7b", {"head_dim": 64}, "SGLang", "d_model / num_heads"),
        ("deepseek-v3", {"rope_interleaved": False}, "vLLM", "neighbouring dimensions"),
        ("deepseek-v3", {"norm_eps": 1e-5}, "SGLang", "not with 1e-6"),
        ("deepseek-v2-lite", {"moe": {"num_shared_experts": 0}}, "vLLM", "shared experts"),
        ("gpt-oss-20b", {"yarn": None}, "vLLM", "YaRN"),
        ("gpt-oss-20b", {"full_attention_every": 3}, "vLLM", "every second layer"),
        ("gpt-oss-20b", {"attention_bias": False}, "vLLM", "has biases"),
        ("gpt-oss-20b", {"moe": {"swiglu_limit": 5.0}}, "vLLM", "limit 7"),
        ("gpt-oss-20b", {"moe": {"swiglu_alpha": 1.5}}, "SGLang", "alpha 1.702"),
    ],
)
def test_what_a_program_takes_for_granted_is_told(name, changes, program, says):
    config = preset(name)
    if "moe" in changes:
        changes = {"moe": config.moe.replace(**changes["moe"])}
    (found,) = [each for each in served_by(config.replace(**changes)) if each.program == program]
    assert not found.serves
    assert says in str(found)


def test_a_model_of_no_family_runs_in_onnx_runtime_alone():
    odd = PLAIN.replace(qk_norm="head", sliding_window=3)
    dense = PLAIN.replace(moe=None, num_dense_layers=2, d_dense=8)
    for config in (odd, dense):
        assert [each.serves for each in served_by(config)] == [False, False, False, True]
    with pytest.raises(ValueError, match="served_by takes"):
        served_by(3)


def test_who_serves_what_is_answered_without_torch():
    here = str(Path(__file__).parents[2])
    code = (
        f"import sys; sys.path.insert(0, {here!r})\n"
        "from labkit.core.presets import preset\nfrom labkit.serve.export import served_by\n"
        "served_by(preset('deepseek-v3'))\nprint(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "onnx", "onnxruntime", "transformers"} & {name.split(".")[0] for name in loaded} == set()
