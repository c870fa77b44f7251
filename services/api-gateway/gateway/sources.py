"""What a deployment is made of, and uploads: received, judged, and only then kept, in parts for one message.

Invariant: what is stored is a whole archive that was found harmless, or nothing. The bytes lie in a nameless
temporary file until then, so a slow client holds no connection of the database, and a crash leaves nothing.
"""

import asyncio
import hashlib
import tempfile
from typing import Any, BinaryIO

from contracts import image_reference
from contracts.api import CreateApp, Deploy, SourceView
from contracts.archive import ArchiveLimits, ArchiveListing, inspect
from contracts.errors import InvalidInput, NotFound, TooLarge, Unavailable
from contracts.ids import new_id
from contracts.queries import SourcePart, SourcePartOf
from contracts.workload import DockerfileSource, GitSource, ImageSource, Source, UploadSource
from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from runtime.store import PLATFORM, Tx, scoped
from sqlalchemy import select, text
from starlette.requests import ClientDisconnect

from gateway import allowances, credentials, git, images, workloads
from gateway.desk import Desk
from gateway.permissions import Member, Speaker
from gateway.tables import SourceRow, WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["apps"])

PART = 512 * 1024
_IN_MEMORY = 1024 * 1024
_ARCHIVE = {
    "requestBody": {
        "required": True,
        "description": "A tar.gz or zip of the app's folder, as it is: `curl --data-binary @app.tar.gz`",
        "content": {
            "application/gzip": {"schema": {"type": "string", "format": "binary"}},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_ADD_PART = 'insert into source_part (source, "index", organization, data) values (%s, %s, %s, %b)'
_PART = scoped(
    'select p.data, p."index" = s.parts - 1 from source_part p join source s on s.id = p.source '
    'where scope.organization is not null and p.source = %s and p."index" = %s limit 1'
)
# The newest of each app stay, and whatever a deployment under way still needs.
AnySource = GitSource | UploadSource | ImageSource | DockerfileSource
_SOURCE: TypeAdapter[AnySource] = TypeAdapter(Source)

_PRUNE = text(
    """
    delete from source where id in (
        select id from (
            select s.id, row_number() over (partition by s.workload order by s.id desc) as place from source s
            where s.workload = :workload or cast(:workload as text) is null
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
        await workloads.known(tx, app)
        await allowances.spend(tx, caller.organization, "upload", desk.settings.uploads_per_hour)
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
            await tx.execute(_PRUNE, {"kept": desk.settings.sources_kept, "workload": app})
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
        raise InvalidInput("the body is empty; send a tar.gz or zip archive of the app's folder")
    return digest.hexdigest(), size


async def _inspected(desk: Desk, file: BinaryIO) -> ArchiveListing:
    limits = ArchiveLimits(files=desk.settings.upload_files, bytes=desk.settings.unpacked_bytes)
    async with desk.inspections:
        return await asyncio.to_thread(inspect, file, limits)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the archive has more than {limit} bytes; leave out what the build does not need", limit=limit
    )


async def chosen(caller: Speaker, wanted: CreateApp | Deploy, upload: str | None = None) -> AnySource | None:
    """What the request names, where it names one; an upload is looked up by `of`. Outside of a transaction:
    names are looked up."""
    given = {"git": wanted.git, "image": wanted.image, "dockerfile": wanted.dockerfile, "source": upload}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InvalidInput(f"choose one of {' and '.join(named)}, not both")
    if wanted.git is not None:
        return await git.checked(caller, wanted.git)
    if wanted.image is not None:
        image_reference.parse(wanted.image.reference)
        return ImageSource(reference=wanted.image.reference)
    if wanted.dockerfile is not None:
        return DockerfileSource(text=wanted.dockerfile.text)
    return None


async def of(tx: Tx, row: WorkloadRow, upload: str | None) -> AnySource:
    """What a deployment takes that names nothing but perhaps an upload."""
    if upload is None and row.source is not None:
        return read(row.source)
    uploads = select(SourceRow).where(SourceRow.workload == row.id).order_by(SourceRow.id.desc())
    if upload is not None:
        uploads = uploads.where(SourceRow.id == upload)
    found = await tx.one(uploads.limit(1))
    if found is None and upload is not None:
        raise InvalidInput("the app has no such source any more; upload it again", source=upload)
    if found is None:
        raise InvalidInput(
            "there is nothing to deploy; upload a source with POST …/source, or name a Git repository"
        )
    return UploadSource(source=found.id, sha256=found.sha256, size=found.size)


async def require_allowed(tx: Tx, row: WorkloadRow, source: AnySource) -> None:
    if isinstance(source, ImageSource):
        await images.require_custom(tx)
    if isinstance(source, GitSource):
        await credentials.require_key(tx, row, source)


def read(kept: dict[str, Any]) -> AnySource:
    return _SOURCE.validate_python(kept)


async def part_of(desk: Desk, query: SourcePartOf) -> SourcePart:
    rows = await desk.store.read(_PART, (PLATFORM, query.source, query.index))
    if not rows:
        raise NotFound(f"the source {query.source} has no part {query.index} here any more")
    data, last = rows[0]
    return SourcePart(data=data, last=last)


async def prune(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(_PRUNE, {"kept": desk.settings.sources_kept, "workload": None})
