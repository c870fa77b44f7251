"""What an operator can tell domains, by environment variables that begin with `DOMAINS_`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DomainsSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DOMAINS_", extra="ignore")

    public_port: int = Field(80, ge=1, le=65535, description="Port at which visitors reach the ingresses")
