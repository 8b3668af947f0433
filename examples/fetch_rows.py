"""A model's weights as NumPy arrays: python examples/fetch_rows.py grpc://127.0.0.1:8815 minilm [version]

A plain pyarrow client. Each row is one tensor; quantised ones (quant_type other than none) are dequantised
with w = scale * (code - zero_point), one scale and zero point per group of values.
"""

from __future__ import annotations

import json
import sys

import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
import numpy as np
import pyarrow.flight as fl

BITS = {"int8": 8, "int4": 4, "int2": 2}


def codes_of(data: bytes, bits: int, count: int) -> np.ndarray:
    """Packed codes, low bits first; eight bits are signed."""
    if bits == 8:
        return np.frombuffer(data, np.int8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (np.frombuffer(data, np.uint8)[:, None] >> shifts) & (2**bits - 1)
    return codes.reshape(-1)[:count]


def scales_of(row: dict, channels: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points, [channels, groups]."""
    if not row["extra"] or json.loads(row["extra"]).get("codec", "plain") == "plain":
        return tuple(np.frombuffer(row[name], np.float32).reshape(channels, -1) for name in ("scales", "zero_points"))
    # double4: a step for 16 groups, then 4 bits for every scale and every zero point
    supers = -(-groups // 16)
    steps = np.frombuffer(row["scales"], np.float16, channels * supers).reshape(channels, supers)
    scales, zeros = (
        codes_of(data, 4, channels * groups).reshape(channels, groups)
        for data in (row["scales"][steps.nbytes :], row["zero_points"])
    )
    highest = np.float32(2 ** BITS[row["quant_type"]] - 1)
    steps = np.repeat(steps.astype(np.float32), 16, axis=1)[:, :groups]
    return steps * scales, zeros * highest / np.float32(15)


def tensor(row: dict) -> np.ndarray:
    """The row's tensor in its own dtype."""
    shape, dtype = row["shape"], np.dtype(row["dtype"])
    if row["quant_type"] == "none":
        return np.frombuffer(row["data"], dtype).reshape(shape)
    axis, size = row["quant_axis"], row["group_size"]
    codes = codes_of(row["data"], BITS[row["quant_type"]], row["num_params"]).reshape(shape)
    moved = codes.reshape(1, -1) if axis == -1 else np.moveaxis(codes, axis, 0)
    channels = moved.reshape(len(moved), -1)  # [channels, values of a channel]
    groups = np.arange(channels.shape[1]) // size if size else np.zeros(channels.shape[1], int)
    scales, zeros = scales_of(row, len(channels), max(1, -(-channels.shape[1] // size)) if size else 1)
    values = (scales[:, groups] * (channels.astype(np.float32) - zeros[:, groups])).reshape(moved.shape)
    return (values.reshape(shape) if axis == -1 else np.moveaxis(values, 0, axis)).astype(dtype)


def main(uri: str, model: str, *version: str) -> None:
    with fl.connect(uri) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_path("weights", model, *version))
        for endpoint in info.endpoints:  # one per shard
            for chunk in client.do_get(endpoint.ticket):
                for row in chunk.data.to_pylist():
                    weights = tensor(row)
                    print(f"{row['layer_name']}  {weights.dtype}{list(weights.shape)}  stored as {row['quant_type']}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
