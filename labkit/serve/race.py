"""Our engine beside transformers' continuous batching on the same requests: tokens a second, and how long people wait.

A closed loop: `together` requests are inside at any time, and one that ends makes room for the next. Both start warm,
on weights drawn at random, which take as long as trained ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from labkit.core.config import ModelConfig
from labkit.core.names import family_of, to_hf_config
from labkit.core.presets import preset
from labkit.core.whole import need_whole
from labkit.nn.model import Transformer
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.scheduler import Limits
from labkit.serve.workload import lognormal_lengths

Work = Sequence[tuple[list[int], int]]  # a prompt, and how many tokens are asked for


@dataclass(frozen=True)
class Run:
    """One engine on one workload; `ttft` and `gaps` in seconds, rising: to the first token, and between tokens."""

    name: str
    together: int
    seconds: float
    tokens: int
    ttft: tuple[float, ...]
    gaps: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """New tokens, over all requests."""
        return self.tokens / self.seconds

    @staticmethod
    def of(name: str, together: int, began: float, ended: float, arrived: Sequence[float], times: Any) -> Run:
        """From the second of each request's arrival and of each of its tokens."""
        ttft = sorted(one[0] - start for one, start in zip(times, arrived, strict=True))
        gaps = sorted(after - before for one in times for before, after in pairwise(one))
        return Run(name, together, ended - began, sum(map(len, times)), tuple(ttft), tuple(gaps))


def workload(count: int, vocab_size: int, seed: int = 0, *, shrink: int = 1) -> Work:
    """Requests with the course's lengths (`lognormal_lengths`), divided by `shrink`, of tokens drawn at random."""
    draw = random.Random(seed)
    lengths = [(max(1, prompt // shrink), max(2, output // shrink)) for prompt, output in lognormal_lengths(count)]
    return [(draw.choices(range(5, vocab_size), k=prompt), output) for prompt, output in lengths]


def shape(device: torch.device) -> ModelConfig:
    """OLMoE-1B-7B's on a GPU; on a CPU the same in small."""
    config = preset("olmoe-1b-7b")
    if device.type == "cuda":
        return config
    small = replace(config.moe, d_model=64, d_expert=32, num_experts=8, top_k=2)
    sizes = {"num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "vocab_size": 512}
    return replace(config, name="small", moe=small, **sizes)


def our_engine(config: ModelConfig, device: torch.device, dtype: torch.dtype, most: int) -> Engine:
    """An engine for `most` requests at once, over a model made where it is used."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Transformer(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)
    context = min(1536, config.max_context)
    limits = Limits(
        most * context // 32, max_context=context, max_sequences=most, max_tokens_per_step=max(most, 2048),
        max_waiting=1 << 16, max_waiting_tokens=1 << 30,
    )  # fmt: skip
    return Engine(model, limits=limits, eos_token_ids=())


def ours(engine: Engine, work: Work, together: int) -> Run:
    """Our engine. Raises ValueError for fewer than one request at a time."""
    need_whole("together", together)
    coming: Iterator[Any] = iter(enumerate(work))
    times: list[list[float]] = [[] for _ in work]
    arrived, inside = [0.0] * len(work), 0
    began = now = time.perf_counter()
    while True:
        while inside < together and (following := next(coming, None)):
            number, (prompt, output) = following
            arrived[number] = time.perf_counter()
            engine.add(str(number), prompt, SamplingParams(max_tokens=output, ignore_eos=True))
            inside += 1
        if not inside:
            return Run.of("labkit", together, began, now, arrived, times)
        deltas = engine.step()
        now = time.perf_counter()
        for delta in deltas:
            times[int(delta.id)] += [now] * len(delta.token_ids)
            inside -= delta.finish_reason is not None


def their_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The same model in transformers, its attention by torch's fused one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {**to_hf_config(config, family_of(config)), "eos_token_id": None}
    theirs = AutoConfig.for_model(values.pop("model_type"), **values)
    with device:
        return AutoModelForCausalLM.from_config(theirs, dtype=dtype, attn_implementation="sdpa").eval()


def theirs(model: Any, work: Work, together: int, **sizes: Any) -> Run:
    """transformers' continuous batching.

    Args:
        sizes: of its `ContinuousBatchingConfig`; none: its own choice.

    Raises RuntimeError if it stops, or gives another number of tokens than was asked for.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    need_whole("together", together)
    how = {
        "generation_config": GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=1),
        "continuous_batching_config": ContinuousBatchingConfig(**sizes),
    }
    coming, found, arrived, inside = iter(enumerate(work)), {}, [0.0] * len(work), 0
    with model.continuous_batching_context_manager(**how) as manager:
        manager.add_request([5] * 16, "warm", max_new_tokens=4)
        _next(manager)
        began = time.perf_counter()
        while len(found) < len(work):
            while inside < together and (following := next(coming, None)):
                number, (prompt, output) = following
                arrived[number] = time.perf_counter()
                manager.add_request(prompt, str(number), max_new_tokens=output, record_timestamps=True)
                inside += 1
            one = _next(manager)
            found[int(one.request_id)] = one
            inside -= 1
        ended = time.perf_counter()
    times = [list(found[number].timestamps) for number in range(len(work))]
    if wrong := [n for n, (_, output) in enumerate(work) if len(times[n]) != output]:
        raise RuntimeError(f"transformers gave {len(wrong)} of {len(work)} requests another number of tokens")
    return Run.of("transformers", together, began, ended, arrived, times)


def _next(manager: Any) -> Any:
    """The next request that is finished."""
    while (one := manager.get_result(timeout=1)) is None or not one.is_finished():
        if one is None and not manager.is_running():
            raise RuntimeError("transformers' continuous batching has stopped; its log says why")
    return one
