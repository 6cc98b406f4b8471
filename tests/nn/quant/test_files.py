"""Packed folders: what was saved comes back bit for bit, as small as it was; damaged and altered ones are refused."""

import copy
import json

import pytest
import safetensors.torch
import tiny_models
import torch
from small import MLA, ids, ours

from labkit.nn import Transformer, quantize
from labkit.nn.quant import SCHEMES, dynamic, load, save
from labkit.nn.quant.files import bytes_on_disk
from labkit.nn.quant.modules import held_of

PACKED = [name for name, scheme in SCHEMES.items() if scheme.dtype is None]


@torch.no_grad()
def same(model, again, batch):
    mine, yours = model.state_dict(), again.state_dict()
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == yours[name].dtype
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), yours[name].reshape(-1).view(torch.uint8)), name
    torch.testing.assert_close(model(batch).logits, again(batch).logits, atol=1e-5, rtol=1e-5)
    assert {p: (m.format, m.settings) for p, m in held_of(model).items()} == {
        p: (m.format, m.settings) for p, m in held_of(again).items()
    }


@pytest.mark.parametrize("scheme", PACKED)
def test_ours_come_back(tmp_path, scheme):
    model = ours(**MLA)
    report = quantize(model, scheme)
    assert save(model, tmp_path / "m") == tmp_path / "m"
    again = load(tmp_path / "m")
    same(model, again, ids())
    assert not again.training
    assert report.after <= bytes_on_disk(tmp_path / "m") < report.after + 40_000


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "mixtral"])
def test_those_of_transformers_come_back(tmp_path, family):
    model = tiny_models.build(family)
    quantize(model, "int8")
    save(model, tmp_path)
    same(model, load(tmp_path), tiny_models.batch().ids_BS)


def test_options_dtypes_and_several_schemes_come_back(tmp_path):
    model = ours(tie_embeddings=True).bfloat16()
    quantize(model, "nf4", rooms="experts", block=32)
    quantize(model, "llm_int8", rooms="attention", threshold=3.0)
    quantize(model, "int8_group", rooms=("embedding", "head"), group=16)
    save(model, tmp_path, max_shard_bytes=30_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    again = load(tmp_path)
    same(model, again, ids())
    assert again.embed.held is again.head.held
    assert again.layers[0].attention.query.scheme == model.layers[0].attention.query.scheme
    assert again(ids()).logits.dtype == torch.bfloat16


def test_a_tied_embedding_is_stored_once(tmp_path):
    model = ours(tie_embeddings=True)
    quantize(model, "int8")
    save(model, tmp_path)
    again = load(tmp_path)
    same(model, again, ids())
    assert again.head.weight is again.embed.weight
    assert "head.weight" not in safetensors.torch.load_file(tmp_path / "model.safetensors")


def test_plain_loading_names_the_reason(tmp_path):
    model = ours()
    with pytest.raises(ValueError, match="has no packed weights; quantize it first"):
        save(model, tmp_path)
    quantize(model, "int8")
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"no configuration of a model|quantised"):
        Transformer.from_pretrained(tmp_path)
    dynamic(model := ours(), [ids()])
    with pytest.raises(ValueError, match="experts in two precisions are not stored"):
        save(model, tmp_path / "two")
    lonely = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantize(lonely, "int8", rooms="other")
    with pytest.raises(ValueError, match="neither a labkit Transformer nor a model of transformers"):
        save(lonely, tmp_path / "other")


@pytest.fixture
def folder(tmp_path):
    model = ours()
    quantize(model, "nf4")
    return save(model, tmp_path / "saved")


def rewritten(folder, change):
    """The folder with other tensors, as someone would write it who knows no checksum."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


NAME = "layers.1.ffn.experts.up.codes"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NAME), rf"lacks {NAME}"),
        (lambda t: t.update({"more": torch.ones(1)}), "has more"),
        (lambda t: t.update({NAME: t[NAME][..., :-1].contiguous()}), rf"{NAME} is \(4, 64, 31\) torch.uint8, but"),
        (lambda t: t.update({NAME: t[NAME].to(torch.int32)}), rf"{NAME} is \(4, 64, 32\) torch.int32, but"),
    ],
)
def test_other_tensors_are_refused(folder, change, words):
    rewritten(folder, change)
    with pytest.raises(ValueError, match=words):
        load(folder)


@pytest.mark.parametrize("where", [0.2, 0.6, 0.99])
def test_altered_bytes_are_refused(folder, where):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little") + 8
    data[header + int(where * (len(data) - header))] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="altered after it was written"):
        load(folder)


def test_cut_and_missing_files_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="give a folder that `save` wrote"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["quantization_config"].update(quant_method="bitsandbytes"), "holds bitsandbytes quantisation"),
        (lambda c: c.pop("quantization_config"), "holds no quantisation that is read here"),
        (lambda c: c["quantization_config"]["modules"]["layers.0.attention.query"].update(scheme="int3"), "int3"),
        (lambda c: c["quantization_config"]["modules"].update({"layers.9": {"scheme": "nf4"}}), "layers.9"),
        (lambda c: c["quantization_config"]["modules"].update({"norm": {"scheme": "nf4"}}), "packs nothing there"),
        (lambda c: c["quantization_config"]["modules"].pop("layers.0.attention.query"), "layers.0.attention.query"),
        (lambda c: c["labkit"].update(num_layers=1), "layers.1"),
    ],
)
def test_other_configurations_are_refused(folder, change, words):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load(folder)


def test_a_loaded_model_can_be_quantised_further(folder):
    model = load(folder)
    before = copy.deepcopy(model)
    quantize(model, "int8", rooms=("embedding", "head"))
    assert not torch.equal(model(ids()).logits, before(ids()).logits)
