"""Make the `.litertlm` fixtures and record what the official runtime and Hugging Face say of them.

Needs tools/litert/requirements.txt; CI uses what is committed. Everything comes from a hash or from
the embedded drafter, so a second run gives the same weights; bytes depend on the tools' versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from litert_lm_builder.litertlm_builder import TfLiteModelType
from safetensors.torch import load_file

from litert import build, original, reference
from litert.module import Style
from litert.original import SMALL, TRAINED, Floats, Shape

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "tests" / "fixtures" / "litert"
PAIR = REPOSITORY / "tests" / "fixtures" / "gemma4-tiny"
POSITIONS = (3, 11, 20)
LINEAR = TFLOperationName.FULLY_CONNECTED
FOUR_BITS = ".*(gating_einsum|mlp_linear|embedder|logits).*"


def mixed(quantizer: Quantizer) -> None:
    """int8 for projections and attention, int4 for feed forward and head, as in Google's E2B."""
    quantizer.add_dynamic_config(".*", LINEAR, 8)
    quantizer.add_dynamic_config(FOUR_BITS, LINEAR, 4)


def weight_only(quantizer: Quantizer) -> None:
    quantizer.add_weight_only_config(".*", LINEAR, 4)


def blockwise(quantizer: Quantizer) -> None:
    granularity = QuantGranularity.BLOCKWISE_32
    quantizer.add_dynamic_config(".*", LINEAR, 4, granularity=granularity)


def static(quantizer: Quantizer) -> None:
    """The linear layers alone, between QUANTIZE and DEQUANTIZE, as in Google's E2B."""
    quantizer.add_static_config(".*(Linear|logits|projected).*", LINEAR, 8, 4)


@dataclass(frozen=True)
class Recipe:
    """How a fixture on SMALL is made; `original.GRIDS` says which grid its weights are on."""

    style: Style
    quantize: Callable[[Quantizer], None] | None
    scalars: bool = False


RECIPES = {
    "mixed": Recipe(Style(softcap=30.0), mixed),
    "static-w4a8": Recipe(Style(), static),
    "weight-only-int4": Recipe(Style(composite=False), weight_only),
    "blockwise-32": Recipe(Style(), blockwise),
    "float": Recipe(Style(composite=False), None, scalars=True),
}


def trained_weights() -> dict[str, Floats]:
    """The embedded drafter's, without its ordered head."""
    tensors = load_file(PAIR / "drafter" / "model.safetensors")
    return {
        name: tensor.to(torch.float32).numpy()
        for name, tensor in tensors.items()
        if not name.startswith("masked_embedding.")
        and not (name.endswith("layer_scalar") and tensor == 1)
    }


@click.command()
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Make all fixtures, or those of NAMES."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    models: dict[str, bytes] = {}
    drafter = TfLiteModelType.MTP_DRAFTER
    for name, recipe in RECIPES.items():
        if names and name not in names and name != "mixed":
            continue
        weights = original.weights(name, scalars=recipe.scalars)
        model = build.export(SMALL, weights, recipe.style)
        if recipe.quantize is not None:
            model = build.quantize(model, SMALL, recipe.quantize)
        models[name] = model
        build.pack(FIXTURES / f"{name}.litertlm", [(model, drafter)])
        record(name, model, SMALL)

    embedder = build.export_embedder(SMALL.backbone)
    other = [(embedder, TfLiteModelType.EMBEDDER)]
    build.pack(FIXTURES / "no-drafter.litertlm", other)
    moved = build.offset_buffers(models["mixed"])
    build.pack(FIXTURES / "offset-buffers.litertlm", [*other, (moved, drafter)])
    inner, outside = build.external_weights(models["mixed"])
    build.pack(FIXTURES / "external-weights.litertlm", [(inner, drafter)], (outside, drafter))
    compiled = build.dispatched(models["mixed"])
    auxiliary = TfLiteModelType.MTP_AUX
    build.pack(FIXTURES / "npu.litertlm", [(compiled, drafter), (compiled, auxiliary)])

    if not names or "trained" in names:
        model = build.export(TRAINED, trained_weights(), Style())
        model = build.quantize(model, TRAINED, mixed)
        embedder = build.export_embedder(TRAINED.backbone)
        build.pack(
            FIXTURES / "trained.litertlm",
            [(embedder, TfLiteModelType.EMBEDDER), (model, drafter)],
        )
        record("trained", model, TRAINED)
        record_drafts()


def record(name: str, model: bytes, shape: Shape) -> None:
    """The interpreter's outputs, and those of the extracted checkpoint in Hugging Face's model."""
    outputs: dict[str, Floats] = {}
    for position in POSITIONS:
        for key, value in build.run(model, shape, position).items():
            outputs[f"litert {key} {position}"] = value.reshape(-1)
        found = reference.run(FIXTURES / f"{name}.litertlm", shape, position)
        for key, value in found.items():
            outputs[f"hf {key} {position}"] = value.reshape(-1)
            theirs = outputs[f"litert {key} {position}"]
            difference = np.abs(value.reshape(-1) - theirs).max()
            click.echo(
                f"{name}: position {position}: {key}: HF - LiteRT {difference:.2e}, "
                f"largest {np.abs(theirs).max():.2f}"
            )
    np.savez_compressed(FIXTURES / f"{name}.npz", allow_pickle=False, **outputs)


def record_drafts() -> None:
    """The trained drafter's drafts behind the embedded target, in Hugging Face's models."""
    with np.load(PAIR / "reference.npz") as stored:
        sequences = [[int(token) for token in stored[f"seq{n}_ids"]] for n in range(4)]
    outputs: dict[str, Floats] = {}
    for number, ids in enumerate(sequences):
        found = reference.draft(FIXTURES / "trained.litertlm", PAIR / "target", ids)
        outputs |= {f"seq{number} {key}": value for key, value in found.items()}
    np.savez_compressed(FIXTURES / "trained-drafts.npz", allow_pickle=False, **outputs)


if __name__ == "__main__":
    main()
