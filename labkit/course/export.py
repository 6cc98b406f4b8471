"""The command `labkit export`: a model in a form that other programs serve, compared before it says done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = (
    "Example: labkit export my-model --to onnx --out my-model.onnx        or: labkit export my-model --to hf --out "
    "for-vllm --untie"
)
FORMS = ("hf", "onnx")
DTYPES = ("as stored", "bfloat16", "float16", "float32")


def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a model, as `labkit train` or transformers writes it.")],
    to: Annotated[
        str, typer.Option(help="hf: a folder for vLLM, SGLang, transformers. onnx: a file for ONNX Runtime.")
    ],
    out: Annotated[Path, typer.Option(help="hf: another folder. onnx: a file that ends in .onnx.")],
    dtype: Annotated[
        str, typer.Option(help="hf: bfloat16, float16 or float32, if not as stored. onnx is float32.")
    ] = DTYPES[0],
    untie: Annotated[
        bool, typer.Option("--untie", help="hf: store the head beside the embedding, for servers that want one.")
    ] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not compare logits (saves memory).")] = False,
) -> None:
    """Write a model for other servers, compare its logits with the model's, and say who serves it."""
    if to not in FORMS:
        raise ValueError(f"--to is {to!r}; choose one of {', '.join(FORMS)}")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; choose one of {', '.join(DTYPES[1:])}")
    if to == "onnx" and (untie or dtype != DTYPES[0]):
        raise ValueError("--untie and --dtype are for --to hf; an ONNX file is float32 and holds a tied head once")
    with _progress() as say:
        report = (
            _to_hf(folder, out, dtype, untie, not no_check, say)
            if to == "hf"
            else _to_onnx(folder, out, not no_check, say)
        )
    typer.echo(f"wrote {report}")


def _to_hf(folder: Path, out: Path, dtype: str, untie: bool, check: bool, say: Callable[[float, str], None]) -> str:
    import torch

    from labkit.serve.export import to_hf

    kind = None if dtype == DTYPES[0] else getattr(torch, dtype)
    return str(to_hf(folder, out, dtype=kind, untie=untie, check=check, on_progress=say))


def _to_onnx(folder: Path, out: Path, check: bool, say: Callable[[float, str], None]) -> str:
    from labkit.nn.interop import load
    from labkit.serve.export import end_of_answers, to_onnx

    model, eos = load(folder), end_of_answers(folder)
    say(0.1, "model loaded")
    report = to_onnx(model, out, check=check, eos_token_id=eos, on_progress=say)
    run = f"OnnxModel({str(out)!r}).generate([[1, 2, 3]], 20)"
    return f'{report}\nrun it: python -c "from labkit.serve.export import OnnxModel; print({run})"'


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, else nothing but the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)
