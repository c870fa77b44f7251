"""What the node agent can be told, by environment variables that begin with `NODE_AGENT_`."""

from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class NodeAgentSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NODE_AGENT_", extra="ignore")

    region: str = Field("local", description="Region this node is in")
    engine: str = Field("unix:///var/run/docker.sock", description="Where the container engine listens")
    prefix: str = Field(
        "berth",
        pattern="^[a-z][a-z0-9]{1,5}$",
        description="Begins the names of the containers, networks, bridges and chains made on this machine",
    )
    routes: Path | None = Field(
        None, description="Folder Traefik watches; none: `traefik/routes` in BERTH_STATE"
    )
    ingress_url: str = Field(
        "http://127.0.0.1:8080", description="Where the ingress of this machine answers HTTP"
    )
    mesh_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of the ingress's entry point `mesh`, where other nodes reach it; 0: they do not",
    )
    mesh_host: str = Field(
        "",
        pattern=r"^([A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])$",
        description="Where other nodes reach this one (IPv6 in brackets); empty: where it joined from",
    )
    mesh_here_port: int = Field(
        7480, ge=1, le=65535, description="Port on loopback of the ingress's entry point `here`"
    )
    registry_user: str | None = Field(None, description="User at the registry the images come from")
    registry_password: SecretStr | None = Field(None, description="Password of that user")
    network_pool: IPv4Network = Field(
        IPv4Network("10.224.0.0/12"),
        description="Addresses for instances; each organization on this node gets a subnet of it",
    )
    network_bits: int = Field(24, ge=20, le=29, description="Prefix length of an organization's subnet")
    firewall: Literal["on", "off"] = Field(
        "on", description="Packet rules that keep instances from this machine and from private networks"
    )
    allowed_networks: tuple[IPv4Network, ...] = Field(
        (), description="Private networks that instances may reach all the same"
    )
    allowed_host_ports: tuple[int, ...] = Field(
        (), description="TCP ports of this machine that instances may reach, such as those of its ingress"
    )
    cpu_millis: int | None = Field(
        None, gt=0, description="1/1000 of a core given away, also more than there is; none: all"
    )
    memory_mb: int | None = Field(None, gt=0, description="Most memory given away; none: all")
    disk_mb: int | None = Field(None, gt=0, description="Most disk given away; none: all")
    first_uid: int = Field(
        0, ge=0, description="First user id the engine maps containers to (userns-remap); 0: it maps none"
    )
    tmp_mb: int = Field(64, ge=1, description="Size of an instance's /tmp, which counts as its memory")
    volume_days: float = Field(
        3, ge=0, le=365, description="Days for which a volume that its owner gave up is kept aside"
    )
    copy_mb_per_second: float = Field(
        40, gt=0, le=10_000, description="Most of volumes that is copied to, and from, this node in a second"
    )
    starts: int = Field(6, ge=1, le=64, description="Instances started at the same time")
    rollout_batch: int = Field(
        4, ge=1, le=100, description="Instances of an app that a release replaces at a time, at least"
    )
    drain_seconds: float = Field(
        30, ge=0, le=3600, description="Longest time a leaving instance keeps its open connections"
    )
    heartbeat_seconds: float = Field(30, gt=0, le=60, description="Time between two heartbeats")
    reconcile_seconds: float = Field(
        30, gt=0, le=600, description="Time between two comparisons of everything with what should be"
    )
