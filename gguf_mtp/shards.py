"""A planned GGUF cut into parts that llama.cpp loads together, and the names of its files.

Source: llama.cpp ``tools/gguf-split/gguf-split.cpp`` (keys and names of the parts).
"""

import re
from pathlib import Path

from gguf_mtp.errors import UnsupportedError
from gguf_mtp.keyvalue import KeyValue, ValueType, scalar
from gguf_mtp.model import Tensor
from gguf_mtp.plan import FilePlan, Plan, one_gguf, plan
from gguf_mtp.provenance import Digests

# The count has 16 bits in the file, five digits in the name.
MAX_PARTS = 65535
_SIZE = re.compile(r"([1-9]\d*)([KMGT]?)", re.IGNORECASE)
_NAMED_FOR_HEADS = re.compile(r"(?P<name>.+)-(?P<type>[a-z]+\d\w*)-mtp", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """``4G`` and the like in bytes; units are powers of 1000, as upstream's. ValueError else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 500M or 4G")
    return int(match[1]) * _UNITS[match[2].upper()]


def cut_to_parts(whole: FilePlan, max_bytes: int) -> list[FilePlan]:
    """`whole` as files of at most `max_bytes`; one tensor that is larger has a part to itself.

    All keys are in the first part. Raises UnsupportedError for a tail, which belongs to one file.
    """
    if whole.total_bytes <= max_bytes:
        return [whole]
    if whole.footer is not None or len(whole.parts) != 1:
        raise UnsupportedError("the tail layout is one file: it cannot be cut into parts")
    source = whole.parts[0].plan
    groups: list[list[Tensor]] = [[]]
    # Behind the infos the header is padded once more.
    size = _part(source, groups, [], 0).data_start + source.alignment
    for slot in source.slots:
        added = _size_in_file(slot.tensor, source.alignment)
        if groups[-1] and size + added > max_bytes:
            groups.append([])
            size = _part(source, groups, [], 1).data_start + source.alignment
        groups[-1].append(slot.tensor)
        size += added
    if len(groups) > MAX_PARTS:
        raise UnsupportedError(f"{len(groups)} parts, at most {MAX_PARTS} are possible")
    return [one_gguf(_part(source, groups, group, at)) for at, group in enumerate(groups)]


def _size_in_file(tensor: Tensor, alignment: int) -> int:
    """The bytes of a tensor and of its info, rounded up so that no sum of them is too small."""
    info = 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8
    return info + -(-tensor.nbytes // alignment) * alignment


def _part(source: Plan, groups: list[list[Tensor]], group: list[Tensor], at: int) -> Plan:
    keys: tuple[KeyValue | Digests, ...] = (
        scalar("split.no", ValueType.UINT16, at),
        scalar("split.count", ValueType.UINT16, len(groups)),
        scalar("split.tensors.count", ValueType.INT32, len(source.slots)),
    )
    if at == 0:
        return plan((*source.keys, *keys), tuple(group), source.notes)
    alignment = tuple(
        key for key in source.keys if isinstance(key, KeyValue) and key.name == "general.alignment"
    )
    return plan((*alignment, *keys), tuple(group))


def part_path(path: Path, at: int, count: int) -> Path:
    """The file of part `at` (from 0) of `count`: ``NAME-00001-of-00003.gguf``.

    Of ``X-q8_0-mtp.gguf`` the parts are ``X-mtp.q8_0-00001-of-00003.gguf`` and so on: llama.cpp's
    ``-hf`` takes a file with ``mtp-`` in its name for a drafter.
    """
    if count == 1:
        return path
    stem = _without_mtp_dash(path.name.removesuffix(".gguf"))
    return path.with_name(f"{stem}-{at + 1:05}-of-{count:05}.gguf")


def _without_mtp_dash(stem: str) -> str:
    match = _NAMED_FOR_HEADS.fullmatch(stem)
    if match is not None:
        return f"{match['name']}-mtp.{match['type']}"
    return f"mtp.{stem.removesuffix('-mtp')}" if stem.endswith("-mtp") else stem
