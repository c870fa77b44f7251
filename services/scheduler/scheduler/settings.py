"""What an operator can tell the scheduler, by environment variables that begin with `SCHEDULER_`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler.fleet import Room


class SchedulerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SCHEDULER_", extra="ignore")

    base_domain: str = Field("localhost", description="Domain below which apps get their system hostname")
    base_domains: dict[str, str] = Field(
        {}, description='Regions with a base domain of their own, as JSON: {"eu": "eu.example.com"}'
    )
    offline_seconds: float = Field(
        90, gt=0, description="A node that has not been heard for longer is offline"
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

    def base_domain_of(self, region: str) -> str:
        return self.base_domains.get(region, self.base_domain)

    def smallest(self) -> Room:
        return Room(self.smallest_cpu_millis, self.smallest_memory_mb, self.smallest_disk_mb)
