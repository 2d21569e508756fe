"""What a graph in float16 must satisfy: types throughout, and values near those of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from adaptok_ros.networks.errors import ExportError
from adaptok_ros.networks.graphs import FACTORS

HALF_TOLERANCE = 0.01
"""Largest delta that float16 may cause at any position: a fifth of the default tau."""
HALF_GREY_LEVELS = 4.0
"""Largest mean difference over the three colours of a decoded pixel in float16."""
PRODUCTS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
"""Operators that do a model's work."""
Array = NDArray[Any]


def largest_delta(found: Array, expected: Array) -> float:
    """Largest mean absolute difference over the last axis; NaN where a value is not finite."""
    if not np.isfinite(found).all():
        return float('nan')
    return float(np.abs(found - expected).mean(axis=-1).max())


def check_types(path: Path) -> None:
    """Check that a graph is strongly typed, and in float16 from the first such tensor on.

    :raises ExportError: a type is missing, or a product of something in float16 is in float32
    :raises onnx.checker.ValidationError: not a valid graph
    :raises onnx.shape_inference.InferenceError: inputs of an operator do not fit together
    """
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    descends: set[str] = set()
    products = 0
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name and types.get(name, TensorProto.UNDEFINED) == TensorProto.UNDEFINED:
                raise ExportError(f'no type for {name}, of {node.name}')
        if node.op_type in PRODUCTS:
            half = types[node.output[0]] == TensorProto.FLOAT16
            products += half
            normalises = FACTORS in node.input
            if not half and not normalises and not descends.isdisjoint(node.input):
                raise ExportError(f'{node.name} is not in float16 but what it multiplies was')
        if not descends.isdisjoint(node.input) or any(
            types[name] == TensorProto.FLOAT16 for name in node.output if name
        ):
            descends.update(node.output)
    if not products:
        raise ExportError('nothing is computed in float16')
