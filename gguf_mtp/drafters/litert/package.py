"""The drafter of a `.litertlm` package or `.tflite`: found, understood, every weight located and
checked."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_mtp.drafters.litert.claims import check_claims
from gguf_mtp.drafters.litert.dataflow import Dataflow
from gguf_mtp.drafters.litert.findings import (
    Findings,
    is_drafter,
    pick_signature,
    read_findings,
)
from gguf_mtp.drafters.litert.hints import check_names
from gguf_mtp.drafters.litert.identify import Found, identify
from gguf_mtp.drafters.litert.weights import Weight, read_weight
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.notes import Note
from gguf_mtp.readers.litertlm import (
    TFLITE_MODEL,
    TFLITE_WEIGHTS,
    LitertlmFile,
    Section,
    read_package,
)
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite import read_tflite
from gguf_mtp.readers.tflite_model import Place, Signature, TfliteModel

DRAFTER = "tf_lite_mtp_drafter"
AUXILIARY = "tf_lite_mtp_aux"
EMBEDDER = "tf_lite_embedder"
HEAD = "model.embed_tokens"
# A scalar is taken for sqrt(hidden size) within what bfloat16 rounds off.
SCALE_TOLERANCE = 1 / 128


@dataclass(frozen=True)
class EmbeddingScale:
    """What the package's embedder multiplies token embeddings by before the drafter sees them.

    `factor` is None where no such step is seen; `finding` says in words what is known.
    """

    factor: float | None
    finding: str


@dataclass(frozen=True, eq=False)
class LitertDrafter:
    """A package's drafter. `weights` by Hugging Face name without ``.weight``; values of the head
    include the softcap's factor where the exporter had folded its inverse in."""

    file: LitertlmFile
    section: Section
    weights_section: Section | None
    model: TfliteModel
    flow: Dataflow
    signature: Signature
    found: Found
    findings: Findings
    weights: dict[str, Weight]
    embedding_scale: EmbeddingScale

    @property
    def path(self) -> Path:
        return self.file.path

    def layer_scalars(self) -> list[float]:
        """One for each layer; 1 where the graph has none."""
        return [1.0 if layer.scalar is None else layer.scalar for layer in self.found.layers]


def drafter_section(file: LitertlmFile) -> Section:
    """The section that holds the drafter's model; of a bare `.tflite` its only one.

    Raises FormatError or UnsupportedError, saying what the package holds instead.
    """
    if file.version is None:
        return file.sections[0]
    found = file.find(TFLITE_MODEL, DRAFTER)
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(str(section.index) for section in found)
        raise FormatError(f"{file.path}: sections {numbers} are all {DRAFTER}, expected one")
    models = [section for section in file.sections if section.kind == TFLITE_MODEL]
    listed = ", ".join(section.model_type or "unnamed" for section in models) or "none"
    if any(section.model_type == AUXILIARY for section in models):
        raise UnsupportedError(
            f"{file.path}: the drafter is compiled for an NPU ({AUXILIARY}); no weights to extract"
        )
    raise UnsupportedError(f"{file.path}: no {DRAFTER} section (models: {listed})")


def weights_section(file: LitertlmFile, model_type: str) -> Section | None:
    """The section with the weights that the model `model_type` keeps outside of itself."""
    found = file.find(TFLITE_WEIGHTS, model_type)
    if len(found) > 1:
        raise FormatError(
            f"{file.path}: {len(found)} sections of {TFLITE_WEIGHTS} for {model_type}, "
            "expected one at most"
        )
    return found[0] if found else None


def section_name(section: Section) -> str:
    return f"section {section.index} ({section.model_type or section.kind})"


def read_section_model(file: LitertlmFile, source: SourceFile, section: Section) -> TfliteModel:
    where = f"{file.path}: {section_name(section)}" if file.version else f"{file.path}"
    return read_tflite(source, section.begin, section.end, where)


def read_drafter(path: Path, *, ignore_names: bool = False) -> LitertDrafter:
    """The drafter in the package or bare `.tflite` at `path`. No weight's values are read.

    With `ignore_names` tensor names that contradict the dataflow are no error. Raises FormatError
    and UnsupportedError; see the modules of the single steps.
    """
    file = read_package(path)
    section = drafter_section(file)
    outside = weights_section(file, DRAFTER)
    with SourceFile(path) as source:
        model = read_section_model(file, source, section)
        if file.version is None:
            _require_drafter(model)
        signature = pick_signature(model.where, model.signatures)
        place = None if outside is None else Place(outside.begin, outside.nbytes)
        flow = Dataflow(source, model, signature.graph, place)
        found = identify(flow, signature)
        findings = read_findings(flow, signature, found)
        check_claims(flow, found, findings)
        if not ignore_names:
            check_names(flow, found)
        weights = {
            name: read_weight(flow, role.value, name, name.endswith("norm"))
            for name, role in found.roles.items()
        }
        if found.folded and found.softcap is not None:
            weights[HEAD] = _scaled(weights[HEAD], found.softcap)
        scale = _embedding_scale(file, source, findings.backbone)
        source.check_unchanged()
    return LitertDrafter(
        file, section, outside, model, flow, signature, found, findings, weights, scale
    )


def _require_drafter(model: TfliteModel) -> None:
    """Raise UnsupportedError for another model of a package, which has no section header to say
    what it is."""
    if any(is_drafter(signature) for signature in model.signatures):
        return
    listed = ", ".join(repr(item.key) for item in model.signatures) or "none"
    raise UnsupportedError(
        f"{model.where}: is a TFLite model but not an MTP drafter (signatures: {listed}); give "
        f"the package's section {DRAFTER}, or the whole .litertlm package"
    )


def _scaled(weight: Weight, factor: float) -> Weight:
    if weight.scales is None:
        return replace(weight, factor=factor)
    return replace(weight, scales=weight.scales * np.float32(factor))


def _embedding_scale(file: LitertlmFile, source: SourceFile, backbone: int) -> EmbeddingScale:
    """Whether the embedder's graph multiplies by a number near sqrt(backbone)."""
    sections = file.find(TFLITE_MODEL, EMBEDDER)
    if file.version is None:
        return EmbeddingScale(None, "unknown: a .tflite comes without the package's embedder")
    if len(sections) != 1:
        return EmbeddingScale(None, f"unknown: the package has {len(sections)} {EMBEDDER} sections")
    outside = weights_section(file, EMBEDDER)
    place = None if outside is None else Place(outside.begin, outside.nbytes)
    model = read_section_model(file, source, sections[0])
    expected = math.sqrt(backbone)
    for graph in model.graphs:
        flow = Dataflow(source, model, graph.index, place)
        for node in flow.nodes:
            for value in node.inputs if node.name == "MUL" else ():
                factor = flow.scalar(value)
                if factor is not None and abs(factor / expected - 1) < SCALE_TOLERANCE:
                    return EmbeddingScale(factor, f"embedder multiplies by {factor:.6g}")
    return EmbeddingScale(None, f"unknown: no factor near {expected:.6g} in the embedder's graph")


def provenance(drafter: LitertDrafter) -> dict[str, Any]:
    """What there is to know about where a drafter comes from and how it was read, by short names.

    Values are strings, numbers, booleans and lists of strings; what is unknown is left out.
    """
    file, findings, found = drafter.file, drafter.findings, drafter.found
    version = file.version_text
    facts: dict[str, Any] = {
        **({} if version is None else {"container_version": version}),
        "sections": [
            f"{section.index} {section.model_type or section.kind} {section.begin} {section.end}"
            for section in (drafter.section, drafter.weights_section)
            if section is not None
        ],
        "signature": drafter.signature.key,
        "tensors": [
            f"{name} {weight.tensor.index} {weight.tensor.dtype}{_grid(weight)}"
            for name, weight in drafter.weights.items()
        ],
        "kv_layers": [f"{kind} {layer}" for kind, layer in sorted(findings.kv_layers.items())],
        "kv_cache_type": findings.cache_type,
        "context": findings.context,
        "embedding_scale": drafter.embedding_scale.finding,
    }
    if findings.window is not None:
        facts["window_keys"] = findings.window
    if found.softcap is not None:
        facts |= {"softcap": found.softcap, "softcap_folded": found.folded}
    return facts


def _grid(weight: Weight) -> str:
    if weight.scales is None:
        return ""
    return " per row" if weight.scales.shape[1] == 1 else f" per {weight.block}"


def remarks(drafter: LitertDrafter) -> list[Note]:
    """What the file cannot tell, and what differs elsewhere."""
    findings, found = drafter.findings, drafter.found
    lines = []
    if drafter.embedding_scale.factor is None:
        lines.append(
            Note(
                "litert-embedding-scale",
                f"embedding scale {drafter.embedding_scale.finding}; "
                f"sqrt({findings.backbone}) is assumed, as in Gemma 4",
            )
        )
    if found.softcap is not None:
        lines.append(
            Note(
                "litert-softcap",
                f"the package caps the drafter's logits at {found.softcap:g}; Hugging Face and "
                "llama.cpp do not: the drafts are the same, probabilities (p_min) are not",
            )
        )
    kinds = set(findings.kv_layers) - set(findings.ropes)
    unseen = [f"rotation of {kind}" for kind in sorted(kinds)]
    if findings.window is None and len(findings.kv_layers) > 1:
        unseen.append("sliding window")
    if findings.epsilon is None:
        unseen.append("epsilon of the norms")
    if unseen:
        listed = ", ".join(unseen)
        message = f"not seen in the graph: {listed}; the target's, or Gemma 4's own, stand in"
        lines.append(Note("litert-unseen", message))
    return lines
