"""An ONNX file computes what the model computes: every family, in batches, in steps, with and without a past."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import FAMILIES, LATENT, MOE, PLAIN, E, K, V, crowded, prompts, seeded
from torch import nn

from labkit.nn import KVCache, Transformer
from labkit.nn.fixed import RandomRouter
from labkit.nn.quant import quantize
from labkit.serve.export import OnnxModel, onnx_file, to_onnx
from labkit.serve.export.graph import Graph
from labkit.serve.export.need import need

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "data" / "checkpoints" / "four-domains"
CLOSE = 1e-4
MORE = {
    "all layers dense": PLAIN.replace(moe=None, num_dense_layers=2, d_dense=20),
    "sqrtsoftplus": PLAIN.replace(moe=MOE.replace(score_fn="sqrtsoftplus")),
    "one key head": PLAIN.replace(num_kv_heads=1),
    "a key head for each": PLAIN.replace(num_kv_heads=4),
    "one expert a token": PLAIN.replace(moe=MOE.replace(top_k=1)),
    "all experts": PLAIN.replace(moe=MOE.replace(top_k=6)),
    "one expert": PLAIN.replace(moe=MOE.replace(num_experts=1, top_k=1)),
    "every layer slides": PLAIN.replace(sliding_window=1),
    "latents, halves": LATENT.replace(rope_interleaved=False, yarn=None),
}  # fmt: skip


def exported(model: Transformer, folder: Path, **options) -> OnnxModel:
    to_onnx(model, folder / "model.onnx", **{"check": False, **options})
    return OnnxModel(folder / "model.onnx", threads=1)


def worst(found: np.ndarray, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """The largest difference at real tokens; a NaN counts as infinite."""
    apart = (torch.from_numpy(found) - wanted).abs()
    apart = apart if mask is None else apart[mask.bool()]
    return float(apart.max().nan_to_num(nan=float("inf")))


@torch.no_grad()
def in_steps(ours: Transformer, theirs: OnnxModel, steps: tuple[int, ...]) -> float:
    """The largest difference over cached steps of so many positions, with padding."""
    ids, mask = prompts(3, sum(steps))
    cache, past, far = KVCache(ours.config, 3, sum(steps)), None, 0.0
    for start, end in itertools.pairwise(itertools.accumulate(steps, initial=0)):
        wanted = ours(ids[:, start:end], mask[:, :end], cache=cache).logits
        found, past = theirs.logits(ids[:, start:end], past, mask[:, :end])
        far = max(far, worst(found, wanted, mask[:, start:end]))
    assert past.length == sum(steps)
    return far


@pytest.mark.parametrize("config", {**FAMILIES, **MORE}.values(), ids=[*FAMILIES, *MORE])
def test_logits_are_the_models(config, tmp_path):
    model = seeded(config)
    theirs = exported(model, tmp_path)
    for B, S in ((1, 1), (2, 13)):
        ids, _ = prompts(B, S)
        with torch.no_grad():
            wanted = model(ids).logits
        assert wanted.std() > 0.3
        found, past = theirs.logits(ids)
        assert worst(found, wanted) <= CLOSE
        assert (found.dtype, past.batch, past.length) == (np.float32, B, S)
    assert in_steps(model, theirs, (4, 1, 3, 1, 6)) <= CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_the_models(family, tmp_path):
    model = seeded(FAMILIES[family])
    theirs = exported(model, tmp_path)
    ids, mask = prompts()
    for given in (None, mask):
        wanted = model.generate(ids, given, max_new_tokens=50)
        assert len(wanted[:, 7:].unique()) > 3
        assert np.array_equal(theirs.generate(ids, 50, given), wanted)
    eos = int(wanted[0, 12])
    for pad in (None, 5):
        options = {"eos_token_id": eos, "pad_token_id": pad}
        wanted = model.generate(ids, mask, max_new_tokens=50, **options)
        assert np.array_equal(theirs.generate(ids, 50, mask, **options), wanted)


def test_the_trained_model(tmp_path):
    model = Transformer.from_pretrained(TRAINED)
    report = to_onnx(model, tmp_path / "four.onnx", eos_token_id=0)
    assert 0 < report.compared.difference <= CLOSE
    assert "differ by at most" in str(report)
    theirs, wide = OnnxModel(tmp_path / "four.onnx", threads=1), model.float()
    ids = torch.randint(4096, (2, 24), generator=torch.Generator().manual_seed(0))
    assert theirs.eos_token_id == 0
    assert np.array_equal(theirs.generate(ids, 50), wide.generate(ids, max_new_tokens=50, eos_token_id=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_may_have_no_tokens_or_all(family, tmp_path):
    model = crowded(FAMILIES[family])
    ids, _ = prompts()
    with torch.no_grad():
        wanted = model(ids).logits
        sparse = [block.ffn.experts for block in model.layers[model.config.num_dense_layers :]]
        for experts in sparse:
            for weights in experts.parameters():
                weights[K:] = float("nan")
    assert sparse
    assert worst(exported(model, tmp_path).logits(ids)[0], wanted) <= CLOSE


@pytest.mark.parametrize(("make", "turns"), [(crowded, K), (seeded, None)])
def test_only_experts_that_some_token_chose_are_computed(make, turns, tmp_path):
    model = make(PLAIN)
    to_onnx(model, tmp_path / "model.onnx", check=False)
    file = onnx.load(tmp_path / "model.onnx")
    counts = [node.input[0] for node in file.graph.node if node.op_type == "Loop"]
    file.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []) for name in counts)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = torch.tensor([[3, 9]])
    past = {value.name: np.zeros([1, 2, 0, 4], np.float32) for value in session.get_inputs()[2:]}
    given = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 2), np.int64), **past}
    found = [int(count) for count in session.run(counts, given)]
    with torch.no_grad():
        records = model(ids, return_routing=True).routing
    assert found == [len(record.topk_ids_TK.unique()) for record in records]
    assert all(count < E for count in found)
    assert turns is None or found == [turns] * 2


def test_the_graph_is_as_large_for_many_experts_as_for_few():
    few, many = (
        onnx_file.build(Transformer(PLAIN.replace(moe=MOE.replace(num_experts=count, top_k=2))))[0] for count in (4, 64)
    )
    assert len(few.nodes) == len(many.nodes)


def test_weights_may_stand_beside_the_graph(tmp_path):
    model, ids = seeded(FAMILIES["deepseek_v3"]), prompts()[0]
    path, data = tmp_path / "deep" / "model.onnx", tmp_path / "deep" / "model.onnx.data"
    whole = to_onnx(model, path)
    inline, _ = OnnxModel(path).logits(ids)
    apart = to_onnx(model, path, inline_bytes=0)
    assert (whole.files, apart.files) == ((path,), (path, data))
    assert apart.nbytes == path.stat().st_size + data.stat().st_size
    assert data.stat().st_size >= 4 * sum(p.numel() for p in model.parameters())
    onnx.checker.check_model(str(path), full_check=True)
    assert np.array_equal(OnnxModel(path).logits(ids)[0], inline)
    to_onnx(model, path, check=False)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]


def test_what_the_file_says_of_itself(tmp_path):
    to_onnx(seeded(FAMILIES["qwen3_moe"]), tmp_path / "model.onnx", check=False)
    file = onnx.load(tmp_path / "model.onnx")
    assert [(each.domain, each.version) for each in file.opset_import] == [("", 18)]
    names = [value.name for value in file.graph.input]
    assert names[:4] == ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    assert [value.name for value in file.graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
    dims = [dim.dim_param or dim.dim_value for dim in file.graph.input[2].type.tensor_type.shape.dim]
    assert dims == ["batch", 2, "past", 4]
    stored = {each.name for each in file.graph.initializer}
    assert {"embed.weight", "layers.1.ffn.experts.gate_up_E2FD", "layers.0.attention.query.bias"} <= stored
    assert len(stored & {"head.weight", "embed.weight"}) == 2
    tied = seeded(FAMILIES["olmoe"])
    assert "head.weight" not in onnx_file.build(tied)[0].weights


def test_a_file_that_computes_something_else_is_never_put_in_place(tmp_path, monkeypatch):
    path, model = tmp_path / "model.onnx", seeded(PLAIN)
    to_onnx(model, path)
    before = path.read_bytes()

    def wrong(self, x, name, weight, eps):
        return right(self, x, name, weight, eps + 0.01)

    right = Graph.rms_norm
    monkeypatch.setattr(Graph, "rms_norm", wrong)
    with pytest.raises(RuntimeError, match=r"logits differ by .*not put in its place"):
        to_onnx(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == before


def test_progress_only_grows(tmp_path):
    told = []
    to_onnx(seeded(PLAIN), tmp_path / "model.onnx", on_progress=lambda share, what: told.append((share, what)))
    assert told == sorted(told, key=lambda each: each[0])
    assert told[-1] == (1.0, "done")


def packed() -> Transformer:
    model = seeded(PLAIN)
    quantize(model, "int8")
    return model


def at_random() -> Transformer:
    model = seeded(PLAIN)
    model.layers[1].ffn.router = RandomRouter(PLAIN.moe)
    return model


@pytest.mark.parametrize(
    ("make", "name", "options", "says"),
    [
        (packed, "model.onnx", {}, "has packed weights"),
        (at_random, "model.onnx", {}, "layer 1 is routed by a RandomRouter"),
        (lambda: nn.Linear(2, 2), "model.onnx", {}, "model is a Linear; give a labkit.nn.Transformer"),
        (lambda: seeded(PLAIN), "model", {}, r"ends in \.onnx"),
        (lambda: seeded(PLAIN), "model.onnx", {"inline_bytes": -1}, "inline_bytes is -1"),
        (lambda: seeded(PLAIN), "model.onnx", {"inline_bytes": 2**31}, "a protobuf ends at 2 GiB"),
    ],
)
def test_what_cannot_be_written_says_why(make, name, options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        to_onnx(make(), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> OnnxModel:
    return exported(seeded(PLAIN), tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.logits([[0, V]]), "token ids run from 0 to 40, outside the vocabulary of 40"),
        (lambda m: m.logits([[-1]]), "token ids run from -1"),
        (lambda m: m.logits([1, 2]), r"ids_BS has shape \(2,\)"),
        (lambda m: m.logits([[0.5]]), "dtype float64; give integers"),
        (lambda m: m.logits([[]]), "give integers"),
        (lambda m: m.logits([[1]], m.empty(2)), "past is of 2 rows and 2 layers, ids_BS of 1"),
        (lambda m: m.logits([[1, 2]], None, [[1]]), r"attention_mask has shape \(1, 1\); expected \(1, 2\)"),
        (lambda m: m.logits([[1]], m.logits([[1]])[1], [[1]]), r"expected \(1, 2\), 1 cached ones"),
        (lambda m: m.empty(0), "batch is 0"),
        (lambda m: m.generate([[1]], 0), "max_new_tokens is 0"),
        (lambda m: m.generate([[1] * 90], 7), "90 tokens of prompt and 7 new ones are 97; the model was made for 96"),
        (lambda m: m.generate([[1, 1]], 3, [[1, 0]]), "ends with padding"),
        (lambda m: OnnxModel(m.path, threads=-1), "threads is -1"),
        (lambda m: OnnxModel(m.path.with_name("none.onnx")), "there is no .*labkit export"),
    ],
)
def test_wrong_inputs_say_what_to_give(small, call, says):
    with pytest.raises(ValueError, match=says):
        call(small)


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(ValueError, match="ONNX Runtime cannot load"):
        OnnxModel(tmp_path / "noise.onnx")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    other = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", [value], [other])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)]),
        tmp_path / "abs.onnx",
    )
    with pytest.raises(ValueError, match="was not written by labkit"):
        OnnxModel(tmp_path / "abs.onnx")


def test_running_needs_no_torch(small):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from labkit.serve.export import OnnxModel\n"
        f"print(OnnxModel({str(small.path)!r}).generate([[1, 2]], 3).tolist(), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert said == f"{small.generate([[1, 2]], 3).tolist()} False"


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'labkit\[serve\]'"):
        need("onnx")


def test_two_weights_never_share_a_name():
    graph = Graph()
    graph.weight("a", torch.ones(1))
    with pytest.raises(ValueError, match="two weights called a"):
        graph.weight("a", torch.ones(1))
