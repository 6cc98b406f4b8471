"""Answers to lab 16 as learners might write them: wrong ones with the mistake to be found, and right ones.

Wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import heapq

import torch
from edits import wrong

# ------------------------------------------------------------------------------------------------------------ splits


def counted(ids_per_rank, owner, num_ranks):
    """With loops and numbers."""
    send = torch.zeros(num_ranks, num_ranks, dtype=torch.int64)
    visits = torch.zeros_like(send)
    for s, ids in enumerate(ids_per_rank):
        for token in ids.tolist():
            ranks = [owner[e].item() for e in token]
            for d in ranks:
                send[s, d] += 1
            for d in set(ranks):
                visits[s, d] += 1
    receive = torch.empty_like(send)
    for s in range(num_ranks):
        for d in range(num_ranks):
            receive[d, s] = send[s, d]
    return send, receive, visits


COUNTED = {
    "transposed": {"send[s, d] += 1": "send[d, s] += 1"},
    "receives_what_it_sends": {"receive[d, s] = send[s, d]": "receive[s, d] = send[s, d]"},
    "even_blocks": {"owner[e].item()": "e // max(len(owner) // num_ranks, 1) % num_ranks"},
    "in_turn": {"owner[e].item()": "e % num_ranks"},
    "own_left_out": {"for d in ranks:": "for d in [d for d in ranks if d != s]:",
                     "in set(ranks)": "in set(ranks) - {s}"},
    "first_choice": {"for e in token]": "for e in token[:1]]"},
    "visits_by_choice": {"in set(ranks)": "in ranks"},
    "each_token_once": {"for d in ranks:": "for d in set(ranks):"},
    "visits_transposed": {"visits[s, d] += 1": "visits[d, s] += 1"},
    "experts_visited": {"    receive =": "    for s, ids in enumerate(ids_per_rank):\n"
                        "        visits[s] = owner[ids.unique()].bincount(minlength=num_ranks)\n    receive ="},
    "ranks_with_experts": {"return send, receive, visits":
                           "n = owner.max() + 1\n    return send[:, :n], receive[:n], visits[:, :n]"},
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- dispatch


def by_lists(x, ids, scores, owner, num_ranks, exchange, experts):
    """The rows for each rank picked out one rank after the other, and results added where they belong."""
    T, K = ids.shape
    picked = [(owner[ids] == rank).nonzero() for rank in range(num_ranks)]
    send = [len(part) for part in picked]
    token, choice = torch.cat(picked).unbind(1)
    one = [1] * num_ranks
    receive = exchange(torch.tensor(send), one, one).tolist()
    rows = exchange(x[token], send, receive)
    wanted = exchange(ids[token, choice], send, receive)
    results = exchange(experts(rows, wanted), receive, send)
    weighted = results * scores[token, choice][:, None]
    return torch.zeros_like(x).index_add(0, token, weighted)


BY_LISTS = {
    "not_restored": {"    return torch": "    weighted = results * scores.reshape(-1, 1)\n    return torch",
                     "index_add(0, token": "index_add(0, torch.arange(T * K) // K"},
    "wrong_inverse": {"    weighted = results": "    order = token * K + choice\n    results = results[order]\n"
                      "    token, choice = torch.arange(T * K) // K, torch.arange(T * K) % K\n    weighted = results"},
    "counts_not_exchanged": {"exchange(torch.tensor(send), one, one).tolist()": "send"},
    "same_way_back": {"wanted), receive, send)": "wanted), send, receive)"},
    "leaves_with_nothing": {"    picked =": "    if T == 0:\n        return x.clone()\n    picked ="},
    "not_sorted": {"torch.cat(picked).unbind(1)": "(owner[ids] >= 0).nonzero().unbind(1)"},
    "ids_unsorted": {"exchange(ids[token, choice],": "exchange(ids.flatten(),"},
    "wrong_token": {"exchange(x[token],": "exchange(x[(token * K + choice) % max(T, 1)],"},
    "scores_too_early": {"scores[token, choice][:, None]": "scores.reshape(-1)[:, None]"},
    "unweighted": {" * scores[token, choice][:, None]": ""},
    "renormalised": {"scores[token, choice]": "(scores / scores.sum(1, keepdim=True))[token, choice]"},
    "mean": {"scores[token, choice]": "(scores[token, choice] / K)"},
    "first_only": {"scores[token, choice]": "scores[token, choice].where(choice == 0, 0.0)"},
    "detached": {"exchange(x[token],": "exchange(x.detach()[token],"},
    "weighted_inputs": {"exchange(x[token],": "exchange(x[token] * scores[token, choice][:, None],",
                        "weighted = results * scores[token, choice][:, None]": "weighted = results"},
    "own_ids": {"exchange(ids[token, choice], send, receive)": "ids[token, choice]"},
    "stayed_home": {"    one =": "    y = experts(x[token], ids[token, choice]) * scores[token, choice][:, None]\n"
                    "    return torch.zeros_like(x).index_add(0, token, y)\n    one ="},
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------ node_limited


def token_by_token(scores, num_nodes, max_nodes, top_k):
    """In Python, one token after the other."""
    each = scores.shape[1] // num_nodes
    found = []
    for row in scores.tolist():
        worth = []
        for n in range(num_nodes):
            best = sorted(row[n * each : (n + 1) * each], reverse=True)
            worth.append(sum(best[: top_k // max_nodes]))
        nodes = sorted(range(num_nodes), key=lambda n: -worth[n])[:max_nodes]
        near = [e for e in range(len(row)) if e // each in nodes]
        found.append(sorted(near, key=lambda e: -row[e])[:top_k])
    return torch.tensor(found, dtype=torch.int64).view(-1, top_k)


TOKEN_BY_TOKEN = {
    "no_limit": {" if e // each in nodes": ""},
    "best_expert": {"best[: top_k // max_nodes]": "best[:1]"},
    "whole_node": {"best[: top_k // max_nodes]": "best"},
    "best_k": {"best[: top_k // max_nodes]": "best[:top_k]"},
    "best_m": {"best[: top_k // max_nodes]": "best[:max_nodes]"},
    "always_two": {"best[: top_k // max_nodes]": "best[:2]"},
    "zero_mask": {"near = ": "row = [s if e // each in nodes else 0.0 for e, s in enumerate(row)]\n        near = ",
                  " if e // each in nodes]": "]"},
    "equal_shares": {"        found": "        near = [e for n in nodes for e in sorted("
                     "range(n * each, n * each + each), key=lambda e: -row[e])[: top_k // max_nodes]]\n        found"},
    "nodes_in_turn": {"row[n * each : (n + 1) * each]": "row[n::num_nodes]", "e // each": "e % num_nodes"},
    "mask_in_turn": {"e // each": "e % num_nodes"},
    "closed_instead": {"if e // each in nodes]": "if e // each not in nodes or len(nodes) == num_nodes]\n"
                       "        near += [e for e in range(len(row)) if e not in near]\n"
                       "        row = [s if e // each not in nodes or max_nodes == num_nodes else -1e9 - e "
                       "for e, s in enumerate(row)]"},
    "within_nodes": {"found.append(sorted(near, key=lambda e: -row[e])[:top_k])":
                     "found.append([e % each for e in sorted(near, key=lambda e: -row[e])[:top_k]])"},
    "in_order_of_ids": {"key=lambda e: -row[e])[:top_k])": "key=lambda e: -row[e])[:top_k])\n        found[-1].sort()"},
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------- replicate


def with_a_heap(load, num_slots):
    """Whoever bears most lies on top."""
    spare = num_slots - len(load)
    if spare < 0:
        raise ValueError("too few slots")
    copies = {e: 1 for e in range(len(load))}
    heap = [(-float(value), e) for e, value in enumerate(load)]
    heapq.heapify(heap)
    for _ in range(spare):
        _, e = heapq.heappop(heap)
        copies[e] += 1
        heapq.heappush(heap, (-load[e] / copies[e], e))
    return list(copies.values())


WITH_A_HEAP = {
    "hottest_takes_all": {"(-load[e] / copies[e], e)": "(-load[e], e)"},
    "halved_again": {"-load[e] / copies[e]": "-load[e] / 2 ** (copies[e] - 1)"},
    "one_each": {"(-load[e] / copies[e], e)": "(1e9 * (copies[e] - 1) - load[e], e)"},
    "in_proportion": {"    return list(copies.values())":
                      "    return [max(1, round(v / sum(load) * num_slots)) if any(load) else 1 for v in load]"},
    "with_the_new_one": {"(-float(value), e)": "(-value / 2, e)", "-load[e] / copies[e]": "-load[e] / (copies[e] + 1)"},
    "cold_dropped": {"{e: 1 for e": "{e: 0 for e", "range(spare)": "range(num_slots)",
                     "-load[e] / copies[e]": "-load[e] / (copies[e] + 1)"},
    "last_of_equals": {"(-float(value), e) for": "(-float(value), -e) for", "_, e = heapq.heappop(heap)":
                       "e = -heapq.heappop(heap)[1]", "copies[e], e))": "copies[e], -e))"},
    "only_the_extra": {"list(copies.values())": "[count - 1 for count in copies.values()]"},
    "slots": {"list(copies.values())": "[e for e, count in copies.items() for _ in range(count)]"},
    "too_few_accepted": {'        raise ValueError("too few slots")': "        return [1] * num_slots + [0] * -spare"},
}  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- pack


def with_bins(loads, num_ranks):
    """Lists of slots for bins, and a heap of those that are open."""
    each, rest = divmod(len(loads), num_ranks)
    if rest:
        raise ValueError("uneven")
    bins = [[] for _ in range(num_ranks)]
    heap = [(0, r) for r in range(num_ranks)]
    for minus, slot in sorted((-value, slot) for slot, value in enumerate(loads)):
        total, r = heapq.heappop(heap)
        bins[r].append(slot)
        if len(bins[r]) < each:
            heapq.heappush(heap, (total - minus, r))
    where = {slot: r for r, held in enumerate(bins) for slot in held}
    return [where[slot] for slot in range(len(loads))]


ORDER = "sorted((-value, slot) for slot, value in enumerate(loads))"
DEAL = "total, r = heapq.heappop(heap)"
WITH_BINS = {
    "no_limit": {"if len(bins[r]) < each:": "if True:"},
    "in_order": {ORDER: "[(-value, slot) for slot, value in enumerate(loads)]"},
    "last_slot_first": {ORDER: "sorted((-value, -slot, slot) for slot, value in enumerate(loads))",
                        "for minus, slot in": "for minus, _, slot in"},
    "lightest_first": {ORDER: "sorted(((-value, slot) for slot, value in enumerate(loads)), key=lambda p: -p[0])"},
    "dealt": {DEAL: "total, r = 0, sum(map(len, bins)) % num_ranks"},
    "to_and_fro": {DEAL: "total, turn = 0, sum(map(len, bins)) % (2 * num_ranks)\n"
                   "        r = min(turn, 2 * num_ranks - 1 - turn)"},
    "blocks": {DEAL: "total, r = 0, sum(map(len, bins)) // each"},
    "fewest_slots": {DEAL: "count, total, r = heapq.heappop(heap)", "[(0, r)": "[(0, 0, r)",
                     "(total - minus, r)": "(count + 1, total - minus, r)"},
    "last_of_equals": {"[(0, r) for r in range(num_ranks)]": "[(0, -r) for r in range(num_ranks)]\n"
                       "    heapq.heapify(heap)", DEAL: DEAL + "\n        r = -r",
                       "(total - minus, r)": "(total - minus, -r)"},
    "in_order_of_load": {"[where[slot] for slot in range(len(loads))]": f"[where[slot] for _, slot in {ORDER}]"},
    "by_rank": {"[where[slot] for slot in range(len(loads))]": "[slot for held in bins for slot in held]"},
    "remainder_accepted": {'        raise ValueError("uneven")': "        each += 1"},
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------- step_time


def by_clock(compute, network_bytes, nvlink_bytes, network_gbit, nvlink_gbyte, stages, micro_batches, overlap):
    """The slots one after the other."""
    network = 8 * network_bytes / network_gbit / 1e9
    nvlink = nvlink_bytes / nvlink_gbyte / 1e9
    link = network if network > nvlink else nvlink
    each = compute + link
    if overlap:
        each = sorted([compute, link])[1]
    idle = stages - 1
    busy = micro_batches
    names = sorted([(compute, "compute"), (network, "network"), (nvlink, "nvlink")])
    return (busy + idle) * each, idle / (busy + idle), names[-1][1]


BY_CLOCK = {
    "bits_for_bytes": {"8 * network_bytes": "network_bytes"},
    "nvlink_in_bits": {"nvlink = nvlink_bytes": "nvlink = 8 * nvlink_bytes"},
    "links_in_turn": {"network if network > nvlink else nvlink": "network + nvlink"},
    "network_only": {"network if network > nvlink else nvlink": "network"},
    "twofold": {"network if network > nvlink else nvlink": "2 * max(network, nvlink)"},
    "never_hidden": {"if overlap:": "if False:"},
    "always_hidden": {"if overlap:": "if True:"},
    "upside_down": {"if overlap:": "if not overlap:"},
    "no_bubble": {"(busy + idle) * each": "busy * each"},
    "one_too_many": {"(busy + idle) * each": "(busy + stages) * each"},
    "in_turn": {"(busy + idle) * each": "busy * stages * each"},
    "of_the_work": {"idle / (busy + idle)": "idle / busy"},
    "bubble_in_seconds": {"idle / (busy + idle)": "idle * each"},
    "links_only": {'(compute, "compute"), ': ""},
    "binary_giga": {"1e9": "2**30"},
    "shortest": {"names[-1][1]": "names[0][1]"},
}  # fmt: skip


NEAR_MISSES = {
    "16.splits": wrong(counted, COUNTED),
    "16.dispatch": wrong(by_lists, BY_LISTS),
    "16.node_limited": wrong(token_by_token, TOKEN_BY_TOKEN),
    "16.replicate": wrong(with_a_heap, WITH_A_HEAP),
    "16.pack": wrong(with_bins, WITH_BINS),
    "16.step_time": wrong(by_clock, BY_CLOCK),
}

RIGHT_ANSWERS = {
    "16.splits": [counted],
    "16.dispatch": [by_lists],
    "16.node_limited": [token_by_token],
    "16.replicate": [with_a_heap],
    "16.pack": [with_bins],
    "16.step_time": [by_clock],
}
