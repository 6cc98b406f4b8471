"""A program: the scripted backend behind a real server that prints its port, then READY, then how it ended."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


async def main(pause: float, load_seconds: float, drain_seconds: float) -> None:
    """Serve until a signal."""
    from scripted_backend import TEXT, Scripted

    from labkit.serve.server.launch import listen, serve
    from labkit.serve.server.settings import Settings

    opened = listen("127.0.0.1", 0)
    print(opened.getsockname()[1], flush=True)
    backend = Scripted(pause=pause, load_seconds=load_seconds)
    cut = await serve(
        backend, TEXT, Settings(name="scripted"), opened, drain_seconds=drain_seconds,
        on_ready=lambda: print("READY", flush=True),
    )  # fmt: skip
    print(f"cut {cut}, held {len(backend.held)}, closed {backend.closed}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(float, sys.argv[1:])))
