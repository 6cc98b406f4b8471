"""Seconds that messages take: all-to-all of tokens, and the collectives of tensor and data parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.cluster import RATES, Cluster, Rates
from labkit.core.config import MoEConfig

SCALE_BYTES = 4 / 128  # a float32 scale for 128 values in FP8 (DeepSeek-V3, section 3.3.2)


@dataclass(frozen=True)
class AllToAll:
    """What one token's way to its experts and back costs one GPU, seconds by link; both links work at once."""

    network: float
    nvlink: float

    @property
    def seconds(self) -> float:
        """The slower link's time."""
        return max(self.network, self.nvlink)


def nodes_visited(config: MoEConfig, nodes: int, limit: int = 0) -> float:
    """How many of the nodes that hold a layer's experts a token's K experts lie on, if routing is even.

    N·(1 − (1 − 1/N)^K), at most the limit. With a limit the router sends as many as that to begin with, so K experts
    on few nodes are taken to use all that they may.

    >>> round(nodes_visited(MoEConfig(d_model=4, d_expert=4, num_experts=256, top_k=8), nodes=8), 2)
    5.25
    """
    even = nodes * (1 - (1 - 1 / nodes) ** config.top_k)
    return min(even, limit) if limit else even


def all_to_all(
    cluster: Cluster,
    config: MoEConfig,
    ep: int,
    *,
    fp8: bool,
    limit: int = 0,
    once: bool = True,
    small: bool = False,
    rates: Rates = RATES,
) -> AllToAll:
    """One token's dispatch and combine in one direction of training, or in inference.

    Dispatch takes D values of one byte and their scales (`fp8`) or of two, combine D of two. Over the network a token
    goes once to each other node that it visits (`once`), from there by NVLink to each of its experts' GPUs; without
    `once` it crosses the network once for each expert elsewhere.

    Args:
        cluster: the links; config: K, D and E; ep: GPUs that share a layer's experts, in order, node after node.
        limit: nodes a token may visit, 0 for any number; small: whether messages are as small as in decode.

    >>> from labkit.core.cluster import cluster
    >>> from labkit.core.presets import preset
    >>> a = all_to_all(cluster("h800", 8), preset("deepseek-v3").moe, 64, fp8=True, limit=4)
    >>> round(a.network * 1e6, 2), round(a.nvlink * 1e6, 2)
    (1.69, 0.9)
    """
    if ep == 1:
        return AllToAll(0.0, 0.0)
    size = config.d_model * ((1 + SCALE_BYTES if fp8 else 2) + 2)
    nodes = max(1, ep // cluster.gpus_per_node)
    inside = min(ep, cluster.gpus_per_node)
    crossing = nodes_visited(config, nodes, limit) if once else config.top_k
    share = rates.low_latency if small else rates.network
    network = crossing * (1 - 1 / nodes) * size / (cluster.network * share)
    copies = ep * (1 - (1 - 1 / ep) ** config.top_k)
    nvlink = copies * (1 - 1 / inside) * size / (cluster.nvlink * rates.nvlink)
    return AllToAll(network, nvlink)


def gather_seconds(cluster: Cluster, size: float, ranks: int, stride: int = 1, rates: Rates = RATES) -> float:
    """One all-gather or reduce-scatter after which every rank holds, or has given, `size` bytes in all.

    Rings: each rank receives (n − 1)/n of the bytes. Ranks lie `stride` GPUs apart, so `gpus_per_node / stride` of them
    share a node; between nodes a node's ranks share the work, each with its own network card, and NVLink spreads it.

    >>> from labkit.core.cluster import cluster
    >>> round(gather_seconds(cluster("h100", 1), 360e9, ranks=8), 3)
    0.875
    """
    if ranks <= 1 or size <= 0:
        return 0.0
    share = (ranks - 1) / ranks
    inside = max(1, min(ranks, cluster.gpus_per_node // stride))
    if inside >= ranks:
        return size * share / (cluster.nvlink * rates.nvlink)
    network = size * share / (inside * cluster.network * rates.network)
    return max(network, size * share / (cluster.nvlink * rates.nvlink) if inside > 1 else 0.0)
