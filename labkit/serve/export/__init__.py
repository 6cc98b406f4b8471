"""Export: a model as a Hugging Face folder that other servers read, or as an ONNX file with cache and experts.

Nothing is loaded here; each name below is, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "to_hf": "labkit.serve.export.hf",
    "HfReport": "labkit.serve.export.hf",
    "check_folder": "labkit.serve.export.folder",
    "end_of_answers": "labkit.serve.export.folder",
    "Finding": "labkit.serve.export.folder",
    "FolderReport": "labkit.serve.export.folder",
    "served_by": "labkit.serve.export.known",
    "Served": "labkit.serve.export.known",
    "to_onnx": "labkit.serve.export.onnx_file",
    "OnnxReport": "labkit.serve.export.onnx_file",
    "OnnxModel": "labkit.serve.export.onnx_run",
    "Past": "labkit.serve.export.onnx_run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"labkit.serve.export has no {name!r}; it has {', '.join(sorted(_HOMES))}")
