"""The version store: every version of every model on this node, kept through crashes, one active per model.

    STORE/.lock          who owns the folder
    STORE/heads.sqlite   models, versions, active and previous, lineage, envelopes
    STORE/versions/ID/   one folder per version, named by its hash, never changed
    STORE/archive/       versions that were pruned, as backward deltas (``archive``, ``pruning``)
    STORE/work/          what is being built or taken apart; emptied at every start
    STORE/transfers/     packages on their way in (``staging``)

A commit is: build in ``work``, verify every hash, sync, rename to ``versions/ID``, sync, one database
transaction. A crash before the transaction leaves a folder that nobody was told of; the next start removes
it. Weights may be shared: the same version in two models is stored once. The store does not know who may
publish, what an envelope says, what time it is, or which version is better.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from aios_node.delta.disk import Observer, Step, disk_errors, make_folder, remove_folder, sync_files, unobserved
from aios_node.delta.names import check_model, short
from aios_node.delta.offers import Source
from aios_node.delta.staging.staging import Staging
from aios_node.delta.store.archive import Archive
from aios_node.delta.store.backward import Encode, Rebuild, encode_backward, rebuild
from aios_node.delta.store.catalog import Catalog
from aios_node.delta.store.events import Event, Subscribers
from aios_node.delta.store.folderlock import FolderLock
from aios_node.delta.store.folders import VersionFolders, freed_bytes
from aios_node.delta.store.heads import Facts, Member, Pointers, expendable
from aios_node.delta.store.headsdb import HeadsDatabase
from aios_node.delta.store.integrity import facts_of, quick_check, verify_version
from aios_node.delta.store.pruning import Pruning, archive_before_pruning
from aios_node.engine.errors import AiosError, BadRequest, UnknownVersion
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.folder import write_folder

Envelope = bytes | Callable[[str], bytes] | None
"""An envelope's bytes, or what makes them once the version id is known."""


@dataclass(frozen=True)
class Collected:
    """What garbage collection took: (model, version) pairs, versions whose files went, bytes freed."""

    members: tuple[tuple[str, str], ...] = ()
    versions: tuple[str, ...] = ()
    bytes: int = 0


class VersionStore(Catalog):
    """An open store. Safe to use from several threads; changes wait for each other, readers for nobody."""

    def __init__(
        self, folders: VersionFolders, database: HeadsDatabase, staging: Staging, archive: Archive, observer: Observer
    ) -> None:
        """Only ``open`` calls this."""
        super().__init__(folders, database.read(), archive)
        self._database, self._staging, self._observer = database, staging, observer
        self._pruning = threading.Lock()
        self._subscribers = Subscribers()
        self._closing = contextlib.ExitStack()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        max_staged_bytes: int = 16 << 30,
        max_archive_bytes: int = 1 << 30,
        observer: Observer = unobserved,
    ) -> VersionStore:
        """Open or create a store and put right what a crash left.

        ``max_archive_bytes`` bounds what pruned versions may take as backward deltas; 0 archives none.
        Removes half-made folders and versions that were never registered. A registered version whose files are
        missing or cut stays in the books as damaged: using it raises Corrupt, committing it again heals it.
        Raises FolderLocked while another owner has the folder, Corrupt for a damaged database, StorageError for
        a folder that cannot be written.
        """
        path = Path(path)
        with contextlib.ExitStack() as opened, disk_errors(path, "open the version store"):
            make_folder(path)
            opened.enter_context(FolderLock.acquire(path))
            folders = VersionFolders(path, observer)
            database = HeadsDatabase.open(path / "heads.sqlite", create=not folders.found())
            opened.callback(database.close)
            folders.prepare()
            staging = Staging(path / "transfers", max_bytes=max_staged_bytes, observer=observer)
            archive = Archive(path / "archive", max_bytes=max_archive_bytes, observer=observer)
            store = cls(folders, database, staging, archive, observer)
            store._recover()
            store._closing = opened.pop_all()
        return store

    def close(self) -> None:
        """Give the folder back. Pins and paths that are still in use stay readable until someone opens it."""
        self._closing.close()

    def __enter__(self) -> VersionStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def staging(self) -> Staging:
        """Packages on their way in."""
        return self._staging

    @property
    def changes(self) -> int:
        """A counter that grows with every change since the store was opened."""
        return self._subscribers.count

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call back after every change, in the thread that made it; returns what ends the subscription."""
        return self._subscribers.add(callback)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder in which anyone, another process too, may build a version for ``adopt``."""
        with disk_errors("the work folder", "build a version"):
            folder = self._folders.new_workspace()
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                remove_folder(folder)

    def commit(
        self,
        model: str,
        weights: Mapping[str, Tensor],
        files: Mapping[str, bytes],
        *,
        created_at: str,
        parents: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
        derived_from: Source | None = None,
        envelope: Envelope = None,
        ancestors: Sequence[str] = (),
        expected: str | None = None,
        activate: bool = False,
    ) -> str:
        """Store weights and small files as a version of a model; returns the version id, durable.

        ``ancestors`` are older than the parents, as a peer told them; ``expected`` is the id that must come out
        (HashMismatch otherwise). Shards that equal those of a parent or of the active version become hard links.
        Committing what is here already only adds it to the model. Nothing is visible unless all is well.
        """
        check_model(model)
        source = {"model": check_model(derived_from.model), "version": derived_from.version} if derived_from else None
        with self.workspace() as folder, self._similar(model, parents) as reuse:
            with disk_errors(folder, "write a version"):
                self._observer(Step.BUILD)
                write_folder(folder, weights, files, parents=parents, recipe=recipe, derived_from=source, reuse=reuse)
            return self.adopt(
                model,
                folder,
                created_at=created_at,
                envelope=envelope,
                ancestors=ancestors,
                expected=expected,
                activate=activate,
            )

    def adopt(
        self,
        model: str,
        folder: Path,
        *,
        created_at: str,
        envelope: Envelope = None,
        ancestors: Sequence[str] = (),
        expected: str | None = None,
        activate: bool = False,
    ) -> str:
        """Commit a version folder that was built in a ``workspace``: verify and sync all of it, then as ``commit``."""
        check_model(model)
        if not self._folders.is_workspace(folder):
            raise BadRequest(f"{folder} is not a workspace of this store")
        with disk_errors(folder, "verify a version"):
            self._observer(Step.VERIFY)
            facts = facts_of(verify_version(folder, expected), ancestors)
            sync_files(folder)
        made = envelope(facts.id) if callable(envelope) else envelope
        self._register(model, facts, Member(facts.id, created_at, made), folder, activate=activate)
        return facts.id

    def activate(self, model: str, version: str) -> Pointers:
        """Make a version (full id) of a model the active one; what was active becomes ``previous``."""
        with self._mutex:
            self._heads.member(model, version)
            self.path(version)
            before = self.pointers(model)
            after = _activated(before, version)
            self._point(before, after)
        self._tell_activated(before, after)
        return after

    def rollback(self, model: str) -> Pointers:
        """Swap active and previous version. Raises BadRequest where there is no previous one."""
        with self._mutex:
            before = self.pointers(model)
            if before.previous is None:
                raise BadRequest(f"{model} has no previous version to go back to")
            self.path(before.previous)
            after = Pointers(model, before.previous, before.active)
            self._point(before, after)
        self._tell_activated(before, after)
        return after

    def restore(self, model: str, version: str, *, follow: Rebuild = rebuild) -> None:
        """Store an archived version (full id) of a model again, as it was, with its envelope; not activated.

        Raises UnknownVersion where it is not in the archive, what ``follow`` raises, HashMismatch or Corrupt where
        the archive is damaged.
        """
        member = self.archived(model).get(version)
        if member is None:
            raise UnknownVersion(f"no version {short(version)} of {model} is in the archive")
        with self.workspace() as folder:
            with self.route(version) as route, disk_errors(folder, "rebuild a version"):
                follow(route, folder)
            created_at, envelope = member.created_at, member.envelope
            self.adopt(model, folder, created_at=created_at, envelope=envelope, expected=version)

    def gc(self, *, keep_last: int = 2, encode: Encode = encode_backward) -> Collected:
        """Remove old versions: all but the newest ``keep_last`` of each model.

        Never what is active or previous anywhere, a head, pinned, or the base of a staged transfer. What is known
        of their lineage stays. Before a version leaves, ``encode`` writes its backward delta into the archive; where
        that is not possible now (Busy, Unavailable) the version stays until the next time.
        """
        with self._pruning, disk_errors("the version store", "remove versions"):
            planned = self._expendable(keep_last)
            later = archive_before_pruning(self._prune_view(planned), encode)
            with self._mutex:
                still = set(self._expendable(keep_last)) & set(planned)
                members = tuple(pair for pair in planned if pair in still and pair[1] not in later)
                versions = self._heads.without(members)
                self._unregister(members)
                gone = [self._folders.detach(version) for version in sorted(versions)]
                for version in versions:
                    self._damaged.pop(version, None)
            freed = sum(freed_bytes(folder) for folder in gone)
            for folder in gone:
                self._observer(Step.REMOVE)
                remove_folder(folder)
            self._archive.tidy(self._heads.registered())
        for model, version in members:
            self._subscribers.tell("collected", model, version)
        return Collected(members, tuple(sorted(versions)), freed)

    def _expendable(self, keep_last: int) -> tuple[tuple[str, str], ...]:
        keep = self._pins.held() | self._staging.bases()
        return expendable(self._heads, keep_last=keep_last, keep=keep)

    def _prune_view(self, members: tuple[tuple[str, str], ...]) -> Pruning:
        return Pruning(self._heads, members, self._folders, self._archive, frozenset(self._damaged), self._observer)

    def _recover(self) -> None:
        registered = self._heads.registered()
        self._folders.sweep(registered)
        for version in registered:
            problem = quick_check(self._folders.path(version), version)
            if problem is not None:
                self._damaged[version] = problem
        self._archive.recover(registered)

    def _similar(self, model: str, parents: Sequence[str]) -> contextlib.AbstractContextManager[Path | None]:
        """Pin the version whose shards are most likely to come again: a parent, else the active one."""
        state = self._heads.models.get(model)
        active = state.pointers.active if state else None
        with self._mutex:
            for version in (*parents, active or ""):
                if self.has(version) and quick_check(path := self._folders.path(version), version) is None:
                    return self._pins.pin(version, path)
        return contextlib.nullcontext()

    def _register(self, model: str, facts: Facts, member: Member, folder: Path, *, activate: bool) -> None:
        """The last part of a commit: the name, then the books. If either fails, both are as before."""
        with self._mutex, disk_errors(folder, "commit a version"):
            known = self._heads.models.get(model)
            fresh = known is None or facts.id not in known.versions
            before = known.pointers if known else Pointers(model)
            after = _activated(before, facts.id) if activate else before
            try:
                if not self.has(facts.id):
                    self._folders.place(folder, facts.id)
                    self._damaged.pop(facts.id, None)
                with self._database.change() as transaction:
                    if fresh:
                        transaction.register(model, self._believed(facts), member)
                    if after != before:
                        transaction.point(after)
                    self._observer(Step.REGISTER)
                self._heads = self._database.read()
            except BaseException:
                self._undo_place(facts.id)
                raise
        self._observer(Step.ACKNOWLEDGE)
        if fresh:
            self._subscribers.tell("committed", model, facts.id)
        self._tell_activated(before, after)

    def _believed(self, facts: Facts) -> Facts:
        """Facts without told ancestors, where those would make a version its own ancestor."""
        return facts if self._heads.admits(facts) else replace(facts, ancestors=())

    def _undo_place(self, version: str) -> None:
        """Best effort, since the disk has just failed: what stays is removed at the next start."""
        with contextlib.suppress(AiosError, OSError):
            self._heads = self._database.read()
            if version not in self._heads.registered():
                remove_folder(self._folders.detach(version))

    def _point(self, before: Pointers, after: Pointers) -> None:
        if after == before:
            return
        with disk_errors("the version store", "activate a version"):
            self._observer(Step.POINT)
            with self._database.change() as transaction:
                transaction.point(after)
            self._heads = self._database.read()

    def _unregister(self, members: Sequence[tuple[str, str]]) -> None:
        with self._database.change() as transaction:
            transaction.unregister(members)
            self._observer(Step.UNREGISTER)
        self._heads = self._database.read()

    def _tell_activated(self, before: Pointers, after: Pointers) -> None:
        if after.active is not None and after.active != before.active:
            self._subscribers.tell("activated", after.model, after.active)


def _activated(before: Pointers, version: str) -> Pointers:
    """Pointers after an activation; activating what is active changes nothing."""
    return before if before.active == version else Pointers(before.model, version, before.active)
