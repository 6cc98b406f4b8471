"""A folder for other servers: whole, without contradictions, and computing what the model computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_models import FAMILIES, PLAIN, prompts, seeded

from labkit.nn import Transformer
from labkit.nn.quant import quantize
from labkit.serve.export import check_folder, compare, hf, to_hf

TRAINED = Path(__file__).parents[2] / "data" / "checkpoints" / "four-domains"


def words(size: int = 6):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="w1", pad_token="w2", bos_token="w3", chat_template="{{ messages }}"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same(family, tmp_path):
    model = seeded(FAMILIES[family])
    report = to_hf(model, tmp_path / "out", tokenizer=words(), max_shard_bytes=8000)
    assert report.check.ok
    assert report.check.findings == ()
    assert 0 < report.compared.difference <= compare.TOLERANCE
    assert report.compared.positions == 14
    assert report.nbytes > 8000
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert "transformers' logits at 14 positions" in str(report)
    again = Transformer.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The trained checkpoint's folder with something of its own to carry along, for other servers, untied."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    for path in TRAINED.glob("*.*"):
        (source / path.name).write_bytes(path.read_bytes())
    generation = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps({**generation, "temperature": 0.7}))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    told = []
    report = to_hf(source, out, untie=True, on_progress=lambda share, what: told.append(share))
    assert report.check.findings == ()
    assert told == sorted(told)
    assert told[-1] == 1.0
    return out


def test_a_folder_brings_its_tokenizer_and_its_settings_along(trained):
    from transformers import AutoTokenizer

    text = "def add(a, b):\n    return a + b"
    assert AutoTokenizer.from_pretrained(trained).encode(text) == AutoTokenizer.from_pretrained(TRAINED).encode(text)
    told = json.loads((trained / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (trained / "chat_template.jinja").read_text() == "{{ messages }}"
    config, generation = (json.loads((trained / n).read_text()) for n in ("config.json", "generation_config.json"))
    assert generation["temperature"] == 0.7
    assert [config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [0, 0, 1]
    assert [generation[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [0, 0, 1]
    assert not list(trained.glob(".*"))


def test_an_untied_head_is_a_tensor_of_its_own_and_answers_stay(trained):
    model, tied = Transformer.from_pretrained(trained), Transformer.from_pretrained(TRAINED)
    assert tied.config.tie_embeddings
    assert not model.config.tie_embeddings
    assert torch.equal(model.head.weight, tied.embed.weight)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tied(ids).logits)


def test_untying_changes_neither_the_model_nor_one_that_is_untied(tmp_path):
    tied, free = seeded(FAMILIES["olmoe"]), seeded(PLAIN)
    to_hf(tied, tmp_path / "tied", untie=True, check=False)
    assert tied.config.tie_embeddings
    assert tied.head.weight is tied.embed.weight
    report = to_hf(free, tmp_path / "free", untie=True, check=False)
    assert "logits not compared" in str(report)
    assert Transformer.from_pretrained(tmp_path / "free").config == free.config


def test_the_dtype_asked_for_and_the_selection_bias_kept_wide(tmp_path):
    model = seeded(FAMILIES["deepseek_v3"])
    report = to_hf(model, tmp_path, dtype=torch.bfloat16, check=False)
    assert report.check.ok
    again = Transformer.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    ours, theirs = (m.layers[1].ffn.router.expert_bias_E for m in (model, again))
    assert theirs.dtype == torch.float32
    assert torch.equal(ours, theirs)
    assert model.dtype == torch.float32


def test_what_computes_something_else_is_told(tmp_path):
    model = seeded(PLAIN)
    to_hf(model, tmp_path, check=False)
    with torch.no_grad():
        model.layers[0].ffn.router.weight_ED[0] += 1
    with pytest.raises(RuntimeError, match="logits differ by"):
        hf.compare(model, tmp_path)


def test_a_folder_that_computes_something_else_is_never_put_in_place(tmp_path, monkeypatch):
    to_hf(seeded(PLAIN), tmp_path / "out", check=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(compare, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="not put in its place"):
        to_hf(seeded(PLAIN, seed=1), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_later_export_leaves_nothing_of_an_earlier_one(tmp_path):
    to_hf(seeded(PLAIN), tmp_path, tokenizer=words(), check=False, max_shard_bytes=8000)
    (tmp_path / "README.md").write_text("mine")
    report = to_hf(seeded(PLAIN, seed=1), tmp_path, check=False)
    names = ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert check_folder(tmp_path).findings == report.check.findings


def test_comparing_sees_nan_and_every_real_position():
    model = seeded(PLAIN)
    found = compare.farthest(model, lambda ids, mask: torch.full((*ids.shape, 40), float("nan")))
    assert (found.difference, found.positions) == (float("inf"), 14)
    with pytest.raises(RuntimeError, match="logits differ by inf"):
        found.need_close()
    ids, mask = prompts()
    with torch.no_grad():
        assert torch.equal(compare.wide(model)(ids, mask).logits, model(ids, mask).logits)


@pytest.mark.parametrize(("difference", "largest", "near"), [
    (9e-5, 0.1, True), (2e-4, 0.1, False), (2e-4, 3.0, True), (4e-4, 3.0, False), (float("nan"), 3.0, False),
])  # fmt: skip
def test_close_is_in_absolute_numbers_up_to_one_then_in_the_logits_measure(difference, largest, near):
    found = compare.Compared(difference, largest, 1)
    if near:
        assert found.need_close() is found
    else:
        with pytest.raises(RuntimeError, match="differ"):
            found.need_close()


def packed() -> Transformer:
    model = seeded(PLAIN)
    quantize(model, "int8")
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (packed, "packed weights"),
        (lambda: seeded(PLAIN.replace(qk_norm="head", sliding_window=3)), "no family of transformers"),
        (lambda: "nowhere", r"there is no nowhere.config\.json"),
    ],
)
def test_what_cannot_be_written_says_why(make, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        to_hf(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_never_written_over_itself(tmp_path):
    to_hf(seeded(PLAIN), tmp_path, check=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="the folder that is read"):
        to_hf(tmp_path, f"{tmp_path}/.")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_contradicts_itself_is_no_success(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    to_hf(seeded(PLAIN), source, tokenizer=words(), check=False)
    path = source / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 77}))
    with pytest.raises(ValueError, match=r"eos_token_id is \[77\]; the vocabulary is \[0, 40\)"):
        to_hf(source, out, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
