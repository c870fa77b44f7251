"""What a node may pull from the platform's registry: images of the workloads it is ordered to run, no other.

Asked by an agent for each pull, and answered with a token for that one repository, so a node that is broken
into can read nothing of organizations it has no work of; and no node keeps a password.
"""

from contracts.errors import Forbidden
from contracts.permits import PullPermit, PullPermitFor
from runtime.registry_key import RegistryKey
from runtime.runtime import Runtime
from runtime.store import PLATFORM, scoped

# By its place, or by one-off work.
_ORDERED = scoped("""
select 1 from workload w where w.id = %s and w.organization = %s and scope.organization is not null and (
    exists (select 1 from placement p where p.workload = w.id and p.node = %s and p.leaving is null)
    or exists (select 1 from job j where j.workload = w.id and j.node = %s and j.ended_at is null)
)
""")


async def permit(runtime: Runtime, question: PullPermitFor) -> PullPermit:
    node = question.node
    place, _, workload = question.image.partition("@")[0].rpartition("/")
    organization = place.rpartition("/")[2]
    if not await runtime.store.read(_ORDERED, (PLATFORM, workload, organization, node, node)):
        raise Forbidden(f"the node {node} is not ordered to run this image", image=question.image)
    key, repository = RegistryKey(runtime.settings.registry_secret), f"{organization}/{workload}"
    return PullPermit(token=key.token(f"node-{node}", repository, ("pull",), runtime.clock.now()))
