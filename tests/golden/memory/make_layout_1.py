"""Writes ``layout_1/notes/memory.sqlite``: a memory table as the first layout stored it.

One wide table, tags and namespace that may be null, accesses written into the rows. The file beside this
program is what it wrote once; ``test_memory_migration.py`` opens it. Run it only to see how it was made.

    python tests/golden/memory/make_layout_1.py FOLDER
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from pathlib import Path

LAYOUT = """
PRAGMA application_id = 0x41494F4D;
PRAGMA user_version = 1;
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE memories(
    id TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL, modality TEXT NOT NULL, text TEXT, payload BLOB,
    embedding BLOB, namespace TEXT, source TEXT, tags TEXT, importance REAL, metadata TEXT,
    last_access INTEGER, access_count INTEGER NOT NULL DEFAULT 0);
INSERT INTO meta VALUES ('version', 7), ('dimension', 3), ('space', 'golden-space');
"""

TAGS, DATA = '["pet", "ä"]', '{"f": 1.8}'
NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z

ROWS = [
    ("plain", NOON, "text", "hello", None, (1.0, 0.0, 0.0), None, None, None, None, None, None, 0),
    ("full", NOON + 1, "image", "a cat", b"GIF89a", (0.0, 3.0, 4.0), "home", "camera", TAGS, 0.5, DATA, NOON + 9, 4),
    ("waiting", NOON + 2, "text", "no vector yet", None, None, "home", None, "[]", None, None, NOON + 3, 1),
]


def make(folder: Path) -> None:
    """Write the table ``notes`` into ``folder``."""
    (folder / "notes").mkdir(parents=True)
    connection = sqlite3.connect(folder / "notes" / "memory.sqlite", isolation_level=None)
    connection.execute("PRAGMA page_size = 1024")
    connection.executescript(LAYOUT)
    for row in ROWS:
        vector = None if row[5] is None else struct.pack(f"<{len(row[5])}f", *row[5])
        connection.execute(f"INSERT INTO memories VALUES ({', '.join('?' * 13)})", (*row[:5], vector, *row[6:]))
    connection.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
