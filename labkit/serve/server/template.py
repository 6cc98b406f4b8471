"""Messages of a chat into one prompt, by the model's own Jinja template or, if it has none, plainly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


class Template:
    """How messages are written down.

    Run in Jinja's sandbox, with what templates of Hugging Face expect: `messages`, `add_generation_prompt`, the texts
    of special tokens, `raise_exception`, `strftime_now` and a `tojson` that keeps letters.

    Args:
        source: in Jinja; None: one line a message, `role: content`, and then `assistant:`.
        special: texts of special tokens by name.

    >>> Template(None).render([{"role": "user", "content": "2 + 2?"}])
    'user: 2 + 2?\\nassistant:'
    """

    def __init__(self, source: str | None, special: Mapping[str, str] | None = None) -> None:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks what the assistant says, for training; here it changes nothing."""

            tags = frozenset({"generation"})

            def parse(self, parser: Any) -> nodes.Node:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body, lineno=line)

        world = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        world.filters["tojson"] = _to_json
        world.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        self.plain = source is None
        self.special = dict(special or {})
        self._template = world.from_string(PLAIN if source is None else source)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt. Raises ValueError where the template refuses the messages."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self.special)
        except Exception as error:  # a template may fail in any way, by what the messages hold
            raise ValueError(f"the model's chat template refuses these messages: {error}") from None


def _raise(message: str) -> None:
    raise ValueError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
