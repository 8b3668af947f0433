"""A disk that really is full: a tiny file system of its own where that is allowed, else a limit on file sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import json, resource, sys
    import numpy as np
    from aios_node.delta.chunks import TransferKey
    from aios_node.delta.offers import PackageInfo
    from aios_node.delta.store.store import VersionStore
    from aios_node.engine.errors import StorageFull

    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    def put(store, numbers):
        weights = {"w": np.random.default_rng(numbers).random(numbers, np.float32)}
        return store.commit("m", weights, {}, parents=versions[-1:], created_at="t")

    def names(folder):
        return sorted(entry.name for entry in (store_path / folder).iterdir())

    from pathlib import Path
    store_path = Path(sys.argv[1]) / "s"
    versions, refusals = [], []
    with VersionStore.open(store_path) as store:
        for size in (1 << power for power in range(8, 30)):
            try:
                versions.append(put(store, size))
            except StorageFull as error:
                refusals.append(error.message)
                break
        assert names("versions") == sorted(versions) and names("work") == []
        package = PackageInfo(1 << 24, "0" * 64, "full", None, 0, 0)
        try:
            store.staging.open(TransferKey("m", "0" * 64), package)
        except StorageFull as error:
            refusals.append(error.message)
        assert store.staging.list() == () and names("transfers") == []
    with VersionStore.open(store_path) as store:
        assert sorted(info.id for info in store.versions("m")) == sorted(versions)
        for version in versions:
            store.verify(version)
        collected = store.gc(keep_last=0)
        versions = versions[-1:]
        versions.append(put(store, 500))
        store.activate("m", versions[-1])
    print(json.dumps({"refusals": refusals, "freed": collected.bytes, "kept": len(versions)}))
"""


@pytest.mark.faults
def test_a_full_disk_refuses_new_versions_and_keeps_the_old(tmp_path: Path) -> None:
    program = textwrap.dedent(PROGRAM)
    mount = f"mount -t tmpfs -o size=3m tiny {tmp_path}"
    allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode == 0
    if allowed:
        command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        mode = "mount"
    else:
        command, mode = [], "limit"
    done = subprocess.run(
        [*command, sys.executable, "-c", program, str(tmp_path), mode], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["refusals"]) == 2
    assert "try again" in result["refusals"][0]
    assert result["freed"] > 1000
    assert result["kept"] == 2
