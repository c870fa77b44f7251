"""Ruby with Bundler: Rails, anything with a config.ru, or a program of its own. PURE."""

import re

from builder.recipes.case import Case, Detector, Recipe, Source, first_version, same_version
from builder.recipes.rendering import (
    build_stage,
    copy,
    copy_built,
    copy_source,
    finished,
    run,
    run_stage,
    runs,
)

_BUNDLE = "/opt/bundle"
# A gem that is a folder of the source.
_LOCAL = re.compile(r"^\s*gemspec\b|\bpath:|:path\s*=>", re.MULTILINE)
_WRITTEN = ("tmp", "log", "storage")


def _recipe(case: Case) -> Recipe:
    source = case.source
    asked = _asked(source)
    preset = case.preset("ruby", "Ruby", (lambda version: same_version(asked, version)) if asked else None)
    processes = case.started(preset, _start(source), "bundle exec puma -p $PORT")
    locked = "Gemfile.lock" in source.names
    rails = _rails(source)
    environment = (
        f"BUNDLE_PATH={_BUNDLE} BUNDLE_WITHOUT=development:test BUNDLE_APP_CONFIG={_BUNDLE} "
        "RACK_ENV=production RAILS_ENV=production RAILS_LOG_TO_STDOUT=1 RAILS_SERVE_STATIC_FILES=1"
    )
    frozen = " BUNDLE_FROZEN=true" if locked else ""
    chosen = case.install_command(preset, None)
    whole = bool(chosen or _LOCAL.search(source.text("Gemfile")))
    files = source.of("Gemfile", "Gemfile.lock", ".ruby-version", ".tool-versions")
    build = build_stage(case, preset, f"ENV {environment}{frozen}")
    build += [copy_source()] if whole else copy(files)
    build += [run(chosen or "bundle install --jobs 4 --retry 3"), run(f"mkdir -p {_BUNDLE}")]
    built = case.build_command(
        preset,
        "SECRET_KEY_BASE_DUMMY=1 SECRET_KEY_BASE=build bundle exec rails assets:precompile"
        if _assets(source)
        else None,
    )
    prepared = bool(built or rails or chosen or not locked)
    if prepared:
        build += [] if whole else [copy_source()]
        build += runs((built,))
    if rails:
        build += [run(f"mkdir -p {' '.join(_WRITTEN)} && chmod -R a+rwX {' '.join(_WRITTEN)}")]
    running = run_stage(preset.image, environment, processes["web"])
    running += copy_built(_BUNDLE)
    running += ["COPY --from=build /app ./"] if prepared else [copy_source()]
    why = [
        f"Found Gemfile{' and Gemfile.lock' if locked else ''}: Ruby with Bundler"
        f"{', a Rails app' if rails else ''}, built with the runtime {preset.name}."
    ]
    if asked and not same_version(asked, preset.version):
        why.append(f"The app asks for Ruby {asked}; {preset.name} is the nearest that is offered.")
    return finished(case, preset, (build, running), processes, why, unwanted=(".bundle",))


def _start(source: Source) -> str | None:
    if _rails(source):
        return "bundle exec rails server -b 0.0.0.0 -p $PORT"
    if "config.ru" in source.names:
        gems = source.text("Gemfile.lock") or source.text("Gemfile")
        if re.search(r"\bpuma\b", gems):
            return "bundle exec puma -b tcp://0.0.0.0:$PORT"
        return "bundle exec rackup --host 0.0.0.0 --port $PORT"
    script = source.first("app.rb", "main.rb", "server.rb")
    return f"bundle exec ruby {script}" if script else None


def _rails(source: Source) -> bool:
    return bool(source.of("bin/rails", "config/application.rb"))


def _assets(source: Source) -> bool:
    gems = source.text("Gemfile.lock") or source.text("Gemfile")
    return _rails(source) and re.search(r"\b(sprockets|propshaft)", gems) is not None


def _asked(source: Source) -> str | None:
    stated = re.search(r"^\s*ruby\s+[\"']([^\"']+)", source.text("Gemfile"), re.MULTILINE)
    return first_version(source.text(".ruby-version") or (stated[1] if stated else ""))


RUBY = Detector(
    name="ruby",
    looks_for="Gemfile (Ruby)",
    reads=("Gemfile", "Gemfile.lock", ".ruby-version"),
    named=lambda case: case.names_runtime("ruby"),
    found=lambda case: "Gemfile" in case.source.names,
    recipe=_recipe,
)
