"""The application: routes, and what `/openapi.json` says of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from labkit.serve.engine import Backend
from labkit.serve.server import asked, told
from labkit.serve.server.chat import chat
from labkit.serve.server.completions import complete
from labkit.serve.server.errors import ApiError, JsonResponse, encoded, shortened
from labkit.serve.server.guard import Guard, not_ready
from labkit.serve.server.metrics import Metrics
from labkit.serve.server.service import Service
from labkit.serve.server.settings import Settings
from labkit.serve.server.text import Text

ASKING = (400, 401, 404, 405, 408, 413, 415, 429, 500, 503)
LOOKING = (401, 404, 405, 503)


def create_app(backend: Backend, tokenizer: Any, settings: Settings | None = None) -> FastAPI:
    """A server of one model.

    Args:
        backend: makes the answers; started and closed by the caller.
        tokenizer: a `Text`, a fast tokenizer of transformers, or a `tokenizers.Tokenizer`.
        settings: limits and keys.
    """
    settings = settings or Settings()
    text = tokenizer if isinstance(tokenizer, Text) else Text(tokenizer)
    metrics = Metrics(backend)
    service = Service(backend, text, settings, metrics)

    @contextlib.asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="labkit serve", version="1", lifespan=living, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_asking(app, service)
    _add_looking(app, service)
    app.add_middleware(Guard, backend=backend, settings=settings, metrics=metrics)
    return app


async def _api_error(_: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the router says: no such path, no such method."""
    where = f"{request.method} {shortened(request.url.path, 100)}"
    if error.status_code == 405:
        words = f"{where}: this path takes {(error.headers or {}).get('Allow', 'another method')}"
        return ApiError(405, words, code="method_not_allowed", headers=error.headers).response()
    words = f"{where}: there is no such path; see /openapi.json" if error.status_code == 404 else str(error.detail)
    return ApiError(error.status_code, words, code="not_found", headers=error.headers).response()


def _add_asking(app: FastAPI, service: Service) -> None:
    def declare(path: str, name: str, body: type, answer: type, words: str):
        good = {"model": answer, "description": "The answer, or with `stream` events of it."}
        event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        good["content"] = {"text/event-stream": {"schema": event}}
        return app.post(
            path, operation_id=name, summary=words, response_class=JsonResponse,
            responses={200: good, **told.responses(*ASKING)},
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
                "schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}}},
        )  # fmt: skip

    @declare("/v1/completions", "complete", asked.CompletionAsked, told.Completion, "Continue texts")
    async def completions(request: Request) -> Response:
        return await complete(service, request)

    @declare("/v1/chat/completions", "chat", asked.ChatAsked, told.ChatCompletion, "Continue a conversation")
    async def chat_completions(request: Request) -> Response:
        return await chat(service, request)


def _add_looking(app: FastAPI, service: Service) -> None:
    began = int(time.time())

    def look(path: str, name: str, answer: type | None, words: str, *errors: int, kind: str = "application/json"):
        good: dict[str, Any] = {"model": answer} if answer else {"content": {kind: {"schema": {"type": "string"}}}}
        return app.get(
            path, operation_id=name, summary=words, response_class=JsonResponse if answer else Response,
            responses={200: {**good, "description": words}, **told.responses(*errors)},
        )  # fmt: skip

    def described() -> dict[str, Any]:
        try:
            most = service.info.max_context
        except (AttributeError, RuntimeError):
            raise not_ready(False, True, "", service.settings.retry_seconds) from None
        own = {"object": "model", "created": began, "owned_by": "labkit", "max_model_len": most}
        return {"id": service.model, **own}

    @look("/v1/models", "list_models", told.Models, "The model that is served", *LOOKING)
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [described()]})

    @look("/v1/models/{model:path}", "get_model", told.Model, "One model", *LOOKING)
    async def model(model: str) -> Response:
        own = described()
        service.need_model(model)
        return JsonResponse(own)

    @look("/health", "health", told.State, "Whether the server lives", 405, 503)
    async def health() -> Response:
        return _state(service, ready=False)

    @look("/ready", "ready", told.State, "Whether requests are accepted", 405, 503)
    async def ready() -> Response:
        return _state(service, ready=True)

    @look("/metrics", "metrics", None, "For Prometheus", 405, kind="text/plain")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    made: dict[str, bytes] = {}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        name = described()["id"]
        if name not in made:
            made[name] = encoded(description(app, service))
        return Response(made[name], media_type="application/json")


def _state(service: Service, ready: bool) -> Response:
    health = service.backend.health()
    if not health.alive or (ready and (not health.ready or health.draining)):
        raise not_ready(health.draining, health.alive, health.reason, service.settings.retry_seconds)
    return JsonResponse({"status": "ok", "restarts": health.restarts})


def description(app: FastAPI, service: Service) -> dict[str, Any]:
    """The interface in the OpenAPI format, with the name of the model that is served."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    parts = made.setdefault("components", {}).setdefault("schemas", {})
    for body in (asked.CompletionAsked, asked.ChatAsked):
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= schema.pop("$defs", {})
        schema["properties"]["model"] = {"type": "string", "enum": [service.model]}
        _narrow(schema["properties"], service)
        parts[body.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which never come
        parts.pop(name, None)
    if service.settings.keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _mend(operation)
            if service.settings.keys and path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
    return made


def _narrow(properties: dict[str, Any], service: Service) -> None:
    """Say what this model and these settings allow, where that is less than the interface could."""
    info, settings = service.info, service.settings
    new = min(settings.max_output_tokens or info.max_context, info.max_context - 1)
    for name, most in (("max_tokens", new), ("max_completion_tokens", new), ("n", settings.max_choices)):
        for form in properties.get(name, {}).get("anyOf", ()):
            if "maximum" in form:
                form["maximum"] = min(form["maximum"], most)


def _mend(operation: dict[str, Any]) -> None:
    """Take out what FastAPI adds and this server does not do: 422, and answers that are objects and text at once."""
    operation["responses"].pop("422", None)
    for response in operation["responses"].values():
        for kind in response.get("content", {}).values():
            if "$ref" in kind.get("schema", {}):
                kind["schema"] = {"$ref": kind["schema"]["$ref"]}
