"""Where configuration values come from: a YAML file, the environment, the command line. Checks none of them.

Precedence: command line over environment (``AIOS_<SECTION>__<KEY>``) over file over defaults. Imports no
validation library, so that a command that only needs the data folder starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aios_node.engine.errors import BadConfig

MAX_CONFIG_BYTES = 1 << 20
ENV_PREFIX = "AIOS_"

NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises for texts that are no YAML: also bare errors, for a 99th month or too many brackets."""


def gather(
    path: Path | None, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All values by section. ``overrides``: ``{"listen.port": 8815}``. Raises BadConfig."""
    values = parse_config(_read(path), str(path)) if path else {}
    _merge(values, _from_environment(os.environ if environ is None else environ))
    for dotted, value in (overrides or {}).items():
        _set(values, dotted, value)
    return values


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise BadConfig(f"{path} is larger than 1 MiB, which no configuration is")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadConfig(f"{path} does not exist: make one with `aios-node init {path.parent}`") from None
    except IsADirectoryError:
        raise BadConfig(f"{path} is a folder: name the file, for example {path / 'node.yaml'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from None


def parse_config(text: str, where: str) -> dict[str, Any]:
    """YAML text as a mapping of sections, not checked further. Raises BadConfig that names ``where``."""
    try:
        loaded = yaml.safe_load(text)
    except NOT_YAML as error:
        raise BadConfig(f"{where} is not valid YAML: {_one_line(error)[:300]}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise BadConfig(f"{where} must be a mapping of sections such as `listen:`")
    if "base" in loaded:
        raise BadConfig(f"{where}: unknown key 'base'")
    return {key: value for key, value in loaded.items() if value is not None}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, text in sorted(environ.items()):
        section, separator, key = variable.removeprefix(ENV_PREFIX).partition("__")
        if not variable.startswith(ENV_PREFIX) or not separator:
            continue
        _set(found, f"{section.lower()}.{key.lower()}", _scalar(variable, text))
    return found


def _scalar(variable: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except NOT_YAML:
        raise BadConfig(f"environment variable {variable} is not a YAML value") from None


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        below = values.setdefault(name, {})
        if not isinstance(below, dict):
            raise BadConfig(f"{name} must be a mapping to hold {dotted}")
        values = below
    values[last] = value


def _merge(values: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
