"""What an operator can tell `berth up` beside what every process is told; the prefix is the same."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EmbeddedSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BERTH_", extra="ignore")

    http_port: int = Field(8080, ge=1, le=65535, description="Port the apps are reached at")
    ingress_host: str = Field(
        "127.0.0.1", pattern=r"^\d+(\.\d+){3}$", description="Address the apps are reached at; 0.0.0.0: all"
    )
    example: bool = Field(True, description="Deploy the example app with the first start")
