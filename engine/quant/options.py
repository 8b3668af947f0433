"""What a recipe's method may be told besides the settings of its tensors: names, kinds, bounds and defaults.

A recipe holds every option, defaults included, so that it keeps its meaning when a default changes. Knows nothing
about what the methods do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from aios_node.engine.errors import BadConfig, choices

Method: TypeAlias = Literal["ptq", "gptq", "tuned"]
Value: TypeAlias = int | float | str

METHODS: tuple[str, ...] = ("ptq", "gptq", "tuned")
_CALIBRATION = ("source", "sha256", "texts")
_MAX_SOURCE = 1024


@dataclass(frozen=True)
class _Number:
    """An option that is a number from ``least`` to ``most``; ``default`` also says whether it must be whole."""

    default: int | float
    least: float
    most: float

    def read(self, name: str, value: object) -> Value:
        whole = isinstance(self.default, int)
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not self.least <= value <= self.most:  # type: ignore[operator]
            kind = "whole number" if whole else "number"
            allowed = f"a {kind} from {self.least:g} to {self.most:g} is allowed"
            raise BadConfig(f"recipe: option {name} is {value!r:.60}; {allowed}")
        return value if whole else float(value)  # type: ignore[return-value, arg-type]


@dataclass(frozen=True)
class _Flag:
    """An option that is true or false."""

    default: bool

    def read(self, name: str, value: object) -> Value:
        if not isinstance(value, bool):
            raise BadConfig(f"recipe: option {name} is {value!r:.60}; true or false is allowed")
        return value


_GPTQ: dict[str, _Number | _Flag] = {
    "texts": _Number(512, 1, 1_000_000),
    "damping": _Number(0.01, 1e-6, 1.0),
    "act_order": _Flag(True),
    "drift": _Number(0.5, 0.0, 1.0),
    "sweeps": _Number(2, 0, 100),
    "seed": _Number(0, 0, 2**53),
}
_TUNED: dict[str, _Number | _Flag] = {
    **_GPTQ,
    "texts": _Number(50_000, 1, 1_000_000),
    "block_texts": _Number(512, 1, 1_000_000),
    "block_steps": _Number(100, 0, 1_000_000),
    "steps": _Number(4000, 0, 1_000_000),
    "batch_tokens": _Number(2048, 16, 2**20),
    "learning_rate": _Number(1e-3, 1e-8, 1.0),
}
_OPTIONS: dict[str, dict[str, _Number | _Flag]] = {"ptq": {}, "gptq": _GPTQ, "tuned": _TUNED}


def method_options(method: str, given: Mapping[str, Any]) -> Mapping[str, Value]:
    """All options of a method: the given ones, checked, and the defaults of the others.

    Raises BadConfig for a method, an option or a value that does not exist.
    """
    if method not in METHODS:
        raise BadConfig(f"recipe: method is {method!r:.60}; allowed are: {', '.join(METHODS)}")
    known = _OPTIONS[method]
    if not isinstance(given, Mapping):
        raise BadConfig("recipe: options must be an object of names and values")
    for name in given:
        if name not in known:
            there = choices(str(name), known) if known else f"method {method} has none"
            raise BadConfig(f"recipe: there is no option {name!r:.60}: {there}")
    read = {name: option.read(name, given.get(name, option.default)) for name, option in known.items()}
    return MappingProxyType(read)


def calibration_source(given: Mapping[str, Any]) -> Mapping[str, Value]:
    """Which texts a recipe was calibrated with: ``source`` (a name), ``sha256`` of them and ``texts``, how many.

    Raises BadConfig unless it is exactly these three.
    """
    if not isinstance(given, Mapping) or set(given) != set(_CALIBRATION):
        raise BadConfig(f"recipe: calibration must have exactly {', '.join(_CALIBRATION)}")
    source, sha256, texts = (given[name] for name in _CALIBRATION)
    if not isinstance(source, str) or not 0 < len(source) <= _MAX_SOURCE or not source.isprintable():
        raise BadConfig(f"recipe: calibration.source must be a printable text of 1 to {_MAX_SOURCE} characters")
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise BadConfig("recipe: calibration.sha256 must be 64 hexadecimal characters in lower case")
    _Number(1, 1, 2**53).read("calibration.texts", texts)
    return MappingProxyType({"source": source, "sha256": sha256, "texts": texts})
