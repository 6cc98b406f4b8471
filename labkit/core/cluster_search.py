"""The best plan for a model on a cluster, and what breaks first as the cluster grows. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm

from labkit.core.cluster import RATES, RECOMPUTE, Cluster, Plan, Rates, cluster
from labkit.core.cluster_failures import Reliability, checkpoint_bytes, reliability
from labkit.core.cluster_memory import training_memory_per_gpu
from labkit.core.cluster_train import Estimate, train
from labkit.core.config import ModelConfig
from labkit.core.parameters import need_model
from labkit.core.whole import need_whole

STAGES = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32)
WAITS = ("tensor", "all_to_all", "bubble", "data")


@dataclass(frozen=True)
class Scaled:
    """A cluster size with its best plan and its failures.

    Args:
        gpus: that the cluster has; the plan may take a few less.
    """

    gpus: int
    estimate: Estimate
    reliability: Reliability

    @property
    def tokens_per_second(self) -> float:
        """Tokens that stay: the plan's, in the share of the time that failures leave."""
        return self.estimate.tokens_per_second * self.reliability.effective

    @property
    def tokens_per_gpu(self) -> float:
        """The same over all GPUs of the cluster."""
        return self.tokens_per_second / self.gpus

    @property
    def losses(self) -> dict[str, float]:
        """Shares of the time that are lost: waiting, by kind, failures, and GPUs that the plan leaves out."""
        e, works = self.estimate, self.reliability.effective * self.estimate.plan.gpus / self.gpus
        waits = {name: works * e.seconds.parts()[name] / e.seconds.total for name in WAITS}
        idle = 1 - e.plan.gpus / self.gpus
        return {**waits, "failures": (1 - idle) * (1 - self.reliability.effective), "idle": idle}

    @property
    def binds(self) -> str:
        """The largest loss, if it is a twentieth of the time or more; else "compute"."""
        losses = self.losses
        worst = max(losses, key=losses.__getitem__)
        return worst if losses[worst] >= 0.05 else "compute"

    def days(self, tokens: float) -> float:
        """Days for so many tokens."""
        return tokens / self.tokens_per_second / 86_400


def best_plan(
    model: ModelConfig,
    machine: Cluster,
    *,
    batch: int,
    context: int = 4096,
    precision: str = "bf16",
    schedules: Sequence[str] = ("1f1b", "dualpipe"),
    rates: Rates = RATES,
) -> Estimate:
    """The plan that trains most tokens per second among those that fit the memory.

    Tried: tensor parallelism inside a node, the pipeline's stages in `STAGES`, all powers of two of experts' GPUs,
    interleaving by one layer or by halves, weights sharded or not, and of recomputation the least that fits. Everything
    else is as `Plan` has it, with experts' nodes limited to the router's groups.

    Args:
        batch: the most sequences of one step; a step takes as many of them as the ranks can share evenly.

    Raises ValueError if nothing fits, saying how much the leanest plan needs.

    >>> from labkit.core.presets import preset
    >>> e = best_plan(preset("mixtral-8x7b"), cluster("h100", 8), batch=256)
    >>> e.plan.gpus, bool(e.fit)
    (64, True)
    """
    need_whole("best_plan: batch", batch)
    found, least, room = None, float("inf"), machine.gpu.memory * 0.9
    for plan in _plans(need_model(model, "best_plan"), machine, batch, context, precision, tuple(schedules)):
        for recompute in RECOMPUTE:
            lean = plan.replace(recompute=recompute)
            needed = training_memory_per_gpu(model, lean).total
            least = min(least, needed)
            if needed <= room:
                e = train(model, machine, lean, rates)
                if found is None or e.tokens_per_second > found.tokens_per_second:
                    found = e
                break
    if found is None:
        raise ValueError(
            f"best_plan: no plan of {model.name} fits {machine.gpus} × {machine.gpu.name}: the leanest one tried takes "
            f"{least / 1e9:,.0f} GB of a GPU's {machine.gpu.memory * 0.9 / 1e9:,.0f}; give more nodes or a larger batch"
        )
    return found


def sweep(
    model: ModelConfig,
    kind: str,
    sizes: Sequence[int],
    *,
    batch: int,
    context: int = 4096,
    precision: str = "bf16",
    rates: Rates = RATES,
) -> tuple[Scaled, ...]:
    """The best plan for each number of GPUs, and what failures leave of it.

    Args:
        kind: of cluster, a key of `cluster.KINDS`; sizes: GPUs, multiples of 8, ascending.
        batch: the most sequences of one step, the same for all sizes: more would change what is learnt.

    >>> from labkit.core.presets import preset
    >>> rows = sweep(preset("mixtral-8x7b"), "h100", (64, 4096), batch=256)
    >>> rows[1].tokens_per_gpu < rows[0].tokens_per_gpu, breaks_first(rows)
    (True, 'data')
    """
    bad = [size for size in sizes if size % 8]
    if bad or list(sizes) != sorted(set(sizes)) or not sizes:
        raise ValueError(f"sweep: sizes are {tuple(sizes)}; give ascending numbers of GPUs, multiples of 8")
    rows = []
    for size in sizes:
        e = best_plan(model, cluster(kind, size // 8), batch=batch, context=context, precision=precision, rates=rates)
        state = checkpoint_bytes(model, e.plan.state_bytes)
        rows.append(Scaled(size, e, reliability(e.plan.gpus, state)))
    return tuple(rows)


def breaks_first(rows: Sequence[Scaled]) -> str:
    """The loss that grew most from the smallest to the largest cluster.

    "idle" means that a step's sequences are too few to give every GPU work; "bubble" that they are too few to fill the
    pipelines; "all_to_all", "tensor" and "data" are links; "failures" are failures.
    """
    if len(rows) < 2:
        raise ValueError(f"breaks_first: {len(rows)} cluster; give two or more, from `sweep`")
    first, last = rows[0].losses, rows[-1].losses
    return max(last, key=lambda name: last[name] - first[name])


def sweep_table(rows: Sequence[Scaled]) -> str:
    """A sweep as a table in Markdown."""
    lines = [
        "| GPUs | plan | MFU | waiting | failures | left idle | tokens/s per GPU | binds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        p, lost = r.estimate.plan, r.losses
        waits = ", ".join(f"{name} {lost[name]:.1%}" for name in WAITS if lost[name] >= 0.005)
        plan = f"dp {p.dp}, tp {p.tp}, pp {p.pp} × {p.chunks}, ep {p.ep}, {p.micro_batches} micro-batches"
        lines.append(
            f"| {r.gpus:,} | {plan} | {r.estimate.mfu:.0%} | {waits or 'none'} | {lost['failures']:.1%} | "
            f"{lost['idle']:.1%} | {r.tokens_per_gpu:,.0f} | {r.binds} |"
        )
    return "\n".join(lines)


def data_degree(machine: Cluster, batch: int, *, tp: int = 1, pp: int = 1, ep: int = 1) -> int:
    """The most data-parallel ranks for these degrees: ep divides dp · tp, and no rank is without a sequence; 0 if none.

    >>> data_degree(cluster("h800", 1250), 15_360, pp=16, ep=64)
    576
    """
    step = lcm(ep, tp) // tp
    return min(machine.gpus // (tp * pp), batch) // step * step


def _plans(
    model: ModelConfig, machine: Cluster, batch: int, context: int, precision: str, schedules: tuple[str, ...]
) -> Iterator[Plan]:
    """Plans to try, without recomputation."""
    limit = model.moe.top_groups if model.moe is not None and model.moe.num_groups > 1 else 0
    for tp in (1, 2, 4, 8):
        if tp > machine.gpus_per_node or model.num_heads % tp:
            continue
        for pp in STAGES:
            if pp > model.num_layers or tp * pp > machine.gpus:
                continue
            for ep in _expert_degrees(model, machine.gpus // pp):
                dp = data_degree(machine, batch, tp=tp, pp=pp, ep=ep)
                if not dp:
                    continue
                base = Plan(
                    dp=dp, tp=tp, pp=pp, ep=ep, batch=batch // dp * dp, context=context, precision=precision,
                    node_limit=limit,
                )  # fmt: skip
                yield from _schedules(base, model, schedules)


def _expert_degrees(model: ModelConfig, ranks: int) -> list[int]:
    experts = model.moe.num_experts if model.moe is not None else 1
    return [ep for ep in (2**i for i in range(10)) if ep <= ranks and experts % ep == 0]


def _schedules(base: Plan, model: ModelConfig, schedules: tuple[str, ...]) -> Iterator[Plan]:
    if base.pp == 1:
        yield base.replace(zero=3)
        yield base
        return
    if "1f1b" in schedules:
        layers = -(-model.num_layers // base.pp)
        for chunks in sorted({1, max(1, layers // 2), layers}):
            if base.pp * chunks <= model.num_layers + 2:
                yield base.replace(chunks=chunks)
    if "zero_bubble" in schedules:
        yield base.replace(schedule="zero_bubble")
    if "dualpipe" in schedules and base.pp % 2 == 0 and base.micro_batches >= 2 * base.pp:
        yield base.replace(schedule="dualpipe")
