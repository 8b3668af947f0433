"""The way from a command to the node: over Flight when it runs, otherwise directly on its folder.

Either way an operation gives the same result. A running node leaves ``run.json`` (mode 0600) in its data
folder, with its address and a token for its owner; the folder's kernel lock tells whether it still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aios_node.delta.store.folderlock import FolderLock, read_owner
from aios_node.engine.errors import FolderLocked, Unavailable
from aios_node.node.config.sources import gather
from aios_node.node.files import read_json, storage_error, write_json

if TYPE_CHECKING:
    from aios_node.flight.client import Client

Progress = Callable[[float, str], None]


class NodeCalls(Protocol):
    """A node that operations can be run on."""

    def call(self, op: str, args: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Run one operation to its end and return its result. Raises AiosError."""
        ...


@dataclass(frozen=True)
class RunFile:
    """How this machine's owner reaches a running node."""

    uri: str
    token: str
    pid: int
    certificate: str | None = None  # what TLS clients trust: a PEM file

    def write(self, data_dir: Path) -> None:
        """Leave it where commands look for it; only the owner may read it."""
        write_json(data_dir / "run.json", asdict(self), mode=0o600)

    @staticmethod
    def read(data_dir: Path) -> RunFile | None:
        """What the running node left, if it did."""
        found = read_json(data_dir / "run.json", None)
        return RunFile(**found) if isinstance(found, dict) else None

    @staticmethod
    def remove(data_dir: Path) -> None:
        """The node no longer runs."""
        (data_dir / "run.json").unlink(missing_ok=True)


@contextmanager
def reach(config_file: Path) -> Iterator[NodeCalls]:
    """The node of this configuration, for a few operations.

    Raises Unavailable when another command holds the folder, or the node is just starting.
    """
    data_dir = find_data_dir(config_file)
    prepare_folder(data_dir)
    try:
        lock = FolderLock.acquire(data_dir)
    except FolderLocked:
        with open_client(_running(data_dir)) as client:
            yield _Remote(client)
        return
    with lock, _direct(config_file) as node:
        yield node


def find_data_dir(config_file: Path) -> Path:
    """The data folder that a configuration names, found without checking the rest of it. Raises BadConfig."""
    section = gather(config_file).get("node", {})
    named = section.get("data_dir", "data") if isinstance(section, dict) else "data"
    return (config_file.absolute().parent / str(named)).absolute()


def prepare_folder(folder: Path) -> None:
    """Make the data folder where it is missing. Raises StorageError or StorageFull."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from None


def _running(data_dir: Path) -> RunFile:
    owner = read_owner(data_dir)
    run = RunFile.read(data_dir)
    if run is None or owner is None or run.pid != owner.pid:
        holder = owner or "another process"
        raise Unavailable(f"{data_dir} is in use by {holder}, which takes no calls yet: try again in a moment")
    return run


def open_client(run: RunFile) -> Client:
    """A Flight client of the running node with its owner's rights."""
    from aios_node.flight.client import Client

    return Client(run.uri, token=run.token, ca=Path(run.certificate) if run.certificate else None)


class _Remote:
    def __init__(self, client: Client) -> None:
        self._client = client

    def call(self, op: str, args: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for message in self._client.call(op, args):
            if "progress" in message:
                progress(float(message["progress"]), str(message.get("text", "")))
            else:
                result = dict(message)
        return result


@contextmanager
def _direct(config_file: Path) -> Iterator[NodeCalls]:
    from aios_node.node.config import load_config
    from aios_node.node.core import NodeCore
    from aios_node.node.operations import run_operation

    class Direct:
        def call(self, op: str, args: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
            return run_operation(core, op, args, progress)

    with NodeCore.open(load_config(config_file)) as core:
        yield Direct()
