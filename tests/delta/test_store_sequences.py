"""Random sequences of commits, activations, collections, failures and restarts, against a model made of dicts."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_node.delta.disk import Step
from aios_node.delta.store.heads import Pointers
from aios_node.delta.store.pins import Pin
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import BadRequest, StorageFull, UnknownVersion

MEMORY = Path("/dev/shm")  # thousands of syncs: what is durable is tested elsewhere
MODELS = ["a", "a", "b"]
CONTENTS = range(8)
FAILING = [Step.BUILD, Step.VERIFY, Step.RENAME, Step.SYNC_NAME, Step.REGISTER, Step.POINT, Step.UNREGISTER]


@dataclass
class Model:
    members: list[str] = field(default_factory=list)
    active: str | None = None
    previous: str | None = None


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.models: dict[str, Model] = {}
        self.parents: dict[str, list[str]] = {}
        self.pins: list[Pin] = []
        self.failing: Step | None = None
        self.open()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)

    def open(self) -> None:
        self.store = VersionStore.open(self.path / "s", observer=self.observe)

    def observe(self, step: Step) -> None:
        if step is self.failing:
            raise OSError(errno.ENOSPC, "injected")

    def commit(self, model: str, content: int, parents: list[str], activate: bool) -> str:
        weights = {"w": np.full(4, content, np.float32)}
        return self.store.commit(model, weights, {}, parents=parents, created_at="t", activate=activate)

    @rule(
        model=st.sampled_from(MODELS),
        content=st.sampled_from(CONTENTS),
        parent=st.sampled_from([0, 0, 0, 1, 9]),
        activate=st.booleans(),
        failing=st.sampled_from([None, None, None, *FAILING[:5]]),
    )
    def commit_something(self, model: str, content: int, parent: int, activate: bool, failing: Step | None) -> None:
        known = self.models[model].members if model in self.models else []
        parents = known[-1 - parent :][:1] if parent < len(known) else []
        if failing is not None:
            self.failing = failing
            try:
                version = self.commit(model, content, parents, activate)
            except StorageFull:
                return
            finally:
                self.failing = None
            assert version in known or failing in {Step.RENAME, Step.SYNC_NAME}
        else:
            version = self.commit(model, content, parents, activate)
        self.parents[version] = parents
        entry = self.models.setdefault(model, Model())
        if version not in entry.members:
            entry.members.append(version)
        if activate and entry.active != version:
            entry.active, entry.previous = version, entry.active

    @rule(model=st.sampled_from(MODELS), number=st.integers(0, 9), failing=st.sampled_from([False, False, True]))
    def activate(self, model: str, number: int, failing: bool) -> None:
        entry = self.models.get(model)
        if entry is None or not entry.members:
            return
        version = entry.members[number % len(entry.members)]
        self.failing = Step.POINT if failing else None
        try:
            self.store.activate(model, version)
        except StorageFull:
            return
        finally:
            self.failing = None
        if entry.active != version:
            entry.active, entry.previous = version, entry.active

    @rule(model=st.sampled_from(MODELS), content=st.sampled_from(CONTENTS), count=st.integers(2, 5))
    def grow(self, model: str, content: int, count: int) -> None:
        """A history, so that there is something to collect."""
        for number in range(count):
            self.commit_something(model, content + number, parent=0, activate=False, failing=None)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.models)))
        entry = self.models[model]
        if entry.previous is None:
            with pytest.raises(BadRequest):
                self.store.rollback(model)
        else:
            self.store.rollback(model)
            entry.active, entry.previous = entry.previous, entry.active

    @precondition(lambda self: self.registered())
    @rule(number=st.integers(0, 9))
    def pin(self, number: int) -> None:
        versions = sorted(self.registered())
        self.pins.append(self.store.pin(versions[number % len(versions)]))

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.pins.pop(0).release()

    def meeting_points(self, name: str) -> frozenset[str]:
        """What merging the heads would begin with (its own tests say what that is)."""
        return self.store.picture.bases(name)

    @rule(keep_last=st.sampled_from([0, 0, 1, 2]), failing=st.sampled_from([False, False, True]))
    def collect(self, keep_last: int, failing: bool) -> None:
        keep = {pin.version for pin in self.pins}
        for name, entry in self.models.items():
            keep |= {entry.active or "", entry.previous or "", *self.heads(name), *self.meeting_points(name)}
        gone = [
            (name, version)
            for name, entry in sorted(self.models.items())
            for version in entry.members[: max(0, len(entry.members) - keep_last)]
            if version not in keep
        ]
        if failing:
            self.failing = Step.UNREGISTER
            with pytest.raises(StorageFull):
                self.store.gc(keep_last=keep_last)
            self.failing = None
            return
        assert self.store.gc(keep_last=keep_last).members == tuple(gone)
        for name, version in gone:
            self.models[name].members.remove(version)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.pins.clear()
        self.open()

    def registered(self) -> set[str]:
        return {version for entry in self.models.values() for version in entry.members}

    def heads(self, name: str) -> set[str]:
        above: set[str] = set()
        level = {parent for version in self.models[name].members for parent in self.parents[version]}
        while level:
            above |= level
            level = {parent for version in level for parent in self.parents.get(version, [])} - above
        return set(self.models[name].members) - above

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        assert set(self.store.models()) == set(self.models)
        for name, entry in self.models.items():
            assert [info.id for info in self.store.versions(name)] == entry.members[::-1]
            assert self.store.pointers(name) == Pointers(name, entry.active, entry.previous)
            assert set(self.store.heads(name)) == self.heads(name)
        folders = {folder.name for folder in (self.path / "s" / "versions").iterdir()}
        assert folders == self.registered()
        assert list((self.path / "s" / "work").iterdir()) == []
        for version in self.parents.keys() - folders:
            with pytest.raises(UnknownVersion):
                self.store.path(version)


TestStoreSequences = StoreMachine.TestCase
TestStoreSequences.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
