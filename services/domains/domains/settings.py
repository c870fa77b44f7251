"""What an operator can tell domains, by environment variables that begin with `DOMAINS_`."""

from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

Domain = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=180
    ),
]


class DomainsSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DOMAINS_", extra="ignore")

    base_domain: Domain = Field("localhost", description="Domain below which apps get their system hostname")
    base_domains: dict[str, Domain] = Field(
        {}, description='Regions with a base domain of their own, as JSON: {"eu": "eu.example.com"}'
    )
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

    def base_domain_of(self, region: str) -> str:
        return self.base_domains.get(region, self.base_domain)
