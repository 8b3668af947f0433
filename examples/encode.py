"""Texts to vectors: python examples/encode.py grpc://127.0.0.1:8815 [--model=minilm] "one text" "another"

A plain pyarrow client. One exchange serves any number of batches: write one, read its answer, write the next.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

BATCH = 64
SCHEMA = pa.schema([("text", pa.string())])


def encode(client: fl.FlightClient, path: list[str], texts: list[str]) -> np.ndarray:
    """Vectors row for row: float32 [n, d]."""
    parts = []
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path(*path))
    with writer:
        writer.begin(SCHEMA)
        for start in range(0, len(texts), BATCH):
            writer.write_batch(pa.record_batch([texts[start : start + BATCH]], schema=SCHEMA))
            chunk = reader.read_chunk()
            about = json.loads(chunk.app_metadata.to_pybytes())  # model and version that answered
            print(f"{chunk.data.num_rows} vectors by {about['model']}, version {about['version'][:12]}")
            values = chunk.data.column("embedding").flatten().to_numpy()
            parts.append(values.reshape(chunk.data.num_rows, -1))
        writer.done_writing()
    return np.concatenate(parts)


def main(uri: str, *texts: str) -> None:
    path = ["encode"]  # which is enough where one model is open
    if texts and texts[0].startswith("--model="):
        path.append(texts[0].removeprefix("--model="))
        texts = texts[1:]
    with fl.connect(uri) as client:
        vectors = encode(client, path, list(texts))
    print(f"shape {vectors.shape}; cosines with the first text: {np.round(vectors @ vectors[0], 3).tolist()}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
