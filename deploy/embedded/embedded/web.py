"""HTTP to ourselves, past any proxy: the platform's API, its readiness, an app behind the ingress."""

import http.client
import json
from typing import TypeVar
from urllib.parse import urlsplit

from contracts import api
from contracts.errors import Unavailable
from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def request(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=30)
    try:
        connection.request(method, parts.path or "/", body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url} gave no answer: {error!r}") from error
    finally:
        connection.close()


def get(url: str, host: str | None = None) -> tuple[int, bytes]:
    return request("GET", url, headers={"Host": host} if host else None)


class Refused(Unavailable):
    """The API says no, and why."""


class Api:
    """The platform's REST API, as one user."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._headers: dict[str, str] = {}

    def log_in(self, email: str, password: str) -> None:
        answer = self.post("/api/auth/login", api.Token, {"email": email, "password": password})
        self._headers = {"Authorization": f"Bearer {answer.token}"}

    def speak_for(self, organization: str) -> None:
        self._headers["X-Organization"] = organization

    def get(self, path: str, kind: type[M]) -> M:
        return self._call("GET", path, kind, None, {})

    def post(self, path: str, kind: type[M], body: dict[str, str]) -> M:
        return self._call("POST", path, kind, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def upload(self, path: str, kind: type[M], archive: bytes) -> M:
        return self._call("POST", path, kind, archive, {"Content-Type": "application/gzip"})

    def _call(self, method: str, path: str, kind: type[M], body: bytes | None, headers: dict[str, str]) -> M:
        status, answer = request(method, self._url + path, body, self._headers | headers)
        if status >= 400:
            raise Refused(f"{method} {path} answered {status}: {_message(answer)}")
        return kind.model_validate_json(answer)


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")
