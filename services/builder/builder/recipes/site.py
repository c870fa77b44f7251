"""A site of files: an index.html, at the root or in a generator's folder, behind a small server. PURE."""

from collections.abc import Sequence

from contracts.workload import RuntimePreset

from builder.image_builder import StepFailed
from builder.recipes.case import Case, Detector, Recipe, Source
from builder.recipes.rendering import BELOW, build_stage, copy_source, finished, run_stage, runs

FOLDERS = (".", "public", "dist", "build", "_site", "site", "www", "htdocs", "html", "docs")
_SERVE = "sh /opt/berth/serve"

# The port is the platform's choice at the start, and nothing but /tmp is written to.
_CONFIGURATION = b"""\
pid /tmp/nginx.pid;
error_log stderr warn;
worker_processes 1;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/null;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    sendfile on;
    tcp_nopush on;
    server_tokens off;
    gzip on;
    gzip_vary on;
    gzip_proxied any;
    gzip_types text/plain text/css text/javascript application/javascript application/json image/svg+xml;
    server {
        listen @PORT@;
        root /app;
        index index.html;
        absolute_redirect off;
        error_page 404 /404.html;
        location / {
            try_files $uri $uri.html $uri/ @FALLBACK@;
        }
        location = /404.html {
            internal;
        }
        location ~ /\\.(?!well-known/) {
            return 404;
        }
    }
}
"""
_START = b"""\
# Started by the platform as the app's web process.
set -eu
fallback="=404"
# An app of one page finds its own way from any address.
if [ ! -e /app/404.html ] && [ -e /opt/berth/one-page ]; then fallback="/index.html"; fi
sed -e "s#@PORT@#${PORT:-8080}#" -e "s#@FALLBACK@#$fallback#" /opt/berth/nginx.conf > /tmp/nginx.conf
exec nginx -e stderr -c /tmp/nginx.conf -g "daemon off;"
"""


def folder_of(source: Source) -> str | None:
    """Where the site is; the root goes before what may be a generator's leavings."""
    for folder in FOLDERS:
        if (f"{folder}/index.html" if folder != "." else "index.html") in source.names:
            return folder
    return None


def _recipe(case: Case) -> Recipe:
    preset = case.preset("static", "static")
    folder = folder_of(case.source)
    built = case.build_command(preset)
    if folder is None and not built:
        raise StepFailed(
            "recipe",
            f"a static site needs an index.html; looked for it in: {', '.join(FOLDERS)}",
            hint="Set the app's folder to the one that has it.",
        )
    build: list[str] = []
    if built or case.install_command(preset, None):
        build = build_stage(case, preset, copy_source())
        build += runs((case.install_command(preset, None), built))
    where = "" if folder in (".", None) else f" in {folder}/"
    why = (f"Found index.html{where}: a static site, served with the runtime {preset.name}.",)
    return _served(case, preset, build, folder or "public", why)


def built(case: Case, build: Sequence[str], folder: str, why: Sequence[str]) -> Recipe:
    """What another runtime's build stage has put into the folder."""
    return _served(case, case.preset("static", "static"), list(build), folder, why, one_page=True)


def _served(
    case: Case,
    preset: RuntimePreset,
    build: list[str],
    folder: str,
    why: Sequence[str],
    *,
    one_page: bool = False,
) -> Recipe:
    processes = case.started(preset, _SERVE, "nginx")
    added = {"nginx.conf": _CONFIGURATION, "serve": _START}
    if one_page:
        added["one-page"] = b""
    running = run_stage(preset.image, "", processes["web"])
    running += [f"COPY {' '.join(added)} /opt/berth/"]
    if build:
        running += [f"COPY --from=build /app/{folder}/ ./"]
    else:
        running += [f"COPY {BELOW}{'' if folder == '.' else f'{folder}/'} ./"]
    return finished(case, preset, (build, running), processes, why, added=added)


STATIC = Detector(
    name="static",
    looks_for="index.html, at the root or in " + ", ".join(FOLDERS[1:]) + " (static site)",
    reads=(),
    named=lambda case: case.names_runtime("static"),
    found=lambda case: folder_of(case.source) is not None,
    recipe=_recipe,
)
