"""`labkit bench serving`: our engine and transformers' continuous batching on the same requests, in one run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core.whole import need_whole

if TYPE_CHECKING:
    from labkit.serve.race import Run

SUBJECT = "serving"


def check(subjects: Sequence[str]) -> bool:
    """Whether serving is asked for. Raises ValueError if something else is, too: it is measured in another way."""
    if SUBJECT not in subjects:
        return False
    if len(subjects) > 1:
        raise ValueError(f"{SUBJECT} is measured alone; leave out {', '.join(s for s in subjects if s != SUBJECT)}")
    return True


def run(
    together: Sequence[int] | None,
    device: str,
    dtype: str,
    tiny: bool,
    seed: int,
    out: Path,
    tell: Callable[[str], Any],
) -> Path:
    """Measure, tell each result as it comes, and write serving.json into `out`; its path.

    Args:
        together: how many requests are inside at a time, one run of both for each number; None: 256, on a CPU 8.
        tiny: few and short requests; on a CPU they always are.
    """
    import torch

    from labkit.kernels.bench import machine
    from labkit.kernels.bench.plan import settle
    from labkit.serve import race

    where, kind = settle(device, dtype)
    together = together or [8 if where.type == "cpu" else 256]
    for most in together:
        need_whole("together", most)
    config, small = race.shape(where), tiny or where.type == "cpu"
    count, shrink = (12, 16) if small else (256, 1)
    sizes = {"num_blocks": 64, "max_batch_tokens": 128} if where.type == "cpu" else {}
    report: dict[str, Any] = {"machine": machine.describe(where), "model": config.name, "dtype": str(kind), "runs": []}
    tell(f"{config.name} with random weights, {str(kind).removeprefix('torch.')}, {count} requests on {where}")

    def keep(found: Run) -> None:
        report["runs"].append(asdict(found) | {"tokens_per_second": found.tokens_per_second})
        out.mkdir(parents=True, exist_ok=True)
        (out / "serving.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        tell(line(found))

    work = race.workload(count, config.vocab_size, seed, shrink=shrink)
    engine = race.our_engine(config, where, kind, max(together))
    race.ours(engine, race.workload(count, config.vocab_size, seed + 1, shrink=shrink), max(together))  # to warm up
    ours = [race.ours(engine, work, most) for most in together]
    for found in ours:
        keep(found)
    del engine
    if where.type == "cuda":
        torch.cuda.empty_cache()
    model = race.their_model(config, where, kind)
    for mine in ours:
        found = race.theirs(model, work, mine.together, **sizes)
        keep(found)
        ratio = mine.tokens_per_second / found.tokens_per_second
        tell(f"{mine.together} at a time: {ratio:.2f} × transformers' tokens a second{' (LOSS)' * (ratio < 1)}")
    tell(f"wrote {out / 'serving.json'}")
    return out / "serving.json"


def line(found: Run) -> str:
    """One run in words."""
    from labkit.serve.scheduler.simulate import Spread

    ttft, between = Spread(Counter(found.ttft)), Spread(Counter(found.gaps))
    waits = " / ".join(f"{1e3 * ttft.at(share):.0f}" for share in (0.5, 0.99))
    gaps = " / ".join(f"{1e3 * between.at(share):.1f}" for share in (0.5, 0.99, 1.0))
    return (
        f"{found.name}, {found.together} at a time: {found.tokens} tokens in {found.seconds:.2f} s, "
        f"{found.tokens_per_second:,.0f} a second; first token {waits} ms (median, p99), between tokens {gaps} ms "
        "(median, p99, longest)"
    )
