"""The command `labkit serve`: options to limits, a bar while the model loads, then two lines that work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from labkit.serve.server.settings import Settings

EXAMPLE = (
    "Example: labkit serve        or, a model of yours on a GPU, for others too: labkit serve --model my-model "
    "--device cuda --host 0.0.0.0 --api-key-file keys.txt        (docs/serving.md says what the server understands)"
)
EMBEDDED = "checkpoints/four-domains"


def _limit(words: str) -> Any:
    return typer.Option(help=words, show_default=False)


def serve(
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="In Hugging Face's format; none: the course's own, on the CPU."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Under which it is served; none: the folder's.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: everybody's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys, one a line; LABKIT_API_KEYS (with commas) adds more.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N; none: auto for a model of yours.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_context: Annotated[int | None, _limit("Tokens of prompt and answer together; none: the model's.")] = None,
    max_prompt_tokens: Annotated[int | None, _limit("Of one prompt; none: what the context holds.")] = None,
    max_output_tokens: Annotated[int | None, _limit("Of one answer; none: what the context holds.")] = None,
    max_choices: Annotated[int, typer.Option(help="Answers of one request: prompts times n.")] = 128,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request's body.")] = 2 << 20,
    max_concurrency: Annotated[int, typer.Option(help="Requests that are answered at once; more get 429.")] = 1024,
    max_sequences: Annotated[int | None, _limit("That run at once; none: 64 on a CPU, 256 on a GPU.")] = None,
    max_waiting: Annotated[int | None, _limit("That wait for their turn; more get 429.")] = None,
    kv_blocks: Annotated[int | None, _limit("Of 16 tokens, in the cache; none: what fits.")] = None,
    drain_seconds: Annotated[float, typer.Option(help="For what runs, after SIGTERM or Ctrl-C.")] = 30.0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="A line for each request.")] = False,
) -> None:
    """Serve a model over an OpenAI-compatible interface, until Ctrl-C or SIGTERM."""
    import asyncio
    import logging

    from labkit.core.runtime import data_path
    from labkit.serve.server.keys import read_keys
    from labkit.serve.server.launch import listen
    from labkit.serve.server.model import Model
    from labkit.serve.server.settings import Settings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("labkit").setLevel(logging.INFO if log_requests else logging.WARNING)
    what = Model(
        str(data_path(EMBEDDED) if model is None else model), device or ("cpu" if model is None else "auto"), dtype,
        max_context, max_sequences, max_waiting, kv_blocks,
    )  # fmt: skip
    settings = Settings(
        name=name or what.name, keys=read_keys(api_key_file), max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens, max_output_tokens=max_output_tokens, max_choices=max_choices,
        max_concurrency=max_concurrency,
    )  # fmt: skip
    opened = listen(host, port)
    cut = asyncio.run(_serve(what, settings, opened, host, drain_seconds))
    typer.echo(f"ended; {cut} answers were cut off" if cut else "ended; every answer was finished")


async def _serve(what: Any, settings: Settings, opened: Any, host: str, drain_seconds: float) -> int:
    from labkit.serve.server.greeting import address, greeting
    from labkit.serve.server.launch import serve as run
    from labkit.serve.server.text import Text
    from labkit.serve.worker import Spec, Worker

    bar = Bar(f"loading {settings.name}")
    spec = Spec("labkit.serve.server.model:build", {"model": what})
    worker = Worker(spec, on_progress=bar.show)

    def ready() -> None:
        bar.end()
        url = address(host, opened.getsockname()[1])
        typer.echo(greeting(url, settings.name, worker.info.max_context, bool(settings.keys)))

    try:
        return await run(
            worker, Text.from_folder(what.folder), settings, opened, drain_seconds=drain_seconds, on_ready=ready
        )
    finally:
        bar.end()


class Bar:
    """How far the loading is: a bar in a terminal, lines elsewhere; on the error stream, apart from what is asked for.

    Args:
        title: what is loading.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._say: Callable[..., object] = console.print
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._title, self._task = title, self._bar.add_task(title, total=1.0)
        self._bar.start()

    def show(self, share: float, what: str) -> None:
        """So far, and what comes now."""
        self._bar.update(self._task, completed=share, description=f"{self._title}: {what}")
        if self._bar.disable and share < 1:
            self._say(f"{self._title}: {what}", highlight=False)

    def end(self) -> None:
        """The bar goes."""
        self._bar.stop()
