"""A base model that is a GGUF already: taken as it is, once it is known to be one.

Its tensors are copied whatever their types, so that files of forks with types of their own merge
like any other.
"""

from dataclasses import replace

from gguf_mtp.drafters.dialects import DEPTH
from gguf_mtp.drafters.families import FAMILIES
from gguf_mtp.drafters.translate import overlay_of
from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.shape import read_shape
from gguf_mtp.gemma4.target import ARCH
from gguf_mtp.gemma4.whole import check_whole
from gguf_mtp.merge.tokenizer import TOKENS
from gguf_mtp.model import Half, half_from_gguf
from gguf_mtp.namespace import PREFIX, is_merged
from gguf_mtp.notes import Note
from gguf_mtp.readers.gguf import GgufFile

# What else a Gemma 4 repository holds as GGUF, by `general.architecture` and `general.type`.
OTHER_FILES = {
    "clip": "the vision and audio encoders, which stay a file of their own",
    "mmproj": "the vision and audio encoders, which stay a file of their own",
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
    **{
        arch: f"{family.what}: for --heads"
        for family in FAMILIES
        for arch in family.architectures
        if not family.alone
    },
}

# The vision and audio encoders, where a file has them inside as Ollama packs it.
ENCODERS_LEFT_OUT = "encoders-left-out"
ENCODER_TENSORS = ("v.", "a.", "mm.")
ENCODER_KEYS = (f"{ARCH}.vision.", f"{ARCH}.audio.")


def base_from_gguf(file: GgufFile, *, drop_overlay: bool = False) -> Half:
    """A plain base model's GGUF, with its encoders left out where it has any inside.

    With `drop_overlay` heads that another program embedded in it are left out as well. Raises
    UnsupportedError for anything else, and FormatError for a base that is not whole.
    """
    half = half_from_gguf(file)
    if is_merged(file):
        raise UnsupportedError(
            f"{file.path}: already has MTP heads (--replace-heads replaces them)"
        )
    found = half.value("general.architecture")
    if found != ARCH:
        other = OTHER_FILES.get(str(half.value("general.type"))) or OTHER_FILES.get(str(found))
        what = f" ({other})" if other else ""
        raise UnsupportedError(
            f"{file.path}: general.architecture is {found!a}{what}, expected a base model, {ARCH!a}"
        )
    overlay = overlay_of(half)
    if overlay is not None:
        if not drop_overlay:
            raise UnsupportedError(
                f"{file.path}: has heads in it already, those of {overlay.dialect.whose} "
                f"(--replace-heads leaves them out)"
            )
        half = overlay.base
    if half.value(f"{ARCH}.{DEPTH}"):
        # llama.cpp would take that many of the base's own layers off it.
        raise UnsupportedError(
            f"{file.path}: {ARCH}.{DEPTH} is {brief(half.value(f'{ARCH}.{DEPTH}'))}, expected none"
        )
    taken = [name for name in (*half.by_name, *half.tensor_by_name) if name.startswith(PREFIX)]
    if taken:
        raise UnsupportedError(f"{file.path}: {taken[0]!a} is in the namespace of the heads")
    if TOKENS not in half.by_name:
        raise FormatError(f"{file.path}: key {TOKENS} is missing: a base needs its tokenizer")
    half = _without_encoders(half)
    check_whole(half, read_shape(half, ARCH), ARCH)
    return half


def _without_encoders(half: Half) -> Half:
    tensors = tuple(item for item in half.tensors if not item.name.startswith(ENCODER_TENSORS))
    n_left_out = len(half.tensors) - len(tensors)
    if not n_left_out:
        return half
    keys = tuple(key for key in half.keys if not key.name.startswith(ENCODER_KEYS))
    note = Note(
        ENCODERS_LEFT_OUT,
        f"{half.origin}: holds the vision and audio encoders ({n_left_out} tensors); they are left "
        f"out, since llama.cpp takes them from a file of their own (--mmproj)",
    )
    return replace(half, keys=keys, tensors=tensors, notes=(*half.notes, note))
