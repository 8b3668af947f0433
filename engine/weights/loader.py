"""Weights of a model as a mapping, read lazily from the files they lie in.

Knows files and tensor names; knows nothing about versions (see folder) or networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from aios_node.engine.errors import Corrupt, NotFound
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.dtypes import raw_bytes
from aios_node.engine.weights.layout import RowHeader
from aios_node.engine.weights.parquet import open_shard
from aios_node.engine.weights.shard import Shard

_MAX_SHARDS = 10_000


class LazyWeightDict(Mapping[str, Tensor]):
    """Tensors by name, sorted; nothing is read until it is asked for, nothing is kept afterwards.

    Every access makes a new read-only view (a copy for files of other writers). Threads may share it.
    Closing lets go of the files; views that were handed out stay valid.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._shards = tuple(shards)
        owners: dict[str, Shard] = {}
        for shard in self._shards:
            for name in shard.headers:
                if name in owners:
                    raise Corrupt(f"tensor {name!r} is in two files: {owners[name].path} and {shard.path}")
                owners[name] = shard
        self._owners = {name: owners[name] for name in sorted(owners)}

    def __getitem__(self, name: str) -> Tensor:
        return self._owners[name].tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: object) -> bool:
        return name in self._owners

    @property
    def headers(self) -> Mapping[str, RowHeader]:
        """Shape, dtype and quantisation of every tensor, without reading it."""
        return {name: shard.headers[name] for name, shard in self._owners.items()}

    @property
    def hashes(self) -> Mapping[str, str]:
        """Tensor hashes as the files state them, where they do; not recomputed."""
        return {name: shard.hashes[name] for name, shard in self._owners.items() if name in shard.hashes}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, in the form they are stored in."""
        return sum(header.nbytes for header in self.headers.values())

    def file_of(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        return self._owners[name].path.name

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor's data, or of its packed codes."""
        tensor = self[name]
        return raw_bytes(tensor.codes if isinstance(tensor, QuantizedTensor) else tensor).data

    def close(self) -> None:
        """Let go of all files."""
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> LazyWeightDict:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WeightLoader:
    """Finds the Parquet files of a model: a folder of them, or a single file, V2 or V1."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def files(self) -> tuple[Path, ...]:
        """The files, in order. Raises NotFound when there are none."""
        if self.path.is_file():
            return (self.path,)
        found = tuple(sorted(self.path.glob("*.parquet"))) if self.path.is_dir() else ()
        if not found:
            raise NotFound(f"{self.path} is neither a Parquet file nor a folder that holds any")
        if len(found) > _MAX_SHARDS:
            raise Corrupt(f"{self.path} holds {len(found)} Parquet files; at most {_MAX_SHARDS} make a model")
        return found

    def open(self) -> LazyWeightDict:
        """Open all files. Raises NotFound, Corrupt, BadWeights or TooLarge."""
        return open_files(self.files())


def open_files(paths: Iterable[Path]) -> LazyWeightDict:
    """Open these files as one mapping; when one of them fails, none stays open."""
    shards: list[Shard] = []
    try:
        for path in paths:
            shards.append(open_shard(path))  # noqa: PERF401  (what is open must be known when one fails)
        return LazyWeightDict(shards)
    except BaseException:
        for shard in shards:
            shard.close()
        raise
