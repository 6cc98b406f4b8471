"""A function on several ranks at once, each a process: results of all, or one clear error in time.

For notebooks and tests on one machine; torchrun is for several machines and for long runs. On the CPU the processes
are forked off a server that has loaded torch once, so that they start in a moment.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from labkit.core.environ import environment
from labkit.core.whole import need_whole
from labkit.train.parallel.carry import pack, unpack

START = 300.0  # seconds in which processes must be there: a busy machine loads torch slowly
GRACE = 1.5  # seconds in which the others may tell what they saw, once one has failed
PRELOAD = ["torch", "torch.distributed.fsdp", "torch._dynamo", "safetensors.torch", "labkit.train.parallel"]


class RankFailed(RuntimeError):
    """A job that ended early; the message names the rank and the cause.

    Args:
        rank: which; cause: what happened to it, one line; ranks: of the job; detail: a traceback, or empty.
    """

    def __init__(self, rank: int, cause: str, ranks: int, detail: str = "") -> None:
        self.rank, self.cause, self.ranks, self.detail = rank, cause, ranks, detail
        super().__init__(
            f"rank {rank} of {ranks} {cause}; the other ranks were ended" + (f"\n{detail}" if detail else "")
        )


class RanksTimedOut(RankFailed):
    """A job in which some rank neither ended nor failed in time."""


@dataclass(frozen=True)
class _Failure:
    rank: int
    cause: str
    detail: str
    weight: int  # the lightest explains the others


def launch(
    function: Callable[..., Any],
    ranks: int,
    *args: Any,
    timeout: float = 120.0,
    backend: str | None = None,
    threads: int = 1,
    **kwargs: Any,
) -> list[Any]:
    """Call `function(*args, **kwargs)` on every rank, with `torch.distributed` set up, and give the results by rank.

    Args:
        function: may be of a notebook, see `parallel.carry`; what it returns must be picklable, tensors on the CPU. A
            script must call this under `if __name__ == "__main__":`, since the processes import it.
        ranks: how many processes, 1 or more.
        timeout: seconds for the whole job, from when its processes are there, and for each collective.
        backend: "gloo" or "nccl" (a GPU for each rank); left out, gloo.
        threads: of torch, in each process.

    Raises RankFailed, with the rank and the cause, if one raises or dies, and RanksTimedOut if one is not done in time;
    no process is left behind. ValueError for settings that cannot work.
    """
    need_whole("ranks", ranks, 1)
    backend = backend or "gloo"
    _check_backend(backend, ranks)
    method = (
        "spawn" if backend == "nccl" or "forkserver" not in multiprocessing.get_all_start_methods() else "forkserver"
    )
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOAD)
        from multiprocessing import forkserver

        with environment({"CUDA_VISIBLE_DEVICES": ""}):  # what is forked off a server could not use a GPU
            forkserver.ensure_running()
    job = pack((function, args, kwargs))
    with tempfile.TemporaryDirectory(prefix="labkit-ranks-") as folder:
        pipes, processes = [], []
        try:
            for rank in range(ranks):
                ours, theirs = context.Pipe(duplex=False)
                setting = _Setting(rank, ranks, folder, backend, timeout, threads, tuple(sys.path), dict(os.environ))
                process = context.Process(target=_run, args=(setting, job, theirs), daemon=True)
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _collect(processes, pipes, timeout, Path(folder))
        finally:
            _end(processes)
            for pipe in pipes:
                pipe.close()


@dataclass(frozen=True)
class _Setting:
    rank: int
    ranks: int
    folder: str
    backend: str
    timeout: float
    threads: int
    path: tuple[str, ...]
    environment: dict[str, str]


def join(backend: str, timeout: float, **where: Any) -> torch.device:
    """Set up `torch.distributed` in this process and say which device is its own.

    Args:
        backend: "gloo" or "nccl"; timeout: seconds for every collective.
        where: `init_method`, `rank` and `world_size`; left out, torchrun's variables tell.
    """
    device = torch.device("cpu")
    if backend == "nccl":
        local = int(os.environ.get("LOCAL_RANK", where.get("rank", 0)))
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        where["device_id"] = device
    elif sys.platform == "linux" and where and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: no name has to be looked up
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout), **where)
    return device


def meet(what: str, timeout: float | None = None) -> None:
    """Wait until every rank is here.

    Args:
        what: all come to, for the error. timeout: seconds; left out, as for every collective.

    Raises RuntimeError if some do not come in time; with gloo, it names them.
    """
    if dist.get_backend() != "gloo":
        dist.barrier()
        return
    try:
        within = None if timeout is None else datetime.timedelta(seconds=timeout)
        dist.monitored_barrier(timeout=within, wait_all_ranks=True)
    except RuntimeError as error:
        raise RuntimeError(f"not all ranks came to {what}: {error}") from error


def _run(setting: _Setting, job: bytes, pipe: Connection) -> None:
    """What one process does; its last word goes through the pipe."""
    sys.path[:] = setting.path
    os.environ.update(setting.environment)  # the server that this process was forked off may be older
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the job
    place = open(_place(Path(setting.folder), setting.rank), "w")  # noqa: SIM115 (open as long as the process lives)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, place, all_threads=False)
    pipe.send("here")
    try:
        torch.set_num_threads(setting.threads)
        os.environ["LOCAL_RANK"] = str(setting.rank)
        join(
            setting.backend, setting.timeout + GRACE,
            init_method=f"file://{setting.folder}/store", rank=setting.rank, world_size=setting.ranks,
        )  # fmt: skip
        function, args, kwargs = unpack(job)
        pipe.send(("done", pack(function(*args, **kwargs))))
    except BaseException as error:  # whatever it is, the parent must hear of it
        line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        pipe.send(("raised", line, traceback.format_exc(), isinstance(error, dist.DistError) or _lost(str(error))))
    finally:
        pipe.close()
        if setting.backend == "gloo":
            os._exit(0)
        if dist.is_initialized():
            dist.destroy_process_group()


def _lost(message: str) -> bool:
    """Whether an error only says that another rank is gone."""
    return any(
        word in message for word in ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out")
    )


def _collect(processes: list, pipes: list[Connection], timeout: float, folder: Path) -> list[Any]:
    """Wait for a word of every rank; stop at the first failure, or when the time is up."""
    ranks, results, failures = len(processes), {}, []
    _wait_for_starts(pipes)
    deadline = time.monotonic() + timeout
    while len(results) + len(failures) < ranks:
        waiting = [r for r in range(ranks) if r not in results and r not in {f.rank for f in failures}]
        left = deadline - time.monotonic()
        ready = wait([pipes[r] for r in waiting], timeout=max(0.0, left)) if left > 0 else []
        if not ready:
            break
        for rank in waiting:
            if pipes[rank] in ready:
                told = _word(rank, processes[rank], pipes[rank])
                if isinstance(told, _Failure):
                    failures.append(told)
                    deadline = min(deadline, time.monotonic() + GRACE)
                else:
                    results[rank] = unpack(told)
    if failures:
        first = min(failures, key=lambda failure: failure.weight)
        raise RankFailed(first.rank, first.cause, ranks, first.detail)
    if len(results) < ranks:
        raise _late([r for r in range(ranks) if r not in results], processes, timeout, folder)
    return [results[rank] for rank in range(ranks)]


def _wait_for_starts(pipes: list[Connection]) -> None:
    """Until every process has said that it is there; one that died before is found by `_collect`."""
    deadline = time.monotonic() + START
    for rank, pipe in enumerate(pipes):
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            raise RanksTimedOut(rank, f"did not start within {START:g} s", len(pipes))
        with contextlib.suppress(EOFError):
            pipe.recv()


def _late(late: list[int], processes: list, timeout: float, folder: Path) -> RanksTimedOut:
    """The error for ranks that are not done: each is asked where it stands, and one that waits for nobody is named."""
    if hasattr(signal, "SIGUSR1"):
        for rank in late:
            if processes[rank].is_alive():
                os.kill(processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.3)
    places = {rank: _standing(_place(folder, rank)) for rank in late}
    culprit = min(late, key=lambda rank: places[rank][1])
    told = "; ".join(f"rank {rank} stands in {places[rank][0]}" for rank in late)
    return RanksTimedOut(culprit, f"did not end within {timeout:g} s", len(processes), told)


def _place(folder: Path, rank: int) -> Path:
    return folder / f"place-{rank}"


def _standing(path: Path) -> tuple[str, bool]:
    """Where a process stands, as faulthandler wrote it: its innermost line outside torch, and whether torch waits."""
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    frames = re.findall(r'File "(.*?)", line (\d+) in (.*)', text)
    waits = bool(frames) and "/torch/" in frames[0][0]
    for file, line, name in frames:
        if "/torch/" not in file:
            return f"{name} ({Path(file).name}, line {line})", waits
    return "an unknown place", waits


def _word(rank: int, process: Any, pipe: Connection) -> bytes | _Failure:
    """A rank's packed result, or why there is none."""
    try:
        told = pipe.recv()
    except EOFError:
        process.join(GRACE)
        code = process.exitcode
        by = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        return _Failure(rank, f"{by} before it had a result", "", 0)
    if told[0] == "done":
        return told[1]
    return _Failure(rank, f"raised {told[1]}", told[2], 2 if told[3] else 1)


def _end(processes: list) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join()
        process.close()


def _check_backend(backend: str, ranks: int) -> None:
    if backend not in ("gloo", "nccl"):
        raise ValueError(f"backend is {backend!r}; choose 'gloo' (CPU) or 'nccl' (GPUs)")
    if backend == "nccl" and torch.cuda.device_count() < ranks:
        raise ValueError(
            f"nccl needs a GPU for each of {ranks} ranks, and there are {torch.cuda.device_count()}; "
            "use gloo or fewer ranks"
        )
