"""The operations of the drafter's graph in Gemma 4's real shapes, as `test-backend-ops` reads them.

Source: llama.cpp ``tests/test-backend-ops.cpp``, ``make_test_cases_from_file``: a line has the
operation's number, the result's type and shape, the parameters, the sources and a name.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from llamacpp.pin import SetupError

# enum ggml_type (ggml.h)
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "q6_K": 14, "i32": 26}
Shape = tuple[int, ...]  # ggml's order: the contiguous dimension first

HIDDEN, ROWS, CENTROIDS, TOP_K = 256, 128, 2048, 32
CANDIDATES, PICKED = ROWS * TOP_K, 10
# Outputs of one draft step: one sequence, or four slots at once.
OUTPUTS = (1, 4)
ONE = struct.unpack("<i", struct.pack("<f", 1.0))[0]


@dataclass(frozen=True)
class Case:
    """One operation: its result and its sources, each a type and a shape."""

    operation: str
    result: tuple[str, Shape]
    sources: tuple[tuple[str, Shape], ...]
    parameters: tuple[int, ...] = ()

    def line(self, number: int) -> str:
        parts = [number, TYPES[self.result[0]], *_padded(self.result[1])]
        parts += [len(self.parameters), *self.parameters, len(self.sources)]
        for kind, shape in self.sources:
            parts += [TYPES[kind], *_padded(shape), 0, 0, 0, 0]  # strides: contiguous
        return " ".join(map(str, parts)) + " -\n"


def _padded(shape: Shape) -> Shape:
    return (*shape, *(1,) * (4 - len(shape)))


def cases() -> list[Case]:
    """The ordered head and what picks tokens from its candidates. TOP_K is left to upstream's own
    cases: the order of its result is not defined, and the plain comparison here minds it."""
    found = []
    for n in OUTPUTS:
        for kind in ("q8_0", "q6_K", "q4_0", "f16"):
            table = (kind, (HIDDEN, ROWS, CENTROIDS))
            sources = (table, ("f32", (HIDDEN, 1, n)), ("i32", (TOP_K, n)))
            found.append(Case("MUL_MAT_ID", ("f32", (ROWS, TOP_K, n)), sources))
            # Rows in token order are gathered first.
            gathered = ((kind, (HIDDEN, ROWS * CENTROIDS)), ("i32", (CANDIDATES * n,)))
            found.append(Case("GET_ROWS", ("f32", (HIDDEN, CANDIDATES * n)), gathered))
        centroids = (("f32", (HIDDEN, CENTROIDS)), ("f32", (HIDDEN, n)))
        tokens = (("i32", (ROWS, CENTROIDS)), ("i32", (TOP_K * n,)))
        picks = ("i32", (PICKED, n))
        found += (
            Case("MUL_MAT", ("f32", (CENTROIDS, n)), centroids),
            Case("GET_ROWS", ("i32", (ROWS, TOP_K * n)), tokens),
            Case("GET_ROWS", ("f32", (1, PICKED, n)), (("f32", (1, CANDIDATES, n)), picks)),
            Case("GET_ROWS", ("i32", (1, PICKED, n)), (("i32", (1, CANDIDATES, n)), picks)),
            Case("ARGMAX", ("i32", (n,)), (("f32", (PICKED, n)),)),
            Case("SOFT_MAX", ("f32", (PICKED, n)), (("f32", (PICKED, n)),), (ONE, 0)),
            Case("CONCAT", ("i32", (3, n)), (("i32", (2, n)), ("i32", (1, n))), (0,)),
        )
    return found


def write_cases(tree: Path, path: Path) -> int:
    """Write the cases with the operations' numbers of `tree`; returns how many there are."""
    header = tree / "ggml" / "include" / "ggml.h"
    body = re.search(r"enum ggml_op \{(.*?)\};", header.read_text(), re.DOTALL)
    names = re.findall(r"^\s*GGML_OP_(\w+)", body.group(1), re.MULTILINE) if body else []
    made = cases()
    missing = {case.operation for case in made} - set(names)
    if missing:
        raise SetupError(f"{header}: no operation GGML_OP_{min(missing)}")
    path.write_text("".join(case.line(names.index(case.operation)) for case in made))
    return len(made)
