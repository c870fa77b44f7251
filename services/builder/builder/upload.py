"""An uploaded source, asked from the gateway part by part and compared with what was announced."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from contracts.errors import ProviderFailed
from contracts.queries import SourcePart, SourcePartOf
from contracts.workload import UploadSource


async def download(
    ask: Callable[[SourcePartOf], Awaitable[SourcePart]], source: UploadSource, into: BinaryIO
) -> None:
    digest, size, index = hashlib.sha256(), 0, 0
    while True:
        part = await ask(SourcePartOf(source=source.source, index=index))
        size += len(part.data)
        if size > source.size:
            raise ProviderFailed("the source is larger than the upload was")
        digest.update(part.data)
        await asyncio.to_thread(into.write, part.data)
        if part.last:
            break
        index += 1
    if size != source.size or digest.hexdigest() != source.sha256:
        raise ProviderFailed("the source is not what was uploaded: its checksum differs")
