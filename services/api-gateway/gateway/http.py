"""The REST API: every router, behind the permissions, with a threshold for what no route could use."""

import re
from importlib import metadata
from typing import Any

from contracts.api import Failure
from contracts.errors import InvalidInput, TooLarge
from fastapi import FastAPI
from runtime.http import answer, api
from runtime.telemetry import Telemetry
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute

from gateway import (
    activity,
    alerts,
    app_logs,
    apps,
    auth,
    builds,
    credentials,
    cron,
    deployments,
    images,
    jobs,
    joining,
    logs,
    metrics,
    nodes,
    organizations,
    permissions,
    plans,
    rollback,
    run,
    runtimes,
    scaling,
    servers,
    sessions,
    sleep,
    sources,
    usage,
    variables,
    volumes,
)
from gateway.desk import Desk

# Tried one after the other: what is asked most comes first.
ROUTERS = (
    apps.router,
    deployments.router,
    rollback.router,
    builds.router,
    variables.router,
    volumes.router,
    scaling.router,
    sleep.router,
    metrics.router,
    logs.router,
    app_logs.router,
    usage.router,
    auth.router,
    organizations.router,
    plans.router,
    runtimes.router,
    nodes.router,
    joining.router,
    servers.router,
    sources.router,
    credentials.router,
    images.router,
    alerts.router,
    activity.router,
    jobs.router,
    run.router,
    cron.router,
)
LARGEST_BODY = 256 * 1024
_SOURCE = re.compile(r"/api/paas/apps/[^/]+/source")
_FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Failure, "description": "What is wrong, and what to do"},
    "5XX": {"model": Failure, "description": "The platform cannot answer now"},
}


def create(desk: Desk, telemetry: Telemetry) -> FastAPI:
    app = api("Berth", metadata.version("berth-gateway"), telemetry)
    app.state.desk = desk
    permissions.require_permissions(ROUTERS)
    for router in ROUTERS:
        app.include_router(router, responses=_FAILURES)
    # Not a route with a permission: its ticket was given by one.
    app.router.routes.append(WebSocketRoute("/api/paas/apps/{app}/{verb}/session", sessions.serve))
    app.add_middleware(Threshold)
    return app


class Threshold:
    """Refuses what no route could use. JSON is read into memory whole before a route sees it, so only a
    source, which is not, may be large; and no text of Postgres holds a NUL."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            await answer(InvalidInput("the address has a NUL character in it"))(scope, receive, send)
            return
        if scope["method"] == "GET" or _is_upload(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > LARGEST_BODY:
            await answer(TooLarge(_WORDS, limit=LARGEST_BODY))(scope, receive, send)
            return
        size = 0

        async def limited() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST_BODY:
                # The one kind of error that passes through the framework's reading of a body.
                raise HTTPException(413, _WORDS)
            return message

        await self._app(scope, limited, send)


def _is_upload(method: str, path: str) -> bool:
    return method == "POST" and _SOURCE.fullmatch(path) is not None


_WORDS = f"the body has more than {LARGEST_BODY} bytes; only a source may be larger"
