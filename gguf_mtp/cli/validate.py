"""``gguf-mtp validate``: prove what a merged file's output equals, and measure what MTP gains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gguf_mtp.cli import shared
from gguf_mtp.cli.devices import open_library
from gguf_mtp.cli.made import made
from gguf_mtp.cli.outputs import Outputs
from gguf_mtp.cli.progress import step_bar
from gguf_mtp.cli.show import wrapping_console
from gguf_mtp.report import badges
from gguf_mtp.runtime.bindings import MAX_OUTPUTS, ModelOptions, half_the_cpus
from gguf_mtp.runtime.coupled import SEEDS
from gguf_mtp.runtime.library import ALL_BACKENDS, ENV_LIBRARY
from gguf_mtp.runtime.sampling import RULES, CoupledRule
from gguf_mtp.runtime.targets import BACKENDS, choose_targets, left_out
from gguf_mtp.validate.backends import not_tested, to_json, validate_backends
from gguf_mtp.validate.cross import CROSS
from gguf_mtp.validate.prompts import load_prompts
from gguf_mtp.validate.suite import Options
from gguf_mtp.validate.tiers import BASE, L4, REFERENCE, SAMPLED, TIERS


def _parse_claims(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> frozenset[str] | None:
    if value is None:
        return None
    names = {name.strip() for name in value.split(",") if name.strip() not in ("", "none")}
    tiers = (*TIERS, CROSS)
    by_name = {tier.lower(): tier for tier in tiers}
    unknown = sorted(name for name in names if name.lower() not in by_name)
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(tiers)}, none")
    return frozenset(by_name[name.lower()] for name in names)


@click.command("validate")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="The original base GGUF.")
@click.option(
    "--heads",
    type=click.Path(path_type=Path),
    help="A drafter GGUF: validate MODEL with it as two files (works unpatched).",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Recorded logits (.npz) that base and heads must give.",
)
@shared.as_json
@shared.output
@shared.html
@click.option("--badge", "as_badge", is_flag=True, help="Print a line of Markdown at the end.")
@click.option(
    "--n-max",
    default=3,
    show_default=True,
    type=click.IntRange(1, MAX_OUTPUTS - 1),
    help="Tokens drafted a round.",
)
@click.option(
    "--n-predict",
    default=64,
    show_default=True,
    type=click.IntRange(2),
    help="Tokens decoded a prompt.",
)
@shared.n_prompts
@shared.prompt_sets
@click.option(
    "--claim",
    "claims",
    callback=_parse_claims,
    metavar="TIERS",
    help="Tiers that must hold, separated by commas; see below for the default.",
)
@click.option(
    "--min-acceptance",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Fail where the first draft is accepted less often.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    metavar="T",
    help="Measure L4 and sampled-identical at this temperature.",
)
@click.option(
    "--seeds",
    "--draws",
    "draws",
    default=Options.draws,
    show_default=True,
    type=click.IntRange(1),
    help="Seeded draws at a place, for L4.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, SEEDS - 1),
    help="Seed of sampled-identical's texts; those of L4 follow from it.",
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    type=click.Choice(list(RULES)),
    help="Way to draft and sample that is tested for L4; repeatable. Default: all.",
)
@click.option(
    "--library",
    "lib_dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="The llama.cpp to use, patched or not: where its libllama is.",
)
@click.option(
    "--exact", is_flag=True, help="Use the recorded exact build, in the cheapest exact setting."
)
@shared.threads
@shared.n_ctx
@shared.kv_type
@shared.flash_attn
@click.option(
    "--backend",
    type=click.Choice([*BACKENDS, ALL_BACKENDS]),
    help="Validate on this backend. Default: each that has a device.",
)
@shared.device
@shared.rpc
@shared.gpu_layers
@click.option("--no-repack", is_flag=True, help="Keep weights as stored (no repacked buffers).")
@shared.chat
@shared.ignore_end
@shared.verbose
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    against: Path | None,
    heads: Path | None,
    reference: Path | None,
    as_json: bool,
    output: Path | None,
    html: Path | None,
    as_badge: bool,
    n_max: int,
    n_predict: int,
    n_prompts: int,
    prompt_sets: tuple[str, ...],
    claims: frozenset[str] | None,
    min_acceptance: float | None,
    temperature: float | None,
    draws: int,
    seed: int,
    rules: tuple[str, ...],
    lib_dir: Path | None,
    exact: bool,
    threads: int | None,
    n_ctx: int | None,
    kv_type: str,
    flash_attn: str,
    backend: str | None,
    device: str | None,
    rpc_servers: tuple[str, ...],
    gpu_layers: int,
    no_repack: bool,
    chat: bool,
    ignore_end: bool,
    verbose: bool,
) -> None:
    """Prove what the output of MODEL, a merged file, equals, and measure what its heads gain.

    \b
    L0  plain decoding repeats itself; rejecting every draft changes no bit
    L1  every token is the target's argmax, recomputed in the same batch shapes
    L2  the text equals plain one-token-at-a-time greedy decoding
    L3  where L2 breaks, the margin is within the effect of the batch shape
    L4  at --temperature, drawn tokens have the target's distribution
    sampled-identical  at --temperature, drafts leave the text of a seed as it is
    drafts-exact    every draft is what the heads give for the text before it
    base-identical  the base inside gives the logits of --against, bit for bit
    cross-backend   the logits agree with the CPU's within a stated tolerance
    reference       base and heads give the logits of --reference

    Runs on each backend of the library that has a device, and compares each with the CPU;
    --backend vulkan takes that one (and its library), all also fails where one has no device.

    Claimed by default: L0, L1, drafts-exact, cross-backend, base-identical with --against, and
    L2 where the logits are measured not to depend on the batch shape (which --exact sees to on
    a CPU); elsewhere L2 is reported, and L3 always. L4 where the draws also tell a rule broken
    on purpose; sampled-identical with --temperature; the reference for an all-F32 file. Exit codes:
    0 every claimed tier holds, 1 one does not, 2 could not run.

    Example: gguf-mtp validate model-mtp.gguf --against model.gguf
    """
    needs = {BASE: (against, "--against"), L4: (temperature, "--temperature")}
    needs[SAMPLED] = (temperature, "--temperature")
    needs[REFERENCE] = (reference, "--reference")
    for tier, (given, option) in needs.items():
        if tier in (claims or ()) and given is None:
            raise click.UsageError(f"--claim {tier} needs {option}")
    if SAMPLED in (claims or ()) and rules and CoupledRule.name not in rules:
        raise click.UsageError(f"--claim {SAMPLED} needs --rule {CoupledRule.name}")
    if lib_dir is not None:
        if exact:
            raise click.UsageError("--exact chooses a library; it does not go with --library")
        os.environ[ENV_LIBRARY] = str(lib_dir)
    if as_badge and as_json:
        raise click.UsageError("--badge does not go with --json; see gguf-mtp report --badge")
    outputs = Outputs(output, html)
    prompts = load_prompts(prompt_sets)[:n_prompts]
    library = open_library(
        exact=exact, backend=backend, device=device, servers=rpc_servers, verbose=verbose
    )
    targets = choose_targets(library, backend, device)
    model_options = ModelOptions(gpu_layers=gpu_layers, repack=not no_repack)
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
        claims=claims,
        min_acceptance=min_acceptance,
        temperature=temperature,
        draws=draws,
        seed=seed,
        rules=rules or tuple(RULES),
    )
    with step_bar() as show:
        reports = validate_backends(
            library, files, targets, prompts, options, model_options, against, show, reference
        )
    facts: dict[str, Any] = {"made": made(ctx)}
    if backend in (None, ALL_BACKENDS) and device is None:
        facts["not_tested"] = left_out(library, targets)
    document = to_json(reports, facts)
    as_text = outputs.write(document)
    if as_json:
        click.echo(as_text)
    else:
        for each in reports:
            each.print(wrapping_console())
        if "not_tested" in facts:
            click.echo(not_tested(facts["not_tested"]))
    if as_badge:
        click.echo("\n".join(badges(document)))
    if not all(each.report.holds for each in reports):
        raise click.exceptions.Exit(1)
