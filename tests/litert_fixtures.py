"""The `.litertlm` fixtures (tools/make_litert_fixtures.py), and ways to change what they hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_mtp.drafters.litert import package
from gguf_mtp.drafters.litert.checkpoint import read_values
from gguf_mtp.drafters.litert.package import LitertDrafter
from gguf_mtp.readers.tflite_model import Graph, Operator, TfliteModel, TfliteTensor
from litert.original import SMALL, TRAINED, Shape

DIRECTORY = Path(__file__).resolve().parent / "fixtures" / "litert"
# Made from weights on a grid; the first holds the graph that others keep in other places.
ON_GRID = ("mixed", "static-w4a8", "weight-only-int4", "blockwise-32", "float")
MOVED = ("offset-buffers", "external-weights")
POSITIONS = (3, 11, 20)


def fixture(name: str) -> Path:
    return DIRECTORY / f"{name}.litertlm"


def shape_of(name: str) -> Shape:
    return TRAINED if name == "trained" else SMALL


def recorded(name: str) -> dict[str, npt.NDArray[np.float32]]:
    """Outputs by ``SIDE NAME POSITION``; sides are ``litert`` and ``hf``."""
    with np.load(DIRECTORY / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def all_values(drafter: LitertDrafter) -> dict[str, npt.NDArray[Any]]:
    """Every parameter by its Hugging Face name."""
    values = {f"{name}.weight": read_values(drafter, w) for name, w in drafter.weights.items()}
    for layer, scalar in enumerate(drafter.layer_scalars()):
        values[f"model.layers.{layer}.layer_scalar"] = np.array([scalar], np.float32)
    return values


Change = Callable[[Graph], Graph]


def change_graph(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Let `read_drafter` see the first graph of every model as `change` makes it."""
    read = package.read_section_model

    def changed(*args: Any) -> TfliteModel:
        model: TfliteModel = read(*args)
        return replace(model, graphs=(change(model.graphs[0]), *model.graphs[1:]))

    monkeypatch.setattr(package, "read_section_model", changed)


def with_tensor(graph: Graph, index: int, **fields: Any) -> Graph:
    tensors = list(graph.tensors)
    tensors[index] = replace(tensors[index], **fields)
    return replace(graph, tensors=tuple(tensors))


def with_operator(graph: Graph, index: int, **fields: Any) -> Graph:
    operators = list(graph.operators)
    operators[index] = replace(operators[index], **fields)
    return replace(graph, operators=tuple(operators))


def added(graph: Graph, tensor: TfliteTensor) -> tuple[Graph, int]:
    """`graph` with one more tensor, and its index."""
    index = len(graph.tensors)
    return replace(graph, tensors=(*graph.tensors, replace(tensor, index=index))), index


def linear_layers(graph: Graph) -> list[Operator]:
    """The steps that multiply by a constant matrix, in order: pre_projection, then of each layer
    q, o, gate, up and down, then the head and post_projection in either order."""
    return [
        item
        for item in graph.operators
        if item.name == "FULLY_CONNECTED" and graph.tensors[item.inputs[1]].data is not None
    ]
