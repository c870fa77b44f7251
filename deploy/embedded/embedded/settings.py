"""What an operator can tell `berth up` beside what every process is told; the prefix is the same."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EmbeddedSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BERTH_", extra="ignore")

    http_port: int = Field(8080, ge=1, le=65535, description="Port the apps are reached at")
    ingress_host: str = Field(
        "127.0.0.1", pattern=r"^\d+(\.\d+){3}$", description="Address the apps are reached at; 0.0.0.0: all"
    )
    public_host: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$",
        description="Name or IPv4 address other machines reach this one by; with it they can join as nodes",
    )
    images: str = Field(
        "static node go php ruby java buildpack",
        description="Runtimes whose images are made beside the running platform; empty: none",
    )
    example: bool = Field(True, description="Deploy the example app with the first start")
