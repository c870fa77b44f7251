"""The example that the first start deploys, through the same API every customer uses."""

import io
import tarfile
import time
from http import HTTPStatus
from pathlib import Path

from contracts.api import (
    AppList,
    AppView,
    CreditView,
    DeploymentView,
    Me,
    OrganizationView,
    RegionList,
    SourceView,
)
from contracts.errors import Unavailable
from contracts.scaling_api import PlanList
from pydantic import BaseModel

from embedded.web import Api, get

NAME = "hello"
ORGANIZATION = "Sample"
SOURCE = Path(__file__).resolve().parents[3] / "examples" / "hello-python"
CREDIT = {"amount": "25.00", "note": "to try things out"}
_ENDED = ("failed", "superseded", "running")


class Deployed(BaseModel, frozen=True):
    """Where the example is to be found again."""

    organization: str
    app: str


def deploy(api: Api) -> Deployed:
    """Goes on where a start that was cut off had stopped."""
    own = api.get("/api/auth/me", Me).organizations
    organization = own[0] if own else api.post("/api/organizations", OrganizationView, {"name": ORGANIZATION})
    api.speak_for(organization.id)
    apps = api.get("/api/paas/apps", AppList).apps
    app = next((app for app in apps if app.name == NAME), None) or _create(api, organization.id)
    if app.status != "running":
        api.upload(f"/api/paas/apps/{app.id}/source", SourceView, pack(SOURCE))
        _wait(api, api.post(f"/api/paas/apps/{app.id}/deploy", DeploymentView, {}))
    return Deployed(organization=organization.id, app=app.id)


def look(api: Api, deployed: Deployed) -> AppView:
    api.speak_for(deployed.organization)
    return api.get(f"/api/paas/apps/{deployed.app}", AppView)


def wait_for(url: str, ingress: str, seconds: float = 30) -> None:
    """Asks the ingress itself: not every machine resolves names below localhost."""
    host = url.partition("://")[2].partition("/")[0]
    deadline = time.monotonic() + seconds
    last: int | OSError = 0
    while time.monotonic() < deadline:
        try:
            last, _ = get(ingress, host)
            if last == HTTPStatus.OK:
                return
        except OSError as error:
            last = error
        time.sleep(0.1)
    raise Unavailable(f"{url} does not answer ({last}): see `berth logs`")


def pack(folder: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            if "__pycache__" not in path.parts:
                archive.add(path, str(path.relative_to(folder)), recursive=False)
    return packed.getvalue()


def _create(api: Api, organization: str) -> AppView:
    _wait_for_room(api)
    api.post(f"/api/admin/organizations/{organization}/credits", CreditView, CREDIT)
    # What runs the example is told by the builder; a plan without any runtime runs nothing.
    plans = [plan for plan in api.get("/api/paas/plans", PlanList).plans if plan.runtimes]
    cheapest = min(plans, key=lambda plan: plan.hourly.micros)
    return api.post("/api/paas/apps", AppView, {"name": NAME, "plan": cheapest.name})


def _wait_for_room(api: Api, seconds: float = 60) -> None:
    """The node reports itself from time to time; the first report may have come before anybody listened."""
    deadline = time.monotonic() + seconds
    while not api.get("/api/paas/locations", RegionList).regions:
        if time.monotonic() > deadline:
            raise Unavailable("this machine's node has not reported any room: see `berth logs`")
        time.sleep(0.1)


def _wait(api: Api, view: DeploymentView, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while view.status not in _ENDED:
        if time.monotonic() > deadline:
            raise Unavailable(f"the example is still {view.status}: {view.reason or 'see `berth logs`'}")
        time.sleep(0.1)
        view = api.get(f"/api/paas/deployments/{view.id}", DeploymentView)
    if view.status != "running":
        raise Unavailable(f"the example was not deployed: {view.reason}")
