"""Who holds which block of a paged KV cache; the tensors themselves are in `serve.cache.paged`.

A block is a number below `num_blocks` and stands for `block_size` positions of every layer. It is in one of three
states: **empty** (nobody holds it, nothing in it is of use), **held** (by one sequence or more), or **kept** (nobody
holds it, but it is full, and a later prompt that starts with the same tokens may take it up again). Kept blocks are
given away only when no empty one is left, the one that was let go longest ago first.

Source: Kwon et al. 2023, PagedAttention (arXiv 2309.06180), sections 4.2 to 4.4. Left out on purpose: swapping to the
host's memory, since computing again is as fast for short sequences (section 7.3) and needs no second pool.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256

from labkit.core.whole import need_whole


@lru_cache(maxsize=256)
def root(salt: str = "") -> bytes:
    """The digest in front of a first block; sequences of different salts (model, adapter, tenant) share nothing."""
    return sha256(b"first block of " + salt.encode("utf-8", "surrogatepass")).digest()


def chain(before: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full block: a digest of its tokens and of the block before it, so of all tokens up to its end.

    SHA-256, because a prompt is written by a stranger: with a hash whose collisions can be made, one prompt could be
    answered from the keys and values of another.

    Args:
        before: digest of the block before, or `root`; tokens: of this block, each 0 ≤ id < 2⁶³.

    >>> chain(root(), [1, 2]) == chain(root(), [1, 2])
    True
    >>> chain(root(), [1, 2]) == chain(chain(root(), [1]), [2])
    False
    """
    return sha256(before + struct.pack(f"{len(tokens)}q", *tokens)).digest()


class BlockPool:
    """Blocks, how many hold each, and which full ones can be found again by their digest.

    Args:
        num_blocks, block_size: how many, and positions in each.

    Raises ValueError for sizes below one.

    >>> pool = BlockPool(num_blocks=3, block_size=2)
    >>> (block,) = pool.allocate(1)
    >>> pool.keep(block, chain(root(), [7, 8]))
    >>> pool.release([block])
    >>> pool.free, pool.find([chain(root(), [7, 8])]) == [block]
    (3, True)
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        need_whole("num_blocks", num_blocks)
        need_whole("block_size", block_size)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.references = [0] * num_blocks
        self.evictions = 0
        self._empty = list(range(num_blocks - 1, -1, -1))  # taken from the end: low numbers first
        self._kept: OrderedDict[int, None] = OrderedDict()  # longest ago first
        self._digests: list[bytes | None] = [None] * num_blocks
        self._places: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be allocated: empty ones and kept ones."""
        return len(self._empty) + len(self._kept)

    @property
    def kept(self) -> int:
        """Blocks that nobody holds and whose contents can still be found."""
        return len(self._kept)

    @property
    def kept_blocks(self) -> tuple[int, ...]:
        """Those blocks, the one that is given away first in front."""
        return tuple(self._kept)

    @property
    def held(self) -> int:
        """Blocks that at least one sequence holds."""
        return self.num_blocks - self.free

    def allocate(self, count: int) -> list[int]:
        """Blocks for one holder, their contents meaningless. Raises ValueError if there are not so many."""
        if not 0 <= count <= self.free:
            raise ValueError(f"{count} blocks are asked for and {self.free} are free; look at `free` first")
        empty = self._empty
        blocks = [empty.pop() if empty else self._evict() for _ in range(count)]
        for block in blocks:
            self.references[block] = 1
        return blocks

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        self._unname(block)
        self.evictions += 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each. Raises ValueError for an empty one: what it held may be gone."""
        for block in blocks:
            if self.references[block] == 0:
                if block not in self._kept:
                    raise ValueError(f"block {block} is empty; only blocks that are held or were found can be shared")
                del self._kept[block]
            self.references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder fewer for each block of a table.

        The last block is let go first and so given away first: a prefix is of use without its end, never the end
        without what stands before it. Raises ValueError if nobody holds one.
        """
        references = self.references
        for block in reversed(blocks):
            left = references[block] - 1
            if left < 0:
                raise ValueError(f"block {block} is released more often than it was taken")
            references[block] = left
            if left:
                continue
            if self._digests[block] is None:
                self._empty.append(block)
            else:
                self._kept[block] = None

    def shared(self, block: int) -> bool:
        """Whether more than one sequence holds it; who wants to write there needs a copy first."""
        return self.references[block] > 1

    def keep(self, block: int, digest: bytes) -> None:
        """A held block is full and computed: let it be found. Of two equal blocks the first one stays the one found."""
        if self.references[block] == 0 or self._digests[block] not in (None, digest):
            raise ValueError(f"block {block} is not held, or holds something else; only its holder can name it, once")
        if digest not in self._places:
            self._places[digest] = block
            self._digests[block] = digest

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning; nobody holds them more than before (see `share`)."""
        found = []
        for digest in digests:
            block = self._places.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def free_without(self, blocks: Iterable[int]) -> int:
        """How many would be free if these, as `find` gave them, were held."""
        references = self.references
        return self.free - sum(references[block] == 0 for block in blocks)

    def forget(self, blocks: Iterable[int] | None = None) -> None:
        """Let these (None: all) never be found again, as when their contents turned out wrong. Who holds them stays."""
        for block in range(self.num_blocks) if blocks is None else blocks:
            if self._unname(block) and block in self._kept:
                del self._kept[block]
                self._empty.append(block)

    def _unname(self, block: int) -> bool:
        digest, self._digests[block] = self._digests[block], None
        if digest is None:
            return False
        del self._places[digest]
        return True

    def check(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Raise RuntimeError if the books contradict themselves, or the block tables of all who hold something.

        Args:
            tables: every block table there is; without it, holders are not counted.
        """
        held = {block for block, count in enumerate(self.references) if count}
        wrong = []
        if sorted([*self._empty, *self._kept, *held]) != list(range(self.num_blocks)):
            wrong.append("a block is lost, or empty, kept and held at once")
        if any(count < 0 for count in self.references):
            wrong.append("a block has fewer than no holders")
        named = {digest: block for block, digest in enumerate(self._digests) if digest is not None}
        if named != self._places or len(named) != self.num_blocks - self._digests.count(None):
            wrong.append("a digest leads to another block than the one that bears it")
        if any(self._digests[block] is not None for block in self._empty):
            wrong.append("an empty block can be found")
        if any(self._digests[block] is None for block in self._kept):
            wrong.append("a kept block cannot be found")
        if tables is not None:
            counts = Counter(block for table in tables for block in table)
            if any(counts[block] != count for block, count in enumerate(self.references)) or len(counts) > len(held):
                wrong.append("the tables hold other blocks than the pool has counted")
        if wrong:
            raise RuntimeError(f"the block pool is broken: {'; '.join(wrong)}")
