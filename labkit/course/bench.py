"""The command `labkit bench`: options to a plan, results to a terminal, a JSON file and figures as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.course import bench_serving

if TYPE_CHECKING:
    from labkit.kernels.bench import Plan, Result

EXAMPLE = (
    "Example: labkit bench moe --shapes olmoe-16k,qwen3-16k        or, with others beside: labkit bench moe --peers "
    "mine.py        (what such a file holds: python -m pydoc labkit.kernels.bench.peers)"
)
ROUNDS = {"cuda": (15, 3), "cpu": (2, 1)}  # rounds, and calls in a turn
SLUGS = {"forward": "forward", "forward + backward": "both", "graph": "graph"}


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUBJECT]...", help="moe, decode, quant, topk, attention; none: all of these. Or serving."
        ),
    ] = None,
    shapes: Annotated[
        str, typer.Option(metavar="NAMES", help="Names such as olmoe-16k, with commas; a wrong one lists them.")
    ] = "",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZES",
            help="A shape of your own: T=..,D=..,F=..,E=..,K=.. (experts), T=..,E=..,K=.. (router), "
            "B=..,H=..,G=..,S=..,d=.. (attention). Repeatable.",
        ),
    ] = None,
    peers: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A Python file of more contestants. Repeatable.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave this contestant out. Repeatable.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="In which all take turns: 15 on a GPU, 2 on a CPU.")] = None,
    direction: Annotated[
        str, typer.Option(help="forward, or both: forward and backward too. Decode is always forward.")
    ] = "both",
    graph: Annotated[
        bool, typer.Option("--graph", help="Forward as a CUDA graph too; decode and topk are anyway.")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny shapes, as on a CPU: does everything run?")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="bfloat16, float16, float32, or auto: the first on a GPU that has it, the last on a CPU."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the inputs and the routing.")] = 0,
    together: Annotated[
        list[int] | None, typer.Option(metavar="N", help="serving: requests at a time, 256 (CPU: 8). Repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder that gets bench.json and the figures.")] = Path("runs/bench"),
) -> None:
    """Measure our kernels, or our engine (serving), beside others', in turns or in one run; losses are shown."""
    if bench_serving.check(subjects or []):
        bench_serving.run(together, device, dtype, tiny, seed, out, typer.echo)
        return
    if together:
        raise ValueError("--together is for serving alone: labkit bench serving")
    from labkit.kernels import bench as home
    from labkit.kernels.bench import machine, table
    from labkit.kernels.bench import shapes as sizes
    from labkit.kernels.bench.peers import load
    from labkit.kernels.bench.plan import settle

    where, kind = settle(device, dtype)
    names = [name.strip() for name in shapes.split(",") if name.strip()]
    chosen = sizes.choose(subjects or [], names, shape or [], tiny=tiny or where.type == "cpu")
    from labkit.show import benchmark  # noqa: F401  before the peers: one (CuTe-DSL) breaks matplotlib's first import

    found, failed = load(peers or [], home)
    usual, repeats = ROUNDS[where.type]
    plan = home.Plan(
        chosen, where, kind, rounds=usual if rounds is None else rounds, repeats=repeats, direction=direction,
        graph=graph, seed=seed, peers=found, failed=failed, without=without or [],
    )  # fmt: skip
    files = {"peers": [str(path) for path in peers or []]}
    report = home.Report(machine.describe(where), plan.settings() | files)
    typer.echo(_opening(plan, report.machine))
    for result in home.measure(plan, typer.echo):
        report.results.append(result)
        report.write(out / "bench.json")  # after each, so that a run that ends early leaves what it has
        typer.echo(_card(table.title(result), table.lines(result), table.rows(result)))
    for title, rows in table.summary(report.results):
        typer.echo(_card(title, (), rows))
    written = [out / "bench.json", *_figures(report.results, out, report.machine["device"])]
    typer.echo("wrote " + ", ".join(str(path) for path in written))
    faults = [f"{table.title(each)}: labkit is {fault}" for each in report.results if (fault := each.fault())]
    for fault in faults:
        typer.echo(fault, err=True)
    raise typer.Exit(1 if faults else 0)


def _opening(plan: Plan, machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    limit = machine["power_limit"]
    watts = f", {limit:.0f} W at most" if limit else ""
    turns = f"rounds: {plan.rounds}, calls in a turn: {plan.repeats}"
    opening = f"on {machine['device']}{watts}; {versions}; {turns}"
    if plan.interpreted:
        return f"{opening}\nKernels are interpreted here: what runs and what is right is shown, times mean nothing."
    return opening


def _card(title: str, lines: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from labkit.show.cards import Card

    return str(Card("info", title, lines, table=rows))


def _figures(results: Sequence[Result], out: Path, device: str) -> list[Path]:
    """A figure for each subject and mode that has times, as PNG and SVG."""
    from labkit.show import style
    from labkit.show.benchmark import race
    from labkit.show.picture import png

    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.measured:
            groups.setdefault((result.subject, result.mode), []).append(result)
    written = []
    for (subject, mode), group in groups.items():
        panels = {each.shape["name"]: {one.name: _dot(one) for one in each.measured} for each in group}
        floors = {each.shape["name"]: each.floor and 1e3 * each.floor for each in group}
        what = ", interpreted: these times mean nothing" if group[0].interpreted else ""
        picture = race(panels, floors, f"{subject}, {mode}, {group[0].dtype}, on {device}{what}")
        stem = out / f"{subject}-{SLUGS[mode]}"
        paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
        paths[0].write_bytes(png(picture))
        with style.use():
            picture.savefig(paths[1], format="svg", metadata={"Date": None, "Description": picture.alt})
        written += paths
    return written


def _dot(measured: Any) -> tuple[float, float, float]:
    return tuple(1e3 * seconds for seconds in (measured.median, *measured.quartiles))
