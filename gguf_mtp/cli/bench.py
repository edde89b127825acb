"""``gguf-mtp bench``: speed by depth on this machine, and which depth to choose."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_mtp.cli import shared
from gguf_mtp.cli.devices import model_options, open_library
from gguf_mtp.cli.made import made
from gguf_mtp.cli.outputs import Outputs
from gguf_mtp.cli.progress import step_bar
from gguf_mtp.cli.show import wide_console
from gguf_mtp.runtime.bindings import MAX_OUTPUTS, half_the_cpus
from gguf_mtp.runtime.pair import open_pair
from gguf_mtp.validate.bench import bench
from gguf_mtp.validate.bench_report import bench_json, print_bench
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import load_prompts


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@shared.heads
@click.option(
    "--n-max",
    default=5,
    show_default=True,
    type=click.IntRange(1, MAX_OUTPUTS - 1),
    help="The deepest drafting tried.",
)
@click.option(
    "--n-predict", default=64, show_default=True, type=click.IntRange(2), help="Tokens a prompt."
)
@shared.n_prompts
@shared.prompt_sets
@click.option(
    "--repetitions", default=3, show_default=True, type=click.IntRange(1), help="Of everything."
)
@shared.as_json
@shared.output
@shared.html
@shared.threads
@shared.n_ctx
@shared.kv_type
@shared.flash_attn
@shared.backend
@shared.device
@shared.rpc
@shared.gpu_layers
@shared.chat
@shared.ignore_end
@shared.exact
@shared.verbose
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    heads: Path | None,
    n_max: int,
    n_predict: int,
    n_prompts: int,
    prompt_sets: tuple[str, ...],
    repetitions: int,
    as_json: bool,
    output: Path | None,
    html: Path | None,
    threads: int | None,
    n_ctx: int | None,
    kv_type: str,
    flash_attn: str,
    backend: str | None,
    device: str | None,
    rpc_servers: tuple[str, ...],
    gpu_layers: int,
    chat: bool,
    ignore_end: bool,
    exact: bool,
    verbose: bool,
) -> None:
    """Measure MODEL, a merged file, with and without MTP, and advise how deep to draft here.

    Every depth and plain decoding take turns, so that ratios come from the same minutes. Drafting
    is step by step, from Python; the patched programs draft in one graph, which costs less, and
    choose the depth while they run.

    \b
    Example:
      gguf-mtp bench e2b-mtp.gguf --chat
    """
    outputs = Outputs(output, html)
    prompts = load_prompts(prompt_sets)[:n_prompts]
    library = open_library(
        exact=exact, backend=backend, device=device, servers=rpc_servers, verbose=verbose
    )
    on_devices = model_options(library, backend, device, gpu_layers)
    files = {"merged": model} if heads is None else {"base": model, "heads": heads}
    options = Options(
        n_max=n_max,
        n_predict=n_predict,
        n_ctx=n_ctx,
        n_threads=threads or half_the_cpus(),
        kv_type=kv_type,
        flash_attn=flash_attn,
        exact=exact,
        chat=chat,
        ignore_end=ignore_end,
    )
    with (
        open_pair(library=library, options=on_devices, **files) as pair,
        step_bar() as show,
    ):
        found = bench(pair, prompts, options, repetitions, show)
    as_text = outputs.write(bench_json(found) | {"made": made(ctx)})
    if as_json:
        click.echo(as_text)
    else:
        print_bench(found, wide_console())
