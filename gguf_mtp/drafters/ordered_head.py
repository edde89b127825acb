"""The ordered head: centroids that select which rows of the drafter's embedding are scored.

Source: transformers 5.22 ``models/gemma4_assistant/modeling_gemma4_assistant.py``.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import FormatError
from gguf_mtp.ggml import F32, I32, GgmlType
from gguf_mtp.model import Half, Rows, Tensor, read_tensor
from gguf_mtp.readers.source import SourceFile, TensorRef

CENTROIDS = "masked_embd_centroids.weight"
ORDERING = "masked_embd_ordering"
NAMES = (CENTROIDS, ORDERING)
COUNT_KEY = "gemma4-assistant.masked_embd.centroid_count"
TOP_K_KEY = "gemma4-assistant.masked_embd.top_k"
# F32 holds every integer below this one.
F32_EXACT = 1 << 24


class Ordering(Enum):
    """What entry i of a stored token ordering is."""

    TOKENS = "the token at place i when tokens are sorted by centroid"
    CENTROIDS = "the centroid of token i"


@dataclass(frozen=True, eq=False)
class OrderedHead:
    """Row c * (n_vocab / centroid_count) + j of the sorted embedding is canonical row
    ``ordering[c * (n_vocab / centroid_count) + j]``; `ordering` is int32 [n_vocab]."""

    centroid_count: int
    top_k: int
    ordering: Rows

    @property
    def sorted_positions(self) -> Rows:
        """Where each canonical row stands in the sorted embedding: the inverse permutation."""
        positions = np.empty_like(self.ordering)
        positions[self.ordering] = np.arange(len(self.ordering), dtype=np.int32)
        return positions


def check_tokens(what: str, tokens: npt.NDArray[np.int64], n_vocab: int) -> None:
    """Raise FormatError, naming `what`, unless all of `tokens` are of a vocabulary of `n_vocab`."""
    outside = np.flatnonzero((tokens < 0) | (tokens >= n_vocab))
    if len(outside):
        at = int(outside[0])
        raise FormatError(f"{what} entry {at} is {int(tokens[at])}, expected 0 to {n_vocab - 1}")


def check_ordered_head(
    where: str, centroid_count: int, top_k: int, ordering: npt.NDArray[np.int64], n_vocab: int
) -> OrderedHead:
    """Raise FormatError unless `ordering` is a permutation of the vocabulary that divides evenly
    among the centroids."""
    if centroid_count < 1 or n_vocab % centroid_count:
        raise FormatError(
            f"{where}: {centroid_count} centroids, expected a divisor of the {n_vocab} tokens"
        )
    if not 1 <= top_k <= centroid_count:
        raise FormatError(f"{where}: centroid top-k is {top_k}, expected 1 to {centroid_count}")
    if len(ordering) != n_vocab:
        raise FormatError(
            f"{where}: token ordering has {len(ordering)} entries, expected {n_vocab}"
        )
    check_tokens(f"{where}: token ordering", ordering, n_vocab)
    counts = np.bincount(ordering, minlength=n_vocab)
    if counts.max() != 1:
        raise FormatError(
            f"{where}: token ordering lists token {int(counts.argmax())} "
            f"{int(counts.max())} times, expected a permutation"
        )
    return OrderedHead(centroid_count, top_k, ordering.astype(np.int32))


def ordering_tensor(head: OrderedHead) -> Tensor:
    encoded = head.ordering.astype("<i4").tobytes()
    return Tensor(ORDERING, I32, (len(head.ordering),), encoded, verbatim=True)


def stored_ordered_head(half: Half, n_vocab: int) -> OrderedHead | None:
    """The checked ordered head of a GGUF's keys and tensors, None where it has neither tensor."""
    present = [name for name in NAMES if name in half.tensor_by_name]
    if not present:
        return None
    for name in NAMES:
        if name not in present:
            raise FormatError(f"{half.origin}: tensor {name} is missing, {present[0]} is there")
    for name in (COUNT_KEY, TOP_K_KEY):
        if not isinstance(half.value(name), int):
            raise FormatError(f"{half.origin}: {name} is {half.value(name)!a}, expected an integer")
    tensor, centroids = half.tensor_by_name[ORDERING], half.tensor_by_name[CENTROIDS]
    if tensor.type is not I32 or len(tensor.shape) != 1:
        raise FormatError(
            f"{half.origin}: {ORDERING} is {tensor.type.name} {list(tensor.shape)}, "
            f"expected I32 [{n_vocab}]"
        )
    count = int(half.value(COUNT_KEY))
    width = half.tensor_by_name["token_embd.weight"].shape[1]
    if centroids.shape != (count, width):
        raise FormatError(
            f"{half.origin}: {CENTROIDS} has shape {list(centroids.shape)}, "
            f"expected {[count, width]}"
        )
    ordering = np.frombuffer(read_tensor(tensor), "<i4").astype(np.int64)
    return check_ordered_head(half.origin, count, int(half.value(TOP_K_KEY)), ordering, n_vocab)


def read_int64(ref: TensorRef) -> npt.NDArray[np.int64]:
    """A safetensors vector of I64 or I32. Raises FormatError for anything else."""
    types = {"I64": "<i8", "I32": "<i4"}
    if ref.dtype not in types or len(ref.shape) != 1:
        raise FormatError(
            f"{ref.file}: tensor {ref.name} is {ref.dtype} {list(ref.shape)}, expected I64 [n]"
        )
    with SourceFile(ref.file) as source:
        return np.frombuffer(source.read(ref.offset, ref.nbytes), types[ref.dtype]).astype(np.int64)


def decode_ordering(
    where: str, tensor: Tensor, form: Ordering, centroid_count: int, n_vocab: int
) -> Tensor:
    """A stored ordering as upstream has it: a list of tokens, I32 [n_vocab].

    `form` is what the file's dialect has; content that is only the other one is taken as that.
    Centroids list their tokens by ascending id where `tensor` does not say.
    Raises FormatError when it is neither.
    """
    values = _stored_integers(where, tensor, n_vocab)
    inside = bool(((values >= 0) & (values < n_vocab)).all())
    counts = np.bincount(values, minlength=n_vocab) if inside else np.zeros(1, np.int64)
    per_centroid = n_vocab // centroid_count if 0 < centroid_count <= n_vocab else 0
    fits = {
        Ordering.TOKENS: bool((counts == 1).all()),
        Ordering.CENTROIDS: per_centroid * centroid_count == n_vocab
        and bool((counts[:centroid_count] == per_centroid).all()),
    }
    found = [candidate for candidate in (form, *Ordering) if fits[candidate]]
    if not found:
        raise FormatError(
            f"{where}: {tensor.name} is neither {Ordering.TOKENS.value} nor "
            f"{Ordering.CENTROIDS.value} ({n_vocab} tokens, {centroid_count} centroids)"
        )
    if found[0] is Ordering.CENTROIDS:
        values = np.argsort(values, kind="stable")
    return Tensor(tensor.name, I32, (n_vocab,), values.astype("<i4").tobytes(), verbatim=True)


def encode_ordering(
    tensor: Tensor, form: Ordering, number: GgmlType, centroid_count: int
) -> Tensor:
    """An ordering as upstream has it, in the form and number type (I32 or F32) of a dialect."""
    values = np.frombuffer(read_tensor(tensor), "<i4")
    if form is Ordering.CENTROIDS:
        centroids = np.empty_like(values)
        centroids[values] = np.arange(len(values)) // (len(values) // centroid_count)
        values = centroids
    encoded = values.astype("<f4" if number is F32 else "<i4").tobytes()
    return Tensor(tensor.name, number, tensor.shape, encoded, verbatim=True)


def _stored_integers(where: str, tensor: Tensor, n_vocab: int) -> npt.NDArray[np.int64]:
    types = {I32: "<i4", F32: "<f4"}
    if tensor.type not in types or tensor.shape != (n_vocab,):
        raise FormatError(
            f"{where}: {tensor.name} is {tensor.type.name} {list(tensor.shape)}, "
            f"expected I32 or F32 [{n_vocab}]"
        )
    values = np.frombuffer(read_tensor(tensor), types[tensor.type])
    whole = np.isfinite(values) & (np.abs(values) < F32_EXACT) & (values == np.trunc(values))
    if tensor.type is F32 and not whole.all():
        at = int(np.flatnonzero(~whole)[0])
        raise FormatError(
            f"{where}: {tensor.name} entry {at} is {values[at]}, expected a whole number"
        )
    return values.astype(np.int64)
