"""The command that makes the shipped model: its small sister goes all the way, and the card says what was measured."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from labkit.core.cost import model_params
from labkit.core.runtime import data_path
from labkit.course import mine
from labkit.course.cli import app
from labkit.course.recipe import MIXTURE, PROMPTS, RECIPES, make
from labkit.course.run import Interrupted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("recipe") / "model", "cpu", say=lambda words: None)


def same(one: Path, other: Path) -> None:
    """The same weights, bit for bit; the order of the file's header is not ours to decide."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_folder_is_whole(made: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    ids = torch.tensor([tokenizer("def f(x):")["input_ids"]])
    ours = mine._load(made, "shipped", None, None)
    torch.testing.assert_close(model(ids).logits, ours.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert not made.with_name("model.work").exists()


def test_the_card_says_what_was_measured(made: Path) -> None:
    card, notes = (made / "README.md").read_text(), json.loads((made / "notes.json").read_text())
    assert set(notes["nats_per_token"]) == {"model", "unigram", "5-gram"}
    for who, losses in notes["nats_per_token"].items():
        assert set(losses) == set(MIXTURE), who
        assert all(f"{value:.3f}" in card for value in losses.values())
    assert all(domain in card for domain in PROMPTS)
    assert (made / "curve.png").stat().st_size > 1000


def test_the_same_command_makes_the_same_weights(made: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", "cpu", say=lambda words: None)
    same(again, made)


def test_a_stopped_run_goes_on(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import labkit.train.loop as loop

    whole = loop.train
    with monkeypatch.context() as patch:

        def stopped(model, source, config, **options):
            def stop(step):
                if step.step == 17:
                    raise KeyboardInterrupt

            return whole(model, source, config, on_step=stop, **options)

        patch.setattr(loop, "train", stopped)
        with pytest.raises(Interrupted, match="stopped at step 17 of 40; the same command goes on"):
            make(tmp_path / "model", "cpu", say=lambda words: None)
    assert (tmp_path / "model.work" / "run").is_dir()
    make(tmp_path / "model", "cpu", say=lambda words: None)
    same(tmp_path / "model", made)


def test_what_cannot_be_made_says_so(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a model already"):
        make(made, "cpu")
    with pytest.raises(ValueError, match="choose one of auto, cpu, gpu"):
        make(tmp_path / "x", "tpu")
    with pytest.raises(ValueError, match="no key 'step'"):
        make(tmp_path / "x", "cpu", step=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    for taken in ("other", "other/file"):
        with pytest.raises(FileExistsError, match="no empty folder"):
            make(tmp_path / taken, "cpu")
    done = CliRunner().invoke(app, ["train", str(made), "--profile", "cpu"])
    assert isinstance(done.exception, FileExistsError)


def test_the_shipped_model_is_this_recipe_and_has_learned() -> None:
    folder, recipe = data_path(mine.SHIPPED), RECIPES["gpu"]
    notes = json.loads((folder / "notes.json").read_text())
    assert notes["training"] == recipe.training
    assert notes["mixture"] == recipe.mixture
    shipped = mine.shipped_model()
    assert shipped.model.config == recipe.config.replace(name=shipped.model.config.name)
    assert f"{model_params(recipe.config).total / 1e6:.2f} M parameters" in (folder / "README.md").read_text()
    for domain in recipe.mixture:
        nats = {who: losses[domain] for who, losses in notes["nats_per_token"].items()}
        assert nats["model"] < 0.75 * nats["5-gram"] < nats["unigram"], domain


def test_the_shipped_losses_hold_on_this_machine() -> None:
    from labkit.train.documents import collect
    from labkit.train.evaluate import losses
    from labkit.train.tokenizer import encode_documents

    shipped = mine.shipped_model()
    wanted = shipped.notes["nats_per_token"]["model"]
    texts = collect(train_bytes=20_000, validation_bytes=20_000)
    rows = {d: encode_documents(shipped.tokenizer, texts.validation[d])[0][:512] for d in texts.domains}
    batches = [
        type("B", (), {"ids_BS": torch.tensor([ids]), "labels_BS": torch.tensor([ids]), "domains": (domain,)})
        for domain, ids in rows.items()
    ]
    found = losses(shipped.model, batches)
    for domain, value in found.items():  # another Python's library, and a small sample: near, not equal
        assert abs(value - wanted[domain]) < 0.7, (domain, value, wanted[domain])
