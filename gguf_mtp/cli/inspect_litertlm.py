"""What `gguf-mtp inspect` says of a `.litertlm` package or a bare `.tflite`."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from gguf_mtp.cli.show import human_bytes, name_table, print_table, printable, wide_console
from gguf_mtp.drafters.litert.package import (
    LitertDrafter,
    provenance,
    read_drafter,
    read_section_model,
    remarks,
)
from gguf_mtp.drafters.litert.picture import draw_html, draw_svg
from gguf_mtp.errors import GgufMtpError
from gguf_mtp.output import check_output, write_whole
from gguf_mtp.readers.litertlm import TFLITE_MODEL, LitertlmFile, Section, read_package
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite_model import Signature, TfliteModel, TfliteTensor, constants

GRAPH_SUFFIXES = (".svg", ".html")


def write_graph(file: Path, out: Path, *, force: bool) -> None:
    """Draw the drafter of the package `file`; the suffix of `out` says as what."""
    if out.suffix not in GRAPH_SUFFIXES:
        raise click.UsageError(f"--graph {out}: expected a name that ends in .svg or .html")
    drafter = read_drafter(file, ignore_names=True)
    page = draw_svg(drafter) if out.suffix == ".svg" else draw_html(drafter)
    encoded = page.encode()
    check_output(out, [file], force=force, needed=len(encoded))
    write_whole(out, encoded)


def document(path: Path) -> dict[str, Any]:
    """The whole package for machines. A section or drafter that cannot be read has an ``error``."""
    file = read_package(path)
    with SourceFile(path) as source:
        sections = [_section_document(file, source, section) for section in file.sections]
    return {
        "file": str(path),
        "bytes": file.size,
        "container_version": file.version_text,
        "metadata": _plain(file.metadata),
        "sections": sections,
        "drafter": _drafter_document(path),
    }


def _plain(items: dict[str, Any]) -> dict[str, Any]:
    """`items` fit for JSON, which has no NaN and no infinity."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in items.items()
    }


def _section_document(file: LitertlmFile, source: SourceFile, section: Section) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "index": section.index,
        "kind": section.kind,
        "model_type": section.model_type or None,
        "begin": section.begin,
        "end": section.end,
        "bytes": section.nbytes,
        "items": _plain(section.items),
    }
    if section.kind == TFLITE_MODEL:
        try:
            entry["model"] = _model_document(read_section_model(file, source, section))
        except GgufMtpError as error:
            entry["error"] = str(error)
    return entry


def _model_document(model: TfliteModel) -> dict[str, Any]:
    return {
        "description": model.description,
        "signatures": [_signature_document(model, item) for item in model.signatures],
        "operators": dict(
            Counter(
                item.composite or item.name for graph in model.graphs for item in graph.operators
            ).most_common()
        ),
        "graphs": [
            {
                "name": graph.name,
                "operators": len(graph.operators),
                "tensors": len(graph.tensors),
                "constants": [_tensor_document(tensor) for tensor in constants(graph)],
            }
            for graph in model.graphs
        ],
    }


def _signature_document(model: TfliteModel, signature: Signature) -> dict[str, Any]:
    tensors = model.graphs[signature.graph].tensors

    def named(found: dict[str, int]) -> dict[str, Any]:
        return {
            name: {"type": tensors[index].dtype, "shape": list(tensors[index].shape)}
            for name, index in found.items()
        }

    return {
        "key": signature.key,
        "graph": signature.graph,
        "inputs": named(signature.inputs),
        "outputs": named(signature.outputs),
    }


def _tensor_document(tensor: TfliteTensor) -> dict[str, Any]:
    quantization = tensor.quantization
    return {
        "index": tensor.index,
        "name": tensor.name,
        "type": tensor.dtype,
        "shape": list(tensor.shape),
        "bytes": tensor.data.nbytes if tensor.data is not None else 0,
        "scales": len(quantization.scales) if quantization is not None else 0,
        "details": quantization.details if quantization is not None else "",
    }


def _drafter_document(path: Path) -> dict[str, Any]:
    try:
        drafter = read_drafter(path)
    except GgufMtpError as error:
        return {"error": str(error)}
    return {
        "roles": {name: weight.tensor.index for name, weight in drafter.weights.items()},
        "layer_types": list(drafter.findings.layer_types),
        "provenance": provenance(drafter),
        "remarks": [note.message for note in remarks(drafter)],
    }


def print_package(path: Path) -> None:
    """The package for people: sections, signatures, the drafter's weights by role."""
    console = wide_console()
    shown = document(path)
    version = shown["container_version"]
    what = "a TFLite model" if version is None else f".litertlm {version}"
    count = "" if version is None else f", {len(shown['sections'])} sections"
    console.print(
        f"[bold]{escape(printable(path.name))}[/]: {what}, {human_bytes(shown['bytes'])}{count}"
    )
    for name, value in shown["metadata"].items():
        console.print(f"  {escape(printable(name))}  {escape(printable(str(value)))}")
    console.print()
    sections = Table(box=None, pad_edge=False)
    for heading in ("section", "kind", "model", "begin", "bytes", "constants", "other items"):
        sections.add_column(heading, justify="right" if heading in ("begin", "bytes") else "left")
    for entry in shown["sections"]:
        items = {k: v for k, v in entry["items"].items() if k != "model_type"}
        sections.add_row(
            str(entry["index"]),
            escape(entry["kind"]),
            escape(printable(entry["model_type"] or "-")),
            f"{entry['begin']:,}",
            f"{entry['bytes']:,}",
            escape(_types_of(entry)),
            escape(printable(", ".join(f"{k}={v}" for k, v in items.items()))),
        )
    print_table(console, sections, spare=("other items", "begin", "kind"), squeezed="constants")
    for entry in shown["sections"]:
        for signature in entry.get("model", {}).get("signatures", ()):
            console.print()
            console.print(
                f"section {entry['index']}, signature {escape(printable(signature['key']))}"
            )
            for heading in ("inputs", "outputs"):
                for name, value in signature[heading].items():
                    shape = ", ".join(str(size) for size in value["shape"])
                    console.print(
                        f"  {heading[:-1]:6} {escape(printable(name))}  {value['type']} "
                        f"{escape(f'[{shape}]')}"
                    )
    console.print()
    if "error" in shown["drafter"]:
        console.print(f"no drafter to extract: {escape(shown['drafter']['error'])}")
        return
    _print_drafter(read_drafter(path))


def _types_of(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return str(entry["error"])
    kinds: Counter[str] = Counter()
    for graph in entry.get("model", {}).get("graphs", ()):
        for tensor in graph["constants"]:
            kinds[tensor["type"]] += tensor["bytes"]
    return ", ".join(f"{kind} {human_bytes(nbytes)}" for kind, nbytes in kinds.most_common()) or "-"


def _print_drafter(drafter: LitertDrafter) -> None:
    console = wide_console()
    names = name_table("drafter's weight", drafter.weights, "type", "shape")
    for heading in ("scales", "tensor", "offset", "bytes"):
        names.add_column(heading, justify="right")
    for name, weight in drafter.weights.items():
        names.add_row(
            name,
            weight.tensor.dtype,
            ", ".join(str(size) for size in weight.shape),
            f"{weight.scales.size:,}" if weight.scales is not None else "-",
            str(weight.tensor.index),
            f"{weight.place.offset:,}",
            f"{weight.place.nbytes:,}",
        )
    print_table(console, names, spare=("tensor", "offset", "scales", "shape"))
    console.print()
    for key, value in provenance(drafter).items():
        if key not in ("tensors", "sections", "container_version"):
            text = ", ".join(value) if isinstance(value, list) else str(value)
            console.print(f"{key:16} {escape(printable(text))}")
    for note in remarks(drafter):
        console.print(f"note: {escape(note.message)}")
