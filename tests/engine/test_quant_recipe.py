"""Recipes: their JSON, and one clear error for everything that can be wrong in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadConfig
from aios_node.engine.quant.recipe import Override, QuantizationConfig, Settings, preset, presets

PARTIAL = st.fixed_dictionaries(
    {},
    optional={
        "quant": st.sampled_from(["int8", "int4", "int2"]),
        "symmetric": st.booleans(),
        "axis": st.integers(-1, 3),
        "group_size": st.integers(0, 256),
        "clip": st.sampled_from(["minmax", "mse"]),
    },
)
OVERRIDES = st.lists(
    st.builds(Override.of, st.text(min_size=1, max_size=20), st.one_of(st.just("none"), PARTIAL)), max_size=4
)


@given(base=PARTIAL, overrides=OVERRIDES, ratio=st.floats(1, 100))
def test_recipes_survive_json(base: dict[str, Any], overrides: list[Override], ratio: float) -> None:
    config = QuantizationConfig(**base, overrides=tuple(overrides), max_error_ratio=ratio)
    assert QuantizationConfig.from_json(json.dumps(config.to_json())) == config
    assert QuantizationConfig.from_json(config.to_json()) == config


def test_presets_are_named_like_the_command_lines_choices() -> None:
    assert {name: config.quant for name, config in presets().items()} == {name: name for name in presets()}
    assert set(presets()) == {"int8", "int4", "int2"}
    assert preset("int4") == presets()["int4"]
    with pytest.raises(BadConfig, match="did you mean int8"):
        preset("int9")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"quant": "int3"}, "quant is 'int3'; allowed are: int8, int4, int2"),
        ({"clip": "max"}, "clip is 'max'"),
        ({"symmetric": 1}, "symmetric is 1"),
        ({"axis": -2}, "axis is -2"),
        ({"axis": True}, "axis is True"),
        ({"group_size": -1}, "group_size is -1"),
        ({"group_size": 1.5}, "group_size is 1.5"),
        ({"group_siz": 32}, "did you mean group_size"),
        ({"max_error_ratio": 0.5}, "max_error_ratio is 0.5"),
        ({"max_error_ratio": float("nan")}, "max_error_ratio is nan"),
        ({"method": "gptq"}, "method must be 'ptq'"),
        ({"overrides": {"a": "none"}}, "list of"),
        ({"overrides": [["a"]]}, "list of"),
        ({"overrides": [["a", "all"]]}, "override 'a' must be"),
        ({"overrides": [["a", {"bits": 4}]]}, "unknown key 'bits'"),
        ({"overrides": [["a", {"quant": "int16"}]]}, "quant is 'int16'"),
        ({"overrides": [[3, "none"]]}, "pattern"),
        ({"overrides": [["a", "none"]] * 2000}, "at most 1000"),
        ("[1]", "a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(raw: Any, message: str) -> None:
    with pytest.raises(BadConfig, match="recipe: ") as caught:
        QuantizationConfig.from_json(raw)
    assert message in caught.value.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["quant", "axis", "overrides", "clip", "x"]), inner, max_size=3)
        ),
    )
)
def test_any_json_is_a_recipe_or_a_clear_error(raw: Any) -> None:
    try:
        config = QuantizationConfig.from_json(json.dumps(raw))
    except BadConfig:
        return
    assert QuantizationConfig.from_json(config.to_json()) == config


def test_the_first_matching_pattern_decides() -> None:
    config = QuantizationConfig(overrides=(Override.of("a*", "none"), Override.of("*", {"quant": "int2"})))
    assert config.settings_for("abc") is None
    assert config.settings_for("Abc") == Settings(quant="int2")
