"""The bench on a GPU: a small real run of every subject, with graphs, compiled contestants, memory and ceilings."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from labkit.course import cli
from labkit.kernels import bench
from labkit.kernels.bench import machine, shapes
from labkit.kernels.bench.calls import BOTH, FORWARD, GRAPH
from labkit.kernels.bench.plan import settle

pytestmark = pytest.mark.gpu
SMALL = {
    "moe": [shapes.MoEShape("small", 2048, 512, 256, 16, 2)],
    "decode": [shapes.MoEShape("small", 16, 512, 256, 16, 2)],
    "topk": [shapes.RouterShape("small", 4096, 64, 8)],
    "attention": [shapes.AttentionShape("small", 2, 8, 2, 512, 64)],
}


def measure(subject, **changed):
    device, dtype = settle("cuda")
    plan = bench.Plan({subject: SMALL[subject]}, device, dtype, rounds=3, repeats=2, **changed)
    return {result.mode: result for result in bench.measure(plan)}


@pytest.mark.filterwarnings("ignore")  # torch.compile, cuDNN and others warn as they like
@pytest.mark.parametrize(
    ("subject", "modes", "others"),
    [
        ("moe", (FORWARD, GRAPH, BOTH), {"torch grouped_mm", "torch grouped_mm, compiled", "transformers grouped_mm"}),
        ("decode", (GRAPH,), {"torch grouped_mm", "torch grouped_mm, compiled", "transformers grouped_mm"}),
        ("topk", (FORWARD, GRAPH, BOTH), {"torch", "torch, compiled"}),
        ("attention", (FORWARD, GRAPH, BOTH), {"SDPA flash"}),
    ],
)
def test_a_small_run_of_everything(subject, modes, others):
    results = measure(subject, graph=True)
    assert tuple(results) == modes
    for mode, result in results.items():
        right = {each.name: each for each in result.measured if not each.wrong(result.dtype)}
        assert right.keys() >= {"labkit", *others}, (mode, result.absent, result.measured)
        assert max(right["labkit"].errors.values()) < 5e-3, mode
        assert 0 < result.floor < right["labkit"].median
        assert result.verdict() is not None
        assert all(each.saved is None for each in result.measured) == (mode != BOTH)


@pytest.mark.filterwarnings("ignore")
def test_ours_keeps_the_pre_activation_and_little_else():
    result = measure("moe", without=["torch grouped_mm, compiled"])[BOTH]
    kept = {each.name: each.saved for each in result.measured}
    assert result.saved <= kept["labkit"] < 1.1 * result.saved + 2**16
    assert kept["torch grouped_mm"] > 1.5 * kept["labkit"]


@pytest.mark.filterwarnings("ignore")
def test_who_cannot_be_recorded_in_a_graph_is_listed_and_the_rest_goes_on():
    def make(case):
        def forward():
            return case.x_TD * case.x_TD.sum().item()  # waits for the device

        return forward

    result = measure("decode", peers={"waits": {"decode": make}})[GRAPH]
    assert "waits" in {each.name for each in result.absent}
    assert {"labkit", "torch grouped_mm"} <= {each.name for each in result.measured}


def test_the_machine_tells_its_name_and_its_ceilings():
    device, dtype = settle("cuda")
    told = machine.describe(device)
    assert told["device"] == torch.cuda.get_device_name()
    assert told["versions"]["cuda"] == torch.version.cuda
    rates = machine.Ceilings(dtype, device).rates({machine.PRODUCT: 1e-3, machine.COPY: 1e-3})
    assert rates == (2 * 8192**3 * 1e3, 2 * 2**30 * 1e3)


@pytest.mark.filterwarnings("ignore")
def test_the_command_runs_tiny_shapes(tmp_path):
    told = CliRunner().invoke(cli.app, ["bench", "--tiny", "--rounds", "2", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "interpreted" not in told.output
    assert (tmp_path / "decode-graph.png").is_file()
