"""Claim accounting: every constant that could be a weight is one, once, and known as which."""

from gguf_mtp.drafters.litert.dataflow import Dataflow
from gguf_mtp.drafters.litert.findings import Findings
from gguf_mtp.drafters.litert.identify import Found
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.readers.tflite_model import TfliteTensor, constants

# int2, int4 and int8 are weights whatever their size; so are floats of a hidden state's width.
INTEGERS = frozenset(("INT2", "INT4", "INT8", "UINT4", "UINT8"))
FLOATS = frozenset(("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64", "FLOAT8_E4M3FN", "FLOAT8_E5M2"))
SHARED = "q_norm"


def check_claims(flow: Dataflow, found: Found, findings: Findings) -> None:
    """Raise FormatError when a constant is claimed twice (a shared q_norm aside), or a constant
    that could be a weight, in any graph of the model, is claimed by nothing; UnsupportedError for
    the token list of an ordered head."""
    claims: dict[int, str] = dict.fromkeys(findings.rope_constants, "rotation")
    claims |= dict.fromkeys(found.zero_biases, "zero bias")

    def claim(index: int, name: str) -> None:
        before = claims.setdefault(index, name)
        if before != name and not (before.endswith(SHARED) and name.endswith(SHARED)):
            raise FormatError(
                f"{flow.where}: tensor {index} ({flow.tensor(index).name!a}) "
                f"is both {before} and {name}"
            )

    for name, role in found.roles.items():
        claim(role.value, name)
        tensor = flow.tensor(role.value)
        if tensor.quantization is not None and tensor.dtype in INTEGERS:
            details = tensor.quantization
            for index in (details.scales_tensor, details.zero_points_tensor):
                if 0 <= index < len(flow.graph.tensors):
                    claim(index, f"scales of {name}")
    for graph in flow.model.graphs:
        for tensor in constants(graph):
            if graph.index == flow.graph.index and tensor.index in claims:
                continue
            where = f"{flow.model.where}: graph {graph.index}: tensor {tensor.index}"
            if tensor.dtype == "INT32" and tensor.elements == findings.vocab_size:
                raise UnsupportedError(
                    f"{where} ({tensor.name!a}) lists {tensor.elements} integers, as many as "
                    "tokens: ordered-embedding head not supported in .litertlm"
                )
            if _could_be_weight(tensor, findings.hidden_size):
                users = [
                    f"{operator.name} (operator {operator.index})"
                    for operator in graph.operators
                    if tensor.index in operator.inputs
                ]
                raise FormatError(
                    f"{where} ({tensor.name!a}), {tensor.dtype} {list(tensor.shape)}, used by "
                    f"{', '.join(users) or 'nothing'}, is no known weight"
                )


def _could_be_weight(tensor: TfliteTensor, width: int) -> bool:
    return tensor.dtype in INTEGERS or (tensor.dtype in FLOATS and tensor.elements >= width)
