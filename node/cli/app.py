"""Puts the commands together and turns every error into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong use or wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from aios_node import __version__
from aios_node.engine.errors import AiosError, BadConfig
from aios_node.node.cli import basic, memory, model, peers, token, train

app = typer.Typer(
    name="aios-node",
    help="A node that keeps weights and memories, serves them over Arrow Flight, and stays in step with its peers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"aios-node {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


basic.register(app)
app.add_typer(model.app, name="model")
app.add_typer(memory.app, name="memory")
app.add_typer(peers.app, name="peers")
app.add_typer(token.app, name="token")
app.add_typer(train.app, name="train")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        outcome = app(args=arguments, standalone_mode=False)
    except AiosError as error:
        print(f"aios-node: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, BadConfig) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing left to say
        return 1
    except Exception as error:
        return _usage_or_bug(error)
    return outcome if isinstance(outcome, int) else 0


def _usage_or_bug(error: Exception) -> int:
    import typer
    from typer.exceptions import TyperException

    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, TyperException):
        if message := error.format_message().strip():  # a group without a command has shown its help
            print(f"aios-node: {message} (see aios-node --help)", file=sys.stderr)
        return error.exit_code
    if os.environ.get("AIOS_TRACEBACK"):
        raise error
    print(f"aios-node: unexpected {type(error).__name__}: {error} (set AIOS_TRACEBACK=1 to see where)", file=sys.stderr)
    return 1
