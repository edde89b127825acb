"""``gguf-mtp inspect``: what is in a GGUF, or in a file of heads of another kind."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from gguf_mtp.cli import inspect_litertlm, inspect_safetensors
from gguf_mtp.cli.show import (
    human_bytes,
    name_table,
    print_table,
    printable,
    shape_text,
    shown_value,
    wide_console,
)
from gguf_mtp.drafters.carried import CARRIED
from gguf_mtp.drafters.dialects import COUNT, DIALECTS, TOP_K, UPSTREAM, Dialect
from gguf_mtp.drafters.extraction import is_safetensors
from gguf_mtp.drafters.families import MTP, find_family
from gguf_mtp.drafters.ordered_head import CENTROIDS
from gguf_mtp.drafters.translate import dialect_of, overlay_of
from gguf_mtp.errors import FormatError, GgufMtpError, UnsupportedError
from gguf_mtp.keyvalue import KeyValue, ValueType
from gguf_mtp.merge.tokenizer import SHARED_KEY
from gguf_mtp.merged import ROWS_SORTED_KEY
from gguf_mtp.model import half_from_gguf
from gguf_mtp.namespace import LAYOUT_KEY, PREFIX, VERSION, VERSION_KEY, is_merged
from gguf_mtp.provenance import SOURCE, TARGET
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.readers.litertlm import first_bytes, is_litertlm, is_tflite
from gguf_mtp.readers.other_files import other_file
from gguf_mtp.readers.parts import COUNT as PART_COUNT
from gguf_mtp.readers.parts import NUMBER as PART_NUMBER
from gguf_mtp.readers.parts import read_gguf_parts
from gguf_mtp.readers.source import TensorRef
from gguf_mtp.tail import TAIL, TailFile, read_tail

MAX_JSON_ITEMS = 64
DRAFTERS = {dialect.arch for dialect in DIALECTS if not dialect.embedded_under}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    help="Draw the drafter of a .litertlm package or .tflite: OUT.svg or OUT.html.",
)
@click.option("--force", is_flag=True, help="Replace an existing picture.")
def command(file: Path, as_json: bool, graph: Path | None, force: bool) -> None:
    """Show a GGUF: what it is, its keys, its tensors, its MTP heads and where they came from.

    Works on any GGUF, merged in either layout or not; on .litertlm packages and the .tflite in
    them: sections, signatures and drafter; and on safetensors: each tensor and which weight of a
    drafter it is. Long arrays are shown by their first items and their length.

    \b
    Example:
      gguf-mtp inspect e2b-mtp.gguf
    """
    if file.is_dir():
        raise FormatError(
            f"{file}: is a directory; name a GGUF, .litertlm, .tflite or .safetensors file in it"
        )
    start = first_bytes(file)
    if is_litertlm(start) or is_tflite(start):
        if graph is not None:
            inspect_litertlm.write_graph(file, graph, force=force)
        if as_json:
            click.echo(json.dumps(inspect_litertlm.document(file), indent=2))
        else:
            inspect_litertlm.print_package(file)
        return
    if graph is not None:
        raise click.UsageError(f"--graph: {file} is not a .litertlm package or .tflite")
    other = other_file(start)
    if other is not None:
        raise UnsupportedError(f"{file}: is {other}")
    if is_safetensors(start):
        if as_json:
            click.echo(json.dumps(inspect_safetensors.document(file), indent=2))
        else:
            inspect_safetensors.print_tensors(file)
        return
    tail = read_tail(file)
    gguf = read_gguf(file) if tail is None else tail.base
    if as_json:
        click.echo(json.dumps(document(gguf, tail), indent=2))
    else:
        _print(gguf, tail)


def document(gguf: GgufFile, tail: TailFile | None = None) -> dict[str, Any]:
    """The whole file for machines. Arrays longer than 64 items are cut; `count` is their length.

    With heads in a tail, `tail` is their GGUF.
    """
    whole = {"file": str(gguf.path), **_gguf_document(gguf), "summary": summary(gguf, tail)}
    if tail is not None:
        whole["bytes"] = tail.footer.total_bytes
        whole["tail"] = {
            "offset": tail.footer.heads_offset,
            "sha256": tail.footer.sha256.hex(),
            **_gguf_document(tail.heads),
        }
    return whole


def _gguf_document(gguf: GgufFile) -> dict[str, Any]:
    return {
        "bytes": gguf.size,
        "version": gguf.version,
        "alignment": gguf.alignment,
        "data_offset": gguf.data_start,
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


def summary(gguf: GgufFile, tail: TailFile | None = None) -> dict[str, Any]:
    """What kind of file it is, in a dozen fields. Of a part of a model: what all of its parts are,
    where they can be read."""
    parts = _find_parts(gguf)
    if parts is not None and parts.whole is not None:
        gguf = parts.whole
    heads = _find_heads(gguf, tail)
    arch = _value(gguf, "general.architecture")
    tokens = gguf.by_name.get("tokenizer.ggml.tokens")
    base = _own_tensors(gguf)
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
        "merged": heads is not None,
        "heads": None if heads is None else _heads_summary(heads),
        "ordered_head": _ordered_head(heads or _heads_alone(gguf)),
        "parts": None if parts is None else parts.document(),
    }
    return result


def _own_tensors(gguf: GgufFile) -> Sequence[TensorRef]:
    """All tensors but those of heads that are in the file of their base."""
    if is_merged(gguf):
        return [ref for ref in gguf.tensors if not ref.name.startswith(PREFIX)]
    overlay = overlay_of(half_from_gguf(gguf))
    if overlay is None or not overlay.base.tensors:
        return gguf.tensors
    return [ref for ref in gguf.tensors if ref.name in overlay.base.tensor_by_name]


@dataclass(frozen=True)
class _Parts:
    """A model in several files: `number` (from 1) is that of the one inspected. `whole` is all of
    the model, None where its parts cannot be read, and then `problem` says why."""

    number: int
    count: int
    whole: GgufFile | None
    problem: str | None

    def document(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "count": self.count,
            "bytes": None if self.whole is None else self.whole.size,
            "heads": self._with_heads(),
            "problem": self.problem,
        }

    def _with_heads(self) -> list[int]:
        """The numbers of the parts that tensors of MTP heads are in."""
        if self.whole is None or not is_merged(self.whole):
            return []
        files = {ref.file for ref in self.whole.tensors if ref.name.startswith(PREFIX)}
        return [at for at, path in enumerate(self.whole.paths, 1) if path in files]


def _find_parts(gguf: GgufFile) -> _Parts | None:
    number, count = _value(gguf, PART_NUMBER), _value(gguf, PART_COUNT)
    if not isinstance(number, int) or not isinstance(count, int) or count <= 1:
        return None
    try:
        return _Parts(number + 1, count, read_gguf_parts(gguf.path), None)
    except GgufMtpError as error:
        return _Parts(number + 1, count, None, str(error))


@dataclass(frozen=True)
class _Heads:
    """A file with heads in it, the prefix of their names there, and their format. Heads with a
    base are under upstream's names, others under those of `dialect`."""

    gguf: GgufFile
    prefix: str
    version: Any
    layout: Any
    dialect: Dialect = UPSTREAM

    def value(self, name: str) -> Any:
        return _value(self.gguf, self.prefix + name)

    def size(self, name: str) -> Any:
        """The value of upstream's key ``ARCH.name``, as the dialect calls it."""
        names = {key.means[0]: key.name for key in self.dialect.keys}
        return self.value(f"{self.dialect.arch}.{names.get(name, name)}")


def _heads_alone(gguf: GgufFile) -> _Heads:
    return _Heads(gguf, "", None, None, dialect_of(half_from_gguf(gguf)) or UPSTREAM)


def _find_heads(gguf: GgufFile, tail: TailFile | None) -> _Heads | None:
    if tail is not None:
        return _Heads(tail.heads, "", VERSION, TAIL)
    if is_merged(gguf):
        return _Heads(gguf, PREFIX, _value(gguf, VERSION_KEY), _value(gguf, LAYOUT_KEY))
    return None


def _heads_summary(heads: _Heads) -> dict[str, Any]:
    gguf, arch = heads.gguf, heads.value("general.architecture")
    refs = [ref for ref in gguf.tensors if ref.name.startswith(heads.prefix)]
    family = find_family(arch, {ref.name.removeprefix(heads.prefix) for ref in refs})
    return {
        "what": family.what if family else "drafter",
        "spec_type": family.spec_type if family else None,
        "format_version": heads.version,
        "layout": heads.layout,
        "architecture": arch,
        "name": heads.value("general.name"),
        "parameters": sum(prod(ref.shape) for ref in refs),
        "layers": heads.value(f"{arch}.block_count"),
        "hidden_size": heads.value(f"{arch}.embedding_length"),
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


def _ordered_head(heads: _Heads) -> dict[str, Any] | None:
    """The ordered head of a merged file, or of heads alone. Its tensors tell whether there is one:
    published heads without it have its keys too."""
    name = heads.prefix + heads.dialect.tensors.get(CENTROIDS, CENTROIDS)
    carried = f"{CARRIED}{CENTROIDS}.data" in heads.gguf.by_name
    tensor = next((ref for ref in heads.gguf.tensors if ref.name == name), None)
    if tensor is None and not carried:
        return None
    count = heads.size(COUNT)
    return {
        "centroids": tensor.shape[0] if count is None and tensor is not None else count,
        "top_k": heads.size(TOP_K),
        "rows_sorted": bool(_value(heads.gguf, ROWS_SORTED_KEY)),
        "carried": carried,
    }


def _value(gguf: GgufFile, name: str) -> Any:
    key = gguf.by_name.get(name)
    return None if key is None or key.type is ValueType.ARRAY else key.value


def _print(gguf: GgufFile, tail: TailFile | None) -> None:
    console = wide_console()
    for line in _headlines(gguf, tail):
        console.print(line, soft_wrap=not console.is_terminal)
    _print_tables(console, gguf)
    if tail is not None:
        where = f"{tail.footer.heads_bytes:,} bytes at {tail.footer.heads_offset:,}"
        console.print(f"\n[bold]heads in the tail[/]: {where}, SHA-256 {tail.footer.sha256.hex()}")
        _print_tables(console, tail.heads)


def _print_tables(console: Console, gguf: GgufFile) -> None:
    console.print()
    keys = name_table("key", (key.name for key in gguf.keys), "type", "value")
    for key in gguf.keys:
        kind = key.type.name.lower()
        if key.item_type is not None:
            kind = f"{key.item_type.name.lower()}[]"
        keys.add_row(escape(key.name), kind, escape(shown_value(key)))
    print_table(console, keys, spare=("type",), squeezed="value")
    console.print()
    tensors = name_table("tensor", (ref.name for ref in gguf.tensors), "type", "shape")
    tensors.add_column("bytes", justify="right")
    for ref in gguf.tensors:
        tensors.add_row(escape(ref.name), ref.dtype, shape_text(ref.shape), f"{ref.nbytes:,}")
    print_table(console, tensors, spare=("shape",))


def _parts_line(parts: dict[str, Any]) -> str:
    if parts["problem"] is not None:
        return f"{parts['problem']}; this summary is of this part alone"
    heads = " and ".join(str(number) for number in parts["heads"])
    where = f"; MTP heads in part {heads}" if heads else ""
    return (
        f"{parts['count']} files, {human_bytes(parts['bytes'])} in all{where}; this summary is of "
        f"all parts, the tables below are of part {parts['number']}"
    )


def _no_heads_line(gguf: GgufFile, architecture: Any) -> str:
    if architecture in DRAFTERS:
        return "all of this file is heads: --heads takes it"
    if VERSION_KEY in gguf.by_name:
        return "in another part of this model"
    embedded = _heads_alone(gguf).dialect
    if embedded.embedded_under:
        return f"those of {embedded.whose}: --heads takes this file"
    return "none in this file"


def _headlines(gguf: GgufFile, tail: TailFile | None) -> list[str]:
    facts = summary(gguf, tail)
    size = gguf.size if tail is None else tail.footer.total_bytes

    def shown(value: Any) -> str:
        return escape(printable(str(value))) if value is not None else "-"

    parts = facts["parts"]
    part = f", part {parts['number']} of {parts['count']}" if parts else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["types"].items()) or "none"
    lines = [
        f"[bold]{shown(gguf.path.name)}[/]: GGUF v{gguf.version}, {human_bytes(size)}{part}",
        f"  model      {shown(facts['architecture'])}, {shown(facts['name'])}, "
        f"{shown(facts['size_label'])}, {facts['parameters']:,} parameters",
        f"  shape      {shown(facts['layers'])} layers of {shown(facts['hidden_size'])}, "
        f"{shown(facts['tokens'])} tokens, context {shown(facts['context_length'])}",
        f"  tensors    {kinds}; {human_bytes(facts['bytes'])}",
    ]
    if parts:
        lines.append(f"  parts      {escape(_parts_line(parts))}")
    heads = facts["heads"]
    if heads is None:
        lines.append(f"  MTP heads  {_no_heads_line(gguf, facts['architecture'])}")
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in heads["types"].items())
        is_mtp = heads["spec_type"] == MTP.spec_type
        lines += [
            f"  {'MTP heads' if is_mtp else 'drafter  '}  "
            f"{'' if is_mtp else heads['what'] + ', '}"
            f"{shown(heads['architecture'])}, {shown(heads['name'])}, "
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
