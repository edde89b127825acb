"""One regression for each vulnerability the field has had in what this project also does.

Each says what the bug was and what keeps it out here. Sources: the advisories under these numbers.
"""

import os
import struct
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

import tiny
from gguf_bytes import ARCH, STRING, U32, Info, array, build, pair, text, u32
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.errors import FormatError, GgufMtpError
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.sentencepiece_model import read_pieces
from hostile.gguf import parts_of
from hostile.packages import Bytes, graph, put_input
from litert_fixtures import fixture

F32, F64 = 0, 28
WRAP = 1 << 64
TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch RENDERED') }}"
# A piece of 4 GiB in a SentencePiece model of 6 bytes.
CRAFTED_PIECES = b"\x0a\xff\xff\xff\xff\x0f"
REQUIREMENTS = Path(__file__).resolve().parent.parent / "tools" / "requirements-fixture.txt"


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "f.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    return str(caught.value)


def test_cve_2025_53630(tmp_path: Path) -> None:
    """llama.cpp added up padded tensor sizes in 64 bits: a sum that wraps made a buffer too small
    for what was read into it. Here sizes are Python's integers, and each tensor must end within
    the file before anything is read."""
    sizes = (1 << 62, (1 << 62) + 8)
    assert sum(4 * size for size in sizes) % WRAP == 32
    infos = [Info(name, (size,), F32, 0) for name, size in zip((b"a", b"b"), sizes, strict=True)]
    message = refusal(tmp_path, build((ARCH,), infos, bytes(32)))
    assert f"tensor a ends at {WRAP + 160}" in message
    assert message.endswith("the file at 192: truncated")


def test_cve_2026_27940(tmp_path: Path) -> None:
    """The check for CVE-2025-53630 left out what llama.cpp adds for its own bookkeeping, which
    wrapped instead. Nothing is added to a size here before it is compared with the file."""
    elements = (WRAP - 32) // 4
    message = refusal(tmp_path, build((ARCH,), [Info(b"a", (elements,), F32, 0)], bytes(32)))
    assert f"tensor a ends at {WRAP - 32 + 128}" in message
    assert message.endswith("truncated")


def test_cve_2026_33298(tmp_path: Path) -> None:
    """``ggml_nbytes`` wrapped for crafted dimensions: exabytes of values behind 4 MiB of memory."""
    elements = (1 << 61) + (1 << 19)
    assert elements * 8 % WRAP == 4 << 20
    message = refusal(tmp_path, build((ARCH,), [Info(b"a", (elements,), F64, 0)], bytes(4 << 20)))
    assert f"tensor a ends at {WRAP + (4 << 20) + 128}" in message
    data = build((ARCH,), [Info(b"a", (1 << 32, 1 << 31), F64, 0)], bytes(64))
    assert "expected 1 to 2^63-1 elements" in refusal(tmp_path, data)


def test_cve_2026_7482(tmp_path: Path) -> None:
    """Ollama believed a tensor's offset and size, and quantized what lay behind the file in its
    memory. Here the range must lie within the file, at the header and again at each read."""
    base = tiny_base(tmp_path)
    parts = parts_of(base)
    last = parts.infos[-1]
    longer = Info(last.name, (last.dims[0] * 4, *last.dims[1:]), last.kind, last.offset)
    base.write_bytes(build(parts.pairs, (*parts.infos[:-1], longer), parts.data))
    heads = tmp_path / "h.gguf"
    with pytest.raises(FormatError, match=r"ends at .*: truncated"):
        convert(base, heads, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def tiny_base(tmp_path: Path) -> Path:
    """The base of a small pair as GGUF, with the heads beside it."""
    merged = tmp_path / "m.gguf"
    convert(tiny.write_target(tmp_path / "t"), tiny.write_drafter(tmp_path / "d"), merged)
    split(merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    return tmp_path / "b.gguf"


def test_cve_2025_0317(tmp_path: Path) -> None:
    """Ollama divided by ``general.alignment``. It must be a power of two from 8 on here."""
    for value in (0, 3, 1 << 31):
        data = build(
            (ARCH, u32(b"general.alignment", value)), [Info(b"a", (8,), F32, 0)], bytes(32)
        )
        assert f"general.alignment is {value}, expected a power of two" in refusal(tmp_path, data)


def test_cve_2024_8063(tmp_path: Path) -> None:
    """Ollama took ``block_count`` of any type for a number, got 0 and divided by it. Types are
    checked before values here, and 0 is no layer count."""
    base = tiny_base(tmp_path)
    parts = parts_of(base)
    name = b"gemma4.block_count"
    kept = tuple(raw for raw in parts.pairs if name not in raw)
    assert len(kept) == len(parts.pairs) - 1
    for other, shown in (
        (pair(name, STRING, text(b"5")), "STRING 5"),
        (pair(name, 6, struct.pack("<f", 5.0)), "FLOAT32 5.0"),
        (array(name, U32, 1, struct.pack("<I", 5)), r"ARRAY \[5\]"),
        (u32(name, 0), "UINT32 0"),
    ):
        base.write_bytes(build((*kept, other), parts.infos, parts.data))
        with pytest.raises(FormatError, match=f"block_count is {shown}, expected an integer from"):
            plan_convert(base, tmp_path / "h.gguf")


def test_cve_2026_1260(tmp_path: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sentencepiece before 0.2.1 read past what a crafted model file gave it. A later version is
    required, the bounds of the pieces are checked before it gets them, and a checkpoint's
    ``tokenizer.model`` is not opened."""
    (needed,) = (line for line in requires("gguf-mtp") or [] if "sentencepiece" in line)
    (pinned,) = (line for line in REQUIREMENTS.read_text().splitlines() if "sentencepiece" in line)
    for version in (needed.split(">=")[1], pinned.split("==")[1].split()[0]):
        assert tuple(map(int, version.split("."))) >= (0, 2, 1)
    given: list[bytes] = []
    monkeypatch.setattr(
        sentencepiece, "SentencePieceProcessor", lambda model_proto: given.append(model_proto)
    )
    with pytest.raises(FormatError, match=r"h\.spiece: .* past the end, 6, at byte 1"):
        read_pieces(CRAFTED_PIECES, "h.spiece")
    assert given == []
    target = tiny.write_target(tmp_path / "t")
    (target / "tokenizer.model").write_bytes(CRAFTED_PIECES)
    opened: list[str] = []
    real = os.open

    def recording(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(os.path.basename(os.fspath(path)))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", recording)
    convert(target, tiny_drafter, tmp_path / "m.gguf")
    assert "tokenizer.json" in opened
    assert "tokenizer.model" not in opened


# Any import of jinja2 ends the process, with what it is that was rendered.
TRAP = "import sys\nsys.exit('jinja2 was imported')\n"


def run_with_trap(tmp_path: Path, *lines: list[object]) -> None:
    """The command lines in a process in which jinja2 must not be imported."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "jinja2.py").write_text(TRAP)
    environ = os.environ | {"PYTHONPATH": str(trap)}
    check = subprocess.run(
        [sys.executable, "-c", "import jinja2"], env=environ, capture_output=True
    )
    assert check.returncode == 1
    for line in lines:
        command = [sys.executable, "-m", "gguf_mtp.cli.main", *map(str, line)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "RENDERED").exists()


def template_in(path: Path) -> str:
    return str(read_gguf(path).by_name["tokenizer.chat_template"].value)


def test_cve_2024_34359(tmp_path: Path, tiny_drafter: Path) -> None:
    """llama-cpp-python rendered a model's chat template with jinja2 outside of a sandbox: code out
    of a file. Templates are text here, copied byte for byte, and jinja2 is never imported."""
    target = tiny.write_target(tmp_path / "t")
    (target / "chat_template.jinja").write_text(TEMPLATE)
    out = tmp_path / "m.gguf"
    run_with_trap(tmp_path, ["convert", "--base", target, "--heads", tiny_drafter, "-o", out, "-q"])
    assert template_in(out) == TEMPLATE


def test_cve_2026_5760(tmp_path: Path) -> None:
    """SGLang rendered the template that it found in a GGUF. A GGUF's goes through every verb here
    as the bytes it is."""
    base = tiny_base(tmp_path)
    parts = parts_of(base)
    kept = tuple(raw for raw in parts.pairs if b"tokenizer.chat_template" not in raw)
    hostile = pair(b"tokenizer.chat_template", STRING, text(TEMPLATE.encode()))
    base.write_bytes(build((*kept, hostile), parts.infos, parts.data))
    heads, out, again = (tmp_path / f"{name}.gguf" for name in ("h", "out", "again"))
    run_with_trap(
        tmp_path,
        ["inspect", base],
        ["convert", "--base", base, "--heads", heads, "-o", out, "-q"],
        ["inspect", out, "--json"],
        ["split", out, "--base-out", again, "-q"],
        ["attach", again, "--heads", heads, "--in-place", "-q"],
        ["detach", again, "-q"],
    )
    assert template_in(out) == template_in(again) == TEMPLATE
    assert again.read_bytes() == base.read_bytes()


def test_cve_2020_15211(tmp_path: Path) -> None:
    """TFLite took -1, which stands for "no tensor", for an index wherever a tensor was needed. In
    Python it would silently be the last one. Here -1 is only for inputs that may be left out, and
    what is left out is never read."""
    good = fixture("mixed").read_bytes()
    path = tmp_path / "p.litertlm"

    def outcome(raw: Bytes) -> dict[str, int] | str:
        """Which tensor each weight is, or what is wrong."""
        path.write_bytes(raw)
        try:
            found = read_drafter(path, ignore_names=True).weights
        except GgufMtpError as error:
            return str(error)
        return {name: weight.tensor.index for name, weight in found.items()}

    sound = outcome(Bytes(good))
    assert len(sound) == 34
    raw = Bytes(good)
    put_input(-1, 2)(raw)
    assert "tensor in outputs -1 is out of range" in outcome(raw)
    first = graph(Bytes(good))
    count = first.number(first.target(3))
    refused = 0
    for index in range(0, count, 5):
        raw = Bytes(good)
        operator = graph(raw).item(3, index)
        operator.put(operator.target(1) + 4, -1, "<i")
        found = outcome(raw)
        # A step that no weight depends on may lack its input; no weight becomes another one.
        assert isinstance(found, str) or found == sound, index
        refused += isinstance(found, str)
    assert refused > count // 5 // 2
