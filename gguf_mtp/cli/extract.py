"""``gguf-mtp extract``: the drafter of a `.litertlm` package as a Hugging Face checkpoint."""

import json
from pathlib import Path
from typing import Any

import click

from gguf_mtp.cli.progress import progress_bar
from gguf_mtp.cli.show import human_bytes
from gguf_mtp.cli.source import SOURCE
from gguf_mtp.drafters.litert.checkpoint import bytes_to_write, write_checkpoint
from gguf_mtp.drafters.litert.package import LitertDrafter, read_drafter, remarks
from gguf_mtp.hub import PACKAGE, local_path


@click.command()
@click.argument("file", type=SOURCE, metavar="FILE")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to write; made where it does not exist.",
)
@click.option("--native", is_flag=True, help="Also write integer codes and scales.")
@click.option(
    "--ignore-names", is_flag=True, help="Trust the dataflow where tensor names contradict it."
)
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    file: str,
    output: Path,
    native: bool,
    ignore_names: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Take the MTP drafter out of FILE, a .litertlm package or the drafter's .tflite from one.

    FILE may be on the Hugging Face hub: owner/repo[@revision], hf://owner/repo[@revision][/file].
    Writes config.json, model.safetensors (float32, names as Gemma4AssistantForCausalLM) and
    litert.json, which says where each tensor comes from. Weights are identified by the dataflow
    of the graph; a graph with anything unexplained in it is refused and nothing is written.

    \b
    Example:
      gguf-mtp extract gemma-4-E2B-it.litertlm -o e2b-drafter
      gguf-mtp extract hf://OWNER/REPO/gemma-4-E2B-it.litertlm -o e2b-drafter
    """
    package = local_path(file, PACKAGE, quiet=quiet or as_json)
    drafter = read_drafter(package, ignore_names=ignore_names)
    total = bytes_to_write(drafter, native=native)
    with progress_bar(output.name, total, quiet=quiet or as_json) as advance:
        facts = write_checkpoint(drafter, output, native=native, force=force, progress=advance)
    result = summary(drafter, output)
    if as_json:
        click.echo(json.dumps(result | {"provenance": facts}, indent=2))
    elif not quiet:
        click.echo(
            f"{output}: {result['tensors']} tensors, {result['parameters']:,} parameters, "
            f"{human_bytes(4 * result['parameters'])}; from {result['types']}"
        )
        for line in result["remarks"]:
            click.echo(f"note: {line}")


def summary(drafter: LitertDrafter, output: Path) -> dict[str, Any]:
    """The result for machines."""
    kinds: dict[str, int] = {}
    parameters = len(drafter.layer_scalars())
    for weight in drafter.weights.values():
        kinds[weight.tensor.dtype] = kinds.get(weight.tensor.dtype, 0) + 1
        parameters += weight.tensor.elements
    return {
        "output": str(output),
        "tensors": len(drafter.weights) + len(drafter.layer_scalars()),
        "parameters": parameters,
        "types": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        "remarks": [note.message for note in remarks(drafter)],
    }
