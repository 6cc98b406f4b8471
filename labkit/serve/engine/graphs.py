"""Steps that only decode, replayed from CUDA graphs: hundreds of small kernels for one call of the host.

A graph has fixed sizes, so there is one for each of some numbers of sequences, and a step takes the next larger one;
the empty places read nothing and write into the cache's spare block. All graphs read the same bytes and share their
memory, since only one runs at a time. Steps with prompts in them run as they come.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.kernels import dispatch, paged_attention
from labkit.nn.model import Transformer
from labkit.nn.moe import MoE
from labkit.serve.engine.batch import Batch, Shape
from labkit.serve.engine.runner import TorchRunner
from labkit.serve.scheduler.limits import Limits
from labkit.serve.scheduler.step import Chunk

Outputs = tuple[Tensor, Tensor, Tensor]  # hidden [N, D], logits [N, V], best tokens [N]
Record = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
_GRAPHABLE = ("triton", "grouped_mm")  # implementations of the experts
_SMALL = (1, 2, 4, 8, 16, 24, 32, 48)
_STEP = 32


def sizes(max_sequences: int) -> tuple[int, ...]:
    """Numbers of sequences for which there is a graph: close together where a place more costs most.

    >>> sizes(100)
    (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
    """
    found = [size for size in _SMALL if size < max_sequences + 16]
    return (*found, *range(2 * _STEP, max_sequences + _STEP, _STEP))


def refuses(model: Transformer) -> str:
    """Why a model's decoding steps cannot be recorded; empty if they can.

    What waits for the device cannot be: attention in plain torch, which reads lengths, and experts one after another.
    """
    if model.device.type != "cuda":
        return f"the model is on {model.device}; CUDA graphs need a GPU"
    c, moe = model.config, model.config.moe
    width = c.mla_kv_rank + c.mla_rope_dim if c.attention == "mla" else c.head_dim
    heads = 1 if c.attention == "mla" else c.num_kv_heads
    store = torch.empty(1, 1, heads, width, dtype=model.dtype, device=model.device)
    values = store[..., : c.mla_kv_rank] if c.attention == "mla" else store
    attention = paged_attention.choose(store.new_empty(1, c.num_heads, width), store, values)
    if attention.name != "triton":
        return attention.reason
    for experts in (block.ffn.experts for block in model.layers if isinstance(block.ffn, MoE)):
        plain = moe.activation == "swiglu" and not moe.expert_bias
        choice = dispatch.choose(
            dispatch.Problem(
                1, c.d_model, moe.d_expert, moe.num_experts, moe.top_k, model.dtype, model.device.type, plain
            ),
            experts.implementation,
        )
        if choice.name not in _GRAPHABLE or (choice.name == "grouped_mm" and model.dtype != torch.bfloat16):
            return f"its experts are computed by {choice.name}, which waits for the device ({choice.reason})"
    return ""


class Recorder:
    """Records functions without arguments as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """A function that replays it; its outputs lie where they lay before. It runs twice first: kernels compile."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = compute()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


class GraphRunner(TorchRunner):
    """A `TorchRunner` whose decoding steps are replayed.

    Args:
        model, limits: as there.
        record: makes something replayable of a pass; by default a `Recorder`. A test on the CPU may give it back as
            it is.
    """

    def __init__(self, model: Transformer, limits: Limits, record: Record | None = None) -> None:
        super().__init__(model, limits)
        self._sizes = sizes(limits.max_sequences)
        self._width = -(-limits.max_context // limits.block_size)
        self._context = self._width * limits.block_size
        self._raw = torch.empty(self._shape(self._sizes[-1]).nbytes, dtype=torch.uint8, device=model.device)
        record = Recorder() if record is None else record
        self._replays = {}
        for size in reversed(self._sizes):  # the largest first: the others find room in its memory
            self._fill((), self._shape(size))
            self._replays[size] = record(lambda size=size: self._compute(size))
        self._warm_up()  # after the graphs: recording gives back all memory that is free
        self._tally.forget()

    def _shape(self, size: int) -> Shape:
        return Shape(size, size, self._width, size)

    def _fill(self, chunks: Sequence[Chunk], shape: Shape, sources: Sequence[int] | None = None) -> None:
        self._raw[: shape.nbytes].copy_(self.packer.pack(chunks, shape, sources), non_blocking=True)

    def _batch(self, size: int) -> Batch:
        return self._shape(size).batch(self._raw, 1, self._context, size)

    @torch.no_grad()
    def _compute(self, size: int) -> Outputs:
        batch = self._batch(size)
        return self._pass(batch, self._ids(batch))

    def _warm_up(self) -> None:
        """Compile what prompts need, before the first one waits for it; the entries go into the spare block."""
        size, spare, most = self.limits.block_size, self.limits.num_blocks, self.limits.max_tokens_per_step
        longest = min(most, self.limits.max_context)
        decoding = [Chunk("", 0, (0,), (spare,), True)] * 3
        counts = {max(1, min(count, most)) for count in (2, 61, 64, 509, 512, most - 3, most)}
        for count in sorted(counts):  # Triton compiles again where a size is no multiple of 16
            lengths = [min(longest, count - start) for start in range(0, count, longest)]
            prompts = [Chunk("", 0, (0,) * length, (spare,) * -(-length // size), True) for length in lengths]
            super()._forward(prompts, None)
            if count + len(decoding) <= most:
                super()._forward([*decoding, *prompts], None)

    def _forward(self, chunks: Sequence[Chunk], sources: Sequence[int] | None) -> Outputs:
        count = len(chunks)
        if count > self._sizes[-1] or any(len(chunk.tokens) > 1 or not chunk.samples for chunk in chunks):
            return super()._forward(chunks, sources)
        size = self._sizes[bisect_left(self._sizes, count)]
        self._fill(chunks, self._shape(size), sources)
        self._tally.passed()
        return self._replays[size]()
