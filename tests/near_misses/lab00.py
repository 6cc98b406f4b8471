"""Answers to lab 00 as learners might write them: wrong ones with the mistake to be found, and right ones."""

from fractions import Fraction
from math import ceil, floor

# ----------------------------------------------------------------------------------------------------- expert_params


def expert_up_and_down(d_model, d_expert):
    up = d_model * d_expert
    down = d_expert * d_model
    return up + down


def expert_just_one(d_model, d_expert):
    return d_expert * d_model


def expert_linear_layers(d_model, d_expert):
    def linear(i, o):
        return i * o + o

    return linear(d_model, d_expert) * 2 + linear(d_expert, d_model)


def expert_like_attention(d_model, d_expert):
    return sum(d_model**2 for _ in ("gate", "up", "down"))


def expert_sum_of_widths(d_model, d_expert):
    return 3 * d_model + 3 * d_expert


def expert_shapes(d_model, d_expert):
    shapes = [(2 * d_expert, d_model), (d_model, d_expert)]  # gate and up in one tensor, as it is stored
    return sum(rows * columns for rows, columns in shapes)


# ------------------------------------------------------------------------------------------------------ layer_params


def layer_experts_only(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    one = 3 * d_model * d_expert
    return (num_experts + num_shared_experts) * one, (top_k + num_shared_experts) * one


def layer_router_rows(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    def count(routed):
        return routed * d_model + (routed + num_shared_experts) * 3 * d_model * d_expert

    return count(num_experts), count(top_k)


def layer_experts_active(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    one = 3 * d_model * d_expert
    total = num_experts * d_model + (num_experts + num_shared_experts) * one
    return total, (top_k + num_shared_experts) * one


def layer_routed_active(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    one = 3 * d_model * d_expert
    router = d_model * num_experts
    return router + one * num_experts + one * num_shared_experts, router + one * top_k


def layer_mixtral_habit(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    return tuple(num_experts * d_model + n * 3 * d_model * d_expert for n in (num_experts, top_k))


def layer_shared_rows(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    one = 3 * d_model * d_expert
    router = (num_experts + num_shared_experts) * d_model
    return router + (num_experts + num_shared_experts) * one, router + (top_k + num_shared_experts) * one


def layer_small_first(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    one = 3 * d_model * d_expert
    base = num_experts * d_model + num_shared_experts * one
    return base + top_k * one, base + num_experts * one


def layer_proportion(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    total = num_experts * d_model + (num_experts + num_shared_experts) * 3 * d_model * d_expert
    return total, total // num_experts * top_k if total % num_experts == 0 else total * top_k // num_experts


def layer_share(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    total = num_experts * d_model + (num_experts + num_shared_experts) * 3 * d_model * d_expert
    return total, total * top_k / num_experts


def layer_subtract(d_model, d_expert, num_experts, top_k, num_shared_experts=0):
    one = d_expert * d_model * 3
    total = d_model * num_experts + one * (num_experts + num_shared_experts)
    return [total, total - (num_experts - top_k) * one]


# ---------------------------------------------------------------------------------------------------------- kv_bytes


def kv_forgot_values(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    per_layer = num_kv_heads * head_dim * bytes_per_value
    return per_layer * num_layers


def kv_multi_head(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    d_model = num_heads * head_dim
    return 2 * num_layers * d_model * bytes_per_value


def kv_single_layer(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    keys = num_kv_heads * head_dim * bytes_per_value
    return keys + keys


def kv_half_precision(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    return 4 * num_layers * num_kv_heads * head_dim


def kv_count(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    return sum(2 * num_kv_heads * head_dim for _ in range(num_layers))


def kv_per_group(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    group = num_heads // num_kv_heads
    return 2 * bytes_per_value * head_dim * group * num_layers


def kv_all_projections(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    return num_layers * (num_heads + num_kv_heads) * head_dim * bytes_per_value


def kv_double_projections(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    return 2 * num_layers * (num_heads + num_kv_heads) * head_dim * bytes_per_value


def kv_in_bits(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    return 16 * bytes_per_value * num_layers * num_kv_heads * head_dim


def kv_loop(num_layers, num_heads, num_kv_heads, head_dim, bytes_per_value=2):
    total = 0
    for _ in range(num_layers):
        for _ in ("key", "value"):
            total += num_kv_heads * head_dim * bytes_per_value
    return total


# ------------------------------------------------------------------------------------------------------- adam_memory


def adam_two_plus_two(num_params, mixed=True):
    b = 2 if mixed else 4
    return dict(weights=b * num_params, gradients=b * num_params, master=0, moments=8 * num_params)


def adam_master_always(num_params, mixed=True):
    b = 2 if mixed else 4
    return dict(weights=b * num_params, gradients=b * num_params, master=4 * num_params, moments=8 * num_params)


def adam_momentum(num_params, mixed=True):
    b = 2 if mixed else 4
    return dict(
        weights=b * num_params, gradients=b * num_params, master=4 * num_params * mixed, moments=4 * num_params
    )  # fmt: skip


def adam_bf16_moments(num_params, mixed=True):
    b = 2 if mixed else 4
    return dict(
        weights=b * num_params, gradients=b * num_params, master=4 * num_params * mixed, moments=2 * b * num_params
    )  # fmt: skip


def adam_megatron(num_params, mixed=True):
    narrow = 2 if mixed else 4
    master = 4 * num_params if mixed else 0
    return dict(weights=narrow * num_params, gradients=4 * num_params, master=master, moments=8 * num_params)


def adam_only_mixed(num_params, mixed=True):
    P = num_params
    return {"weights": P + P, "gradients": P + P, "master": 4 * P, "moments": 4 * P + 4 * P}


def adam_sixteen(num_params, mixed=True):
    return 16 * num_params


def adam_without_a_master_key(num_params, mixed=True):
    size = 2 if mixed else 4
    kept = {"weights": size * num_params, "gradients": size * num_params, "moments": 8 * num_params}
    if mixed:
        kept["master"] = 4 * num_params
    return kept


def adam_with_total(num_params, mixed=True):
    kept = adam_table(num_params, mixed)
    return kept | {"total": sum(kept.values())}


def adam_singular(num_params, mixed=True):
    kept = adam_table(num_params, mixed)
    return {"weight": kept.pop("weights"), "gradient": kept.pop("gradients"), **kept}


def adam_of_one(num_params, mixed=True):
    return {"weights": 2, "gradients": 2, "master": 4, "moments": 8} if mixed else adam_table(1, False)


def adam_in_bits(num_params, mixed=True):
    width = 16 if mixed else 32
    master = 32 * num_params if mixed else 0
    return dict(weights=width * num_params, gradients=width * num_params, master=master, moments=64 * num_params)


def adam_table(num_params, mixed=True):
    rows = {"moments": (8, 8), "master": (4, 0), "gradients": (2, 4), "weights": (2, 4)}
    return {name: each[0 if mixed else 1] * num_params for name, each in rows.items()}


# ------------------------------------------------------------------------------------------------------- gpus_needed


def gpus_floor(needed, gpu_memory, reserve=0.1):
    if reserve >= 1 or reserve < 0:
        raise ValueError(reserve)
    return floor(needed / (gpu_memory - reserve * gpu_memory))


def gpus_int(needed, gpu_memory, reserve=0.1):
    return int(needed / (gpu_memory * (1 - reserve)))


def gpus_floor_of_one_at_least(needed, gpu_memory, reserve=0.1):
    if reserve >= 1 or reserve < 0:
        raise ValueError(reserve)
    return max(1, int(needed / (gpu_memory * (1 - reserve))))


def gpus_nearest(needed, gpu_memory, reserve=0.1):
    if reserve >= 1 or reserve < 0:
        raise ValueError(reserve)
    return max(1, round(needed / gpu_memory / (1 - reserve)))


def gpus_round(needed, gpu_memory, reserve=0.1):
    return round(needed / (gpu_memory * (1 - reserve)))


def gpus_bare(needed, gpu_memory, reserve=0.1):
    if not 0 <= reserve < 1:
        raise ValueError
    return needed / (gpu_memory * (1 - reserve))


def gpus_bare_and_careless(needed, gpu_memory, reserve=0.1):
    return needed / (gpu_memory * (1 - reserve))


def gpus_brackets_forgotten(needed, gpu_memory, reserve=0.1):
    if not 0 <= reserve < 1:
        raise ValueError
    return ceil(needed / gpu_memory * (1 - reserve))


def gpus_brackets_and_careless(needed, gpu_memory, reserve=0.1):
    return ceil(needed / gpu_memory * (1 - reserve))


def gpus_plus_one(needed, gpu_memory, reserve=0.1):
    if reserve >= 1 or reserve < 0:
        raise ValueError(reserve)
    return int(needed // (gpu_memory * (1 - reserve)) + 1)


def gpus_datasheet(needed, gpu_memory, reserve=0.1):
    if reserve >= 1:
        raise ValueError("nothing left")
    return -(-needed // gpu_memory)


def gpus_ten_percent_more(needed, gpu_memory, reserve=0.1):
    if reserve >= 1:
        raise ValueError("nothing left")
    return ceil((needed + needed * reserve) / gpu_memory)


def gpus_of_the_reserve(needed, gpu_memory, reserve=0.1):
    return ceil(needed / (gpu_memory * reserve)) if reserve else ceil(needed / gpu_memory)


def gpus_never_refuses(needed, gpu_memory, reserve=0.1):
    usable = gpu_memory * (1 - reserve)
    count = 1
    while count * usable < needed and count < 1000:
        count += 1
    return count


def gpus_count_up(needed, gpu_memory, reserve=0.1):
    usable = Fraction(gpu_memory) * (1 - Fraction(str(reserve)))
    if usable <= 0 or usable > gpu_memory:
        raise ValueError("nothing of the card is left, or more than all of it")
    count = 1
    while count * usable < needed:
        count += 1
    return count


NEAR_MISSES = {
    "00.expert_params": [
        (expert_up_and_down, "two_matrices"),
        (expert_just_one, "one_matrix"),
        (expert_linear_layers, "with_biases"),
        (expert_like_attention, "square"),
        (expert_sum_of_widths, "added_widths"),
    ],
    "00.layer_params": [
        (layer_experts_only, "no_router"),
        (layer_router_rows, "partial_router"),
        (layer_experts_active, "router_asleep"),
        (layer_routed_active, "shared_asleep"),
        (layer_mixtral_habit, "no_shared"),
        (layer_shared_rows, "shared_in_router"),
        (layer_small_first, "order"),
        (layer_proportion, "scaled_total"),
    ],
    "00.kv_bytes": [
        (kv_forgot_values, "one_of_two"),
        (kv_multi_head, "query_heads"),
        (kv_single_layer, "one_layer"),
        (kv_half_precision, "always_16_bit"),
        (kv_count, "values_not_bytes"),
        (kv_per_group, "group_size"),
        (kv_all_projections, "heads_added"),
        (kv_in_bits, "bits"),
    ],
    "00.adam_memory": [
        (adam_two_plus_two, "no_master"),
        (adam_master_always, "second_copy"),
        (adam_momentum, "one_moment"),
        (adam_bf16_moments, "narrow_moments"),
        (adam_megatron, "wide_gradients"),
        (adam_only_mixed, "flag_unused"),
        (adam_sixteen, "only_the_sum"),
        (adam_without_a_master_key, "parts_left_out"),
        (adam_with_total, "other_parts"),
        (adam_of_one, "per_parameter"),
        (adam_in_bits, "bits"),
    ],
    "00.gpus_needed": [
        (gpus_floor, "rounded_down"),
        (gpus_nearest, "rounded"),
        (gpus_bare, "not_rounded"),
        (gpus_brackets_forgotten, "bracket"),
        (gpus_of_the_reserve, "reserve_is_all"),
        (gpus_plus_one, "one_too_many"),
        (gpus_datasheet, "nothing_reserved"),
        (gpus_ten_percent_more, "reserve_on_needed"),
        (gpus_never_refuses, "accepts_bad_input"),
    ],
}

RIGHT_ANSWERS = {
    "00.expert_params": [expert_shapes],
    "00.layer_params": [layer_subtract],
    "00.kv_bytes": [kv_loop],
    "00.adam_memory": [adam_table],
    "00.gpus_needed": [gpus_count_up],
}

SAME_MISTAKE = {  # other ways to make a mistake that NEAR_MISSES has already, most of them refusing nothing
    "00.gpus_needed": [
        (gpus_int, "rounded_down"),
        (gpus_floor_of_one_at_least, "rounded_down"),
        (gpus_round, "rounded"),
        (gpus_bare_and_careless, "not_rounded"),
        (gpus_brackets_and_careless, "bracket"),
    ],
    "00.kv_bytes": [(kv_double_projections, "heads_added")],
    "00.adam_memory": [(adam_singular, "other_parts")],
    "00.layer_params": [(layer_share, "scaled_total")],
}
