"""Tells the platform of instances that ended by themselves, as often as it is worth telling."""

from contracts.events import InstanceCrashed

from node_agent.crashes import Crashes, told
from node_agent.engine import Instance
from node_agent.site import Site


class CrashReports:
    """Those of one workload."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._crashes = Crashes()

    async def note(self, instance: Instance, exit_code: int | None, ending: str) -> None:
        identity, now = instance.identity, self._site.clock.now()
        number = self._crashes.note(identity.slot, now.timestamp())
        if number is None:
            return
        wait = self._crashes.wait(identity.slot)
        await self._site.journal.append(
            InstanceCrashed(
                id=f"{identity.instance}.{now.timestamp():.3f}",
                at=now,
                node=self._site.node,
                instance=identity.instance,
                workload=identity.workload,
                organization=identity.organization,
                slot=identity.slot,
                exit_code=exit_code,
                words=told(identity.slot, number, wait, ending),
                crashes=number,
                seconds_away=wait,
            )
        )
