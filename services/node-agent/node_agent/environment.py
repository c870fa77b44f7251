"""The environment of an instance: the app's variables, and last what the platform itself says of it.

The one place where it is made, for instances of every process and for whatever else runs of a release. The
variables are sealed for this node until then and are kept nowhere in the clear.
"""

from collections.abc import Callable

from contracts import variables
from contracts.errors import InvalidInput, ProviderFailed
from contracts.workload import NodeWorkload, Slot
from pydantic import ValidationError


class Environment:
    def __init__(self, node: str, key: Callable[[], str]) -> None:
        """`key`: what is sealed for this node; asked for when there is something to open."""
        self._node = node
        self._key = key

    def of(self, workload: NodeWorkload, slot: Slot) -> dict[str, str]:
        """Raises ProviderFailed, with its reason, where the variables cannot be had."""
        return {
            **self._variables(workload),
            "PORT": str(workload.spec.port),
            "DYNO": str(slot),
            "PS": str(slot),
        }

    def _variables(self, workload: NodeWorkload) -> dict[str, str]:
        if workload.spec.variables_digest is None:
            return {}
        if workload.variables is None:
            raise ProviderFailed("the app's variables could not be read for this node; ask your provider")
        # The library behind it is large, and a node without variables never needs it.
        from runtime.seal import Seal

        context = variables.for_node(workload.spec.id, self._node)
        try:
            return variables.read_environment(Seal(self._key()).open(workload.variables, context))
        except (InvalidInput, ValidationError) as error:
            raise ProviderFailed(
                "the app's variables cannot be unsealed on this node: its key is another one; "
                "ask your provider"
            ) from error
