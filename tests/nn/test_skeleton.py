"""A model without values: the shapes of the real one, no memory, and none of torch's compiler."""

import subprocess
import sys

import pytest
import torch

from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.runtime import data_path
from labkit.nn import Transformer
from labkit.nn.skeleton import skeleton

MOE = MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2, router_bias=True, expert_bias=True)
PLAIN = ModelConfig("plain", 40, 2, 16, num_heads=4, num_kv_heads=2, head_dim=4, moe=MOE)
LOADS = """
import sys
from labkit.nn import Transformer
Transformer.from_pretrained(sys.argv[1])
assert "torch._dynamo" not in sys.modules, "loading a model imports torch's compiler"
"""


@pytest.mark.parametrize("config", [PLAIN, PLAIN.replace(tie_embeddings=True)])
def test_it_has_the_shapes_of_the_model_and_no_memory(config: ModelConfig) -> None:
    bare, real = skeleton(config), Transformer(config)
    assert {key: value.shape for key, value in bare.state_dict().items()} == {
        key: value.shape for key, value in real.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in bare.state_dict().values())


def test_models_that_are_made_afterwards_are_drawn() -> None:
    skeleton(PLAIN)
    assert Transformer(PLAIN).head.weight.std() > 0
    assert torch.nn.Linear(8, 8).weight.std() > 0


def test_loading_leaves_torch_s_compiler_alone() -> None:
    subprocess.run([sys.executable, "-c", LOADS, str(data_path("checkpoints/four-domains"))], check=True)
