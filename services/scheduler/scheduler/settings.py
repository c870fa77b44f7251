"""What an operator can tell the scheduler, by environment variables that begin with `SCHEDULER_`."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler.fleet import Room


class SchedulerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SCHEDULER_", extra="ignore")

    offline_seconds: float = Field(
        90, gt=0, description="A node that has not been heard for longer is offline"
    )
    placement: Literal["balance", "pack"] = Field(
        "balance",
        description="New work goes to the least utilized node, or fills up one node after the other",
    )
    smallest_cpu_millis: int = Field(
        100, gt=0, description="A region has room while one of its nodes has this CPU free"
    )
    smallest_memory_mb: int = Field(
        128, gt=0, description="A region has room while one of its nodes has this memory free"
    )
    smallest_disk_mb: int = Field(
        512, gt=0, description="A region has room while one of its nodes has this disk free"
    )

    def smallest(self) -> Room:
        return Room(self.smallest_cpu_millis, self.smallest_memory_mb, self.smallest_disk_mb)
