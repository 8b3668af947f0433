"""Random sequences of opening, sending, crashing and discarding, against a model made of sets."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_node.delta.chunks import MIN_CHUNK, TransferKey, as_ranges, chunk_span
from aios_node.delta.staging.staging import Staging
from aios_node.delta.staging.transfer import Transfer
from aios_node.engine.errors import Busy, HashMismatch, ProtocolError

MEMORY = Path("/dev/shm")  # thousands of syncs: what is durable is tested elsewhere
CHUNKS = 6
SIZE = CHUNKS * MIN_CHUNK - 1000
KEYS = [TransferKey("m", f"{number:064x}") for number in range(3)]
PACKAGES = [random.Random(seed).randbytes(SIZE) for seed in range(2)]


@dataclass(frozen=True)
class Info:
    bytes: int
    sha256: str


INFOS = [Info(SIZE, hashlib.sha256(data).hexdigest()) for data in PACKAGES]


@dataclass
class Model:
    """What one key should hold: which package, what is durable, what only this process knows."""

    package: int
    durable: dict[int, int] = field(default_factory=dict)
    pending: dict[int, int] = field(default_factory=dict)
    transfer: Transfer | None = None

    @property
    def received(self) -> dict[int, int]:
        return self.durable | self.pending


class StagingMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.staging = Staging(self.path / "s")
        self.models: dict[TransferKey, Model] = {}

    def teardown(self) -> None:
        self.drop_process()
        shutil.rmtree(self.path)

    def drop_process(self) -> None:
        for model in self.models.values():
            if model.transfer is not None:
                model.transfer._close()
                model.transfer = None
            model.pending.clear()

    @rule(key=st.sampled_from(KEYS), package=st.sampled_from([0, 1]))
    def open(self, key: TransferKey, package: int) -> None:
        model = self.models.get(key)
        if model is not None and model.transfer is not None:
            with pytest.raises(Busy):
                self.staging.open(key, INFOS[package])
            return
        if model is None or model.package != package:
            model = self.models[key] = Model(package)
        model.transfer = self.staging.open(key, INFOS[package])

    @precondition(lambda self: any(model.transfer for model in self.models.values()))
    @rule(data=st.data(), chunk=st.integers(0, CHUNKS - 1), content=st.sampled_from([0, 1]))
    def send(self, data: st.DataObject, chunk: int, content: int) -> None:
        model = self.models[data.draw(self.opened())]
        assert model.transfer is not None
        offset, length = chunk_span(SIZE, chunk)
        fresh = model.transfer.write(chunk, PACKAGES[content][offset : offset + length])
        assert fresh == (chunk not in model.received)
        model.pending |= {chunk: content} if fresh else {}

    @precondition(lambda self: any(model.transfer for model in self.models.values()))
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        model = self.models[data.draw(self.opened())]
        assert model.transfer is not None
        model.transfer.flush()
        self.settle(model)

    @precondition(lambda self: any(model.transfer for model in self.models.values()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        model = self.models[data.draw(self.opened())]
        assert model.transfer is not None
        model.transfer.close()
        self.settle(model)
        model.transfer = None

    @precondition(lambda self: any(model.transfer for model in self.models.values()))
    @rule(data=st.data())
    def assemble(self, data: st.DataObject) -> None:
        key = data.draw(self.opened())
        model = self.models[key]
        assert model.transfer is not None
        if len(model.received) < CHUNKS:
            with pytest.raises(ProtocolError):
                model.transfer.assemble()
            self.settle(model)
        elif set(model.received.values()) == {model.package}:
            assert model.transfer.assemble().read_bytes() == PACKAGES[model.package]
            self.settle(model)
        else:
            with pytest.raises(HashMismatch):
                model.transfer.assemble()
            del self.models[key]

    @precondition(lambda self: any(model.transfer for model in self.models.values()))
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        model = self.models.pop(data.draw(self.opened()))
        assert model.transfer is not None
        model.transfer.discard()

    @rule()
    def crash(self) -> None:
        self.drop_process()
        self.staging = Staging(self.path / "s")

    @invariant()
    def the_same_transfers_are_there(self) -> None:
        if not hasattr(self, "staging"):
            return
        found = {staged.key: staged.sha256 for staged in self.staging.list()}
        assert found == {key: INFOS[model.package].sha256 for key, model in self.models.items()}
        for model in self.models.values():
            if model.transfer is not None:
                missing = [chunk for chunk in range(CHUNKS) if chunk not in model.received]
                assert model.transfer.missing() == as_ranges(missing)
                assert model.transfer.durable == len(model.durable)

    def opened(self) -> st.SearchStrategy[TransferKey]:
        return st.sampled_from([key for key, model in self.models.items() if model.transfer is not None])

    @staticmethod
    def settle(model: Model) -> None:
        model.durable |= model.pending
        model.pending.clear()


TestStagingSequences = StagingMachine.TestCase
TestStagingSequences.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
