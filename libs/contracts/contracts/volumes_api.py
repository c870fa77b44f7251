"""The REST API's models of an app's volumes."""

from typing import Annotated

from pydantic import Field, StringConstraints

from contracts.api import Name
from contracts.model import Model, Strict
from contracts.workload import Volume


class AddVolume(Strict):
    name: Name
    path: Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9._-]+){1,8}$", max_length=200)]
    size_mb: Annotated[int, Field(ge=16, le=1_048_576)]
    # On the disk of its node, with a key of that node.
    encrypted: bool = False


class GrowVolume(Strict):
    size_mb: Annotated[int, Field(ge=16, le=1_048_576)]


class VolumeList(Model):
    volumes: tuple[Volume, ...]


class UsedVolume(Volume):
    # None: its node has not said so lately, as while nothing of the app runs.
    used_mb: int | None


class VolumeUseList(Model):
    volumes: tuple[UsedVolume, ...]
