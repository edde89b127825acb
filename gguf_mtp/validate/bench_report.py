"""A benchmark as JSON and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gguf_mtp.validate.advice import DOES_NOT, PAYS, Advice
from gguf_mtp.validate.bench import PLAIN, Bench
from gguf_mtp.validate.report import acceptance_json

SCHEMA = "gguf-mtp.bench/1"


def bench_json(bench: Bench) -> dict[str, Any]:
    """Return the benchmark as JSON-ready data: docs/run.md says what each field is."""
    expected = _expected(bench.advice)
    return {
        "schema": SCHEMA,
        "files": [asdict(facts) for facts in bench.files],
        "settings": asdict(bench.settings),
        "repetitions": len(bench.samples[PLAIN]),
        "depths": [
            {
                "n": n,
                "rates": [sample.rate for sample in samples],
                "ratios": None if n == PLAIN else list(bench.ratios(n)),
                "tokens_per_pass": None if n == PLAIN else bench.tokens_per_pass[n],
                "draft_ms": [sample.draft_ms for sample in samples],
                "verify_ms": [sample.verify_ms for sample in samples],
                "expected_rate": bench.costs.plain_rate if n == PLAIN else expected.get(n),
            }
            for n, samples in sorted(bench.samples.items())
        ],
        "acceptance": acceptance_json(bench.acceptance),
        "tasks": [
            {"task": task, "prompts": prompts, "acceptance": acceptance_json(found)}
            for task, (prompts, found) in bench.tasks.items()
        ],
        "advice": _advice_json(bench.advice),
    }


def _expected(advice: Advice | None) -> dict[int, float]:
    """Expected tokens a second of each depth, whatever the drafter's confidence."""
    settings = () if advice is None else advice.settings
    return {setting.n_max: setting.rate for setting in settings if setting.p_min == 0}


def _advice_json(advice: Advice | None) -> dict[str, Any] | None:
    if advice is None:
        return None
    return {
        "verdict": advice.verdict,
        "n_max": advice.best.n_max,
        "p_min": advice.best.p_min,
        "rate": advice.best.rate,
        "ratio": advice.ratio,
        "text": advice_text(advice),
        "settings": [asdict(setting) for setting in advice.settings],
    }


def advice_text(advice: Advice) -> str:
    """One or two sentences that a person can act on."""
    best = advice.best
    what = f"at best {best.rate:.3g} tokens/s, {advice.ratio:.2f} times plain decoding"
    if advice.verdict == DOES_NOT:
        return f"MTP does not pay here: {what} is expected. Decode without drafts (--no-mtp)."
    flags = f"--spec-draft-n-max {best.n_max}"
    if best.p_min:
        flags += f" --spec-draft-p-min {best.p_min:g}"
    first = "MTP pays here" if advice.verdict == PAYS else "MTP makes little difference here"
    return f"{first}: {what} is expected of {flags}."


def print_bench(bench: Bench, console: Console) -> None:
    """Write the benchmark for a person."""
    s = bench.settings
    console.print(
        f"{', '.join(facts.name for facts in bench.files)}: {s.quantization}, heads "
        f"{s.heads_quantization}, on {s.device}; KV {s.kv_type}, {s.n_threads} thread(s), "
        f"{len(bench.samples[PLAIN])} repetitions",
        highlight=False,
        markup=False,
    )
    console.print(_depth_table(bench))
    console.print(_task_table(bench))
    if bench.advice is not None:
        console.print(advice_text(bench.advice), highlight=False, markup=False)


def _depth_table(bench: Bench) -> Table:
    table = _table("drafted", "tokens/s", "against plain", "tokens/pass", "drafting", "verifying")
    table.add_column("expected", justify="right")
    expected = _expected(bench.advice)
    for n, samples in sorted(bench.samples.items()):
        rate = _spread([sample.rate for sample in samples], ".1f")
        verify = f"{bench.costs.verify[n + 1]:.2f} ms"
        if n == PLAIN:
            table.add_row("none", rate, "1", "1", "", verify, f"{bench.costs.plain_rate:.1f}")
            continue
        table.add_row(
            str(n),
            rate,
            _spread(bench.ratios(n), ".2f"),
            f"{bench.tokens_per_pass[n]:.2f}",
            f"{bench.costs.draft[n]:.2f} ms",
            verify,
            f"{expected[n]:.1f}" if n in expected else "",
        )
    return table


def _task_table(bench: Bench) -> Table:
    depths = range(1, bench.settings.n_max + 1)
    table = _table("first k accepted", "prompts", *(f"k={k}" for k in depths), "tokens/pass")
    rows = [(task, prompts, found) for task, (prompts, found) in bench.tasks.items()]
    if len(rows) > 1:
        rows.append(("all", sum(prompts for _, prompts, _ in rows), bench.acceptance))
    for task, prompts, found in rows:
        shares = [f"{p.rate:.3f}" if p.total else "-" for p in found.first_accepted]
        rate = f"{found.tokens_per_pass:.2f}" if found.rounds else "-"
        table.add_row(escape(task), str(prompts), *shares, rate)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _spread(values: Sequence[float], form: str) -> str:
    """The middle value, and the lowest and highest."""
    middle = format(median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"
