"""Whether a JSON schema can be held to, found out before a request runs: its reader may refuse it, or take long."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Executor
from typing import Any

from labkit.serve.server.errors import ApiError, refused

LONGEST = 1 << 17  # characters
PARAM = "response_format.json_schema.schema"


async def need_schema(schema: dict[str, Any], threads: Executor) -> None:
    """Read a schema with llguidance, as the engine will, in a thread.

    Raises ApiError: 400 for a schema that cannot be held to, 501 without llguidance.
    """
    if wrong := await asyncio.get_running_loop().run_in_executor(threads, fault, schema):
        raise refused(f"the schema cannot be used: {wrong}", PARAM, "invalid_schema")


def fault(schema: dict[str, Any]) -> str:
    """What is wrong with a schema; empty if nothing is. Raises ApiError (501) without llguidance.

    >>> fault({"type": "object", "properties": {"a": {"type": "number"}}}), fault({"type": "colour"})
    ('', 'Invalid type: colour')
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        words = "this server cannot hold answers to a schema; it needs: pip install 'labkit[serve]'"
        raise ApiError(501, words, param="response_format", code="unsupported_parameter") from None
    try:
        text = json.dumps(schema, allow_nan=False)
        if len(text) > LONGEST:
            return f"it has {len(text)} characters; {LONGEST} are allowed"
        words = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text))
    except (ValueError, TypeError, RecursionError) as error:
        words = str(error)
    return " ".join((words or "").split())
