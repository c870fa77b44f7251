"""What an operator can tell the gateway, by environment variables that begin with `GATEWAY_`."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from runtime.secrets import KNOWN, BadSecret, check_secret

MIB = 1024 * 1024
_SHORTEST_PASSWORD = 12
_KNOWN_PASSWORDS = KNOWN | {
    "admin",
    "administrator",
    "letmein",
    "captain42",
    "qwertyuiop",
    "passwordpassword",
}


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GATEWAY_", extra="ignore")

    admin_email: str = Field("", description="E-mail of the first administrator; once there is one, unused")
    admin_password: SecretStr = Field(
        SecretStr(""), description="Password of the first administrator, at least 12 characters"
    )
    registration: bool = Field(True, description="Whether anybody may register an account")
    token_secret: SecretStr | None = Field(
        None, description="Key that signs log-ins, for a process that is not given the master secret"
    )
    token_hours: float = Field(24, gt=0, le=720, description="How long a log-in lasts")
    allow_private_git: bool = Field(
        False, description="Allow Git repositories on private, loopback and link-local addresses"
    )
    upload_bytes: int = Field(100 * MIB, gt=0, description="Largest source archive, packed")
    unpacked_bytes: int = Field(512 * MIB, gt=0, description="Largest source archive, unpacked")
    upload_files: int = Field(20_000, gt=0, description="Most entries of a source archive")
    sources_kept: int = Field(3, ge=1, description="Uploads kept of each app")
    build_minutes: float = Field(
        60, gt=0, description="A build that has said nothing for so long counts as failed"
    )
    builds_per_hour: int = Field(120, ge=1, description="Builds an organization may ask for in an hour")
    deploys_per_hour: int = Field(240, ge=1, description="Deployments an organization may ask for in an hour")
    release_minutes: float = Field(
        30, gt=0, le=600, description="A release phase that runs for longer is ended, and fails"
    )
    uploads_per_hour: int = Field(240, ge=1, description="Sources an organization may upload in an hour")
    commands_per_hour: int = Field(
        600,
        ge=1,
        description="Commands an organization may ask for in an hour; schedules are not counted",
    )
    jobs_per_app: int = Field(
        5, ge=1, le=100, description="Commands an app runs at the same time, and runs of one of its schedules"
    )
    apps_per_organization: int = Field(200, ge=1, description="Most apps of an organization")
    organizations_per_user: int = Field(20, ge=1, description="Most organizations of a user")
    stream_seconds: float = Field(
        600, gt=0, description="A log stream ends itself after so long, and the client comes again"
    )
    log_days: float = Field(7, gt=0, le=3650, description="What apps and nodes say is kept for so many days")
    log_mb: int = Field(
        64, ge=1, description="Most of an app's lines that are kept, packed to about a tenth; the newest stay"
    )

    least_sleep_minutes: float = Field(
        1, gt=0, description="Shortest time without a request after which an app may sleep"
    )
    public_url: str = Field(
        "",
        pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+)?$",
        description="Where the API is reached from other machines; none: as the request says",
    )
    node_nats_url: str = Field(
        "",
        pattern=r"^(tls://[A-Za-z0-9.:\[\]-]+)?$",
        description="NATS as nodes of other machines reach it, tls://HOST:PORT; none: no machine can join",
    )
    node_nats_ca: Path | None = Field(
        None, description="Certificate (PEM) by which a node knows NATS; none: one of the public authorities"
    )
    node_settings: dict[str, str] = Field(
        {},
        description='Settings every joining node is given, as JSON: {"NODE_AGENT_REGISTRY_USER": "nodes"}',
    )

    @field_validator("token_secret")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                check_secret(value.get_secret_value())
            except BadSecret as error:
                raise ValueError("GATEWAY_TOKEN_SECRET is too weak; make one with: berth secret") from error
        return value

    @model_validator(mode="after")
    def _administrator(self) -> "GatewaySettings":
        """No start with an administrator anybody could log in as."""
        password = self.admin_password.get_secret_value()
        if not self.admin_email and not password:
            return self
        if "@" not in self.admin_email:
            raise ValueError(
                "GATEWAY_ADMIN_EMAIL must be an e-mail address when GATEWAY_ADMIN_PASSWORD is set"
            )
        if len(password) < _SHORTEST_PASSWORD or password.isspace():
            raise ValueError(
                f"GATEWAY_ADMIN_PASSWORD must have at least {_SHORTEST_PASSWORD} characters; "
                "make one with: berth secret"
            )
        known = {*_KNOWN_PASSWORDS, self.admin_email.lower(), self.admin_email.partition("@")[0].lower()}
        plain = password.lower().strip()
        if plain in known or plain.rstrip("0123456789!.") in known or len(set(password)) < 5:
            raise ValueError("GATEWAY_ADMIN_PASSWORD is too easy to guess; make one with: berth secret")
        return self
