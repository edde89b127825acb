"""Where a drafter came from and what it was paired with: the `mtp.source.*`, `mtp.target.*` keys.

They describe the first conversion and travel unchanged through `split` and `convert`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp import __version__
from gguf_mtp.errors import PairingError
from gguf_mtp.gemma4.shape import ModelShape
from gguf_mtp.hub.origin import hub_origin, model_name
from gguf_mtp.keyvalue import KeyValue, string, strings, u32
from gguf_mtp.merge.tokenizer import TOKENS, VOCABULARY_KEYS
from gguf_mtp.model import Half
from gguf_mtp.notes import Note
from gguf_mtp.readers.source import name_as_text

SOURCE = "mtp.source."
TARGET = "mtp.target."
CONVERTER = f"gguf-mtp {__version__}"
TARGET_KIND = f"{TARGET}kind"
TARGET_FILES = f"{TARGET}files"
TARGET_SIZE = f"{TARGET}embedding_length"
TARGET_VOCAB = f"{TARGET}vocab_size"
TARGET_TOKENIZER = f"{TARGET}tokenizer_sha256"


@dataclass(frozen=True)
class Digests:
    """A key whose value, the SHA-256 of each of `files`, is known once they have been read."""

    name: str
    files: tuple[Path, ...]

    def resolve(self, digests: Mapping[Path, str]) -> KeyValue:
        """The key; files without a digest yet get a placeholder of the same length."""
        return strings(self.name, [digests.get(path, "0" * 64) for path in self.files])


def describe(
    base: Half,
    base_shape: ModelShape,
    heads: Half,
    facts: tuple[KeyValue, ...] = (),
    *,
    hash_base: bool,
) -> tuple[KeyValue | Digests, ...]:
    """The provenance of `heads` when first paired with `base`. Base names only, no paths.

    `facts` are further ``mtp.source.*`` keys, from the reader of the heads.
    """
    keys: list[KeyValue | Digests] = [
        string(f"{SOURCE}kind", heads.kind),
        string(f"{SOURCE}name", model_name(Path(heads.origin))),
        *_hub_keys(SOURCE, heads),
        strings(f"{SOURCE}files", list(map(name_as_text, heads.weights))),
        Digests(f"{SOURCE}sha256", heads.weights),
        string(f"{SOURCE}converter", CONVERTER),
    ]
    if heads.license is not None:
        keys.append(string(f"{SOURCE}license", heads.license))
    keys += (
        *facts,
        string(TARGET_KIND, base.kind),
        string(f"{TARGET}name", model_name(Path(base.origin))),
        *_hub_keys(TARGET, base),
        string(f"{TARGET}architecture", str(base.value("general.architecture"))),
        u32(TARGET_SIZE, base_shape.hidden_size),
        u32(TARGET_VOCAB, base_shape.vocab_size),
        string(TARGET_TOKENIZER, tokenizer_digest(base)),
        strings(TARGET_FILES, list(map(name_as_text, base.weights))),
    )
    if hash_base:
        keys.append(Digests(f"{TARGET}sha256", base.weights))
    return tuple(keys)


def _hub_keys(prefix: str, half: Half) -> tuple[KeyValue, ...]:
    """Repository and commit of what was fetched from the hub."""
    found = hub_origin(Path(half.origin))
    if found is None:
        return ()
    names = (f"{prefix}repository", f"{prefix}revision")
    return tuple(map(string, names, (found.repo, found.commit)))


def split_notes(heads: Half) -> tuple[Note, ...]:
    """What to say of the base that `heads` are taken off, by the provenance among their keys."""
    files = heads.by_name.get(TARGET_FILES)
    if files is None or files.count < 2 or heads.value(TARGET_KIND) != "gguf":
        return ()
    return (
        Note("one-file", f"the base was merged from {files.count} parts and comes as one file"),
    )


def tokenizer_digest(half: Half) -> str:
    """SHA-256 over the encoded tokenizer keys that a drafter's must agree with."""
    digest = hashlib.sha256()
    for name in VOCABULARY_KEYS:
        if name in half.by_name:
            digest.update(half.by_name[name].encode())
    return digest.hexdigest()


def check_target(
    carried: Iterable[KeyValue], base: Half, base_shape: ModelShape, heads: Half
) -> None:
    """Raise PairingError when the `mtp.target.*` keys that `heads` carry are of another base."""
    actual: dict[str, object] = {
        TARGET_SIZE: base_shape.hidden_size,
        TARGET_VOCAB: base_shape.vocab_size,
    }
    if TOKENS not in heads.by_name:
        # Only the digest tells; tokens themselves are compared, and the difference named.
        actual[TARGET_TOKENIZER] = tokenizer_digest(base)
    for key in carried:
        if key.name in actual and key.value != actual[key.name]:
            raise PairingError(
                f"{heads.origin}: {key.name}: expected {key.value!a} in the base, "
                f"found {actual[key.name]!a} in {base.origin}"
            )
