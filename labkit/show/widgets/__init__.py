"""Pictures that can be touched: each is a .py with its state and a .js that draws it."""
