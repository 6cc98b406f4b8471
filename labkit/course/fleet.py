"""The command `labkit fleet`: replicas of a model behind one address, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.course.registry import Store

if TYPE_CHECKING:
    from labkit.serve.fleet.fleet import Fleet

EXAMPLE = (
    "Example: labkit fleet serve        or, a model of yours: labkit fleet serve my-model@prod "
    "--store s3://bucket/models --replicas 4 --follow 30        (docs/fleet.md says more)"
)
NAME, ALIAS = "four-domains", "prod"
BEAT = 0.5

app = typer.Typer(
    help="Serve a model of a registry from several replicas.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def fleet() -> None:
    """Serve a model of a registry from several replicas."""


@app.command(epilog=EXAMPLE)
def serve(
    model: Annotated[
        str, typer.Argument(metavar="[NAME@REF]", help="A model with an alias or a version.", show_default=True)
    ] = f"{NAME}@{ALIAS}",
    store: Store = "",
    replicas: Annotated[int, typer.Option(help="How many.")] = 2,
    most: Annotated[
        int | None, typer.Option(help="Up to so many while requests wait; none: never more.", show_default=False)
    ] = None,
    surge: Annotated[
        int, typer.Option(help="New ones that start before old ones end, in a rollout; 0: an old one ends first.")
    ] = 0,
    policy: Annotated[
        str, typer.Option(help="round_robin, random, power_of_two, least_loaded or prefix_aware.")
    ] = "power_of_two",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: everybody's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    gpus: Annotated[float, typer.Option(help="That each replica gets.")] = 0.0,
    follow: Annotated[
        float, typer.Option(help="Seconds between two looks at the alias; 0: it is followed only once.")
    ] = 0.0,
    drain_seconds: Annotated[float, typer.Option(help="For what runs, after SIGTERM or Ctrl-C.")] = 30.0,
) -> None:
    """Serve a model from several replicas; without a name the course's own, which is published first if need be."""
    from labkit.course.serve import Bar
    from labkit.serve.fleet.cluster import slim_here
    from labkit.serve.fleet.fleet import Fleet
    from labkit.serve.registry import default_store

    store = store or default_store()
    if model == f"{NAME}@{ALIAS}":
        _need_own(store)
    stop = threading.Event()
    bar = Bar(f"fleet of {model}")
    made = Fleet(
        store, model, host=host, port=port, on_progress=bar.show, replicas=replicas, most=most, surge=surge,
        policy=policy,
        device=device, gpus=gpus, drain_seconds=drain_seconds,
    )  # fmt: skip
    try:
        with slim_here():
            made.start()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: stop.set())
        bar.end()
        typer.echo(greeting(made))
        _live(made, stop, follow)
        typer.echo("ending: what runs is finished")
        made.drain()
    finally:
        bar.end()
        made.close()


def greeting(made: Fleet) -> str:
    """What is printed once the fleet is ready; each line can be copied as it stands."""
    from labkit.serve.server.greeting import curl, python

    name = made.plan.name
    return "\n".join(
        [
            f"serving {name} {made.version} on {made.url} from {made.plan.replicas} replicas; Ctrl-C ends it",
            curl(made.url, name, keys=False),
            python(made.url, name, keys=False),
            f"who is there: curl {made.url}/targets        how it goes: curl {made.url}/metrics",
        ]
    )


def _live(made: Fleet, stop: threading.Event, follow: float) -> None:
    """Until the end is asked for; now and then follow the alias."""
    from labkit.serve.fleet.fleet import RolloutRefused

    refused: str = ""
    while not stop.wait(follow or BEAT):
        if not follow:
            continue
        before = made.version
        try:
            if made.rollout() != before:
                typer.echo(f"{made.plan.model} is {made.version} now, {before} before")
            refused = ""
        except (RolloutRefused, RuntimeError) as error:
            if str(error) != refused:
                typer.echo(str(error), err=True)
            refused = str(error)


def _need_own(store: str) -> None:
    """Publish the course's own model where it is not yet."""
    from labkit.core.runtime import data_path
    from labkit.serve.registry import open_registry

    registry: Any = open_registry(store)
    if ALIAS in registry.aliases(NAME):
        return
    version = registry.push(NAME, Path(data_path(f"checkpoints/{NAME}")))
    registry.alias(NAME, ALIAS, version.id, expect="")
    typer.echo(f"published the course's model as {NAME}@{ALIAS} ({version.id}) in {registry.uri}", err=True)
