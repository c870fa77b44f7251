"""What lets a node in to the platform's image registry."""

from typing import Annotated

from pydantic import Field

from contracts.model import Model
from contracts.question import NodeQuery


class PullPermit(Model):
    """`token` lets its bearer read one repository of the platform's registry for some minutes."""

    token: Annotated[str, Field(repr=False)]


class PullPermitFor(NodeQuery[PullPermit]):
    """An image that this node is ordered to run; for any other there is none."""

    owner, what, answer = "scheduler", "pull_permit", PullPermit
    image: Annotated[str, Field(max_length=500)]
