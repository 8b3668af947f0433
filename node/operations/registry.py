"""Operations: everything a node can be asked to do, each a named function with checked arguments.

The command line runs them directly on a folder, or through Flight actions of the same name on a running
node; the results are the same. An operation takes the node, its checked arguments and a progress callback,
and returns a JSON-able dict.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from aios_node.engine.errors import BadRequest, choices
from aios_node.flight.ports import Action, Right

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore

Progress = Callable[[float, str], None]


class Args(BaseModel):
    """Arguments of an operation; unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


A = TypeVar("A", bound=Args)
Run = Callable[["NodeCore", A, Progress], dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """One operation. ``long`` ones report progress and may take minutes."""

    action: Action
    args: type[Args]
    run: Callable[[NodeCore, Any, Progress], dict[str, Any]]
    long: bool = False


OPERATIONS: dict[str, Operation] = {}


def operation(
    name: str, description: str, right: Right | None, resource: str = "", *, long: bool = False
) -> Callable[[Run[A]], Run[A]]:
    """Register a function as the operation ``name``. Its second parameter's type checks the arguments."""

    def register(run: Run[A]) -> Run[A]:
        args = _args_type(run)
        action = Action(name, description, right, resource)
        OPERATIONS[name] = Operation(action, args, run, long)
        return run

    return register


def find_operation(name: str) -> Operation:
    """The operation of this name. Raises BadRequest that names those that exist."""
    found = OPERATIONS.get(name)
    if found is None:
        raise BadRequest(f"unknown action {name[:80]!r}: {choices(name, OPERATIONS, limit=60)}")
    return found


def check_args(operation: Operation, given: Mapping[str, Any]) -> Args:
    """The arguments in their types. Raises BadRequest, one line, naming what is wrong."""
    try:
        return operation.args(**given)
    except ValidationError as error:
        raise BadRequest(f"{operation.action.name}: {_problem(error, operation.args)}") from None
    except TypeError as error:
        raise BadRequest(f"{operation.action.name}: {error}") from None


def run_operation(core: NodeCore, name: str, given: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Check the arguments, run the operation, return its result. Raises AiosError."""
    found = find_operation(name)
    return found.run(core, check_args(found, given), progress)


def _problem(error: ValidationError, args: type[Args]) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, args.model_fields, n=1)
        allowed = ", ".join(args.model_fields) or "none"
        return f"unknown argument {where!r}: " + (f"did you mean {near[0]!r}?" if near else f"allowed: {allowed}")
    if first["type"] == "missing":
        return f"argument {where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}" if where else message


def _args_type(run: Callable[..., Any]) -> type[Args]:
    hints = typing.get_type_hints(run, localns={"NodeCore": object})
    return next(hint for hint in hints.values() if isinstance(hint, type) and issubclass(hint, Args))
