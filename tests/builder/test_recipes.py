"""Every preset: what its files are taken for, what is copied before it installs, and how it is started."""

import json

import pytest
from builder.image_builder import StepFailed
from builder.recipe import DETECTORS, choose, wanted
from builder.recipes import node_version
from builder.recipes.case import Recipe, Source
from contracts.workload import BuildSettings, RuntimePreset


def preset(type: str, version: str, **changes: str | None) -> RuntimePreset:
    name = type if type == "static" else f"{type}-{version}"
    values: dict[str, str | None] = {
        "image": f"berth/{type}:{version}",
        "build_image": f"berth/{type}:{version}-build",
    }
    return RuntimePreset.model_validate({"name": name, "type": type, "version": version, **values, **changes})


PRESETS = (
    preset("go", "1.23"),
    preset("java", "17"),
    preset("node", "24"),
    preset("node", "22", image="node:22-slim", build_image="node:22"),
    preset("php", "8.2"),
    preset("python", "3.11"),
    preset("ruby", "3.1"),
    preset("static", "1", build_image=None),
)


def made(
    files: dict[str, str], settings: BuildSettings | None = None, ca: bytes | None = None
) -> tuple[Recipe, str]:
    settings = settings or BuildSettings()
    texts = {name: text for name, text in files.items() if name in wanted(settings)}
    recipe = choose(Source(frozenset(files), texts), settings, PRESETS, ca)
    return recipe, recipe.added.get("Dockerfile", b"").decode()


def package(**content: object) -> str:
    return json.dumps(content)


DETECTED = {
    "python with pip": (
        {"requirements.txt": "", "app.py": ""},
        "python-3.11",
        "requirements.txt: Python with pip",
    ),
    "python with uv": (
        {"pyproject.toml": "", "uv.lock": "", "main.py": ""},
        "python-3.11",
        "pyproject.toml and uv.lock: Python with uv",
    ),
    "python with poetry": (
        {"pyproject.toml": "[tool.poetry]", "poetry.lock": "", "main.py": ""},
        "python-3.11",
        "pyproject.toml and poetry.lock: Python with Poetry",
    ),
    "poetry without a lock": (
        {"pyproject.toml": "[tool.poetry]\n", "main.py": ""},
        "python-3.11",
        "pyproject.toml: Python with Poetry",
    ),
    "pipenv": (
        {"Pipfile": "", "Pipfile.lock": "{}", "app.py": ""},
        "python-3.11",
        "Pipfile.lock: Python with Pipenv",
    ),
    "plain python": ({"main.py": ""}, "python-3.11", "main.py: Python"),
    "npm": (
        {"package.json": "{}", "package-lock.json": "{}", "server.js": ""},
        "node-24",
        "package.json and package-lock.json: Node.js with npm",
    ),
    "yarn": (
        {"package.json": "{}", "yarn.lock": "", "index.js": ""},
        "node-24",
        "package.json and yarn.lock: Node.js with Yarn",
    ),
    "pnpm": (
        {"package.json": "{}", "pnpm-lock.yaml": "lockfileVersion: '9.0'", "index.js": ""},
        "node-24",
        "package.json and pnpm-lock.yaml: Node.js with pnpm",
    ),
    "node by its engines": (
        {"package.json": package(engines={"node": "22.x"}), "index.js": ""},
        "node-22",
        "package.json: Node.js with npm",
    ),
    "node by its .nvmrc": (
        {"package.json": "{}", ".nvmrc": "v22.3\n", "index.js": ""},
        "node-22",
        "Node.js with npm",
    ),
    "composer": (
        {"composer.json": "{}", "composer.lock": "{}", "public/index.php": ""},
        "php-8.2",
        "composer.json and composer.lock: PHP with Composer",
    ),
    "plain php": ({"index.php": ""}, "php-8.2", "index.php: PHP"),
    "laravel with assets": (
        {"composer.json": "{}", "artisan": "", "package.json": "{}"},
        "php-8.2",
        "composer.json",
    ),
    "rack": ({"Gemfile": "gem 'puma'", "config.ru": ""}, "ruby-3.1", "Gemfile: Ruby with Bundler"),
    "rails with assets": (
        {"Gemfile": "", "Gemfile.lock": "", "bin/rails": "", "config.ru": "", "package.json": "{}"},
        "ruby-3.1",
        "Gemfile and Gemfile.lock: Ruby with Bundler, a Rails app",
    ),
    "go": (
        {"go.mod": "module example.org/shop/v2\n", "main.go": ""},
        "go-1.23",
        "go.mod: a Go module, which makes shop",
    ),
    "maven": ({"pom.xml": "<project/>"}, "java-17", "pom.xml: Java with Maven"),
    "gradle": (
        {"build.gradle.kts": "", "gradlew": "", "gradle/wrapper/gradle-wrapper.properties": ""},
        "java-17",
        "build.gradle.kts: Java with Gradle",
    ),
    "plain java": ({"src/Main.java": ""}, "java-17", "src/Main.java: Java without a build tool"),
    "files": ({"index.html": "", "style.css": ""}, "static", "index.html: a static site"),
    "files in a folder": ({"public/index.html": ""}, "static", "index.html in public/: a static site"),
}


@pytest.mark.promise("R7.4", "U10")
@pytest.mark.parametrize(("files", "name", "why"), DETECTED.values(), ids=DETECTED.keys())
def test_what_a_source_is_taken_for(files: dict[str, str], name: str, why: str) -> None:
    recipe, text = made(files)
    assert recipe.name == name
    assert why in recipe.why[0]
    assert recipe.why[0].startswith("Found ")
    assert f"Process web: {recipe.processes['web']}" in recipe.why
    # The runtime's own image, as nobody in particular; what is copied there comes last.
    last = text.split("\n\n")[-1].splitlines()
    assert last[0].startswith("FROM ")
    assert not last[0].endswith("-build")
    assert "USER 1000:1000" in last
    assert last[-1].startswith("COPY ")


def test_the_order_is_the_documented_one() -> None:
    names = ["dockerfile", "cnb", "buildpacks", "python", "node", "php", "ruby", "go", "java", "static"]
    assert [detector.name for detector in DETECTORS] == names
    every = {
        "Dockerfile": "FROM scratch",
        "requirements.txt": "",
        "package.json": "{}",
        "index.html": "",
        "app.py": "",
    }
    assert made(every)[0].name == "dockerfile"
    del every["Dockerfile"]
    assert made(every)[0].name == "python-3.11"
    del every["requirements.txt"], every["app.py"]
    assert made(every, BuildSettings(start_command="node x"))[0].name == "node-24"


def test_nothing_matches_and_everything_looked_for_is_named() -> None:
    with pytest.raises(StepFailed) as failed:
        made({"README.md": "", "notes.txt": ""})
    for name in (
        "Dockerfile", "requirements.txt", "pyproject.toml", "Pipfile", "package.json", "composer.json",
        "Gemfile", "go.mod", "pom.xml", "build.gradle", "index.html",
    ):  # fmt: skip
        assert name in failed.value.message


@pytest.mark.promise("R2.3")
@pytest.mark.parametrize(
    "files",
    [
        {"app.py": ""},
        {"package.json": "{}", "index.js": ""},
        {"index.php": ""},
        {"Gemfile": "", "app.rb": ""},
        {"go.mod": "module a", "main.go": ""},
        {"pom.xml": ""},
        {"index.html": ""},
    ],
    ids=lambda files: next(iter(files)),
)
def test_commands_of_the_administrator_and_of_the_app(files: dict[str, str]) -> None:
    commands = {f"{kind}_command": f"admin {kind}" for kind in ("install", "build", "start")}
    offered = tuple(p.model_copy(update=commands) for p in PRESETS)
    source = Source(frozenset(files), files)
    recipe = choose(source, BuildSettings(), offered, None)
    lines = recipe.added["Dockerfile"].decode().splitlines()
    # In this order, in the stage that is thrown away; and never anywhere but in a container's shell.
    first, second = (
        lines.index('RUN ["/bin/sh", "-c", "admin install"]'),
        lines.index('RUN ["/bin/sh", "-c", "admin build"]'),
    )
    assert first < second < lines.index("")
    assert recipe.processes == {"web": "admin start"}
    chosen = BuildSettings(
        install_command="own install", build_command="own build", start_command="own start"
    )
    recipe = choose(source, chosen, offered, None)
    text = recipe.added["Dockerfile"].decode()
    assert "admin" not in text
    assert '"own install"' in text
    assert '"own build"' in text
    assert recipe.processes == {"web": "own start"}


LAYERS = {
    "pip": (
        {"requirements.txt": "flask", "app.py": ""},
        ["requirements.txt"],
        "install --requirement requirements.txt",
    ),
    "uv": (
        {"pyproject.toml": "", "uv.lock": "", "main.py": ""},
        ["pyproject.toml", "uv.lock"],
        "uv sync --frozen",
    ),
    "npm": (
        {"package.json": "{}", "package-lock.json": "", ".npmrc": "", "a.js": "", "server.js": ""},
        ["package.json", "package-lock.json", ".npmrc"],
        "npm ci --omit=dev",
    ),
    "pnpm": (
        {"package.json": package(scripts={"build": "x", "start": "y"}), "pnpm-lock.yaml": ""},
        ["package.json", "pnpm-lock.yaml"],
        "pnpm install --frozen-lockfile",
    ),
    "yarn": (
        {"package.json": "{}", "yarn.lock": "", "server.js": ""},
        ["package.json", "yarn.lock"],
        "yarn install --frozen-lockfile --production",
    ),
    "yarn of today": (
        {"package.json": package(packageManager="yarn@4.5.0"), "yarn.lock": "__metadata:", "server.js": ""},
        ["package.json", "yarn.lock"],
        "yarn install --immutable",
    ),
    "composer": (
        {"composer.json": "{}", "composer.lock": "{}", "index.php": ""},
        ["composer.json", "composer.lock"],
        "composer install --no-dev",
    ),
    "bundler": (
        {"Gemfile": "", "Gemfile.lock": "", "app.rb": ""},
        ["Gemfile", "Gemfile.lock"],
        "bundle install",
    ),
    "go": ({"go.mod": "module a", "go.sum": "", "main.go": ""}, ["go.mod", "go.sum"], "go mod download"),
    "maven": ({"pom.xml": "<project/>"}, ["pom.xml"], "dependency:go-offline"),
}


@pytest.mark.parametrize(("files", "listed", "install"), LAYERS.values(), ids=LAYERS.keys())
def test_only_what_names_the_dependencies_is_copied_before_they_are_installed(
    files: dict[str, str], listed: list[str], install: str
) -> None:
    lines = made(files)[1].split("\n\n")[0].splitlines()
    [installs] = [number for number, line in enumerate(lines) if line.startswith("RUN") and install in line]
    copied = [
        json.loads(line.removeprefix("COPY ")) for line in lines[:installs] if line.startswith("COPY [")
    ]
    assert [name.removeprefix("source/") for words in copied for name in words[:-1]] == listed
    assert "COPY source/ ./" not in lines[:installs]


WHOLE = {
    "a script of the installation": {
        "package.json": package(scripts={"prepare": "husky", "start": "x"}),
        "package-lock.json": "",
    },
    "workspaces": {
        "package.json": package(workspaces=["a"], scripts={"start": "x"}),
        "package-lock.json": "",
    },
    "a gem of the source": {"Gemfile": "gem 'a', path: 'a'", "app.rb": ""},
    "a package of the source": {
        "composer.json": '{"repositories": [{"type": "path", "url": "a"}]}',
        "index.php": "",
    },
    "what go has vendored": {"go.mod": "module a", "vendor/modules.txt": "", "main.go": ""},
    "several modules": {"pom.xml": "<project><modules/></project>"},
}


@pytest.mark.parametrize("files", WHOLE.values(), ids=WHOLE.keys())
def test_dependencies_that_need_the_whole_source(files: dict[str, str]) -> None:
    lines = made(files)[1].split("\n\n")[0].splitlines()
    whole = lines.index("COPY source/ ./")
    assert not any(
        "install" in line or "go build" in line for line in lines[:whole] if line.startswith("RUN")
    )


STARTS = {
    "npm": ({"package.json": package(scripts={"start": "node server.js"})}, "node server.js"),
    "npm with hooks": ({"package.json": package(scripts={"start": "x", "prestart": "y"})}, "npm start"),
    "main": ({"package.json": package(main="lib/web.js"), "lib/web.js": ""}, "node lib/web.js"),
    "rails": ({"Gemfile": "", "bin/rails": ""}, "bundle exec rails server -b 0.0.0.0 -p $PORT"),
    "puma": ({"Gemfile": "gem 'puma'", "config.ru": ""}, "bundle exec puma -b tcp://0.0.0.0:$PORT"),
    "rackup": ({"Gemfile": "", "config.ru": ""}, "bundle exec rackup --host 0.0.0.0 --port $PORT"),
    "go": ({"go.mod": "module a.org/b", "cmd/migrate/m.go": "", "cmd/web/m.go": ""}, "web"),
    "maven": ({"pom.xml": ""}, "exec java $JAVA_OPTS -Dserver.port=$PORT -jar target/*.jar"),
    "java": ({"Main.java": ""}, "exec java $JAVA_OPTS -cp classes Main"),
    "flask with gunicorn": (
        {
            "requirements.txt": "Flask\ngunicorn==23.0",
            "app.py": "from flask import Flask\napp = Flask(__name__)\n",
        },
        "gunicorn app:app --bind 0.0.0.0:$PORT",
    ),
    "flask alone": (
        {"requirements.txt": "flask", "main.py": "server = flask.Flask(__name__)\n"},
        "flask --app main:server run --host 0.0.0.0 --port $PORT",
    ),
    "fastapi": (
        {
            "pyproject.toml": 'dependencies = ["fastapi", "uvicorn[standard]>=0.30"]',
            "main.py": "api: FastAPI = FastAPI()\n",
        },
        "uvicorn main:api --host 0.0.0.0 --port $PORT",
    ),
    "django": (
        {
            "requirements.txt": "django\ngunicorn\n",
            "manage.py": "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')",
            "shop/wsgi.py": "",
        },
        "gunicorn shop.wsgi --bind 0.0.0.0:$PORT",
    ),
    "django without a server": (
        {"requirements.txt": "django", "manage.py": "", "shop/wsgi.py": ""},
        "python manage.py runserver --noreload 0.0.0.0:$PORT",
    ),
    "a script": ({"main.py": "print(1)"}, "python main.py"),
}


@pytest.mark.parametrize(("files", "start"), STARTS.values(), ids=STARTS.keys())
def test_how_it_is_started_when_nobody_says_so(files: dict[str, str], start: str) -> None:
    assert made(files)[0].processes == {"web": start}


PROCFILE = "release: ./migrate\nweb: serve\nworker: work\nclock: tick"


@pytest.mark.parametrize(("files", "name", "why"), DETECTED.values(), ids=DETECTED.keys())
def test_a_procfile_is_every_recipes(files: dict[str, str], name: str, why: str) -> None:
    recipe, _ = made({**files, "Procfile": PROCFILE})
    assert recipe.name == name
    assert recipe.processes == {"release": "./migrate", "web": "serve", "worker": "work", "clock": "tick"}


@pytest.mark.parametrize(("files", "name", "why"), DETECTED.values(), ids=DETECTED.keys())
def test_the_operators_certificates_stay_behind(files: dict[str, str], name: str, why: str) -> None:
    recipe, text = made(files, ca=b"PEM")
    *building, running = text.split("\n\n")
    assert "berth/ca.pem" not in running
    if building:
        assert "COPY ca.pem /run/berth/ca.pem" in building[0]
        assert "NODE_EXTRA_CA_CERTS=/run/berth/ca.pem" in building[0]
        assert recipe.added["ca.pem"] == b"PEM"
        assert ("trustStore" in building[0]) == (name == "java-17")
    else:
        assert "ca.pem" not in recipe.added


def test_a_dockerfile_with_a_target_and_arguments() -> None:
    text = "ARG BASE=alpine\nFROM $BASE AS base\nFROM base AS web\n"
    settings = BuildSettings(target="web", arguments={"BASE": "debian:12", "OTHER": "x"})
    recipe, _ = made({"Dockerfile": text, "package.json": "{}"}, settings)
    assert (recipe.target, recipe.arguments, recipe.bases) == ("web", settings.arguments, ("debian:12",))
    assert "its stage web" in recipe.why[0]
    with pytest.raises(StepFailed, match="by the id"):
        made({"Dockerfile": text}, BuildSettings(arguments={"BASE": "abcdef012345"}))


def test_a_site_made_by_a_generator_is_served() -> None:
    files = {
        "package.json": package(
            scripts={"build": "vite build", "dev": "vite"}, devDependencies={"vite": "7"}
        ),
        "package-lock.json": "",
        "index.html": "",
    }
    recipe, text = made(files)
    assert recipe.name == "static"
    building, running = text.split("\n\n")
    assert building.startswith("FROM berth/node:24-build AS build")
    assert 'RUN ["/bin/sh", "-c", "npm run build"]' in building
    assert running.startswith("FROM berth/static:1\n")
    assert "COPY --from=build /app/dist/ ./" in running
    assert any("what is built in dist/ is served" in line for line in recipe.why)
    assert made(files, BuildSettings(start_command="vite preview"))[0].name == "node-24"


def test_an_official_image_keeps_to_the_same_contract() -> None:
    _, text = made({"package.json": "{}", "server.js": ""}, BuildSettings(runtime="node-22"))
    assert "FROM node:22 AS build" in text
    assert "FROM node:22-slim\n" in text


FAILURES = {
    "package.json that is none": ({"package.json": "{"}, "not valid JSON"),
    "package.json that is a list": ({"package.json": "[]"}, "not a JSON object"),
    "scripts that are a list": ({"package.json": '{"scripts": []}'}, "where an object belongs"),
    "gradle without its wrapper": ({"build.gradle": ""}, "no wrapper beside it"),
    "a module without a name": ({"go.mod": "", "main.go": ""}, "names no module"),
    "no start": ({"package.json": "{}"}, "nothing says how the app is started"),
}


@pytest.mark.parametrize(("files", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_says_what_is_wrong(files: dict[str, str], words: str) -> None:
    with pytest.raises(StepFailed) as failed:
        made(files)
    assert failed.value.step == "recipe"
    assert words in failed.value.message


@pytest.mark.parametrize(
    ("asked", "version", "fits"),
    [
        (">=18", "24", True),
        (">= 18 <23", "24", False),
        ("^22.1.0", "24", False),
        ("22.x || 24.x", "24", True),
        ("18 - 20", "24", False),
        ("18 - 24", "24", True),
        ("24.3.1", "24", True),
        (">24", "24", False),
        ("<24", "24", False),
        ("<=24", "24", True),
        ("*", "24", True),
        ("lts/*", "24", True),
        ("lts/jod", "22", True),
        ("lts/jod", "24", False),
        ("v22.3", "22", True),
        ("~24.2", "24", True),
        ("something", "24", False),
    ],
)
def test_versions_of_node(asked: str, version: str, fits: bool) -> None:
    assert node_version.fits(asked, version) == fits
