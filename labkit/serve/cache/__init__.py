"""The paged cache: who holds which block. No torch is loaded here.

`BlockPool` keeps the books; the tensors that the blocks are rows of belong to the engine.
"""

from labkit.serve.cache.blocks import BlockPool, chain, root

__all__ = ["BlockPool", "chain", "root"]
