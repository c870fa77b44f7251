"""The API's frame: the one error shape, traces, metrics and a limit on nothing but what a route allows."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from contracts.errors import BerthError, disposition, error_body
from contracts.shapes import WORDS
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runtime.telemetry import Stopwatch, Telemetry

log = structlog.get_logger("runtime.http")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_CODES = {404: "not_found", 405: "method_not_allowed", 401: "unauthenticated", 413: "too_large"}


def api(title: str, version: str, telemetry: Telemetry) -> FastAPI:
    app = FastAPI(title=title, version=version, docs_url="/docs", redoc_url=None, openapi_url="/openapi.json")
    app.add_exception_handler(BerthError, _berth_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Measured, telemetry=telemetry)
    return app


def answer(error: BerthError) -> JSONResponse:
    verdict = disposition(error)
    again = error.details.get("retry_after", 1 if verdict.status == 503 else None)
    headers = None if again is None else {"Retry-After": str(again)}
    return JSONResponse(
        error_body(verdict.code, error.message, _plain(error.details)), verdict.status, headers=headers
    )


def _plain(details: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int | float | bool | str | list | dict | None) else str(value)
        for key, value in details.items()
    }


async def _berth_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BerthError)
    return answer(error)


def _field(problem: dict[str, Any], body: Any) -> str:
    """Where it is in what was sent: without the kind that a value of several kinds was taken for."""
    if problem["type"] == "json_invalid":
        return "body"
    source, *named = problem["loc"]
    if source != "body":
        return ".".join(map(str, named)) or "body"
    found = []
    for number, part in enumerate(named, 1):
        listed = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if listed or (isinstance(body, dict) and part in body):
            body = body[part]
        elif number < len(named) or problem["type"] != "missing":
            continue
        found.append(str(part))
    if problem["type"].startswith("union_tag_"):
        found.append(problem["ctx"]["discriminator"].strip("'"))
    return ".".join(found) or "body"


_KINDS = {
    "missing": "is required",
    "extra_forbidden": "there is no such field",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "should be a smaller number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "finite_number": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text in quotes",
    "string_unicode": "should be text",
    "dict_type": "should be a JSON object",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "ip_v4_address": "should be an IPv4 address such as 203.0.113.5",
    "union_tag_not_found": "is required",
}


def _parts(context: dict[str, Any]) -> str:
    # The length of a secret is told of like that of a list of no kind.
    return "characters" if context.get("field_type", "Value") == "Value" else "entries"


def _words(problem: dict[str, Any]) -> str:
    """For those who have not read the program."""
    kind, context = problem["type"], problem.get("ctx", {})
    match kind:
        case _ if kind in _KINDS:
            return _KINDS[kind]
        case "json_invalid":
            return f"is no JSON: {context['error']} at character {problem['loc'][-1]}"
        case "string_pattern_mismatch" if context["pattern"] in WORDS:
            return f"should be {WORDS[context['pattern']]}"
        case "string_too_short" | "too_short" if context["min_length"] == 1:
            return "should not be empty"
        case "string_too_short" | "too_short":
            return f"should have at least {context['min_length']} {_parts(context)}"
        case "string_too_long" | "too_long":
            return f"should have at most {context['max_length']} {_parts(context)}"
        case "greater_than":
            return f"should be more than {context['gt']}"
        case "greater_than_equal":
            return f"should be at least {context['ge']}"
        case "less_than":
            return f"should be less than {context['lt']}"
        case "less_than_equal":
            return f"should be at most {context['le']}"
        case "literal_error":
            return f"should be {context['expected']}"
        case "union_tag_invalid":
            return f"should be {' or '.join(context['expected_tags'].split(', '))}"
        case "model_attributes_type" if problem["loc"] == ("body",):
            return "should be a JSON object, sent as content-type: application/json"
        case "model_attributes_type":
            return "should be a JSON object"
        case "value_error":
            return str(context["error"])
        case _ if kind.startswith("datetime"):
            return "should be a moment such as 2026-01-02T03:04:05Z"
        case _:
            return str(problem["msg"]).replace("Input should be", "should be")


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    said: dict[str, list[str]] = {}
    for problem in error.errors():
        words = said.setdefault(_field(problem, error.body), [])
        if _words(problem) not in words:
            words.append(_words(problem))
    # Of a value that may be of several kinds, the kind that fits best has its own fields named.
    fields = {
        name: " or ".join([words[0], *(one.removeprefix("should be ") for one in words[1:])])
        for name, words in said.items()
        if not any(other.startswith(f"{name}.") for other in said)
    }
    listed = "; ".join(f"{name}: {message}" for name, message in fields.items())
    return JSONResponse(error_body("invalid_input", f"check these fields: {listed}", {"fields": fields}), 422)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_input" if error.status_code < 500 else "internal_error")
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"there is no {request.method} {request.url.path}; /docs lists every route"
    return JSONResponse(error_body(code, message), error.status_code, headers=error.headers)


class Measured:
    """Times and traces a request. Pure ASGI: a stream passes through untouched."""

    def __init__(self, app: Callable[..., Awaitable[None]], telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry
        self._children: dict[tuple[str, str, int], Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = Stopwatch()
        status = 500
        started = False

        async def sent(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        parent = next((value.decode() for key, value in scope["headers"] if key == b"traceparent"), None)
        carrier = {"traceparent": parent} if parent else None
        try:
            with self._telemetry.span(f"{scope['method']} {scope['path']}", carrier=carrier):
                try:
                    await self._app(scope, receive, sent)
                except Exception:
                    log.exception("request failed", method=scope["method"], path=scope["path"])
                    if started:
                        raise
                    response = JSONResponse(
                        error_body("internal_error", "the platform failed; its log says why"), 500
                    )
                    await response(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            # Each child is kept for good, and anybody may invent a method.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            key = (method, route, status)
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = self._telemetry.requests.labels(*key)
            child.observe(watch.seconds)
