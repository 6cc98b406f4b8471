"""Lab 00: right answers, as `reveal` shows them, and the inputs they are compared on. Plain numbers throughout."""

from __future__ import annotations

import math
import random

from labkit.course.attempt import Case


def expert_params(d_model: int, d_expert: int) -> int:
    return 3 * d_model * d_expert


def expert_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    return [
        Case((2, 3), label="small enough to draw"),
        Case((5, 1), label="F = 1"),
        Case((draw.randint(3, 40), draw.randint(41, 99))),
        Case((2048, 1024), label="OLMoE"),
        Case((4096, 14_336), label="Mixtral-8x7B"),
    ]


def layer_params(
    d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared_experts: int = 0
) -> tuple[int, int]:
    expert = 3 * d_model * d_expert
    router = num_experts * d_model
    always = router + num_shared_experts * expert
    return always + num_experts * expert, always + top_k * expert


def layer_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    E = draw.randint(5, 9)
    return [
        Case((2, 3, 4, 1), label="K = 1"),
        Case((3, 2, 4, 2, 1), label="one shared expert"),
        Case((4, 2, 3, 3), label="K = E: nothing is asleep"),
        Case((draw.randint(3, 9), draw.randint(10, 20), E, draw.randint(2, E - 1), 2), label="two shared experts"),
        Case((2048, 1024, 64, 8), label="OLMoE"),
        Case((7168, 2048, 256, 8, 1), label="DeepSeek-V3"),
    ]


def kv_bytes(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * 2 * num_kv_heads * head_dim * bytes_per_value


def kv_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    kv_heads = draw.randint(2, 4)
    return [
        Case((1, 6, 3, 4), label="one layer, two query heads share one pair of key and value heads"),
        Case((3, 4, 2, 8), label="three layers"),
        Case((2, 4, 1, 8, 4), label="float32, one pair for all heads"),
        Case((draw.randint(2, 5), 2 * kv_heads, kv_heads, 8, 4)),
        Case((5, 6, 3, 16, 1), label="an 8-bit cache"),
        Case((32, 32, 8, 128), label="Mixtral-8x7B"),
    ]


def adam_memory(num_params: int, mixed: bool = True) -> dict[str, int]:
    size = 2 if mixed else 4
    return {
        "weights": size * num_params,
        "gradients": size * num_params,
        "master": 4 * num_params if mixed else 0,
        "moments": 2 * 4 * num_params,
    }


def adam_cases(seed: int) -> list[Case]:
    count = random.Random(seed).randint(10, 5000)
    return [
        Case((1,), label="one parameter"),
        Case((7, False), label="float32 throughout"),
        Case((count,)),
        Case((count, False), label="float32 throughout"),
        Case((6_919_161_856,), label="OLMoE-1B-7B"),
    ]


def gpus_needed(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve is {reserve}; give a share from 0 up to, but not including, 1")
    return math.ceil(needed / (gpu_memory * (1 - reserve)))


def gpus_cases(seed: int) -> list[Case]:
    GB = 10**9
    return [
        Case((10 * GB, 16 * GB), label="one is enough"),
        Case((32 * GB, 16 * GB, 0.0), label="exactly two, nothing reserved"),
        Case((40 * GB, 16 * GB, 0.5), label="half of each card reserved"),
        Case((150 * GB, 80 * GB, 0.0), label="a little less than two"),
        Case((145 * GB, 80 * GB), label="just more than two"),
        Case((random.Random(seed).randint(300, 900) * GB + 1, 80 * GB, 0.25)),
        Case((7 * GB, 16 * GB, 1.0), label="everything reserved"),
        Case((7 * GB, 16 * GB, -0.1), label="less than nothing reserved"),
        Case((7 * GB, 16 * GB, 1.5), label="more than everything reserved"),
    ]
