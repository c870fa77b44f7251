"""What a builder image is believed, what its lifecycle is told, and what of its work is taken."""

import gzip
import hashlib
import io
import json
import tarfile
from typing import Any

import pytest
from builder import cnb, image_archive
from builder.image_builder import FoundImage, StepFailed

RUN = FoundImage(
    "sha256:" + "a" * 64,
    {"Env": ["PATH=/bin"], "Labels": {"io.buildpacks.stack.id": "org.example"}},
    ("sha256:" + "1" * 64, "sha256:" + "2" * 64),
    "amd64",
    "linux",
)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# --- the builder image -------------------------------------------------------------------------------------


def image(metadata: Any, *environment: str, **labels: str) -> FoundImage:
    said = {name.replace("_", "."): text for name, text in labels.items()}
    if metadata is not None:
        said["io.buildpacks.builder.metadata"] = json.dumps(metadata)
    return FoundImage("sha256:b", {"Labels": said, "Env": list(environment)}, (), "amd64", "linux")


def metadata(*apis: str, **changes: Any) -> dict[str, Any]:
    return {
        "stack": {"runImage": {"image": "example/run:1", "mirrors": None}},
        "lifecycle": {"apis": {"platform": {"deprecated": [], "supported": list(apis)}}},
        **changes,
    }


USER = ("CNB_USER_ID=1001", "CNB_GROUP_ID=1000")


def test_what_a_builder_says_of_itself() -> None:
    found = image(metadata("0.7", "0.11", "0.12", "0.13"), *USER, io_buildpacks_stack_id="org.example")
    assert cnb.builder("x", found) == cnb.Builder("0.13", "example/run:1", 1001, 1000, "org.example")


def test_the_newest_version_both_speak() -> None:
    assert cnb.builder("x", image(metadata("0.12", "0.15", "0.20"), *USER)).api == "0.15"
    apis = json.dumps({"platform": {"deprecated": ["0.12"], "supported": []}})
    old = image(metadata(lifecycle={}), *USER, io_buildpacks_lifecycle_apis=apis)
    assert cnb.builder("x", old).api == "0.12"


def test_a_run_image_by_target_goes_before_the_one_by_stack() -> None:
    found = image(metadata("0.12", images=[{"image": "docker.io/library/run:2", "mirrors": []}]), *USER)
    assert cnb.builder("x", found).run_image == "run:2"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (image(None, *USER), "no label io.buildpacks.builder.metadata"),
        (image([], *USER), "no label io.buildpacks.builder.metadata"),
        (image(metadata("0.12")), "which user builds"),
        (image(metadata("0.12"), "CNB_USER_ID=0", "CNB_GROUP_ID=0"), "which user builds"),
        (image(metadata("0.12"), "CNB_USER_ID=cnb", "CNB_GROUP_ID=1"), "which user builds"),
        (image(metadata("0.10", "0.9"), *USER), r"platform API 0.9, 0.10; needed is one of 0.12"),
        (image(metadata(), *USER), "in no version"),
        (image(metadata("0.12", stack={}), *USER), "names no run image"),
        (image(metadata("0.12", stack={"runImage": {"image": "x y"}}), *USER), "not a valid name"),
        (image(metadata("0.12", stack={"runImage": {"image": "sha256:12"}}), *USER), "not a valid name"),
    ],
)
def test_images_that_are_no_builders(found: FoundImage, words: str) -> None:
    with pytest.raises(StepFailed, match=words) as failed:
        cnb.builder("example/builder:1", found)
    assert failed.value.step == "recipe"
    assert "example/" in failed.value.message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("heroku/builder:24", "heroku/builder:24"),
        ("paketobuildpacks/builder-jammy-base", "paketobuildpacks/builder-jammy-base:latest"),
        ("gcr.io/buildpacks/builder", "gcr.io/buildpacks/builder:latest"),
        ("docker.io/library/ubuntu", "ubuntu:latest"),
        # Never the image whose id begins so.
        ("0123456789ab", "0123456789ab:latest"),
        (f"a/b@sha256:{'0' * 64}", f"a/b@sha256:{'0' * 64}"),
    ],
)
def test_an_image_is_named_whole(name: str, meant: str) -> None:
    assert cnb.reference(name, "the builder") == meant


def test_a_run_image_of_another_stack() -> None:
    said = cnb.Builder("0.12", "example/run:1", 1001, 1000, "org.other")
    with pytest.raises(StepFailed, match=r"stack org.other, its run image of org.example"):
        cnb.check_run_image(said, RUN)
    cnb.check_run_image(cnb.Builder("0.12", "example/run:1", 1001, 1000, None), RUN)


def test_what_the_lifecycle_is_told() -> None:
    said = cnb.Builder("0.13", "example/run:1", 1001, 1000, None)
    assert cnb.arguments(said) == (
        "/cnb/lifecycle/creator",
        *("-app", "/workspace", "-cache-dir", "/cache/layers", "-gid", "1000", "-layout"),
        *("-layout-dir", "/layout", "-layers", "/layers", "-log-level", "info", "-platform", "/platform"),
        *("-report", "/layers/report.toml", "-run-image", "example/run:1", "-uid", "1001"),
        "app.local/app:latest",
    )
    assert cnb.environment(said) == {"CNB_PLATFORM_API": "0.13", "CNB_EXPERIMENTAL_MODE": "silent"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (11, "does not speak the platform's version"),
        (12, "needs another version of the lifecycle"),
        (20, "none of the builder's buildpacks recognizes the app"),
        (21, "one of them failed at looking"),
        (22, "failed at detecting"),
        (32, "failed at analyzing"),
        (42, "failed at restoring the cache"),
        (51, "a buildpack failed to build the app"),
        (52, "failed at building"),
        (62, "failed at exporting the image"),
        (91, "an extension of the builder failed"),
        (1, "the builder's lifecycle failed (exit code 1)"),
        (137, "the builder's lifecycle failed (exit code 137)"),
    ],
)
def test_an_exit_code_in_words(code: int, words: str) -> None:
    failed = cnb.failure(code)
    assert words in failed.message
    assert f"(exit code {code})" in failed.message
    assert (failed.step, failed.exit_code) == ("build", code)


# --- the layout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ubuntu:latest", "/layout/index.docker.io/library/ubuntu/latest"),
        ("heroku/heroku:24", "/layout/index.docker.io/heroku/heroku/24"),
        ("gcr.io/a/b:1", "/layout/gcr.io/a/b/1"),
        ("localhost:5000/a:1", "/layout/localhost:5000/a/1"),
        (f"a/b@sha256:{'0' * 64}", f"/layout/index.docker.io/a/b/sha256/{'0' * 64}"),
        (cnb.APP_IMAGE, "/layout/app.local/app/latest"),
    ],
)
def test_where_an_image_lies_in_a_layout(name: str, folder: str) -> None:
    assert cnb.place(name) == folder


def test_the_run_image_is_shown_without_its_layers() -> None:
    files = cnb.shown("example/run:1", RUN)
    folder = "/layout/index.docker.io/example/run/1"
    [entry] = json.loads(files[f"{folder}/index.json"])["manifests"]
    manifest = files[cnb.blob(folder, entry["digest"])]
    assert (digest(manifest), len(manifest)) == (entry["digest"], entry["size"])
    read = json.loads(manifest)
    config = files[cnb.blob(folder, read["config"]["digest"])]
    assert (digest(config), len(config)) == (read["config"]["digest"], read["config"]["size"])
    assert [layer["digest"] for layer in read["layers"]] == list(RUN.layers)
    assert all(layer["size"] > 0 for layer in read["layers"])
    said = json.loads(config)
    assert (said["os"], said["architecture"], said["config"]) == ("linux", "amd64", RUN.config)
    assert said["rootfs"] == {"type": "layers", "diff_ids": list(RUN.layers)}
    assert len(files) == 4


def written(**changes: Any) -> tuple[bytes, bytes]:
    """A manifest and a configuration as a lifecycle writes them."""
    config = {
        "rootfs": {"diff_ids": [*RUN.layers, digest(b"tar")]},
        "config": {
            "Env": ["CNB_APP_DIR=/workspace"],
            "Entrypoint": ["/cnb/process/web"],
            "WorkingDir": "/workspace",
            "User": "1002:1000",
            "ExposedPorts": {"8080/tcp": {}, "x/tcp": {}, "99999999/tcp": {}},
            "Volumes": {"/data": {}},
            "OnBuild": ["COPY --from=other / /"],
            "Labels": {
                "berth.workload": "app_of_another",
                "io.buildpacks.build.metadata": json.dumps(
                    {"processes": [{"type": "web"}, {"type": "a.b"}, {"type": 4}, {}, {"type": "worker"}]}
                ),
            },
        },
        **changes.pop("config", {}),
    }
    text = json.dumps(config).encode()
    tar = "application/vnd.oci.image.layer.v1.tar"
    manifest = {
        "config": {"digest": digest(text)},
        "layers": [
            *({"digest": layer, "mediaType": tar} for layer in RUN.layers),
            {"digest": digest(b"gz"), "mediaType": f"{tar}+gzip"},
        ],
        **changes,
    }
    return json.dumps(manifest).encode(), text


def take(manifest: bytes, config: bytes) -> cnb.Made:
    return cnb.made(manifest, config, cnb.config_of(manifest, digest(manifest)), RUN)


def test_what_is_taken_of_the_lifecycles_image() -> None:
    made = take(*written())
    assert made.layers == (cnb.Blob(digest(b"gz"), digest(b"tar"), compressed=True),)
    assert made.types == ("web", "worker")
    assert made.ports == (8080,)
    assert set(made.config) == {"Env", "Entrypoint", "Cmd", "WorkingDir", "User", "Labels"}
    assert made.config["Entrypoint"] == ["/cnb/process/web"]
    assert set(made.config["Labels"]) == {"io.buildpacks.build.metadata"}


def test_an_index_names_one_image() -> None:
    assert cnb.manifest_of(json.dumps({"manifests": [{"digest": digest(b"")}]}).encode()) == digest(b"")
    for wrong in ("[]", "{", '{"manifests": []}', '{"manifests": [{"digest": "../../etc"}]}', "[" * 9999):
        with pytest.raises(StepFailed):
            cnb.manifest_of(wrong.encode())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # Layers of another tenant, whose contents somebody knows: not without being there.
        (
            {"config": {"rootfs": {"diff_ids": ["sha256:" + "3" * 64, RUN.layers[1], digest(b"tar")]}}},
            "stand on",
        ),
        ({"config": {"rootfs": {"diff_ids": [digest(b"tar")]}}}, "different layers"),
        ({"config": {"rootfs": {"diff_ids": [*RUN.layers, 4]}}}, "digest of its layer"),
        ({"config": {"rootfs": None}}, "different layers"),
        ({"layers": []}, "different layers"),
        ({"layers": [{}, {}, {"digest": "sha256:../../x"}]}, "digest of its layer"),
        ({"layers": [1, 2, 3]}, "digest of its layer"),
        ({"config": {"config": None}}, None),
    ],
)
def test_images_that_are_not_taken(changes: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert take(*written(**changes)).types == ()
        return
    with pytest.raises(StepFailed, match=words) as failed:
        take(*written(**changes))
    assert failed.value.step == "image"


def test_what_is_not_what_its_digest_says() -> None:
    manifest, config = written()
    with pytest.raises(StepFailed, match="its manifest is not what"):
        cnb.config_of(manifest, digest(b"another"))
    with pytest.raises(StepFailed, match="its configuration is not what"):
        cnb.made(manifest, config + b" ", digest(config), RUN)


def test_how_processes_start() -> None:
    made = take(*written())
    assert cnb.processes(made, {"web": "own", "clock": "tick 'x'"}, None) == {
        "web": "/cnb/process/web",
        "worker": "/cnb/process/worker",
        "clock": "/cnb/lifecycle/launcher 'tick '\"'\"'x'\"'\"''",
    }
    assert cnb.processes(made, {}, "chosen")["web"] == "/cnb/lifecycle/launcher chosen"
    alone = cnb.Made(made.config, made.layers, ("web",), ())
    assert cnb.processes(alone, {}, None) == {}
    assert cnb.processes(alone, {"web": "own"}, None) == {}
    assert set(cnb.processes(alone, {"clock": "x"}, None)) == {"web", "clock"}


# --- the archive -------------------------------------------------------------------------------------------


def tar_with(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_layer_is_taken_when_both_its_digests_hold(compressed: bool) -> None:
    data = tar_with("a", b"content")
    packed = gzip.compress(data) if compressed else data
    into = io.BytesIO()
    layer = image_archive.unpacked(
        io.BytesIO(packed), digest(packed), digest(data), compressed=compressed, into=into, most=2**20
    )
    assert into.getvalue() == data
    assert (layer.content, layer.size) == (digest(data), len(data))


@pytest.mark.parametrize(
    ("packed", "named", "content", "most", "words"),
    [
        pytest.param(
            gzip.compress(b"data"), b"other", b"data", 100, "not what its digest says", id="another digest"
        ),
        pytest.param(gzip.compress(b"data"), None, b"other", 100, "does not hold what", id="another content"),
        pytest.param(gzip.compress(b"data")[:-9], None, b"data", 100, "could not be unpacked", id="cut off"),
        pytest.param(b"no gzip", None, b"data", 100, "could not be unpacked", id="no gzip"),
        pytest.param(
            gzip.compress(b"\0" * 2**22),
            None,
            b"\0" * 2**22,
            2**21,
            "unpacks to more than 2 MiB",
            id="a bomb",
        ),
    ],
)
def test_layers_that_are_not_taken(
    packed: bytes, named: bytes | None, content: bytes, most: int, words: str
) -> None:
    said = digest(named or packed)
    with pytest.raises(StepFailed, match=words):
        image_archive.unpacked(
            io.BytesIO(packed), said, digest(content), compressed=True, into=io.BytesIO(), most=most
        )


def test_only_the_file_that_was_asked_for() -> None:
    assert image_archive.only_file(io.BytesIO(tar_with("a", b"content")), "a").read() == b"content"
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(info)
    link.seek(0)
    for wrapped in (link, io.BytesIO(tar_with("b", b"")), io.BytesIO(b"no tar"), io.BytesIO()):
        with pytest.raises(StepFailed):
            image_archive.only_file(wrapped, "a")


def test_an_archive_has_the_new_layers_and_names_all() -> None:
    new = image_archive.layer(io.BytesIO(tar_with("a", b"content")))
    first, second = io.BytesIO(), io.BytesIO()
    name = image_archive.write(RUN, [new, new], {"Cmd": ["a"]}, first)
    assert image_archive.write(RUN, [new, new], {"Cmd": ["a"]}, second) == name
    with tarfile.open(fileobj=first) as tar:
        read = {member.name: tar.extractfile(member) for member in tar}
        manifest, config = (read[path] for path in ("manifest.json", f"{name.removeprefix('sha256:')}.json"))
        assert manifest is not None
        assert config is not None
        [entry] = json.loads(manifest.read())
        text = config.read()
    assert digest(text) == name
    said = json.loads(text)
    assert said["rootfs"]["diff_ids"] == [*RUN.layers, new.content, new.content]
    assert (said["os"], said["architecture"], said["config"]) == ("linux", "amd64", {"Cmd": ["a"]})
    assert len(entry["Layers"]) == 4
    assert set(entry["Layers"]) & set(read) == {f"{new.content.removeprefix('sha256:')}/layer.tar"}
