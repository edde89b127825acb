"""Which number type a tensor is stored in.

Source: llama.cpp ``conversion/base.py``, ``prepare_tensors``.
"""

from collections.abc import Iterable

from gguf_mtp.errors import UnsupportedError
from gguf_mtp.ggml import F16, F32, Q8_0, TYPES, GgmlType
from gguf_mtp.readers.source import TensorRef

# What this package encodes itself …
ENCODED = ("f32", "f16", "bf16", "q8_0", "q4_0", "auto")
# … and what libllama's quantizer makes, which mixes types; by their names in ``llama_ftype``.
K_QUANTS = (
    "q2_k",
    "q3_k_s",
    "q3_k_m",
    "q3_k_l",
    "q4_k_s",
    "q4_k_m",
    "q5_k_s",
    "q5_k_m",
    "q6_k",
)
OUTTYPES = ENCODED + K_QUANTS
NATIVE = "native"
HEADS_TYPES = (*ENCODED, NATIVE)
ALWAYS_F32 = ("_norm.weight", ".ffn_gate_inp.weight")
FLOATS = ("F32", "F16", "BF16")


def base_outtype(name: str, refs: Iterable[TensorRef]) -> GgmlType:
    """The type `name` stands for; ``auto`` keeps 16-bit floats as the first matrix has them."""
    if name != "auto":
        return TYPES[name.upper()]
    for ref in refs:
        if len(ref.shape) >= 2 and ref.dtype in ("BF16", "F16"):
            return TYPES[ref.dtype]
    return F16


def heads_outtype(name: str) -> GgmlType:
    """The type `name` stands for in a drafter of floats, whose ``auto`` is Q8_0.

    Raises UnsupportedError for ``native``: only a source of integer codes has a grid to keep.
    """
    if name == NATIVE:
        raise UnsupportedError(
            "--heads-type native keeps a source's own integer grid, and these heads are floats; "
            f"choose one of {', '.join(ENCODED)}"
        )
    return Q8_0 if name == "auto" else TYPES[name.upper()]


def stored_type(name: str, shape: tuple[int, ...], outtype: GgmlType) -> GgmlType:
    """The type of tensor `name` in a file of `outtype`: vectors, norms, routers and anything that
    is not a weight stay F32; rows that are not whole blocks of `outtype` fall back to F16."""
    if len(shape) <= 1 or name.endswith(ALWAYS_F32) or not name.endswith(".weight"):
        return F32
    return outtype if outtype.fits(shape) else F16


def check_float(ref: TensorRef) -> None:
    """Raise UnsupportedError unless `ref` holds floats that can be converted."""
    if ref.dtype not in FLOATS:
        raise UnsupportedError(
            f"{ref.file}: tensor {ref.name} has dtype {ref.dtype}, expected one of {FLOATS}; use "
            "the checkpoint before quantization, or a quantized GGUF of it"
        )
