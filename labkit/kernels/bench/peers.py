"""Those who compete: what a contestant is, and how others join from a file.

A file of peers is Python that defines one function, `peers(bench)`: from a name to what it can do, by subject. What it
can do is a function of a case that lays the weights out as it likes, once, untimed, and returns what will be timed:

    def peers(bench):
        def make(case):
            from fast_moe import fused_experts  # an import in here is refused alone, with its reason

            gate_up, down = case.gate_up_E2FD.detach(), case.down_EDF.detach()
            return lambda: fused_experts(case.x_TD, case.topk_ids_TK, case.topk_scores_TK, gate_up, down)

        return {"fast_moe": {"moe": make, "decode": make}}

A function without arguments is a forward pass. With gradients it is a `bench.Call`: the leaves of the graph, by the
names of the case's own (`case.leaves`), and for each that is laid out otherwise, how its gradient is brought back:

    return bench.Call(
        forward, leaves={**case.leaves, "down": mine}, restore={"down": lambda grad: grad.mT}, note="version 1.2"
    )

Cases: `moe`, `decode` and `quant` have x_TD, topk_ids_TK, topk_scores_TK (float32), gate_up_E2FD (gate rows first),
down_EDF, and the forward pass gives [T, D]. `topk` has logits_TE, and gives (ids [T, K], weights [T, K], …): softmax, K
largest, weights that sum to one. `attention` has q_BHSd, k_BGSd, v_BGSd, is causal, scaled by 1/√d, and gives [B, H, S,
d]. All have shape, dtype and device. Their tensors are leaves that require gradients: never write to them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from labkit.core.runtime import Unavailable
from labkit.kernels.bench.result import Absent
from labkit.kernels.bench.shapes import SUBJECTS

OURS = "labkit"
REASON = 300  # characters of an error that are kept


@dataclass(frozen=True)
class Call:
    """What a contestant is once its weights are laid out.

    Args:
        forward: without arguments; gives the case's output. It only has to enqueue its work.
        leaves: tensors that gradients are taken of, by the name of the case's leaf that each stands for; empty: forward
            only.
        restore: from such a name to a function that brings the gradient into the layout of the case's leaf.
        note: what a reader should know, such as a version.
        graphs: False if the forward pass waits for the device, which no CUDA graph can record.
    """

    forward: Callable[[], Any]
    leaves: Mapping[str, Tensor] = field(default_factory=dict)
    restore: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    note: str = ""
    graphs: bool = True


Make = Callable[[Any], Call | Callable[[], Any]]
Peers = dict[str, dict[str, Make]]
"""From a contestant's name to what makes its call, by subject."""


def reason(error: BaseException) -> str:
    """An error in one line.

    >>> reason(ValueError("no such thing"))
    'ValueError: no such thing'
    """
    said = " ".join(str(error).split())
    if isinstance(error, Unavailable):
        return said
    said = said if len(said) <= REASON else f"{said[:REASON]}…"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def called(made: Call | Callable[[], Any]) -> Call:
    """What a contestant made, as a `Call`. Raises ValueError for what cannot be called."""
    if isinstance(made, Call):
        return made
    if not callable(made):
        raise ValueError(f"it made a {type(made).__name__}; a function without arguments or a Call was expected")
    return Call(made)


def load(files: Sequence[Path], bench: Any) -> tuple[Peers, list[Absent]]:
    """The peers that files define, and the files that failed while they were read, with the reason.

    Args:
        files: see above.
        bench: given to each file's `peers`: the package `labkit.kernels.bench`.

    Raises FileNotFoundError for a file that is not there, ValueError for one that breaks the protocol or a name taken.
    """
    found: Peers = {}
    failed: list[Absent] = []
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of peers {path}")
        try:
            module = _read(path)
            defined = module.peers(bench) if callable(getattr(module, "peers", None)) else None
        except Exception as error:  # whatever a peer does, the rest is measured
            failed.append(Absent(path.stem, reason(error)))
            continue
        if defined is None and not hasattr(module, "peers"):
            raise ValueError(f"{path} defines no function peers(bench); see labkit.kernels.bench.peers")
        for name, makes in _checked(path, defined).items():
            if name in found:
                raise ValueError(f"{path} defines {name!r}, which another file has; rename one")
            found[name] = makes
    return found, failed


def _read(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"labkit_peers_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and Triton look a function's module up
    spec.loader.exec_module(module)
    return module


def _checked(path: Path, defined: Any) -> Peers:
    if not isinstance(defined, Mapping):
        raise ValueError(f"peers() of {path} gave a {type(defined).__name__}; expected a dict from names to subjects")
    for name, makes in defined.items():
        if not isinstance(name, str) or not isinstance(makes, Mapping):
            raise ValueError(f"peers() of {path}: {name!r} has a {type(makes).__name__}; expected a dict by subject")
        for subject, make in makes.items():
            if subject not in SUBJECTS or not callable(make):
                raise ValueError(
                    f"peers() of {path}: {name!r} offers {subject!r}: {make!r}; expected a function for one of "
                    f"{', '.join(SUBJECTS)}"
                )
    return {name: dict(makes) for name, makes in defined.items()}
