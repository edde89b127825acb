"""The items of a GGUF array of strings, each behind its length in 8 bytes: encoded and measured
without a step for each, as a vocabulary has hundreds of thousands.

Source: the GGUF specification (ggml ``docs/gguf.md``), `gguf_string_t`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LENGTH_BYTES = 8
# Becomes 8 bytes of 0xFF, which no UTF-8 holds, where a length is to go.
_GAP = "\udcff" * LENGTH_BYTES
# Runs of zeros joined to those this far on: of 2, of 4, then of 7, as behind a length below 256.
_STEPS = (1, 2, 3)
# Of a buffer at a time; bounds the memory that positions take.
SEARCHED_BYTES = 1 << 20
SEARCHED_PER_STRING = 64
# Strings that are followed one by one.
FEW = 64


def encode_strings(values: Sequence[str]) -> bytes:
    """All of `values`. Raises UnicodeEncodeError for one that is not valid Unicode."""
    "".join(values).encode()
    text = _GAP + _GAP.join(values) if values else ""
    data = np.frombuffer(bytearray(text.encode("utf-8", "surrogateescape")), np.uint8)
    gaps = data == 0xFF
    starts = np.flatnonzero(gaps)[::LENGTH_BYTES]
    lengths = np.diff(starts, append=len(data)) - LENGTH_BYTES
    data[gaps] = 0
    for place in range(LENGTH_BYTES):
        if lengths.any():
            data[starts + place] = lengths & 0xFF
            lengths >>= 8
    return data.tobytes()


def whole_strings(buffer: bytes, begin: int, limit: int) -> tuple[int, int]:
    """Some of the strings that lie whole in `buffer` from `begin` on: how many, up to `limit`, and
    where they end; none only where not even the first one does.

    In long arrays those that follow each other are passed all at once (see `_runs`).
    """
    # A file may have thousands of arrays of one string: each is searched as far as it may reach.
    end = min(begin + SEARCHED_BYTES, len(buffer))
    searched = min(begin + SEARCHED_PER_STRING * limit, end)
    runs = _runs(buffer, begin, searched) if limit >= FEW else {}
    count, at = 0, begin
    while count < limit and at < end:
        if at in runs:
            places = runs[at]
            passed = min(len(places) - 1, limit - count)
            count, at = count + passed, int(places[passed])
            continue
        text = at + LENGTH_BYTES
        following = text + int.from_bytes(buffer[at:text], "little")
        if text > len(buffer) or following > len(buffer):
            break
        count, at = count + 1, following
    return count, at


def _runs(buffer: bytes, begin: int, searched: int) -> dict[int, npt.NDArray[np.int64]]:
    """Places in `buffer` that look like a length (a byte and seven zeros), where each leads to the
    next one: runs of two and more, by the first place of each."""
    data = np.frombuffer(buffer, np.uint8, searched)
    zeros = data[begin:] == 0
    for step in _STEPS:
        zeros = zeros[: max(0, len(zeros) - step)] & zeros[step:]
    places = begin + np.flatnonzero(zeros[1:] & (data[begin : begin + len(zeros[1:])] != 0))
    leads_on = places[:-1] + LENGTH_BYTES + data[places[:-1]] == places[1:]
    lasts = np.flatnonzero(~np.append(leads_on, False)).tolist()
    return {
        int(places[first]): places[first : last + 1]
        for first, last in zip([0, *(last + 1 for last in lasts)], lasts)  # noqa: B905
        if first < last
    }
