"""A model as an ONNX file: the whole graph with cache and experts, checked, and compared with the model itself.

The graph is written node by node from the model's parts, not traced: it does not depend on torch's exporters, and it
says what the model does in some hundred readable nodes a layer. Left out on purpose: quantised weights, multi-token
modules (they predict nothing that `generate` reads), and routers that are not `nn.Router`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.nn.experts import SwiGLU
from labkit.nn.model import Transformer
from labkit.nn.moe import MoE
from labkit.nn.quant.modules import held_of
from labkit.nn.router import Router
from labkit.serve.export.attention import around, attention, past_of
from labkit.serve.export.compare import Compared, farthest
from labkit.serve.export.experts import feed_forward
from labkit.serve.export.graph import IR_VERSION, OPSET, Graph, Value, array
from labkit.serve.export.need import need

INLINE_BYTES = 1_500_000_000
"""Weights above this stand in a file beside the graph; a protobuf cannot hold 2 GiB."""
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Args:
        files: the graph and, if there is one, the file of its weights. nbytes: of both.
        opset: version of the operators. nodes: of the whole graph, those of the loops' bodies included.
        compared: its logits with the model's, cached steps included; None where they were not.
    """

    files: tuple[Path, ...]
    nbytes: int
    opset: int
    nodes: int
    compared: Compared | None = None

    def __str__(self) -> str:
        names = " and ".join(str(file) for file in self.files)
        checked = self.compared or "logits not compared"
        return f"{names}: {self.nbytes:,} bytes, {self.nodes:,} nodes of opset {self.opset}; {checked}"


def to_onnx(
    model: Transformer,
    path: str | Path,
    *,
    check: bool = True,
    eos_token_id: int | None = None,
    inline_bytes: int = INLINE_BYTES,
    on_progress: Progress = lambda share, what: None,
) -> OnnxReport:
    """Write a model as ONNX, in float32.

    Args:
        model: of any family, unquantised.
        path: of the file, such as "model.onnx"; its folder is made. Heavy weights go to `path` + ".data".
        check: run it with ONNX Runtime, cache steps included, and hold its logits against the model's; needs memory for
            the weights twice more.
        eos_token_id: noted in the file, so that `OnnxModel.generate` stops there.
        inline_bytes: weights of more bytes than this together stand in a file of their own.
        on_progress: told how far it is, from 0 to 1, and what is being done.

    Inputs: `input_ids` [B, S], `attention_mask` [B, P + S] (1: real), and for each layer what is kept of P positions;
    outputs: `logits` [B, S, V] and the same for P + S positions. B, S and P are free, P may be 0.

    Files appear under their names only when all is well. Raises ValueError for a model that cannot be written, saying
    why; RuntimeError if the logits differ by more than `compare.TOLERANCE` allows; ModuleNotFoundError without the
    packages `onnx` and, to check, `onnxruntime`.
    """
    path = Path(path)
    _need_writable(model, path, inline_bytes)
    graph, values = build(model)
    on_progress(0.2, "graph built")
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {"labkit.config": json.dumps(model.config.to_dict()), "labkit.eos_token_id": json.dumps(eos_token_id)}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as room:
        made = Path(room) / path.name
        nodes = _write(graph, values, made, notes, inline_bytes)
        on_progress(0.5, "weights written")
        need("onnx").checker.check_model(str(made))
        on_progress(0.6, "file checked")
        found = compare(model, made) if check else None
        on_progress(0.95, "logits compared" if check else "logits not compared")
        files = _placed(Path(room), path)
    on_progress(1.0, "done")
    return OnnxReport(files, sum(file.stat().st_size for file in files), OPSET, nodes, found)


def build(model: Transformer) -> tuple[Graph, tuple[list[Value], list[Value]]]:
    """The graph of a model, and its inputs and outputs."""
    c, graph = model.config, Graph()
    inputs = [
        Value("input_ids", "INT64", ("batch", "sequence")), Value("attention_mask", "INT64", ("batch", "total")),
    ]  # fmt: skip
    outputs = [Value("logits", "FLOAT", ("batch", "sequence", c.vocab_size))]
    embedding = graph.weight("embed.weight", model.embed.weight)
    shared = around(graph, c, "input_ids", "attention_mask")
    x_BSD = graph.op("Gather", embedding, "input_ids", axis=0)
    x_TD = graph.reshape(x_BSD, -1, c.d_model)
    for block in model.layers:
        past, present = past_of(c, block.layer), past_of(c, block.layer, "present")
        with graph.inside(f"layers.{block.layer}"):
            x_TD, kept = _block(graph, block, x_TD, shared, tuple(value.name for value in past))
            for result, value in zip(kept, present, strict=True):
                graph.rename(result, value.name)
        inputs += past
        outputs += present
    hidden_TD = graph.rms_norm(x_TD, "norm", model.norm.weight, model.norm.eps)
    tied = model.head.weight is model.embed.weight
    head = embedding if tied else graph.weight("head.weight", model.head.weight)
    logits_TV = graph.op("Gemm", hidden_TD, head, transB=1)
    logits = graph.reshape(logits_TV, shared.batch, shared.length, c.vocab_size)
    graph.rename(logits, "logits")
    return graph, (inputs, outputs)


def compare(model: Transformer, path: Path) -> Compared:
    """How far the logits of a file are from its model's, and at how many positions. Raises RuntimeError if too far."""
    from labkit.serve.export.onnx_run import OnnxModel

    theirs, past = OnnxModel(path), None

    def step(ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        nonlocal past
        logits, past = theirs.logits(ids_BS, past, mask_BS)
        return torch.from_numpy(logits)

    return farthest(model, step).need_close()


def _block(graph: Graph, block: Any, x_TD: str, shared: Any, past: tuple[str, str]) -> tuple[str, tuple[str, str]]:
    norm = block.norm_attention
    normed_TD = graph.rms_norm(x_TD, "norm_attention", norm.weight, norm.eps)
    with graph.inside("attention"):
        y_TD, kept = attention(graph, block.attention, normed_TD, shared, shared.masks[block.slides], past)
    x_TD = graph.op("Add", x_TD, y_TD)
    normed_TD = graph.rms_norm(x_TD, "norm_ffn", block.norm_ffn.weight, block.norm_ffn.eps)
    with graph.inside("ffn"):
        return graph.op("Add", x_TD, feed_forward(graph, block.ffn, normed_TD)), kept


def _need_writable(model: Transformer, path: Path, inline_bytes: int) -> None:
    if not isinstance(model, Transformer):
        raise ValueError(
            f"model is a {type(model).__name__}; give a labkit.nn.Transformer (`from_pretrained` loads one)"
        )
    if held_of(model):
        raise ValueError(
            f"{model.config.name} has packed weights, which standard ONNX operators cannot multiply; export the plain "
            "model, and quantise the file with the tools of the runtime"
        )
    for block in model.layers:
        if not isinstance(block.ffn, (SwiGLU, MoE)):
            raise ValueError(f"layer {block.layer} has a {type(block.ffn).__name__}; only SwiGLU and MoE are written")
        if isinstance(block.ffn, MoE) and type(block.ffn.router) is not Router:
            kind = type(block.ffn.router).__name__
            raise ValueError(f"layer {block.layer} is routed by a {kind}; only nn.Router is written")
    if path.is_dir() or path.suffix != ".onnx":
        raise ValueError(f"path is {path}; give the name of a file that ends in .onnx")
    if not 0 <= inline_bytes <= INLINE_BYTES:
        raise ValueError(f"inline_bytes is {inline_bytes}; give 0 to {INLINE_BYTES}: a protobuf ends at 2 GiB")


def _write(
    graph: Graph, values: tuple[list[Value], list[Value]], path: Path, notes: dict[str, str], inline_bytes: int
) -> int:
    """The file, and its weights beside it where they are many; how many nodes it has."""
    onnx = need("onnx")
    outside = 4 * sum(tensor.numel() for tensor in graph.weights.values()) > inline_bytes
    kept = [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    if outside:
        kept += _beside(graph, path.with_name(f"{path.name}.data"))
    else:
        kept += [onnx.numpy_helper.from_array(array(tensor), name) for name, tensor in graph.weights.items()]
    inputs, outputs = ([value.proto() for value in side] for side in values)
    whole = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "labkit", inputs, outputs, kept),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="labkit",
    )  # fmt: skip
    onnx.helper.set_model_props(whole, notes)
    path.write_bytes(whole.SerializeToString())
    inner = sum(len(attribute.g.node) for node in graph.nodes for attribute in node.attribute)
    return len(graph.nodes) + inner


def _beside(graph: Graph, path: Path) -> list[Any]:
    """Write weights one after the other, each at a multiple of 64 bytes; what the graph says of each."""
    onnx, protos = need("onnx"), []
    with path.open("wb") as file:
        for name, tensor in graph.weights.items():
            file.write(bytes(-file.tell() % 64))
            start, values = file.tell(), array(tensor)
            file.write(values.data)
            proto = onnx.TensorProto(name=name, dims=values.shape, data_type=onnx.TensorProto.FLOAT)
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", start), ("length", values.nbytes)):
                proto.external_data.add(key=key, value=str(value))
            protos.append(proto)
    return protos


def _placed(room: Path, path: Path) -> tuple[Path, ...]:
    """Move what was made to its place, weights first; weights of an earlier file that has none now are removed."""
    data = path.with_name(f"{path.name}.data")
    for target in (data, path):
        made = room / target.name
        if made.exists():
            os.replace(made, target)
        elif target.exists():
            target.unlink()
    return tuple(target for target in (path, data) if target.exists())
