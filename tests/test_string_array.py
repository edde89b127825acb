"""Arrays of strings, encoded and measured all at once, against one string after the other."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguf_mtp.string_array import SEARCHED_BYTES, encode_strings, whole_strings

# Zeros and small numbers, so that texts look like lengths; some longer than one byte can say.
TEXTS = st.text(st.sampled_from("a\0\x01\x08é\U0001f600"), max_size=12) | st.sampled_from(
    ["", "\0" * 8, "x" * 255, "x" * 256, "\x01" + "\0" * 7 + "x" * 300]
)


def one_by_one(values: list[str]) -> list[bytes]:
    encoded = (value.encode() for value in values)
    return [struct.pack("<Q", len(item)) + item for item in encoded]


@given(st.lists(TEXTS, max_size=12))
@settings(deadline=None)
def test_encoding(values: list[str]) -> None:
    assert encode_strings(values) == b"".join(one_by_one(values))


@pytest.mark.parametrize("code", [0xDCFF, 0xD800, 0xDC80])
def test_what_is_no_unicode_is_refused(code: int) -> None:
    with pytest.raises(UnicodeEncodeError):
        encode_strings(["fine", f"a{chr(code)}"])


def measured(buffer: bytes, begin: int, limit: int) -> tuple[int, int]:
    """What `whole_strings` finds when it is asked until it finds no more."""
    count, at = 0, begin
    while count < limit:
        step, at = whole_strings(buffer, at, limit - count)
        if not step:
            break
        count += step
    return count, at


@given(st.lists(TEXTS, max_size=12), st.binary(max_size=9), st.integers(0, 12), st.data())
@example(["a"] * 12, b"\x01\0\0\0\0\0\0\0b", 12, None)
@settings(max_examples=300, deadline=None)
def test_measuring(values: list[str], rest: bytes, begin: int, data: st.DataObject | None) -> None:
    items = one_by_one(values)
    whole = bytes(begin) + b"".join(items) + rest
    assert measured(whole, begin, len(items)) == (len(items), len(whole) - len(rest))
    cut = len(whole) if data is None else data.draw(st.integers(begin, len(whole) - len(rest)))
    ends = [begin]
    for item in items:
        if ends[-1] + len(item) <= cut:
            ends.append(ends[-1] + len(item))
        else:
            break
    assert measured(whole[:cut], begin, len(items)) == (len(ends) - 1, ends[-1])


@pytest.mark.parametrize("text", ["", "token", "x" * 1000])
def test_more_than_is_searched_at_a_time(text: str) -> None:
    count = 3 * SEARCHED_BYTES // (8 + len(text))
    encoded = encode_strings([text] * count)
    assert measured(encoded, 0, count) == (count, len(encoded))
