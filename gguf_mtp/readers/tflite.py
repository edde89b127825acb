"""TFLite models, read in place: a tensor's bytes stay in the file until asked for.

Source: LiteRT ``tflite/converter/schema/schema.fbs``; slots are numbered as its fields are.
"""

from gguf_mtp.readers.flatbuffer import Flatbuffer, Table
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite_model import (
    BLOCKWISE,
    COMPOSITE,
    NO_TENSOR,
    Data,
    External,
    Graph,
    Operator,
    Place,
    Quantization,
    Signature,
    TfliteModel,
    TfliteTensor,
)
from gguf_mtp.readers.tflite_names import OPERATORS, TYPES

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
MAX_DIMENSIONS = 8
CUSTOM = "CUSTOM"
DETAILS = {1: "Custom", 2: BLOCKWISE, 3: "MultiAxis"}


def read_tflite(source: SourceFile, begin: int, end: int, where: str) -> TfliteModel:
    """The model in bytes `begin` up to `end` of `source`, which `where` names in messages.

    Raises FormatError, naming the field.
    """
    buffer = Flatbuffer(source, begin, end, where)
    identifier = buffer.bytes_at(4, 4, "identifier")
    if identifier != IDENTIFIER:
        raise buffer.error(f"identifier is {identifier!r}, expected {IDENTIFIER!r}")
    root = buffer.root("model")
    version = root.integer(0, "I", "version")
    if version != SCHEMA_VERSION:
        raise buffer.error(f"schema version is {version}, expected {SCHEMA_VERSION}")
    reader = _Reader(buffer, root, begin, end)
    graphs = tuple(
        reader.graph(index, table)
        for index, table in enumerate(root.tables(2, "subgraphs", "graph"))
    )
    if not graphs:
        raise buffer.error("no graphs")
    signatures = tuple(
        _signature(table, graphs) for table in root.tables(7, "signature_defs", "signature")
    )
    return TfliteModel(where, root.string(3, "description") or "", graphs, signatures)


class _Reader:
    """What the tensors and operators of all graphs refer to."""

    def __init__(self, buffer: Flatbuffer, root: Table, begin: int, end: int) -> None:
        self.buffer = buffer
        self.begin = begin
        self.end = end
        self.codes = [_operator_name(table) for table in root.tables(1, "operator_codes", "code")]
        self.places = [self._place(table) for table in root.tables(4, "buffers", "buffer")]
        groups = [
            table.string(0, "name") or ""
            for table in root.tables(8, "external_buffer_groups", "group")
        ]
        self.external: dict[int, External] = {}
        for table in root.tables(9, "external_buffers", "external buffer"):
            number = table.integer(0, "I", "id")
            group = _checked(table, table.integer(1, "I", "group"), len(groups), "group")
            if number == 0 or number in self.external:
                raise buffer.error(f"{table.what}: id {number} is 0 or occurs twice")
            self.external[number] = External(
                groups[group],
                table.integer(2, "Q", "offset"),
                table.integer(3, "Q", "length"),
                table.string(4, "packing") or "",
            )

    def _place(self, table: Table) -> Place | None:
        offset, nbytes = table.integer(1, "Q", "offset"), table.integer(2, "Q", "size")
        if offset > 1:
            # Behind the flatbuffer, counted from the start of the model.
            if offset + nbytes > self.end - self.begin:
                raise self.buffer.error(
                    f"{table.what}: offset {offset} and size {nbytes} end past the model's "
                    f"{self.end - self.begin} bytes"
                )
            return Place(self.begin + offset, nbytes)
        span = table.span(0, 1, "data")
        return Place(self.begin + span.at, span.count) if span.count else None

    def graph(self, index: int, table: Table) -> Graph:
        name = table.string(4, "name") or ""
        tensors = tuple(
            self._tensor(number, item)
            for number, item in enumerate(table.tables(0, "tensors", f"graph {index}: tensor"))
        )

        def indices(item: Table, slot: int, field: str, low: int = 0) -> tuple[int, ...]:
            found = item.integers(slot, field)
            for value in found:
                _checked(item, value, len(tensors), f"tensor in {field}", low)
            return found

        operators = tuple(
            self._operator(
                number, item, indices(item, 1, "inputs", NO_TENSOR), indices(item, 2, "outputs")
            )
            for number, item in enumerate(table.tables(3, "operators", f"graph {index}: operator"))
        )
        return Graph(
            index,
            name,
            tensors,
            indices(table, 1, "inputs"),
            indices(table, 2, "outputs"),
            operators,
        )

    def _tensor(self, index: int, table: Table) -> TfliteTensor:
        code = table.integer(1, "b", "type")
        shape = table.integers(0, "shape")
        if len(shape) > MAX_DIMENSIONS or any(dim < -1 for dim in shape):
            raise self.buffer.error(f"{table.what}: bad shape {list(shape)[:9]}")
        held = _checked(table, table.integer(2, "I", "buffer"), len(self.places), "buffer")
        data: Data | None = self.places[held]
        outside = table.integer(10, "I", "external_buffer")
        if outside:
            if outside not in self.external:
                raise self.buffer.error(f"{table.what}: no external buffer has id {outside:#x}")
            data = self.external[outside]
        return TfliteTensor(
            index,
            table.string(3, "name") or "",
            list(TYPES)[code] if 0 <= code < len(TYPES) else f"type {code}",
            shape,
            data,
            _quantization(table.table(4, "quantization")),
            table.table(6, "sparsity") is not None,
        )

    def _operator(
        self, index: int, table: Table, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> Operator:
        code = _checked(table, table.integer(0, "I", "opcode_index"), len(self.codes), "code")
        name, custom = self.codes[code]
        options = table.table(4, "builtin_options")
        option = 0 if options is None else options.integer(0, "b", "option")
        composite, decomposition = "", NO_TENSOR
        if name == COMPOSITE:
            more = table.table(12, "builtin_options_2")
            if more is None:
                raise self.buffer.error(f"{table.what}: a composite without options")
            composite = more.string(0, "name") or ""
            decomposition = more.integer(1, "i", "decomposition")
        return Operator(index, name, custom, inputs, outputs, option, composite, decomposition)


def _checked(table: Table, value: int, count: int, what: str, low: int = 0) -> int:
    if not low <= value < count:
        raise table.buffer.error(f"{table.what}: {what} {value} is out of range, there are {count}")
    return value


def _operator_name(table: Table) -> tuple[str, bool]:
    """The operator's name, and whether it is a custom one."""
    code = max(table.integer(0, "b", "deprecated code"), table.integer(3, "i", "builtin_code"))
    name = OPERATORS[code] if 0 <= code < len(OPERATORS) else f"operator {code}"
    if name == CUSTOM:
        return table.string(1, "custom_code") or CUSTOM, True
    return name, False


def _quantization(table: Table | None) -> Quantization | None:
    if table is None:
        return None
    scales = tuple(table.vector(2, "f4", "scale").tolist())
    zero_points = table.integers(3, "zero_point", "i8")
    axis = table.integer(6, "i", "quantized_dimension")
    code = table.integer(4, "B", "details_type")
    if code == 0:
        return Quantization(scales, zero_points, axis) if scales else None
    details = DETAILS.get(code, f"type {code}")
    more = table.table(5, "details")
    if details != BLOCKWISE or more is None:
        return Quantization(scales, zero_points, axis, details)
    return Quantization(
        scales,
        zero_points,
        axis,
        details,
        more.integer(0, "i", "scales"),
        more.integer(1, "i", "zero_points"),
        more.integer(2, "i", "block_size"),
    )


def _signature(table: Table, graphs: tuple[Graph, ...]) -> Signature:
    graph = _checked(table, table.integer(4, "I", "subgraph_index"), len(graphs), "graph")

    def names(slot: int, field: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for item in table.tables(slot, field, f"{table.what}: {field}"):
            name = item.string(0, "name") or ""
            index = item.integer(1, "I", "tensor_index")
            if name in found:
                raise table.buffer.error(f"{table.what}: {field} has {name!a} twice")
            found[name] = _checked(item, index, len(graphs[graph].tensors), "tensor")
        return found

    return Signature(
        table.string(2, "signature_key") or "", graph, names(0, "inputs"), names(1, "outputs")
    )
