"""From file, environment and command line to a checked configuration.

Precedence: command line over environment (``AIOS_<SECTION>__<KEY>``) over file over defaults.
Every mistake becomes one line that names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from aios_node.engine.errors import BadConfig
from aios_node.node.config.model import NodeConfig, Section

MAX_CONFIG_BYTES = 1 << 20
ENV_PREFIX = "AIOS_"


def load_config(
    path: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> NodeConfig:
    """Read and check a configuration.

    ``path``: the YAML file (None: defaults only). ``overrides``: ``{"listen.port": 8815}`` from the
    command line. ``environ``: by default the process environment.
    Raises BadConfig, one line, for anything that is wrong.
    """
    values = parse_config(_read(path), str(path)) if path else {}
    _merge(values, _from_environment(os.environ if environ is None else environ))
    for dotted, value in (overrides or {}).items():
        _set(values, dotted, value)
    base = path.absolute().parent if path else Path.cwd()
    return check_config(values, base, f"{path}: " if path else "")


def check_config(values: Mapping[str, Any], base: Path, where: str = "") -> NodeConfig:
    """Values as a checked configuration. ``where`` starts the message of a BadConfig."""
    try:
        return NodeConfig(**values, base=base)
    except ValidationError as error:
        raise BadConfig(where + _first_problem(error)) from None


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
    except yaml.YAMLError as error:
        raise BadConfig(f"{where} is not valid YAML: {_one_line(error)}") from None
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
    except yaml.YAMLError:
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


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown_key(problem["loc"])
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not where:
        return message
    shown = repr(problem["input"])
    return f"{where}: {shown if len(shown) < 80 else shown[:77] + '...'} is not allowed: {message}"


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    *parents, key = loc
    known = _keys_at(parents)
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    return f"unknown key {'.'.join(str(part) for part in loc)!r}: {hint}"


def _keys_at(parents: list[int | str]) -> list[str]:
    model: type[BaseModel] = NodeConfig
    for name in parents:
        if isinstance(name, str) and name in model.model_fields:
            model = _section_type(model.model_fields[name].annotation) or model
    return [key for key in model.model_fields if key != "base"]


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_type(part) for part in typing.get_args(annotation))
    return next((part for part in found if part), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
