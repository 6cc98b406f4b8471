"""The command `labkit registry`: versions of a model in an S3 store or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from labkit.serve.registry import Registry

EXAMPLE = "Example: labkit registry push four-domains data/checkpoints/four-domains --alias prod"

app = typer.Typer(
    help="Keep versions of a model in an S3 store or in a folder: publish, fetch, name, roll back, clean up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Store = Annotated[
    str,
    typer.Option(
        envvar="LABKIT_STORE",
        show_default="the folder registry in LABKIT_HOME",
        help="s3://bucket/prefix (AWS_ENDPOINT_URL, AWS_PROFILE and so on say where and who), file:///path or a path.",
    ),
]
Model = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
Reference = Annotated[
    str,
    typer.Argument(metavar="NAME[@REF]", help="The model, with a version (v3) or an alias (prod); else the newest."),
]
Expect = Annotated[
    str | None, typer.Option(help="Change nothing unless the alias names this version now; '' if it must name none.")
]


@app.command(epilog=EXAMPLE)
def push(
    name: Model,
    folder: Annotated[Path, typer.Argument(help="The folder of the model. Names that begin with '.' are left out.")],
    note: Annotated[str, typer.Option(help="A text to keep with the version.")] = "",
    alias: Annotated[str | None, typer.Option(help="Then let this alias name the new version.")] = None,
    store: Store = "",
) -> None:
    """Publish a folder as the next version. What an interrupted push has sent is not sent again."""
    from labkit.serve.registry import content
    from labkit.serve.registry.names import need_alias

    if alias is not None:
        need_alias(alias)
    registry = _open(store)
    left_out = content(folder).left_out
    with _progress() as say:
        version = registry.push(name, folder, on_progress=say, note=note)
    typer.echo(f"published {version} in {registry.uri}")
    if left_out:
        typer.echo(f"left out, as their names begin with '.': {', '.join(left_out)}")
    if alias is not None:
        registry.alias(name, alias, version.id)
        typer.echo(f"{name}@{alias} names {version.id}")


@app.command(epilog="Example: labkit registry pull four-domains@prod")
def pull(
    model: Reference,
    cache: Annotated[
        Path | None, typer.Option(show_default="models in LABKIT_HOME", help="The folder of all pulled versions.")
    ] = None,
    store: Store = "",
) -> None:
    """Fetch a version, verify every byte, and print its folder. What an interrupted pull has fetched is kept."""
    from labkit.serve.registry import split

    registry = _open(store)
    name, ref = split(model)
    with _progress() as say:
        folder = registry.pull(name, ref, cache, on_progress=say)
    typer.echo(folder)


@app.command("list", epilog="Example: labkit registry list four-domains")
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model; none means all.")] = None,
    store: Store = "",
) -> None:
    """Show models, their versions and aliases."""
    registry = _open(store)
    names = registry.models() if name is None else [name]
    if name is not None and not registry.ids(name):
        registry.version(name)  # says what there is
    if not names:
        typer.echo(f"{registry.uri} is empty; publish with: labkit registry push NAME FOLDER")
    for each in names:
        _show(registry, each)


def _show(registry: Registry, name: str) -> None:
    named: dict[str, list[str]] = {}
    for alias, id in registry.aliases(name).items():
        named.setdefault(id, []).append(alias)
    for id in registry.ids(name):
        try:
            version = registry.version(name, id)
        except ValueError as error:
            typer.echo(f"✗ {error}", err=True)
            continue
        says = f"  {version.note}" if version.note else ""
        typer.echo(f"{version}, {version.created}{''.join(f'  ← {alias}' for alias in named.get(id, []))}{says}")


@app.command(epilog="Example: labkit registry alias four-domains@v3 prod --expect v2")
def alias(
    model: Annotated[str, typer.Argument(metavar="NAME@REF", help="The model and the version, or another alias.")],
    alias: Annotated[str, typer.Argument(help="For example prod or canary.")],
    expect: Expect = None,
    remove: Annotated[bool, typer.Option("--remove", help="Let it name nothing; give NAME alone.")] = False,
    store: Store = "",
) -> None:
    """Let an alias name a version, in one step. Without @REF it names the newest."""
    from labkit.serve.registry import split

    registry = _open(store)
    name, ref = split(model)
    if remove:
        if "@" in model:
            raise ValueError(f"--remove was given with {model!r}; give the model's name alone, {name!r}")
        registry.unalias(name, alias, expect=expect)
        typer.echo(f"{name}@{alias} names nothing any more; undo with: labkit registry rollback {name} {alias}")
        return
    before = registry.aliases(name).get(alias, "nothing")
    version = registry.alias(name, alias, ref, expect=expect)
    typer.echo(f"{name}@{alias} names {version.id} (before: {before})")


@app.command(epilog="Example: labkit registry rollback four-domains prod")
def rollback(
    name: Model,
    alias: Annotated[str, typer.Argument(help="For example prod.")],
    expect: Expect = None,
    store: Store = "",
) -> None:
    """Let an alias name again what it named before; twice goes back two moves."""
    registry = _open(store)
    before = registry.aliases(name).get(alias, "nothing")
    version = registry.rollback(name, alias, expect=expect)
    typer.echo(f"{name}@{alias} names {version.id} (before: {before})")


@app.command(epilog="Example: labkit registry gc four-domains --keep 2 --dry-run")
def gc(
    name: Model,
    keep: Annotated[int, typer.Option(help="How many of the newest versions stay in any case.")] = 3,
    grace: Annotated[
        float, typer.Option(help="Hours that an interrupted push keeps what it has sent; 0.5 or more.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only say what would be.")] = False,
    store: Store = "",
) -> None:
    """Remove versions that no alias names (nor would after a rollback), then what only they needed."""
    removed = _open(store).collect(name, keep=keep, grace=grace * 3600, dry=dry_run)
    typer.echo(f"{'would remove' if dry_run else 'removed'} {removed}")


def _open(store: str) -> Registry:
    from labkit.serve.registry import open_registry

    return open_registry(store or None)


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, else nothing but the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)
