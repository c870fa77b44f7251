"""The REST API's models of an app's volumes."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.api import Name
from contracts.model import Model, Moment, Strict
from contracts.shapes import shaped
from contracts.workload import Volume


class AddVolume(Strict):
    name: Name
    path: Annotated[
        str,
        shaped(
            r"^(/[A-Za-z0-9._-]+){1,8}$",
            "a path from the root, such as /data, of at most 8 folders",
            max_length=200,
        ),
    ]
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


class CopyProgress(Model):
    """Data on its way to another node: one copy more, or the app's move."""

    why: Literal["copy", "move"]
    percent: Annotated[int, Field(ge=0, le=100)]
    sent_mb: int
    since: Moment
    words: str


class CopiesView(Model):
    # As the plan has it; none: no copies are made.
    every_minutes: int | None
    # What was written since would be lost with the node.
    newest: Moment | None
    under_way: CopyProgress | None
    words: str


class VolumeUseList(Model):
    volumes: tuple[UsedVolume, ...]
    # None: nobody can say it now; or there are no volumes.
    copies: CopiesView | None
