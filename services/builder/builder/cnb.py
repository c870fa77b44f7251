"""Cloud Native Buildpacks, the platform's side of the contract: what a builder image says of itself, what its
lifecycle is told, what its exit codes mean, and which of the image it made is taken in. PURE.

The lifecycle gets no engine and no registry: it writes the app's image as an OCI layout, on a run image whose
layers it is never shown. `lifecycle.py` carries it out.
"""

import json
import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from contracts import image_reference
from contracts.errors import InvalidInput

from builder.image_builder import FoundImage, StepFailed

CREATOR = "/cnb/lifecycle/creator"
LAUNCHER = "/cnb/lifecycle/launcher"
APP, LAYERS, PLATFORM, CACHE, LAYOUT = "/workspace", "/layers", "/platform", "/cache", "/layout"
# A name only, which the layout's folders are made of: nothing is ever sent there.
APP_IMAGE = "app.local/app:latest"
# Of those that export to a layout; the newest that the builder speaks, too, is chosen.
APIS = ("0.12", "0.13", "0.14", "0.15")
LARGEST_TEXT = 4 * 1024 * 1024

_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_TYPE = re.compile(r"^[a-z0-9][a-z0-9_-]{0,38}$")
_NUMBER = re.compile(r"^\d{1,9}$")

# What the specification gives a code of its own; the rest by the phase its range belongs to.
_MEANING: Mapping[int, tuple[str, str | None]] = {
    11: ("the builder's lifecycle does not speak the platform's version of the API", None),
    12: ("a buildpack of the builder needs another version of the lifecycle", None),
    20: (
        "none of the builder's buildpacks recognizes the app",
        "The log says what each looked for: is it in the app's first folder, and is this the right builder?",
    ),
    21: ("none of the builder's buildpacks recognizes the app, and one of them failed at looking", None),
    51: ("a buildpack failed to build the app", "The last lines of the log are the buildpack's own."),
    91: ("an extension of the builder failed", None),
}
_PHASES: Mapping[int, str] = {
    2: "detecting",
    3: "analyzing",
    4: "restoring the cache",
    5: "building",
    6: "exporting the image",
    9: "generating",
}


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """`trusted`: the administrator offers this builder; else the app has named it."""

    builder: str
    trusted: bool
    start: str | None


@dataclass(frozen=True, slots=True)
class Builder:
    """What a builder image's labels and variables say."""

    api: str
    run_image: str
    uid: int
    gid: int
    stack: str | None


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer as the layout has it: `digest` of the file, `content` of what is in it."""

    digest: str
    content: str
    compressed: bool


@dataclass(frozen=True, slots=True)
class Made:
    """What is taken of the image the lifecycle made: layers above the run image's, and what it starts."""

    config: Mapping[str, Any]
    layers: tuple[Blob, ...]
    types: tuple[str, ...]
    ports: tuple[int, ...]


def reference(name: str, what: str) -> str:
    """An image's name as the engine tells it, and always with a tag or a digest: a few hexadecimal digits
    alone would be any image the engine has."""
    try:
        found = image_reference.parse(name)
    except InvalidInput as error:
        raise StepFailed("recipe", f"{what} {name[:200]!r} is not a valid name of an image") from error
    return str(found).removeprefix(f"{image_reference.HUB}/").removeprefix("library/")


def builder(name: str, image: FoundImage) -> Builder:
    labels: Mapping[str, str] = image.config.get("Labels") or {}
    variables = dict(entry.partition("=")[::2] for entry in image.config.get("Env") or ())
    metadata = _label(labels, "io.buildpacks.builder.metadata", name)
    uid, gid = variables.get("CNB_USER_ID", ""), variables.get("CNB_GROUP_ID", "")
    if not _NUMBER.match(uid) or not _NUMBER.match(gid) or int(uid) == 0:
        raise _no_builder(name, "it does not say which user builds (CNB_USER_ID, CNB_GROUP_ID)")
    return Builder(
        api=_api(name, labels, metadata),
        run_image=reference(_run_image(name, metadata), f"the run image of the builder {name}"),
        uid=int(uid),
        gid=int(gid),
        stack=labels.get("io.buildpacks.stack.id") or None,
    )


def _api(name: str, labels: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    apis = _mapping(_mapping(metadata, "lifecycle"), "apis")
    if not apis and "io.buildpacks.lifecycle.apis" in labels:
        apis = _label(labels, "io.buildpacks.lifecycle.apis", name)
    platform = _mapping(apis, "platform")
    spoken = {str(api) for kind in ("supported", "deprecated") for api in platform.get(kind) or ()}
    common = [api for api in APIS if api in spoken]
    if not common:
        raise _no_builder(
            name,
            f"it speaks the platform API {', '.join(sorted(spoken, key=_version)) or 'in no version'}; "
            f"needed is one of {', '.join(APIS)} (lifecycle 0.17 or newer)",
        )
    return common[-1]


def _version(api: str) -> tuple[int, ...]:
    return tuple(int(part) for part in api.split(".") if part.isdecimal())


def _run_image(name: str, metadata: Mapping[str, Any]) -> str:
    images = metadata.get("images")
    first = images[0] if isinstance(images, list) and images else None
    found = first if isinstance(first, dict) else _mapping(_mapping(metadata, "stack"), "runImage")
    image = found.get("image")
    if not isinstance(image, str) or not image:
        raise _no_builder(name, "it names no run image")
    return image


def check_run_image(said: Builder, run: FoundImage) -> None:
    stack = (run.config.get("Labels") or {}).get("io.buildpacks.stack.id")
    if said.stack and stack and said.stack != stack:
        raise StepFailed("build", f"the builder is of the stack {said.stack}, its run image of {stack}")


def arguments(said: Builder) -> tuple[str, ...]:
    """No -process-type: it would fail an app without that type, and processes are started by name anyway. No
    -previous-image: of an earlier image's layers only those in the cache are there to be used again."""
    return (
        CREATOR,
        *("-app", APP),
        *("-cache-dir", f"{CACHE}/layers"),
        *("-gid", str(said.gid)),
        "-layout",
        *("-layout-dir", LAYOUT),
        *("-layers", LAYERS),
        *("-log-level", "info"),
        *("-platform", PLATFORM),
        *("-report", f"{LAYERS}/report.toml"),
        *("-run-image", said.run_image),
        *("-uid", str(said.uid)),
        APP_IMAGE,
    )


def environment(said: Builder) -> dict[str, str]:
    return {"CNB_PLATFORM_API": said.api, "CNB_EXPERIMENTAL_MODE": "silent"}


def failure(exit_code: int) -> StepFailed:
    words, hint = _MEANING.get(exit_code, (None, None))
    if words is None:
        phase = _PHASES.get(exit_code // 10)
        words = f"the builder's lifecycle failed at {phase}" if phase else "the builder's lifecycle failed"
    return StepFailed("build", f"{words} (exit code {exit_code})", exit_code=exit_code, hint=hint)


# --- the layout ------------------------------------------------------------------------------------------


def place(name: str) -> str:
    """The folder of an image in a layout, by the rules of the specification."""
    found = image_reference.parse(name)
    registry = "index.docker.io" if found.host == image_reference.HUB else found.host
    last = found.digest.replace(":", "/") if found.digest else found.tag or "latest"
    return posixpath.join(LAYOUT, registry, found.path, last)


def shown(name: str, run: FoundImage) -> dict[str, bytes]:
    """The run image as a layout that names its layers and holds none: they are in the engine already."""
    config = _json(
        {
            "architecture": run.architecture,
            "os": run.os,
            "config": dict(run.config),
            "rootfs": {"type": "layers", "diff_ids": list(run.layers)},
        }
    )
    layers = [
        # A size of nothing would be taken for a file that is there.
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": 1}
        for layer in run.layers
    ]
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": f"sha256:{sha256(config).hexdigest()}",
                "size": len(config),
            },
            "layers": layers,
        }
    )
    entry = {"mediaType": kind, "digest": f"sha256:{sha256(manifest).hexdigest()}", "size": len(manifest)}
    folder = place(name)
    return {
        f"{folder}/oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        f"{folder}/index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
        **{blob(folder, f"sha256:{sha256(data).hexdigest()}"): data for data in (config, manifest)},
    }


def blob(folder: str, digest: str) -> str:
    return f"{folder}/blobs/{digest.replace(':', '/', 1)}"


def manifest_of(index: bytes) -> str:
    """The digest of the one image an index names."""
    found = _read(index, "index.json").get("manifests")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        raise _not_taken("its index does not name one image")
    return _digest(found[0].get("digest"), "manifest")


def config_of(manifest: bytes, digest: str) -> str:
    _check(manifest, digest, "manifest")
    return _digest(_mapping(_read(manifest, "manifest"), "config").get("digest"), "configuration")


def made(manifest: bytes, config: bytes, config_digest: str, run: FoundImage) -> Made:
    """Anybody could have written this: only layers that fit are taken, on the run image and no other, and of
    the configuration what an app needs."""
    _check(config, config_digest, "configuration")
    found = _read(config, "configuration")
    contents = _mapping(found, "rootfs").get("diff_ids")
    listed = _read(manifest, "manifest").get("layers")
    if not isinstance(contents, list) or not isinstance(listed, list) or len(contents) != len(listed):
        raise _not_taken("its manifest and its configuration name different layers")
    below = len(run.layers)
    if tuple(contents[:below]) != run.layers:
        raise _not_taken("it does not stand on the run image")
    layers = tuple(
        Blob(
            _digest(layer.get("digest") if isinstance(layer, dict) else None, "layer"),
            _digest(content, "layer"),
            not str(layer.get("mediaType", "")).endswith(".tar"),
        )
        for layer, content in zip(listed[below:], contents[below:], strict=True)
    )
    kept = _mapping(found, "config")
    labels = {
        str(name): str(value)
        for name, value in _mapping(kept, "Labels").items()
        # What the platform knows its own by is not for a build to say.
        if not str(name).startswith("berth.")
    }
    ports = [str(port).partition("/")[0] for port in _mapping(kept, "ExposedPorts")]
    return Made(
        config={
            "Env": _texts(kept.get("Env")),
            "Entrypoint": _texts(kept.get("Entrypoint")),
            "Cmd": _texts(kept.get("Cmd")),
            "WorkingDir": str(kept.get("WorkingDir") or ""),
            "User": str(kept.get("User") or ""),
            "Labels": labels,
        },
        layers=layers,
        types=_types(labels),
        ports=tuple(sorted({int(port) for port in ports if _NUMBER.match(port) and 0 < int(port) < 65536})),
    )


def _types(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The processes the app's buildpacks made; a name no process here can have is left out."""
    metadata = _read(labels.get("io.buildpacks.build.metadata", "{}").encode(), "build metadata")
    found = metadata.get("processes")
    names = [process.get("type") for process in found or () if isinstance(process, dict)]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and _TYPE.match(name)))


def processes(made: Made, listed: Mapping[str, str], start: str | None) -> dict[str, str]:
    """As a node starts them: what buildpacks made by its name, any other command by the launcher."""
    commands = {name: command for name, command in listed.items() if name not in made.types}
    if start is not None:
        commands["web"] = start
    if made.types == ("web",) and made.config["Entrypoint"] == ["/cnb/process/web"] and not commands:
        # The image starts by itself, also where it has no shell.
        return {}
    return {
        **{name: f"/cnb/process/{name}" for name in made.types},
        **{name: f"{LAUNCHER} {shlex.quote(command)}" for name, command in commands.items()},
    }


def _label(labels: Mapping[str, str], label: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(labels.get(label, ""))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _no_builder(name, f"it has no label {label}")
    return found


def _mapping(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = found.get(key)
    return inner if isinstance(inner, dict) else {}


def _texts(found: Any) -> list[str]:
    return [str(text) for text in found] if isinstance(found, list) else []


def _read(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _not_taken(f"its {what} is not JSON")
    return found


def _digest(found: Any, what: str) -> str:
    if not isinstance(found, str) or not _DIGEST.match(found):
        raise _not_taken(f"the digest of its {what} is not valid")
    return found


def _check(data: bytes, digest: str, what: str) -> None:
    if f"sha256:{sha256(data).hexdigest()}" != digest:
        raise _not_taken(f"its {what} is not what its digest says")


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _no_builder(name: str, why: str) -> StepFailed:
    return StepFailed(
        "recipe",
        f"the image {name} cannot be used as a builder: {why}",
        hint="Name a builder image of Cloud Native Buildpacks, such as heroku/builder:24.",
    )


def _not_taken(why: str) -> StepFailed:
    return StepFailed("image", f"the image that the builder's lifecycle wrote is not taken: {why}")
