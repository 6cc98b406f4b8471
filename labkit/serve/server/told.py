"""What is answered, field by field: for `/openapi.json`, and for tests that hold the answers to it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]


class Told(BaseModel):
    """An object with these keys and no others."""

    model_config = ConfigDict(extra="forbid")


class Fault(Told):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Told):
    """A request that was not answered."""

    error: Fault


class PromptDetails(Told):
    """Of the prompts' tokens, those found in the cache."""

    cached_tokens: int


class Usage(Told):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Logprobs(Told):
    """For each token its name, log probability, alternatives and place in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Told):
    """One continuation."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Finish


class Completion(Told):
    """Continuations of texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Alternative(Told):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Alternative):
    """A token that came."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Told):
    """All tokens of an answer."""

    content: list[ChatToken]


class ChatMessage(Told):
    """What the model said."""

    role: Literal["assistant"]
    content: str


class ChatChoice(Told):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Told):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(Told):
    """A model that is served; max_model_len: tokens of prompt and answer together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(Told):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class State(Told):
    """How the server is."""

    status: Literal["ok"]
    restarts: int


WORDS = {
    400: "The request is wrong; `param` says where.",
    401: "The API key is missing or wrong.",
    404: "There is no such model, or no such path.",
    405: "The path does not know this method.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too much is under way; try again after Retry-After seconds.",
    500: "The server failed on this request.",
    503: "Nothing is accepted just now; try again after Retry-After seconds.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that an endpoint may answer with, for OpenAPI."""
    return {status: {"model": Error, "description": WORDS[status]} for status in statuses}
