import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from contracts.errors import Unavailable
from contracts.ids import new_id
from embedded import first_app
from embedded.web import Api

NOW = "2026-01-01T00:00:00Z"
MONEY = {"micros": 1000, "currency": "USD"}


class Platform:
    """Just enough of the API for one administrator and his first app."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.organizations: list[dict[str, Any]] = []
        self.apps: list[dict[str, Any]] = []
        self.outcome = "running"
        self.last_organization: str | None = None

    def answer(self, call: str, body: bytes) -> Any:
        self.calls.append(call)
        match call.split():
            case ["POST", "/api/auth/login"]:
                return {"token": "t", "expires_at": NOW}
            case ["GET", "/api/auth/me"]:
                user = {"id": new_id("usr"), "email": "admin@berth.localhost", "administrator": True}
                return user | {"organizations": self.organizations}
            case ["POST", "/api/organizations"]:
                self.organizations.append({"id": new_id("org"), "name": json.loads(body)["name"]})
                return self.organizations[-1]
            case ["POST", path] if path.endswith("/credits"):
                credit = {"id": new_id("crd"), "organization": path.split("/")[-2], "amount": MONEY}
                return credit | {"note": "", "at": NOW}
            case ["GET", "/api/paas/locations"]:
                seen = self.calls.count(call) > 1
                return {"regions": [{"name": "local", "base_domain": "localhost"}] if seen else []}
            case ["GET", "/api/paas/plans"]:
                return {"plans": [self.plan("large", 9000), self.plan("small", 1000)]}
            case ["GET", "/api/paas/apps"]:
                return {"apps": self.apps, "next": None}
            case ["POST", "/api/paas/apps"]:
                self.apps.append(self.app(**json.loads(body)))
                return self.apps[-1]
            case ["POST", path] if path.endswith("/source"):
                return {"id": new_id("src"), "sha256": "0" * 64, "size": len(body), "files": 3}
            case ["POST", path] if path.endswith("/deploy"):
                return self.deployment(path.split("/")[-2], "queued")
            case ["GET", path] if "/deployments/" in path:
                self.apps[0]["status"] = self.outcome
                return self.deployment(self.apps[0]["id"], self.outcome)
            case ["GET", _]:
                return self.apps[0]
        raise AssertionError(call)

    def plan(self, name: str, micros: int) -> dict[str, Any]:
        limits = {"cpu_millis": 100, "memory_mb": 128, "disk_mb": 512, "pids": 64}
        hourly = {"micros": micros, "currency": "USD"}
        return {
            "name": name,
            "title": name,
            "limits": limits,
            "max_replicas": 1,
            "volume_mb": 1024,
            "copy_minutes": None,
            "autoscaling": False,
            "sleeping": False,
            "needs": {},
            "hourly": hourly,
            "monthly": hourly,
            "runtimes": ["python-3.11"],
        }

    def app(self, name: str, plan: str) -> dict[str, Any]:
        return {
            "id": new_id("app"),
            "name": name,
            "project": new_id("prj"),
            "environment": "production",
            "status": "created",
            "reason": None,
            "url": f"http://{name}.localhost:8080",
            "region": "local",
            "plan": plan,
            "replicas": 1,
            "hourly": MONEY,
            "generation": 1,
            "deployment": None,
            "created_at": NOW,
        }

    def deployment(self, app: str, status: str) -> dict[str, Any]:
        absent = ["recipe", "image", "size_bytes", "commit", "commit_author", "commit_message"]
        absent += ["exit_code", "failed_step", "seconds", "position"]
        return {
            "id": new_id("dep"),
            "app": app,
            "number": 1,
            "status": status,
            "reason": "step `pip install` failed with 1" if status == "failed" else None,
            "source": {"kind": "upload", "source": new_id("src"), "sha256": "0" * 64, "size": 1},
            "log_tail": [],
            "notes": [],
            "created_at": NOW,
            "finished_at": None,
        } | dict.fromkeys(absent)


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def api(platform: Platform) -> Iterator[Api]:
    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.reply(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def do_GET(self) -> None:
            self.reply(b"")

        def reply(self, body: bytes) -> None:
            platform.last_organization = self.headers.get("X-Organization")
            answer = json.dumps(platform.answer(f"{self.command} {self.path}", body)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """The test's output is not its access log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        api = Api(f"http://127.0.0.1:{server.server_port}")
        api.log_in("admin@berth.localhost", "password")
        yield api
        server.shutdown()
        thread.join()


def test_the_first_app_gets_an_organization_with_credit_and_the_cheapest_plan(
    api: Api, platform: Platform
) -> None:
    deployed = first_app.deploy(api)
    (organization,) = platform.organizations
    (app,) = platform.apps
    assert (deployed.organization, deployed.app) == (organization["id"], app["id"])
    assert (app["name"], app["plan"], app["status"]) == ("hello", "small", "running")
    assert f"POST /api/admin/organizations/{organization['id']}/credits" in platform.calls
    assert first_app.look(api, deployed).url == "http://hello.localhost:8080"
    assert platform.last_organization == organization["id"]


def test_a_start_that_was_cut_off_goes_on_where_it_stopped(api: Api, platform: Platform) -> None:
    platform.organizations.append({"id": new_id("org"), "name": "Mine"})
    platform.apps.append(platform.app("hello", "small"))
    first_app.deploy(api)
    assert not [call for call in platform.calls if call.endswith(("/credits", "POST /api/paas/apps"))]
    assert len(platform.apps) == 1
    platform.calls.clear()
    first_app.deploy(api)
    assert not [call for call in platform.calls if call.endswith("/deploy")]


def test_a_failed_deployment_is_told_with_its_reason(api: Api, platform: Platform) -> None:
    platform.outcome = "failed"
    with pytest.raises(Unavailable, match="the example was not deployed: step `pip install` failed with 1"):
        first_app.deploy(api)
