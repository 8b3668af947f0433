"""Recipes: their JSON, and one clear error for everything that can be wrong in it."""

from __future__ import annotations

import json
from dataclasses import replace
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
        "scales": st.just("float32"),
    },
)
METHODS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"target_bytes": st.integers(1, 2**40)}),
    st.fixed_dictionaries(
        {
            "method": st.just("gptq"),
            "options": st.fixed_dictionaries(
                {},
                optional={
                    "texts": st.integers(1, 999),
                    "damping": st.floats(0.001, 1),
                    "act_order": st.booleans(),
                    "seed": st.integers(0, 9),
                },
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "method": st.just("tuned"),
            "options": st.just({"steps": 7, "learning_rate": 0.25}),
            "calibration": st.just({"source": "a.jsonl", "sha256": "ab" * 32, "texts": 3}),
        }
    ),
)
OVERRIDES = st.lists(
    st.builds(Override.of, st.text(min_size=1, max_size=20), st.one_of(st.just("none"), PARTIAL)), max_size=4
)


@given(base=PARTIAL, overrides=OVERRIDES, ratio=st.floats(1, 100), method=METHODS)
def test_recipes_survive_json(
    base: dict[str, Any], overrides: list[Override], ratio: float, method: dict[str, Any]
) -> None:
    config = QuantizationConfig(**base, **method, overrides=tuple(overrides), max_error_ratio=ratio)
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
        ({"method": "awq"}, "method is 'awq'; allowed are: ptq, gptq, tuned"),
        ({"method": ["gptq"]}, "method is ['gptq']"),
        ({"scales": "double5"}, "scales is 'double5'; allowed are: float32, double4"),
        ({"scales": "double4", "group_size": 32}, "which int8 does not have"),
        ({"quant": "int2", "scales": "double4", "group_size": 32}, "symmetric: false"),
        ({"quant": "int4", "scales": "double4"}, "from 8 to 256"),
        ({"quant": "int4", "scales": "double4", "group_size": 257}, "from 8 to 256"),
        ({"quant": "int4", "scales": "double4", "group_size": 16, "overrides": [["a", {"quant": "int8"}]]}, "int8"),
        ({"target_bytes": 0}, "target_bytes is 0"),
        ({"target_bytes": 1e6}, "target_bytes is 1000000.0"),
        ({"options": {"texts": 5}}, "no option 'texts': method ptq has none"),
        ({"options": []}, "options must be an object"),
        ({"method": "gptq", "options": {"text": 5}}, "did you mean texts"),
        ({"method": "gptq", "options": {"steps": 5}}, "no option 'steps'"),
        ({"method": "gptq", "options": {"texts": 0}}, "option texts is 0; a whole number from 1"),
        ({"method": "gptq", "options": {"texts": 5.0}}, "option texts is 5.0"),
        ({"method": "gptq", "options": {"texts": True}}, "option texts is True"),
        ({"method": "gptq", "options": {"damping": float("nan")}}, "option damping is nan; a number from"),
        ({"method": "gptq", "options": {"act_order": 1}}, "option act_order is 1; true or false"),
        ({"method": "tuned", "options": {"learning_rate": "fast"}}, "option learning_rate is 'fast'"),
        ({"calibration": {"source": "a"}}, "calibration must have exactly source, sha256, texts"),
        ({"calibration": {"source": "", "sha256": "ab" * 32, "texts": 1}}, "calibration.source"),
        ({"calibration": {"source": "a", "sha256": "AB" * 32, "texts": 1}}, "calibration.sha256"),
        ({"calibration": {"source": "a", "sha256": "ab" * 32, "texts": 0}}, "calibration.texts is 0"),
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
            | st.dictionaries(
                st.sampled_from(["quant", "axis", "overrides", "clip", "x", "method", "options", "scales"]),
                inner,
                max_size=3,
            )
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


def test_recipes_without_new_members_keep_their_form() -> None:
    assert list(presets()["int8"].to_json()) == [
        *("method", "quant", "symmetric", "axis", "group_size", "clip", "overrides", "max_error_ratio")
    ]


def test_a_recipe_holds_the_defaults_of_its_method() -> None:
    config = QuantizationConfig(quant="int4", method="gptq", options={"texts": 16})
    assert config.to_json()["options"] == {
        "texts": 16,
        "damping": 0.01,
        "act_order": True,
        "drift": 0.5,
        "sweeps": 2,
        "seed": 0,
    }
    assert replace(config, method="ptq", options={}).to_json() == QuantizationConfig(quant="int4").to_json()


def test_members_of_double_quantised_scales() -> None:
    settings = {"quant": "int4", "symmetric": True, "group_size": 16, "scales": "double4"}
    config = QuantizationConfig.from_json({**settings, "overrides": [["a", {"scales": "float32", "group_size": 0}]]})
    assert config.to_json()["scales"] == "double4"
    assert config.settings_for("b") == config.base == Settings("int4", True, 0, 16, "minmax", "double4")
    assert config.settings_for("a") == Settings("int4", True, 0, 0, "minmax")
