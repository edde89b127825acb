"""What was measured, as a table on the terminal, as JSON and as a plot."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Machine, Section

CPUINFO = Path("/proc/cpuinfo")
NOTABLE = ("avx2", "avx512f", "avx512_vnni", "amx_int8")


def describe_machine(machine: Machine, backend: str) -> dict[str, Any]:
    """What the figures depend on, without naming the machine."""
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    present = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "features": [name for name in NOTABLE if name in present],
        "system": platform.system(),
        "architecture": platform.machine(),
        "threads": machine.threads,
        "backend": backend,
    }


def ratios(section: Section, label: str) -> list[float]:
    """`label` against the reference, repetition by repetition: above 1 is better."""
    reference = section.samples.get(section.reference, [])
    pairs = zip(section.samples[label], reference, strict=False)
    return [ours / base if section.higher_is_better else base / ours for ours, base in pairs]


def table(section: Section) -> Table:
    """Median, spread and ratio of each label."""
    best = "higher" if section.higher_is_better else "lower"
    made = Table(title=f"{section.title} ({best} is better)", title_justify="left", box=None)
    for heading in ("", section.unit, "min-max", f"x {section.reference}", "min-max"):
        made.add_column(heading, justify="right" if heading else "left")
    for label, values in section.samples.items():
        against = ratios(section, label)
        made.add_row(
            label,
            _number(statistics.median(values)),
            f"{_number(min(values))}-{_number(max(values))}",
            f"{statistics.median(against):.2f}" if against else "",
            f"{min(against):.2f}-{max(against):.2f}" if against else "",
        )
    return made


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def show(sections: Sequence[Section], console: Console) -> None:
    for section in sections:
        if section.samples:
            console.print(table(section))
            console.print()


def write_json(sections: Sequence[Section], about: dict[str, Any], path: Path) -> None:
    """All samples, so that another run can be compared with this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**about, "sections": [asdict(section) for section in sections]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Section]]:
    """What `write_json` wrote."""
    content = json.loads(path.read_text())
    sections = [Section(**fields) for fields in content.pop("sections")]
    return content, sections


def plot(sections: Sequence[Section], about: dict[str, Any], path: Path) -> None:
    """Bars of the medians with their spread, a panel a section. Raises ImportError without
    matplotlib (``pip install 'gguf-mtp[bench]'``)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [section for section in sections if section.samples]
    heights = [0.6 + 0.25 * len(section.samples) for section in shown]
    figure, axes = pyplot.subplots(
        len(shown),
        1,
        figsize=(9, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for section, axis in zip(shown, axes[:, 0], strict=True):
        labels = list(section.samples)
        middle = [statistics.median(values) for values in section.samples.values()]
        spread = [
            [
                mid - min(values)
                for mid, values in zip(middle, section.samples.values(), strict=True)
            ],
            [
                max(values) - mid
                for mid, values in zip(middle, section.samples.values(), strict=True)
            ],
        ]
        colours = ["#999999" if "stock" in label else "#2a6f97" for label in labels]
        axis.barh(labels, middle, xerr=spread, color=colours, capsize=2)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        best = "higher" if section.higher_is_better else "lower"
        axis.set_title(f"{section.title} [{section.unit}, {best} is better]", loc="left", size=9)
        axis.tick_params(labelsize=8)
    machine = about["machine"]
    figure.suptitle(
        f"{machine['cores']} cores, {' '.join(machine['features'])}", size=8, x=0.99, ha="right"
    )
    figure.savefig(path)
    pyplot.close(figure)
