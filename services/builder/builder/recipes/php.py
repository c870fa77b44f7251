"""PHP behind Apache: with Composer, or plain files. PURE.

What is served is `public/` or `web/` where there is one, as the frameworks have it; dot files never are.
"""

from builder.recipes.case import Case, Detector, Recipe, Source, first_version, same_version
from builder.recipes.rendering import (
    BELOW,
    build_stage,
    copy,
    copy_source,
    finished,
    run,
    run_stage,
    runs,
)

_SERVE = "sh /opt/berth/serve"
_PUBLIC = ("public", "web", "webroot", "htdocs", "www")
# Folders the frameworks write to; every organization's apps run as a user of their own.
_WRITTEN = ("storage", "bootstrap/cache", "var", "tmp", "runtime")

# One file for Debian's Apache and for the official image's: the modules come from where both keep them.
_CONFIGURATION = """\
ServerRoot /etc/apache2
ServerName localhost
Listen ${{PORT}}
PidFile /tmp/apache2.pid
Mutex file:/tmp default
IncludeOptional mods-enabled/*.load
IncludeOptional mods-enabled/*.conf
ErrorLog "|/bin/cat"
LogLevel warn
LogFormat "%a \\"%r\\" %>s %b %D" short
CustomLog "|/bin/cat" short
ServerTokens Prod
TraceEnable Off
StartServers 2
MinSpareServers 1
MaxSpareServers 4
MaxRequestWorkers 16
DocumentRoot "{root}"
DirectoryIndex index.php index.html
<Directory />
    Require all denied
</Directory>
<Directory "{root}">
    Require all granted
    AllowOverride All
    Options FollowSymLinks
    FallbackResource {fallback}
</Directory>
<FilesMatch "\\.php$">
    SetHandler application/x-httpd-php
</FilesMatch>
<LocationMatch "/\\.(?!well-known/)">
    Require all denied
</LocationMatch>
<FilesMatch "^(composer\\.(json|lock)|Procfile)$">
    Require all denied
</FilesMatch>
"""
_START = b"""\
# Started by the platform as the app's web process.
set -eu
export PORT="${PORT:-8080}"
export APACHE_RUN_DIR=/tmp APACHE_LOCK_DIR=/tmp APACHE_LOG_DIR=/tmp APACHE_PID_FILE=/tmp/apache2.pid
export APACHE_RUN_USER="#$(id -u)" APACHE_RUN_GROUP="#$(id -g)"
exec apache2 -f /opt/berth/apache.conf -D FOREGROUND
"""


def _found(case: Case) -> bool:
    names = case.source.names
    return "composer.json" in names or bool(case.source.at_root(".php")) or "public/index.php" in names


def _recipe(case: Case) -> Recipe:
    source = case.source
    asked = _asked(source)
    preset = case.preset("php", "PHP", (lambda version: same_version(asked, version)) if asked else None)
    composer = "composer.json" in source.names
    processes = case.started(preset, _SERVE, _SERVE)
    build = _build(case, composer)
    public = next((folder for folder in _PUBLIC if f"{folder}/index.php" in source.names), None)
    root = f"/app/{public}" if public else "/app"
    front = (
        "/index.php" if f"{public}/index.php" in source.names or "index.php" in source.names else "disabled"
    )
    configuration = _CONFIGURATION.format(root=root, fallback=front if public else "disabled")
    running = run_stage(preset.image, "APP_ENV=production", processes["web"])
    running += ["COPY apache.conf serve /opt/berth/"]
    running += ["COPY --from=build /app ./"] if build else [f"COPY {BELOW} ./"]
    lock = " and composer.lock" if "composer.lock" in source.names else ""
    words = f"composer.json{lock}: PHP with Composer" if composer else f"{_first(source)}: PHP"
    served = f" What is served is {public}/." if public else ""
    return finished(
        case,
        preset,
        (build, running),
        processes,
        (f"Found {words}, built with the runtime {preset.name}.{served}",),
        added={"apache.conf": configuration.encode(), "serve": _START},
        unwanted=("vendor",) if composer else (),
    )


def _build(case: Case, composer: bool) -> list[str]:
    """Nothing, for plain files that need no preparation."""
    source = case.source
    preset = case.preset("php", "PHP")
    install, built = case.install_command(preset, None), case.build_command(preset)
    writable = source_of_written(source)
    if not (composer or install or built or writable):
        return []
    stage = build_stage(
        case,
        preset,
        "ENV COMPOSER_ALLOW_SUPERUSER=1 COMPOSER_NO_INTERACTION=1 COMPOSER_HOME=/tmp/composer",
    )
    if install:
        stage += [copy_source(), run(install)]
    elif composer:
        # Scripts and the class map need the source; the packages do not.
        packages = "composer install --no-dev --prefer-dist --no-progress --no-scripts --no-autoloader"
        whole = '"path"' in source.text("composer.json")
        listed = [copy_source()] if whole else copy(source.of("composer.json", "composer.lock", "auth.json"))
        stage += [*listed, run(packages)]
        stage += [] if whole else [copy_source()]
        stage += [run("composer dump-autoload --no-dev --optimize")]
    else:
        stage += [copy_source()]
    stage += runs((built,))
    if writable:
        folders = " ".join(writable)
        stage += [run(f"mkdir -p {folders} && chmod -R a+rwX {folders}")]
    return stage


def source_of_written(source: Source) -> tuple[str, ...]:
    return tuple(folder for folder in _WRITTEN if source.below(folder))


def _first(source: Source) -> str:
    return source.first("index.php", "public/index.php") or next(iter(source.at_root(".php")), "no PHP file")


def _asked(source: Source) -> str | None:
    if "composer.json" not in source.names:
        return None
    required = source.json("composer.json").get("require")
    return first_version(str(required.get("php", ""))) if isinstance(required, dict) else None


PHP = Detector(
    name="php",
    looks_for="composer.json or index.php (PHP)",
    reads=("composer.json",),
    named=lambda case: case.names_runtime("php"),
    found=_found,
    recipe=_recipe,
)
