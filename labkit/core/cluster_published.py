"""Figures that others published, beside what this cost model says of the same model, machine and plan.

Every row uses the same `Rates`. Plans are the published ones; what is not published is said in the row. Rows that miss
by more than a fifth stay, with what is known of the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from labkit.core.cluster import Plan, cluster
from labkit.core.cluster_failures import checkpoint_bytes, reliability
from labkit.core.cluster_search import best_plan
from labkit.core.cluster_serve import ServePlan, decode, prefill
from labkit.core.cluster_train import Estimate, train
from labkit.core.config import ModelConfig
from labkit.core.presets import preset

GOAL = 0.2  # a row within a fifth of its figure is a hit


def _llama(name: str, layers: int, d_model: int, heads: int, d_dense: int) -> ModelConfig:
    return ModelConfig(
        name=name, vocab_size=128_256, num_layers=layers, d_model=d_model, num_heads=heads, num_kv_heads=8,
        head_dim=128, moe=None, num_dense_layers=layers, d_dense=d_dense, norm_eps=1e-5, rope_theta=500_000.0,
        max_context=8192,
    )  # fmt: skip


DENSE: Mapping[str, ModelConfig] = MappingProxyType(
    {
        m.name: m
        for m in (
            _llama("llama-3.1-8b", 32, 4096, 32, 14_336),
            _llama("llama-3.1-70b", 80, 8192, 64, 28_672),
            _llama("llama-3.1-405b", 126, 16_384, 128, 53_248),
        )
    }
)
"""Dense controls (Llama 3, arXiv 2407.21783, table 3)."""

V3 = "DeepSeek-V3 report, arXiv 2412.19437"
LLAMA = "Llama 3, arXiv 2407.21783"
CARD = "model card, meta-llama/llama-models at 1b28708"
BRIDGE = "NVIDIA-NeMo/Megatron-Bridge at 00b7660, docs/performance-summary.md, DGX-H100"
ZOO = "yanring/Megatron-MoE-ModelZoo at c1ad0b5, best_practice/Qwen3"
DAY6 = "deepseek-ai/open-infra-index, day 6"
LMSYS = "LMSYS, 2025-05-05, large-scale EP, throughput tables"


@dataclass(frozen=True)
class Published:
    """A published figure, and ours.

    Args:
        what: model, machine and plan in words; figure, unit: as published; source: where.
        ours: the same figure from this model; note: what is not published, or why it misses.
    """

    what: str
    figure: float
    unit: str
    source: str
    ours: float
    note: str = ""

    @property
    def error(self) -> float:
        """Ours over the published figure, minus one."""
        return self.ours / self.figure - 1

    @property
    def hit(self) -> bool:
        """Whether the error is at most a fifth."""
        return abs(self.error) <= GOAL


def plans() -> dict[str, Estimate]:
    """The published training runs by name, as this model sees them.

    >>> plans()["deepseek-v3"].plan.gpus
    2048
    """
    llama, h100 = DENSE["llama-3.1-405b"], ("dp",)
    v3 = preset("deepseek-v3").replace(num_mtp_layers=1)
    qwen = preset("qwen3-235b-a22b")
    dense = Plan(dp=128, tp=8, pp=16, batch=2048, context=8192, chunks=8, zero=2, overlap=h100)
    spread = Plan(dp=16, tp=2, pp=8, ep=32, batch=2048, chunks=4, recompute="selective", overlap=h100)
    runs = {
        "deepseek-v3": (
            v3, "h800", 256,
            Plan(dp=128, pp=16, ep=64, batch=15_360, precision="fp8", schedule="dualpipe", recompute="selective",
                 node_limit=4, state_bytes=8),
        ),
        "mixtral-8x7b": (preset("mixtral-8x7b"), "h100", 8, Plan(dp=16, pp=4, ep=8, batch=256, chunks=8, overlap=h100)),
        "llama-8k": (llama, "h100", 1024, dense.replace(dp=64)),
        "llama-16k": (llama, "h100", 2048, dense),
        "llama-long": (llama, "h100", 2048, dense.replace(dp=8, cp=16, batch=128, context=131_072)),
        "llama-405b-fp8": (
            llama, "h100", 128,
            Plan(dp=8, tp=8, pp=8, cp=2, batch=512, context=8192, chunks=8, precision="fp8", overlap=h100),
        ),
        "llama-70b-fp8": (
            DENSE["llama-3.1-70b"], "h100", 8,
            Plan(dp=2, tp=4, pp=8, batch=128, context=8192, chunks=5, precision="fp8", overlap=h100),
        ),
        "llama-8b-fp8": (
            DENSE["llama-3.1-8b"], "h100", 1, Plan(dp=8, batch=128, context=8192, zero=3, precision="fp8"),
        ),
        "qwen3-235b": (qwen, "h100", 32, spread),
        "qwen3-235b-overlap": (qwen, "h100", 32, spread.replace(overlap=("ep", "dp"))),
        "gpt-oss-120b": (
            preset("gpt-oss-120b"), "h100", 8, Plan(dp=16, pp=4, ep=8, batch=512, micro_batch=4, overlap=h100),
        ),
        "qwen3-30b-fp8": (
            preset("qwen3-30b-a3b"), "h100", 2,
            Plan(dp=8, pp=2, ep=8, batch=512, micro_batch=2, chunks=24, precision="fp8", overlap=h100),
        ),
        "olmoe": (preset("olmoe-1b-7b"), "h100", 32, Plan(dp=256, batch=1024, micro_batch=4, zero=3)),
    }  # fmt: skip
    return {name: train(model, cluster(kind, nodes), plan) for name, (model, kind, nodes, plan) in runs.items()}


def chunk() -> dict[str, tuple[float, float]]:
    """Milliseconds of a forward and a backward pass of four of DeepSeek-V3's MoE layers by part: published, ours.

    Published: kernels of train.json in deepseek-ai/profile-data at 4496024, H800, EP64, 4,096 tokens, summed by name:
    FP8 products; attention; every other kernel of the compute streams. In ours an expert layer's other kernels are in
    `experts`, in theirs in "everything else". "All" is their span, and our work with what waits.

    >>> {part: round(ours) for part, (_, ours) in chunk().items()}["all"]
    128
    """
    layers = preset("deepseek-v3").replace(num_layers=4, num_dense_layers=0, vocab_size=1)
    plan = Plan(dp=64, ep=64, batch=128, precision="fp8", node_limit=4, recompute="selective")
    e = train(layers, cluster("h800", 8), plan)
    s = {name: value * 1e3 / plan.micro_batches for name, value in e.seconds.parts().items()}
    return {
        "products and experts": (74.5, s["products"] + s["experts"]),
        "attention": (22.0, s["attention"]),
        "everything else": (33.0, s["elementwise"]),
        "all": (129.0, sum(s.values()) - s["optimizer"] - s["data"]),
    }


def training() -> tuple[Published, ...]:
    """Training: GPU-hours, model TFLOP/s and tokens per second."""
    p = plans()
    card = p["llama-16k"]
    held = reliability(16_384, checkpoint_bytes(card.model)).effective
    return (
        Published(
            "DeepSeek-V3, 2,048 H800, FP8, PP16 DualPipe, EP64, ZeRO-1", 180, "thousand GPU-hours per 10¹² tokens",
            f"{V3}, section 1", p["deepseek-v3"].gpu_hours_per_trillion / 1e3,
            "batch 15,360 (section 4.2), one multi-token module; micro-batch of one sequence as in DeepEP's tests",
        ),
        Published(
            "DeepSeek-V3, forward and backward of 4 MoE layers, 4,096 tokens, H800, EP64", *_both("all"),
            "routing balanced; kernels' span, read from the trace",
        ),
        Published(
            "Mixtral 8x7B, 64 H100, BF16, PP4 (8 chunks), EP8", 438, "TFLOP/s per GPU",
            "NVIDIA/Megatron-LM, megatron/core/transformer/moe/README.md, MCore v0.8", p["mixtral-8x7b"].tflops,
            "their count of attention's FLOPs may be without the causal half (4% more)",
        ),
        Published(
            "Llama 3.1 405B, 8,192 H100, BF16, TP8 PP16", 430, "TFLOP/s per GPU", f"{LLAMA}, table 4",
            p["llama-8k"].tflops, "8 chunks a rank: 126 layers over 16 ranks, one at a time",
        ),
        Published(
            "the same, 16,384 H100", 400, "TFLOP/s per GPU", f"{LLAMA}, table 4", p["llama-16k"].tflops,
        ),
        Published(
            "the same, 131,072 positions, CP16", 380, "TFLOP/s per GPU", f"{LLAMA}, table 4", p["llama-long"].tflops,
            "exchange of keys and values left out (their section 3.3.2 calls it negligible)",
        ),
        Published(
            "Llama 3.1 405B, whole pre-training", 30.84, "million GPU-hours", CARD,
            15.6 * card.gpu_hours_per_trillion / 1e6 / held,
            "15.6·10¹² tokens, all as on 16,384 GPUs, over the effective time of `reliability`",
        ),
        *(
            Published(
                f"Llama 3.1 {size}, whole pre-training", hours, "million GPU-hours", CARD,
                15 * best_plan(
                    DENSE[f"llama-3.1-{size.lower()}"], cluster("h100", 64), batch=1024, context=8192
                ).gpu_hours_per_trillion / 1e6,
                "neither plan nor cluster is published: ours is `best_plan` on 512; a card's hours hold everything, "
                "long contexts and annealing too",
            )
            for size, hours in (("70B", 7.0), ("8B", 1.46))
        ),
        Published(
            "Llama 3.1 405B, 1,024 H100, FP8, TP8 PP8 CP2", 292, "tokens/s per GPU", BRIDGE,
            p["llama-405b-fp8"].tokens_per_gpu, "scales per tensor, faster than the blocks that `Rates.fp8` is from",
        ),
        Published(
            "Llama 3 70B, 64 H100, FP8, TP4 PP8", 1602, "tokens/s per GPU", BRIDGE,
            p["llama-70b-fp8"].tokens_per_gpu, "the same",
        ),
        Published(
            "Llama 3 8B, 8 H100, FP8, FSDP", 14_451, "tokens/s per GPU", BRIDGE, p["llama-8b-fp8"].tokens_per_gpu,
        ),
        Published(
            "Qwen3-235B-A22B, 256 H100, BF16, TP2 PP8 EP32, nothing hidden", 245, "TFLOP/s per GPU", ZOO,
            p["qwen3-235b"].tflops,
        ),
        Published(
            "the same, all-to-all hidden", 276, "TFLOP/s per GPU", ZOO, p["qwen3-235b-overlap"].tflops,
            "we hide all of it; theirs hides a third, by step times of 19.7 and 17.6 s",
        ),
        Published(
            "GPT-OSS-120B, 64 H100, BF16, PP4 EP8", 5630, "tokens/s per GPU", BRIDGE, p["gpt-oss-120b"].tokens_per_gpu,
            "small experts: see OLMoE; and our memory says that this plan needs recomputation, which is not published",
        ),
        Published(
            "Qwen3-30B-A3B, 16 H100, FP8, PP2 EP8", 5275, "tokens/s per GPU", BRIDGE,
            p["qwen3-30b-fp8"].tokens_per_gpu,
            "small experts: 32 ms go by for a layer whose products take 4; the model knows nothing of hosts that wait",
        ),
        Published(
            "OLMoE-1B-7B, 256 H100, BF16, FSDP", 23_600, "tokens/s per GPU", "OLMoE, arXiv 2409.02060, section 4.1.1",
            p["olmoe"].tokens_per_gpu,
            "their software: not compiled, block-sparse experts (`compile: null`, `moe_mlp_impl: sparse` in "
            "allenai/OLMoE's configs), and 21% of the peak; our kernels reach the speed that we count",
        ),
    )  # fmt: skip


def _both(part: str) -> tuple[float, str, str, float]:
    published, ours = chunk()[part]
    return published, "ms", "deepseek-ai/profile-data at 4496024, train.json", ours


def serving() -> tuple[Published, ...]:
    """Serving DeepSeek-V3 and R1: tokens per second and node."""
    v3, h800, h100 = preset("deepseek-v3"), cluster("h800", 18), cluster("h100", 12)
    many = ServePlan(ep=32, batch=16_384, slots=288, precision="fp8", node_limit=4)
    one = ServePlan(ep=128, batch=128, slots=288, precision="fp8")
    unit, alone = "tokens/s per node", prefill(v3, h800, many).tokens_per_node
    return (
        Published(
            "prefill, 4 nodes of H800, EP32, 16,384 tokens a GPU, prompts of 4,096", 62_713, unit,
            f"{LMSYS}: DeepSeek's profile", alone, "routing balanced by force",
        ),
        Published(
            "the same in SGLang on H100, routing balanced", 59_337, unit, LMSYS,
            prefill(v3, h100, many).tokens_per_node,
        ),
        Published(
            "the same in production, a day's mean, cache hits counted", 73_700, unit, DAY6,
            prefill(v3, h800, many.replace(context=4989)).tokens_per_node / (1 - 0.563),
            "a mean over load that comes and goes, against a full machine; 56.3% of the tokens were in the cache, so "
            "32,206 were computed, half of what their own profile reaches",
        ),
        Published(
            "decode, 16 nodes of H800, EP128, 128 requests a GPU, 4,096 positions", 18_598, unit,
            f"{LMSYS}: DeepSeek's profile", decode(v3, h800, one).tokens_per_node,
        ),
        Published(
            "decode in production, 18 nodes, EP144, a day's mean, 4,989 positions", 14_800, unit, DAY6,
            decode(v3, h800, one.replace(ep=144, batch=88, context=4989)).tokens_per_node,
            "88 requests a GPU, from their 20 to 22 tokens/s each",
        ),
        Published(
            "decode in SGLang, 9 nodes of H100, EP72, 128 requests, 4,000 positions", 17_373, unit,
            f"{LMSYS}: slowed attention", decode(v3, h100, one.replace(ep=72, context=4000)).tokens_per_node,
        ),
        Published(
            "decode in SGLang, EP72, 256 requests, 2,000 positions", 22_282, unit, LMSYS,
            decode(v3, h100, one.replace(ep=72, batch=256, context=2000)).tokens_per_node,
            "messages take as long as all work here; we hide all of them, their combine waited twice as long as "
            "DeepSeek's (they say), and routing was not balanced",
        ),
    )  # fmt: skip


def table() -> str:
    """Both tables as one in Markdown, the one in docs/scale_out.md.

    >>> table().splitlines()[0]
    '| | published | ours | error | source | |'
    """
    lines = ["| | published | ours | error | source | |", "|---|---|---|---|---|---|"]
    for heading, rows in (("**Training**", training()), ("**Serving DeepSeek-V3 and R1**", serving())):
        lines.append(f"| {heading} | | | | | |")
        for r in rows:
            error = f"{r.error:+.0%}" if r.hit else f"**{r.error:+.0%}**"
            lines.append(
                f"| {r.what} | {_number(r.figure)} {r.unit} | {_number(r.ours)} | {error} | {r.source} | {r.note} |"
            )
    return "\n".join(lines)


def chunk_table() -> str:
    """`chunk` as a table in Markdown, the one in docs/scale_out.md."""
    lines = ["| part | published | ours |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {part} | {a:.1f} | {b:.1f} |" for part, (a, b) in chunk().items())])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
