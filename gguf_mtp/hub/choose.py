"""Which file of a repository, or of a local folder, is the base or the drafter: by names alone.

The tables here are the whole rule; docs/hub.md explains it. Source of the names: published Gemma 4
repositories, and the default file names of llama.cpp's converters.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import PurePosixPath

from gguf_mtp.errors import FetchError, GgufMtpError
from gguf_mtp.readers.parts import PART_NAME

BASE, HEADS, PACKAGE, CHECKPOINT = "base", "heads", "package", "checkpoint"
MAX_LISTED = 12


class Mark(Enum):
    """What a file's name says: a drafter, perhaps one, or nothing of the kind.

    It may be one where "mtp" is the last word, as in ``X-mtp.gguf``: some publishers name drafters
    so, and this project's `convert` names merged files so. Parts are hardly a drafter's.
    """

    DRAFTER = auto()
    PERHAPS = auto()
    NONE = auto()


@dataclass(frozen=True)
class Wanted:
    """Files that will do: how their names end, and which marks they may have."""

    endings: tuple[str, ...]
    marks: tuple[Mark, ...] = tuple(Mark)


_TFLITE = Wanted((".tflite",), (Mark.DRAFTER, Mark.PERHAPS))
# By role: the first row that fits any file decides. A checkpoint comes first, see `select`.
ROLES: dict[str, tuple[Wanted, ...]] = {
    BASE: (Wanted((".gguf",), (Mark.NONE,)),),
    HEADS: (
        Wanted((".gguf",), (Mark.DRAFTER,)),
        Wanted((".gguf",), (Mark.PERHAPS,)),
        Wanted((".litertlm", ".safetensors")),
        _TFLITE,
    ),
    PACKAGE: (Wanted((".litertlm",)), _TFLITE),
    CHECKPOINT: (),
}
# The same in words, for the message that none was found.
LOOKED_FOR = {
    BASE: "no checkpoint with safetensors and no .gguf of a base model",
    HEADS: "no checkpoint with safetensors, no .gguf or .tflite named as a drafter, no .litertlm "
    "and no .safetensors",
    PACKAGE: "no .litertlm and no .tflite named as a drafter",
    CHECKPOINT: "no checkpoint with safetensors",
}
ENDINGS = {end for rows in ROLES.values() for wanted in rows for end in wanted.endings}
# A file whose name has one of these words is a drafter; so is what a folder of that name holds.
DRAFTER_WORDS = frozenset(
    ("mtp", "assistant", "assist", "drafter", "draft", "eagle", "eagle3", "dflash")
)
# What is neither a base nor a drafter, by the file's name without its ending.
NEITHER = (
    r"(.*[-_. ])?mmproj([-_. ].*)?",  # encoders of images and sound
    r"imatrix([-_. ].*)?|.*[-_. ]imatrix",  # importance matrices
    r"(ggml-)?(lora|adapters?)([-_. ].*)?",  # LoRA adapters
    r".*[-_. ](lora|adapters?)([-_. ](f32|f16|bf16|q8_0))?",
)
_NEITHER = re.compile("|".join(NEITHER))
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]+")
# Which of several is proposed, by the tensor type in its name. Heads: what `convert` makes of a
# checkpoint, then what has lost nothing. Base: the default of llama.cpp's ``-hf``.
PREFERRED_TYPES: dict[str, tuple[str, ...]] = {
    BASE: ("q4_k_m", "q8_0"),
    HEADS: ("q8_0", "bf16", "f16"),
}


@dataclass(frozen=True)
class Place:
    """Where files are to be chosen from: `text` is how messages write it, `name` the name that may
    mark all of it as drafters, `error` what is raised."""

    text: str
    name: str
    error: type[GgufMtpError] = FetchError


def choose(place: Place, names: Sequence[str], role: str) -> list[str]:
    """The one file among `names` that has the `role`, with all its parts, in order.

    Raises `place.error` where there is none, or more than one.
    """
    marks = _marks(place, names)
    found: dict[str, list[str]] = {}
    for wanted in ROLES[role]:
        for name, mark in marks.items():
            if name.lower().endswith(wanted.endings) and mark in wanted.marks:
                found.setdefault(whole(name), []).append(name)
        if found:
            break
    models = sorted((sorted(parts) for parts in found.values()), key=lambda p: _rank(p[0], role))
    if len(models) == 1:
        return models[0]
    if not models:
        raise place.error(f"{place.text}: {_nothing(place, marks, role)}")
    first = [parts[0] for parts in models]
    raise place.error(
        f"{place.text}: holds {len(first)} files that could be the {role}; name one, as in "
        f"{place.text}/{first[0]}; found: {listed(first)}"
    )


def is_named_as_drafter(name: str) -> bool:
    """Whether the file `name`, with its folders, or the repository `name` is called a drafter."""
    return _mark(name) is not Mark.NONE


def listed(names: Iterable[str]) -> str:
    """`names` for a message, the first 12 of them."""
    every = list(names)
    more = f", and {len(every) - MAX_LISTED} more" if len(every) > MAX_LISTED else ""
    return f"{', '.join(every[:MAX_LISTED])}{more}"


def _marks(place: Place, names: Sequence[str]) -> dict[str, Mark]:
    """The marks of all `names` that may be a model. File names decide before the place's name: it
    counts only where no GGUF has a mark."""
    marks = {name: _mark(name) for name in names if not _is_neither(name)}
    ggufs = [name for name in marks if name.lower().endswith(".gguf")]
    if is_named_as_drafter(place.name) and all(marks[name] is Mark.NONE for name in ggufs):
        marks |= dict.fromkeys(ggufs, Mark.DRAFTER)
    return marks


def _mark(name: str) -> Mark:
    *folders, file = PurePosixPath(name).parts or ("",)
    words = _BETWEEN_WORDS.split(_stem(name))
    if DRAFTER_WORDS.intersection(folder.lower() for folder in folders):
        return Mark.DRAFTER
    found = [at for at, word in enumerate(words) if word in DRAFTER_WORDS]
    if not found:
        return Mark.NONE
    is_last = found == [len(words) - 1] and len(words) > 1
    may_be_merged = is_last or PART_NAME.fullmatch(file) is not None
    return Mark.PERHAPS if may_be_merged and words[found[0]] == "mtp" else Mark.DRAFTER


def _is_neither(name: str) -> bool:
    stem = _stem(name)
    return stem.startswith(".") or _NEITHER.fullmatch(stem) is not None


def _stem(name: str) -> str:
    """The file's name in lower case, without its ending and the number of a part."""
    file = PurePosixPath(name).name
    match = PART_NAME.fullmatch(file)
    if match is not None:
        return match["stem"].lower()
    ending = PurePosixPath(file).suffix.lower()
    return file.lower().removesuffix(ending if ending in ENDINGS else "")


def whole(name: str) -> str:
    """What all parts of a GGUF share, and no other file has."""
    match = PART_NAME.fullmatch(name)
    return name if match is None else f"{match['stem']}/{match['count']}"


def _rank(name: str, role: str) -> int:
    types = PREFERRED_TYPES.get(role, ())
    stem = f"-{_stem(name)}-"
    fits = (at for at, kind in enumerate(types) if re.search(f"[-_. ]{kind}[-_. ]", stem))
    return next(fits, len(types))


def _nothing(place: Place, marks: dict[str, Mark], role: str) -> str:
    """What was looked for, and which GGUFs there are instead; none of them is proposed."""
    looked_for = f"holds {LOOKED_FOR[role]}"
    others = [name for name in marks if name.lower().endswith(".gguf")]
    if role not in PREFERRED_TYPES or not others:
        return looked_for
    if role == HEADS:
        why = "its .gguf files are not named as drafters"
    elif any(is_named_as_drafter(name) for name in others):
        why = "its .gguf files are named as drafters"
    else:
        why = "its own name says that its .gguf files are drafters"
    return (
        f"{looked_for}; {why}: {listed(others)}; if one of them is the {role}, name it: "
        f"{place.text}/FILE"
    )
