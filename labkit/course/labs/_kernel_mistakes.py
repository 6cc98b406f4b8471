"""Labs on kernels: a kernel with its mistake switched on, and the mistakes that any kernel can make."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from labkit.course.judge import Failure, Mistake


class With:
    """A kernel some of whose constants are fixed: `With(kernel, WRONG="…")[grid](…)`."""

    def __init__(self, kernel: Any, **constants: Any) -> None:
        self.kernel, self.constants, self.fn = kernel, constants, getattr(kernel, "fn", kernel)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.kernel[grid](*args, **kwargs, **self.constants)


def beyond(*verbs: str) -> Callable[[Failure], bool]:
    """Whether a kernel did these things, and no others, outside its tensors: "reads", "writes"."""

    def found(failure: Failure) -> bool:
        said = set(re.findall(r"(reads|writes) [^;]* outside", failure.outcome.error))
        return failure.outcome.error_type == "OutOfBounds" and said == set(verbs)

    return found


def far(failure: Failure) -> bool:
    """Whether a kernel was stopped before it went far away."""
    return failure.outcome.error_type == "OutOfBounds" and " far " in failure.outcome.error


def no_kernel(failure: Failure) -> bool:
    """Whether there was nothing to launch."""
    return failure.outcome.error_type == "NotAKernel"


def unfilled(failure: Failure) -> bool:
    """Whether poison was left in an output."""
    parts = failure.got if isinstance(failure.got, tuple) else (failure.got,)
    return any(bool((part.isnan() if part.is_floating_point() else part == -7_777_777).any()) for part in parts)


NO_KERNEL = Mistake(
    "no_kernel",
    "There is no Triton kernel under this name: keep the line `@triton.jit` above its `def`, and run the cell again.",
    when=no_kernel,
)
