"""Loading takes little more memory than the model: its own tensors, and one piece of a file at a time."""

import math
import sys
from pathlib import Path

import pytest
import torch

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn import Transformer
from labkit.nn.shards import Shards

MOE = MoEConfig(d_model=256, d_expert=512, num_experts=16, top_k=2)
PLAIN = ModelConfig("plain", 40, 3, 256, num_heads=4, num_kv_heads=2, head_dim=4, moe=MOE)
CONFIGS = {
    "mixtral": PLAIN,
    "gpt_oss": PLAIN.replace(
        attention_sinks=True,
        moe=MOE.replace(score_fn="topk_softmax", router_bias=True, expert_bias=True, activation="clamped_swiglu"),
    ),
}


def anonymous() -> int:
    """Bytes that this process holds of its own, mapped files left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_loading_takes_little_more_than_the_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(CONFIGS[family])
    size, largest = (f(p.nbytes for p in model.parameters()) for f in (sum, max))
    model.save_pretrained(tmp_path, max_shard_bytes=20_000_000)
    del model
    read, held = Shards.read, []

    def watched(self, name: str) -> torch.Tensor:
        held.append(anonymous())
        return read(self, name)

    monkeypatch.setattr(Shards, "read", watched)
    before = anonymous()
    model = Transformer.from_pretrained(tmp_path)
    held.append(anonymous())
    spare = 2 * largest if family == "gpt_oss" else 0  # gate and up are taken apart there
    assert max(held) - before < 1.1 * size + spare
    assert len(held) > 20
    assert math.isfinite(model.head.weight.sum().item())
