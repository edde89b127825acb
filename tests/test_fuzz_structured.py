"""Inputs drawn by structure, right but for one thing: what is accepted is what was meant."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from gguf_bytes import ARCH, ARRAY, BOOL, STRING, Info, array, build, pair, text
from gguf_mtp.errors import FormatError, GgufMtpError
from gguf_mtp.gemma4.config import read_text_config
from gguf_mtp.gemma4.vocabulary import vocabulary
from gguf_mtp.ggml import TYPES_BY_ID
from gguf_mtp.readers.checkpoint import Checkpoint, read_checkpoint
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.readers.model_card import read_card
from gguf_mtp.readers.safetensors import read_safetensors
from gguf_mtp.readers.strict_json import parse_object
from hostile.checkpoints import safetensors_bytes

bounded = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LIMITS = st.sampled_from((0, 1, 7, 31, 32, 33, 255, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1))
NAMES = st.binary(min_size=1, max_size=70) | st.sampled_from((b"a.weight", b"general.name"))
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@st.composite
def pairs(draw: st.DrawFn) -> bytes:
    """A key whose value is of its type but, now and then, for a length."""
    name, kind = draw(NAMES), draw(st.integers(0, 14))
    if kind in SIZES:
        return pair(name, kind, draw(st.binary(min_size=SIZES[kind], max_size=SIZES[kind])))
    if kind == STRING:
        value = draw(st.binary(max_size=40))
        length = draw(st.just(len(value)) | LIMITS)
        return pair(name, STRING, struct.pack("<Q", length) + value)
    if kind == ARRAY:
        item = draw(st.sampled_from((*SIZES, STRING, ARRAY, 99)))
        items = [draw(st.binary(max_size=9)) for _ in range(draw(st.integers(0, 5)))]
        body = b"".join(map(text, items)) if item == STRING else b"".join(items)
        count = len(items) if item == STRING else len(body) // SIZES.get(item, 8)
        return array(name, item, draw(st.just(count) | LIMITS), body)
    return pair(name, kind, b"\0" * 8)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A GGUF whose tensors tile its data but, now and then, for one."""
    keys = [ARCH, *draw(st.lists(pairs(), max_size=4))]
    infos, offset = [], 0
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from((0, 1, 8, 2, 28, 255)))
        dims = draw(st.lists(st.sampled_from((1, 2, 32, 64)), min_size=1, max_size=4))
        known = TYPES_BY_ID.get(kind)
        nbytes = known.nbytes((*dims[:0:-1], dims[0])) if known and dims[0] % 32 == 0 else 32
        if draw(st.integers(0, 9)) == 0:
            dims[draw(st.integers(0, len(dims) - 1))] = draw(LIMITS)
        shift = draw(LIMITS) if draw(st.integers(0, 9)) == 0 else 0
        name = draw(st.just(f"t{index}".encode()) | NAMES)
        infos.append(Info(name, dims, kind, (offset + shift) % (1 << 64)))
        offset += -(-nbytes // 32) * 32
    counts = {"n_pairs": draw(LIMITS)} if draw(st.integers(0, 19)) == 0 else {}
    spare = draw(st.sampled_from((0, 0, 0, 0, 1, 32)))
    return build(keys, infos, bytes(offset + spare), **counts)  # type: ignore[arg-type]


def check_gguf(file: GgufFile, data: bytes) -> None:
    """Keys encode to what was read; tensors tile the data within the file, as they say of it."""
    header = b"".join(key.encode() for key in file.keys)
    assert data[24:].startswith(header)
    for key in file.keys:
        assert key.type is not BOOL or key.raw in (b"\0", b"\1")
        assert key.head(3) is not None
    at = file.data_start
    for ref in sorted(file.tensors, key=lambda ref: ref.offset):
        assert at <= ref.offset < at + file.alignment
        assert ref.offset % file.alignment == 0
        known = TYPES_BY_ID.get(0 if ref.dtype == "F32" else -1)
        assert known is None or ref.nbytes == known.nbytes(ref.shape)
        at = ref.offset + ref.nbytes
    assert len(data) < at + file.alignment
    assert at <= len(data) or not file.tensors
    assert len({ref.name for ref in file.tensors}) == len(file.tensors)


@bounded
@given(data=files())
def test_gguf(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(data)
    try:
        file = read_gguf(path)
    except GgufMtpError:
        return
    check_gguf(file, data)


NUMBERS = st.integers(-2, 20) | st.sampled_from((1 << 62, 10**63, 1.5, True, None, "4", [4]))


@bounded
@given(
    sizes=st.lists(st.integers(0, 9), max_size=5),
    at=st.integers(0, 4),
    field=st.sampled_from(("none", "dtype", "shape", "data_offsets", "extra")),
    value=NUMBERS,
    spare=st.integers(-1, 1),
)
def test_safetensors(
    tmp_path: Path, sizes: list[int], at: int, field: str, value: Any, spare: int
) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for index, size in enumerate(sizes):
        offsets = [offset, offset + size]
        header[f"t{index}"] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
        offset += size
    broken = header.get(f"t{at}")
    if broken is not None and field != "none":
        broken[field] = [value] if field == "shape" else value
        if field == "data_offsets":
            broken[field] = [value, offset]
    data = safetensors_bytes(header, bytes(max(0, offset + spare)))
    path = tmp_path / "f.safetensors"
    path.write_bytes(data)
    try:
        file = read_safetensors(path)
    except FormatError:
        return
    ends = sorted((ref.offset, ref.offset + ref.nbytes) for ref in file.tensors)
    start = 8 + int.from_bytes(data[:8], "little")
    assert [begin for begin, _ in ends] == [start, *(end for _, end in ends)][: len(ends)]
    assert max((end for _, end in ends), default=start) == len(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**70) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@bounded
@given(value=st.dictionaries(st.text(max_size=5), JSON, max_size=4), cut=st.integers(0, 12))
def test_json_is_what_json_is(value: dict[str, Any], cut: int) -> None:
    """Accepted is what Python's reader makes of it; what it would take beyond JSON is not."""
    encoded = json.dumps(value).encode()
    encoded = encoded[: len(encoded) - cut] if cut < 4 else encoded
    try:
        found = parse_object(encoded, "f")
    except FormatError:
        found = None
    if found is not None:
        assert found == json.loads(encoded)
        assert b"NaN" not in encoded or '"' in encoded.decode()


@bounded
@given(name=st.text(max_size=6), first=JSON, second=JSON)
def test_a_key_twice_is_refused(name: str, first: Any, second: Any) -> None:
    key = json.dumps(name)
    encoded = f'{{"a":{{{key}:{json.dumps(first)},{key}:{json.dumps(second)}}}}}'
    with pytest.raises(FormatError):
        parse_object(encoded.encode(), "f")


@bounded
@given(
    weights=st.dictionaries(st.sampled_from(("t1", "t2", "t3")), st.text(max_size=20) | JSON)
    | st.fixed_dictionaries(
        {"t1": st.sampled_from(("one.safetensors", "two.safetensors"))},
        optional={"t2": st.sampled_from(("two.safetensors", "../two.safetensors", ".", "\ud800"))},
    )
)
def test_index(tmp_path: Path, weights: dict[str, Any]) -> None:
    for number, name in enumerate(("one", "two"), 1):
        header = {f"t{number}": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors_bytes(header, b"x"))
    (tmp_path / "config.json").write_text("{}")
    index = json.dumps({"weight_map": weights})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    try:
        found = read_checkpoint(tmp_path)
    except FormatError:
        return
    assert {ref.name: ref.file.name for ref in found.tensors} == weights


@bounded
@given(
    name=st.sampled_from(sorted(tiny.text_config(tiny.E2B))),
    value=NUMBERS | JSON,
)
def test_config(name: str, value: Any) -> None:
    values = tiny.text_config(tiny.E2B) | {name: value}
    try:
        config = read_text_config(values, "config.json", "gemma4_text")
    except GgufMtpError:
        return
    assert 1 <= config.n_layers <= 1024
    assert all(config.heads % config.layer_kv_heads(at) == 0 for at in range(config.n_layers))


@bounded
@given(
    token=st.sampled_from(("e", "<0x0A>", "<bos>", "zz")) | st.text(max_size=3),
    number=st.integers(-2, 600) | JSON,
    added=st.booleans(),
)
def test_tokenizer(tmp_path: Path, tiny_target: Path, token: str, number: Any, added: bool) -> None:
    found = tiny.tokenizer_json()
    if added:
        found["added_tokens"].append({"id": number, "content": token})
    else:
        found["model"]["vocab"][token] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    settings_of = (tiny_target / "tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(settings_of)
    try:
        keys = vocabulary(Checkpoint(tmp_path, {}, ()), tiny.VOCAB_SIZE)
    except GgufMtpError:
        return
    tokens = next(key for key in keys if key.name == "tokenizer.ggml.tokens").value
    assert len(tokens) == tiny.VOCAB_SIZE
    assert tokens[number] == token


@bounded
@given(front=st.text("-:[]{}&*!|>'\"#%@ \n\tab1", max_size=60))
def test_model_card(tmp_path: Path, front: str) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(f"---\n{front}\n---\n".encode())
    try:
        card = read_card(path)
    except FormatError:
        return
    assert isinstance(card, dict)
