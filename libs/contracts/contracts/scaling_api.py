"""The REST API's models of plans, and of the size of an app."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from contracts.api import Amount, Name, Title
from contracts.model import Model, Moment, Strict
from contracts.money import Money
from contracts.workload import Limits, Needs

VolumeMb = Annotated[int, Field(ge=0, le=1_048_576)]
CopyMinutes = Annotated[int, Field(ge=1, le=1440)]


class PlanView(Model):
    name: str
    title: str
    limits: Limits
    max_replicas: int
    # Of all volumes of an app together.
    volume_mb: int
    # So often these are copied to another node, from which the app goes on when its own is lost; none: never.
    copy_minutes: int | None
    autoscaling: bool
    sleeping: bool
    needs: Needs
    hourly: Money
    monthly: Money
    # Names of the runtimes an app on this plan may use.
    runtimes: tuple[str, ...]


class PlanList(Model):
    plans: tuple[PlanView, ...]


class OfferedPlan(PlanView):
    active: bool


class OfferedPlanList(Model):
    plans: tuple[OfferedPlan, ...]


class ChooseLimits(Limits):
    model_config = Strict.model_config

    @model_validator(mode="after")
    def _holds_what_it_promises(self) -> Self:
        pairs = (
            ("cpu_request_millis", self.cpu_request_millis, "cpu_millis", self.cpu_millis),
            ("memory_request_mb", self.memory_request_mb, "memory_mb", self.memory_mb),
        )
        for request, promised, limit, most in pairs:
            if promised is not None and promised > most:
                raise ValueError(
                    f"{request} is the part of {limit} that is promised: give at most {most}, or leave it "
                    "out to promise all of it"
                )
        return self


class ChooseNeeds(Needs):
    """What an app on the plan asks of its nodes."""

    model_config = Strict.model_config


class CreatePlan(Strict):
    name: Name
    title: Title
    limits: ChooseLimits
    max_replicas: Annotated[int, Field(ge=1, le=100)]
    volume_mb: VolumeMb = 10_240
    copy_minutes: CopyMinutes | None = None
    autoscaling: bool = False
    sleeping: bool = False
    needs: ChooseNeeds = ChooseNeeds()
    hourly: Amount
    monthly: Amount
    # None: every runtime, also those to come.
    runtimes: tuple[str, ...] | None = None


class ChangePlan(Strict):
    """What is absent stays. Prices and limits are frozen into an app when it is created: a change of them is
    for apps to come."""

    title: Title | None = None
    limits: ChooseLimits | None = None
    max_replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    volume_mb: VolumeMb | None = None
    # None, said: never.
    copy_minutes: CopyMinutes | None = None
    autoscaling: bool | None = None
    sleeping: bool | None = None
    needs: ChooseNeeds | None = None
    hourly: Amount | None = None
    monthly: Amount | None = None
    runtimes: tuple[str, ...] | None = None
    active: bool | None = None


class Projection(Model):
    """So many instances, what they cost an hour, and how long the wallet lasts if nothing else is used."""

    replicas: int
    hourly: Money
    balance: Money
    hours_left: float | None


class PlanChoice(Model):
    name: str
    title: str
    hourly: Money
    direction: Literal["current", "upgrade", "downgrade"]
    # Why the app could not change to it now.
    obstacles: tuple[str, ...]


class AutoscaleRule(Strict):
    """Load is the share of the plan's CPU or memory that is used, whichever is larger. With
    `requests_per_second`, so many of an instance are as much load as `up_percent`."""

    min: Annotated[int, Field(ge=1, le=100)]
    max: Annotated[int, Field(ge=1, le=100)]
    up_percent: Annotated[int, Field(ge=10, le=100)] = 80
    up_seconds: Annotated[int, Field(ge=60, le=3600)] = 300
    down_percent: Annotated[int, Field(ge=0, le=90)] = 20
    down_seconds: Annotated[int, Field(ge=60, le=86_400)] = 900
    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    # The shortest time between two changes.
    cooldown_seconds: Annotated[int, Field(ge=0, le=86_400)] = 180

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is larger than max")
        if self.down_percent >= self.up_percent:
            raise ValueError("down_percent must be below up_percent")
        return self


class SleepRule(Strict):
    """Without a request for so long, the app sleeps, and costs nothing; the next request wakes it."""

    after_minutes: Annotated[float, Field(gt=0, le=43_200)]


class SleepView(Model):
    """None: it never sleeps."""

    after_minutes: float | None
    asleep: bool


class InstanceMetrics(Model):
    process: str
    index: int
    node: str
    cpu_percent: float
    memory_mb: int
    memory_percent: float
    at: Moment


class RequestMetrics(Model):
    # Since the app was first asked for.
    total: int
    # Answered with a status of 500 or above; and not within a second.
    failed: int
    slow: int
    # Of late.
    per_second: float
    mean_ms: float | None


class AppMetrics(Model):
    """What its instances use, as their nodes said it lately, and what is asked of it."""

    instances: tuple[InstanceMetrics, ...]
    requests: RequestMetrics


class ScalingView(Model):
    plan: str
    replicas: int
    max_replicas: int
    processes: dict[str, int]
    now: Projection
    projected: Projection | None
    autoscale: AutoscaleRule | None
    # What its instances use, in per cent of the plan; None while nothing is known.
    load: float | None
    requests_per_second: float | None
    plans: tuple[PlanChoice, ...]


class ChoosePlan(Strict):
    plan: Annotated[str, StringConstraints(max_length=80)]
