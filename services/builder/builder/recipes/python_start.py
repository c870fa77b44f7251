"""How a Python app is started when nobody says so: by what it imports and what it requires. PURE."""

import re

from builder.recipes.case import Source

_MODULES = ("app", "main", "wsgi", "asgi", "server", "api", "application")
READS = (*(f"{name}.py" for name in _MODULES), "manage.py")
_LISTS = ("requirements.txt", "pyproject.toml", "Pipfile", "uv.lock", "poetry.lock", "Pipfile.lock")

# `app = FastAPI(…)` at the start of a line: what is served, and by which kind of server.
_MADE = re.compile(r"^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(\w+)\(", re.MULTILINE)
_ASGI = {"FastAPI", "Starlette", "Quart", "Litestar", "get_asgi_application"}
_WSGI = {"Flask", "Bottle", "get_wsgi_application", "Dash", "Pyramid", "create_app"}
_SETTINGS = re.compile(r"DJANGO_SETTINGS_MODULE[\"'],\s*[\"']([\w.]+)\.settings")


def command(source: Source) -> str | None:
    served = _django(source) if "manage.py" in source.names else _framework(source)
    if served is not None:
        return served
    script = source.first("main.py", "app.py", "server.py")
    return f"python {script}" if script else None


def _django(source: Source) -> str | None:
    found = _SETTINGS.search(source.text("manage.py"))
    package = found[1] if found else None
    if package is None:
        folders = [name.removesuffix("/wsgi.py") for name in source.names if name.endswith("/wsgi.py")]
        package = folders[0].replace("/", ".") if len(folders) == 1 else None
    if package is not None and _requires(source, "gunicorn"):
        return f"gunicorn {package}.wsgi --bind 0.0.0.0:$PORT"
    if package is not None and _requires(source, "uvicorn"):
        return f"uvicorn {package}.asgi:application --host 0.0.0.0 --port $PORT"
    return "python manage.py runserver --noreload 0.0.0.0:$PORT"


def _framework(source: Source) -> str | None:
    for module in _MODULES:
        for name, maker in _MADE.findall(source.text(f"{module}.py")):
            if maker in _ASGI and _requires(source, "uvicorn", "fastapi[standard]"):
                return f"uvicorn {module}:{name} --host 0.0.0.0 --port $PORT"
            if maker in _ASGI and _requires(source, "hypercorn"):
                return f"hypercorn {module}:{name} --bind 0.0.0.0:$PORT"
            if maker in _WSGI and _requires(source, "gunicorn"):
                return f"gunicorn {module}:{name} --bind 0.0.0.0:$PORT"
            if maker in _WSGI and _requires(source, "waitress"):
                return f"waitress-serve --port=$PORT {module}:{name}"
            if maker == "Flask":
                return f"flask --app {module}:{name} run --host 0.0.0.0 --port $PORT"
    return None


def _requires(source: Source, *packages: str) -> bool:
    words = "|".join(map(re.escape, packages))
    # As a word of its own: `gunicorn`, `gunicorn==23`, `"gunicorn>=20"`, `gunicorn = "*"`.
    pattern = re.compile(rf"(?<![\w.-])(?:{words})(?![\w.-])", re.IGNORECASE)
    return any(pattern.search(source.text(name)) for name in _LISTS)
