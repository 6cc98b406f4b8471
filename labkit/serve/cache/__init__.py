"""The paged cache: who holds which block. No torch is loaded here.

`BlockPool` keeps the books; the tensors are in `serve.cache.paged`, which loads torch.
"""

from labkit.serve.cache.blocks import BlockPool, chain, root

__all__ = ["BlockPool", "chain", "root"]
