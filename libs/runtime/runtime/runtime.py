"""What a service is given when it is created. One `Runtime` per service, several in one process or one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from runtime.bus import Bus
from runtime.clock import Clock
from runtime.settings import RuntimeSettings
from runtime.telemetry import Telemetry

if TYPE_CHECKING:  # the agent runs without a database, and does not pay for importing one
    from runtime.store import Store


@dataclass(frozen=True)
class Runtime:
    name: str
    settings: RuntimeSettings
    clock: Clock
    bus: Bus
    telemetry: Telemetry
    _store: "Store | None" = None

    @property
    def store(self) -> "Store":
        if self._store is None:
            raise RuntimeError(f"{self.name} has no tables, so it has no database")
        return self._store

    @property
    def has_store(self) -> bool:
        return self._store is not None

    @property
    def log(self) -> Any:
        return structlog.get_logger(self.name, service=self.name)

    def secret(self, purpose: str) -> str:
        return self.settings.derived(f"{self.name}/{purpose}")
