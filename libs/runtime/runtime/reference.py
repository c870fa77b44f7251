"""`berth settings`: every setting of every part, with its default and what it means; also `.env.example`."""

import inspect
from importlib import import_module, metadata, util
from typing import Any

from pydantic_settings import BaseSettings

HEADER = """\
# Every setting of Berth, with its default. Written by `make gen`; do not edit.
# Set what you need in the environment of the process that reads it. A line without a value has no default.
"""


def packages() -> list[str]:
    entries = [
        *metadata.entry_points(group="berth.services"),
        *metadata.entry_points(group="berth.commands"),
    ]
    found = {entry.value.partition(":")[0].partition(".")[0] for entry in entries}
    return ["runtime", *sorted(found - {"runtime"})]


def settings_classes() -> list[type[BaseSettings]]:
    classes = []
    for package in packages():
        if util.find_spec(f"{package}.settings") is None:
            continue
        module = import_module(f"{package}.settings")
        classes += [
            kind
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, BaseSettings) and kind.__module__ == module.__name__
        ]
    return classes


def reference() -> str:
    parts = [HEADER]
    for kind in settings_classes():
        parts.append(f"\n# --- {kind.__module__.partition('.')[0]} " + "-" * 60 + "\n")
        prefix = str(kind.model_config.get("env_prefix", ""))
        for name, field in kind.model_fields.items():
            if not field.description:
                raise ValueError(f"{kind.__name__}.{name} has no description")
            default = field.get_default(call_default_factory=False)
            parts.append(f"\n# {field.description}\n#{prefix}{name.upper()}={_plain(default, field)}\n")
    return "".join(parts)


def _plain(default: Any, field: Any) -> str:
    if default is None or field.is_required():
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list | set | frozenset | dict):
        import orjson

        value = default if isinstance(default, dict) else list(default)
        return orjson.dumps(value, default=str).decode() if default else ""
    return str(default)
