"""The API's frame: the one error shape, traces, metrics and a limit on nothing but what a route allows."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from contracts.errors import BerthError, disposition, error_body
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runtime.telemetry import Stopwatch, Telemetry
from runtime.wrong_input import fields_of

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


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = fields_of(error.errors(), error.body)
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
