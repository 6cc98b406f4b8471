"""What `labkit serve` says when it is ready: two lines to copy, each of which works as it stands."""

from __future__ import annotations

import json
import shlex

PROMPT = "def add(a, b):"
KEY = "LABKIT_API_KEY"


def address(host: str, port: int) -> str:
    """Where this machine's own clients find the server.

    >>> address("0.0.0.0", 8000), address("::", 80), address("127.0.0.1", 1)
    ('http://127.0.0.1:8000', 'http://[::1]:80', 'http://127.0.0.1:1')
    """
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def curl(url: str, model: str, keys: bool) -> str:
    """A command that asks for a completion."""
    body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0})
    key = f' -H "Authorization: Bearer ${KEY}"' if keys else ""
    return f"curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"


def python(url: str, model: str, keys: bool) -> str:
    """A command that does the same with the `openai` package."""
    key = f'__import__("os").environ["{KEY}"]' if keys else '"none"'
    code = (
        f"from openai import OpenAI; print(OpenAI(base_url={json.dumps(url + '/v1')}, api_key={key})"
        f".completions.create(model={json.dumps(model)}, prompt={json.dumps(PROMPT)}, max_tokens=24, temperature=0)"
        ".choices[0].text)"
    )
    return f"python -c {shlex.quote(code)}"


def greeting(url: str, model: str, context: int, keys: bool) -> str:
    """What is printed."""
    lines = [f"serving {model} on {url}, {context} tokens of context; Ctrl-C ends it when what runs is finished"]
    if keys:
        lines.append(f"a key is needed: export {KEY}=… with one of yours")
    return "\n".join([*lines, curl(url, model, keys), python(url, model, keys)])
