"""``gguf-mtp inspect``: what is in a GGUF."""

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from gguf_mtp.cli import inspect_litertlm
from gguf_mtp.cli.show import (
    human_bytes,
    name_table,
    printable,
    shape_text,
    shown_value,
    wide_console,
)
from gguf_mtp.drafters.carried import CARRIED
from gguf_mtp.drafters.ordered_head import COUNT_KEY, TOP_K_KEY
from gguf_mtp.keyvalue import KeyValue, ValueType
from gguf_mtp.merged import ROWS_SORTED_KEY, SHARED_KEY
from gguf_mtp.namespace import LAYOUT_KEY, PREFIX, VERSION_KEY
from gguf_mtp.namespace import is_merged as has_heads
from gguf_mtp.provenance import SOURCE, TARGET
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.readers.litertlm import is_litertlm

MAX_JSON_ITEMS = 64


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    help="Draw the drafter of a .litertlm package: OUT.svg or OUT.html.",
)
@click.option("--force", is_flag=True, help="Replace an existing picture.")
def command(file: Path, as_json: bool, graph: Path | None, force: bool) -> None:
    """Show a GGUF: what it is, its keys, its tensors, its MTP heads and where they came from.

    Works on any GGUF, merged or not, and on .litertlm packages: their sections, signatures and
    drafter. Long arrays are shown by their first items and their length.

    \b
    Example:
      gguf-mtp inspect e2b-mtp.gguf
    """
    if is_litertlm(file):
        if graph is not None:
            inspect_litertlm.write_graph(file, graph, force=force)
        if as_json:
            click.echo(json.dumps(inspect_litertlm.document(file), indent=2))
        else:
            inspect_litertlm.print_package(file)
        return
    if graph is not None:
        raise click.UsageError(f"--graph: {file} is no .litertlm package")
    gguf = read_gguf(file, unknown_types=True)
    if as_json:
        click.echo(json.dumps(document(gguf), indent=2))
    else:
        _print(gguf)


def document(gguf: GgufFile) -> dict[str, Any]:
    """The whole file for machines. Arrays longer than 64 items are cut; `count` is their length."""
    return {
        "file": str(gguf.path),
        "bytes": gguf.size,
        "version": gguf.version,
        "alignment": gguf.alignment,
        "data_offset": gguf.data_start,
        "summary": summary(gguf),
        "keys": {key.name: _key_document(key) for key in gguf.keys},
        "tensors": [
            {
                "name": ref.name,
                "type": ref.dtype,
                "shape": list(reversed(ref.shape)),
                "offset": ref.offset,
                "bytes": ref.nbytes,
            }
            for ref in gguf.tensors
        ],
    }


def _key_document(key: KeyValue) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": key.type.name.lower()}
    if key.item_type is not None:
        entry |= {"item_type": key.item_type.name.lower(), "count": key.count}
    value = key.head(MAX_JSON_ITEMS)
    # JSON has no NaN and no infinity; their names say more than a null.
    entry["value"] = [_finite(v) for v in value] if isinstance(value, list) else _finite(value)
    return entry


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def summary(gguf: GgufFile) -> dict[str, Any]:
    """What kind of file it is, in a dozen fields."""
    arch = _value(gguf, "general.architecture")
    tokens = gguf.by_name.get("tokenizer.ggml.tokens")
    base = [ref for ref in gguf.tensors if not ref.name.startswith(PREFIX)]
    result: dict[str, Any] = {
        "architecture": arch,
        "name": _value(gguf, "general.name"),
        "size_label": _value(gguf, "general.size_label"),
        "parameters": sum(prod(ref.shape) for ref in base),
        "layers": _value(gguf, f"{arch}.block_count"),
        "hidden_size": _value(gguf, f"{arch}.embedding_length"),
        "context_length": _value(gguf, f"{arch}.context_length"),
        "tokens": tokens.count if tokens is not None else None,
        "types": dict(Counter(ref.dtype for ref in base).most_common()),
        "bytes": sum(ref.nbytes for ref in base),
        "merged": has_heads(gguf),
        "heads": _heads_summary(gguf) if has_heads(gguf) else None,
        "ordered_head": _ordered_head(gguf),
    }
    return result


def _heads_summary(gguf: GgufFile) -> dict[str, Any]:
    arch = _value(gguf, f"{PREFIX}general.architecture")
    refs = [ref for ref in gguf.tensors if ref.name.startswith(PREFIX)]
    return {
        "format_version": _value(gguf, VERSION_KEY),
        "layout": _value(gguf, LAYOUT_KEY),
        "architecture": arch,
        "name": _value(gguf, f"{PREFIX}general.name"),
        "parameters": sum(prod(ref.shape) for ref in refs),
        "layers": _value(gguf, f"{PREFIX}{arch}.block_count"),
        "hidden_size": _value(gguf, f"{PREFIX}{arch}.embedding_length"),
        "types": dict(Counter(ref.dtype for ref in refs).most_common()),
        "bytes": sum(ref.nbytes for ref in refs),
        "tensors": len(refs),
        "tokenizer_shared": _value(gguf, SHARED_KEY),
        "provenance": {
            key.name.removeprefix(PREFIX): key.head(MAX_JSON_ITEMS)
            for key in gguf.keys
            if key.name.startswith((SOURCE, TARGET))
        },
    }


def _ordered_head(gguf: GgufFile) -> dict[str, Any] | None:
    """The ordered head of a merged file, or of heads alone."""
    prefix = PREFIX if has_heads(gguf) else ""
    count = _value(gguf, prefix + COUNT_KEY)
    if count is None:
        return None
    return {
        "centroids": count,
        "top_k": _value(gguf, prefix + TOP_K_KEY),
        "rows_sorted": bool(_value(gguf, ROWS_SORTED_KEY)),
        "carried": any(key.name.startswith(CARRIED) for key in gguf.keys),
    }


def _value(gguf: GgufFile, name: str) -> Any:
    key = gguf.by_name.get(name)
    return None if key is None or key.type is ValueType.ARRAY else key.value


def _print(gguf: GgufFile) -> None:
    console = wide_console()
    for line in _headlines(gguf):
        console.print(line)
    console.print()
    keys = name_table("key", (key.name for key in gguf.keys), "type", "value")
    for key in gguf.keys:
        kind = key.type.name.lower()
        if key.item_type is not None:
            kind = f"{key.item_type.name.lower()}[]"
        keys.add_row(escape(key.name), kind, escape(shown_value(key)))
    console.print(keys)
    console.print()
    tensors = name_table("tensor", (ref.name for ref in gguf.tensors), "type", "shape")
    tensors.add_column("bytes", justify="right")
    for ref in gguf.tensors:
        tensors.add_row(escape(ref.name), ref.dtype, shape_text(ref.shape), f"{ref.nbytes:,}")
    console.print(tensors)


def _headlines(gguf: GgufFile) -> list[str]:
    facts = summary(gguf)

    def shown(value: Any) -> str:
        return escape(printable(str(value))) if value is not None else "-"

    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["types"].items()) or "none"
    lines = [
        f"[bold]{shown(gguf.path.name)}[/]: GGUF v{gguf.version}, {human_bytes(gguf.size)}",
        f"  model      {shown(facts['architecture'])}, {shown(facts['name'])}, "
        f"{shown(facts['size_label'])}, {facts['parameters']:,} parameters",
        f"  shape      {shown(facts['layers'])} layers of {shown(facts['hidden_size'])}, "
        f"{shown(facts['tokens'])} tokens, context {shown(facts['context_length'])}",
        f"  tensors    {kinds}; {human_bytes(facts['bytes'])}",
    ]
    heads = facts["heads"]
    if heads is None:
        lines.append("  MTP heads  none in this file")
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in heads["types"].items())
        lines += [
            f"  MTP heads  {shown(heads['architecture'])}, {shown(heads['name'])}, "
            f"{heads['parameters']:,} parameters, {shown(heads['layers'])} layers of "
            f"{shown(heads['hidden_size'])}",
            f"             {kinds}; {human_bytes(heads['bytes'])}; format "
            f"{shown(heads['format_version'])}, layout {shown(heads['layout'])}, tokenizer "
            f"{'shared' if heads['tokenizer_shared'] else 'its own'}",
        ]
    ordered = facts["ordered_head"]
    if ordered is not None:
        order = "sorted by centroid" if ordered["rows_sorted"] else "in token order"
        carried = ", carried as keys" if ordered["carried"] else ""
        lines.append(
            f"  ordered    {shown(ordered['centroids'])} centroids, top {shown(ordered['top_k'])}; "
            f"rows {order}{carried}"
        )
    return lines
