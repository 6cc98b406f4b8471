"""Steps replayed from CUDA graphs: hundreds of small kernels for one call of the host.

A graph has fixed sizes. There is one for each of some numbers of sequences that only decode, and one for each of some
numbers of tokens with prompts among them; a step takes the next larger one. What is left over reads nothing and is
written into the cache's spare block. All graphs read the same bytes and share their memory, since only one runs at a
time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.kernels import dispatch, paged_attention
from labkit.nn.model import Transformer
from labkit.nn.moe import MoE
from labkit.serve.engine.batch import Shape
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


def token_sizes(max_tokens: int) -> tuple[int, ...]:
    """Numbers of tokens for which there is a graph of steps with prompts: two between a power of two and the next.

    >>> token_sizes(300)
    (32, 48, 64, 96, 128, 192, 256, 300)
    """
    found = [size for power in range(5, max_tokens.bit_length()) for size in (1 << power, 3 << (power - 1))]
    return (*[size for size in found if size < max_tokens], max_tokens)


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
    """A `TorchRunner` whose steps are replayed.

    Args:
        model, limits: as there.
        record: makes something replayable of a pass; by default a `Recorder`. A test on the CPU may give it back as
            it is.
    """

    def __init__(self, model: Transformer, limits: Limits, record: Record | None = None) -> None:
        super().__init__(model, limits)
        self._sizes = {True: sizes(limits.max_sequences), False: token_sizes(limits.max_tokens_per_step)}
        self._width = -(-limits.max_context // limits.block_size)
        every = [(only_decodes, size) for only_decodes in (False, True) for size in reversed(self._sizes[only_decodes])]
        most = max(self._shape(*each).nbytes for each in every)
        self._raw = torch.empty(most, dtype=torch.uint8, device=model.device)
        record = Recorder() if record is None else record
        self._replays = {}
        for each in every:  # the largest first: the others find room in its memory
            self._fill((), self._shape(*each))
            self._replays[each] = record(lambda each=each: self._compute(*each))
        self._tally.forget()

    def _shape(self, only_decodes: bool, size: int) -> Shape:
        sequences = size if only_decodes else min(size, self._sizes[True][-1])
        return Shape(size, sequences, self._width, sequences)

    def _fill(self, chunks: Sequence[Chunk], shape: Shape, sources: Sequence[int] | None = None) -> None:
        self._raw[: shape.nbytes].copy_(self.packer.pack(chunks, shape, sources), non_blocking=True)

    @torch.no_grad()
    def _compute(self, only_decodes: bool, size: int) -> Outputs:
        """A pass over what the bytes say; with prompts, nobody is known to decode, and any may be the longest."""
        shape, context = self._shape(only_decodes, size), self._width * self.limits.block_size
        batch = shape.batch(self._raw, *((1, context, size) if only_decodes else (size, context, 0)))
        return self._pass(batch, self._ids(batch))

    def _forward(self, chunks: Sequence[Chunk], sources: Sequence[int] | None) -> Outputs:
        tokens = sum([len(chunk.tokens) for chunk in chunks])
        only_decodes = tokens == len(chunks)
        known = self._sizes[only_decodes]
        if tokens > known[-1] or len(chunks) > self._sizes[True][-1]:
            return super()._forward(chunks, sources)
        each = only_decodes, known[bisect_left(known, tokens)]
        self._fill(chunks, self._shape(*each), sources)
        self._tally.passed()
        return self._replays[each]()
