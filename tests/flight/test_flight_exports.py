"""What the room exports, and what importing it costs and prints."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aios_node import flight
from aios_node.engine.errors import AiosError
from aios_node.flight import errors


def test_every_exported_name_is_there() -> None:
    assert sorted(flight.__all__) == sorted(flight._LAZY)
    for name in flight.__all__:
        assert getattr(flight, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        flight.nonsense  # noqa: B018  # the access is the test


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_itself_loads_nothing() -> None:
    assert not loaded("import aios_node.flight") & {"pyarrow", "numpy", "aios_node.flight.client"}


def test_the_client_needs_no_weights_no_torch_and_no_memory() -> None:
    modules = loaded("from aios_node import Client")
    assert "pyarrow.flight" in modules
    assert not {name for name in modules if name.split(".")[0] in {"torch", "sqlglot", "tokenizers", "ml_dtypes"}}
    assert not {name for name in modules if name.startswith("aios_node.memory")}


def test_every_class_of_the_tree_has_a_class_to_come_back_as() -> None:
    for kind in errors._tree(AiosError):
        assert issubclass(kind, errors._BY_CODE[kind.code])


def test_grpc_prints_nothing() -> None:
    """A refused connection makes gRPC's C++ part print, unless it was told not to before it was loaded."""
    script = (
        "from aios_node import Client\n"
        "from aios_node.engine.errors import Unavailable\n"
        "try: Client('grpc://127.0.0.1:1', attempts=1).status()\n"
        "except Unavailable as e: print('refused')\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.stderr) == ("refused\n", "")
