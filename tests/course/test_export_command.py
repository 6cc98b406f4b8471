"""`labkit export` writes what another program reads, says what it compared, and explains what it cannot do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from labkit.core.config import ModelConfig, MoEConfig
from labkit.course import cli
from labkit.nn import Transformer
from labkit.serve.export import OnnxModel, check_folder

MOE = MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2)
TINY = ModelConfig("tiny", 32, 2, 16, 4, 2, 4, moe=MOE, qk_norm="head", tie_embeddings=True, max_context=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = Transformer(TINY).save_pretrained(tmp_path_factory.mktemp("tiny"))
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    return path


def export(*arguments: object):
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


def test_onnx(folder, tmp_path):
    told = export(folder, "--to", "onnx", "--out", tmp_path / "tiny.onnx")
    assert told.exit_code == 0
    assert f"wrote {tmp_path / 'tiny.onnx'}" in told.output
    assert "logits at 14 positions differ by at most" in told.output
    model, ours = OnnxModel(tmp_path / "tiny.onnx"), Transformer.from_pretrained(folder)
    assert model.eos_token_id == 7
    assert np.array_equal(
        model.generate([[1, 2]], 9), ours.generate(torch.tensor([[1, 2]]), max_new_tokens=9, eos_token_id=7)
    )
    (command,) = [line for line in told.output.splitlines() if line.startswith("run it:")]
    exec(command.partition('-c "')[2].removesuffix('"'))


def test_hf(folder, tmp_path):
    told = export(folder, "--to", "hf", "--out", tmp_path, "--untie", "--dtype", "bfloat16")
    assert told.exit_code == 0
    assert "transformers' logits at 14 positions differ by at most" in told.output
    assert "served by SGLang: yes" in told.output
    assert check_folder(tmp_path).ok
    again = Transformer.from_pretrained(tmp_path)
    assert (again.dtype, again.config.tie_embeddings) == (torch.bfloat16, False)


def test_without_a_comparison_it_says_so(folder, tmp_path):
    told = export(folder, "--to", "onnx", "--out", tmp_path / "tiny.onnx", "--no-check")
    assert "logits not compared" in told.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--to", "tflite", "--out", "x"), "--to is 'tflite'; choose one of hf, onnx"),
        (("--to", "hf", "--out", "x", "--dtype", "int8"), "--dtype is 'int8'; choose one of bfloat16"),
        (("--to", "onnx", "--out", "x.onnx", "--untie"), "--untie and --dtype are for --to hf"),
        (("--to", "onnx", "--out", "x"), "ends in .onnx"),
    ],
)
def test_what_it_cannot_do_is_bad_usage(folder, tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["labkit", "export", str(folder), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra():
    words, status = cli.explain(ModuleNotFoundError("No module named 'onnx'", name="onnx"))
    assert "onnx is not installed" in words
    assert status == 2
