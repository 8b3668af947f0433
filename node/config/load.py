"""From values to a checked configuration. Every mistake becomes one line: key, value and what is allowed."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from aios_node.engine.errors import BadConfig
from aios_node.node.config.model import NodeConfig, Section
from aios_node.node.config.sources import gather


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
    base = path.absolute().parent if path else Path.cwd()
    return check_config(gather(path, overrides, environ), base, f"{path}: " if path else "")


def check_config(values: Mapping[str, Any], base: Path, where: str = "") -> NodeConfig:
    """Values as a checked configuration. ``where`` starts the message of a BadConfig."""
    try:
        return NodeConfig(**values, base=base)
    except ValidationError as error:
        raise BadConfig(where + _first_problem(error)) from None


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
