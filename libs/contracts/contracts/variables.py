"""An app's variables, as one service hands them to another: only ever as sealed text.

Each text is sealed for one purpose and opens for no other: all variables for the builder, those of the
instances for the scheduler, and those again for one node, whose agent makes them a process's environment.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import TypeAdapter

from contracts.ids import AppId, NodeName
from contracts.model import Model

Scope = Literal["runtime", "build", "both"]

# What the platform itself says to every instance.
RESERVED: Mapping[str, str] = {
    "PORT": "the port the app listens on is the platform's choice",
    "DYNO": "it names the instance, and the platform sets it",
    "PS": "it names the instance, and the platform sets it",
}


class Variable(Model):
    name: str
    value: str
    scope: Scope = "runtime"
    # Not shown unless asked for, not told in a build's log, and never an argument of a Dockerfile.
    secret: bool = True

    @property
    def at_runtime(self) -> bool:
        return self.scope != "build"

    @property
    def at_build(self) -> bool:
        return self.scope != "runtime"


_ALL: TypeAdapter[tuple[Variable, ...]] = TypeAdapter(tuple[Variable, ...])
_ENVIRONMENT: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def for_builder(workload: AppId) -> str:
    return f"build variables of {workload}"


def for_scheduler(workload: AppId) -> str:
    return f"variables of {workload}"


def for_node(workload: AppId, node: NodeName) -> str:
    return f"variables of {workload} on {node}"


def all_of(variables: Sequence[Variable]) -> str:
    return _ALL.dump_json(tuple(variables)).decode()


def read_all(text: str) -> tuple[Variable, ...]:
    return _ALL.validate_json(text)


def environment_of(variables: Sequence[Variable]) -> str:
    """Of the instances; the same text for the same variables."""
    chosen = {v.name: v.value for v in sorted(variables, key=lambda v: v.name) if v.at_runtime}
    return _ENVIRONMENT.dump_json(chosen).decode()


def read_environment(text: str) -> dict[str, str]:
    return _ENVIRONMENT.validate_json(text)
