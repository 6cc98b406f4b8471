"""How experts are computed: `reference` (the specification), `dispatch` (which implementation runs)."""
