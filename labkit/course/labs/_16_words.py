"""Lab 16: the words for the mistakes that its checks know."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._16_mistakes import Dispatch, NodeLimited, Splits
from labkit.course.labs._16_more_mistakes import Pack, Replicate, StepTime


def known(kind: type, words: dict[str, str]) -> tuple[Mistake, ...]:
    """A mistake for each name that the class knows."""
    return tuple(Mistake(name, says, like=kind(name)) for name, says in words.items())


SPLITS = known(
    Splits,
    {
        "transposed": "Sent and received are exchanged. Row s of the first says what rank s *sends* to each.",
        "receives_what_it_sends": "A rank was said to receive what it sends. It receives what the others send *to it*: "
        "the same matrix, transposed.",
        "even_blocks": "Experts were taken to live in equal blocks. Where they live says `owner_E`; placement moves "
        "them.",
        "in_turn": "Experts were dealt out to the ranks in turn. Where they live says `owner_E`.",
        "own_left_out": "What stays on its rank was left out. It does not cross a wire, but all_to_all_single wants a "
        "count for every rank, itself too.",
        "first_choice": "Only the first choice of each token was counted. It has K of them.",
        "visits_by_choice": "The visits count choices. A token with two experts on one rank visits it once.",
        "each_token_once": "The splits count each token once a rank. One row travels for each choice here.",
        "visits_transposed": "The visits are the wrong way round: row s says whom rank s's tokens visit.",
        "experts_visited": "Experts that are visited were counted, not tokens that visit.",
        "ranks_with_experts": "Ranks behind the last expert were left out. Every rank has its row and its column, "
        "also one without experts: minlength=num_ranks.",
    },
)

DISPATCH = known(
    Dispatch,
    {
        "not_restored": "The rows came back in the order in which they were sent, and were taken for tokens in order. "
        "Undo the sort.",
        "wrong_inverse": "The sort was done again instead of undone. back[order] sorts; back[order.argsort()] (or "
        "y[order] = back) undoes it.",
        "counts_not_exchanged": "A rank cannot know what it will receive. Send the counts first: one number to each "
        "rank.",
        "same_way_back": "On the way back the counts change places: what was received is sent, what was sent is "
        "received.",
        "leaves_with_nothing": "A rank without tokens returned early, and the others wait for it. A collective wants "
        "everybody, with nothing to send too; its experts are needed as well.",
        "not_sorted": "The rows were sent in the order of tokens. The exchange cuts them into consecutive pieces: "
        "first all rows for rank 0, then all for rank 1.",
        "by_expert": "The rows were sorted by expert. Experts need not live in order: sort by the expert's rank.",
        "ids_unsorted": "The ids of the experts went out in another order than the rows.",
        "wrong_token": "Row n was taken from token n mod T. Choice n of the flattened ids belongs to token n // K.",
        "scores_too_early": "The scores were applied to rows in sorted order. They belong to tokens in order: restore "
        "first.",
        "unweighted": "The scores are missing.",
        "weighted_inputs": "The scores were multiplied into the rows before they went to the experts. An expert is not "
        "linear: weigh what comes back.",
        "own_ids": "The experts computed other ranks' rows with this rank's ids. The ids travel as the rows do: a "
        "second exchange.",
        "stayed_home": "No row left its rank: experts of other ranks were computed here, where their weights are not.",
        "renormalised": "The scores were renormalised. Take them as they are; the router decided that.",
        "mean": "The mean of the K results was taken. It is their weighted sum.",
        "first_only": "Only the first choice came into the sum.",
        "detached": "The values are right, and no gradient flows back through the exchange: tokens would never learn "
        "what experts made of them.",
    },
)

NODE_LIMITED = known(
    NodeLimited,
    {
        "no_limit": "There is no limit on nodes: these are the best K of all.",
        "best_expert": "A node was judged by its best expert alone. It is the sum of its best K/M.",
        "whole_node": "A node was judged by the sum of all its experts. Only its best K/M can be chosen: sum these.",
        "best_k": "A node was judged by its best K experts. With M nodes, K/M of each are what counts.",
        "best_m": "A node was judged by its best M experts. M is the number of nodes; K/M experts count.",
        "always_two": "A node was judged by its best two. That is K/M for DeepSeek-V3 (8 and 4); here K and M vary.",
        "zero_mask": "Closed nodes were masked with 0, which beats a score below zero. Strike out with −∞.",
        "equal_shares": "Each of the M nodes gave K/M experts. The limit is on nodes only: take the best K that live "
        "on them.",
        "nodes_in_turn": "Expert e was taken to live on node e mod N. Nodes hold consecutive experts.",
        "mask_in_turn": "The right nodes were found, and the experts e mod N of them opened. Nodes hold consecutive "
        "experts: repeat_interleave, not repeat.",
        "closed_instead": "The best nodes were closed, and the others left open.",
        "within_nodes": "The ids count within a node. They are experts of the whole layer.",
        "in_order_of_ids": "The experts stand in order of their ids. Best first.",
    },
)

REPLICATE = known(
    Replicate,
    {
        "hottest_takes_all": "Every copy went to the expert that was hottest at first. A copy halves what each bears: "
        "ask again after each.",
        "one_each": "The hottest experts got one copy each, however hot. Ask after every copy who bears most now.",
        "in_proportion": "The slots were shared out in proportion and rounded. That need not sum up to the slots, and "
        "it is not what makes the largest load per copy smallest.",
        "halved_again": "The load was halved with each copy. Three copies bear a third each, not a quarter: divide the "
        "load by the copies.",
        "with_the_new_one": "Experts were compared by what a copy would bear *after* the next one is made. The one "
        "that bears most *now* gets it.",
        "cold_dropped": "An expert without load lost its place. Each keeps one copy: somebody may choose it tomorrow.",
        "last_of_equals": "Of equals the last one got the copy. Take the first.",
        "only_the_extra": "Only the additional copies were counted. The first one is a copy too.",
        "slots": "These are the experts in the slots. Asked was how many copies each expert has.",
        "too_few_accepted": "There are fewer slots than experts, and some were left out. Raise ValueError.",
    },
)

PACK = known(
    Pack,
    {
        "no_limit": "A rank holds more slots than another. Memory is the same on all: S/R slots each.",
        "in_order": "The slots were placed as they came. Begin with the heaviest: what is light evens out at the end.",
        "lightest_first": "The lightest were placed first, and the heaviest at the end find no gap.",
        "dealt": "The slots were dealt out in turn. The next goes to the rank that bears least so far.",
        "to_and_fro": "The slots were dealt out to and fro. The next goes to the rank that bears least so far.",
        "blocks": "Neighbours in the order of load share a rank: the heaviest all together.",
        "fewest_slots": "The next went to the rank with the fewest slots. It goes to the one with the least load that "
        "has room.",
        "last_of_equals": "Of ranks alike the last one was taken. Take the first.",
        "last_slot_first": "Of slots alike the last one was placed first. Sort by minus the load alone; sorted() is "
        "stable.",
        "in_order_of_load": "The ranks stand in the order in which slots were placed. Position s says where slot s is.",
        "by_rank": "These are the slots, rank by rank. Asked was the rank of each slot.",
        "remainder_accepted": "The slots cannot be shared evenly, and were taken all the same. Raise ValueError.",
    },
)

STEP_TIME = known(
    StepTime,
    {
        "bits_for_bytes": "A network is sold in bits: 400 Gbit/s are 50 GB/s. Divide by 8.",
        "nvlink_in_bits": "NVLink is given in bytes already.",
        "links_in_turn": "The two links were used one after the other. They are different wires, and work at once: the "
        "slower one counts.",
        "network_only": "NVLink was left out. With few nodes a token it can be the slower of the two.",
        "twofold": "The exchange was counted twice. The bytes are those of dispatch and combine together.",
        "never_hidden": "With overlap the longer of arithmetic and exchange counts, not their sum.",
        "always_hidden": "Without overlap the exchange has to be waited for: add it.",
        "upside_down": "Overlap was taken the wrong way round.",
        "no_bubble": "The bubble is missing: the last stage begins after stages − 1 slots.",
        "one_too_many": "One slot too many: micro-batches + stages − 1.",
        "in_turn": "The stages worked one after the other. They work at once, on different micro-batches.",
        "of_the_work": "The bubble was given as a share of the work. Asked is the share of the *step* that a stage is "
        "idle: of micro-batches + stages − 1 slots.",
        "bubble_in_seconds": "The bubble was given in seconds. Asked is a share.",
        "links_only": "Only the links were asked what binds. Arithmetic can take longest as well.",
        "binary_giga": "Giga was taken for 2³⁰. Links are sold in 10⁹.",
        "shortest": "What takes the longest binds, not what takes the shortest.",
    },
)
