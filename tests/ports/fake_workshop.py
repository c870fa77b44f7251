"""A workshop without an engine: it plays `sh -c` for a few words, on files it keeps by itself."""

import asyncio
import io
import tarfile
from collections.abc import MutableMapping
from typing import BinaryIO

from builder.image_builder import Say, Setup, StepFailed


class FakeWorkshop:
    """`echo word…`, `cp from to`, `exit n` and `sleep for-ever`, between semicolons, do what they say."""

    def __init__(self, setup: Setup, cache: MutableMapping[str, bytes]) -> None:
        self.setup = setup
        self._cache = cache
        self._files = {f"cache/{name}": data for name, data in cache.items()}

    async def put(self, files: BinaryIO) -> None:
        files.seek(0)
        with tarfile.open(fileobj=files) as tar:
            for member in tar:
                data = tar.extractfile(member)
                if data is not None:
                    self._files[member.name] = data.read()

    async def work(self, say: Say) -> int:
        try:
            return await self._play(say)
        finally:
            self._cache.update(
                (name.removeprefix("cache/"), data)
                for name, data in self._files.items()
                if name.startswith("cache/")
            )

    async def _play(self, say: Say) -> int:
        for step in self.setup.command[-1].split("; "):
            match step.split():
                case ["echo", *words, ">&2"]:
                    await say("stderr", " ".join(words))
                case ["echo", *words]:
                    await say("stdout", " ".join(words))
                case ["cp", source, target]:
                    if source.strip("/") not in self._files:
                        await say("stderr", f"cp: cannot stat '{source}': No such file or directory")
                        return 1
                    self._files[target.strip("/")] = self._files[source.strip("/")]
                case ["exit", code]:
                    return int(code)
                case ["sleep", *_]:
                    await asyncio.Event().wait()
        return 0

    async def take(self, path: str, into: BinaryIO, largest: int) -> bool:
        top = path.strip("/")
        found = {name: data for name, data in self._files.items() if f"{name}/".startswith(f"{top}/")}
        if not found:
            return False
        if sum(len(data) for data in found.values()) > largest:
            raise StepFailed("image", f"{path} is larger than {largest // 2**20} MiB in all")
        above = top.rpartition("/")[0]
        with tarfile.open(fileobj=into, mode="w") as tar:
            for name, data in found.items():
                info = tarfile.TarInfo(name.removeprefix(f"{above}/") if above else name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        into.seek(0)
        return True
