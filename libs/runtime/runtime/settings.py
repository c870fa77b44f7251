"""What every process of the platform can be told, by environment variables that begin with `BERTH_`."""

from pathlib import Path
from typing import Annotated

from contracts.money import Currency
from pydantic import Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.secrets import BadSecret, check_secret, derive

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
Domain = Annotated[
    str, StringConstraints(to_lower=True, max_length=200, pattern=rf"(?i)^{_LABEL}(\.{_LABEL})*$")
]


class RuntimeSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BERTH_", extra="ignore")

    state: Path = Field(Path(".berth"), description="Folder in which this machine keeps its state")
    secret: SecretStr | None = Field(None, description="Master secret; make one with `berth secret`")
    secret_file: Path | None = Field(None, description="File that holds the master secret")
    database_url: str = Field(
        "postgresql://127.0.0.1:5432/berth",
        description="Postgres; role and password are filled in for each service when absent",
    )
    database_admin_url: SecretStr | None = Field(
        None, description="Postgres as a role that may create schemas and roles; only `berth migrate` uses it"
    )
    database_password: SecretStr | None = Field(
        None, description="Password of the service's role, for a process that is not given the master secret"
    )
    database_connections: int = Field(8, ge=2, le=100, description="Most connections of one service")
    nats_url: str = Field("nats://127.0.0.1:4222", description="NATS with JetStream")
    nats_password: SecretStr | None = Field(
        None, description="Password of the service's user, for a process that is not given the master secret"
    )
    nats_issuer: SecretStr | None = Field(
        None, description="What nodes are let in to NATS with, for a scheduler without the master secret"
    )
    nats_ca: Path | None = Field(
        None, description="Certificates (PEM) that vouch for NATS at a tls:// address; none: the system's"
    )
    seal_key: SecretStr | None = Field(
        None, description="What customers' secrets are sealed with, for a service without the master secret"
    )
    node_seal_key: SecretStr | None = Field(
        None, description="What is sealed for one node, for its agent without the master secret"
    )
    registry_key: SecretStr | None = Field(
        None,
        description="What tokens for the image registry are signed with, without the master secret",
    )
    node: str = Field("local", description="Name of the node the agent in this process speaks for")
    currency: Currency = Field(
        "USD",
        description="Currency of all prices and wallets (ISO 4217); keep it once money has been booked",
    )
    base_domain: Domain = Field("localhost", description="Domain below which apps get their system hostname")
    base_domains: dict[str, Domain] = Field(
        {}, description='Regions with a base domain of their own, as JSON: {"eu": "eu.example.com"}'
    )
    http_host: str = Field("127.0.0.1", description="Address the API listens on")
    api_port: int = Field(8000, ge=0, le=65535, description="Port the API listens on")
    ops_host: str = Field("127.0.0.1", description="Address of /healthz, /readyz and /metrics")
    ops_port: int = Field(8001, ge=0, le=65535, description="Port of /healthz, /readyz and /metrics")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level logged")
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector (OTLP over HTTP); none: no export"
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of new traces recorded, with a collector set"
    )
    max_tries: int = Field(8, ge=1, description="Tries of a message before it is parked")

    def base_domain_of(self, region: str) -> str:
        return self.base_domains.get(region, self.base_domain)

    def master(self) -> str | None:
        if self.secret_file is not None:
            return check_secret(self.secret_file.read_text().strip())
        return None if self.secret is None else check_secret(self.secret.get_secret_value())

    def derived(self, purpose: str) -> str:
        master = self.master()
        if master is None:
            raise BadSecret(
                f"BERTH_SECRET or BERTH_SECRET_FILE is needed for {purpose}; "
                "`berth with-settings COMMAND …` has what `make up` made"
            )
        return derive(master, purpose)

    def database_password_of(self, service: str) -> str:
        if self.database_password is not None:
            return self.database_password.get_secret_value()
        return self.derived(f"database/{service}")

    def nats_password_of(self, user: str) -> str:
        if self.nats_password is not None:
            return self.nats_password.get_secret_value()
        return self.derived(f"nats/{user}")

    @property
    def nats_issuer_key(self) -> str:
        if self.nats_issuer is not None:
            return self.nats_issuer.get_secret_value()
        return self.derived("nats/issuer")

    @property
    def registry_secret(self) -> str:
        """Of the key that signs who may do what in the image registry."""
        if self.registry_key is not None:
            return self.registry_key.get_secret_value()
        return self.derived("registry/key")

    def seal_key_of(self, purpose: str) -> str:
        """The same in every service: what one has sealed, another opens."""
        base = self.derived("seal") if self.seal_key is None else self.seal_key.get_secret_value()
        return derive(base, purpose)

    def seal_key_of_node(self, node: str) -> str:
        if self.node_seal_key is not None:
            return self.node_seal_key.get_secret_value()
        return self.seal_key_of(f"node/{node}")
