"""Where heads may come from: one row for each kind of file or directory.

A reader turns a path into `Heads`; a new kind is one more row of `SOURCES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.drafters.assistant import assistant_from_checkpoint
from gguf_mtp.drafters.carried import CARRIED, restore_carried
from gguf_mtp.drafters.dialects import DIALECTS
from gguf_mtp.drafters.drafter import ARCH, Drafter, drafter_from_half
from gguf_mtp.drafters.extraction import is_extraction, read_extraction
from gguf_mtp.drafters.families import FAMILIES, family_of
from gguf_mtp.drafters.infer import complete
from gguf_mtp.drafters.translate import dialect_of, to_upstream
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.vocabulary import has_tokenizer
from gguf_mtp.keyvalue import KeyValue, string, strings
from gguf_mtp.model import Half, half_from_gguf
from gguf_mtp.namespace import PREFIX, TOKENIZER, is_merged
from gguf_mtp.notes import Note
from gguf_mtp.provenance import SOURCE, TARGET
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.readers.gguf import MAGIC, GgufFile
from gguf_mtp.readers.litertlm import first_bytes, is_litertlm, is_tflite
from gguf_mtp.readers.other_files import other_file
from gguf_mtp.readers.parts import read_gguf_parts
from gguf_mtp.readers.source import explaining_pieces


@dataclass(frozen=True)
class Heads:
    """A drafter and what there is to say about where it comes from.

    `carried` is the provenance of an earlier conversion. Where there is none, `facts` are further
    ``mtp.source.*`` keys for a fresh one. `notes` are for the user.
    """

    drafter: Drafter
    carried: tuple[KeyValue, ...] = ()
    facts: tuple[KeyValue, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class HeadsSource:
    """A kind of heads: `found` tells it by a path and the first bytes there (none of a directory),
    `read` reads it for a base in a number type (None: the kind's default)."""

    name: str
    found: Callable[[Path, bytes], bool]
    read: Callable[[Path, Half, str | None], Heads]


def read_heads(path: Path, base: Half, heads_type: str | None) -> Heads:
    """The heads at `path`, whatever they are, for `base`.

    Raises FormatError and UnsupportedError, naming file and field.
    """
    start = b"" if path.is_dir() else first_bytes(path)
    for source_kind in SOURCES:
        if source_kind.found(path, start):
            return source_kind.read(path, base, heads_type)
    other = other_file(start)
    if other is not None:
        raise UnsupportedError(f"{path}: is {other}")
    known = ", ".join(source_kind.name for source_kind in SOURCES)
    with explaining_pieces(path):
        raise FormatError(
            f"{path}: unrecognized heads file, begins with {start[:8]!r}; supported: {known}"
        )


def _read_checkpoint(path: Path, base: Half, heads_type: str | None) -> Heads:
    # Imported here as below: what other heads do without.
    from gguf_mtp.drafters.vocabulary import check_neighbour

    tokenizer = [key for key in base.keys if key.name.startswith(TOKENIZER)]
    checkpoint = read_checkpoint(path)
    drafter = assistant_from_checkpoint(checkpoint, heads_type or "auto", tokenizer)
    return Heads(drafter, notes=() if has_tokenizer(checkpoint) else check_neighbour(path, base))


def _read_gguf(path: Path, base: Half, heads_type: str | None) -> Heads:
    if heads_type is not None:
        raise UnsupportedError(
            f"{path}: is a GGUF and copied as it is; --heads-type is not possible"
        )
    return heads_from_gguf(read_gguf_parts(path), base)


def _read_litertlm(path: Path, base: Half, heads_type: str | None) -> Heads:
    # Imported here: a dozen modules that other heads do without.
    from gguf_mtp.drafters.litert.gguf import drafter_from_litertlm
    from gguf_mtp.drafters.vocabulary import check_package

    found = drafter_from_litertlm(path, base, heads_type)
    notes = (*found.notes, *check_package(path, base))
    return Heads(found.drafter, facts=found.facts, notes=notes)


def heads_from_gguf(file: GgufFile, base: Half) -> Heads:
    """A drafter's GGUF: MTP heads in any dialect, another family, or what `split` wrote. `base`
    fills in what heads do not say.

    Raises FormatError and UnsupportedError.
    """
    if is_merged(file):
        raise UnsupportedError(f"{file.path}: has a base model in it; split it first (--heads-out)")
    half = half_from_gguf(file)
    dialect, family = dialect_of(half), family_of(half)
    if dialect is None and family is None:
        raise _no_drafter(half)
    keys, carried = [], []
    for key in half.keys:
        if key.name.startswith((SOURCE, TARGET)):
            carried.append(key)
        elif key.name.startswith(PREFIX) and not key.name.startswith(CARRIED):
            raise UnsupportedError(f"{file.path}: unknown key {key.name!a}")
        elif not key.name.startswith(PREFIX):
            keys.append(key)
    if dialect is None:
        return Heads(drafter_from_half(replace(half, keys=tuple(keys))), tuple(carried))
    tensors = (*half.tensors, *restore_carried(half))
    half = to_upstream(replace(half, keys=tuple(keys), tensors=tensors), dialect)
    half, added = complete(half, base)
    # What every file of the dialect leaves out is no guess.
    inferred = [name for name in added if name.removeprefix(f"{ARCH}.") not in dialect.lacks]
    facts = (string(f"{SOURCE}dialect", dialect.name), *inferred_key(inferred))
    notes = inferred_note(file.path, inferred)
    return Heads(drafter_from_half(half), tuple(carried), facts, notes)


def _no_drafter(half: Half) -> UnsupportedError:
    heads = ", ".join(dict.fromkeys(dialect.arch for dialect in DIALECTS if not dialect.marks))
    others = ", ".join(dict.fromkeys(arch for row in FAMILIES[1:] for arch in row.architectures))
    found = half.value("general.architecture")
    return UnsupportedError(
        f"{half.origin}: general.architecture is {found!a} (no drafter that is known), expected "
        f"MTP heads ({heads}) or another drafter ({others})"
    )


def inferred_key(names: Sequence[str]) -> tuple[KeyValue, ...]:
    """The provenance of keys and tensors that were not in the source, if there are any."""
    return (strings(f"{SOURCE}inferred", list(names)),) if names else ()


def inferred_note(path: Path, names: Sequence[str]) -> tuple[Note, ...]:
    if not names:
        return ()
    listed = ", ".join(name.removeprefix(f"{ARCH}.") for name in names)
    message = f"{path}: not stated, taken from shapes, base or defaults: {listed}"
    return (Note("inferred", message),)


def _read_extraction(path: Path, base: Half, heads_type: str | None) -> Heads:
    from gguf_mtp.drafters.vocabulary import check_neighbour

    found = read_extraction(path, base, heads_type)
    notes = (*inferred_note(path, found.inferred), *check_neighbour(path, base))
    return Heads(found.drafter, facts=inferred_key(found.inferred), notes=notes)


# In order: the first row that finds its kind reads it. Magics come before safetensors files, which
# have none and are only guessed at.
SOURCES = (
    HeadsSource("GGUF", lambda path, start: start.startswith(MAGIC), _read_gguf),
    HeadsSource(".litertlm", lambda path, start: is_litertlm(start), _read_litertlm),
    HeadsSource(".tflite", lambda path, start: is_tflite(start), _read_litertlm),
    HeadsSource("safetensors", is_extraction, _read_extraction),
    HeadsSource("a checkpoint directory", lambda path, start: path.is_dir(), _read_checkpoint),
)
