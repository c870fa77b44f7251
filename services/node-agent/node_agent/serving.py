"""Which addresses requests for a workload go to. PURE. Used by the keeper, whose instances these are."""

from collections.abc import Callable, Sequence, Set

from contracts.workload import NodeWorkload

from node_agent.engine import ROUTED, Instance


def addresses(
    admitted: Sequence[Instance], live: NodeWorkload | None, ready: Callable[[str], bool]
) -> tuple[str, ...]:
    """The ready ones of the live release; failing that, whoever may still answer."""
    wanted: list[Instance] = []
    if live is not None:
        fingerprint = live.spec.fingerprint()
        wanted = [
            instance
            for instance in admitted
            if instance.identity.fingerprint == fingerprint and instance.identity.slot in live.slots
        ]
        if not any(slot.process == ROUTED for slot in live.slots):
            return ()
    able = [instance for instance in wanted if ready(instance.identity.instance)]
    others = [instance for instance in admitted if ready(instance.identity.instance)]
    return _at(able or others or wanted)


def of_both(admitted: Sequence[Instance], leaving: Set[str], ready: Callable[[str], bool]) -> tuple[str, ...]:
    """Whoever is ready, of whichever release, while one takes the place of another."""
    names = [(instance.identity.instance, instance) for instance in admitted]
    return _at([instance for name, instance in names if name not in leaving and ready(name)])


def _at(instances: Sequence[Instance]) -> tuple[str, ...]:
    return tuple(f"{instance.address}:{instance.identity.port}" for instance in instances)
