"""What an operator can tell domains, by environment variables that begin with `DOMAINS_`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DomainsSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DOMAINS_", extra="ignore")

    public_port: int = Field(
        80,
        ge=1,
        le=65535,
        description="Port on which visitors reach the ingress; part of an app's URL unless 80",
    )
    reserved: tuple[str, ...] = Field(
        ("admin", "api", "auth", "dashboard", "login", "mail", "registry", "status", "www"),
        description='Names below a base domain that no app gets, as JSON: ["www", "api"]',
    )
    quarantine_days: float = Field(
        30, ge=0, description="For so long only its last organization gets a released hostname again"
    )
