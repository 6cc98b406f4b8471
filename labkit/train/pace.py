"""How fast a run goes, in tokens a second and as a share of what the GPU could do."""

from __future__ import annotations

import time

import torch

from labkit.core.hardware import GPUS, Gpu


class Pace:
    """A clock that counts tokens and leaves out pauses.

    Args:
        tokens_per_step: positions that a step sends through the model.
        flops_per_token: of training; None if unknown.
        peak: FLOP/s of the device in the format used; None if unknown.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float | None, peak: float | None) -> None:
        self.tokens_per_step, self.flops_per_token, self.peak = tokens_per_step, flops_per_token, peak
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count from the end of this step."""
        self._since, self._step = time.perf_counter(), step

    def pause(self, seconds: float) -> None:
        """So many seconds were spent on something else."""
        self._since += seconds

    def tokens_per_second(self, step: int) -> float:
        """Since the last restart; the device must have finished the step."""
        return (step - self._step) * self.tokens_per_step / max(time.perf_counter() - self._since, 1e-9)

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation: the model's own FLOPs over the peak (PaLM, Chowdhery et al. 2022, appendix B).

        >>> Pace(1, flops_per_token=6e6, peak=1e12).mfu(50_000)
        0.3
        """
        if self.flops_per_token is None or self.peak is None:
            return None
        return tokens_per_second * self.flops_per_token / self.peak


def peak_flops(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """The datasheet's 16-bit matrix rate of this GPU, in FLOP/s.

    None for a device that is not in `core.hardware`, and for other formats than bfloat16, whose peak is another.
    """
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    known = gpu_of(torch.cuda.get_device_name(device))
    return known.tflops * 1e12 if known and known.bf16 else None


def gpu_of(device_name: str) -> Gpu | None:
    """The datasheet of the GPU that torch calls so, or None: variants with other peaks are not guessed.

    >>> gpu_of("NVIDIA H200").name, gpu_of("NVIDIA A100-SXM4-40GB").name, gpu_of("NVIDIA H100 PCIe")
    ('H200', 'A100-40GB', None)
    """
    words = set(device_name.replace("-", " ").split())
    fitting = [gpu for name, gpu in GPUS.items() if set(name.replace("-", " ").split()) <= words]
    return fitting[0] if fitting and not words & {"NVL", "PCIe", "MIG", "Laptop"} else None
