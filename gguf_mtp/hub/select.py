"""Which files of a repository are needed: a checkpoint's, or one GGUF or package.

Files are taken by name from a list of what is read here: nothing pickled and no code.
"""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from gguf_mtp.errors import FetchError
from gguf_mtp.hub.reference import Reference
from gguf_mtp.readers.checkpoint import INDEX
from gguf_mtp.readers.parts import PART_NAME

BASE, HEADS, PACKAGE, CHECKPOINT = "base", "heads", "package", "checkpoint"
CONFIG = "config.json"
# All that a checkpoint's readers look at beside the weights.
CHECKPOINT_FILES = (
    CONFIG,
    INDEX,
    "README.md",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATES = "additional_chat_templates"
# What else Gemma 4 repositories hold as GGUF, by how its name begins.
NOT_A_BASE = ("mmproj", "mtp-", "imatrix", "ggml-lora")
# By what is wanted: the files that will do, beside a checkpoint or, of a package, in place of one.
SUFFIXES: dict[str, tuple[str, ...]] = {
    BASE: (".gguf",),
    HEADS: (".gguf", ".litertlm", ".safetensors"),
    PACKAGE: (".litertlm",),
    CHECKPOINT: (),
}
MAX_LISTED = 12


def one_file(reference: Reference, names: Sequence[str]) -> list[str]:
    """The file that `reference` names, first, and the parts that belong to it.

    Raises FetchError where it is not among `names`.
    """
    wanted = str(reference.file)
    if wanted not in names:
        near = [
            name for name in names if PurePosixPath(name).suffix == PurePosixPath(wanted).suffix
        ]
        raise FetchError(f"{reference}: no such file in the repository{_listed(near)}")
    match = PART_NAME.fullmatch(wanted)
    if match is None:
        return [wanted]
    parts = [n for n in names if _whole(n) == _whole(wanted) and n != wanted]
    return [wanted, *sorted(parts)]


def is_checkpoint(names: Sequence[str], role: str) -> bool:
    """Whether the repository holds a checkpoint with safetensors, and that is what will do."""
    return role != PACKAGE and CONFIG in names and any(_is_weights(name) for name in names)


def checkpoint_files(names: Sequence[str]) -> list[str]:
    """What is read of a checkpoint beside its weights."""
    return [
        name
        for name in names
        if name in CHECKPOINT_FILES
        or (name.endswith(".jinja") and PurePosixPath(name).parent.as_posix() == TEMPLATES)
    ]


def weights(reference: Reference, names: Sequence[str], weight_map: object) -> list[str]:
    """The weight files: those that the index' `weight_map` names, or else model*.safetensors.

    Raises FetchError where one that is named is not there.
    """
    if weight_map is None:
        return [name for name in names if _is_weights(name)]
    if not isinstance(weight_map, dict):
        raise FetchError(f"{reference}: {INDEX}: weight_map is not an object")
    named = sorted({str(name) for name in weight_map.values()})
    for name in named:
        if name not in names or not name.endswith(".safetensors") or "/" in name:
            raise FetchError(f"{reference}: {INDEX} names {name!a}, which the repository has not")
    return named


def only_model(reference: Reference, names: Sequence[str], role: str) -> list[str]:
    """The one GGUF (all its parts) or package that can have the `role` in a repository of files.

    Raises FetchError where there is none, or more than one to choose from.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(SUFFIXES[role]) and not _is_other(name, role):
            found.setdefault(_whole(name), []).append(name)
    if len(found) != 1:
        wanted = ("checkpoint with safetensors",) if role != PACKAGE else ()
        if not found:
            what = " and no ".join((*wanted, *SUFFIXES[role]))
            raise FetchError(f"{reference}: holds no {what}")
        raise FetchError(
            f"{reference}: holds {len(found)} files that could be it; name one, as in "
            f"{reference}/{next(iter(found.values()))[0]}{_listed(list(found))}"
        )
    return sorted(next(iter(found.values())))


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name


def _is_other(name: str, role: str) -> bool:
    return PurePosixPath(name).name.lower().startswith(NOT_A_BASE if role == BASE else "mmproj")


def _whole(name: str) -> str:
    """The name that all parts of a GGUF share."""
    match = PART_NAME.fullmatch(name)
    return name if match is None else f"{match['stem']}.gguf of {match['count']}"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f", and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return f"; there are {', '.join(listed[:MAX_LISTED])}{more}" if listed else ""
