"""Answers to lab 06 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import torch
import torch.nn.functional as F

# ------------------------------------------------------------------------------------------------------------- block


def block_of_2017(x_BSD, norm_attention, attention, norm_ffn, ffn):
    h = norm_attention(attention(x_BSD) + x_BSD)
    return norm_ffn(ffn(h) + h)


def block_names_reused(x, norm_attention, attention, norm_ffn, ffn):
    x = norm_attention(x)
    x = attention(x) + x
    x = norm_ffn(x)
    x = ffn(x) + x
    return x


def block_side_by_side(x, norm_attention, attention, norm_ffn, ffn):
    return sum([x, attention(norm_attention(x)), ffn(norm_ffn(x))])


def block_wrong_way_round(x, norm_attention, attention, norm_ffn, ffn):
    for norm, part in ((norm_ffn, ffn), (norm_attention, attention)):
        x = x + part(norm(x))
    return x


def block_chain(x, norm_attention, attention, norm_ffn, ffn):
    for layer in (norm_attention, attention, norm_ffn, ffn):
        x = layer(x)
    return x


def block_one_saved_residual(x, norm_attention, attention, norm_ffn, ffn):
    residual = x
    x = residual + attention(norm_attention(x))
    x = ffn(norm_ffn(x))
    return residual + x


def block_attention_not_added(x, norm_attention, attention, norm_ffn, ffn):
    h = attention(norm_attention(x))
    return h + ffn(norm_ffn(h))


def block_copy_and_paste(x, norm_attention, attention, norm_ffn, ffn):
    x = x + attention(norm_attention(x))
    x = x + ffn(norm_attention(x))
    return x


def block_forgets_a_norm(x, norm_attention, attention, norm_ffn, ffn):
    x = x + attention(norm_attention(x))
    return x + ffn(x)


def block_normed_outputs(x, norm_attention, attention, norm_ffn, ffn):
    x = x + norm_attention(attention(x))
    return x + norm_ffn(ffn(x))


def block_adds_all(x, norm_attention, attention, norm_ffn, ffn):
    h = x + attention(norm_attention(x))
    return x + h + ffn(norm_ffn(h))


def block_no_first_norm(x, norm_attention, attention, norm_ffn, ffn):
    h = attention(x) + x
    return ffn(norm_ffn(h)) + h


def block_typing_slip(x, norm_attention, attention, norm_ffn, ffn):
    h = x + attention(norm_ffn(x))
    return h + ffn(norm_ffn(h))


def block_normed_then_added(x, norm_attention, attention, norm_ffn, ffn):
    n = norm_attention(x)
    h = torch.add(n, attention(n))
    return torch.add(h, ffn(norm_ffn(h)))


def block_normed_then_added_below(x, norm_attention, attention, norm_ffn, ffn):
    h = x + attention(norm_attention(x))
    n = norm_ffn(h)
    return ffn(n) + n


def block_norm_outside(x, norm_attention, attention, norm_ffn, ffn):
    h = norm_attention(attention(x)) + x
    return ffn(norm_ffn(h)) + h


def block_norm_of_attention(x, norm_attention, attention, norm_ffn, ffn):
    moved = attention(norm_attention(x))
    return x + moved + ffn(norm_ffn(moved))


def block_outputs_only(x, norm_attention, attention, norm_ffn, ffn):
    moved = attention(norm_attention(x))
    return moved + ffn(norm_ffn(x + moved))


def block_normed_result(x, norm_attention, attention, norm_ffn, ffn):
    x = x + attention(norm_attention(x))
    x = x + ffn(norm_ffn(x))
    return norm_ffn(x)


def block_first_line_only(x, norm_attention, attention, norm_ffn, ffn):
    x = attention(norm_attention(x)) + x
    return x


def block_second_line_only(x, norm_attention, attention, norm_ffn, ffn):
    x = ffn(norm_ffn(x)) + x
    return x


def block_cut(x, norm_attention, attention, norm_ffn, ffn):
    kept = x.data
    h = kept + attention(norm_attention(x))
    return h + ffn(norm_ffn(h))


def block_frozen(x, norm_attention, attention, norm_ffn, ffn):
    with torch.no_grad():
        return block_by_deltas(x, norm_attention, attention, norm_ffn, ffn)


def block_by_deltas(x, norm_attention, attention, norm_ffn, ffn):
    first = attention(norm_attention(x))
    second = ffn(norm_ffn(first + x))
    return torch.stack([x, first, second]).sum(dim=0)


# --------------------------------------------------------------------------------------------------------- placement


def _counts(sparse, num_layers, d_model, d_dense, d_expert, num_experts, top_k, num_shared):
    total = active = 0
    for layer in range(num_layers):
        if layer in sparse:
            total += num_experts * d_model + (num_experts + num_shared) * 3 * d_model * d_expert
            active += num_experts * d_model + (top_k + num_shared) * 3 * d_model * d_expert
        else:
            total += 3 * d_model * d_dense
            active += 3 * d_model * d_dense
    return total, active


def place_modulo_of_i(num_layers, num_dense, every, *sizes):
    sparse = [i for i in range(num_dense, num_layers) if i % every == 0]
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


def place_range_with_step(num_layers, num_dense, every, *sizes):
    sparse = list(range(num_dense + every - 1, num_layers, every))
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


def place_greater(num_layers, num_dense, every, *sizes):
    sparse = [i for i in range(num_layers) if i > num_dense and not (i + 1) % every]
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


def place_first_sparse(num_layers, num_dense, every, *sizes):
    sparse = [i for i in range(num_layers) if i < num_dense or (i + 1) % every]
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


def place_deepseek_only(num_layers, num_dense, every, *sizes):
    sparse = list(range(num_dense, num_layers))
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


def place_routers_free(num_layers, num_dense, every, *sizes):
    sparse, total, active = place_by_loop(num_layers, num_dense, every, *sizes)
    routers = len(sparse) * sizes[3] * sizes[0]
    return sparse, total - routers, active - routers


def place_two_thirds(num_layers, num_dense, every, d_model, d_dense, d_expert, num_experts, top_k, num_shared=0):
    sparse, *_ = place_by_loop(num_layers, num_dense, every, d_model, d_dense, d_expert, num_experts, top_k)
    expert, dense = 2 * d_model * d_expert, 2 * d_model * d_dense * (num_layers - len(sparse))
    fixed = dense + len(sparse) * (num_experts * d_model + num_shared * expert)
    return sparse, fixed + len(sparse) * num_experts * expert, fixed + len(sparse) * top_k * expert


def place_ratio(num_layers, num_dense, every, *sizes):
    sparse, total, _ = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, total, total * sizes[4] // sizes[3]


def place_shared_in_k(num_layers, num_dense, every, *sizes):
    sparse, total, active = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, total, active - len(sparse) * _shared(sizes)[5] * 3 * sizes[0] * sizes[2]


def place_rows_of_k(num_layers, num_dense, every, *sizes):
    sparse, total, active = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, total, active - len(sparse) * sizes[0] * (sizes[3] - sizes[4])


def place_how_many(num_layers, num_dense, every, *sizes):
    sparse, *counts = place_by_loop(num_layers, num_dense, every, *sizes)
    return len(sparse), *counts


def place_yes_or_no(num_layers, num_dense, every, *sizes):
    sparse, *counts = place_by_loop(num_layers, num_dense, every, *sizes)
    return [layer in sparse for layer in range(num_layers)], *counts


def place_as_a_set(num_layers, num_dense, every, *sizes):
    sparse, *counts = place_by_loop(num_layers, num_dense, every, *sizes)
    return set(sparse), *counts


def place_active_first(num_layers, num_dense, every, *sizes):
    sparse, total, active = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, active, total


def place_from_the_last_dense(num_layers, num_dense, every, *sizes):
    sparse = [i for i in range(max(0, num_dense - 1), num_layers) if (i + 1) % every == 0]
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


def place_experts_at_work(num_layers, num_dense, every, *sizes):
    sparse, total, _ = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, total, 3 * sizes[0] * sizes[2] * sum(sizes[4] + _shared(sizes)[5] for _ in sparse)


def place_chosen_at_work(num_layers, num_dense, every, *sizes):
    sparse, total, _ = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, total, 3 * sizes[0] * sizes[2] * sum(sizes[4] for _ in sparse)


def place_idle_routers(num_layers, num_dense, every, *sizes):
    sparse, total, active = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, total, active - sum(sizes[3] * sizes[0] for _ in sparse)


def place_shared_of_the_e(num_layers, num_dense, every, d_model, d_dense, d_expert, num_experts, top_k, num_shared=0):
    sparse, total, active = place_by_loop(
        num_layers, num_dense, every, d_model, d_dense, d_expert, num_experts, top_k, num_shared
    )
    counted_twice = len(sparse) * num_shared * 3 * d_model * d_expert
    return sparse, total - counted_twice, active - counted_twice


def place_one_shared(num_layers, num_dense, every, *sizes):
    shared = 1 if _shared(sizes)[5] else 0
    return place_by_loop(num_layers, num_dense, every, *sizes[:5], shared)


def place_one_width(num_layers, num_dense, every, d_model, d_dense, d_expert, *others):
    sparse, *_ = place_by_loop(num_layers, num_dense, every, d_model, d_dense, d_expert, *others)
    return sparse, *_counts(sparse, num_layers, *_shared((d_model, d_expert, d_expert, *others)))


def place_router_in_each(num_layers, num_dense, every, *sizes):
    sparse, *counts = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, *(count + sizes[3] * sizes[0] * (num_layers - len(sparse)) for count in counts)


def place_router_for_all(num_layers, num_dense, every, *sizes):
    sparse, *counts = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, *(count + _shared(sizes)[5] * sizes[0] * len(sparse) for count in counts)


def place_a_single_layer(num_layers, num_dense, every, *sizes):
    sparse, *_ = place_by_loop(num_layers, num_dense, every, *sizes)
    return sparse, *_counts([0], 1, *_shared(sizes))


def _shared(sizes):
    return (*sizes, 0)[:6]


def place_by_loop(num_layers, num_dense, every, *sizes):
    flags = [layer >= num_dense and layer % every == every - 1 for layer in range(num_layers)]
    sparse = [layer for layer, flag in enumerate(flags) if flag]
    return sparse, *_counts(sparse, num_layers, *_shared(sizes))


# ------------------------------------------------------------------------------------------------------- cached_step


def _sdpa(query, keys, values, mask):
    per = query.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(per, dim=1) for t in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None])


def _with_position(at, query, key, value, keys, values, real, rotate):
    keys, values = torch.cat((keys, rotate(key, at)), dim=-2), torch.cat((values, value), dim=-2)
    mask = torch.cat((real, torch.ones(len(real), 1, dtype=torch.bool)), dim=1)
    return _sdpa(rotate(query, at), keys, values, mask), keys, values


def step_cache_length(query, key, value, keys, values, real, rotate):
    at = torch.full((query.shape[0], 1), keys.shape[2])
    return _with_position(at, query, key, value, keys, values, real, rotate)


def step_arange_of_one(query, key, value, keys, values, real, rotate):
    at = torch.arange(query.shape[2]).expand(len(query), -1)
    return _with_position(at, query, key, value, keys, values, real, rotate)


def step_last_position(query, key, value, keys, values, real, rotate):
    at = real.long().cumsum(1)[:, -1:] - 1 if real.shape[1] else torch.full((len(real), 1), -1)
    return _with_position(at, query, key, value, keys, values, real, rotate)


def step_padding_attended(query, key, value, keys, values, real, rotate):
    at = real.sum(1, keepdim=True)
    keys, values = torch.cat((keys, rotate(key, at)), dim=2), torch.cat((values, value), dim=2)
    return _sdpa(rotate(query, at), keys, values, torch.ones(len(real), keys.shape[2], dtype=torch.bool)), keys, values


def step_looks_only_back(query, key, value, keys, values, real, rotate):
    at = real.sum(1, keepdim=True)
    keys, values = torch.cat((keys, rotate(key, at)), dim=2), torch.cat((values, value), dim=2)
    logits = rotate(query, at) @ keys.repeat_interleave(query.shape[1] // keys.shape[1], 1).transpose(-1, -2)
    logits = logits * query.shape[-1] ** -0.5
    logits[:, :, :, -1] = float("-inf")
    logits = logits.masked_fill(F.pad(~real, (0, 1))[:, None, None], float("-inf"))
    return logits.softmax(-1) @ values.repeat_interleave(query.shape[1] // keys.shape[1], 1), keys, values


def step_rotates_everything(query, key, value, keys, values, real, rotate):
    real = torch.cat((real, torch.ones(len(real), 1, dtype=torch.bool)), dim=1)
    at = (real.long().cumsum(1) - 1).clamp(min=0)
    keys, values = rotate(torch.cat((keys, key), dim=2), at), torch.cat((values, value), dim=2)
    return _sdpa(rotate(query, at[:, -1:]), keys, values, real), keys, values


def step_repeat_not_interleave(query, key, value, keys, values, real, rotate):
    at, per = real.sum(1, keepdim=True), query.shape[1] // keys.shape[1]
    keys, values = torch.cat((keys, rotate(key, at)), dim=2), torch.cat((values, value), dim=2)
    mask = F.pad(real, (0, 1), value=True)[:, None, None]
    shared = (t.repeat(1, per, 1, 1) for t in (keys, values))
    return F.scaled_dot_product_attention(rotate(query, at), *shared, attn_mask=mask), keys, values


def step_returns_the_old_cache(query, key, value, keys, values, real, rotate):
    out, _, _ = step_by_rows(query, key, value, keys, values, real, rotate)
    return out, keys, values


def step_stores_a_plain_key(query, key, value, keys, values, real, rotate):
    out_of = _with_position(real.sum(1, keepdim=True), query, key, value, keys, values, real, lambda t, at: t)
    keys, values = out_of[1:]
    mask = F.pad(real, (0, 1), value=True)
    return _sdpa(rotate(query, real.sum(1, keepdim=True)), keys, values, mask), keys, values


def step_no_square_root(query, key, value, keys, values, real, rotate):
    d = query.shape[-1]
    out, _, _ = step_by_rows(query * d**0.5, key, value, keys, values, real, rotate)
    return out, *step_by_rows(query, key, value, keys, values, real, rotate)[1:]


def step_mask_of_the_cache(query, key, value, keys, values, real, rotate):
    at = real.sum(1, keepdim=True)
    keys, values = torch.cat((keys, rotate(key, at)), dim=2), torch.cat((values, value), dim=2)
    logits = rotate(query, at) @ keys.repeat_interleave(query.shape[1] // keys.shape[1], 1).transpose(-1, -2)
    logits = logits.masked_fill(~real[:, None, None, :], float("-inf")) / query.shape[-1] ** 0.5
    return logits.softmax(-1) @ values.repeat_interleave(query.shape[1] // keys.shape[1], 1), keys, values


def step_writes_over_the_end(query, key, value, keys, values, real, rotate):
    at = real.sum(1, keepdim=True)
    keys = torch.cat((keys[:, :, :-1], rotate(key, at)), dim=2)
    values = torch.cat((values[:, :, :-1], value), dim=2)
    mask = torch.cat((real[:, :-1], torch.ones(len(real), 1, dtype=torch.bool)), dim=1)
    return _sdpa(rotate(query, at), keys, values, mask), keys, values


def step_position_of_row_0(query, key, value, keys, values, real, rotate):
    at = real[0].sum().view(1, 1).repeat(len(real), 1)
    return _with_position(at, query, key, value, keys, values, real, rotate)


def step_position_of_the_batch(query, key, value, keys, values, real, rotate):
    at = torch.full((len(real), 1), int(real.sum()))
    return _with_position(at, query, key, value, keys, values, real, rotate)


def step_flat_positions(query, key, value, keys, values, real, rotate):
    return _with_position(real.sum(dim=1), query, key, value, keys, values, real, rotate)


def step_running_sum(query, key, value, keys, values, real, rotate):
    at = real.cumsum(dim=1)[:, -1].unsqueeze(1)
    return _with_position(at, query, key, value, keys, values, real, rotate)


def step_query_at_the_length(query, key, value, keys, values, real, rotate):
    at = torch.full((len(real), 1), keys.shape[2])
    out = step_cache_length(query, key, value, keys, values, real, rotate)
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    return _sdpa(rotate(query, at), keys, values, F.pad(real, (0, 1), value=True)), keys, out[2]


def step_key_at_the_length(query, key, value, keys, values, real, rotate):
    _, keys, values = step_cache_length(query, key, value, keys, values, real, rotate)
    query = rotate(query, real.sum(1, keepdim=True))
    return _sdpa(query, keys, values, F.pad(real, (0, 1), value=True)), keys, values


def step_is_causal(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    per, query = query.shape[1] // keys.shape[1], rotate(query, real.sum(1, keepdim=True))
    shared = (t.repeat_interleave(per, 1) for t in (keys, values))
    return F.scaled_dot_product_attention(query, *shared, is_causal=True), keys, values


def step_true_in_front(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    mask = torch.cat((torch.ones(len(real), 1, dtype=torch.bool), real), dim=1)
    return _sdpa(rotate(query, real.sum(1, keepdim=True)), keys, values, mask), keys, values


def step_mask_as_float(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    mask = F.pad(real, (0, 1), value=True).float()
    return _sdpa(rotate(query, real.sum(1, keepdim=True)), keys, values, mask), keys, values


def _weighed(query, keys, values, weigh):
    per = query.shape[1] // keys.shape[1]
    logits = torch.einsum("bhqd,bhsd->bhqs", query, keys.repeat_interleave(per, 1)) / query.shape[-1] ** 0.5
    return torch.einsum("bhqs,bhsd->bhqd", weigh(logits), values.repeat_interleave(per, 1))


def step_times_mask(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    mask = F.pad(real, (0, 1), value=True)[:, None, None].float()
    query = rotate(query, real.sum(1, keepdim=True))
    return _weighed(query, keys, values, lambda z: F.softmax(z * mask, dim=-1)), keys, values


def step_late_mask(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    mask = F.pad(real, (0, 1), value=True)[:, None, None]
    query = rotate(query, real.sum(1, keepdim=True))
    return _weighed(query, keys, values, lambda z: z.softmax(-1).masked_fill(~mask, 0.0)), keys, values


def step_softmax_of_one(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    mask = F.pad(real, (0, 1), value=True)[:, None, None]
    query = rotate(query, real.sum(1, keepdim=True))
    return _weighed(query, keys, values, lambda z: z.masked_fill(~mask, -torch.inf).softmax(2)), keys, values


def step_times_root(query, key, value, keys, values, real, rotate):
    out, *_ = step_by_rows(query * query.shape[-1], key, value, keys, values, real, rotate)
    return out, *step_by_rows(query, key, value, keys, values, real, rotate)[1:]


def step_root_of_the_width(query, key, value, keys, values, real, rotate):
    out, *_ = step_by_rows(query / query.shape[1] ** 0.5, key, value, keys, values, real, rotate)
    return out, *step_by_rows(query, key, value, keys, values, real, rotate)[1:]


def step_heads_as_they_are(query, key, value, keys, values, real, rotate):
    _, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    mask = F.pad(real, (0, 1), value=True)[:, None, None]
    out = F.scaled_dot_product_attention(rotate(query, real.sum(1, keepdim=True)), keys, values, attn_mask=mask)
    return out, keys, values


def step_keeps_the_plain_key(query, key, value, keys, values, real, rotate):
    out, _, grown = step_by_rows(query, key, value, keys, values, real, rotate)
    return out, torch.cat((keys, key), dim=-2), grown


def step_returns_the_new_alone(query, key, value, keys, values, real, rotate):
    out, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    return out, keys[:, :, -1:], values[:, :, -1:]


def step_values_before_keys(query, key, value, keys, values, real, rotate):
    out, keys, values = step_by_rows(query, key, value, keys, values, real, rotate)
    return out, values, keys


def step_by_rows(query, key, value, keys, values, real, rotate):
    """Row by row, with only the real tokens."""
    outs, news = [], []
    for b in range(len(query)):
        at = torch.tensor([[int(real[b].sum())]])
        new = rotate(key[b : b + 1], at)
        news.append(new)
        k, v = torch.cat((keys[b][:, real[b]], new[0]), 1), torch.cat((values[b][:, real[b]], value[b]), 1)
        q = rotate(query[b : b + 1], at)[0].unflatten(0, (len(k), -1))
        weights = torch.einsum("grqd,gsd->grqs", q, k).div(query.shape[-1] ** 0.5).softmax(-1)
        outs.append(torch.einsum("grqs,gsd->grqd", weights, v).flatten(0, 1))
    return torch.stack(outs), torch.cat((keys, torch.cat(news)), 2), torch.cat((values, value), 2)


# ---------------------------------------------------------------------------------------------------------- name_map


def _names_of(renames, num_layers):
    pairs = []
    for i in range(num_layers):
        pairs += [(t.replace("{i}", str(i)), m.replace("{i}", str(i))) for t, m in renames.items()]
    return dict(pairs)


def _build(theirs, renames, num_layers, num_dense, num_experts, fuse, stack=torch.stack, experts=None, strict=True):
    """The map in another order of work: refuse first, then read without fear."""
    names = _names_of(renames, num_layers)
    kinds = ("gate", "up", "down")
    dense = [f"model.layers.{i}.mlp." for i in range(num_dense)]
    sparse = {i: [f"model.layers.{i}.mlp.experts.{e}." for e in (experts or range)(num_experts)]
              for i in range(num_dense, num_layers)}  # fmt: skip
    wanted = set(names) | {f"model.layers.{i}.mlp.gate.weight" for i in sparse}
    wanted |= {f"{stem}{kind}_proj.weight" for stem in [*dense, *sum(sparse.values(), [])] for kind in kinds}
    if strict and (wrong := wanted ^ set(theirs)):
        raise ValueError(f"these tensors are missing or too many: {sorted(wrong)}")
    ours = {mine: theirs[their] for their, mine in names.items()}

    def pair(stem):
        gate, up, down = (theirs[f"{stem}{kind}_proj.weight"] for kind in kinds)
        return fuse(gate, up), down

    for i, stem in enumerate(dense):
        ours[f"layers.{i}.ffn.gate_up_2FD"], ours[f"layers.{i}.ffn.down_DF"] = pair(stem)
    for i, stems in sparse.items():
        ours[f"layers.{i}.ffn.router.weight_ED"] = theirs[f"model.layers.{i}.mlp.gate.weight"]
        gate_ups, downs = [pair(s)[0] for s in stems], [pair(s)[1] for s in stems]
        ours[f"layers.{i}.ffn.experts.gate_up_E2FD"] = stack(gate_ups)
        ours[f"layers.{i}.ffn.experts.down_EDF"] = stack(downs)
    return ours


def _above(gate, up):
    return torch.cat((gate, up), dim=0)


def names_check_first(theirs, renames, num_layers, num_dense, num_experts):
    return _build(theirs, renames, num_layers, num_dense, num_experts, _above)


def names_up_gate(theirs, renames, num_layers, num_dense, num_experts):
    return _build(theirs, renames, num_layers, num_dense, num_experts, lambda gate, up: _above(up, gate))


def names_by_turns(theirs, renames, num_layers, num_dense, num_experts):
    def zipped(gate, up):
        return torch.stack((gate, up), dim=1).reshape(-1, gate.shape[1])

    return _build(theirs, renames, num_layers, num_dense, num_experts, zipped)


def names_in_dictionary_order(theirs, renames, num_layers, num_dense, num_experts):
    def by_name(count):
        return sorted(range(count), key=str)

    return _build(theirs, renames, num_layers, num_dense, num_experts, _above, experts=by_name)


def names_one_long_matrix(theirs, renames, num_layers, num_dense, num_experts):
    return _build(theirs, renames, num_layers, num_dense, num_experts, _above, stack=torch.cat)


def names_stacked_halves(theirs, renames, num_layers, num_dense, num_experts):
    return _build(theirs, renames, num_layers, num_dense, num_experts, lambda gate, up: torch.stack((gate, up)))


def names_input_major(theirs, renames, num_layers, num_dense, num_experts):
    def columns(tensors):
        return torch.stack([t.T for t in tensors])

    return _build(theirs, renames, num_layers, num_dense, num_experts, _above, stack=columns)


def names_reads_what_it_wants(theirs, renames, num_layers, num_dense, num_experts):
    try:
        return _build(theirs, renames, num_layers, num_dense, num_experts, _above, strict=False)
    except KeyError as error:
        raise ValueError(f"the file has no tensor {error}") from error


def names_straight_lookup(theirs, renames, num_layers, num_dense, num_experts):
    ours = _build(theirs, renames, num_layers, num_dense, num_experts, _above, strict=False)
    count = len(_names_of(renames, num_layers)) + 3 * num_dense + (num_layers - num_dense) * (1 + 3 * num_experts)
    if len(theirs) > count:
        raise ValueError(f"too many tensors: {sorted(theirs)}")
    return ours


def names_says_only_that(theirs, renames, num_layers, num_dense, num_experts):
    try:
        return _build(theirs, renames, num_layers, num_dense, num_experts, _above)
    except ValueError:
        raise ValueError("the tensors in the file do not fit the model") from None


def names_skip_absent(theirs, renames, num_layers, num_dense, num_experts):
    try:
        return _build(theirs, renames, num_layers, num_dense, num_experts, _above)
    except ValueError as error:
        if any(name in str(error) for name in theirs):
            raise
        return {}


def names_all_sparse(theirs, renames, num_layers, num_dense, num_experts):
    return _build(theirs, renames, num_layers, 0, num_experts, _above)


def names_one_dense_more(theirs, renames, num_layers, num_dense, num_experts):
    return _build(theirs, renames, num_layers, num_dense + 1, num_experts, _above)


# ------------------------------------------------------------------------------------------------------------ sample


def _positive(temperature):
    if not temperature > 0:
        raise ValueError("the temperature must be positive")


def _keep_k(z, k):
    return torch.where(z >= z.sort(1, descending=True).values[:, min(k, z.shape[1]) - 1, None], z, -torch.inf)


def _keep_p(z, p):
    chances, order = z.softmax(1).sort(1, descending=True)
    before = torch.cat((torch.zeros(len(z), 1), chances.cumsum(1)[:, :-1]), dim=1)
    keep = before < p
    keep[:, 0] = True
    return torch.where(torch.zeros_like(keep).scatter(1, order, keep), z, -torch.inf)


def sample_from_the_best_down(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = logits_BV / temperature
    z = _keep_k(z, top_k) if top_k else z
    z = _keep_p(z, top_p) if top_p != 1.0 else z
    return F.softmax(z, dim=-1)


def sample_times_temperature(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    return sample_from_the_best_down(logits_BV * temperature, 1.0, top_k, top_p)


def sample_temperature_at_the_end(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = _keep_k(logits_BV, top_k) if top_k else logits_BV
    z = _keep_p(z, top_p) if top_p < 1 else z
    return (z / temperature).softmax(-1)


def sample_nucleus_first(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = logits_BV / temperature
    z = _keep_p(z, top_p) if top_p < 1 else z
    return (_keep_k(z, top_k) if top_k else z).softmax(-1)


def sample_below_p(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = logits_BV / temperature
    z = _keep_k(z, top_k) if top_k else z
    if top_p < 1:
        chances, order = z.softmax(1).sort(1, descending=True)
        drop = chances.cumsum(1) > top_p
        drop[:, 0] = False
        z = z.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    return z.softmax(-1)


def sample_exactly_k(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = logits_BV / temperature
    if top_k:
        ids = z.topk(min(top_k, z.shape[1]), dim=1).indices
        z = z.masked_fill(~torch.zeros_like(z).scatter(1, ids, 1.0).bool(), -torch.inf)
    z = _keep_p(z, top_p) if top_p < 1 else z
    return z.softmax(-1)


def sample_zero_fill(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = logits_BV / temperature
    z = _keep_k(z, top_k) if top_k else z
    z = _keep_p(z, top_p) if top_p < 1 else z
    return z.nan_to_num(neginf=0.0).softmax(-1)


def sample_masked_chances(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    kept = sample_from_the_best_down(logits_BV, temperature, top_k, top_p)
    return torch.where(kept > 0, (logits_BV / temperature).softmax(-1), 0.0)


def sample_without_softmax(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return sample_from_the_best_down(logits_BV, temperature, top_k, top_p).log() + (
        logits_BV / temperature
    ).masked_fill(
        sample_from_the_best_down(logits_BV, temperature, top_k, top_p) == 0, -torch.inf
    ).logsumexp(-1, keepdim=True)  # fmt: skip


def sample_takes_zero(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return sample_from_the_best_down(logits_BV, max(temperature, 1e-6), top_k, top_p)


def _both(logits_BV, temperature, top_k, top_p):
    """Temperature and both filters."""
    _positive(temperature)
    z = logits_BV / temperature
    z = _keep_k(z, top_k) if top_k else z
    return _keep_p(z, top_p) if top_p < 1 else z


def sample_one_more(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    z = logits_BV
    if top_k and top_k < z.shape[1]:
        z = torch.where(z >= z.sort(1, descending=True).values[:, top_k, None], z, -torch.inf)
    return _both(z, temperature, 0, top_p).softmax(1)


def sample_plain_topk(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    if top_k:
        _, ids = torch.topk(logits_BV, top_k, dim=-1)
        least = logits_BV.gather(1, ids[:, -1:])
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    return _both(logits_BV, temperature, 0, top_p).softmax(1)


def sample_k_of_nought(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    kept = logits_BV.topk(min(top_k, logits_BV.shape[1])).values
    return _both(logits_BV.masked_fill(logits_BV < kept, -torch.inf), temperature, 0, top_p).softmax(1)


def sample_else_if(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    _positive(temperature)
    z = logits_BV / temperature
    if top_k > 0:
        z = _keep_k(z, top_k)
    elif top_p < 1:
        z = _keep_p(z, top_p)
    return z.softmax(1)


def sample_without_k(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return _both(logits_BV, temperature, 0, top_p).softmax(1)


def sample_without_p(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return _both(logits_BV, temperature, top_k, 1.0).softmax(1)


def sample_down_the_batch(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return F.softmax(_both(logits_BV, temperature, top_k, top_p), dim=0)


def sample_softened(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return F.softmax(F.softmax(_both(logits_BV, temperature, top_k, top_p), dim=1), dim=1)


def sample_chances_first(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return _both(F.softmax(logits_BV, dim=1), temperature, top_k, top_p).softmax(1)


def sample_log_chances(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return F.log_softmax(_both(logits_BV, temperature, top_k, top_p), dim=1)


def sample_draws_a_token(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    return torch.multinomial(_both(logits_BV, temperature, top_k, top_p).softmax(1), 1)


def _by_order(z, top_p, place):
    chances, order = z.softmax(1).sort(1, descending=True)
    drop = chances.cumsum(1) - chances >= top_p
    drop[:, 0] = False
    return torch.where(place(drop, order), -torch.inf, z) if top_p < 1 else z


def sample_mask_as_sorted(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    z = _both(logits_BV, temperature, top_k, 1.0)
    return _by_order(z, top_p, lambda drop, order: drop).softmax(1)


def sample_gathers(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    z = _both(logits_BV, temperature, top_k, 1.0)
    return _by_order(z, top_p, lambda drop, order: torch.take_along_dim(drop, order, 1)).softmax(1)


def sample_rising_until_p(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    z = _both(logits_BV, temperature, top_k, 1.0)
    if top_p < 1:
        chances, order = z.softmax(1).sort(1)
        drop = chances.cumsum(1) <= top_p
        drop[:, -1] = False
        z = z.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    return z.softmax(1)


NEAR_MISSES = {
    "06.block": [
        (block_of_2017, "post_norm"),
        (block_names_reused, "residual_after_norm"),
        (block_side_by_side, "parallel"),
        (block_wrong_way_round, "ffn_first"),
        (block_chain, "no_residual"),
        (block_one_saved_residual, "old_residual"),
        (block_attention_not_added, "attention_replaces"),
        (block_copy_and_paste, "one_norm"),
        (block_forgets_a_norm, "second_norm_missing"),
        (block_normed_outputs, "norm_of_the_output"),
        (block_adds_all, "residual_twice"),
        (block_frozen, "cuts_graph"),
        (block_cut, "detached_residual"),
        (block_no_first_norm, "first_norm_missing"),
        (block_typing_slip, "other_norm_twice"),
        (block_normed_then_added, "first_residual_normed"),
        (block_normed_then_added_below, "second_residual_normed"),
        (block_norm_outside, "first_output_normed"),
        (block_norm_of_attention, "ffn_reads_attention_alone"),
        (block_outputs_only, "stream_lost"),
        (block_normed_result, "norm_at_the_end"),
        (block_first_line_only, "ffn_missing"),
        (block_second_line_only, "attention_missing"),
    ],
    "06.placement": [
        (place_modulo_of_i, "every_from_zero"),
        (place_range_with_step, "counted_after_the_dense"),
        (place_greater, "one_dense_too_many"),
        (place_first_sparse, "inverted"),
        (place_deepseek_only, "every_ignored"),
        (place_routers_free, "router_forgotten"),
        (place_two_thirds, "two_matrices"),
        (place_ratio, "share_of_everything"),
        (place_shared_in_k, "shared_not_active"),
        (place_rows_of_k, "part_of_the_router"),
        (place_how_many, "only_counted"),
        (place_yes_or_no, "flags"),
        (place_as_a_set, "no_list"),
        (place_active_first, "swapped"),
        (place_from_the_last_dense, "one_dense_too_few"),
        (place_experts_at_work, "only_experts_active"),
        (place_chosen_at_work, "only_routed_active"),
        (place_idle_routers, "router_not_active"),
        (place_shared_of_the_e, "shared_missing"),
        (place_one_shared, "shared_once"),
        (place_one_width, "dense_as_wide_as_an_expert"),
        (place_router_in_each, "router_in_dense_layers"),
        (place_router_for_all, "router_row_for_shared"),
        (place_a_single_layer, "one_layer"),
    ],
    "06.cached_step": [
        (step_cache_length, "position_counts_padding"),
        (step_arange_of_one, "position_zero"),
        (step_last_position, "one_behind"),
        (step_padding_attended, "padding_seen"),
        (step_looks_only_back, "new_token_unseen"),
        (step_rotates_everything, "rotated_again"),
        (step_repeat_not_interleave, "heads_tiled"),
        (step_returns_the_old_cache, "cache_not_grown"),
        (step_stores_a_plain_key, "key_not_rotated"),
        (step_no_square_root, "not_scaled"),
        (step_mask_of_the_cache, "mask_too_short"),
        (step_writes_over_the_end, "last_overwritten"),
        (step_position_of_row_0, "position_of_the_first_row"),
        (step_position_of_the_batch, "position_of_all_rows"),
        (step_flat_positions, "position_without_its_dimension"),
        (step_running_sum, "last_entry_of_nothing"),
        (step_query_at_the_length, "query_counts_padding"),
        (step_key_at_the_length, "key_counts_padding"),
        (step_is_causal, "causal_of_one"),
        (step_true_in_front, "mask_in_front"),
        (step_mask_as_float, "mask_added"),
        (step_times_mask, "mask_multiplied"),
        (step_late_mask, "mask_after_softmax"),
        (step_softmax_of_one, "softmax_over_queries"),
        (step_times_root, "multiplied_by_root_d"),
        (step_root_of_the_width, "scaled_by_all_heads"),
        (step_heads_as_they_are, "heads_not_repeated"),
        (step_keeps_the_plain_key, "plain_key_stored"),
        (step_returns_the_new_alone, "only_the_new_returned"),
        (step_values_before_keys, "values_first"),
    ],
    "06.name_map": [
        (names_up_gate, "up_first"),
        (names_by_turns, "interleaved"),
        (names_in_dictionary_order, "sorted_as_text"),
        (names_one_long_matrix, "concatenated"),
        (names_stacked_halves, "gate_up_apart"),
        (names_input_major, "transposed"),
        (names_reads_what_it_wants, "extra_dropped"),
        (names_straight_lookup, "bare_key_error"),
        (names_says_only_that, "unnamed"),
        (names_skip_absent, "missing_skipped"),
        (names_all_sparse, "dense_read_as_sparse"),
        (names_one_dense_more, "sparse_read_as_dense"),
    ],
    "06.sample": [
        (sample_times_temperature, "multiplied"),
        (sample_temperature_at_the_end, "temperature_last"),
        (sample_nucleus_first, "p_before_k"),
        (sample_below_p, "crossing_lost"),
        (sample_exactly_k, "ties_cut"),
        (sample_zero_fill, "filled_with_zero"),
        (sample_masked_chances, "not_renormalised"),
        (sample_without_softmax, "logits"),
        (sample_takes_zero, "accepts_bad_input"),
        (sample_one_more, "k_plus_one"),
        (sample_plain_topk, "k_beyond_the_vocabulary"),
        (sample_k_of_nought, "zero_lets_none_through"),
        (sample_else_if, "k_or_p"),
        (sample_without_k, "k_ignored"),
        (sample_without_p, "p_ignored"),
        (sample_down_the_batch, "softmax_over_rows"),
        (sample_softened, "softmax_twice"),
        (sample_chances_first, "chances_as_logits"),
        (sample_log_chances, "logarithms"),
        (sample_draws_a_token, "drawn"),
        (sample_mask_as_sorted, "mask_left_sorted"),
        (sample_gathers, "mask_gathered"),
        (sample_rising_until_p, "rising_to_p"),
    ],
}

RIGHT_ANSWERS = {
    "06.block": [block_by_deltas],
    "06.placement": [place_by_loop],
    "06.cached_step": [step_by_rows],
    "06.name_map": [names_check_first],
    "06.sample": [sample_from_the_best_down],
}
