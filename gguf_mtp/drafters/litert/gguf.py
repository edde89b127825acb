"""A package's drafter as a `gemma4-assistant` model, its codes kept where ggml can hold them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gguf_mtp.drafters.drafter import ARCH, Drafter, drafter_from_half
from gguf_mtp.drafters.litert.blocks import carry, refusal
from gguf_mtp.drafters.litert.package import LitertDrafter, provenance, read_drafter, remarks
from gguf_mtp.drafters.litert.settings import Fallback, configuration
from gguf_mtp.drafters.litert.weights import Weight
from gguf_mtp.encode import Encoder
from gguf_mtp.errors import PairingError
from gguf_mtp.gemma4.config import Rope, TextConfig, read_text_config
from gguf_mtp.gemma4.keys import ROPE_FREQS, hyperparameters, quantization_version, rope_freqs
from gguf_mtp.gemma4.outtype import NATIVE, heads_outtype, stored_type
from gguf_mtp.gemma4.tensors import BLOCK_HF_NAMES
from gguf_mtp.ggml import F32, GgmlType
from gguf_mtp.keyvalue import KeyValue, boolean, f32, string, strings, u32
from gguf_mtp.model import Half, Tensor, read_tensor
from gguf_mtp.notes import Note
from gguf_mtp.provenance import SOURCE
from gguf_mtp.readers.source import SourceFile

NAMESPACE = f"{SOURCE}litert."
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "pre_projection": "nextn.pre_projection",
    "post_projection": "nextn.post_projection",
}
STANDSTILL = 1e30


@dataclass(frozen=True)
class Converted:
    """A drafter as a model, the facts about its source, and remarks for the user."""

    drafter: Drafter
    facts: tuple[KeyValue, ...]
    notes: tuple[Note, ...]


def drafter_from_litertlm(path: Path, base: Half, heads_type: str | None) -> Converted:
    """The drafter of the package at `path` for `base`, whose settings stand in for what the package
    does not tell. `heads_type`: ``auto`` and ``native`` carry integer codes, others convert.

    Raises FormatError, UnsupportedError, and PairingError where the vocabularies differ in size.
    """
    drafter = read_drafter(path)
    tokens = base.by_name.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.count != drafter.findings.vocab_size:
        raise PairingError(
            f"vocabulary size: expected {tokens.count} (base {base.origin}), "
            f"found {drafter.findings.vocab_size} (heads {path})"
        )
    values = configuration(drafter, _settings_of(base))["text_config"]
    config = read_text_config(values, f"{path}: drafter", "gemma4_text")
    matrices = _Matrices(path, heads_type or "auto")
    tensors = [rope_freqs(config)]
    with SourceFile(path) as source:
        tensors += (matrices.tensor(source, *item) for item in drafter.weights.items())
    for layer, scalar in enumerate(drafter.layer_scalars()):
        data = np.array([scalar], "<f4").tobytes()
        tensors.append(_literal(f"blk.{layer}.layer_output_scale.weight", F32, (1,), data))
    keys = _keys(path, base, config, drafter, tensors)
    half = Half(str(path), "litertlm", tuple(keys), tuple(tensors), (path,))
    facts = [_fact(name, value) for name, value in provenance(drafter).items()]
    if matrices.carried:
        facts.append(f32(f"{NAMESPACE}worst_scale_error", matrices.worst))
    notes = (*matrices.notes(), *remarks(drafter))
    return Converted(drafter_from_half(half), tuple(facts), notes)


class _Matrices:
    """Weights into tensors, and the account of what was carried over as it is."""

    def __init__(self, path: Path, heads_type: str) -> None:
        self.path = path
        self.native = heads_type in ("auto", NATIVE)
        # Floats have no grid of their own to keep: they are stored as in any drafter.
        self.floats = F32 if heads_type == NATIVE else heads_outtype(heads_type)
        self.carried: Counter[str] = Counter()
        self.worst = 0.0
        self.refused: list[str] = []

    def tensor(self, source: SourceFile, name: str, weight: Weight) -> Tensor:
        shown = gguf_name(name)
        number = self.floats
        if self.native and weight.is_integer:
            reason = refusal(weight)
            if reason is None:
                matrix = carry(source, name, weight)
                self.carried[f"{weight.tensor.dtype} as {matrix.type.name}"] += 1
                self.worst = max(self.worst, matrix.scale_error)
                return _literal(shown, matrix.type, weight.shape, matrix.data)
            self.refused.append(f"{name} is stored as F32: {reason}")
            number = F32
        stored = stored_type(shown, weight.shape, number)
        return _literal(shown, stored, weight.shape, _encoded(source, weight, stored))

    def notes(self) -> list[Note]:
        notes = [Note("litert-not-carried", message) for message in self.refused]
        if not self.carried:
            return notes
        listed = ", ".join(f"{count} {kind}" for kind, count in self.carried.items())
        proof = (
            f"codes carried unchanged and compared: {listed}; "
            f"worst relative error of a scale {self.worst:.1e}"
        )
        return [Note("litert-codes", proof), *notes]


def gguf_name(name: str) -> str:
    """The GGUF name of the weight that Hugging Face calls `name` + ``.weight``."""
    if name in NAMES:
        return f"{NAMES[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    suffixes = {hf_name: suffix for suffix, hf_name in BLOCK_HF_NAMES.items()}
    return f"blk.{layer}.{suffixes[f'{rest}.weight']}"


def _literal(name: str, number: GgmlType, shape: tuple[int, ...], data: bytes) -> Tensor:
    return Tensor(name, number, shape, data, verbatim=True)


def _encoded(source: SourceFile, weight: Weight, number: GgmlType) -> bytes:
    parts = []
    for values in weight.values(source):
        raw = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
        parts.append(Encoder(values.size).encode(raw, "F32", number).tobytes())
    return b"".join(parts)


def _settings_of(base: Half) -> Fallback:
    """What a drafter shares with the base it was trained for."""

    def value(name: str, default: Any) -> Any:
        found = base.value(f"gemma4.{name}")
        return default if found is None else found

    own = Fallback()
    frequencies = base.tensor_by_name.get(ROPE_FREQS)
    share = own.full_rope.rotated
    if frequencies is not None:
        divisors = np.frombuffer(read_tensor(frequencies), "<f4")
        share = float(np.count_nonzero(divisors < STANDSTILL / 2) / len(divisors))
    return Fallback(
        context_length=int(value("context_length", own.context_length)),
        window=int(value("attention.sliding_window", own.window)),
        sliding_rope=Rope(float(value("rope.freq_base_swa", own.sliding_rope.theta)), 1.0),
        full_rope=Rope(float(value("rope.freq_base", own.full_rope.theta)), share),
    )


def _keys(
    path: Path, base: Half, config: TextConfig, drafter: LitertDrafter, tensors: list[Tensor]
) -> list[KeyValue]:
    by_bytes: Counter[GgmlType] = Counter()
    for tensor in tensors:
        by_bytes[tensor.type] += tensor.nbytes
    parameters = sum(weight.tensor.elements for weight in drafter.weights.values())
    return [
        string("general.architecture", ARCH),
        string("general.type", "model"),
        string("general.name", f"{path.stem} MTP drafter"),
        string("general.size_label", gguf.size_label(parameters, parameters, 0, 0)),
        *hyperparameters(config, ARCH, by_bytes.most_common(1)[0][0]),
        u32(f"{ARCH}.embedding_length_out", drafter.findings.backbone),
        u32(f"{ARCH}.nextn_predict_layers", config.n_layers),
        quantization_version(),
        *(key for key in base.keys if key.name.startswith("tokenizer.")),
    ]


def _fact(name: str, value: Any) -> KeyValue:
    key = NAMESPACE + name
    if isinstance(value, list):
        return strings(key, value)
    if isinstance(value, bool):
        return boolean(key, value)
    if isinstance(value, int):
        return u32(key, value)
    return f32(key, value) if isinstance(value, float) else string(key, value)
