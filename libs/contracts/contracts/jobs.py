"""One-off work on a node: a command in a container of its own, made of an app's image and environment.

Invariant: a job is begun at most once, wherever and whenever somebody is killed; what cannot be known to have
ended is told as lost. The gateway asks, the scheduler gives it room and a node, that node's agent runs it.
"""

from typing import Annotated, Literal

from pydantic import Field

from contracts.ids import JobId, NodeName
from contracts.model import Model, Moment, Words
from contracts.workload import NodeWorkload, WorkloadSpec

# release: before a new release goes live. run: a customer's command. cron: one by a schedule.
JobKind = Literal["release", "run", "cron"]
# not_started: it is certain that nothing of it ran. lost: nobody can know whether it ended, or how.
JobOutcome = Literal["succeeded", "failed", "timed_out", "cancelled", "not_started", "lost"]

# What a node keeps of an output; the rest is counted.
OUTPUT_LINES = 5_000
TAIL_LINES = 200
LINE_BYTES = 2_000


class JobLine(Model):
    """One line of its output; `sequence` counts from 1 without a gap."""

    sequence: Annotated[int, Field(ge=1)]
    at: Moment
    stream: Literal["stdout", "stderr", "platform"]
    text: Words


class Job(Model):
    id: JobId
    kind: JobKind
    # Whose image, environment, limits and user it gets; it takes the room of one instance.
    spec: WorkloadSpec
    # In a shell inside its container.
    command: Annotated[str, Field(min_length=1, max_length=4_000)]
    timeout_seconds: Annotated[float, Field(gt=0)]
    # The instant after which it is not begun any more.
    start_before: Moment
    # It waits for somebody to talk to it, over a session of its own id, and ends with it.
    attached: bool = False


class NodeJob(Model):
    """What one node has to do once: the value in the `jobs` bucket. `workload` has its one slot.

    One with volumes has those that its workload has on the node when it begins. It does not begin before the
    node knows that workload's `revision`, nor on data of another `home`.
    """

    job: Job
    workload: NodeWorkload
    cancelled: bool = False

    @property
    def node(self) -> NodeName:
        return self.workload.node
