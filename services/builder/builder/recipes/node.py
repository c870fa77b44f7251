"""Node.js with npm, Yarn or pnpm: installed by the lock file, built by the build script, started by the start
script. PURE.

A package.json beside the files of another language's server is for its assets, and not asked about.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.image_builder import StepFailed
from builder.recipes import site
from builder.recipes.case import Case, Detector, Recipe, Source
from builder.recipes.node_version import fits
from builder.recipes.rendering import (
    build_stage,
    copy,
    copy_built,
    copy_source,
    finished,
    run_all,
    run_stage,
    runs,
)

_LOCKS = ("pnpm-lock.yaml", "yarn.lock", "package-lock.json", "npm-shrinkwrap.json")
_SETTINGS = (".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs", "pnpm-workspace.yaml")
_VERSIONS = (".nvmrc", ".node-version")
# Scripts of an installation, which may need any file and any tool.
_LIFECYCLE = ("preinstall", "install", "postinstall", "prepare", "prepublish")
_NAMED = re.compile(r"^(npm|yarn|pnpm)@(\d+(?:\.\d+){0,2})")
_PNPM_LOCK = re.compile(r"^lockfileVersion:\s*'?(\d+)", re.MULTILINE)
# What makes a site of files, and where it puts it.
_SITES = (
    ("vite", "dist"),
    ("react-scripts", "build"),
    ("@vue/cli-service", "dist"),
    ("astro", "dist"),
    ("gatsby", "public"),
    ("parcel", "dist"),
    ("@11ty/eleventy", "_site"),
)


@dataclass(frozen=True, slots=True)
class Manager:
    name: str
    # What fetches it, where the image has another version or none.
    package: str | None
    locked: str
    unlocked: str
    # In place of the above, where nothing is built; and after the build.
    lean: str
    prune: str

    @property
    def title(self) -> str:
        return {"npm": "npm", "yarn": "Yarn", "pnpm": "pnpm"}[self.name]


def manager_of(source: Source) -> Manager:
    package = source.json("package.json")
    named = _NAMED.match(str(package.get("packageManager", "")))
    lock = source.first(*_LOCKS)
    name = named[1] if named else {"pnpm-lock.yaml": "pnpm", "yarn.lock": "yarn"}.get(lock or "", "npm")
    version = named[2] if named else None
    if name == "pnpm":
        found = _PNPM_LOCK.search(source.text("pnpm-lock.yaml"))
        generation = {"5": "7", "6": "8"}.get(found[1] if found else "", "10")
        return Manager(
            "pnpm",
            f"pnpm@{version or generation}",
            "pnpm install --frozen-lockfile",
            "pnpm install",
            " --prod",
            "CI=true pnpm prune --prod --ignore-scripts",
        )
    berry = "__metadata:" in source.text("yarn.lock") or (version or "1").split(".")[0] != "1"
    if name == "yarn" and berry:
        return Manager(
            "yarn",
            f"@yarnpkg/cli-dist@{version or '4'}",
            "yarn install --immutable",
            "yarn install --no-immutable",
            "",
            "yarn workspaces focus --production --all",
        )
    if name == "yarn":
        return Manager(
            "yarn",
            f"yarn@{version or '1.22.22'}",
            "yarn install --frozen-lockfile",
            "yarn install",
            " --production",
            "yarn install --production --ignore-scripts --prefer-offline",
        )
    return Manager(
        "npm",
        f"npm@{version}" if version else None,
        "npm ci",
        "npm install",
        " --omit=dev",
        "npm prune --omit=dev --ignore-scripts",
    )


def _found(case: Case) -> bool:
    source = case.source
    if "package.json" not in source.names:
        return False
    rails = "Gemfile" in source.names and source.of("config.ru", "bin/rails", "config/application.rb")
    laravel = "composer.json" in source.names and source.of("artisan", "index.php", "public/index.php")
    return not (rails or laravel)


def _recipe(case: Case) -> Recipe:
    source = case.source
    package = source.json("package.json")
    scripts = _texts(package.get("scripts"))
    manager = manager_of(source)
    asked = _asked(source, package)
    preset = case.preset("node", "Node.js", (lambda version: fits(asked, version)) if asked else None)
    usual = f"{manager.name} run build" if "build" in scripts else None
    built = case.build_command(preset, usual)
    start = _start(source, package, scripts)
    folder = _site(package) if start is None and built else None
    explicit = case.settings.start_command or case.processes.get("web") or preset.start_command

    lock = source.first(*_LOCKS)
    words = f"Found package.json{f' and {lock}' if lock else ''}: Node.js with {manager.title}"
    why = [f"{words}, built with the runtime {preset.name}."]
    if asked and not fits(asked, preset.version):
        why.append(f"The app asks for Node.js {asked}; {preset.name} is the nearest that is offered.")
    if lock is None and _texts(package.get("dependencies")):
        why.append("There is no lock file: every build takes the newest versions that fit.")

    install = _install(case, manager, scripts, preset_command=case.install_command(preset, None), built=built)
    build = build_stage(
        case,
        preset,
        "ENV NPM_CONFIG_FUND=false NPM_CONFIG_AUDIT=false NPM_CONFIG_UPDATE_NOTIFIER=false "
        "YARN_NODE_LINKER=node-modules YARN_ENABLE_TELEMETRY=0 NEXT_TELEMETRY_DISABLED=1",
        *install,
    )
    whole = copy_source() in install
    if built or _lifecycle(scripts):
        prune = None
        if folder is None and (_texts(package.get("devDependencies")) or _workspaces(source)):
            prune = f"if [ -d node_modules ]; then {manager.prune}; fi"
        build += [] if whole else [copy_source()]
        build += run_all(built, prune) if built == usual else runs((built, prune))
        whole = True
    if folder is not None and explicit is None:
        return site.built(
            case, build, folder, (*why, f"It starts no server: what is built in {folder}/ is served.")
        )
    processes = case.started(preset, start, "node server.js")
    running = run_stage(
        preset.image, "PATH=/app/node_modules/.bin:$PATH NODE_ENV=production", processes["web"]
    )
    running += ["COPY --from=build /app ./"] if whole else [*copy_built("/app/node_modules"), copy_source()]
    return finished(case, preset, (build, running), processes, why, unwanted=("node_modules",))


def _install(
    case: Case, manager: Manager, scripts: Mapping[str, str], *, preset_command: str | None, built: str | None
) -> list[str]:
    source = case.source
    lock = source.first(*_LOCKS)
    fetch = f"npm install --global --force --silent {manager.package}" if manager.package else None
    # Where nothing is built afterwards, what only a build needs is not fetched.
    needs_all = built or _lifecycle(scripts)
    command = preset_command or (manager.locked if lock else manager.unlocked) + (
        "" if needs_all else manager.lean
    )
    if preset_command or _lifecycle(scripts) or _workspaces(source):
        listed = [copy_source()]
    else:
        listed = copy(source.of("package.json", *_LOCKS, *_SETTINGS))
        if source.below(".yarn"):
            listed += ["COPY source/.yarn ./.yarn"]
    there = "mkdir -p node_modules"
    return [
        *runs((fetch,)),
        *listed,
        *(runs((command, there)) if preset_command else run_all(command, there)),
    ]


def _lifecycle(scripts: Mapping[str, str]) -> bool:
    return any(name in scripts for name in _LIFECYCLE)


def _workspaces(source: Source) -> bool:
    """Dependencies that are folders of the source itself."""
    text = source.text("package.json")
    return (
        '"workspaces"' in text
        or "pnpm-workspace.yaml" in source.names
        or '"file:' in text
        or '"link:' in text
    )


def _start(source: Source, package: Mapping[str, Any], scripts: Mapping[str, str]) -> str | None:
    script = scripts.get("start")
    if script is not None:
        # Without npm between the platform and the app: it takes memory, and the signals.
        plain = not {"prestart", "poststart"} & set(scripts) and "npm_" not in script
        return script if plain else "npm start"
    main = package.get("main")
    if isinstance(main, str) and source.of(main, f"{main}.js"):
        return f"node {main}"
    script = source.first("server.js", "app.js", "index.js", "server.mjs", "index.mjs")
    if script is not None and not ("build" in scripts and _site(package)):
        return f"node {script}"
    return None


def _site(package: Mapping[str, Any]) -> str | None:
    packages = {**_texts(package.get("dependencies")), **_texts(package.get("devDependencies"))}
    return next((folder for name, folder in _SITES if name in packages), None)


def _asked(source: Source, package: Mapping[str, Any]) -> str | None:
    asked = _texts(package.get("engines")).get("node")
    if asked is None:
        asked = next((source.text(name) for name in _VERSIONS if name in source.texts), None)
    return asked.strip()[:80] if asked and asked.strip() else None


def _texts(found: Any) -> dict[str, str]:
    """Of an object in package.json, the entries that are texts."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise StepFailed("recipe", "package.json has a list or a value where an object belongs")
    return {str(name): value for name, value in found.items() if isinstance(value, str)}


NODE = Detector(
    name="node",
    looks_for="package.json (Node.js)",
    reads=("package.json", *_LOCKS, *_VERSIONS),
    named=lambda case: case.names_runtime("node"),
    found=_found,
    recipe=_recipe,
)
