"""How experts are computed: `reference` says what, `dispatch` and `routes` who, `experts` and `topk` how on a GPU.

`attention` is one sequence's or a padded batch's; `paged_attention` reads the blocks that serving keeps.
"""
