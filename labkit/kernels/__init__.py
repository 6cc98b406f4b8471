"""How experts are computed: `reference` (the specification), `dispatch` (which one runs), `traffic` (its cost)."""
