import io
import tarfile

import pytest
from builder import context
from builder.context import Survey
from builder.image_builder import StepFailed
from builder.recipes.case import Recipe
from contracts.archive import ArchiveLimits

from tests.builder.archives import packed, tar

LIMITS = ArchiveLimits(1000, 10_000_000)
WANTED = frozenset({"Dockerfile", "Procfile", ".dockerignore"})
OWN = Recipe("dockerfile", (), "Dockerfile", (), {})


def look(archive: bytes, *, unwrap: bool = True, folder: str | None = None) -> Survey:
    return context.survey(io.BytesIO(archive), LIMITS, WANTED, unwrap=unwrap, folder=folder)


def written(archive: bytes, recipe: Recipe, limits: ArchiveLimits = LIMITS) -> dict[str, tarfile.TarInfo]:
    made = io.BytesIO()
    file = io.BytesIO(archive)
    found = context.survey(file, limits, WANTED, unwrap=not limits.links)
    context.write(file, limits, found, recipe, made)
    with tarfile.open(fileobj=made) as opened:
        return {info.name: info for info in opened.getmembers()}


def test_a_folder_around_everything_is_taken_off() -> None:
    archive = packed({"app/Procfile": "web: x", "app/app": "1", "app/lib/app": "2", "app/.git/config": "3"})
    found = look(archive)
    assert found.root == "app/"
    assert found.source.names == {"Procfile", "app", "lib/app", ".git/config"}
    assert found.source.texts == {"Procfile": "web: x"}
    assert set(written(archive, OWN)) == {"Procfile", "app", "lib/app", ".git/config"}


def test_a_folder_beside_others_stays() -> None:
    assert look(packed({"app/Procfile": "x", "other/y": ""})).root == ""
    assert look(packed({"app/Procfile": "x", "Procfile": "web: y"})).source.texts["Procfile"] == "web: y"
    assert look(packed({"Procfile": "x"})).root == ""
    assert look(packed({"app/Procfile": "x"}), unwrap=False).root == ""


def test_the_app_is_one_folder_of_the_source() -> None:
    files = {
        "Procfile": "web: all",
        "services/shop/Procfile": "web: shop",
        "services/shop/app.py": "1",
        "services/shopkeeper/app.py": "2",
    }
    for folder in ("services/shop", "services/shop/", "./services//shop"):
        found = look(packed(files), folder=folder)
        assert found.source.names == {"Procfile", "app.py"}
        assert found.source.texts == {"Procfile": "web: shop"}
    wrapped = packed({f"repository-main/{name}": text for name, text in files.items()})
    assert look(wrapped, folder="services/shop").root == "repository-main/services/shop/"
    del files["Procfile"]
    assert look(packed(files), folder="services/shop").source.texts == {"Procfile": "web: shop"}

    file, made = io.BytesIO(wrapped), io.BytesIO()
    context.write(file, LIMITS, look(wrapped, folder="services/shop"), OWN, made)
    with tarfile.open(fileobj=made) as opened:
        assert set(opened.getnames()) == {"Procfile", "app.py"}
    assert look(packed(files), folder=".").root == "services/"
    for folder in ("services/other", "..", "../services", "/etc", "services/../.."):
        with pytest.raises(StepFailed) as failed:
            look(packed(files), folder=folder)
        assert failed.value.step == "source"


def test_a_text_too_large_is_not_read() -> None:
    found = look(packed({"Dockerfile": "#" * 300_000}))
    assert "Dockerfile" in found.source.names
    assert found.source.texts == {}


def test_everything_can_be_read_by_any_user_and_belongs_to_root() -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as out:
        for name, kind, mode in (
            ("d", tarfile.DIRTYPE, 0o700),
            ("d/run", tarfile.REGTYPE, 0o4711),
            ("f", tarfile.REGTYPE, 0o600),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.uname = kind, mode, 501, 20, "me"
            out.addfile(info, io.BytesIO())
    made = written(raw.getvalue(), OWN, ArchiveLimits(100, 100, links=True))
    assert {name: oct(info.mode) for name, info in made.items()} == {
        "d": "0o755",
        "d/run": "0o755",
        "f": "0o644",
    }
    assert {(info.uid, info.gid, info.uname) for info in made.values()} == {(0, 0, "")}


def test_links_of_a_repository_stay_links() -> None:
    archive = tar([("lib/a", tarfile.REGTYPE, b"1"), ("lib/b", tarfile.SYMTYPE, "a")], compress=False)
    made = written(archive, OWN, ArchiveLimits(100, 100, links=True))
    assert made["lib/b"].issym()
    assert made["lib/b"].linkname == "a"


def test_dockerignore_applies_to_a_dockerfile_and_never_to_itself() -> None:
    files = {"Dockerfile": "FROM a:1", ".dockerignore": "*\n!src", "src/x": "1", ".env": "secret"}
    assert set(written(packed(files), OWN)) == {"Dockerfile", ".dockerignore", "src/x"}


def test_a_rendered_recipe_lies_beside_the_source() -> None:
    recipe = Recipe(
        "python",
        (),
        "Dockerfile",
        (),
        {},
        below="source/",
        added={"Dockerfile": b"FROM x"},
        unwanted=(".git", "venv"),
    )
    files = {
        "Dockerfile": "FROM own",
        "app.py": "",
        ".git/config": "",
        "venv/bin/x": "",
        "a/venv/x": "",
        ".dockerignore": "*",
    }
    archive = packed(files)
    made = written(archive, recipe)
    assert set(made) == {"source/Dockerfile", "source/app.py", "source/.dockerignore", "Dockerfile"}
