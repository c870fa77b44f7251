"""What an operator can tell the builder, by environment variables that begin with `BUILDER_`."""

from pathlib import Path

from contracts.archive import ArchiveLimits
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class BuilderSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BUILDER_", extra="ignore")

    engine: str = Field(
        "unix:///var/run/docker.sock",
        pattern=r"^(unix|tcp)://.+",
        description="Container engine that builds; unix:// or tcp://",
    )
    prefix: str = Field(
        "berth",
        pattern=r"^[a-z][a-z0-9]{1,8}$",
        description="Marks what this installation makes in the engine; as the node agent's",
    )
    concurrency: int = Field(2, ge=1, le=32, description="Builds at the same time")
    organization_concurrency: int = Field(
        4, ge=1, le=32, description="Builds of one organization at the same time, on all builders"
    )
    timeout_seconds: float = Field(1800, gt=0, description="Longest build, from source to image")
    lease_seconds: float = Field(
        20,
        ge=1,
        le=300,
        description="A builder silent for so long loses its builds to another",
    )
    memory_mb: int = Field(2048, ge=64, description="Memory of a build whose plan has less")
    cpu_millis: int = Field(2000, ge=100, description="CPU of a build whose plan has less")
    disk_mb: int = Field(
        8192, ge=64, description="Disk of a build whose plan has less, all its steps together"
    )
    least_free_mb: int = Field(
        1024, ge=0, description="No build is begun, and none goes on, while the engine's disk has less"
    )
    pids: int = Field(1024, ge=64, description="Processes of a build whose plan has fewer")
    source_files: int = Field(50_000, ge=1, description="Most files and folders of a source")
    source_mb: int = Field(1024, ge=1, description="Largest source, unpacked")
    git_image: str = Field("berth/git:bookworm", description="Image with git, to fetch repositories in")
    git_seconds: float = Field(300, gt=0, description="Longest fetch of a repository")
    allow_private_git: bool = Field(
        False, description="Let customers fetch, also without TLS, from private addresses"
    )
    allow_private_registry: bool = Field(
        False, description="Let customers take images from registries on private addresses"
    )
    ca_bundle: Path | None = Field(
        None, description="CA certificates (PEM) that builds need to reach package registries"
    )
    registry: str | None = Field(
        None,
        pattern=r"^[a-z0-9.-]+(:\d+)?(/[a-z0-9._/-]+)?$",
        description="Registry images are pushed to; none: builder and nodes share one engine",
    )
    registry_url: str | None = Field(
        None,
        pattern=r"^https?://.+",
        description="Where the builder itself reaches that registry, to remove images; none: by its name",
    )
    registry_user: str = Field(
        "", description="User who may push to that registry; none: a token, which the registry has to trust"
    )
    registry_password: SecretStr = Field(SecretStr(""), description="Password of that user")
    keep_images: int = Field(5, ge=1, description="Images kept of an app's last builds")
    cache_days: float = Field(7, gt=0, description="Build cache that was not used for so long is removed")
    cache_gb: float = Field(
        20, gt=0, description="Build cache of an engine; beyond that, what was not used for longest goes"
    )
    log_mb: float = Field(16, gt=0, description="Largest log of a build; what comes after is left out")

    def source_limits(self, *, links: bool) -> ArchiveLimits:
        return ArchiveLimits(self.source_files, self.source_mb * MIB, links)
