"""``gguf-mtp audit``: a package's drafter beside a public checkpoint of one."""

import json
from collections import Counter

import click
from rich.markup import escape

from gguf_mtp.cli.show import name_table, print_table, wide_console
from gguf_mtp.cli.source import SOURCE
from gguf_mtp.drafters.litert.audit import Audit, audit
from gguf_mtp.hub import CHECKPOINT, PACKAGE, local_path


@click.command()
@click.option(
    "--litert",
    required=True,
    type=SOURCE,
    help="The .litertlm package or the drafter's .tflite, or where on the Hugging Face hub.",
)
@click.option(
    "--hf",
    required=True,
    type=SOURCE,
    help="Drafter checkpoint directory to compare with, or where on the hub.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, litert: str, hf: str, quiet: bool, as_json: bool) -> None:
    """Compare the drafter in a .litertlm package or .tflite with a checkpoint, role by role.

    "same grid": the checkpoint's values lie within half a quantization step of the package's, so
    these may have been rounded from those. Exit codes: 0 the same, 1 differences, 2 failed.

    \b
    Example:
      gguf-mtp audit --litert gemma-4-E2B-it.litertlm \\
        --hf google/gemma-4-E2B-it-assistant
    """
    silent = quiet or as_json
    checkpoint = local_path(hf, CHECKPOINT, quiet=silent)
    found = audit(local_path(litert, PACKAGE, quiet=silent), checkpoint)
    if as_json:
        click.echo(json.dumps(found.document(), indent=2))
    elif not quiet:
        _print(found)
    ctx.exit(0 if found.same else 1)


def _print(found: Audit) -> None:
    console = wide_console()
    table = name_table("role", (role.name for role in found.roles), "package", "checkpoint")
    for heading in ("max error", "relative", "steps"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for role in found.roles:
        table.add_row(
            escape(role.name),
            escape(role.package or "-"),
            escape(role.checkpoint or "-"),
            *(_number(value) for value in (role.max_abs_error, role.max_rel_error, role.steps)),
            role.verdict,
        )
    spare = ("relative", "max error", "checkpoint", "package")
    print_table(console, table, spare=spare)
    for setting in found.settings:
        console.print(
            f"{setting.name}: {escape(setting.package)} in the package, "
            f"{escape(setting.checkpoint)} in the checkpoint"
        )
    for line in found.remarks:
        console.print(f"note: {escape(line)}")
    counts = Counter(role.verdict for role in found.roles)
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    console.print(f"{len(found.roles)} roles: {listed}; {len(found.settings)} settings differ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
