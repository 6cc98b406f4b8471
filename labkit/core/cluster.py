"""A cluster, how a model is spread over it, and how fast its parts really are. Pure arithmetic, no torch.

`cluster_train` says what a training step costs on it, `cluster_serve` prefill and decode, `cluster_search` which plan
is best and what breaks first at scale, `cluster_published` how well all this meets figures that others published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from labkit.core.config import Config
from labkit.core.hardware import GB, GPUS, Gpu
from labkit.core.whole import need_whole

SCHEDULES = ("1f1b", "zero_bubble", "dualpipe")
RECOMPUTE = ("none", "selective", "full")
OVERLAPS = ("tp", "ep", "dp")

H800 = Gpu("H800", 80 * GB, 989.4, 3350 * GB, (9, 0), "as H100 SXM, with NVLink of 400 GB/s instead of 900")


@dataclass(frozen=True)
class Rates:
    """What share of the datasheet's peaks programs reach; one set for every model, plan and cluster here.

    Args:
        matmul: of the 16-bit peak in plain products: 665 of 989 TFLOP/s, what a product of 8192³ fell to on a card at
            its power limit (docs/kernels.md, first paragraph), as in a run that lasts weeks.
        grouped: an expert layer's speed, forward and backward, over that: 0.72, the mean of five shapes
            (docs/kernels.md, "forward + backward").
        fp8: products in FP8 with scales for blocks over the same in 16 bits: 1.43 (docs/kernels.md, "Prefill, both
            sides quantised").
        attention: of the 16-bit peak: 509 of 989 TFLOP/s, cuDNN's causal attention forward and backward on 16 heads of
            128 at 4096 positions (docs/kernels.md, "flash attention": 1.89 ms).
        memory: of the HBM's bandwidth: 4.1 of 4.8 TB/s (docs/kernels.md, version 5).
        nvlink: of NVLink's bandwidth: 160 of 200 GB/s on an H800 (DeepSeek-V3, arXiv 2412.19437, section 3.2.2).
        network: of the network card's bandwidth: 45 of 50 GB/s, between the 43 and 58 that DeepEP lists for dispatch
            and combine over 2 to 8 nodes (deepseek-ai/DeepEP, docs/legacy.md).
        busy: the share of a GPU's multiprocessors that overlapped all-to-all occupies: 20 of 132 (arXiv 2412.19437,
            section 3.2.2).
        passes: times that each value kept for the backward pass goes through the HBM outside of products: written and
            read forward, read and its gradient written backward.
        low_latency: of the network card's bandwidth with decode's small messages: 39 of 50 GB/s (DeepEP,
            docs/legacy.md, 128 tokens over 128 GPUs).
        launch: seconds that a kernel takes beside its bytes: 5 µs, as five launches of 48 µs move bytes for 23 µs
            (docs/kernels.md, version 8); kernels: so many a layer, counted from DeepSeek-V3's: 8 products, 2 of
            attention, 4 for norms and rotary positions, 4 that quantise, 2 of the router.
    """

    matmul: float = 665 / 989
    grouped: float = 0.72
    fp8: float = 1.43
    attention: float = 509 / 989
    memory: float = 4.1 / 4.8
    nvlink: float = 160 / 200
    network: float = 45 / 50
    busy: float = 20 / 132
    passes: int = 4
    low_latency: float = 39 / 50
    launch: float = 5e-6
    kernels: int = 20


RATES = Rates()


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs with fast links inside a node and a network between nodes.

    Args:
        gpu: the accelerator; nodes, gpus_per_node: how many.
        nvlink, network: bytes per second of one GPU in one direction, from the datasheet.
        price: dollars of one GPU for an hour; 2, as DeepSeek-V3's report assumes (arXiv 2412.19437, section 1).

    >>> cluster("h800", nodes=256).gpus
    2048
    """

    gpu: Gpu
    nodes: int
    gpus_per_node: int = 8
    nvlink: float = 450 * GB
    network: float = 50 * GB
    price: float = 2.0

    def __post_init__(self) -> None:
        need_whole("Cluster: nodes", self.nodes)
        need_whole("Cluster: gpus_per_node", self.gpus_per_node)
        for name in ("nvlink", "network"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Cluster: {name} is {getattr(self, name)} bytes per second; give a positive number")
        if self.price < 0:
            raise ValueError(f"Cluster: price is {self.price}; give zero or more dollars an hour")

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


_KINDS = {
    "a100": (GPUS["A100-80GB"], 300, 25),
    "h100": (GPUS["H100-80GB"], 450, 50),
    "h800": (H800, 200, 50),
    "h200": (GPUS["H200"], 450, 50),
    "b200": (GPUS["B200"], 900, 50),
}

KINDS: Mapping[str, tuple[Gpu, int, int]] = MappingProxyType(_KINDS)
"""Kinds of cluster: GPU, and GB/s of NVLink and of the network per GPU and direction (NVIDIA's DGX and HGX datasheets:
half of NVLink's two-way figure; network cards of 200 Gbit/s with A100 and 400 after; H800: arXiv 2412.19437, 3.2.2)."""


def cluster(kind: str, nodes: int, gpus_per_node: int = 8) -> Cluster:
    """A cluster of a kind in `KINDS`. Raises ValueError for another name."""
    if kind not in KINDS:
        raise ValueError(f"there is no cluster {kind!r}; choose one of {', '.join(KINDS)}")
    gpu, nvlink, network = KINDS[kind]
    return Cluster(gpu, nodes, gpus_per_node, nvlink * GB, network * GB)


@dataclass(frozen=True)
class Plan(Config):
    """How a training step is spread: dp · tp · pp · cp GPUs, the experts of a layer over `ep` of them.

    Args:
        dp, tp, pp, cp: data, tensor, pipeline and context parallel degrees; ep: divides dp · tp · cp, since the ranks
            that hold different data or parts of a layer hold different experts of it.
        batch: sequences of one step, over all of dp; micro_batch: sequences that go through the pipeline together.
        context: tokens of a sequence.
        precision: "bf16" or "fp8" of the products (never of attention).
        schedule: "1f1b" (with `chunks` stages on each rank, interleaved), "zero_bubble" or "dualpipe".
        zero: 1 shards the optimizer over dp, 2 gradients too, 3 weights too.
        recompute: "none"; "selective": norms, SwiGLU and MLA's up-projections again; "full": all but layers' inputs.
        overlap: what is hidden behind products as far as it goes: any of "tp", "ep", "dp".
        node_limit: nodes that a token's experts may lie on; 0 for no limit.
        once_per_node: whether a token crosses the network once per node and is handed on there, or once per expert.
        state_bytes: bytes of master weights and moments per parameter: 12 in float32, 8 with 16-bit moments.
        gradient_bytes: bytes of a summed gradient.

    Raises ValueError for degrees that do not fit together.

    >>> Plan(dp=128, pp=16, ep=64, batch=15360, context=4096).gpus
    2048
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    batch: int = 1
    micro_batch: int = 1
    context: int = 4096
    precision: str = "bf16"
    schedule: str = "1f1b"
    chunks: int = 1
    zero: int = 1
    recompute: str = "none"
    overlap: tuple[str, ...] = ("ep", "dp")
    node_limit: int = 0
    once_per_node: bool = True
    state_bytes: int = 12
    gradient_bytes: int = 4

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "pp", "cp", "ep", "batch", "micro_batch", "context", "chunks"):
            need_whole(f"Plan: {name}", getattr(self, name))
        need_whole("Plan: node_limit", self.node_limit, 0)
        for name, choices in (
            ("precision", ("bf16", "fp8")), ("schedule", SCHEDULES), ("recompute", RECOMPUTE), ("zero", (1, 2, 3)),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"Plan: {name} is {getattr(self, name)!r}; choose one of {choices}")
        if not set(self.overlap) <= set(OVERLAPS):
            raise ValueError(f"Plan: overlap is {self.overlap!r}; give a tuple of {OVERLAPS}")
        if (self.dp * self.tp * self.cp) % self.ep:
            raise ValueError(f"Plan: ep={self.ep} does not divide dp·tp·cp={self.dp * self.tp * self.cp}")
        if self.batch % (self.dp * self.micro_batch):
            raise ValueError(
                f"Plan: {self.batch} sequences are no whole number of micro-batches of {self.micro_batch} on "
                f"{self.dp} data-parallel ranks; change batch, micro_batch or dp"
            )

    @property
    def gpus(self) -> int:
        """GPUs that the plan takes."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def micro_batches(self) -> int:
        """Micro-batches that go through a pipeline in one step."""
        return self.batch // (self.dp * self.micro_batch)

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.context

    @property
    def bubble(self) -> float:
        """A rank's idle time over its working time, the stages being equal.

        Interleaved 1F1B: (p − 1)/(v·m) (Narayanan et al. 2021, arXiv 2104.04473, section 2.2). With a forward pass of
        1, a backward pass of 2 and its weights' part of 1: zero bubble, (p − 1)(F + B − 2W), and DualPipe,
        (p/2 − 1)(F&B + B − 3W), F&B taken as F + B (DeepSeek-V3, arXiv 2412.19437, table 2).

        >>> Plan(dp=1, pp=4, batch=8).bubble, Plan(dp=1, pp=4, batch=8, chunks=2).bubble
        (0.375, 0.1875)
        """
        idle = {
            "1f1b": (self.pp - 1) / self.chunks,
            "zero_bubble": (self.pp - 1) / 3,
            "dualpipe": max(0.0, self.pp / 2 - 1) * 2 / 3,
        }
        return idle[self.schedule] / self.micro_batches
