"""An exported model, run by ONNX Runtime on the CPU; no torch is needed for it, nor loaded.

Left out on purpose: sampling, batches whose members come and go (see `serve.engine`).

Shape suffixes: B batch, S new positions, P cached positions, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.core.config import ModelConfig
from labkit.core.whole import need_whole
from labkit.serve.export.need import need


@dataclass(frozen=True, eq=False)
class Past:
    """What the model keeps of the positions it has seen, as the runtime's own tensors.

    Args:
        values: two for each layer. batch: B; length: P.
    """

    values: tuple[Any, ...]
    batch: int
    length: int


class OnnxModel:
    """A file that `to_onnx` wrote.

    Args:
        path: of the file; its weights, if they stand apart, are found beside it.
        threads: of one operator; 0: as many as the runtime thinks right.

    `config` is the model's, `eos_token_id` what was noted, or None. Raises ValueError for a file that is not there, is
    none of ours, or cannot be loaded, and ModuleNotFoundError without `onnxruntime`.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        need_whole("threads", threads, 0)
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"there is no {self.path}; `to_onnx` or `labkit export --to onnx` writes one")
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common class
            raise ValueError(f"ONNX Runtime cannot load {self.path}: {error}") from None
        notes = self._session.get_modelmeta().custom_metadata_map
        if "labkit.config" not in notes:
            raise ValueError(f"{self.path} was not written by labkit, so its inputs are not known here")
        self.config = ModelConfig.from_dict(json.loads(notes["labkit.config"]))
        self.eos_token_id: int | None = json.loads(notes["labkit.eos_token_id"])
        self._kept = [(value.name, value.shape) for value in self._session.get_inputs()[2:]]
        self._results = [value.name for value in self._session.get_outputs()]
        self._tensor = runtime.OrtValue.ortvalue_from_numpy

    def empty(self, batch: int) -> Past:
        """The past before the first token of so many rows."""
        need_whole("batch", batch)
        shapes = ([batch, *(0 if size == "past" else size for size in shape[1:])] for _, shape in self._kept)
        return Past(tuple(self._tensor(np.zeros(shape, np.float32)) for shape in shapes), batch, 0)

    def logits(self, ids_BS: Any, past: Past | None = None, attention_mask: Any = None) -> tuple[np.ndarray, Past]:
        """Logits [B, S, V] of what follows every new position, and the past for the next call.

        Args:
            ids_BS: [B, S] integers in [0, V): lists, NumPy or torch.
            past: what the last call gave; None: nothing stands before ids_BS.
            attention_mask: [B, P + S], 1 where a token is real; None: all are.

        Raises ValueError for ids, masks and pasts that do not fit.
        """
        ids_BS = self._ids(ids_BS)
        past = self.empty(len(ids_BS)) if past is None else past
        mask = self._mask(attention_mask, ids_BS, past)
        given = {"input_ids": self._tensor(ids_BS), "attention_mask": self._tensor(mask)}
        given |= {name: value for (name, _), value in zip(self._kept, past.values, strict=True)}
        logits, *kept = self._session.run_with_ort_values(self._results, given)
        return logits.numpy(), Past(tuple(kept), len(ids_BS), mask.shape[1])

    def generate(
        self, ids_BS: Any, max_new_tokens: int, attention_mask: Any = None, *, eos_token_id: int | None = None,
        pad_token_id: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The prompts and their greedy continuations, as `nn.generate.generate` without sampling.

        Args:
            ids_BS: [B, S]; shorter prompts are padded on the left. attention_mask: [B, S], 1 where a token is real.
            eos_token_id: ends a row; None: what the file notes, if anything. pad_token_id: stands after it, by default
                the same.

        Returns [B, S + n] int64, n ≤ max_new_tokens. Raises ValueError for more tokens than the model was made for.
        """
        ids_BS, eos = self._ids(ids_BS), self.eos_token_id if eos_token_id is None else eos_token_id
        need_whole("max_new_tokens", max_new_tokens)
        total, limit = ids_BS.shape[1] + max_new_tokens, self.config.max_context
        if total > limit:
            raise ValueError(
                f"{ids_BS.shape[1]} tokens of prompt and {max_new_tokens} new ones are {total}; the model was made for "
                f"{limit}: shorten the prompt, or ask for fewer"
            )
        past = self.empty(len(ids_BS))
        mask = self._mask(attention_mask, ids_BS, past)
        if not mask[:, -1].all():
            raise ValueError("a row ends with padding, so its answer would follow padding; pad on the left")
        fresh, ended_B = ids_BS, np.zeros(len(ids_BS), bool)
        for _ in range(max_new_tokens):
            logits, past = self.logits(fresh, past, mask)
            next_B = logits[:, -1].argmax(-1)
            if eos is not None:
                next_B = np.where(ended_B, eos if pad_token_id is None else pad_token_id, next_B)
                ended_B |= next_B == eos
            fresh = next_B[:, None]
            ids_BS, mask = np.concatenate([ids_BS, fresh], 1), np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            if ended_B.all():
                break
        return ids_BS

    def _ids(self, ids_BS: Any) -> np.ndarray:
        ids = np.asarray(ids_BS)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
            raise ValueError(f"ids_BS has shape {ids.shape} and dtype {ids.dtype}; give integers [B, S]")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(
                f"token ids run from {ids.min()} to {ids.max()}, outside the vocabulary of {self.config.vocab_size}; "
                "are they of this model's tokenizer?"
            )
        return np.ascontiguousarray(ids, np.int64)

    def _mask(self, attention_mask: Any, ids_BS: np.ndarray, past: Past) -> np.ndarray:
        (B, S), P = ids_BS.shape, past.length
        if past.batch != B or len(past.values) != len(self._kept):
            raise ValueError(
                f"past is of {past.batch} rows and {len(past.values) // 2} layers, ids_BS of {B} rows for a model of "
                f"{len(self._kept) // 2}; give what the last call on these rows gave"
            )
        if attention_mask is None:
            return np.ones((B, P + S), np.int64)
        mask = np.asarray(attention_mask)
        if mask.shape != (B, P + S):
            raise ValueError(
                f"attention_mask has shape {mask.shape}; expected {(B, P + S)}, {P} cached ones among them"
            )
        return np.ascontiguousarray(mask != 0, np.int64)
