"""Our kernels beside others', in turns: `labkit bench`. Times, memory, errors, losses included.

`shapes` says what is measured, `moe`, `quant`, `topk` and `attention` draw the inputs, hold the reference and name
those who compete, `peers` lets others join from a file, `calls` makes them comparable, `rounds` times them in turns
beside the machine's ceilings, `result` holds what came out, `table` says it, `plan` decides, `run` goes through it.
"""

from labkit.kernels.bench.peers import Call
from labkit.kernels.bench.plan import Plan
from labkit.kernels.bench.result import Absent, Measured, Report, Result
from labkit.kernels.bench.run import measure

__all__ = ["Absent", "Call", "Measured", "Plan", "Report", "Result", "measure"]
