"""A coverage plugin that sees what pyarrow's C++ threads run.

Python keeps its trace function per thread, and coverage only reaches threads that Python starts. A Flight
server's methods, middleware and generators are called from gRPC's own threads, so without this plugin most
of ``flight/`` counts as never run. It wraps the four classes of pyarrow.flight through which C++ enters
Python, when pyarrow.flight is imported and not before: what a process imports stays as it is.

Loaded by name from pyproject.toml; ``make coverage`` puts this folder on the path.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

_TARGET = "pyarrow.flight"
_ENTERED_BY_METHOD = ("FlightServerBase", "ServerMiddlewareFactory", "ServerMiddleware")


def coverage_init(registry: object, options: object) -> None:
    """Called by coverage in every process that it measures."""
    sys.meta_path.insert(0, _Watch())


def _trace_here() -> None:
    """Do for a foreign thread what threading does for its own: install coverage's trace function."""
    if sys.gettrace() is None and (install := threading.gettrace()) is not None:
        sys.settrace(install)


def _traced_items(items: Iterator[Any]) -> Iterator[Any]:
    """The same items; each may be asked for in another thread state."""
    while True:
        _trace_here()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _trace_here()
        result = function(*args, **kwargs)
        return _traced_items(result) if isinstance(result, Iterator) else result

    return call


def _entered_by_method(base: type) -> type:
    """A stand-in for a base class: public methods of its subclasses are traced in any thread."""

    def wrap_methods(cls: type[Any], /, **kwargs: Any) -> None:
        for name, member in list(vars(cls).items()):
            if isinstance(member, FunctionType) and not name.startswith("_"):
                setattr(cls, name, _traced(member))

    return type(base.__name__, (base,), {"__init_subclass__": classmethod(wrap_methods)})


def _entered_by_generator(base: type) -> type:
    """A stand-in for GeneratorStream: its generator is traced in any thread."""

    def begin(self: Any, schema: Any, generator: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, schema, _traced_items(iter(generator)), *args, **kwargs)  # type: ignore[misc]

    return type(base.__name__, (base,), {"__init__": begin})


def _wrap(module: ModuleType) -> None:
    for name in _ENTERED_BY_METHOD:
        setattr(module, name, _entered_by_method(getattr(module, name)))
    module.GeneratorStream = _entered_by_generator(module.GeneratorStream)  # type: ignore[attr-defined]


class _Watch(importlib.abc.MetaPathFinder):
    """Waits for the import of pyarrow.flight, lets it happen, and wraps what came of it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != _TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _wrap(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
