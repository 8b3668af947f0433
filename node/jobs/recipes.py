"""The recipe that a command's options or a YAML file ask for, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_node.engine.errors import BadConfig

MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class RecipeOptions:
    """What a person may say of a quantisation besides a recipe file; None: nothing said.

    ``target_mb``: megabytes (10**6 bytes) of all tensors together; ``target_bpw``: bits per weight.
    """

    quant: str | None = None
    group: int | None = None
    method: str | None = None
    target_mb: float | None = None
    target_bpw: float | None = None
    recipe: Path | None = None


def read_recipe(options: RecipeOptions) -> dict[str, Any]:
    """The recipe as JSON members. Raises BadConfig naming what is wrong."""
    from aios_node.engine.quant.recipe import QuantizationConfig, preset

    said = {name: value for name, value in vars(options).items() if value is not None}
    if options.recipe is not None:
        if len(said) > 1:
            raise BadConfig("a recipe file says everything: leave out --quant, --group, --method and targets")
        return QuantizationConfig.from_json(_load(options.recipe)).to_json()
    has_target = options.target_mb is not None or options.target_bpw is not None
    if options.target_mb is not None and options.target_bpw is not None:
        raise BadConfig("--target-mb and --target-bpw say the same thing: give one of them")
    if options.quant is None and not has_target:
        raise BadConfig("say what to make: --quant int8, int4 or int2, --target-mb, or --recipe FILE")
    members = preset(options.quant or "int2").to_json()
    if options.group is not None:
        if has_target:
            raise BadConfig("with a target every tensor gets a group size of its own: leave out --group")
        members["group_size"] = options.group
    if options.method is not None:
        members["method"] = options.method
    if options.target_mb is not None:
        members["target_bytes"] = _bytes(options.target_mb)
    if options.target_bpw is not None and not 0 < options.target_bpw <= 32:
        raise BadConfig(f"--target-bpw is {options.target_bpw}: a number above 0 and up to 32 is needed")
    return QuantizationConfig.from_json(members).to_json()


def _bytes(megabytes: float) -> int:
    if not 0 < megabytes <= 1e6:
        raise BadConfig(f"--target-mb is {megabytes}: a number of megabytes above 0 and up to 1,000,000 is needed")
    return int(megabytes * 1e6)


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        if file.stat().st_size > MAX_RECIPE_BYTES:
            raise BadConfig(f"{file} is larger than 1 MiB, which no recipe is")
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"recipe {file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BadConfig(f"recipe {file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise BadConfig(f"recipe {file} must be a mapping such as `quant: int4`")
    return loaded
