"""Values that a hostile package may hold where a graph is otherwise as it should be."""

from dataclasses import replace
from typing import Any

import pytest

from gguf_mtp.drafters.litert import package
from gguf_mtp.drafters.litert.dataflow import Dataflow
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.errors import FormatError
from gguf_mtp.readers.tflite_model import Graph, Signature, TfliteModel
from litert_fixtures import change_graph, fixture, with_tensor

Numbers = dict[str, float]


def change_signature(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Give an input of the drafter's signature another name."""
    read = package.read_section_model

    def changed(*args: Any) -> TfliteModel:
        model: TfliteModel = read(*args)
        first = model.signatures[0]
        inputs = {new if name == old else name: index for name, index in first.inputs.items()}
        signature: Signature = replace(first, inputs=inputs)
        return replace(model, signatures=(signature,))

    monkeypatch.setattr(package, "read_section_model", changed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("activations", "x", "0 signatures with inputs activations"),
        ("kv_cache_k_13", "kv_cache_k_013", "expected the keys and values of one layer"),
        ("kv_cache_k_13", "kv_cache_k_" + "9" * 5000, "expected the keys and values of one layer"),
        ("kv_cache_k_13", "kv_cache_k_12", "found kv_cache_k_12, kv_cache_v_13"),
    ],
)
def test_names_of_inputs(monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str) -> None:
    change_signature(monkeypatch, old, new)
    with pytest.raises(FormatError, match=message):
        read_drafter(fixture("mixed"))


@pytest.mark.parametrize("shape", [(), (0,), (1, 1, 24, 0), (1, 1, 24, 31), (-1, -1, -1, -1)])
@pytest.mark.parametrize("index", [0, 2, 3, 4])
def test_shapes_of_inputs(
    monkeypatch: pytest.MonkeyPatch, index: int, shape: tuple[int, ...]
) -> None:
    change_graph(monkeypatch, lambda graph: with_tensor(graph, index, shape=shape))
    if index in (2, 4):
        # Neither the mask's nor the values' shape decides anything about the weights.
        assert len(read_drafter(fixture("mixed")).weights) == 34
        return
    with pytest.raises(FormatError):
        read_drafter(fixture("mixed"))


def change_numbers(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], number: float, dtype: str
) -> None:
    """Let every constant of `dtype` and `shape` hold `number` where it is looked at."""
    read = Dataflow._numbers

    def changed(self: Dataflow, tensor: Any) -> Any:
        numbers = read(self, tensor)
        if numbers is not None and tensor.shape == shape and tensor.dtype == dtype:
            numbers = numbers * 0 + number
        return numbers

    monkeypatch.setattr(Dataflow, "_numbers", changed)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, -1.0, 1e-30, 1e300])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mixed", ()),
        ("mixed", (1, 1, 1)),
        ("mixed", (1, 1, 1, 16)),
        ("float", ()),
        ("float", (1, 1, 1)),
    ],
)
def test_numbers_of_constants(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], number: float
) -> None:
    change_numbers(monkeypatch, shape, number, "FLOAT32")
    try:
        drafter = read_drafter(fixture(name))
    except FormatError:
        return
    # A number above 0 is one like any other, for a softcap, an epsilon or a scalar.
    assert number > 0 or name == "float"
    assert drafter.weights


def test_a_window_that_is_no_number_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (float("nan"), float("inf"), -3.0, 2.5):
        with monkeypatch.context() as patched:
            change_numbers(patched, (1, 1, 1, 1), number, "INT32")
            drafter = read_drafter(fixture("mixed"))
            assert drafter.findings.window is None
            assert any(note.code == "litert-unseen" for note in package.remarks(drafter))


def test_a_chain_of_many_steps_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand casts in a row cost no more than their number."""

    def change(graph: Graph) -> Graph:
        cast = next(item for item in graph.operators if item.name == "CAST")
        tensors, operators = list(graph.tensors), list(graph.operators)
        last = cast.outputs[0]
        for _ in range(20_000):
            tensors.append(replace(tensors[last], index=len(tensors)))
            operators.append(replace(cast, index=len(operators), inputs=(last,)))
            operators[-1] = replace(operators[-1], outputs=(len(tensors) - 1,))
            last = len(tensors) - 1
        return replace(graph, tensors=tuple(tensors), operators=tuple(operators))

    change_graph(monkeypatch, change)
    assert len(read_drafter(fixture("mixed")).weights) == 34
