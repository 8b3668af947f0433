"""The recipe of a quantisation: what becomes how many bits, in which groups, by which rule.

A recipe is part of a version's identity, so it is plain JSON and says everything that decides a code.
Knows nothing about tensors' contents (see ptq).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from aios_node.engine.errors import BadConfig, choices
from aios_node.engine.quant.blocks import BITS, QuantType
from aios_node.engine.quant.options import Method, Value, calibration_source, method_options

Clip: TypeAlias = Literal["minmax", "mse"]
ScaleCodec: TypeAlias = Literal["float32", "double4"]

_CLIPS = ("minmax", "mse")
_SCALES = ("float32", "double4")
_DOUBLE4_GROUPS = (8, 256)
_MAX_OVERRIDES = 1000
_MAX_PATTERN = 256
_MAX_GROUP = 2**20
_MAX_AXIS = 31
_MEMBERS = ("method", "target_bytes", "options", "calibration", "max_error_ratio")
"""Members of a recipe beside the settings and the overrides."""

_MAX_BYTES = 2**40


@dataclass(frozen=True)
class Settings:
    """How one tensor is quantised.

    ``axis``: the channel axis, -1 for the whole tensor. ``group_size``: values along a channel that share a
    scale, 0 for all. ``clip``: ``minmax`` maps the extremes exactly, ``mse`` searches the range with the
    smallest squared error. ``scales``: ``float32``, or ``double4``: scales and zero points are quantised in their
    turn, to 4 bits each (see scales.CompactScales); for int4 and int2, in groups of 8 to 256.
    """

    quant: QuantType = "int8"
    symmetric: bool = True
    axis: int = 0
    group_size: int = 0
    clip: Clip = "minmax"
    scales: ScaleCodec = "float32"

    def __post_init__(self) -> None:
        _one_of("quant", self.quant, tuple(BITS))
        _one_of("clip", self.clip, _CLIPS)
        _one_of("symmetric", self.symmetric, (True, False))
        _whole("axis", self.axis, -1, _MAX_AXIS)
        _whole("group_size", self.group_size, 0, _MAX_GROUP)
        _one_of("scales", self.scales, _SCALES)
        if self.scales == "double4":
            _check_double4(self)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON members; ``scales`` only where it is not float32, as before there was a choice."""
        members = asdict(self)
        if self.scales == "float32":
            del members["scales"]
        return members


@dataclass(frozen=True)
class Override:
    """What applies to tensors whose names match ``pattern`` (fnmatch, case counts).

    ``settings`` are the differences to the recipe's own settings, or None: leave the tensor as it is.
    """

    pattern: str
    settings: tuple[tuple[str, Any], ...] | None = None

    @classmethod
    def of(cls, pattern: str, settings: Mapping[str, Any] | Literal["none"]) -> Override:
        """An override from its JSON form: a pattern, and an object of settings or the word "none"."""
        if not isinstance(pattern, str) or not 0 < len(pattern) <= _MAX_PATTERN:
            raise BadConfig(f"recipe: a pattern must be a text of 1 to {_MAX_PATTERN} characters")
        if settings == "none":
            return cls(pattern)
        if not isinstance(settings, Mapping):
            raise BadConfig(f'recipe: override {pattern!r} must be an object of settings or "none"')
        return cls(pattern, tuple(sorted(settings.items())))


@dataclass(frozen=True)
class QuantizationConfig:
    """A recipe: settings for every tensor, exceptions by name, a method, and when old scales are kept.

    The first override whose pattern matches a tensor's name decides. Scales of an earlier version are kept
    while the squared error with them is at most ``max_error_ratio`` times the error with fresh ones: unchanged
    scales keep most codes unchanged, and a delta small. ``target_bytes``: what all tensors together may take;
    bits are then shared out by measured sensitivity, and no tensor gets fewer than ``quant`` has.
    ``options``: see options.method_options; those not given have their defaults. ``calibration``: the texts that
    were used (options.calibration_source). Raises BadConfig naming key, value and what is allowed.
    """

    quant: QuantType = "int8"
    symmetric: bool = True
    axis: int = 0
    group_size: int = 0
    clip: Clip = "minmax"
    overrides: tuple[Override, ...] = ()
    max_error_ratio: float = 1.1
    scales: ScaleCodec = "float32"
    method: Method = "ptq"
    target_bytes: int | None = None
    options: Mapping[str, Value] = field(default_factory=dict, hash=False)
    calibration: Mapping[str, Value] | None = field(default=None, hash=False)
    _settings: Settings = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        base = Settings(self.quant, self.symmetric, self.axis, self.group_size, self.clip, self.scales)
        object.__setattr__(self, "_settings", base)
        object.__setattr__(self, "overrides", tuple(self.overrides))
        if len(self.overrides) > _MAX_OVERRIDES:
            raise BadConfig(f"recipe: {len(self.overrides)} overrides; at most {_MAX_OVERRIDES} are allowed")
        ratio = self.max_error_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 1 <= ratio <= 1e6:
            raise BadConfig(f"recipe: max_error_ratio is {ratio!r}; a number of at least 1 is needed")
        object.__setattr__(self, "max_error_ratio", float(ratio))
        for override in self.overrides:
            self._apply(override)
        self._check_method()

    def _check_method(self) -> None:
        object.__setattr__(self, "options", method_options(self.method, self.options))
        if self.target_bytes is not None:
            _whole("target_bytes", self.target_bytes, 1, _MAX_BYTES)
        if self.calibration is not None:
            object.__setattr__(self, "calibration", calibration_source(self.calibration))

    @property
    def base(self) -> Settings:
        """What applies to a tensor that no override names."""
        return self._settings

    def settings_for(self, name: str) -> Settings | None:
        """The settings for a tensor of this name; None: leave it as it is."""
        for override in self.overrides:
            if fnmatchcase(name, override.pattern):
                return self._apply(override)
        return self._settings

    def _apply(self, override: Override) -> Settings | None:
        if override.settings is None:
            return None
        changes = dict(override.settings)
        _check_keys(changes, set(asdict(self._settings)), f"override {override.pattern!r}")
        return replace(self._settings, **changes)

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON members, for a manifest or a file."""
        overrides = [
            [override.pattern, "none" if override.settings is None else dict(override.settings)]
            for override in self.overrides
        ]
        members: dict[str, Any] = {
            "method": self.method,
            **self._settings.to_json(),
            "overrides": overrides,
            "max_error_ratio": self.max_error_ratio,
        }
        # Written only where they say something: recipes from before there were these members keep their bytes.
        if self.target_bytes is not None:
            members["target_bytes"] = self.target_bytes
        if self.options:
            members["options"] = dict(self.options)
        if self.calibration is not None:
            members["calibration"] = dict(self.calibration)
        return members

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | str | bytes) -> QuantizationConfig:
        """Read a recipe: an object, or its text. Raises BadConfig."""
        members = dict(_object(raw))
        overrides = members.pop("overrides", [])
        if not isinstance(overrides, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in overrides):
            raise BadConfig("recipe: overrides must be a list of [pattern, settings] pairs")
        _check_keys(members, {*asdict(Settings()), *_MEMBERS}, "the recipe")
        return cls(**members, overrides=tuple(Override.of(*pair) for pair in overrides))


_EMBEDDINGS = ("*embed*", "*wte*", "*wpe*")


def _with_embeddings(config: QuantizationConfig, **settings: Any) -> QuantizationConfig:
    return replace(config, overrides=tuple(Override.of(pattern, settings) for pattern in _EMBEDDINGS))


def presets() -> dict[str, QuantizationConfig]:
    """The recipes behind ``--quant int8|int4|int2``.

    int8: a scale and zero point per output channel; asymmetric, because on sentence encoders that halves the
    distance to the original vectors at the same size. Embeddings have theirs per column: as good, and a table of
    many short rows would otherwise carry as many scales. int4 and int2: asymmetric groups of 16 and 8 whose scales
    and zero points have 4 bits each (see scales), with the clip that minimises the squared error. Embeddings are
    int4 in both.
    """
    int8 = {"quant": "int8", "symmetric": False, "axis": 0, "group_size": 0, "clip": "minmax"}
    int4 = {"quant": "int4", "symmetric": False, "axis": 0, "group_size": 16, "clip": "mse", "scales": "double4"}
    int2 = {**int4, "quant": "int2", "group_size": 8}
    return {
        "int8": _with_embeddings(QuantizationConfig.from_json(int8), axis=1),
        "int4": QuantizationConfig.from_json(int4),
        "int2": _with_embeddings(QuantizationConfig.from_json(int2), **int4),
    }


def preset(name: str) -> QuantizationConfig:
    """The preset of this name. Raises BadConfig listing those that exist."""
    known = presets()
    if name not in known:
        raise BadConfig(f"there is no recipe named {name!r:.60}: {choices(name, known)}")
    return known[name]


def _check_double4(settings: Settings) -> None:
    if settings.quant == "int8":
        raise BadConfig("recipe: scales is 'double4', which int8 does not have: use int4 or int2, or scales float32")
    if settings.quant == "int2" and settings.symmetric:
        # Its zero point 1.5 lies between those that 4 bits can say: 1.4 and 1.6.
        raise BadConfig("recipe: scales is 'double4', for int2 that needs symmetric: false")
    _whole("group_size (with scales double4)", settings.group_size, *_DOUBLE4_GROUPS)


def _object(raw: Mapping[str, Any] | str | bytes) -> Mapping[str, Any]:
    if isinstance(raw, (str, bytes)):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadConfig(f"recipe: not valid JSON: {str(error)[:200]}") from None
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise BadConfig("recipe: a JSON object is needed")
    return raw


def _check_keys(members: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in members:
        if key not in allowed:
            raise BadConfig(f"recipe: {where} has an unknown key {key!r:.60}: {choices(key, allowed)}")


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is each or (isinstance(value, str) and value == each) for each in allowed):
        raise BadConfig(f"recipe: {key} is {value!r:.60}; allowed are: {', '.join(map(str, allowed))}")


def _whole(key: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise BadConfig(f"recipe: {key} is {value!r:.60}; a whole number from {least} to {most} is allowed")
