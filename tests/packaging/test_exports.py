"""The few names that other people's programs import. Taking one away is a breaking change."""

from __future__ import annotations

import importlib

import pytest

EXPORTS = {
    "aios_node": ["Client", "__version__"],
    "aios_node.delta": ["apply", "apply_from", "encode", "encode_to"],
    "aios_node.engine": ["ArrowEngine"],
    "aios_node.memory": [
        "ArrowStorage",
        "Embedder",
        "HITS",
        "Limits",
        "MemoryStore",
        "Merged",
        "TableStats",
        "merge_hits",
    ],
}


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_exports_exactly_these_names(package: str) -> None:
    assert sorted(importlib.import_module(package).__all__) == sorted(EXPORTS[package])


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in EXPORTS.items() for name in names])
def test_every_exported_name_is_there(package: str, name: str) -> None:
    assert getattr(importlib.import_module(package), name) is not None


@pytest.mark.parametrize("package", EXPORTS)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = importlib.import_module(package).no_such_name
