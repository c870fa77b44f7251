"""Uploaded sources: received, judged, and only then kept, in parts small enough for one message.

Invariant: what is stored is a whole archive that was found harmless, or nothing. The bytes lie in a nameless
temporary file until then, so a slow client holds no connection of the database, and a crash leaves nothing.
"""

import asyncio
import hashlib
import tempfile
from typing import BinaryIO

from contracts.api import SourceView
from contracts.archive import ArchiveLimits, ArchiveListing, inspect
from contracts.errors import InvalidInput, NotFound, TooLarge, Unavailable
from contracts.ids import new_id
from contracts.queries import SourcePart, SourcePartOf
from fastapi import APIRouter, Request
from runtime.store import PLATFORM, scoped
from sqlalchemy import text
from starlette.requests import ClientDisconnect

from gateway import workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import SourceRow, WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["apps"])

PART = 512 * 1024
_IN_MEMORY = 1024 * 1024
_ARCHIVE = {
    "requestBody": {
        "required": True,
        "description": "A tar.gz archive of the app's folder, as it is: `curl --data-binary @app.tar.gz`",
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}

_ADD_PART = 'insert into source_part (source, "index", organization, data) values (%s, %s, %s, %b)'
_PART = scoped(
    'select p.data, p."index" = s.parts - 1 from source_part p join source s on s.id = p.source '
    'where scope.organization is not null and p.source = %s and p."index" = %s limit 1'
)
# The newest of each app stay, and whatever a deployment under way still needs.
_PRUNE = text(
    """
    delete from source where id in (
        select id from (
            select s.id, row_number() over (partition by s.workload order by s.id desc) as place from source s
        ) ranked where place > :kept
    ) and not exists (
        select 1 from deployment d
        where d.status in ('queued', 'building') and d.source ->> 'source' = source.id
    )
    """
)


@router.post("/apps/{app}/source", status_code=201, openapi_extra=_ARCHIVE)
async def upload_source(app: str, request: Request, caller: Member) -> SourceView:
    """The next deployment without a Git repository builds the source uploaded last."""
    desk = caller.desk
    async with desk.store.transaction(caller.organization) as tx:
        row = await tx.get(WorkloadRow, app)
        if row is None or row.state == "deleted":
            raise workloads.no_such_app(app)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        archive: BinaryIO = file  # type: ignore[assignment]
        digest, size = await _receive(desk, request, archive)
        listing = await _inspected(desk, archive)
        source = SourceRow(
            id=new_id("src"),
            organization=caller.organization,
            workload=app,
            sha256=digest,
            size=size,
            files=listing.files,
            parts=-(-size // PART),
        )
        async with desk.store.transaction(caller.organization) as tx:
            await workloads.locked(tx, app)
            tx.add(source)
            await tx.flush()
            connection = await tx.connection()
            archive.seek(0)
            for index in range(source.parts):
                await connection.execute(
                    _ADD_PART, (source.id, index, source.organization, archive.read(PART))
                )
    return SourceView(id=source.id, sha256=digest, size=size, files=listing.files)


async def _receive(desk: Desk, request: Request, file: BinaryIO) -> tuple[str, int]:
    limit = desk.settings.upload_bytes
    digest, size = hashlib.sha256(), 0
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            digest.update(chunk)
            file.write(chunk)
    except ClientDisconnect as error:
        raise InvalidInput("the upload ended early; send the archive again") from error
    except OSError as error:
        raise Unavailable(f"there is no room to receive the archive: {error.strerror}") from error
    if not size:
        raise InvalidInput("the body is empty; send a tar.gz archive of the app's folder")
    return digest.hexdigest(), size


async def _inspected(desk: Desk, file: BinaryIO) -> ArchiveListing:
    limits = ArchiveLimits(files=desk.settings.upload_files, bytes=desk.settings.unpacked_bytes)
    async with desk.inspections:
        return await asyncio.to_thread(inspect, file, limits)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the archive has more than {limit} bytes; leave out what the build does not need", limit=limit
    )


async def part_of(desk: Desk, query: SourcePartOf) -> SourcePart:
    rows = await desk.store.read(_PART, (PLATFORM, query.source, query.index))
    if not rows:
        raise NotFound(f"the source {query.source} has no part {query.index} here any more")
    data, last = rows[0]
    return SourcePart(data=data, last=last)


async def prune(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(_PRUNE, {"kept": desk.settings.sources_kept})
