"""Answers to lab 05 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import math

import torch
import torch.nn.functional as F

from labkit.nn.mask import attention_mask
from labkit.nn.rope import rotate

# -------------------------------------------------------------------------------------------------------------- rope


def _tables(x, positions, theta):
    """Angles [B, 1, S, d/2] the way most codebases write them."""
    half = x.shape[-1] // 2
    inverse = 1.0 / (theta ** (torch.arange(half).float() / half))
    return torch.einsum("bs,p->bsp", positions.float(), inverse)[:, None]


def _rotate_half(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def _rotate_pairs(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).reshape(x.shape)


def rope_as_in_llama(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)
    wide = torch.cat([angles, angles], dim=-1)
    return x_BHSd * wide.cos() + _rotate_half(x_BHSd) * wide.sin()


def rope_as_in_gptj(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    wide = _tables(x_BHSd, positions_BS, theta).repeat_interleave(2, dim=-1)
    return x_BHSd * wide.cos() + _rotate_pairs(x_BHSd) * wide.sin()


def rope_flag_misread(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    return rope_complex(x_BHSd, positions_BS, theta, interleaved=not interleaved)


def rope_as_in_deepseeks_port(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    if interleaved:
        B, H, S, d = x_BHSd.shape
        x_BHSd = x_BHSd.view(B, H, S, d // 2, 2).transpose(4, 3).reshape(B, H, S, d)
    return rope_as_in_llama(x_BHSd, positions_BS, theta)


def rope_conjugated(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)
    return rotate(x_BHSd, angles[:, 0].cos(), -angles[:, 0].sin(), interleaved)


def rope_two_minuses(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)
    cos, sin = angles.cos(), angles.sin()
    out = torch.empty_like(x_BHSd)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, cos.shape[-1]), slice(cos.shape[-1], None))
    )
    out[..., first] = x_BHSd[..., first] * cos - x_BHSd[..., second] * sin
    out[..., second] = x_BHSd[..., second] * cos - x_BHSd[..., first] * sin
    return out  # fmt: skip


def rope_exponent_over_d(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    d = x_BHSd.shape[-1]
    angles = positions_BS[..., None] * torch.tensor([theta ** (-i / d) for i in range(d // 2)])
    return rotate(x_BHSd, angles.cos(), angles.sin(), interleaved)


def rope_exponent_without_minus(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    d = x_BHSd.shape[-1]
    angles = positions_BS[..., None] * torch.tensor([theta ** (2 * i / d) for i in range(d // 2)])
    return rotate(x_BHSd, angles.cos(), angles.sin(), interleaved)


def rope_reversed_frequencies(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)[:, 0].flip(-1)
    return rotate(x_BHSd, angles.cos(), angles.sin(), interleaved)


def rope_position_alone(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = positions_BS[..., None].float() * torch.ones(x_BHSd.shape[-1] // 2)
    return rotate(x_BHSd, angles.cos(), angles.sin(), interleaved)


def rope_ten_thousand(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    return rope_complex(x_BHSd, positions_BS, interleaved=interleaved)


def rope_arange(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    B, _, S, _ = x_BHSd.shape
    return rope_complex(x_BHSd, torch.arange(S).expand(B, S), theta, interleaved)


def rope_positions_of_row_zero(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    return rope_complex(x_BHSd, positions_BS[0].expand_as(positions_BS), theta, interleaved)


def rope_counts_from_one(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    return rope_complex(x_BHSd, 1 + positions_BS, theta, interleaved)


def rope_unsqueeze_in_the_wrong_place(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta).transpose(1, 2)  # [B, S, 1, d/2]
    if interleaved:
        wide = angles.repeat_interleave(2, dim=-1)
        return x_BHSd * wide.cos() + _rotate_pairs(x_BHSd) * wide.sin()
    wide = torch.cat([angles, angles], dim=-1)
    return x_BHSd * wide.cos() + _rotate_half(x_BHSd) * wide.sin()


def rope_tables_mixed_up(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)
    if interleaved:
        wide = torch.cat([angles, angles], dim=-1)
        return x_BHSd * wide.cos() + _rotate_pairs(x_BHSd) * wide.sin()
    wide = angles.repeat_interleave(2, dim=-1)
    return x_BHSd * wide.cos() + _rotate_half(x_BHSd) * wide.sin()


def rope_detached(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    return rope_complex(x_BHSd.detach(), positions_BS, theta, interleaved)


def rope_complex(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    half = x_BHSd.shape[-1] // 2
    angles = positions_BS[..., None] * torch.exp(-math.log(theta) * torch.arange(half) / half)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = x_BHSd.unflatten(-1, (half, 2)) if interleaved else x_BHSd.unflatten(-1, (2, half)).mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return turned.flatten(-2) if interleaved else turned.mT.flatten(-2)


def rope_by_wide_tables(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    return (rope_as_in_gptj if interleaved else rope_as_in_llama)(x_BHSd, positions_BS, theta)


def rope_by_matrices(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)
    matrix = torch.stack(
        [torch.stack([angles.cos(), -angles.sin()], -1), torch.stack([angles.sin(), angles.cos()], -1)], -2
    )
    shape = (-1, 2) if interleaved else (2, -1)
    pairs = x_BHSd.unflatten(-1, shape)
    turned = (matrix @ (pairs if interleaved else pairs.mT)[..., None])[..., 0]
    return (turned if interleaved else turned.mT).flatten(-2)


# ------------------------------------------------------------------------------------------------------- cache_bytes


def _bytes(attention, num_layers, num_heads, head_dim, positions=1, *, num_kv_heads=1, kv_rank=0, rope_dim=0, window=0,
           window_layers=0, bytes_per_value=2, heads=None, pair=2, latent=None, seen=None):  # fmt: skip
    """A right count whose parts can be replaced."""
    if attention not in ("mha", "gqa", "mqa", "mla"):
        raise ValueError(attention)
    groups = {"mha": num_heads, "mqa": 1}.get(attention, num_kv_heads) if heads is None else heads
    values = pair * groups * head_dim if attention != "mla" else kv_rank + rope_dim if latent is None else latent
    if seen is None:
        seen = sum(min(positions, window) if layer < window_layers else positions for layer in range(num_layers))
    return seen * values * bytes_per_value


def cache_counts_queries(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, heads=num_heads, **sizes)


def cache_of_keys(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, pair=1, **sizes)


def cache_pair_of_latents(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    latent = 2 * (sizes.get("kv_rank", 0) + sizes.get("rope_dim", 0))
    return _bytes(attention, num_layers, num_heads, head_dim, positions, latent=latent, **sizes)


def cache_latent_for_k_and_v(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    latent = 2 * sizes.get("kv_rank", 0) + sizes.get("rope_dim", 0)
    return _bytes(attention, num_layers, num_heads, head_dim, positions, latent=latent, **sizes)


def cache_without_rotary(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, **{**sizes, "rope_dim": 0})


def cache_rotary_for_every_head(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    sizes["rope_dim"] = num_heads * sizes.get("rope_dim", 0)
    return _bytes(attention, num_layers, num_heads, head_dim, positions, **sizes)


def cache_latent_for_every_head(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    latent = num_heads * (sizes.get("kv_rank", 0) + sizes.get("rope_dim", 0))
    return _bytes(attention, num_layers, num_heads, head_dim, positions, latent=latent, **sizes)


def cache_mla_as_mha(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    kind = "mha" if attention == "mla" else attention
    return _bytes(kind, num_layers, num_heads, head_dim, positions, **sizes)


def cache_mqa_as_gqa(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    kind = "gqa" if attention == "mqa" else attention
    return _bytes(kind, num_layers, num_heads, head_dim, positions, **sizes)


def cache_no_window(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=num_layers * positions, **sizes)


def cache_full_window(attention, num_layers, num_heads, head_dim, positions=1, *, window=0, window_layers=0, **sizes):
    seen = (num_layers - window_layers) * positions + window_layers * window
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=seen, **sizes)


def cache_all_slide(attention, num_layers, num_heads, head_dim, positions=1, *, window=0, **sizes):
    seen = num_layers * (min(window, positions) if window else positions)
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=seen, **sizes)


def cache_window_layers_free(attention, num_layers, num_heads, head_dim, positions=1, *, window_layers=0, **sizes):
    seen = (num_layers - window_layers) * positions
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=seen, **sizes)


def cache_16_bits(attention, num_layers, num_heads, head_dim, positions=1, *, bytes_per_value=2, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, **sizes)


def cache_numbers(attention, num_layers, num_heads, head_dim, positions=1, *, bytes_per_value=2, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, bytes_per_value=1, **sizes)


def cache_of_a_layer(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=positions, **sizes)


def cache_of_a_token(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=num_layers, **sizes)


def cache_any_kind(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    kind = attention if attention in ("mha", "gqa", "mqa", "mla") else "gqa"
    return _bytes(kind, num_layers, num_heads, head_dim, positions, **sizes)


def cache_layer_by_layer(
    attention, num_layers, num_heads, head_dim, positions=1, *, num_kv_heads=1, kv_rank=0, rope_dim=0, window=0,
    window_layers=0, bytes_per_value=2,
):  # fmt: skip
    total = 0
    for layer in range(num_layers):
        kept = min(positions, window) if layer < window_layers else positions
        match attention:
            case "mla":
                widths = (kv_rank, rope_dim)
            case "mha":
                widths = (num_heads * head_dim,) * 2
            case "gqa":
                widths = (num_kv_heads * head_dim,) * 2
            case "mqa":
                widths = (head_dim, head_dim)
            case _:
                raise ValueError(f"no such attention: {attention}")
        total += kept * sum(widths)
    return total * bytes_per_value


# -------------------------------------------------------------------------------------------------------------- mask


def _index(real_BK, num_queries):
    K = real_BK.shape[-1]
    return torch.arange(K - num_queries, K).view(1, 1, -1, 1), torch.arange(K).view(1, 1, 1, -1)


def mask_true_is_forbidden(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    hidden = (k > q) | ~real_BK[:, None, None]
    if window:
        hidden = hidden | (k <= q - window)
    return hidden & (k != q)


def mask_tril_and_padding(real_BK, num_queries, window=0):
    K = real_BK.shape[-1]
    seen = torch.ones(num_queries, K, dtype=torch.bool).tril(K - num_queries)
    if window:
        seen = seen.triu(K - num_queries - window + 1)
    return seen & real_BK[:, None, None, :]


def mask_tril_from_zero(real_BK, num_queries, window=0):
    seen = torch.ones(num_queries, real_BK.shape[-1], dtype=torch.bool).tril()
    if window:
        seen = seen.triu(1 - window)
    return (seen & real_BK[:, None, None, :]) | torch.eye(num_queries, real_BK.shape[-1], dtype=torch.bool)


def mask_plain_eye(real_BK, num_queries, window=0):
    bare = mask_tril_and_padding(real_BK, num_queries, window)
    return bare | torch.eye(num_queries, real_BK.shape[-1], dtype=torch.bool)


def mask_of_queries(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = (k <= q) & real_BK[:, None, -num_queries:, None]
    if window:
        seen = seen & (q - k < window)
    return seen | (q == k)


def mask_strictly_before(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = (k < q) & real_BK[:, None, None]
    return seen & (q - k < window) if window else seen


def mask_padding_only(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = real_BK[:, None, None] & (q - k < (window or 10**9))
    return seen | (q == k)


def mask_window_and_itself(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    return ((k <= q) & (q - k <= (window or 10**9)) & real_BK[:, None, None]) | (q == k)


def mask_window_less_one(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    return ((k <= q) & (q - k < (window - 1 if window else 10**9)) & real_BK[:, None, None]) | (q == k)


def mask_no_window(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    return ((k <= q) & real_BK[:, None, None]) | (q == k)


def mask_zero_window(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    return ((k <= q) & (q - k < window) & real_BK[:, None, None]) | (q == k)


def mask_all_real(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = (k <= q) & (q - k < (window or 10**9))
    return seen.expand(len(real_BK), -1, -1, -1).clone()


def mask_opens_empty_rows(real_BK, num_queries, window=0):
    seen = mask_tril_and_padding(real_BK, num_queries, window).clone()
    seen[~seen.any(-1)] = True
    return seen


def mask_by_segments(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    padding_query = ~real_BK[:, None, -num_queries:, None]
    seen = (k <= q) & (q - k < (window or 10**9))
    return seen & (real_BK[:, None, None] | padding_query)


def mask_of_minus_infinity(real_BK, num_queries, window=0):
    return torch.where(mask_by_positions(real_BK, num_queries, window), 0.0, -torch.inf)


def mask_three_dimensions(real_BK, num_queries, window=0):
    return mask_by_positions(real_BK, num_queries, window).squeeze(1)


def mask_keys_by_queries(real_BK, num_queries, window=0):
    return mask_by_positions(real_BK, num_queries, window).transpose(2, 3)


def mask_by_positions(real_BK, num_queries, window=0):
    rows = []
    for real in real_BK.tolist():
        K, reach = len(real), window or len(real)
        rows.append([[k == q or (q - reach < k <= q and real[k]) for k in range(K)] for q in range(K - num_queries, K)])
    return torch.tensor(rows)[:, None]


def mask_by_ours(real_BK, num_queries, window=0):
    return attention_mask(num_queries, real_BK.shape[1], real_BK, window=window)


def mask_by_tril_and_triu(real_BK, num_queries, window=0):
    K = real_BK.shape[1]
    bare = mask_tril_and_padding(real_BK, num_queries, window)
    return bare | torch.eye(K, dtype=torch.bool)[K - num_queries :]


# --------------------------------------------------------------------------------------------------------------- mla


def _tables_of(positions, r):
    angles = positions[..., None] * 10_000.0 ** (-torch.arange(0, r, 2) / r)
    return angles.cos(), angles.sin()


def _latent_attention(
    x, query, down, norm, up, positions, *, spin=True, spin_q=True, spin_k=True, neighbours=True, normalise=True,
    weight=True, center=False, future=False, scale=None, swap=False, order="nr",
):  # fmt: skip
    """MLA by loops over heads, with switches for what can go wrong."""
    R, (H, d, _) = norm.shape[0], query.shape
    r = down.shape[0] - R
    n, S = d - r, x.shape[1]
    both = F.linear(x, down)
    latent, rotary = both[..., :R], both[..., R:]
    if normalise:
        latent = latent - latent.mean(-1, keepdim=True) if center else latent
        latent = latent * torch.rsqrt(latent.square().mean(-1, keepdim=True) + 1e-6)
        latent = latent * norm if weight else latent
    cos, sin = _tables_of(positions, r)
    spun = rotate(rotary[:, None], cos, sin, neighbours)[:, 0] if spin_k else rotary
    allowed = torch.ones(S, S, dtype=torch.bool).tril()
    outputs = []
    for h in range(H):
        q = F.linear(x, query[h])
        q_plain, q_spun = (q[..., :n], q[..., n:]) if order == "nr" else (q[..., r:], q[..., :r])
        q_spun = rotate(q_spun[:, None], cos, sin, neighbours)[:, 0] if spin_q else q_spun
        key, value = F.linear(latent, up[h]).split([n, up.shape[1] - n], dim=-1)
        if swap:
            value, key = F.linear(latent, up[h]).split([up.shape[1] - n, n], dim=-1)
        scores = q_plain @ key.mT + (q_spun @ spun.mT if spin else 0)
        scores = scores * (d**-0.5 if scale is None else scale)
        if not future:
            scores = scores.masked_fill(~allowed, -torch.inf)
        outputs.append(scores.softmax(-1) @ value)
    return torch.stack(outputs, dim=1), latent, spun


def mla_forgets_the_norm(*args):
    return _latent_attention(*args, normalise=False)


def mla_norm_of_ones(*args):
    return _latent_attention(*args, weight=False)


def mla_centres(*args):
    return _latent_attention(*args, center=True)


def mla_norm_before_the_split(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    R, both = len(norm_R), x_BSD @ kv_down_CD.T
    root = (both.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    own = (both[..., :R].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return _rescaled(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS, own / root)


def _rescaled(x, query, down, norm, up, positions, factor):
    """MLA whose latents are multiplied by a factor of each position."""
    _, latent, spun = _latent_attention(x, query, down, norm, up, positions)
    n = query.shape[1] - spun.shape[-1]
    expanded = torch.einsum("bsr,her->bhse", latent * factor, up)
    q = torch.einsum("bsx,hdx->bhsd", x, query)
    cos, sin = _tables_of(positions, spun.shape[-1])
    q = torch.cat([q[..., :n], rotate(q[..., n:], cos, sin, True)], dim=-1)
    key = torch.cat([expanded[..., :n], spun[:, None].expand(-1, len(query), -1, -1)], dim=-1)
    return F.scaled_dot_product_attention(q, key, expanded[..., n:], is_causal=True), latent * factor, spun


def mla_caches_before_the_norm(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    y, _, spun = _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS)
    return y, (x_BSD @ kv_down_CD.T)[..., : len(norm_R)], spun


def mla_caches_before_the_turn(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    y, latent, _ = _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS)
    return y, latent, (x_BSD @ kv_down_CD.T)[..., len(norm_R) :]


def mla_turns_only_queries(*args):
    return _latent_attention(*args, spin_k=False)


def mla_turns_only_keys(*args):
    return _latent_attention(*args, spin_q=False)


def mla_without_positions(*args):
    return _latent_attention(*args, spin_q=False, spin_k=False)


def mla_rotate_half(*args):
    return _latent_attention(*args, neighbours=False)


def mla_own_positions(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    counted = torch.arange(x_BSD.shape[1]).expand(len(x_BSD), -1)
    return _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, counted)


def mla_sees_everything(*args):
    return _latent_attention(*args, future=True)


def mla_scaled_by_the_plain_part(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    n = query_HdD.shape[1] + len(norm_R) - len(kv_down_CD)
    return _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS, scale=1 / math.sqrt(n))


def mla_forgets_the_scale(*args):
    return _latent_attention(*args, scale=1.0)


def mla_values_before_keys(*args):
    return _latent_attention(*args, swap=True)


def mla_rotary_before_plain(*args):
    return _latent_attention(*args, order="rn")


def mla_content_only(*args):
    return _latent_attention(*args, spin=False)


def mla_for_the_output_matrix(*args):
    y, latent, spun = _latent_attention(*args)
    return y.permute(0, 2, 1, 3), latent, spun


def mla_rotary_with_head(*args):
    y, latent, spun = _latent_attention(*args)
    return y, latent, spun.unsqueeze(1)


def mla_caches_heads(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    y, latent, spun = _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS)
    n, H = query_HdD.shape[1] - spun.shape[-1], len(query_HdD)
    keys, values = (latent[:, None] @ kv_up_HER.mT).tensor_split([n], dim=-1)
    return y, torch.cat([keys, torch.stack([spun] * H, dim=1)], dim=-1), values


def mla_without_gradients(*args):
    with torch.no_grad():
        return _latent_attention(*args)


def mla_by_heads(*args):
    return _latent_attention(*args)


def mla_in_sdpa(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    one = torch.ones(1, x_BSD.shape[1], 1)
    return _rescaled(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS, one)


# ------------------------------------------------------------------------------------------------------------ absorb


def _step(query, latent, rotary, up, seen, *, scale=None, rope=True, hide=True, hidden=-torch.inf, heads=None,
          keys_first=True, over=2):  # fmt: skip
    """The absorbed step by plain sums, with switches for what can go wrong."""
    r = rotary.shape[-1]
    n = query.shape[-1] - r
    of_keys, of_values = (up[:, :n], up[:, n:]) if keys_first else (up[:, -n:], up[:, : up.shape[1] - n])
    if heads is not None:
        of_keys, of_values = of_keys[heads], of_values[heads]
    folded = (query[..., :n, None] * of_keys[None]).sum(2)
    scores = (folded[:, :, None] * latent[:, None]).sum(-1)
    if rope:
        scores = scores + (query[:, :, None, n:] * rotary[:, None]).sum(-1)
    scores = scores / math.sqrt(n + r) if scale is None else scores * scale
    if hide:
        scores = torch.where(seen[:, None], scores, torch.tensor(hidden))
    read = (scores.softmax(over)[..., None] * latent[:, None]).sum(2)
    return (read[:, :, None] * of_values[None]).sum(-1), folded, read


def absorb_default_scale(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    r = rotary_BKr.shape[-1]
    n = query_BHd.shape[-1] - r
    folded = torch.einsum("bhn,hnr->bhr", query_BHd[..., :n], kv_up_HER[:, :n])
    query = torch.cat([folded, query_BHd[..., n:]], dim=-1)[:, :, None]
    key = torch.cat([latent_BKR, rotary_BKr], dim=-1)[:, None].expand(-1, query.shape[1], -1, -1)
    value = latent_BKR[:, None].expand(-1, query.shape[1], -1, -1)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_BK[:, None, None])[:, :, 0]
    return torch.einsum("bhr,hvr->bhv", read, kv_up_HER[:, n:]), folded, read


def absorb_root_of_rank(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    scale = 1 / math.sqrt(latent_BKR.shape[-1])
    return _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK, scale=scale)


def absorb_root_of_n(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    scale = 1 / math.sqrt(query_BHd.shape[-1] - rotary_BKr.shape[-1])
    return _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK, scale=scale)


def absorb_without_scale(*args):
    return _step(*args, scale=1.0)


def absorb_latents_only(*args):
    return _step(*args, rope=False)


def absorb_reads_padding(*args):
    return _step(*args, hide=False)


def absorb_scores_times_mask(*args):
    return _step(*args, hidden=0.0)


def absorb_shares_times_mask(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    r = rotary_BKr.shape[-1]
    n = query_BHd.shape[-1] - r
    _, folded, _ = _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK)
    width = torch.cat([folded, query_BHd[..., n:]], -1) @ torch.cat([latent_BKR, rotary_BKr], -1).mT
    shares = (width / math.sqrt(n + r)).softmax(-1).masked_fill(~seen_BK[:, None], 0)
    read = shares @ latent_BKR
    return torch.einsum("bhr,hvr->bhv", read, kv_up_HER[:, n:]), folded, read


def absorb_fills_the_seen(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    return _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, ~seen_BK)


def absorb_keys_at_the_end(*args):
    return _step(*args, keys_first=False)


def absorb_softmax_over_heads(*args):
    return _step(*args, over=1)


def absorb_returns_latents(*args):
    _, folded, read = _step(*args)
    return read, folded, read


def absorb_head_zero(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    heads = torch.zeros(len(kv_up_HER), dtype=torch.int64)
    return _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK, heads=heads)


def absorb_matrix_times_query(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    n, R = query_BHd.shape[-1] - rotary_BKr.shape[-1], latent_BKR.shape[-1]
    of_keys = kv_up_HER[:, :n].transpose(1, 2) if n == R else kv_up_HER[:, :n]
    up = torch.cat([of_keys, kv_up_HER[:, n:]], dim=1)
    return _step(query_BHd, latent_BKR, rotary_BKr, up, seen_BK)


def absorb_folds_the_scale(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    y, folded, read = _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK)
    return y, folded / math.sqrt(query_BHd.shape[-1]), read


def absorb_wide_query(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    y, folded, read = _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK)
    return y, torch.cat([folded, query_BHd[..., -rotary_BKr.shape[-1] :]], dim=-1), read


def absorb_frozen_matrix(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    return _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER.detach(), seen_BK)


def absorb_by_sums(*args):
    return _step(*args)


def absorb_in_sdpa(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    H, d = query_BHd.shape[1:]
    n = d - rotary_BKr.shape[-1]
    folded = (query_BHd[..., None, :n] @ kv_up_HER[:, :n]).squeeze(2)
    query = torch.cat([folded, query_BHd[..., n:]], dim=-1)[:, :, None]
    key = torch.cat([latent_BKR, rotary_BKr], dim=-1)[:, None].expand(-1, H, -1, -1)
    value = latent_BKR[:, None].expand(-1, H, -1, -1)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_BK[:, None, None], scale=d**-0.5)
    return (kv_up_HER[:, n:] @ read.mT).squeeze(-1), folded, read[:, :, 0]


# ------------------------------------------------------------------------------------- put together in the wrong way


def rope_positions_in_bfloat16(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS.to(torch.bfloat16), theta)[:, 0]
    return rotate(x_BHSd, angles.cos(), angles.sin(), interleaved)


def rope_counts_on_from_the_start(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    steps = torch.arange(positions_BS.shape[1])[None]
    return rope_complex(x_BHSd, positions_BS[:, 0, None] + steps, theta, interleaved)


def rope_forgets_unsqueeze(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)[:, 0]
    if interleaved:
        wide = angles.repeat_interleave(2, dim=-1)
        return x_BHSd * wide.cos() + _rotate_pairs(x_BHSd) * wide.sin()
    wide = torch.cat([angles, angles], dim=-1)
    return x_BHSd * wide.cos() + _rotate_half(x_BHSd) * wide.sin()


def rope_twice_two(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    d = x_BHSd.shape[-1]
    angles = positions_BS[..., None] / theta ** (2 * torch.arange(0, d, 2) / d)
    return rotate(x_BHSd, angles.cos(), angles.sin(), interleaved)


def _members(x, interleaved):
    half = x.shape[-1] // 2
    return (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))


def rope_all_plus(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles, (a, b) = _tables(x_BHSd, positions_BS, theta), _members(x_BHSd, interleaved)
    out = x_BHSd * 0
    out[..., a] = x_BHSd[..., a] * angles.cos() + x_BHSd[..., b] * angles.sin()
    out[..., b] = x_BHSd[..., b] * angles.cos() + x_BHSd[..., a] * angles.sin()
    return out


def rope_on_a_clone(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles, (a, b) = _tables(x_BHSd, positions_BS, theta), _members(x_BHSd, interleaved)
    out = x_BHSd.clone()
    out[..., a] = x_BHSd[..., a] * angles.cos() - x_BHSd[..., b] * angles.sin()
    out[..., b] = x_BHSd[..., b] * angles.cos() + out[..., a].clone() * angles.sin()
    return out


def rope_sin_then_cos(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    angles = _tables(x_BHSd, positions_BS, theta)[:, 0]
    return rotate(x_BHSd, angles.sin(), angles.cos(), interleaved)


def rope_stacks_always(x_BHSd, positions_BS, theta=10_000.0, interleaved=False):
    turned = rope_complex(x_BHSd, positions_BS, theta, interleaved)
    return turned if interleaved else turned.unflatten(-1, (2, -1)).mT.flatten(-2)


def cache_mha_as_gqa(attention, num_layers, num_heads, head_dim, positions=1, *, num_kv_heads=1, **sizes):
    heads = num_kv_heads if attention in ("mha", "gqa") else None
    return _bytes(attention, num_layers, num_heads, head_dim, positions, heads=heads, **sizes)


def cache_one_group(attention, num_layers, num_heads, head_dim, positions=1, *, num_kv_heads=1, **sizes):
    return _bytes(attention, num_layers, num_heads, head_dim, positions, num_kv_heads=1, **sizes)


def cache_of_a_groups_queries(attention, num_layers, num_heads, head_dim, positions=1, *, num_kv_heads=1, **sizes):
    groups = num_heads // num_kv_heads
    return _bytes(attention, num_layers, num_heads, head_dim, positions, num_kv_heads=groups, **sizes)


def cache_q_k_v(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    right = _bytes(attention, num_layers, num_heads, head_dim, positions, **sizes)
    queries = _bytes("mha", num_layers, num_heads, head_dim, positions, pair=1, **sizes)
    return right + (queries if attention != "mla" else 0)


def cache_heads_without_width(attention, num_layers, num_heads, head_dim, positions=1, **sizes):
    return _bytes(attention, num_layers, num_heads, 1, positions, **sizes)


def cache_window_besides(
    attention, num_layers, num_heads, head_dim, positions=1, *, window=0, window_layers=0, **sizes
):
    seen = num_layers * positions + window_layers * min(window, positions)
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=seen, **sizes)


def cache_window_of_the_others(
    attention, num_layers, num_heads, head_dim, positions=1, *, window=0, window_layers=0, **sizes
):
    short = num_layers - window_layers if window_layers else 0
    sizes |= {"window": window, "window_layers": short}
    return _bytes(attention, num_layers, num_heads, head_dim, positions, **sizes)


def cache_max_of_window(attention, num_layers, num_heads, head_dim, positions=1, *, window=0, window_layers=0, **sizes):
    seen = sum(max(positions, window) if layer < window_layers else positions for layer in range(num_layers))
    return _bytes(attention, num_layers, num_heads, head_dim, positions, seen=seen, **sizes)


def _with_eye(seen_BSK):
    S, K = seen_BSK.shape[-2:]
    return (seen_BSK | torch.ones(S, K, dtype=torch.bool).triu(K - S).tril(K - S))[:, None]


def mask_diagonal_plus_one(real_BK, num_queries, window=0):
    K = real_BK.shape[-1]
    seen = torch.ones(num_queries, K, dtype=torch.bool).tril(K - num_queries + 1)
    seen = seen.triu(K - num_queries - window + 1) if window else seen
    return _with_eye(seen & real_BK[:, None])


def mask_triu(real_BK, num_queries, window=0):
    K = real_BK.shape[-1]
    seen = torch.ones(num_queries, K, dtype=torch.bool).triu(K - num_queries)
    seen = seen.tril(K - num_queries + window - 1) if window else seen
    return _with_eye(seen & real_BK[:, None])


def mask_window_by_distance(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    near = (q - k).abs() < window if window else q >= k
    return near & real_BK[:, None, None] | (q == k)


def mask_mends_empty_rows(real_BK, num_queries, window=0):
    seen = mask_tril_and_padding(real_BK, num_queries, window).clone()
    q, k = _index(real_BK, num_queries)
    return torch.where(seen.any(-1, keepdim=True), seen, q == k)


def mask_outer_product(real_BK, num_queries, window=0):
    both = real_BK[:, None, -num_queries:, None] & real_BK[:, None, None]
    return _with_eye((mask_by_positions(real_BK, num_queries, window) & both)[:, 0])


def mask_of_the_first_sequence(real_BK, num_queries, window=0):
    seen = mask_by_positions(real_BK[:1], num_queries, window)
    return seen.repeat(len(real_BK), 1, 1, 1)


def mask_from_the_first_real(real_BK, num_queries, window=0):
    first = real_BK.int().argmax(dim=1)
    return mask_by_positions(torch.arange(real_BK.shape[1]) >= first[:, None], num_queries, window)


def mask_of_lengths(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = (k <= q) & (k < real_BK.sum(-1)[:, None, None, None])
    return (seen & (q - k < window) if window else seen) | (q == k)


def mask_or(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = (k <= q) & (q - k < window) if window else k <= q
    return seen | real_BK[:, None, None]


def mask_eye_of_queries(real_BK, num_queries, window=0):
    q, k = _index(real_BK, num_queries)
    seen = (k <= q) & (q - k < window) if window else k <= q
    return (seen & real_BK[:, None, None]) | torch.eye(num_queries, dtype=torch.bool)


def mla_reshapes(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS, query_alone=False):
    (B, S, _), (H, d, _) = x_BSD.shape, query_HdD.shape
    _, latent, spun = _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS)
    cos, sin = _tables_of(positions_BS, spun.shape[-1])
    n = d - spun.shape[-1]
    query = F.linear(x_BSD, query_HdD.flatten(0, 1)).reshape(B, H, S, d)
    kv = F.linear(latent, kv_up_HER.flatten(0, 1))
    kv = kv.view(B, S, H, -1).transpose(1, 2) if query_alone else kv.view(B, H, S, -1)
    scores = query[..., :n] @ kv[..., :n].mT + rotate(query[..., n:], cos, sin, True) @ spun[:, None].mT
    scores = (scores / math.sqrt(d)).masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ kv[..., n:], latent, spun


def mla_reshapes_queries(*args):
    return mla_reshapes(*args, query_alone=True)


def mla_expands_before_the_norm(*args):
    return _latent_attention(*args, normalise=False)[0], *_latent_attention(*args)[1:]


def mla_normalises_to_one(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    scale = norm_R * len(norm_R) ** -0.5
    return _latent_attention(x_BSD, query_HdD, kv_down_CD, scale, kv_up_HER, positions_BS)


def mla_down_rotary_first(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    r = len(kv_down_CD) - len(norm_R)
    down = torch.cat([kv_down_CD[r:], kv_down_CD[:r]])
    return _latent_attention(x_BSD, query_HdD, down, norm_R, kv_up_HER, positions_BS)


def mla_root_of_rank(*args):
    return _latent_attention(*args, scale=1 / math.sqrt(len(args[3])))


def mla_two_scales(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    d, r = query_HdD.shape[1], len(kv_down_CD) - len(norm_R)
    n = d - r
    query = torch.cat([query_HdD[:, :n] * (d / n) ** 0.5, query_HdD[:, n:] * (d / r) ** 0.5], dim=1)
    return _latent_attention(x_BSD, query, kv_down_CD, norm_R, kv_up_HER, positions_BS)


def mla_keys_rotary_first(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    (H, d, _), S = query_HdD.shape, x_BSD.shape[1]
    _, latent, spun = _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS)
    n = d - spun.shape[-1]
    query = (x_BSD @ query_HdD.flatten(0, 1).T).unflatten(-1, (H, d)).transpose(1, 2)
    query = torch.cat([query[..., :n], rotate(query[..., n:], *_tables_of(positions_BS, d - n), True)], dim=-1)
    kv = (latent @ kv_up_HER.flatten(0, 1).T).unflatten(-1, (H, -1)).transpose(1, 2)
    key = torch.cat([spun[:, None].expand(-1, H, S, -1), kv[..., :n]], dim=-1)
    return F.scaled_dot_product_attention(query, key, kv[..., n:], is_causal=True), latent, spun


def mla_multiplies_by_the_mask(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS):
    (H, d, _), S = query_HdD.shape, x_BSD.shape[1]
    _, latent, spun = _latent_attention(x_BSD, query_HdD, kv_down_CD, norm_R, kv_up_HER, positions_BS)
    n, outputs = d - spun.shape[-1], []
    for h in range(H):
        query, kv = x_BSD @ query_HdD[h].T, latent @ kv_up_HER[h].T
        turned = rotate(query[:, None, :, n:], *_tables_of(positions_BS, d - n), True)[:, 0]
        scores = (query[..., :n] @ kv[..., :n].mT + turned @ spun.mT) / math.sqrt(d)
        outputs.append((scores * torch.ones(S, S).tril()).softmax(-1) @ kv[..., n:])
    return torch.stack(outputs, dim=1), latent, spun


def mla_returns_rotary_first(*args):
    y, latent, spun = _latent_attention(*args)
    return y, spun, latent


def mla_joins_heads(*args):
    y, latent, spun = _latent_attention(*args)
    return torch.cat(list(y.unbind(1)), dim=-1), latent, spun


def absorb_brackets_forgotten(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK, content=True):
    """One part of the scores loses its scale: the other one is scaled in advance, and its rotary keys with it."""
    d, r = query_BHd.shape[-1], rotary_BKr.shape[-1]
    factors = torch.ones(d)
    factors[d - r :] = d**0.5 if content else 1
    factors[: d - r] = 1 if content else d**0.5
    y, folded, read = _step(query_BHd * factors, latent_BKR, rotary_BKr, kv_up_HER, seen_BK)
    return y, folded if content else folded * d**-0.5, read


def absorb_other_brackets_forgotten(*args):
    return absorb_brackets_forgotten(*args, content=False)


def absorb_two_scales(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    d, r = query_BHd.shape[-1], rotary_BKr.shape[-1]
    factors = torch.cat([torch.full((d - r,), (d / (d - r)) ** 0.5), torch.full((r,), (d / r) ** 0.5)])
    y, folded, read = _step(query_BHd * factors, latent_BKR, rotary_BKr, kv_up_HER, seen_BK)
    return y, folded / factors[0], read


def absorb_mask_as_it_is(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    n = query_BHd.shape[-1] - rotary_BKr.shape[-1]
    folded = (query_BHd[..., None, :n] @ kv_up_HER[:, :n]).squeeze(2)
    scores = (folded @ latent_BKR.mT + query_BHd[..., n:] @ rotary_BKr.mT) / math.sqrt(query_BHd.shape[-1])
    read = scores.masked_fill(seen_BK.logical_not(), -torch.inf).softmax(-1) @ latent_BKR
    return (kv_up_HER[:, n:] @ read[..., None])[..., 0], folded, read


def absorb_empties_the_cache(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    latent, rotary = (kept.masked_fill(~seen_BK[..., None], 0.0) for kept in (latent_BKR, rotary_BKr))
    return _step(query_BHd, latent, rotary, kv_up_HER, torch.ones_like(seen_BK))


def absorb_returns_read_first(*args):
    y, folded, read = _step(*args)
    return y, read, folded


def absorb_values_with_rotary(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK):
    d, r = query_BHd.shape[-1], rotary_BKr.shape[-1]
    _, folded, _ = _step(query_BHd, latent_BKR, rotary_BKr, kv_up_HER, seen_BK)
    kept = torch.cat([latent_BKR, rotary_BKr], dim=-1)[:, None].expand(-1, folded.shape[1], -1, -1)
    query = torch.cat([folded, query_BHd[..., d - r :]], dim=-1)[:, :, None]
    both = F.scaled_dot_product_attention(query, kept, kept, attn_mask=seen_BK[:, None, None], scale=d**-0.5)[:, :, 0]
    return torch.einsum("bhr,hvr->bhv", both[..., :-r], kv_up_HER[:, d - r :]), folded, both


NEAR_MISSES = {
    "05.rope": [
        (rope_as_in_llama, "always_halves"),
        (rope_as_in_gptj, "always_neighbours"),
        (rope_flag_misread, "swapped"),
        (rope_as_in_deepseeks_port, "left_in_halves"),
        (rope_conjugated, "backwards"),
        (rope_two_minuses, "no_rotation"),
        (rope_exponent_over_d, "half_exponent"),
        (rope_exponent_without_minus, "growing"),
        (rope_reversed_frequencies, "slow_first"),
        (rope_position_alone, "one_angle"),
        (rope_ten_thousand, "theta_fixed"),
        (rope_arange, "from_zero"),
        (rope_positions_of_row_zero, "first_row"),
        (rope_counts_from_one, "from_one"),
        (rope_unsqueeze_in_the_wrong_place, "along_heads"),
        (rope_tables_mixed_up, "crossed_tables"),
        (rope_detached, "cuts_graph"),
        (rope_positions_in_bfloat16, "coarse_positions"),
        (rope_counts_on_from_the_start, "start_only"),
        (rope_forgets_unsqueeze, "without_heads"),
        (rope_twice_two, "double_exponent"),
        (rope_all_plus, "no_minus"),
        (rope_on_a_clone, "turned_first"),
        (rope_sin_then_cos, "cos_for_sin"),
        (rope_stacks_always, "woven"),
    ],
    "05.cache_bytes": [
        (cache_counts_queries, "query_heads"),
        (cache_of_keys, "keys_only"),
        (cache_pair_of_latents, "latent_twice"),
        (cache_latent_for_k_and_v, "latent_for_each"),
        (cache_without_rotary, "rope_forgotten"),
        (cache_rotary_for_every_head, "rope_each_head"),
        (cache_latent_for_every_head, "latent_each_head"),
        (cache_mla_as_mha, "mla_expanded"),
        (cache_mqa_as_gqa, "mqa_grouped"),
        (cache_no_window, "window_ignored"),
        (cache_full_window, "window_always_full"),
        (cache_all_slide, "window_everywhere"),
        (cache_window_layers_free, "window_layers_dropped"),
        (cache_16_bits, "two_bytes"),
        (cache_numbers, "values_counted"),
        (cache_of_a_layer, "one_layer"),
        (cache_of_a_token, "one_position"),
        (cache_any_kind, "accepts_bad_input"),
        (cache_mha_as_gqa, "mha_grouped"),
        (cache_one_group, "gqa_single"),
        (cache_of_a_groups_queries, "queries_per_group"),
        (cache_q_k_v, "with_queries"),
        (cache_heads_without_width, "no_width"),
        (cache_window_besides, "window_added"),
        (cache_window_of_the_others, "window_swapped"),
        (cache_max_of_window, "window_larger"),
    ],
    "05.mask": [
        (mask_true_is_forbidden, "upside_down"),
        (mask_tril_and_padding, "empty_rows"),
        (mask_tril_from_zero, "from_the_corner"),
        (mask_plain_eye, "eye_in_the_corner"),
        (mask_of_queries, "rows_padded"),
        (mask_strictly_before, "not_itself"),
        (mask_padding_only, "not_causal"),
        (mask_window_and_itself, "window_wide"),
        (mask_window_less_one, "window_narrow"),
        (mask_no_window, "window_ignored"),
        (mask_zero_window, "window_of_nothing"),
        (mask_all_real, "padding_ignored"),
        (mask_opens_empty_rows, "open_rows"),
        (mask_by_segments, "padding_sees_padding"),
        (mask_of_minus_infinity, "additive"),
        (mask_three_dimensions, "without_heads"),
        (mask_keys_by_queries, "transposed"),
        (mask_diagonal_plus_one, "one_ahead"),
        (mask_triu, "other_triangle"),
        (mask_window_by_distance, "window_both_sides"),
        (mask_mends_empty_rows, "itself_if_empty"),
        (mask_outer_product, "rows_and_columns"),
        (mask_of_the_first_sequence, "first_row"),
        (mask_from_the_first_real, "left_only"),
        (mask_of_lengths, "by_length"),
        (mask_or, "either"),
        (mask_eye_of_queries, "square"),
    ],
    "05.mla": [
        (mla_forgets_the_norm, "norm_missing"),
        (mla_norm_of_ones, "norm_without_scale"),
        (mla_centres, "layer_norm"),
        (mla_norm_before_the_split, "norm_over_all"),
        (mla_caches_before_the_norm, "raw_latent_cached"),
        (mla_caches_before_the_turn, "raw_key_cached"),
        (mla_turns_only_queries, "key_not_turned"),
        (mla_turns_only_keys, "query_not_turned"),
        (mla_without_positions, "nothing_turned"),
        (mla_rotate_half, "by_halves"),
        (mla_own_positions, "from_zero"),
        (mla_sees_everything, "not_causal"),
        (mla_scaled_by_the_plain_part, "scale_of_nope"),
        (mla_forgets_the_scale, "unscaled"),
        (mla_values_before_keys, "value_first"),
        (mla_rotary_before_plain, "rope_first"),
        (mla_content_only, "rope_left_out"),
        (mla_for_the_output_matrix, "heads_last"),
        (mla_rotary_with_head, "key_with_a_head"),
        (mla_caches_heads, "kv_cached"),
        (mla_without_gradients, "cuts_graph"),
        (mla_reshapes, "heads_by_view"),
        (mla_reshapes_queries, "query_by_view"),
        (mla_expands_before_the_norm, "expanded_raw"),
        (mla_normalises_to_one, "unit_length"),
        (mla_down_rotary_first, "rotary_rows_first"),
        (mla_root_of_rank, "scale_of_the_rank"),
        (mla_two_scales, "scaled_apart"),
        (mla_keys_rotary_first, "crossed"),
        (mla_multiplies_by_the_mask, "mask_of_zeros"),
        (mla_returns_rotary_first, "cache_exchanged"),
        (mla_joins_heads, "heads_joined"),
    ],
    "05.absorb": [
        (absorb_default_scale, "scale_of_the_latent"),
        (absorb_root_of_rank, "scale_of_the_rank"),
        (absorb_root_of_n, "scale_of_nope"),
        (absorb_without_scale, "unscaled"),
        (absorb_latents_only, "rope_left_out"),
        (absorb_reads_padding, "mask_ignored"),
        (absorb_scores_times_mask, "mask_of_zeros"),
        (absorb_shares_times_mask, "masked_afterwards"),
        (absorb_fills_the_seen, "mask_upside_down"),
        (absorb_keys_at_the_end, "value_first"),
        (absorb_softmax_over_heads, "over_heads"),
        (absorb_returns_latents, "value_not_folded"),
        (absorb_head_zero, "first_head"),
        (absorb_matrix_times_query, "transposed"),
        (absorb_folds_the_scale, "query_scaled"),
        (absorb_wide_query, "rotary_beside"),
        (absorb_frozen_matrix, "cuts_graph"),
        (absorb_brackets_forgotten, "half_scaled"),
        (absorb_other_brackets_forgotten, "other_half_scaled"),
        (absorb_two_scales, "scaled_apart"),
        (absorb_mask_as_it_is, "mask_without_heads"),
        (absorb_empties_the_cache, "cache_zeroed"),
        (absorb_returns_read_first, "exchanged"),
        (absorb_values_with_rotary, "read_with_rotary"),
    ],
}

RIGHT_ANSWERS = {
    "05.rope": [rope_complex, rope_by_wide_tables, rope_by_matrices],
    "05.cache_bytes": [cache_layer_by_layer],
    "05.mask": [mask_by_positions, mask_by_ours, mask_by_tril_and_triu],
    "05.mla": [mla_by_heads, mla_in_sdpa],
    "05.absorb": [absorb_by_sums, absorb_in_sdpa],
}
