"""The output's name: as given, from a template, or a default one in a directory."""

import re
from pathlib import Path

from gguf_mtp.errors import OutputError
from gguf_mtp.hub.origin import model_name
from gguf_mtp.model import Half
from gguf_mtp.notes import Note

FROM_CHECKPOINT = "{name}-{outtype}-mtp.gguf"
# The name of a GGUF says its type already.
FROM_GGUF = "{name}-mtp.gguf"
FIELDS = ("name", "outtype")
# What llama.cpp's ``-hf`` passes over when it looks for a model (common/download.cpp).
NOT_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_FIELD = re.compile(r"\{([^{}]*)\}")


def output_path(given: Path, base: Path, half: Half, outtype: str | None) -> Path:
    """`given` with its fields filled in; a file in it where it is a directory.

    Fields: ``{name}``, that of the base's directory or file, and ``{outtype}``, its number type.
    `outtype` is the type asked for where `half` does not have it yet. Raises OutputError.
    """
    if str(given) == "-":
        raise OutputError(
            "-: a GGUF is not written to a pipe, as its header comes last; name a file"
        )
    if given.is_dir():
        given /= FROM_GGUF if half.kind == "gguf" else FROM_CHECKPOINT

    def fill(match: re.Match[str]) -> str:
        if match[1] not in FIELDS:
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise OutputError(f"{given}: {match[0]} is no field of a name, expected {known}")
        if match[1] == "name":
            return model_name(base).removesuffix(".gguf")
        return outtype or _type_name(half.value("general.file_type"))

    return given.with_name(_FIELD.sub(fill, given.name)) if given.name else given


def split_names(path: Path) -> tuple[str, str]:
    """What `split` calls base and heads of the merged file `path` in a directory.

    The heads' name begins with ``mtp-``, by which llama.cpp's downloads find them beside a base
    (GGUF specification, naming convention).
    """
    whole = path.name.removesuffix(".gguf")
    stem = whole.removesuffix("-mtp")
    return f"{stem}.gguf" if stem != whole else f"{stem}-base.gguf", f"mtp-{stem}.gguf"


def name_notes(path: Path) -> tuple[Note, ...]:
    """A note where llama.cpp's ``-hf`` would not find the merged file `path` in a repository."""
    found = [part for part in NOT_MODELS if part in path.name]
    if not found:
        return ()
    message = (
        f"{path.name}: llama.cpp's -hf passes over files with {found[0]!r} in their names; "
        "rename it before you publish it"
    )
    return (Note("name-passed-over", message),)


def _type_name(number: object) -> str:
    # Imported here: it takes longer than appending heads to a file.
    from gguf.constants import LlamaFileType

    names = {int(kind): kind.name for kind in LlamaFileType}
    name = names.get(number, "unknown") if isinstance(number, int) else "unknown"
    return name.removeprefix("ALL_").removeprefix("MOSTLY_").lower()
