"""Answers to lab 12 as learners might write them: wrong ones with the mistake to be found, and right ones.

Wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import math
import statistics  # noqa: F401 (a wrong answer uses it)

import torch
from edits import wrong

# ---------------------------------------------------------------------------------------------------------- left_pad


def padded(prompts, pad):
    """Row by row into tensors that are filled beforehand."""
    if len(prompts) == 0 or min(len(p) for p in prompts) == 0:
        raise ValueError("nothing to pad")
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        at = slice(width - len(prompt), width)
        ids[row, at] = torch.tensor(prompt)
        mask[row, at] = 1
        positions[row, at] = torch.arange(len(prompt))
    return ids, mask, positions


PADDED = {
    "right": {"slice(width - len(prompt), width)": "slice(len(prompt))"},
    "both_sides": {"slice(width - len(prompt), width)":
                   "slice((width - len(prompt)) // 2, (width - len(prompt)) // 2 + len(prompt))"},
    "mask_from_ids": {
        "return ids, mask, positions": "mask = (ids != pad).long()\n    return ids, mask, (mask.cumsum(1) - 1).clamp(0)"
    },
    "mask_inverted": {
        "return ids, mask, positions":
        "mask = 1 - mask\n    return ids, mask, (mask.cumsum(-1) - 1).masked_fill(mask.cumsum(-1) == 0, 0)"
    },
    "mask_all": {
        "return ids, mask, positions": "mask[:] = 1\n    return ids, mask, torch.arange(width).repeat(len(prompts), 1)"
    },
    "columns": {"return ids, mask, positions": "return ids, mask, torch.arange(width).repeat(len(prompts), 1)"},
    "columns_masked": {"= torch.arange(len(prompt))": "= torch.arange(width - len(prompt), width)"},
    "from_one": {"= torch.arange(len(prompt))": "= torch.arange(1, len(prompt) + 1)"},
    "below_zero": {"return ids, mask, positions": "return ids, mask, positions - (mask == 0).long()"},
    "along_batch": {"return ids, mask, positions": "return ids, mask, mask.cumsum(0).sub(1).clamp_min(0)"},
    "backwards": {"= torch.arange(len(prompt))": "= torch.arange(len(prompt)).flip(0)",
                  "return ids, mask, positions":
                  "for row, prompt in enumerate(prompts):\n        "
                  "positions[row, : width - len(prompt)] = len(prompt) - 1\n    return ids, mask, positions"},
    "zero_for_pad": {"torch.full((len(prompts), width), pad)": "torch.zeros(len(prompts), width, dtype=torch.long)"},
    "cut_to_shortest": {"width = max(len(p) for p in prompts)":
                        "width = min(len(p) for p in prompts)\n    prompts = [p[-width:] for p in prompts]"},
    "one_too_wide": {"max(len(p) for p in prompts)": "max(len(p) for p in prompts) + 1"},
    "reversed": {"torch.tensor(prompt)": "torch.tensor(prompt[::-1])"},
    "empty_accepted": {" or min(len(p) for p in prompts) == 0": "",
                       "    width =": "    prompts = [p if p else [pad] for p in prompts]\n    width ="},
    "positions_from_ids": {
        "return ids, mask, positions": "return ids, mask, ((ids != pad).long().cumsum(1) - 1).clamp(0)"
    },
    "one_at_padding": {"return ids, mask, positions": "return ids, mask, positions.masked_fill(mask == 0, 1)"},
    "by_length": {"    width =": "    prompts = sorted(prompts, key=len)\n    width ="},
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------------ bucket


def alike(lengths, size, percent):
    """One batch after the other, each as long as it may be."""
    order = [i for _, i in sorted((length, i) for i, length in enumerate(lengths))]
    found = []
    while order:
        first = lengths[order[0]]
        end = 1
        while end < min(size, len(order)) and lengths[order[end]] * (100 - percent) <= 100 * first:
            end += 1
        found.append(order[:end])
        order = order[end:]
    return found


BOUND = "lengths[order[end]] * (100 - percent) <= 100 * first"
ALIKE = {
    "unsorted": {"[i for _, i in sorted((length, i) for i, length in enumerate(lengths))]": "[*range(len(lengths))]"},
    "longest_first": {"sorted((length, i) for": "sorted((-length, i) for",
                      BOUND: "first * (100 - percent) <= 100 * lengths[order[end]]"},
    "ties_reversed": {"[i for _, i in sorted((length, i)": "[-i for _, i in sorted((length, -i)"},
    "no_bound": {" and " + BOUND: ""},
    "no_size": {"min(size, len(order))": "len(order)"},
    "one_too_many": {"min(size, len(order))": "min(size + 1, len(order))"},
    "one_too_few": {"min(size, len(order))": "min(size - 1, len(order))"},
    "neighbours": {"100 * first": "100 * lengths[order[end - 1]]"},
    "of_the_shortest": {BOUND: "100 * (lengths[order[end]] - first) <= percent * first"},
    "whole_batch": {BOUND: "sum(lengths[order[end]] - lengths[j] for j in order[:end]) * 100 "
                    "<= percent * lengths[order[end]] * (end + 1)"},
    "strict": {BOUND: "(lengths[order[end]] * (100 - percent) < 100 * first or "
               "percent and first == lengths[order[end]])"},
    "rounded": {BOUND: "1 - first / lengths[order[end]] <= percent / 100"},
    "share_kept": {BOUND: "(first * 100 <= percent * lengths[order[end]] or lengths[order[end]] == first)"},
    "tokens": {BOUND: "lengths[order[end]] - first <= percent"},
    "in_order_inside": {"found.append(order[:end])": "found.append(sorted(order[:end]))"},
    "lengths_returned": {"found.append(order[:end])": "found.append([lengths[i] for i in order[:end]])"},
    "last_lost": {"return found": "return found[:-1]"},
    "before_joining": {BOUND: "lengths[order[end - 1]] * (100 - percent) <= 100 * first"},
    "whole_percents": {BOUND: "(lengths[order[end]] - first) * 100 // lengths[order[end]] <= percent"},
    "first_of_equals": {"[i for _, i in sorted((length, i) for i, length in enumerate(lengths))]":
                        "[lengths.index(length) for length in sorted(lengths)]"},
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------- next_step


def planned(running, waiting, free, budget, size):
    """Ids in a queue, decoding ones looked up from the front, those sent back taken from the end."""
    queue, sent_back, decoded, begun = list(running), [], [], []
    left = budget
    index = 0
    while index < len(queue):
        now = queue[index]
        index += 1
        rest = now["tokens"] - now["computed"]
        if rest > 1:
            begun.append((now["id"], rest, now))
            continue
        if now["computed"] == now["blocks"] * size:
            while free == 0 and index <= len(queue):
                gone = queue.pop(-1)
                free += gone["blocks"]
                sent_back.append(gone["id"])
            if now["id"] in sent_back:
                break
            free -= 1
        decoded.append((now["id"], 1))
        left -= 1
    later = []
    for id, rest, _ in begun:
        if left > 0:
            later.append((id, min(rest, left)))
            left -= min(rest, left)
    for new in waiting:
        blocks = (new["tokens"] + size - 1) // size
        if sent_back or left == 0 or blocks > free:
            break
        later.append((new["id"], min(new["tokens"], left)))
        left -= min(new["tokens"], left)
        free -= blocks
    return decoded + later, sent_back, free


ADMIT = """    for new in waiting:
        blocks = (new["tokens"] + size - 1) // size
        if sent_back or left == 0 or blocks > free:
            break
        later.append((new["id"], min(new["tokens"], left)))
        left -= min(new["tokens"], left)
        free -= blocks
"""
STAYS = """            while free == 0 and index <= len(queue):
                gone = queue.pop(-1)
                free += gone["blocks"]
                sent_back.append(gone["id"])
"""
PLANNED = {
    "waiting_first": {ADMIT: "", "    left = budget\n": "    left, later = budget, []\n" + ADMIT, "    later = []\n":
                      "", "decoded + later": "later[:starts] + decoded + later[starts:]",
                      "    index = 0\n": "    index, starts = 0, len(later)\n",
                      "        if left > 0:\n            later": "        if min(rest, left) != 0:\n            later",
                      "left -= min(rest, left)": "left = max(0, left - min(rest, left))"},
    "decode_is_free": {"        left -= 1\n": ""},
    "budget_each": {"    for new in waiting": "    left = budget\n    for new in waiting"},
    "prompts_whole": {"min(rest, left)))": "rest))", "left -= min(rest, left)": "left -= min(rest, left)",
                      "        if left > 0:": "        if True:",
                      'min(new["tokens"], left)))': 'new["tokens"]))'},
    "only_whole_prompts": {"or blocks > free": 'or blocks > free or new["tokens"] > left'},
    "begun_forgotten": {"for id, rest, _ in begun": "for id, rest, _ in []"},
    "all_tokens_again": {'begun.append((now["id"], rest, now))': 'begun.append((now["id"], now["tokens"], now))'},
    "begun_take_blocks": {"            left -= min(rest, left)": "            taken = min(rest, left)\n            "
                          "free -= (taken + size - 1) // size\n            left -= taken"},
    "empty_chunks": {"        if left > 0:": "        if True:", "left == 0 or ": ""},
    "always_a_block": {'now["computed"] == now["blocks"] * size': "True"},
    "block_too_early": {'now["computed"] == now["blocks"] * size': 'now["computed"] + 1 == now["blocks"] * size'},
    "block_too_late": {'now["computed"] == now["blocks"] * size': 'now["computed"] > now["blocks"] * size'},
    "blocks_lost": {'                free += gone["blocks"]\n': ""},
    "first_preempted": {"queue.pop(-1)": "queue.pop(0)"},
    "largest_preempted": {"queue.pop(-1)": 'queue.pop(max(range(index - 1, len(queue)), key=lambda i: '
                          'queue[i]["blocks"]))', 'if now["id"] in sent_back': 'if now["id"] in sent_back'},
    "itself_preempted": {"queue.pop(-1)": "queue.pop(index - 1)"},
    "others_only": {"index <= len(queue)": "index < len(queue)", 'if now["id"] in sent_back': "if free == 0"},
    "waits_instead": {STAYS: "", 'if now["id"] in sent_back:\n                break':
                      "if free == 0:\n                continue"},
    "one_block_back": {'free += gone["blocks"]': "free += 1"},
    "preempted_reversed": {"return decoded + later, sent_back": "return decoded + later, sent_back[::-1]"},
    "admits_after_preempting": {"if sent_back or left": "if left"},
    "overbooked": {" or blocks > free": ""},
    "overtakes": {"if sent_back or left == 0 or blocks > free:\n            break":
                  "if sent_back or left == 0 or blocks > free:\n            continue"},
    "one_kept_back": {"blocks > free": "blocks >= free"},
    "one_admitted": {"        free -= blocks\n": "        free -= blocks\n        break\n"},
    "rounded_down": {'(new["tokens"] + size - 1) // size': 'new["tokens"] // size'},
    "a_block_more": {'(new["tokens"] + size - 1) // size': 'new["tokens"] // size + 1'},
    "blocks_of_the_chunk": {'(new["tokens"] + size - 1) // size': '(min(new["tokens"], left) + size - 1) // size'},
    "block_not_taken": {"            free -= 1\n": ""},
    "starts_take_nothing": {"        free -= blocks\n": ""},
    "still_computes": {'            if now["id"] in sent_back:\n                break\n': ""},
    "sent_back_goes_on": {"    later = []\n": "    later = []\n    begun = [(s['id'], s['tokens'] - s['computed'], s) "
                          "for s in running if s['tokens'] - s['computed'] > 1]\n"},
    "ends_with_the_last": {'in sent_back:\n                break': 'in sent_back:\n                '
                           'return decoded, sent_back, free'},
    "running_counted": {"        left -= 1\n": "", "    later = []\n": "    left -= len(running)\n    later = []\n"},
    "in_order_of_running": {"return decoded + later": "where = [s['id'] for s in [*running, *waiting]]\n    "
                            "return sorted(decoded + later, key=lambda chunk: where.index(chunk[0]))"},
    "decoding_preempted": {"in sent_back:\n                break": "in sent_back:\n                index -= 1\n"
                           "                continue",
                           "queue.pop(-1)": "queue.pop(max(i for i, s in enumerate(queue) if s['tokens'] - "
                           "s['computed'] == 1))"},
    "prompts_preempted": {"queue.pop(-1)": "queue.pop(max(range(index - 1, len(queue)), key=lambda i: "
                          "(queue[i]['tokens'] - queue[i]['computed'] > 1, i)))"},
    "back_at_once": {"    for new in waiting:": "    for new in [*(s for id in sent_back for s in running if s['id'] "
                     "== id), *waiting]:", "if sent_back or left": "if left"},
    "multiples": {'now["computed"] == now["blocks"] * size': 'now["computed"] % size == 0'},
    "begun_decodes": {"if rest > 1:": "if now['computed'] == 0:"},
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- place


def written(position, table, holders, size):
    """Three cases, each with its own return."""
    table, holders = table.copy(), holders.copy()
    which = position // size
    if which < len(table) and holders[table[which]] == 1:
        return table[which] * size + position % size, table, holders, None
    free = [block for block in range(len(holders)) if not holders[block]]
    if not free:
        raise ValueError("full")
    fresh = free[0]
    holders[fresh] += 1
    if which == len(table):
        return fresh * size + position % size, [*table, fresh], holders, None
    old = table[which]
    table[which] = fresh
    holders[old] -= 1
    return fresh * size + position % size, table, holders, (old, fresh)


ROWS = "* size + position % size"
WRITTEN = {
    "position": {"table[which] * size + position % size": "position", "fresh * size + position % size": "position"},
    "no_offset": {ROWS: "* size"},
    "block": {" " + ROWS: ""},
    "block_plus_offset": {ROWS: "+ position % size"},
    "whole_position": {ROWS: "* size + position"},
    "never_copies": {" and holders[table[which]] == 1": ""},
    "always_copies": {"if which < len(table) and holders[table[which]] == 1": "if False"},
    "two_may_share": {"holders[table[which]] == 1": "holders[table[which]] <= 2"},
    "any_shared": {"holders[table[which]] == 1": "all(holders[block] == 1 for block in table)"},
    "old_row": {"return fresh * size + position % size, table": "return old * size + position % size, table"},
    "table_kept": {"    table[which] = fresh\n": ""},
    "old_not_released": {"    holders[old] -= 1\n": ""},
    "old_freed": {"holders[old] -= 1": "holders[old] = 0"},
    "new_not_counted": {"    holders[fresh] += 1\n": ""},
    "copy_reversed": {"(old, fresh)": "(fresh, old)"},
    "copy_not_said": {"(old, fresh)": "None"},
    "highest_free": {"free[0]": "free[-1]"},
    "grows": {'raise ValueError("full")': "free = [len(holders)]\n        holders.append(0)"},
    "takes_anothers": {'raise ValueError("full")':
                       "free = [holders.index(min(holders))]\n        holders[free[0]] = 0"},
    "last_block": {"which = position // size": "which = max(position // size, len(table) - 1)"},
    "copy_in_rows": {"(old, fresh)": "(old * size, fresh * size)"},
    "added_on_copy": {"table[which] = fresh": "table.append(fresh)"},
    "new_is_copied": {"[*table, fresh], holders, None": "[*table, fresh], holders, (None, fresh)"},
    "zero_is_none": {"free = [block for block in range(len(holders)) if not holders[block]]":
                     "free = [next((block for block in range(len(holders)) if not holders[block]), None)]",
                     "if not free:": "if not free[0]:"},
    "refuses_early": {"    which = position // size\n": "    which = position // size\n    if 0 not in holders:\n "
                      "       raise ValueError('full')\n"},
}  # fmt: skip

# --------------------------------------------------------------------------------------------------- paged_attention


def each_alone(query, key, value, tables, lengths, scale):
    """A sequence at a time, its blocks laid side by side and cut to its length."""
    size = key.shape[1]
    share = query.shape[1] // key.shape[2]
    out = torch.empty_like(query)
    for n in range(len(query)):
        count = int(lengths[n])
        rows = [int(tables[n, p // size]) * size + p % size for p in range(count)]
        k, v = (pool.reshape(-1, *pool.shape[2:])[rows] for pool in (key, value))
        for h in range(query.shape[1]):
            weights = torch.softmax(scale * k[:, h // share] @ query[n, h], dim=0)
            out[n, h] = weights @ v[:, h // share]
    return out


ROW = "int(tables[n, p // size]) * size + p % size"
ALONE = {
    "no_table": {ROW: "p"},
    "others_table": {"tables[n,": "tables[0,"},
    "first_block": {ROW: "(int(tables[n, 0]) * size + p) % (len(key) * size)"},
    "block_for_row": {ROW: "int(tables[n, p // size])"},
    "block_plus_offset": {ROW: "int(tables[n, p // size]) + p % size"},
    "first_rows": {ROW: "int(tables[n, p // size]) * size"},
    "sorted_blocks": {ROW: "tables[n].sort().values.tolist()[p // size] * size + p % size"},
    "everything": {"int(lengths[n])": "tables.shape[1] * size", "for pool in": ".nan_to_num(0.0) for pool in"},
    "longest": {"int(lengths[n])": "int(lengths.max())", "for pool in": ".nan_to_num(0.0) for pool in"},
    "one_too_many": {"int(lengths[n])": "min(int(lengths[n]) + 1, tables.shape[1] * size)",
                     "for pool in": ".nan_to_num(0.0) for pool in"},
    "begun_blocks": {"int(lengths[n])": "-(-int(lengths[n]) // size) * size"},
    "itself_left_out": {"int(lengths[n])": "max(int(lengths[n]) - 1, 1)"},
    "no_softmax": {"torch.softmax(scale * k[:, h // share] @ query[n, h], dim=0)":
                   "scale * k[:, h // share] @ query[n, h]"},
    "mean": {"torch.softmax(scale * k[:, h // share] @ query[n, h], dim=0)": "torch.full((count,), 1 / count)"},
    "heads_in_turn": {"h // share": "h % key.shape[2]"},
    "heads_shuffled": {"out[n, h] =": "out[n, h % share * key.shape[2] + h // share] ="},
    "no_scale": {"softmax(scale *": "softmax(1.0 *"},
    "root_scale": {"softmax(scale *": "softmax(query.shape[-1] ** -0.5 *"},
    "scale_twice": {"softmax(scale *": "softmax(scale * scale *"},
    "divided": {"softmax(scale *": "softmax(1 / scale *"},
    "swapped": {"k, v = (": "v, k = ("},
}  # fmt: skip


def gathered(query, key, value, tables, lengths, scale):
    """All at once, with heads in groups."""
    N, H, d = query.shape
    G = key.shape[2]
    k, v = (pool[tables].flatten(1, 2) for pool in (key, value))
    past = torch.arange(k.shape[1])[None] >= lengths[:, None]
    k, v = torch.where(past[..., None, None], 0.0, k), torch.where(past[..., None, None], 0.0, v)
    logits = (query.view(N, G, H // G, 1, d) * k.transpose(1, 2)[:, :, None]).sum(-1) * scale
    weights = torch.where(past[:, None, None], -math.inf, logits).softmax(3)
    return (weights @ v.transpose(1, 2)).reshape(N, H, d)


GATHERED = {
    "full_blocks": {">= lengths[:, None]": ">= lengths[:, None] // key.shape[1] * key.shape[1]"},
    "zero_is_nobody": {
        ">= lengths[:, None]": ">= lengths[:, None]; past = past | (tables == 0).repeat_interleave(key.shape[1], 1)"
    },
    "over_batch": {".softmax(3)": ".softmax(0)"},
    "over_groups": {".softmax(3)": ".masked_fill(past[:, None, None], -1e9).softmax(1) * ~past[:, None, None]"},
    "nan": {", torch.where(past[..., None, None], 0.0, v)": ", v"},
    "zero_mask": {"-math.inf, logits": "0.0, logits"},
    "over_heads": {".softmax(3)": ".masked_fill(past[:, None, None], -1e9).softmax(2) * ~past[:, None, None]"},
}

# --------------------------------------------------------------------------------------------------------- latencies


def waits(arrived, tokens, percent):
    """Times by request first."""
    times = {id: [second for second, who in tokens if who == id] for id in arrived}
    firsts = [seconds[0] - arrived[id] for id, seconds in times.items() if seconds]
    gaps = [seconds[i] - seconds[i - 1] for seconds in times.values() for i in range(1, len(seconds))]

    def share(values):
        if not values:
            return None
        values = sorted(values)
        return next(v for i, v in enumerate(values) if 100 * (i + 1) >= percent * len(values))

    return share(firsts), share(gaps)


NEXT = "next(v for i, v in enumerate(values) if 100 * (i + 1) >= percent * len(values))"
WAITS = {
    "from_the_start": {"seconds[0] - arrived[id]": "seconds[0] - min(arrived.values())"},
    "not_since_arrival": {"seconds[0] - arrived[id]": "seconds[0]"},
    "to_the_last": {"seconds[0] - arrived[id]": "seconds[-1] - arrived[id]"},
    "waiting_as_zero": {"seconds[0] - arrived[id] for id, seconds in times.items() if seconds":
                        "seconds[0] - arrived[id] if seconds else 0.0 for id, seconds in times.items()"},
    "waiting_as_infinite": {"seconds[0] - arrived[id] for id, seconds in times.items() if seconds":
                            "seconds[0] - arrived[id] if seconds else math.inf for id, seconds in times.items()"},
    "between_any_two": {"for seconds in times.values() for i in": "for seconds in [[t for t, _ in tokens]] for i in"},
    "mean_of_each": {"[seconds[i] - seconds[i - 1] for seconds in times.values() for i in range(1, len(seconds))]":
                     "[(s[-1] - s[0]) / (len(s) - 1) for s in times.values() if len(s) > 1]"},
    "longest_of_each": {"[seconds[i] - seconds[i - 1] for seconds in times.values() for i in range(1, len(seconds))]":
                        "[max(s[i] - s[i - 1] for i in range(1, len(s))) for s in times.values() if len(s) > 1]"},
    "since_the_first": {"seconds[i] - seconds[i - 1]": "seconds[i] - seconds[0]"},
    "first_among_gaps": {"return share(firsts), share(gaps)": "return share(firsts), share(firsts + gaps)"},
    "nothing_is_zero": {"return None": "return 0.0"},
    "mean": {NEXT: "statistics.mean(values)"},
    "interpolated": {NEXT: "torch.quantile(torch.tensor(values, dtype=torch.float64), percent / 100).item()"},
    "unsorted": {"values = sorted(values)": "values = list(values)"},
    "from_the_longest": {"values = sorted(values)": "values = sorted(values)[::-1]"},
    "one_further": {NEXT: "values[min(len(values) * percent // 100, len(values) - 1)]"},
    "rounded_down": {NEXT: "values[max(0, len(values) * percent // 100 - 1)]"},
    "float_rank": {NEXT: "values[math.ceil(len(values) * (percent / 100)) - 1]"},
    "zeros_left_out": {"for i in range(1, len(seconds))]": "for i in range(1, len(seconds)) if seconds[i] > "
                       "seconds[i - 1]]"},
    "each_once": {"values = sorted(values)": "values = sorted(set(values))"},
    "swapped_pair": {"return share(firsts), share(gaps)": "return share(gaps), share(firsts)"},
    "percentile_of_each": {
        "return share(firsts), share(gaps)": "each = [share([b - a for a, b in zip(s, s[1:])]) for s in times.values()]"
        "; return share(firsts), share([gap for gap in each if gap is not None])"},
    "rank_from_0": {NEXT: "values[-(-len(values) * percent // 100)]"},
}  # fmt: skip

NEAR_MISSES = {
    "12.left_pad": wrong(padded, PADDED),
    "12.bucket": wrong(alike, ALIKE),
    "12.next_step": wrong(planned, PLANNED),
    "12.place": wrong(written, WRITTEN),
    "12.paged_attention": wrong(each_alone, ALONE) + wrong(gathered, GATHERED),
    "12.latencies": wrong(waits, WAITS),
}

RIGHT_ANSWERS = {
    "12.left_pad": [padded],
    "12.bucket": [alike],
    "12.next_step": [planned],
    "12.place": [written],
    "12.paged_attention": [each_alone, gathered],
    "12.latencies": [waits],
}
