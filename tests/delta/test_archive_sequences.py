"""Random histories, prunings, restores, failures and restarts: every version ever committed stays within reach."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_node.delta.disk import Step
from aios_node.delta.store.backward import rebuild
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import StorageFull
from aios_node.engine.weights.folder import verify_folder

MEMORY = Path("/dev/shm")  # thousands of syncs: what is durable is tested elsewhere
MODELS = ["a", "a", "b"]
SHAPE = (64, 64)
STEPS = [Step.ARCHIVE, Step.NAME_ARCHIVE, Step.UNREGISTER, Step.REMOVE]


class ArchiveMachine(RuleBasedStateMachine):
    """What every machine does. ``bound``: bytes of the archive."""

    bound = 1 << 30

    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.committed: set[str] = set()
        self.failing: Step | None = None
        self.open()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)

    def open(self) -> None:
        self.store = VersionStore.open(self.path / "s", observer=self.observe, max_archive_bytes=self.bound)

    def observe(self, step: Step) -> None:
        if step is self.failing:
            self.fail()

    def fail(self) -> None:
        """What an injected failure is: each machine has its own."""

    def versions(self, model: str) -> list[str]:
        return [info.id for info in self.store.versions(model)] if model in self.store.models() else []

    def archived(self) -> list[tuple[str, str]]:
        return [(model, version) for model in self.store.models() for version in self.store.archived(model)]

    @rule(
        model=st.sampled_from(MODELS),
        content=st.integers(0, 20),
        count=st.integers(1, 4),
        parent=st.sampled_from([0, 0, 0, 2, 9]),
        activate=st.booleans(),
    )
    def grow(self, model: str, content: int, count: int, parent: int, activate: bool) -> None:
        for number in range(content, content + count):
            parents = self.versions(model)[parent if number == content else 0 :][:1]
            values = np.zeros(SHAPE, np.float32)
            values[number, :2] = number + 1
            self.committed.add(
                self.store.commit(model, {"w": values}, {}, parents=parents, created_at="t", activate=activate)
            )

    @rule(model=st.sampled_from(MODELS), number=st.integers(0, 9))
    def activate(self, model: str, number: int) -> None:
        versions = self.versions(model)
        if versions:
            self.store.activate(model, versions[number % len(versions)])

    @rule(keep_last=st.sampled_from([0, 0, 1, 2]))
    def prune(self, keep_last: int) -> None:
        self.store.gc(keep_last=keep_last)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @precondition(lambda self: self.archived())
    @rule(data=st.data(), restore=st.booleans())
    def rebuild_one(self, data: st.DataObject, restore: bool) -> None:
        model, version = data.draw(st.sampled_from(self.archived()))
        if restore:
            self.store.restore(model, version)
            self.store.verify(version)
            return
        out = self.path / "out"
        with self.store.route(version) as route:
            rebuild(route, out)
        assert verify_folder(out).version == version
        shutil.rmtree(out)

    @invariant()
    def every_entry_leads_somewhere(self) -> None:
        if not hasattr(self, "store"):
            return
        stored = self.store.picture.registered()
        assert all(self.store.archive.chain(version, stored) for version in self.store.archive.entries)
        assert self.store.archive.bytes <= self.bound
        assert list((self.path / "s" / "work").iterdir()) == []


class RoomyMachine(ArchiveMachine):
    """With room for everything: what was committed is stored or can be rebuilt, wherever a process ended."""

    def fail(self) -> None:
        raise KeyboardInterrupt

    @rule(keep_last=st.sampled_from([0, 1]), step=st.sampled_from(STEPS))
    def prune_and_end(self, keep_last: int, step: Step) -> None:
        self.failing = step
        try:
            self.store.gc(keep_last=keep_last)
        except KeyboardInterrupt:
            self.failing = None
            self.reopen()
        self.failing = None

    @invariant()
    def nothing_is_out_of_reach(self) -> None:
        if hasattr(self, "store"):
            stored = self.store.picture.registered()
            assert all(v in stored or self.store.archive.chain(v, stored) for v in self.committed)


class TightMachine(ArchiveMachine):
    """With room for a few, on a disk that refuses now and then: the bound holds and every entry is good."""

    bound = 2000

    def fail(self) -> None:
        raise OSError(errno.ENOSPC, "injected")

    @rule(keep_last=st.sampled_from([0, 1]), step=st.sampled_from(STEPS[:3]))
    def prune_on_a_full_disk(self, keep_last: int, step: Step) -> None:
        self.failing = step
        try:
            self.store.gc(keep_last=keep_last)
        except StorageFull:
            assert step is Step.UNREGISTER
        self.failing = None


TestRoomyArchive = RoomyMachine.TestCase
TestRoomyArchive.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestTightArchive = TightMachine.TestCase
TestTightArchive.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
