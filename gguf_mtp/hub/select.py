"""Which files of a repository are needed: a checkpoint's, or one GGUF or package (see `choose`).

Files are taken by name from a list of what is read here: nothing pickled and no code.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from gguf_mtp.errors import FetchError
from gguf_mtp.hub.choose import HEADS, PACKAGE, Place, choose, is_named_as_drafter, listed, whole
from gguf_mtp.hub.reference import Reference
from gguf_mtp.readers.checkpoint import INDEX
from gguf_mtp.readers.parts import PART_NAME

CONFIG = "config.json"
# All that a checkpoint's readers look at apart from the weights.
CHECKPOINT_FILES = (
    CONFIG,
    INDEX,
    "README.md",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATES = "additional_chat_templates"
# Heads as loose weights do not hold their configuration and tokenizer: readers look next to them.
LOOSE = (".safetensors", ".tflite")
NEXT_TO_LOOSE = (CONFIG, "tokenizer.json", "tokenizer.model", "*SP_Tokenizer.spiece")


def one_file(reference: Reference, names: Sequence[str]) -> list[str]:
    """The file that `reference` names, first, and the parts that belong to it.

    Raises FetchError where it is not among `names`.
    """
    wanted = str(reference.file)
    if wanted not in names:
        raise FetchError(f"{reference}: no such file in the repository{_near(wanted, names)}")
    match = PART_NAME.fullmatch(wanted)
    if match is None:
        return [wanted]
    parts = [name for name in names if whole(name) == whole(wanted) and name != wanted]
    return [wanted, *sorted(parts)]


def companions(names: Sequence[str], chosen: str) -> list[str]:
    """The files in the folder of the loose weights `chosen` that are read with them."""
    if not chosen.lower().endswith(LOOSE):
        return []
    paths = (PurePosixPath(name) for name in names)
    neighbours = [path for path in paths if path.parent == PurePosixPath(chosen).parent]
    return [
        str(path)
        for path in neighbours
        if any(fnmatchcase(path.name, pattern) for pattern in NEXT_TO_LOOSE)
    ]


def is_checkpoint(reference: Reference, names: Sequence[str], role: str) -> bool:
    """Whether the repository holds a checkpoint with safetensors, and that is what will do.

    For heads a GGUF that is named as a drafter goes first where the repository is not: the
    checkpoint there is the base.
    """
    if role == PACKAGE or CONFIG not in names or not any(_is_weights(name) for name in names):
        return False
    if role != HEADS or is_named_as_drafter(_name(reference)):
        return True
    return not any(name.lower().endswith(".gguf") and is_named_as_drafter(name) for name in names)


def checkpoint_files(names: Sequence[str]) -> list[str]:
    """What is read of a checkpoint apart from its weights."""
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
            raise FetchError(f"{reference}: {INDEX} names {name!a}, which is not in the repository")
    return named


def only_model(reference: Reference, names: Sequence[str], role: str) -> list[str]:
    """The one GGUF (all its parts) or package that can have the `role` in a repository of files.

    Raises FetchError where there is none, or more than one to choose from.
    """
    return choose(Place(str(reference), _name(reference)), names, role)


def _name(reference: Reference) -> str:
    return reference.repo.rpartition("/")[2]


def _near(wanted: str, names: Sequence[str]) -> str:
    """Files of the kind of `wanted`, for a message: drafters first where it is named as one."""
    near = [name for name in names if PurePosixPath(name).suffix == PurePosixPath(wanted).suffix]
    kind = is_named_as_drafter(wanted)
    near.sort(key=lambda name: is_named_as_drafter(name) != kind)
    return f"; found: {listed(near)}" if near else ""


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name
