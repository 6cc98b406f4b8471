"""What routing looks like in numbers: pure functions of a `Routing`, all on its device, none with gradients.

`load` asks who gets the work, `lift` what goes together more often than chance, `change` what differs between two
records of the same text. This module is the one place to import them from.
"""

from labkit.core.change import Effect, ablation_effect, saturation
from labkit.core.lift import Lift, PermutedLift, coactivation, coactivation_lift, lift_by_domain, permuted_lift
from labkit.core.load import (
    choices,
    decision_margin,
    drop_rate,
    entropy,
    global_max_violation,
    load,
    max_violation,
    router_confidence,
)

__all__ = [
    "Effect",
    "Lift",
    "PermutedLift",
    "ablation_effect",
    "choices",
    "coactivation",
    "coactivation_lift",
    "decision_margin",
    "drop_rate",
    "entropy",
    "global_max_violation",
    "lift_by_domain",
    "load",
    "max_violation",
    "permuted_lift",
    "router_confidence",
    "saturation",
]
