"""How experts are computed: `reference` says what, `dispatch` and `routes` who, `experts` and `topk` how on a GPU."""
