"""What the agent keeps on disk: shelves with the same keys, and a disk that says no."""

import asyncio
import shutil
from pathlib import Path

import pytest
from contracts.model import Model
from node_agent.shelf import Shelf


class Note(Model):
    words: str


async def test_shelves_with_the_same_keys_do_not_take_each_others_drafts(tmp_path: Path) -> None:
    shelves = [Shelf(tmp_path / name, Note) for name in ("workloads", "naps")]
    for shelf in shelves:
        shelf.open()
    for n in range(100):
        await asyncio.gather(*(s.put("app", Note(words=f"{i} {n}")) for i, s in enumerate(shelves)))
    for i, name in enumerate(("workloads", "naps")):
        again = Shelf(tmp_path / name, Note)
        again.open()
        assert again.get("app") == Note(words=f"{i} 99")


async def test_what_could_not_be_written_is_not_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "workloads", Note)
    shelf.open()
    await shelf.put("old", Note(words="before"))
    shutil.rmtree(tmp_path / "drafts")
    for key in ("old", "new"):
        with pytest.raises(FileNotFoundError):
            await shelf.put(key, Note(words="after"))
    assert shelf.get("old") == Note(words="before")
    assert shelf.get("new") is None
    shelf.open()
    # Said again, it is heard.
    await shelf.put("old", Note(words="after"))
    again = Shelf(tmp_path / "workloads", Note)
    again.open()
    assert again.get("old") == Note(words="after")
