"""What may be asked, field by field: exact types, no unknown keys, and a sentence for what OpenAI has and we have not.

A field that is null has its default, as with OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labkit.serve.server.errors import ApiError, refused
from labkit.serve.server.forms import ContentField, PromptField, StopField, shown

MOST_TOKENS = 2**31 - 1
SEEDS = 2**63


class Strict(BaseModel):
    """An object with these keys and no others, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class StreamOptions(Strict):
    """What a stream tells beside the answer."""

    include_usage: bool | None = Field(None, description="A last event counts the tokens.")
    continuous_usage_stats: bool | None = Field(None, description="Every event counts them so far.")


class NamedSchema(Strict):
    """A JSON schema that the answer must fit."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class AnyText(Strict):
    """The answer may be any text."""

    type: Literal["text"]


class AnyJson(Strict):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class SchemaJson(Strict):
    """The answer is JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[AnyText | AnyJson | SchemaJson, Field(discriminator="type")]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


class Asked(Strict):
    """What completions and chats have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = Field(None, description="0 or -1: all tokens.")
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    stop: StopField = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, le=MOST_TOKENS)]], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None
    user: str | None = Field(None, description="A label of yours; it changes nothing.")
    cache_salt: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Only requests with the same one share what is cached of their prompts."
    )


class CompletionAsked(Asked):
    """A text, or several, to be continued."""

    prompt: PromptField
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = Field(None, description="16 if not given.")
    echo: bool | None = Field(None, description="The answer begins with the prompt.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="Alternatives for each token.")


class Message(Strict):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: ContentField
    name: str | None = None


class ChatAsked(Asked):
    """A conversation to be continued."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_tokens: Count | None = Field(None, description="All that the context leaves, if not given.")
    max_completion_tokens: Count | None = Field(None, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


# What OpenAI's interface (or vLLM's) has and this server has not. Values that change nothing may be given.
ABSENT: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "frequency_penalty": (0,), "function_call": ("none", "auto"), "functions": ([],),
    "logit_bias": ({},), "metadata": ({},), "min_p": (0,), "modalities": (["text"],),
    "parallel_tool_calls": (True, False), "prediction": (), "presence_penalty": (0,), "reasoning_effort": ("none",),
    "repetition_penalty": (1,), "service_tier": ("auto", "default"), "store": (False,), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "use_beam_search": (False,), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip
ABSENT_IN_MESSAGES = ("refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content")

Kind = TypeVar("Kind", bound=Asked)


def understand(kind: type[Kind], body: Any) -> Kind:
    """A request's body as what it asks. Raises ApiError (400) that names the field at fault."""
    if not isinstance(body, dict):
        raise refused(f"the body is {shown(body)}; give a JSON object")
    for key in ABSENT.keys() & body.keys():
        if body[key] is not None and not any(_same(body[key], neutral) for neutral in ABSENT[key]):
            raise refused(f"{key} is not supported by this server; leave it out", key, "unsupported_parameter")
    body = {key: value for key, value in body.items() if key not in ABSENT}
    if isinstance(body.get("messages"), list):
        body["messages"] = [_without_absent(message) for message in body["messages"]]
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and of one type, numbers apart: 0.0 is 0, False is not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _without_absent(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if key not in ABSENT_IN_MESSAGES or value not in (None, [])}


def _refusal(error: ValidationError) -> ApiError:
    """The first fault that is found, as a sentence."""
    first = error.errors(include_url=False)[0]
    tags = ("text", "json_object", "json_schema")
    place = [str(part) for at, part in enumerate(first["loc"])
             if not (at and first["loc"][at - 1] == "response_format" and part in tags)]  # fmt: skip
    param = ".".join(place)
    if first["type"] == "extra_forbidden":
        return refused(f"unknown parameter {shown(param)}; leave it out", param, "unknown_parameter")
    if first["type"] == "missing":
        return refused(f"{param} is missing; give it", param, "missing_parameter")
    words = first["msg"].removeprefix("Value error, ")
    words = words[:1].lower() + words[1:]
    given = "" if first["type"] == "value_error" else f"{shown(first['input'])} was given; "
    return refused(f"{param}: {given}{words}", param, "invalid_value")
