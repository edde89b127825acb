"""A base model that is a GGUF already: taken as it is, once it is known to be one.

Its tensors are copied whatever their types, so that files of forks with types of their own merge
like any other.
"""

from gguf_mtp.drafters.dialects import DEPTH
from gguf_mtp.drafters.families import FAMILIES
from gguf_mtp.drafters.translate import overlay_of
from gguf_mtp.errors import UnsupportedError, brief
from gguf_mtp.gemma4.target import ARCH
from gguf_mtp.model import Half, half_from_gguf
from gguf_mtp.namespace import PREFIX, is_merged
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


def base_from_gguf(file: GgufFile, *, drop_overlay: bool = False) -> Half:
    """A plain base model's GGUF. Raises UnsupportedError for anything else.

    With `drop_overlay` heads that another program embedded in it are left out.
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
    return half
