"""Distillation: a student learns a teacher's distributions instead of, or beside, the text itself.

`divergence` and `sparse` are the losses, `objective` mixes them for the training loop, `cache` keeps a teacher on disk,
`on_policy` lets the student write, `budget` counts, and `run` does both: with a teacher, and alone for the same FLOPs.
"""

from labkit.train.distill.budget import Budget
from labkit.train.distill.cache import CachedTeacher, TeacherCache, write_cache
from labkit.train.distill.divergence import divergences
from labkit.train.distill.objective import Distillation, DistillConfig
from labkit.train.distill.on_policy import OnPolicy
from labkit.train.distill.run import Distilled, distill
from labkit.train.distill.sparse import SparseLogits, sparse_divergences

__all__ = [
    "Budget",
    "CachedTeacher",
    "DistillConfig",
    "Distillation",
    "Distilled",
    "OnPolicy",
    "SparseLogits",
    "TeacherCache",
    "distill",
    "divergences",
    "sparse_divergences",
    "write_cache",
]
