"""A package's drafter beside a public checkpoint of one: what each has, and how near they are.

Integer weights are compared on their grid: a checkpoint whose values all lie within half a step of
the package's codes is one that the codes may have been rounded from.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.drafters.litert.package import LitertDrafter, read_drafter, remarks
from gguf_mtp.drafters.litert.settings import configuration
from gguf_mtp.drafters.litert.weights import Floats, Weight
from gguf_mtp.errors import FormatError, brief
from gguf_mtp.gemma4.config import read_text_config
from gguf_mtp.gemma4.outtype import check_float
from gguf_mtp.readers.checkpoint import Checkpoint, read_checkpoint
from gguf_mtp.readers.source import SourceFile, TensorRef

EQUAL, ON_GRID, DIFFERENT = "equal", "same grid", "different"
ONLY_PACKAGE, ONLY_CHECKPOINT = "only in the package", "only in the checkpoint"
SAME = (EQUAL, ON_GRID)
# What a checkpoint's own number type has rounded off, relative to a value.
ROUNDING = {"BF16": 2.0**-9, "F16": 2.0**-12, "F32": 2.0**-25}
SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "heads",
    "kv_heads",
    "head_dim",
    "full_head_dim",
    "sliding_window",
    "rms_norm_eps",
    "sliding_rope",
    "full_rope",
)


@dataclass(frozen=True)
class Role:
    """One tensor on both sides. `max_rel_error` is the largest error by the checkpoint's largest
    value; `steps`, for integers, the largest distance from the codes in units of their scale."""

    name: str
    verdict: str
    package: str | None
    checkpoint: str | None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    steps: float | None = None


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter that the two sides state differently."""

    name: str
    package: str
    checkpoint: str


@dataclass(frozen=True)
class Audit:
    roles: tuple[Role, ...]
    settings: tuple[Setting, ...]
    remarks: tuple[str, ...]

    @property
    def same(self) -> bool:
        return not self.settings and all(role.verdict in SAME for role in self.roles)

    def document(self) -> dict[str, Any]:
        return {"same": self.same, **asdict(self)}


def audit(package: Path, directory: Path) -> Audit:
    """Compare the drafter of `package` with the checkpoint in `directory`, role by role.

    Raises FormatError and UnsupportedError where either cannot be read.
    """
    drafter = read_drafter(package)
    checkpoint = read_checkpoint(directory)
    refs = {ref.name: ref for ref in checkpoint.tensors}
    roles = []
    with SourceFile(package) as source:
        for name, weight in drafter.weights.items():
            roles.append(
                _weight(source, f"{name}.weight", weight, refs.pop(f"{name}.weight", None))
            )
    for layer, scalar in enumerate(drafter.layer_scalars()):
        name = f"model.layers.{layer}.layer_scalar"
        roles.append(_scalar(name, scalar, refs.pop(name, None)))
    for ref in refs.values():
        roles.append(Role(ref.name, ONLY_CHECKPOINT, None, f"{ref.dtype} {list(ref.shape)}"))
    settings = tuple(_settings(drafter, checkpoint))
    return Audit(tuple(roles), settings, tuple(note.message for note in remarks(drafter)))


def _weight(source: SourceFile, name: str, weight: Weight, ref: TensorRef | None) -> Role:
    ours = f"{weight.tensor.dtype} {list(weight.shape)}"
    if ref is None:
        return Role(name, ONLY_PACKAGE, ours, None)
    theirs = f"{ref.dtype} {list(ref.shape)}"
    if ref.shape != weight.shape:
        return Role(name, DIFFERENT, ours, theirs)
    check_float(ref)
    worst = largest = steps = 0.0
    within = True
    first = 0
    with SourceFile(ref.file) as other:
        for values in weight.values(source):
            expected = _floats(other, ref, first, values.size).reshape(values.shape)
            if not np.isfinite(expected).all():
                raise FormatError(f"{ref.file}: tensor {ref.name} holds values that are not finite")
            error = np.abs(values - expected)
            worst = max(worst, float(error.max()))
            largest = max(largest, float(np.abs(expected).max()))
            if weight.scales is not None:
                rows = len(values)
                at = first // weight.shape[-1]
                grid = np.repeat(weight.scales[at : at + rows], weight.block, axis=1)
                steps = max(steps, float((error / grid).max()))
                allowed = 0.5005 * grid + ROUNDING[ref.dtype] * np.abs(expected)
                within = within and bool((error <= allowed).all())
            first += values.size
    verdict = EQUAL if worst == 0 else DIFFERENT
    if worst and weight.scales is not None and within:
        verdict = ON_GRID
    relative = worst / largest if largest else worst
    shown_steps = steps if weight.scales is not None else None
    return Role(name, verdict, ours, theirs, worst, relative, shown_steps)


def _floats(source: SourceFile, ref: TensorRef, first: int, count: int) -> Floats:
    """`count` values of `ref` from value `first` on, in float32."""
    size = 4 if ref.dtype == "F32" else 2
    raw = source.read(ref.offset + first * size, count * size)
    if ref.dtype == "BF16":
        wide: Floats = (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(
            np.float32
        )
        return wide
    values: npt.NDArray[Any] = np.frombuffer(raw, "<f4" if size == 4 else "<f2")
    return values.astype(np.float32)


def _scalar(name: str, scalar: float, ref: TensorRef | None) -> Role:
    if ref is None:
        # The package states a scalar only where it is not 1.
        verdict = EQUAL if scalar == 1 else ONLY_PACKAGE
        return Role(name, verdict, f"{scalar:g}", None)
    check_float(ref)
    if ref.shape != (1,):
        return Role(name, DIFFERENT, f"{scalar:g}", f"{ref.dtype} {list(ref.shape)}")
    with SourceFile(ref.file) as source:
        theirs = float(_floats(source, ref, 0, 1)[0])
    error = abs(theirs - scalar)
    verdict = EQUAL if error == 0 else DIFFERENT
    return Role(name, verdict, f"{scalar:g}", f"{theirs:g}", error)


def _settings(drafter: LitertDrafter, checkpoint: Checkpoint) -> Iterator[Setting]:
    where = f"{checkpoint.path / 'config.json'}"
    text = checkpoint.config.get("text_config")
    if not isinstance(text, dict):
        raise FormatError(f"{where}: text_config is {brief(text)}, expected an object")
    own = configuration(drafter)
    ours = read_text_config(own["text_config"], f"{drafter.path}: drafter", "gemma4_text")
    theirs = read_text_config(text, f"{where}: text_config", "gemma4_text")
    findings = drafter.findings
    unknown = {
        "sliding_window": findings.window is None,
        "rms_norm_eps": findings.epsilon is None,
        "sliding_rope": "sliding_attention" not in findings.ropes,
        "full_rope": "full_attention" not in findings.ropes,
    }
    for name in SETTINGS:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other and not unknown.get(name, False):
            yield Setting(name, str(mine), str(other))
    for name in ("backbone_hidden_size", "use_ordered_embeddings"):
        mine, other = own[name], checkpoint.config.get(name)
        if mine != other:
            yield Setting(name, str(mine), str(other))
