"""Graphs that are no Gemma 4 drafter's, or have anything unexplained in them: each has its own
message, and nothing comes out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gguf_mtp.drafters.litert.checkpoint import read_values
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.errors import FormatError, GgufMtpError, UnsupportedError
from gguf_mtp.readers.tflite_model import (
    NO_TENSOR,
    External,
    Graph,
    Operator,
    Place,
    Quantization,
    TfliteTensor,
)
from litert_fixtures import (
    Change,
    added,
    change_graph,
    fixture,
    linear_layers,
    with_operator,
    with_tensor,
)

# Positions in `linear_layers`.
PRE, QUERY, OUT, GATE, UP, DOWN = range(6)


def first(graph: Graph, name: str) -> Operator:
    return next(item for item in graph.operators if item.name == name)


def weight_of(graph: Graph, position: int) -> TfliteTensor:
    return graph.tensors[linear_layers(graph)[position].inputs[1]]


def with_weight(position: int, **fields: object) -> Change:
    return lambda graph: with_tensor(graph, weight_of(graph, position).index, **fields)


def with_grid(position: int, **fields: object) -> Change:
    def change(graph: Graph) -> Graph:
        weight = weight_of(graph, position)
        assert weight.quantization is not None
        quantization = replace(weight.quantization, **fields)  # type: ignore[arg-type]
        return with_tensor(graph, weight.index, quantization=quantization)

    return change


def extra_constant(graph: Graph) -> Graph:
    return added(graph, replace(weight_of(graph, GATE), name="extra"))[0]


def extra_floats(graph: Graph) -> Graph:
    norm = next(t for t in graph.tensors if t.data and t.dtype == "FLOAT32" and t.shape == (32,))
    return added(graph, norm)[0]


def swapped_gate(graph: Graph) -> Graph:
    """GELU on the product's other factor."""
    gate, up = linear_layers(graph)[GATE], linear_layers(graph)[UP]
    graph = with_operator(graph, gate.index, inputs=(gate.inputs[0], up.inputs[1], NO_TENSOR))
    return with_operator(graph, up.index, inputs=(up.inputs[0], gate.inputs[1], NO_TENSOR))


def gate_without_gelu(graph: Graph) -> Graph:
    product = next(
        item for item in graph.operators if first(graph, "GELU").outputs[0] in item.inputs
    )
    return with_operator(
        graph,
        product.index,
        inputs=(linear_layers(graph)[GATE].outputs[0], linear_layers(graph)[UP].outputs[0]),
    )


def exact_gelu(graph: Graph) -> Graph:
    return with_operator(graph, first(graph, "GELU").index, option=0)


def with_bias(graph: Graph) -> Graph:
    linear = linear_layers(graph)[DOWN]
    norm = next(t for t in graph.tensors if t.data and t.dtype == "FLOAT32" and t.shape == (32,))
    graph, bias = added(graph, norm)
    return with_operator(graph, linear.index, inputs=(*linear.inputs[:2], bias))


def renamed_operator(name: str, new: str, custom: bool = False) -> Change:
    return lambda graph: with_operator(graph, first(graph, name).index, name=new, custom=custom)


def other_sum(graph: Graph) -> Graph:
    residual = linear_layers(graph)[PRE].outputs[0]
    total = next(item for item in graph.operators if residual in item.inputs and item.name == "ADD")
    return with_operator(graph, total.index, name="MAXIMUM")


def fused_activation(graph: Graph) -> Graph:
    return with_operator(graph, linear_layers(graph)[UP].index, option=1)


def one_matrix_twice(graph: Graph) -> Graph:
    gate, up = linear_layers(graph)[GATE], linear_layers(graph)[UP]
    graph = with_operator(graph, up.index, inputs=(up.inputs[0], gate.inputs[1], NO_TENSOR))
    orphan = replace(graph.tensors[up.inputs[1]], data=None)
    return with_tensor(graph, orphan.index, data=None)


def other_cache(graph: Graph) -> Graph:
    """Layer 0 takes its values from the full layer's cache."""
    taken = [item for item in graph.operators if item.inputs[:1] == (4,)]
    return with_operator(graph, taken[0].index, inputs=(6, *taken[0].inputs[1:]))


def used_too_early(graph: Graph) -> Graph:
    last = graph.operators[-1].outputs[0]
    return with_operator(graph, 4, inputs=(last, *graph.operators[4].inputs[1:]))


def made_twice(graph: Graph) -> Graph:
    return with_operator(graph, 5, outputs=graph.operators[4].outputs)


def token_list(graph: Graph) -> Graph:
    integers = TfliteTensor(0, "order", "INT32", (128,), Place(16384, 512), None, False)
    return added(graph, integers)[0]


def top_k(graph: Graph) -> Graph:
    return with_operator(graph, first(graph, "TANH").index, name="TOPK_V2")


CHANGES: list[tuple[str, Change, type[GgufMtpError], str]] = [
    ("constant", extra_constant, FormatError, r"\('extra'\), INT4 \[64, 32\], used by nothing"),
    ("floats", extra_floats, FormatError, r"FLOAT32 \[32\], used by nothing, is no known weight"),
    (
        "gate",
        swapped_gate,
        FormatError,
        "up_proj by the dataflow, gate_proj by its name",
    ),
    ("no gelu", gate_without_gelu, FormatError, "layer 0: gate_proj: expected one of the two"),
    ("gelu", exact_gelu, FormatError, "layer 0: gate_proj: expected GELU's tanh approximation"),
    ("bias", with_bias, FormatError, "layers.0.mlp.down_proj: expected no bias.*non-zero bias"),
    ("operator", renamed_operator("GELU", "RELU"), FormatError, "GELU of it alone, found RELU"),
    (
        "softmax",
        renamed_operator("SOFTMAX", "ARG_MAX"),
        FormatError,
        "layer 0: attention: expected",
    ),
    ("custom", renamed_operator("GELU", "Mine", True), UnsupportedError, "unknown custom .*'Mine'"),
    ("residual", other_sum, FormatError, "residual: expected one RMS_NORM and one ADD"),
    ("fused", fused_activation, FormatError, "mlp.up_proj: expected no fused activation"),
    ("twice", one_matrix_twice, FormatError, "is both .*gate_proj and .*up_proj"),
    ("cache", other_cache, FormatError, "layer 0: attention: expected the keys and values of one"),
    ("early", used_too_early, FormatError, "uses tensor .* before it is made"),
    ("again", made_twice, FormatError, "makes tensor .* a second time"),
    ("tokens", token_list, UnsupportedError, "ordered-embedding head not supported"),
    ("top-k", top_k, UnsupportedError, "ordered-embedding head not supported"),
    ("axis", with_grid(DOWN, axis=1), UnsupportedError, "scales along axis 1, expected 0"),
    ("zero", with_grid(UP, zero_points=(1,)), UnsupportedError, "non-zero zero point"),
    ("scale", with_grid(UP, scales=(0.0,) * 64), FormatError, "scale 0 is 0.0, expected a number"),
    ("nan", with_grid(UP, scales=(float("nan"),) * 64), FormatError, "scale 0 is nan"),
    ("scales", with_grid(UP, scales=(1.0,) * 63), FormatError, "has 63 scales, expected 64"),
    ("details", with_grid(UP, details="Custom"), UnsupportedError, "details Custom"),
    ("no scale", with_weight(UP, quantization=None), FormatError, "integers without a scale"),
    ("dtype", with_weight(UP, dtype="UINT4"), UnsupportedError, "type UINT4, which is not known"),
    ("sparse", with_weight(UP, sparse=True), UnsupportedError, "is sparse"),
    ("shape", with_weight(UP, shape=(60, 32)), FormatError, "shape of layer 0: mlp.up_proj"),
    (
        "bytes",
        with_weight(UP, data=Place(16384, 9)),
        FormatError,
        "9 bytes, INT4 .* needs 1024",
    ),
    (
        "packing",
        with_weight(UP, data=External("w", 0, 1024, "zip")),
        UnsupportedError,
        "packing 'zip'",
    ),
    ("no section", with_weight(UP, data=External("w", 0, 1024, "")), FormatError, "no section of"),
    (
        "blocks",
        with_grid(UP, details="Blockwise", block_size=24),
        FormatError,
        "blocks of 24 values in rows of 32",
    ),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [item[1:] for item in CHANGES],
    ids=[item[0] for item in CHANGES],
)
def test_a_changed_graph_is_refused(
    change: Callable[[Graph], Graph],
    error: type[GgufMtpError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_graph(monkeypatch, change)
    with pytest.raises(error, match=message) as caught:
        read_drafter(fixture("mixed"))
    assert "\n" not in str(caught.value)


def test_names_may_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    change_graph(monkeypatch, swapped_gate)
    drafter = read_drafter(fixture("mixed"), ignore_names=True)
    assert "gating_einsum2" in drafter.weights["model.layers.0.mlp.gate_proj"].tensor.name


def test_spurious_quantization_of_floats_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: Graph) -> Graph:
        spurious = Quantization((0.5,), (3,), 7)
        norms = [t.index for t in graph.tensors if t.data and t.dtype == "FLOAT32"]
        for index in norms:
            graph = with_tensor(graph, index, quantization=spurious)
        return graph

    change_graph(monkeypatch, change)
    assert len(read_drafter(fixture("mixed")).weights) == 34


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-drafter", r"no tf_lite_mtp_drafter section \(models: tf_lite_embedder\)"),
        ("npu", "custom operation 'DISPATCH_OP' .*compiled for one device"),
    ],
)
def test_packages_without_weights_to_extract(name: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_drafter(fixture(name))


def test_an_auxiliary_model_alone_is_for_an_npu(tmp_path: Path) -> None:
    path = tmp_path / "aux.litertlm"
    data = fixture("no-drafter").read_bytes()
    assert data.count(b"tf_lite_embedder") == 1
    path.write_bytes(data.replace(b"tf_lite_embedder", b"tf_lite_mtp_aux\0"))
    with pytest.raises(UnsupportedError, match="no tf_lite_mtp_drafter"):
        read_drafter(path)
    # The length before the name says how much of it counts.
    at = data.index(b"tf_lite_embedder")
    patched = bytearray(path.read_bytes())
    patched[at - 4 : at] = (15).to_bytes(4, "little")
    path.write_bytes(patched)
    with pytest.raises(UnsupportedError, match="compiled for an NPU"):
        read_drafter(path)


def test_weights_elsewhere_need_their_section(tmp_path: Path) -> None:
    data = bytearray(fixture("external-weights").read_bytes())
    first_name = data.index(b"tf_lite_mtp_drafter")
    second = data.index(b"tf_lite_mtp_drafter", first_name + 1)
    # The sections stand in the header back to front.
    data[first_name : first_name + 19] = b"tf_lite_another_one"
    path = tmp_path / "moved.litertlm"
    path.write_bytes(data)
    other = bytearray(fixture("external-weights").read_bytes())
    other[second : second + 19] = b"tf_lite_another_one"
    messages = []
    for content in (data, other):
        path.write_bytes(content)
        with pytest.raises(GgufMtpError) as caught:
            read_drafter(path)
        messages.append(str(caught.value))
    assert any("no section of TFLiteWeights" in message for message in messages)
    assert any("no tf_lite_mtp_drafter section" in message for message in messages)


def test_values_that_are_not_finite_are_refused_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(fixture("float").read_bytes())
    place = read_drafter(fixture("float")).weights["model.layers.1.mlp.down_proj"].place
    data[place.offset + 8 : place.offset + 12] = b"\0\0\x80\x7f"
    path = tmp_path / "infinite.litertlm"
    path.write_bytes(data)
    drafter = read_drafter(path)
    with pytest.raises(FormatError, match="values that are not finite"):
        read_values(drafter, drafter.weights["model.layers.1.mlp.down_proj"])
    change_graph(monkeypatch, with_grid(UP, scales=(3e38,) * 64))
    drafter = read_drafter(fixture("mixed"))
    with pytest.raises(FormatError, match="values that are not finite"):
        read_values(drafter, drafter.weights["model.layers.0.mlp.up_proj"])
