"""The same encoder as an ONNX model, and what ONNX Runtime's own quantisers make of it.

The model is written node by node from our weights, the way exporters write BERT; it must agree with our float32
answers before anything is measured on it. Needs the ``bench`` extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import prefix_of, tensor_shapes
from aios_node.engine.nets.sentences import length_batches
from aios_node.engine.quant.blocks import Tensor, dense
from aios_node.engine.tokenizer import FastTokenizer

OPSET = 17
BATCH_TOKENS = 4096


class NotInstalled(Exception):
    """The ``bench`` extra is missing."""


def check_installed() -> None:
    """Raise NotInstalled, with what to do, where ONNX Runtime or its tools are missing."""
    try:
        import onnx
        import onnx_ir
        import onnxruntime
    except ImportError as error:
        raise NotInstalled(f"{error.name} is not installed: pip install 'aios-node[bench]'") from None
    del onnx, onnx_ir, onnxruntime


def write_model(path: Path, config: EncoderConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the encoder up to the last block's output: ``ids`` and ``mask`` int64 [b, t] -> float32 [b, t, d]."""
    import onnx

    graph = _Graph(config, weights)
    x = graph.embeddings()
    for index in range(config.layers):
        x = graph.block(x, f"encoder.layer.{index}")
    onnx.save(graph.model(x), path)


class _Graph:
    """Collects nodes and constants; every method returns the name of its result."""

    def __init__(self, config: EncoderConfig, weights: Mapping[str, Tensor]) -> None:
        if config.activation != "gelu":
            raise ValueError(f"activation {config.activation} is not written")
        prefix = prefix_of(weights)
        self._config = config
        self._weights = {name: np.asarray(dense(weights[prefix + name]), np.float32) for name in tensor_shapes(config)}
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind}_{len(self._nodes)}"
        made = helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes)
        self._nodes.append(made)
        return f"{name}_out"

    def constant(self, name: str, value: NDArray[Any] | None = None) -> str:
        self._constants[name] = np.array(self._weights[name] if value is None else value, order="C")
        return name

    def embeddings(self) -> str:
        words = self.node("Gather", self.constant("embeddings.word_embeddings.weight"), "ids")
        length = self.node("Gather", self.node("Shape", "ids"), self.constant("one", np.array(1)))
        span = self.node("Range", self.constant("zero", np.array(0)), length, "one")
        places = self.node("Gather", self.constant("embeddings.position_embeddings.weight"), span)
        types = self.constant("types", self._weights["embeddings.token_type_embeddings.weight"][0])
        total = self.node("Add", self.node("Add", words, types), places)
        wide = self.node("Unsqueeze", "mask", self.constant("axes", np.array([1, 2])))
        off = self.node("Sub", self.constant("unit", np.float32(1)), self.node("Cast", wide, to=1))
        self._mask = self.node("Mul", off, self.constant("masked", np.float32(-10000)))
        return self.norm(total, "embeddings.LayerNorm")

    def norm(self, x: str, name: str) -> str:
        weight, bias = self.constant(f"{name}.weight"), self.constant(f"{name}.bias")
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=self._config.layer_norm_eps)

    def linear(self, x: str, name: str) -> str:
        weight = self.constant(f"{name}.transposed", self._weights[f"{name}.weight"].T)
        return self.node("Add", self.node("MatMul", x, weight), self.constant(f"{name}.bias"))

    def block(self, x: str, layer: str) -> str:
        attended = self.linear(self.attention(x, f"{layer}.attention.self"), f"{layer}.attention.output.dense")
        x = self.norm(self.node("Add", attended, x), f"{layer}.attention.output.LayerNorm")
        inner = self.gelu(self.linear(x, f"{layer}.intermediate.dense"))
        return self.norm(self.node("Add", self.linear(inner, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")

    def attention(self, x: str, name: str) -> str:
        width = self._config.hidden_size // self._config.heads
        query, value = (self.heads(self.linear(x, f"{name}.{part}"), [0, 2, 1, 3]) for part in ("query", "value"))
        key = self.heads(self.linear(x, f"{name}.key"), [0, 2, 3, 1])
        scores = self.node("Div", self.node("MatMul", query, key), self.constant("root", np.float32(width**0.5)))
        shares = self.node("Softmax", self.node("Add", scores, self._mask), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self.node("Reshape", mixed, self.constant("joined", np.array([0, 0, self._config.hidden_size])))

    def heads(self, x: str, order: list[int]) -> str:
        heads, width = self._config.heads, self._config.hidden_size // self._config.heads
        split = self.node("Reshape", x, self.constant("split", np.array([0, 0, heads, width])))
        return self.node("Transpose", split, perm=order)

    def gelu(self, x: str) -> str:
        error = self.node("Erf", self.node("Div", x, self.constant("root_two", np.float32(2**0.5))))
        doubled = self.node("Mul", x, self.node("Add", error, "unit"))
        return self.node("Mul", doubled, self.constant("half", np.float32(0.5)))

    def model(self, output: str) -> Any:
        from onnx import TensorProto, checker, helper, numpy_helper

        ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in ("ids", "mask"))
        hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["b", "t", self._config.hidden_size])
        self._nodes.append(helper.make_node("Identity", [output], ["hidden"]))
        constants = [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, "encoder", [ids, mask], [hidden], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        checker.check_model(model)
        return model


class OnnxEncoder:
    """Encodes texts with an ONNX model written by ``write_model`` or quantised from one; mean pooling, unit length."""

    def __init__(self, path: Path, tokenizer: FastTokenizer, max_tokens: int, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One unit vector per text, float32 [n, d]."""
        rows = self._tokenizer.token_ids(texts, self._max_tokens)
        found: dict[int, NDArray[np.float32]] = {}
        for chosen in length_batches([len(row) for row in rows], BATCH_TOKENS):
            batch = self._tokenizer.pad([rows[index] for index in chosen])
            hidden = self._session.run(["hidden"], {"ids": batch.ids, "mask": batch.mask})[0]
            weight = batch.mask[..., None].astype(np.float32)
            found.update(zip(chosen.tolist(), (hidden * weight).sum(1) / weight.sum(1), strict=True))
        pooled = np.stack([found[index] for index in range(len(texts))])
        unit: NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit


Quantiser = Callable[[Path, Path], None]
"""Reads the float32 model and writes a quantised one."""


def quantisers() -> dict[str, Quantiser]:
    """ONNX Runtime's quantisers as users find them, and with the embeddings included where that is possible."""
    return {
        "ORT dynamic INT8": _dynamic(per_channel=False),
        "ORT dynamic INT8 per channel": _dynamic(per_channel=True),
        "ORT MatMulNBits 4-bit g32": _nbits(4),
        "ORT MatMulNBits 4-bit g32, embeddings too": _nbits(4, embeddings=True),
        "ORT MatMulNBits 2-bit g32": _nbits(2),
        "ORT MatMulNBits 2-bit g16": _nbits(2, block=16),
    }


def _dynamic(*, per_channel: bool) -> Quantiser:
    def quantise(source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(source, target, per_channel=per_channel, weight_type=QuantType.QInt8)

    return quantise


def _nbits(bits: int, *, block: int = 32, embeddings: bool = False) -> Quantiser:
    def quantise(source: Path, target: Path) -> None:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        kinds = ("MatMul", "Gather") if embeddings else ("MatMul",)
        quantiser = MatMulNBitsQuantizer(str(source), bits=bits, block_size=block, op_types_to_quantize=kinds)
        quantiser.process()
        quantiser.model.save_model_to_file(str(target), use_external_data_format=False)

    return quantise


def tensor_bytes(path: Path) -> int:
    """Bytes of all constants in an ONNX file."""
    import onnx

    constants = onnx.load(path).graph.initializer
    return sum(len(each.raw_data) or onnx.numpy_helper.to_array(each).nbytes for each in constants)
