"""What the machine can do is asked late, told in full, and gates what needs it."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from labkit.core import runtime
from labkit.core.runtime import Capability, Doctor, Unavailable

NAMES = [
    "cuda", "sm90", "bf16", "fp8", "triton", "triton_interpreter", "bitsandbytes", "transformers", "bubblewrap",
    "chromium", "disk", "memory",
]  # fmt: skip


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    """A machine with a CUDA device of this compute capability, or without one."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended GPU")


def test_importing_loads_no_torch() -> None:
    code = "import sys, labkit.core.runtime; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("capability", "device", "dtype", "able"),
    [
        (None, "cpu", torch.float32, {"bf16"}),
        ((7, 5), "cuda", torch.float16, {"cuda"}),
        ((8, 0), "cuda", torch.bfloat16, {"cuda", "bf16"}),
        ((8, 9), "cuda", torch.bfloat16, {"cuda", "bf16", "fp8"}),
        ((9, 0), "cuda", torch.bfloat16, {"cuda", "bf16", "fp8", "sm90"}),
        ((10, 0), "cuda", torch.bfloat16, {"cuda", "bf16", "fp8", "sm90"}),
    ],
)
def test_each_generation(monkeypatch, capability, device, dtype, able) -> None:
    pretend(monkeypatch, capability)
    assert runtime.device().type == device
    assert runtime.dtype() == dtype
    assert {n for n in ("cuda", "sm90", "bf16", "fp8") if runtime.capability(n).available} == able
    assert runtime.resolve_profile("auto") == ("cpu" if capability is None else "gpu")
    assert runtime.resolve_profile("cpu") == "cpu"


def test_a_gpu_that_is_not_there(monkeypatch, capsys) -> None:
    pretend(monkeypatch, None)
    with pytest.raises(Unavailable, match=r"cuda: no, torch finds no CUDA device. Instead: profile"):
        runtime.resolve_profile("gpu")
    with pytest.raises(Unavailable, match="Instead"):
        runtime.require("fp8")
    assert not runtime.can("fp8")
    assert "Instead: store float8" in capsys.readouterr().out


def test_what_is_there_passes_quietly(monkeypatch, capsys) -> None:
    pretend(monkeypatch, (9, 0))
    assert runtime.can("cuda")
    assert runtime.require("fp8").reason == "Pretended GPU, compute capability 9.0"
    assert runtime.resolve_profile("gpu") == "gpu"
    assert capsys.readouterr().out == ""


def test_a_torch_without_cuda_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in runtime.capability("cuda").reason


@pytest.mark.parametrize("call", [runtime.capability, runtime.can, runtime.require])
def test_an_unknown_capability(call) -> None:
    with pytest.raises(ValueError, match="choose one of cuda"):
        call("tpu")


def test_an_unknown_profile() -> None:
    with pytest.raises(ValueError, match="choose one of auto, cpu, gpu"):
        runtime.resolve_profile("tpu")


def test_packages_that_are_missing(monkeypatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    for name in ("triton", "triton_interpreter", "bitsandbytes", "transformers"):
        assert "not installed" in runtime.capability(name).reason


def test_programs_that_are_missing(monkeypatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    assert not runtime.capability("bubblewrap").available
    assert not runtime.capability("chromium").available


def test_a_sandbox_that_may_not_start(monkeypatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: sys.executable)  # fails on bwrap's options
    assert "may not make namespaces" in runtime.capability("bubblewrap").reason
    monkeypatch.setattr(runtime.shutil, "which", lambda name: "/nowhere/bwrap")
    assert "did not run" in runtime.capability("bubblewrap").reason


def test_small_disk_and_memory(monkeypatch) -> None:
    monkeypatch.setattr(runtime.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    monkeypatch.setattr(runtime, "_memory_bytes", lambda: 2 * 10**9)
    assert not runtime.capability("disk").available
    assert runtime.capability("memory").reason == "2 GB of main memory"
    monkeypatch.setattr(runtime, "_memory_bytes", lambda: None)
    assert runtime.capability("memory").available


def test_seed_reaches_all_three() -> None:
    def draws() -> tuple[float, float, float, float]:
        generator = runtime.seed_all(3)
        return (
            random.random(),
            np.random.rand(),  # noqa: NPY002 (this is the generator under test)
            torch.rand(1).item(),
            torch.rand(1, generator=generator).item(),
        )

    assert draws() == draws()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "0"])
def test_a_wrong_seed(seed: object) -> None:
    with pytest.raises(ValueError, match="whole number from 0"):
        runtime.seed_all(seed)


def test_data_in_a_checkout_and_in_a_wheel(monkeypatch, tmp_path: Path) -> None:
    module = tmp_path / "labkit" / "core" / "runtime.py"
    wheel = tmp_path / "labkit" / "data"
    wheel.mkdir(parents=True)
    (wheel / "claims.yaml").write_text("wheel")
    monkeypatch.setattr(runtime, "__file__", str(module))
    assert runtime.data_path("claims.yaml").read_text() == "wheel"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "claims.yaml").write_text("beside")
    assert runtime.data_path("claims.yaml").read_text() == "wheel"  # another project's data/, not a checkout
    (tmp_path / "pyproject.toml").touch()
    assert runtime.data_path("claims.yaml").read_text() == "beside"
    with pytest.raises(FileNotFoundError, match=r"data/ has claims\.yaml"):
        runtime.data_path("claim.yaml")


@pytest.mark.parametrize("name", ["", "../pyproject.toml", "/etc/hosts"])
def test_data_outside_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="inside the data folder"):
        runtime.data_path(name)


def test_doctor_has_the_same_order_every_time() -> None:
    first, again = runtime.doctor(), runtime.doctor()
    assert [c.name for c in first.capabilities] == NAMES == [c.name for c in again.capabilities]
    assert first.versions == again.versions
    assert [c for c in first.capabilities if not c.available] == list(first.missing)


def test_doctor_shows_itself() -> None:
    table = Doctor((("torch", "1<2"),), (Capability("a", True, "here", "x"), Capability("b", False, "gone", "do c")))
    assert "instead: do c" in repr(table)
    assert "instead: x" not in repr(table)
    assert "1&lt;2" in table._repr_html_()
    assert ">do c<" in table._repr_html_()
    assert ">x<" not in table._repr_html_()
