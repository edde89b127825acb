"""Loose safetensors that hold a drafter: taken out of a LiteRT container, or saved without their
configuration, under the names of Hugging Face, of LiteRT, or of a port's modules.

What no file states comes from shapes and from the base (see `infer`). Source of the names: this
project's notes on LiteRT; transformers 5.22 ``models/gemma4_assistant``; the module names of public
ports to PyTorch and Core ML that load Google's packages.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from gguf_mtp.drafters.dialects import POST, PRE, TOP_K
from gguf_mtp.drafters.drafter import ARCH, Drafter, drafter_from_half
from gguf_mtp.drafters.infer import complete
from gguf_mtp.drafters.ordered_head import CENTROIDS, ORDERING, read_int64
from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.config import FULL, SLIDING, check_rotation
from gguf_mtp.gemma4.family import check_settings, other_drafter
from gguf_mtp.gemma4.keys import FILE_TYPES, quantization_version
from gguf_mtp.gemma4.outtype import check_float, heads_outtype, stored_type
from gguf_mtp.gemma4.tensors import refuse_other_layouts
from gguf_mtp.ggml import F32, I32, GgmlType
from gguf_mtp.keyvalue import KeyValue, ValueType, array, f32, string, u32
from gguf_mtp.model import Half, Tensor
from gguf_mtp.namespace import TOKENIZER
from gguf_mtp.readers.safetensors import read_safetensors
from gguf_mtp.readers.source import SourceFile, TensorRef, name_as_text
from gguf_mtp.readers.strict_json import read_object

EMBEDDING = "token_embd.weight"
SCALAR = "layer_scalar"
COMPARED_BYTES = 1 << 20
MAX_NAME = 512
GIVE_SOURCE = (
    "give --heads the .tflite or .litertlm package itself, or what gguf-mtp extract makes of it"
)
# Containers that a name may be wrapped in.
WRAPPERS = re.compile(
    r"^(?:model\.|mtp\.|mtp_drafter\.|drafter\.|assistant\.|language_model\.|decode\.)*"
)
# Upstream's names -> what extractions call them within their containers, `.weight` aside.
MODULES = {
    EMBEDDING: ("embed_tokens", "lm_head", "logits_head"),
    "output_norm.weight": ("norm", "final_norm", "mtp_final_norm"),
    PRE: ("pre_projection", "pre_project", "pre_proj", "mtp_pre_project", "mtp_pre_proj"),
    POST: ("post_projection", "post_project", "post_proj", "mtp_post_project", "mtp_post_proj"),
    CENTROIDS: ("masked_embedding.centroids",),
    ORDERING: ("masked_embedding.token_ordering",),
}
# The same for each layer, the part after its number.
LAYER_MODULES = {
    "attn_norm.weight": ("input_layernorm", "pre_attention_norm", "pre_attn_norm"),
    "attn_q.weight": ("q_proj", "q"),
    "attn_q_norm.weight": ("q_norm", "query_norm"),
    "attn_output.weight": ("o_proj", "o"),
    "post_attention_norm.weight": (
        "post_attention_layernorm",
        "post_attention_norm",
        "post_attn_norm",
    ),
    "ffn_norm.weight": ("pre_feedforward_layernorm", "pre_ffw_norm"),
    "ffn_gate.weight": ("gate_proj", "gate1", "gating1"),
    "ffn_up.weight": ("up_proj", "gate2", "gating2"),
    "ffn_down.weight": ("down_proj", "down"),
    "post_ffw_norm.weight": ("post_feedforward_layernorm", "post_ffw_norm"),
    "layer_output_scale.weight": ("layer_scalar", "skip_scale"),
    # No drafter has these; `drafter` says so.
    "attn_k.weight": ("k_proj", "k"),
    "attn_v.weight": ("v_proj", "v"),
}
LAYER = re.compile(r"(?:layers?|blocks?)[._](\d{1,4})\.(?:(?:self_attn|attention|attn|mlp)\.)?(.+)")
NAMES = {module: name for name, modules in MODULES.items() for module in modules}
LAYER_NAMES = {module: name for name, modules in LAYER_MODULES.items() for module in modules}
# What LiteRT's converter calls constants that have no name: their numbers change with the model.
RAW_CONSTANT = re.compile(r"(?:^|/)(?:jax2tf_arg_\d+|arith\.constant\d*)(?:$|[/;])")
# Quantized matrices: types of their codes, and how tensors of codes and of scales are called.
CODE_TYPES = ("I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2")
CODES = ".codes"
SCALES = (".scale", "_scale", ".scales", "_scales")
# LiteRT's names are paths that contain one of these; the first that fits decides.
LITERT_NAMES = (
    (r"mtp_pre_proj", PRE),
    (r"mtp_post_proj", POST),
    (r"decode_softmax|embedder\.decode", EMBEDDING),
    (r"final_norm", "output_norm.weight"),
    (r"layer_(\d{1,4})\b.*\bq_einsum", "blk.{}.attn_q.weight"),
    (r"layer_(\d{1,4})\b.*\battn_vec_einsum", "blk.{}.attn_output.weight"),
    (r"layer_(\d{1,4})\b.*\bgating_einsum1", "blk.{}.ffn_gate.weight"),
    (r"layer_(\d{1,4})\b.*\bgating_einsum2", "blk.{}.ffn_up.weight"),
    (r"layer_(\d{1,4})\b.*\bmlp\W+linear", "blk.{}.ffn_down.weight"),
    (r"layer_(\d{1,4})\b.*pre_attention_norm", "blk.{}.attn_norm.weight"),
    (r"layer_(\d{1,4})\b.*post_attention_norm", "blk.{}.post_attention_norm.weight"),
    (r"layer_(\d{1,4})\b.*pre_ffw_norm", "blk.{}.ffn_norm.weight"),
    (r"layer_(\d{1,4})\b.*post_ffw_norm", "blk.{}.post_ffw_norm.weight"),
    (r"layer_(\d{1,4})\b.*(?:query_norm|q_norm)", "blk.{}.attn_q_norm.weight"),
    (r"layer_(\d{1,4})\b.*layer_scal", "blk.{}.layer_output_scale.weight"),
)


@dataclass(frozen=True)
class Extraction:
    """A drafter, and the keys and tensors of it that no file stated."""

    drafter: Drafter
    inferred: tuple[str, ...]


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins with `start` may be safetensors, which have no magic number."""
    return start[8:9] == b"{"


def is_extraction(path: Path, start: bytes) -> bool:
    """Whether `path`, a file that begins with `start` or a directory, is one.

    A directory whose configuration names an architecture is a checkpoint, unless its tensors lack
    what every checkpoint of Google's has and no container: the scalar of each layer.
    """
    if not path.is_dir():
        return is_safetensors(start)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        return False
    config = path / "config.json"
    stated = read_object(config) if config.exists() else {}
    if other_drafter(stated):
        return False
    if not stated.get("architectures"):
        return True
    names = (ref.name for file in files for ref in read_safetensors(file).tensors)
    return not any(name.endswith(SCALAR) for name in names)


def read_extraction(path: Path, base: Half, heads_type: str | None) -> Extraction:
    """The drafter in the safetensors `path`, a file or a directory of them, for `base`.

    Raises FormatError and UnsupportedError, naming file and tensor.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    refs = _named(files)
    shared = _share_query_norms(refs)
    number = heads_outtype(heads_type or "auto")
    keys = [
        string("general.architecture", ARCH),
        string("general.type", "model"),
        string("general.name", Path(name_as_text(path.absolute())).stem),
        u32("general.file_type", FILE_TYPES[number]),
        quantization_version(),
        *_stated(path if path.is_dir() else path.parent, CENTROIDS in refs),
    ]
    tensors = [_tensor(name, ref, number) for name, ref in refs.items()]
    kind = "extraction"
    if not any(name.endswith("layer_output_scale.weight") for name in refs):
        # Seen in no container so far, in every checkpoint of Google's.
        kind = "litert-extraction"
    half = Half(str(path), kind, tuple(keys), tuple(tensors), tuple(files))
    half, added = complete(half, base)
    tokenizer = (key for key in base.keys if key.name.startswith(TOKENIZER))
    half = replace(half, keys=(*half.keys, *tokenizer))
    return Extraction(drafter_from_half(half), (*shared, *added))


def _named(files: list[Path]) -> dict[str, TensorRef]:
    """The tensors of `files` by upstream's names."""
    refs = [ref for file in files for ref in read_safetensors(file).tensors]
    _refuse_codes(refs)
    found: dict[str, TensorRef] = {}
    for ref in refs:
        name = upstream_name(ref.name)
        if name is None:
            raise _unknown(ref)
        if name != ORDERING:
            check_float(ref)
        other = found.setdefault(name, ref)
        if other is not ref and not _same(other, ref):
            raise FormatError(
                f"{ref.file}: tensors {other.name!a} and {ref.name!a} both are {name}, and differ"
            )
    return found


def _refuse_codes(refs: list[TensorRef]) -> None:
    """Raise UnsupportedError for codes of a quantized matrix: files do not state how they are
    packed, so that what they stand for would be a guess."""
    names = {ref.name for ref in refs}
    # Not MLX's, which are called the same: what `extract --native` writes.
    native = {f"{name.removesuffix(CODES)}.scales" for name in names if name.endswith(CODES)}
    refuse_other_layouts(ref for ref in refs if ref.name not in native)
    for ref in refs:
        if ref.dtype not in CODE_TYPES or upstream_name(ref.name) == ORDERING:
            continue
        stem = ref.name.removesuffix(".weight").removesuffix(CODES)
        scales = [f"{start}{end}" for start in (ref.name, stem) for end in SCALES]
        scale = next((name for name in scales if name in names), None)
        where = f"its scales are in {scale!a}" if scale else "its scales are not in the file"
        raise UnsupportedError(
            f"{ref.file}: tensor {ref.name!a} has dtype {ref.dtype}, codes of a quantized matrix "
            f"({where}), and how they are packed is not stated; expected F32, F16 or BF16: "
            f"{GIVE_SOURCE}"
        )


def _unknown(ref: TensorRef) -> UnsupportedError:
    if is_raw_constant(ref.name):
        return UnsupportedError(
            f"{ref.file}: tensor {ref.name!a} is a numbered constant of a LiteRT graph, and which "
            f"weight it is can be told from the graph only: {GIVE_SOURCE}"
        )
    return UnsupportedError(
        f"{ref.file}: tensor {ref.name!a} is not known in a drafter, by the names of Hugging Face, "
        f"of LiteRT or of the ports that are known (docs/litert.md)"
    )


def is_raw_constant(name: str) -> bool:
    """Whether `name` is one that LiteRT's converter gave to a constant without a name."""
    return upstream_name(name) is None and RAW_CONSTANT.search(name) is not None


def upstream_name(name: str) -> str | None:
    """Upstream's name for a tensor of an extraction, None where it is not known."""
    if len(name) > MAX_NAME:
        return None
    stem = WRAPPERS.sub("", name, count=1).removesuffix(".weight")
    if stem in NAMES:
        return NAMES[stem]
    layer = LAYER.fullmatch(stem)
    if layer is not None and layer[2] in LAYER_NAMES:
        return f"blk.{int(layer[1])}.{LAYER_NAMES[layer[2]]}"
    for pattern, target in LITERT_NAMES:
        match = re.search(pattern, name)
        if match is not None:
            return target.format(*(int(group) for group in match.groups()))
    return None


def _same(first: TensorRef, second: TensorRef) -> bool:
    """Whether two tensors are one: a head and the embedding it is tied to are often both stored."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with SourceFile(first.file) as one, SourceFile(second.file) as other:
        for at in range(0, first.nbytes, COMPARED_BYTES):
            step = min(COMPARED_BYTES, first.nbytes - at)
            if one.read(first.offset + at, step) != other.read(second.offset + at, step):
                return False
    return True


def _share_query_norms(refs: dict[str, TensorRef]) -> list[str]:
    """Give layers without a query norm that of a layer with as many query rows; their names.

    Containers store a constant that several layers share only once.
    """
    norms = _by_layer(refs, "attn_q_norm.weight")
    rows = {layer: ref.shape[:1] for layer, ref in _by_layer(refs, "attn_q.weight").items()}
    added = []
    for layer, count in rows.items():
        like = [other for other in sorted(norms) if rows.get(other) == count]
        if layer not in norms and like:
            name = f"blk.{layer}.attn_q_norm.weight"
            refs[name] = norms[like[0]]
            added.append(name)
    return added


def _by_layer(refs: dict[str, TensorRef], suffix: str) -> dict[int, TensorRef]:
    pattern = re.compile(rf"blk\.(\d+)\.{re.escape(suffix)}")
    matches = ((pattern.fullmatch(name), ref) for name, ref in refs.items())
    return {int(match[1]): ref for match, ref in matches if match}


def _tensor(name: str, ref: TensorRef, number: GgmlType) -> Tensor:
    if name == ORDERING:
        encoded = read_int64(ref).astype("<i4").tobytes()
        return Tensor(name, I32, ref.shape, encoded, verbatim=True)
    shape = ref.shape
    if name.endswith(("_norm.weight", "_scale.weight")):
        # Containers keep vectors as [1, 1, n], and a scalar may have no dimension at all.
        shape = (prod(shape),)
    if name == CENTROIDS:
        return Tensor(name, F32 if number.block_values > 1 else number, shape, ref)
    return Tensor(name, stored_type(name, shape, number), shape, ref)


def _pattern(name: str, value: Any) -> KeyValue | None:
    if not isinstance(value, list) or any(item not in (SLIDING, FULL) for item in value):
        return None
    return array(name, ValueType.BOOL, [item == SLIDING for item in value])


def _size(name: str, value: Any) -> KeyValue | None:
    return u32(name, value) if type(value) is int and 0 < value < 1 << 31 else None


def _number(name: str, value: Any) -> KeyValue | None:
    return f32(name, value) if type(value) in (int, float) and 0 < value < 1e30 else None


Maker = Callable[[str, Any], KeyValue | None]
# What a configuration beside the tensors may state, where in it, and as which of upstream's keys.
STATED: tuple[tuple[str, str, Maker], ...] = (
    ("max_position_embeddings", "context_length", _size),
    (f"rope_parameters.{FULL}.rope_theta", "rope.freq_base", _number),
    (f"rope_parameters.{SLIDING}.rope_theta", "rope.freq_base_swa", _number),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon", _number),
    ("sliding_window", "attention.sliding_window", _size),
    ("layer_types", "attention.sliding_window_pattern", _pattern),
)


def _stated(directory: Path, ordered: bool) -> list[KeyValue]:
    """The keys that a config.json in `directory` gives, none where there is no such file."""
    path = directory / "config.json"
    if not path.exists():
        return []
    config = read_object(path)
    text = config.get("text_config", config)
    check_settings(config, str(path))
    if isinstance(text, dict):
        check_settings(text, str(path))
        check_rotation(text, str(path))
    rows = [(text, row) for row in STATED]
    if ordered:
        rows.append((config, ("centroid_intermediate_top_k", TOP_K, _size)))
    keys = []
    for values, (where, name, make) in rows:
        value = values
        for part in where.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            continue
        key = make(f"{ARCH}.{name}", value)
        if key is None:
            raise FormatError(f"{path}: {where} is {brief(value)}, which no drafter has")
        keys.append(key)
    return keys
