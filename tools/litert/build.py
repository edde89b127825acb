"""From weights to `.tflite` to `.litertlm`, with the official exporter, quantizer and packer.

What those cannot produce at this size is rewritten: the same buffers, kept in another place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import litert_torch
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer.quantizer import Quantizer
from litert_lm_builder import litertlm_builder
from litert_lm_builder.litertlm_builder import TfLiteModelType

from litert.module import Drafter, Style
from litert.original import Floats, Shape, inputs

SIGNATURE = "mtp_drafter"
EXTERNAL = 0x80000000
ALIGNMENT = 16


def export(shape: Shape, weights: dict[str, Floats], style: Style) -> bytes:
    """The drafter in float32, by the official exporter."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    module = Drafter(shape, tensors, style).eval()
    samples = {name: torch.from_numpy(value) for name, value in inputs(shape, 5).items()}
    return _converted(litert_torch.signature(SIGNATURE, module, sample_kwargs=samples))


class _Embedder(torch.nn.Module):  # type: ignore[misc]
    """What the drafter's package says of embeddings: looked up, then scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(16, width)
        self.width = width

    def forward(self, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embeddings": self.table(token_ids) * self.width**0.5}


def export_embedder(width: int) -> bytes:
    """A stand-in for `tf_lite_embedder`: 16 rows of `width`, times sqrt(width)."""
    torch.manual_seed(0)
    samples = {"token_ids": torch.tensor([[1]], dtype=torch.int32)}
    return _converted(
        litert_torch.signature("decode", _Embedder(width).eval(), sample_kwargs=samples)
    )


def _converted(converter: litert_torch.Converter) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.tflite"
        converter.convert().export(str(path))
        return path.read_bytes()


def quantize(model: bytes, shape: Shape, configure: Callable[[Quantizer], None]) -> bytes:
    """`model` by the official quantizer, as `configure` sets it up; calibrated where need be."""
    quantizer = Quantizer(bytearray(model))
    configure(quantizer)
    calibration = None
    if quantizer.need_calibration:
        data = [inputs(shape, position) for position in range(4, 12)]
        calibration = quantizer.calibrate({SIGNATURE: data}, num_threads=1)
    return bytes(quantizer.quantize(calibration, enable_progress_report=False).quantized_model)


def run(model: bytes, shape: Shape, position: int) -> dict[str, Floats]:
    """What the LiteRT interpreter makes of the inputs of `position`, in one thread."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    runner = interpreter.get_signature_runner(SIGNATURE)
    return dict(runner(**inputs(shape, position)))


def pack(
    path: Path,
    models: list[tuple[bytes, TfLiteModelType]],
    weights: tuple[bytes, TfLiteModelType] | None = None,
) -> None:
    """A package of `models`, by the official packer, which puts a random id and the time in it."""
    builder = litertlm_builder.LitertLmFileBuilder()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for index, (model, kind) in enumerate(models):
            file = directory / f"{index}.tflite"
            file.write_bytes(model)
            builder.add_tflite_model(str(file), kind)
        if weights is not None:
            file = directory / "weights"
            file.write_bytes(weights[0])
            builder.add_tflite_weights(str(file), weights[1])
        with path.open("wb") as stream:
            builder.build(stream)


def _unpacked(model: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(model), 0))


def _packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _align(data: bytearray) -> int:
    data += bytes(-len(data) % ALIGNMENT)
    return len(data)


def _weights_of(model: schema.ModelT) -> list[int]:
    """The buffers of more than a few bytes."""
    return [i for i, b in enumerate(model.buffers) if b.data is not None and len(b.data) > 64]


def offset_buffers(model: bytes) -> bytes:
    """Rewritten: large buffers behind the flatbuffer, as exporters do for models over 2 GB."""
    tree = _unpacked(model)
    moved = {index: bytes(tree.buffers[index].data) for index in _weights_of(tree)}
    for index, data in moved.items():
        tree.buffers[index].data, tree.buffers[index].size = None, len(data)
        tree.buffers[index].offset = 1 << 40  # any value that is stored: the length stays
    out = bytearray(_packed(tree))
    at = _align(out)
    for index, data in moved.items():
        tree.buffers[index].offset = at
        at += -(-len(data) // ALIGNMENT) * ALIGNMENT
    head = _packed(tree)
    out[: len(head)] = head
    for data in moved.values():
        out += data
        _align(out)
    return bytes(out)


def external_weights(model: bytes) -> tuple[bytes, bytes]:
    """Rewritten: large buffers in a file of their own, as in packages with TFLiteWeights."""
    tree = _unpacked(model)
    weights = bytearray()
    tree.externalBufferGroups = [schema.ExternalBufferGroupT(name="weights")]
    tree.externalBuffers = []
    ids: dict[int, int] = {}
    for index in _weights_of(tree):
        at = _align(weights)
        data = bytes(tree.buffers[index].data)
        weights += data
        ids[index] = EXTERNAL | len(ids)
        tree.externalBuffers.append(
            schema.ExternalBufferT(
                id=ids[index], group=0, offset=at, length=len(data), packing="unpacked"
            )
        )
        tree.buffers[index].data = None
    for graph in tree.subgraphs:
        for tensor in graph.tensors:
            if tensor.buffer in ids:
                tensor.externalBuffer, tensor.buffer = ids[tensor.buffer], 0
    return _packed(tree), bytes(weights)


def dispatched(model: bytes) -> bytes:
    """Rewritten: the whole graph as one call into compiled code, as NPU packages have it."""
    tree = _unpacked(model)
    graph = tree.subgraphs[0]
    kept = [int(index) for index in (*graph.inputs, *graph.outputs)]
    graph.tensors = [graph.tensors[index] for index in kept]
    graph.inputs = list(range(len(graph.inputs)))
    graph.outputs = list(range(len(graph.inputs), len(kept)))
    for tensor in graph.tensors:
        tensor.buffer = 0
    for tensor_map in (*tree.signatureDefs[0].inputs, *tree.signatureDefs[0].outputs):
        tensor_map.tensorIndex = kept.index(int(tensor_map.tensorIndex))
    tree.subgraphs = [graph]
    tree.metadata = []
    tree.buffers = [schema.BufferT()]
    tree.operatorCodes = [
        schema.OperatorCodeT(deprecatedBuiltinCode=32, builtinCode=32, customCode=b"DISPATCH_OP")
    ]
    graph.operators = [schema.OperatorT(opcodeIndex=0, inputs=graph.inputs, outputs=graph.outputs)]
    return _packed(tree)
