"""The tokenizer of a folder as its file says it, without transformers, which takes seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read(folder: str | Path) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a folder; it neither cuts texts nor fills them up.

    Raises FileNotFoundError without a tokenizer.json.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokenizer.json in {file.parent}; save a fast tokenizer there")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
