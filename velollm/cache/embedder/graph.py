"""all-MiniLM-L6-v2 as an ONNX graph with 8-bit weights, written from its safetensors.

Weights are quantised per output channel to seven bits, so that the sums of processors without VNNI do not saturate;
activations are quantised as they come (DynamicQuantizeLinear), which onnxruntime fuses. One text at a time, without
padding: the input is its token ids, the output the mean of its token vectors, 384 numbers.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from velollm.cache.embedder.protobuf import FLOAT, INT8, INT64, attribute, model, node, tensor, value

__all__ = ["read_safetensors", "write_graph"]

_LAYERS: Final = 6
_HEADS: Final = 12
_WIDTH: Final = 384
_STEPS: Final = 63  # of 7 bits, to each side
_EPSILON: Final = 1e-12

Array = Any  # numpy.ndarray, whose generics say nothing here


def read_safetensors(path: Path) -> dict[str, Array]:
    """The 32-bit float tensors of a safetensors file. Raises ValueError where it is none."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        start = 8 + length
        return {
            name: np.frombuffer(
                data[start + about["data_offsets"][0] : start + about["data_offsets"][1]], "<f4"
            ).reshape(about["shape"])
            for name, about in header.items()
            if name != "__metadata__" and about["dtype"] == "F32"
        }
    except (struct.error, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no safetensors file: {error}") from error


def write_graph(weights: Mapping[str, Array]) -> bytes:
    """The ONNX file. Raises KeyError where a weight is missing."""
    return _Writer(weights).write()


class _Writer:
    """Collects nodes and tensors; each method returns the name of what it adds."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self._nodes: list[bytes] = []
        self._tensors: list[bytes] = []
        self._count = 0

    def write(self) -> bytes:
        hidden = self._embeddings("ids")
        for layer in range(_LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}", hidden)
        self._nodes.append(node("ReduceMean", [hidden], ["vector"], [attribute("axes", [0]), attribute("keepdims", 0)]))
        inputs, outputs = [value("ids", INT64, ["tokens"])], [value("vector", FLOAT, [_WIDTH])]
        return model(self._nodes, self._tensors, inputs, outputs, "all-MiniLM-L6-v2")

    # ---- parts of the model ----

    def _embeddings(self, ids: str) -> str:
        table, scales = _quantize(self._weights["embeddings.word_embeddings.weight"])
        rows = self._add("Gather", [self._keep(table), ids])
        words = self._add(
            "Mul",
            [self._add("Cast", [rows], to=FLOAT), self._add("Gather", [self._keep(scales[:, None]), ids])],
        )
        places = self._weights["embeddings.position_embeddings.weight"]
        places = places + self._weights["embeddings.token_type_embeddings.weight"][0]
        length = self._add("Shape", [ids])
        own = self._add("Slice", [self._keep(places), self._numbers(0), length, self._numbers(0)])
        return self._norm("embeddings.LayerNorm", self._add("Add", [words, own]))

    def _layer(self, name: str, hidden: str) -> str:
        quantized = self._quantized(hidden)
        query, key, values = (
            self._heads(self._linear(f"{name}.attention.self.{part}", quantized), order)
            for part, order in (("query", [1, 0, 2]), ("key", [1, 2, 0]), ("value", [1, 0, 2]))
        )
        scores = self._add("Mul", [self._add("MatMul", [query, key]), self._scalar(1 / math.sqrt(_WIDTH / _HEADS))])
        seen = self._add("MatMul", [self._add("Softmax", [scores], axis=2), values])
        joined = self._add("Reshape", [self._add("Transpose", [seen], perm=[1, 0, 2]), self._numbers(0, _WIDTH)])
        attended = self._linear(f"{name}.attention.output.dense", self._quantized(joined))
        hidden = self._norm(f"{name}.attention.output.LayerNorm", self._add("Add", [attended, hidden]))
        wide = self._gelu(self._linear(f"{name}.intermediate.dense", self._quantized(hidden)))
        narrow = self._linear(f"{name}.output.dense", self._quantized(wide))
        return self._norm(f"{name}.output.LayerNorm", self._add("Add", [narrow, hidden]))

    def _heads(self, hidden: str, order: list[int]) -> str:
        parted = self._add("Reshape", [hidden, self._numbers(0, _HEADS, _WIDTH // _HEADS)])
        return self._add("Transpose", [parted], perm=order)

    def _quantized(self, hidden: str) -> tuple[str, str, str]:
        names = [self._name() for _ in range(3)]
        self._nodes.append(node("DynamicQuantizeLinear", [hidden], names))
        return names[0], names[1], names[2]

    def _linear(self, name: str, hidden: tuple[str, str, str]) -> str:
        numbers, scale, zero = hidden
        weight, scales = _quantize(self._weights[f"{name}.weight"])
        sums = self._add("MatMulInteger", [numbers, self._keep(np.ascontiguousarray(weight.T)), zero])
        scaled = self._add("Mul", [scale, self._keep(scales)])
        product = self._add("Mul", [self._add("Cast", [sums], to=FLOAT), scaled])
        return self._add("Add", [product, self._keep(self._weights[f"{name}.bias"])])

    def _gelu(self, hidden: str) -> str:
        erf = self._add("Erf", [self._add("Div", [hidden, self._scalar(math.sqrt(2))])])
        return self._add(
            "Mul", [self._add("Mul", [hidden, self._add("Add", [erf, self._scalar(1.0)])]), self._scalar(0.5)]
        )

    def _norm(self, name: str, hidden: str) -> str:
        parameters = [self._keep(self._weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self._add("LayerNormalization", [hidden, *parameters], axis=1, epsilon=_EPSILON)

    # ---- nodes and tensors ----

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def _add(self, kind: str, inputs: list[str], **attributes: float | int | list[int]) -> str:
        name = self._name()
        self._nodes.append(node(kind, inputs, [name], [attribute(key, what) for key, what in attributes.items()]))
        return name

    def _keep(self, array: Array) -> str:
        name = self._name()
        kind = {"float32": FLOAT, "int8": INT8, "int64": INT64}[str(array.dtype)]
        self._tensors.append(tensor(name, kind, array.shape, array.tobytes()))
        return name

    def _numbers(self, *numbers: int) -> str:
        return self._keep(np.array(numbers, "int64"))

    def _scalar(self, number: float) -> str:
        return self._keep(np.array(number, "float32"))


def _quantize(weight: Array) -> tuple[Array, Array]:
    """Whole numbers from -63 to 63 and the scale of each row."""
    scales = np.maximum(np.abs(weight).max(axis=1), 1e-9) / _STEPS
    return np.rint(weight / scales[:, None]).astype("int8"), scales.astype("float32")
