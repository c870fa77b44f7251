"""Streams and buckets, declared here alone: two declarations of one stream overwrite each other."""

from contracts.events import EVENTS, NodeEvent
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BucketNotFoundError, NotFoundError

DAY = 86_400
EVENT_STREAM = "EVENTS"
# A consumer away for longer heals from the owner's snapshot; inboxes remember a day longer than this.
EVENT_AGE_DAYS = 7
BUCKETS = ("desired", "routes", "endpoints", "places", "peers", "jobs", "copies")
# The keys of jobs are never used again; without an age their graves would pile up. None lives for a day.
_AGES = {"jobs": 3 * DAY}


def event_subjects() -> list[str]:
    return [f"{e.name}.*" if issubclass(e, NodeEvent) else e.name for e in EVENTS]


def event_stream() -> StreamConfig:
    return StreamConfig(
        name=EVENT_STREAM,
        subjects=event_subjects(),
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        max_age=EVENT_AGE_DAYS * DAY,
        max_bytes=2 * 1024**3,
        duplicate_window=120,
        allow_atomic=True,
    )


async def declare(js: JetStreamContext) -> None:
    """Idempotent: brings the server's streams and buckets to what stands here."""
    wanted = event_stream()
    try:
        info = await js.stream_info(EVENT_STREAM)
    except NotFoundError:
        await js.add_stream(wanted)
    else:
        if set(info.config.subjects or ()) != set(wanted.subjects or ()):
            await js.update_stream(wanted)
    for bucket in BUCKETS:
        try:
            await js.key_value(bucket)
        except BucketNotFoundError:
            await js.create_key_value(
                KeyValueConfig(bucket=bucket, history=1, storage=StorageType.FILE, ttl=_AGES.get(bucket))
            )
