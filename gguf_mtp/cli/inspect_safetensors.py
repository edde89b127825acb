"""What `gguf-mtp inspect` says of a safetensors file: which weight of a drafter each tensor is."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from rich.markup import escape

from gguf_mtp.cli.show import human_bytes, name_table, print_table, printable, wide_console
from gguf_mtp.drafters.extraction import is_raw_constant, upstream_name
from gguf_mtp.readers.safetensors import read_safetensors


def document(path: Path) -> dict[str, Any]:
    """The whole file for machines. A tensor's `weight` is its name in a drafter's GGUF, None where
    its own name does not tell; `heads` says whether that is known of all."""
    file = read_safetensors(path)
    tensors = [
        {
            "name": ref.name,
            "type": ref.dtype,
            "shape": list(ref.shape),
            "offset": ref.offset,
            "bytes": ref.nbytes,
            "weight": upstream_name(ref.name),
        }
        for ref in file.tensors
    ]
    return {
        "file": str(path),
        "bytes": file.size,
        "metadata": file.metadata,
        "parameters": sum(prod(ref.shape) for ref in file.tensors),
        "types": dict(Counter(ref.dtype for ref in file.tensors).most_common()),
        "heads": bool(tensors) and all(tensor["weight"] for tensor in tensors),
        "tensors": tensors,
    }


def print_tensors(path: Path) -> None:
    """The file for people: what it is, then its tensors."""
    console = wide_console()
    shown = document(path)
    kinds = ", ".join(f"{count} {kind}" for kind, count in shown["types"].items()) or "none"
    console.print(
        f"[bold]{escape(printable(path.name))}[/]: safetensors, {human_bytes(shown['bytes'])}"
    )
    console.print(f"  tensors    {kinds}; {shown['parameters']:,} parameters")
    console.print(f"  MTP heads  {_verdict(shown)}")
    console.print()
    table = name_table("tensor", (item["name"] for item in shown["tensors"]), "type", "shape")
    table.add_column("weight of a drafter")
    table.add_column("bytes", justify="right")
    for item in shown["tensors"]:
        table.add_row(
            escape(printable(item["name"])),
            item["type"],
            ", ".join(str(size) for size in item["shape"]),
            item["weight"] or "-",
            f"{item['bytes']:,}",
        )
    print_table(console, table, spare=("shape", "bytes"))


def _verdict(shown: dict[str, Any]) -> str:
    if shown["heads"]:
        return "every tensor is a drafter's weight: --heads takes this file"
    names = [item["name"] for item in shown["tensors"]]
    if any(map(is_raw_constant, names)):
        return (
            "constants of a LiteRT graph, whose names do not say which weights they are: give the "
            ".tflite or .litertlm package they come from"
        )
    known = sum(bool(item["weight"]) for item in shown["tensors"])
    return f"{known} of {len(names)} tensors have the name of a drafter's weight"
