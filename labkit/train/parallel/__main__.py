"""Train a small sparse model on the corpus on several ranks; a run goes on from its folder on more or fewer ranks.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m labkit.train.parallel --folder runs/parallel

Several machines: the same with torchrun's `--nnodes` and `--rdzv-endpoint`; all must see the folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn import Transformer
from labkit.train import data
from labkit.train.parallel.launch import join
from labkit.train.parallel.loop import ParallelResult, train_parallel
from labkit.train.parallel.mesh import make_mesh
from labkit.train.parallel.shard import parallelize
from labkit.train.parallel.source import ByteSource
from labkit.train.parallel.wire import WIRES
from labkit.train.settings import TrainConfig


def model_config(num_experts: int, width: int, layers: int) -> ModelConfig:
    """A small byte-level model: two experts a token and a shared one."""
    moe = MoEConfig(
        d_model=width, d_expert=2 * width, num_experts=num_experts, top_k=2, num_shared_experts=1,
        score_fn="sigmoid", selection_bias=True,
    )  # fmt: skip
    heads = max(1, width // 16)
    return ModelConfig(
        "parallel", data.VOCAB_SIZE, layers, width, num_heads=heads, num_kv_heads=heads, head_dim=16, moe=moe
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m labkit.train.parallel", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--folder", help="for checkpoints and the log; a run there goes on")
    add("--steps", type=int, default=200)
    add("--batch", type=int, default=16, help="sequences of all ranks together")
    add("--sequence", type=int, default=128)
    add("--learning-rate", type=float, default=3e-3)
    add("--experts", type=int, default=8)
    add("--width", type=int, default=64)
    add("--layers", type=int, default=2)
    add("--ep", type=int, help="ranks that share the experts; all, if left out")
    add("--shard", action="store_true", help="hold parameters in shards (FSDP2)")
    add("--wire", choices=WIRES, default="same", help="format of rows on the way")
    add("--bytes", type=int, default=200_000, help="of each domain of the corpus")
    add("--save-every", type=int, default=50)
    add("--log-every", type=int, default=10)
    add("--seed", type=int, default=0)
    add("--backend", choices=("auto", "gloo", "nccl"), default="auto", help="auto: nccl if there is a GPU")
    add("--timeout", type=float, default=120.0, help="seconds that a rank waits for the others")
    return parser


def run(options: argparse.Namespace) -> ParallelResult:
    """Train as the options say; `torch.distributed` must be set up."""
    mesh, world = make_mesh(options.ep), dist.get_world_size()
    torch.manual_seed(options.seed)
    model = Transformer(model_config(options.experts, options.width, options.layers)).to(mesh.device_type)
    model = parallelize(model, mesh, wire=options.wire, shard=options.shard)
    corpus = data.corpus(bytes_per_domain=options.bytes)
    source = ByteSource(corpus, options.seed, rank=dist.get_rank(), world=world)
    config = TrainConfig(
        steps=options.steps, batch=options.batch, sequence=options.sequence, learning_rate=options.learning_rate,
        bias_rate=1e-3, save_every=options.save_every, log_every=options.log_every, seed=options.seed,
        schedule="constant", warmup=min(10, options.steps), precision="float32", progress="plain",
    )  # fmt: skip
    return train_parallel(model, source, config, mesh, folder=options.folder)


@record
def main() -> None:
    """Set up the job from torchrun's variables, or alone, and train."""
    options = arguments().parse_args()
    backend = options.backend
    if backend == "auto":
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    with tempfile.TemporaryDirectory() as alone:
        where = {} if "RANK" in os.environ else {"init_method": f"file://{alone}/store", "rank": 0, "world_size": 1}
        join(backend, options.timeout, **where)
        try:
            result = run(options)
            if dist.get_rank() == 0:
                kept = f"; {result.checkpoint}" if result.checkpoint else ""
                print(f"{result.step} steps on {dist.get_world_size()} ranks{kept}")
        finally:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
