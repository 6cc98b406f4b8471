"""The engine in a process of its own, watched and replaced: what it does to itself, it does to nobody else.

`Worker` is a `Backend`. No torch is loaded in this process: only the child builds the engine.
"""

from labkit.serve.worker.policy import Policy
from labkit.serve.worker.spec import Spec
from labkit.serve.worker.worker import Worker

__all__ = ["Policy", "Spec", "Worker"]
