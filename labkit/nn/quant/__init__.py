"""Quantised models: `quantize` packs weights in place, fused experts included, and reports every byte.

The formats themselves are in `labkit.kernels.quant`, `nf4` and `fp8`; what can be asked for is in `SCHEMES`.
"""

from labkit.nn.quant.calibrate import Calibration, calibrate
from labkit.nn.quant.convert import quantize
from labkit.nn.quant.dynamic import DynamicExperts, dynamic
from labkit.nn.quant.files import bytes_on_disk, load, save
from labkit.nn.quant.report import Report
from labkit.nn.quant.rooms import ROOMS
from labkit.nn.quant.schemes import SCHEMES, Scheme, scheme

__all__ = [
    "ROOMS",
    "SCHEMES",
    "Calibration",
    "DynamicExperts",
    "Report",
    "Scheme",
    "bytes_on_disk",
    "calibrate",
    "dynamic",
    "load",
    "quantize",
    "save",
    "scheme",
]
