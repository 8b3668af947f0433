"""A model's shard files, byte for byte: python examples/fetch_files.py grpc://127.0.0.1:8815 minilm FOLDER

A plain pyarrow client. The fastest way to fetch weights. The files are ordinary Parquet: the script checks
their hashes and opens the first tensor with pyarrow and NumPy.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.flight as fl
import pyarrow.parquet as pq


def main(uri: str, model: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    command = json.dumps({"v": 1, "op": "weights", "model": model, "raw": True}).encode()
    with fl.connect(uri) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_command(command))
        for endpoint in info.endpoints:
            about = json.loads(endpoint.app_metadata)  # file, bytes, sha256
            path = Path(folder) / Path(about["file"]).name  # a plain name, whatever the server says
            digest = hashlib.sha256()
            with path.open("wb") as file:
                for chunk in client.do_get(endpoint.ticket):  # batches in order, without gaps
                    for data in chunk.data.column("data"):
                        digest.update(data.as_buffer())
                        file.write(data.as_buffer())
            if digest.hexdigest() != about["sha256"]:
                sys.exit(f"{path} is not what the node announced")
            print(f"{path}  {about['bytes']} bytes, hash equal")
            row = pq.ParquetFile(path).read_row_group(0).to_pylist()[0]
            if row["quant_type"] == "none":
                weights = np.frombuffer(row["data"], row["dtype"]).reshape(row["shape"])
                print(f"  first tensor: {row['layer_name']} {weights.shape}, mean {weights.mean():.6f}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
