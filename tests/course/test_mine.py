"""The learner's trained model is kept whole, found again, and never in the way."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import labkit
from labkit.core.config import ModelConfig, MoEConfig
from labkit.course import mine, progress
from labkit.nn import Transformer
from labkit.train.tokenizer import byte_tokenizer

MOE = MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2)


def small(seed: int = 0) -> tuple[Transformer, object]:
    tokenizer = byte_tokenizer()
    config = ModelConfig(
        "mine", len(tokenizer), 2, 16, num_heads=4, num_kv_heads=2, head_dim=4, moe=MOE, qk_norm="head"
    )
    model = Transformer(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model, tokenizer


def test_keep_and_find() -> None:
    model, tokenizer = small()
    folder = mine.keep_model(model, tokenizer, {"steps": 3, "loss": {"code": 2.5}})
    assert folder.parent == progress.home()
    found = labkit.my_model()
    assert (found.whose, found.notes["loss"]["code"], found.folder) == ("yours", 2.5, folder)
    ids = torch.tensor([found.tokenizer("def f(x):")["input_ids"]])
    torch.testing.assert_close(found.model(ids).logits, model.eval()(ids).logits)
    assert not found.model.training
    assert "your own model" in repr(found)
    assert not [path for path in progress.home().iterdir() if path.name.startswith(".model-")]


def test_the_new_one_takes_the_place_of_the_old_one() -> None:
    for seed in (1, 2):
        mine.keep_model(*small(seed), {"seed": seed})
    assert labkit.my_model().notes == {"seed": 2}
    assert mine.forget_model()
    assert not mine.forget_model()
    with pytest.raises(FileNotFoundError, match="lab 07 trains one"):
        labkit.my_model("yours")


def test_a_failure_keeps_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mine.keep_model(*small(1), {"seed": 1})

    def broken(self: Transformer, folder: Path, **options: object) -> Path:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Transformer, "save_pretrained", broken)
    with pytest.raises(OSError, match="full"):
        mine.keep_model(*small(2), {"seed": 2})
    assert labkit.my_model("yours").notes == {"seed": 1}


def test_what_cannot_be_kept_says_so() -> None:
    model, tokenizer = small()
    with pytest.raises(ValueError, match="notes must be"):
        mine.keep_model(model, tokenizer, {"model": model})
    tight = Transformer(model.config.replace(vocab_size=100))
    with pytest.raises(ValueError, match="only 100"):
        mine.keep_model(tight, tokenizer)
    with pytest.raises(ValueError, match="choose one of"):
        labkit.my_model("ours")


def test_a_damaged_model_of_yours_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = mine.keep_model(*small(1))
    shipped, _ = mine.keep_model(*small(2)), None
    shipped.rename(tmp_path / "shipped")
    monkeypatch.setattr(mine, "data_path", lambda name: tmp_path / "shipped")
    mine.keep_model(*small(1))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="your model cannot be read"):
        found = labkit.my_model()
    assert found.whose == "shipped"
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        labkit.my_model("yours")


def test_the_shipped_model_is_one_of_a_course() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mine.shipped_model()
    assert found.whose == "shipped"
    assert len(found.tokenizer) <= found.model.config.vocab_size
    size = sum(path.stat().st_size for path in found.folder.iterdir())
    assert size <= 25e6
    assert json.loads((found.folder / "config.json").read_text())["model_type"] == "qwen3_moe"
