"""Validation on one backend after another, each with its own tiers and compared with the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gguf_mtp.runtime.bindings import CPU, ModelOptions
from gguf_mtp.runtime.library import Library
from gguf_mtp.runtime.pair import Pair, open_pair
from gguf_mtp.runtime.placement import listed
from gguf_mtp.runtime.targets import Target
from gguf_mtp.validate.cross import (
    CROSS,
    DECODED,
    Comparison,
    CpuLogits,
    Passage,
    tolerance,
)
from gguf_mtp.validate.exact import open_exact
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt, encode
from gguf_mtp.validate.report import Report
from gguf_mtp.validate.sizes import context_options_for
from gguf_mtp.validate.suite import Progress, validate

SCHEMA = "gguf-mtp.validate-backends/1"


@dataclass(frozen=True)
class BackendReport:
    """A backend's own report; `cross` is its comparison, where it is not the CPU."""

    target: Target
    report: Report
    cross: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """The report's JSON with the backend's name and the comparison."""
        cross = None if self.cross is None else asdict(self.cross) | {"holds": self.cross.holds}
        own = {"backend": self.target.backend, "devices": self.target.devices}
        return self.report.to_json() | own | {"cross_backend": cross}

    def print(self, console: Console) -> None:
        """Write the report for a person, and where things lay."""
        names = f" ({', '.join(self.target.devices)})" if self.target.devices else ""
        console.rule(f"{self.target.backend}{names}")
        self.report.print(console)
        if self.cross is not None:
            c = self.cross
            console.print(
                f"beside the CPU: logits differ by up to {c.largest_difference:.2g}, the same best "
                f"token in {c.same_best.hits} of {c.same_best.total} rows, the same first draft in "
                f"{c.same_drafts.hits} of {c.same_drafts.total}\n"
                f"weights {listed(c.weights)}; heads {listed(c.heads_weights)}; "
                f"KV cache {listed(c.kv_cache)}",
                highlight=False,
            )


def to_json(reports: Sequence[BackendReport], facts: dict[str, Any]) -> dict[str, Any]:
    """Reports as one JSON-ready object, each with `facts` added; a single one as it is."""
    documents = [r.to_json() | facts for r in reports]
    if len(documents) == 1:
        return documents[0]
    holds = all(document["holds"] for document in documents)
    return {"schema": SCHEMA, "holds": holds, "backends": documents} | facts


def not_tested(reasons: Mapping[str, str]) -> str:
    """Say on which backends nothing ran, and why: `runtime.targets.left_out`'s, in a line."""
    by_reason: dict[str, list[str]] = {}
    for backend, reason in reasons.items():
        by_reason.setdefault(reason, []).append(backend)
    parts = [f"{', '.join(backends)} ({reason})" for reason, backends in by_reason.items()]
    return f"not tested: {'; '.join(parts)}"


def validate_backends(
    library: Library,
    files: dict[str, Path],
    targets: Sequence[Target],
    prompts: Sequence[Prompt],
    options: Options,
    model_options: ModelOptions,
    against: Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
    reference: Path | None = None,
) -> list[BackendReport]:
    """Run every tier on each target, and compare those that are not the CPU with the CPU.

    `files` are `open_pair`'s: ``merged``, or ``base`` and ``heads``. Raises RuntimeUnavailable
    where a device cannot run the models, or where weights or KV cache turn out to lie elsewhere.
    """
    reports = []
    with tempfile.TemporaryFile() as store:
        on_cpu: CpuLogits | None = None
        for target in targets:

            def say(what: str, done: int, total: int, on: str = target.backend) -> None:
                progress(f"{on}: {what}", done, total)

            if target.backend != CPU and on_cpu is None:
                cpu = Target(CPU).model_options(model_options)
                with open_pair(library=library, options=cpu, **files) as pair:
                    on_cpu = _record(pair, prompts, options, store, say)
            on_target = target.model_options(model_options)
            with ExitStack() as stack:
                if options.exact and target.backend == CPU:
                    opened = open_exact(library, files, on_target, prompts, options, say)
                    pair, chosen = stack.enter_context(opened)
                else:
                    plainly = open_pair(library=library, options=on_target, **files)
                    # Exact mode is the CPU's: elsewhere nothing was looked for, nor is it claimed.
                    pair, chosen = stack.enter_context(plainly), replace(options, exact=False)
                cross = None
                if target.backend != CPU and on_cpu is not None:
                    cross = _compare(on_cpu, pair, options, say)
                report = validate(pair, prompts, chosen, against, say, reference=reference)
            if cross is not None:
                claimed = options.claims is None or CROSS in options.claims
                verdicts = (*report.verdicts, cross.verdict(claimed))
                report = replace(report, verdicts=verdicts)
            reports.append(BackendReport(target, report, cross))
    return reports


def _record(
    pair: Pair, prompts: Sequence[Prompt], options: Options, store: IO[bytes], say: Progress
) -> CpuLogits:
    tokens = [encode(prompt, pair.base, options.chat) for prompt in prompts]
    extra = replace(options, n_predict=DECODED, n_max=1)
    sizes = context_options_for(pair.base, max(map(len, tokens)), extra)
    room = sizes.n_ctx - DECODED - 1
    passages = [Passage(p.id, t[:room]) for p, t in zip(prompts, tokens, strict=True)]
    return CpuLogits.record(
        pair, passages, sizes, store, lambda done, n: say("reading the CPU's logits", done, n)
    )


def _compare(on_cpu: CpuLogits, pair: Pair, options: Options, say: Progress) -> Comparison:
    limit = tolerance(pair.base.ftype, options.kv_type)
    return on_cpu.compare(
        pair, limit, lambda done, n: say("comparing logits with the CPU's", done, n)
    )
