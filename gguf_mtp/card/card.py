"""A merged file's model card: front matter for the hub, provenance, commands, what was proved.

Names and licences come out of files of strangers: everything that is put into the Markdown is
escaped, and front matter holds only values of the form that the hub expects.
Source: the Hugging Face hub's notes on model cards (fields of the front matter).
"""

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml  # type: ignore[import-untyped]

from gguf_mtp import __version__
from gguf_mtp.card.runtimes import RUNTIMES
from gguf_mtp.drafters.families import MTP
from gguf_mtp.errors import FormatError
from gguf_mtp.naming import split_names
from gguf_mtp.report.badge import badge_of
from gguf_mtp.report.common import counted, files
from gguf_mtp.report.node import Node
from gguf_mtp.report.page import unpack
from gguf_mtp.report.validation import view

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,8})?")
_LINK = re.compile(r"https://[\w./%?=&#~:+-]{1,500}")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!&~$])")
_FLOATS = {"F32", "F16", "BF16"}
MAX_TEXT = 200


@dataclass(frozen=True)
class Facts:
    """What a card says. `summary` is that of `inspect`, `keys` are the base's ``general.*``, and
    `sha256` is that of the whole file, None where it was not computed."""

    path: Path
    size: int
    summary: Mapping[str, Any]
    keys: Mapping[str, Any]
    sha256: str | None = None

    @property
    def heads(self) -> Mapping[str, Any]:
        heads: Mapping[str, Any] = self.summary["heads"]
        return heads

    @property
    def is_mtp(self) -> bool:
        return bool(self.heads["spec_type"] == MTP.spec_type)

    @property
    def provenance(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.heads["provenance"]
        return found


class _Markdown(str):
    """Text that is Markdown already."""


def plain(value: object) -> str:
    """`value` as text that Markdown and HTML take as it is, on one line."""
    if isinstance(value, _Markdown):
        return value
    text = "".join(char if char.isprintable() else " " for char in str(value)[:MAX_TEXT])
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def render(facts: Facts, reports: Sequence[tuple[str, dict[str, Any]]] = ()) -> str:
    """The card. `reports` are saved validations of that file, each with its name in errors.

    One of several backends counts as one of each. Raises FormatError for a report of another
    file, or one with a wrong field.
    """
    proofs = [_proof(facts, node) for node in unpack(reports)] if reports else []
    text: str = _template().render(
        front=_Markdown(front_matter(facts)),
        facts=facts,
        rows=_rows(facts),
        runtimes=_commands(facts),
        proofs=proofs,
        tiers=_tiers(proofs),
        depth=max((len(drafts.first) for proof in proofs for drafts in proof["drafts"]), default=0),
        version=__version__,
    )
    return text


def front_matter(facts: Facts) -> str:
    """YAML for the hub; what is not of the form that it expects is left out."""
    fields: dict[str, Any] = {}
    stated = str(facts.keys.get("general.license", ""))
    if stated:
        fields["license"] = stated if _LICENSE.fullmatch(stated) else "other"
    link = str(facts.keys.get("general.license.link", ""))
    if _LINK.fullmatch(link):
        fields["license_link"] = link
    repositories = [
        str(facts.provenance.get(key, "")) for key in ("target.repository", "source.repository")
    ]
    found = [repo for repo in repositories if _REPO.fullmatch(repo)]
    if found:
        fields["base_model"] = found
        if not _FLOATS.issuperset(facts.summary["types"]):
            fields["base_model_relation"] = "quantized"
    languages = facts.keys.get("general.languages")
    if isinstance(languages, list):
        chosen = [text for text in languages if isinstance(text, str) and _LANGUAGE.fullmatch(text)]
        if chosen:
            fields["language"] = chosen
    fields["pipeline_tag"] = "text-generation"
    mtp = ["mtp"] if facts.is_mtp else []
    fields["tags"] = ["gguf", "gemma4", *mtp, "speculative-decoding", "llama-cpp"]
    dumped: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return f"---\n{dumped}---"


def _rows(facts: Facts) -> list[tuple[str, str]]:
    """The table of what is in the file."""
    heads, said = facts.heads, facts.provenance
    return [
        ("base", _half(facts.summary)),
        ("base from", _came_from(said, "target")),
        ("base's licence", str(facts.keys.get("general.license", "not stated"))),
        (heads["what"], _half(heads)),
        ("heads from", _came_from(said, "source")),
        ("heads' licence", str(said.get("source.license", "not stated"))),
        ("layout", f"{heads['layout']}, format {heads['format_version']}"),
        ("size", f"{facts.size:,} bytes"),
        *([("SHA-256", facts.sha256)] if facts.sha256 else []),
        ("made by", str(said.get("source.converter", "not stated"))),
    ]


def _half(summary: Mapping[str, Any]) -> str:
    types = ", ".join(f"{count} {name}" for name, count in summary["types"].items())
    name = summary["name"] or "unnamed"
    return f"{name}: {summary['parameters']:,} parameters, {summary['layers']} layers; {types}"


def _came_from(said: Mapping[str, Any], side: str) -> str:
    name = said.get(f"{side}.repository") or said.get(f"{side}.name", "not stated")
    revision = said.get(f"{side}.revision")
    files = said.get(f"{side}.files")
    text = f"{name} at {str(revision)[:12]}" if revision else str(name)
    digests = said.get(f"{side}.sha256")
    if isinstance(files, list) and isinstance(digests, list):
        pairs = [
            f"{file} (sha256 {str(sha)[:16]})" for file, sha in zip(files, digests, strict=False)
        ]
        text = f"{text}: {', '.join(pairs)}"
    return text


def _commands(facts: Facts) -> list[dict[str, Any]]:
    base, heads = split_names(facts.path)
    kind = str(facts.heads["spec_type"])
    names = {"$FILE": facts.path.name, "$BASE": base, "$HEADS": heads, "$TYPE": kind}
    return [
        {
            "program": runtime.program,
            "what": _Markdown(runtime.what),
            "tested": bool(runtime.test),
            "language": _Markdown(runtime.language),
            "commands": _Markdown("\n".join(_filled(line, names) for line in runtime.commands)),
        }
        for runtime in RUNTIMES
        if facts.heads["layout"] in runtime.layouts and (facts.is_mtp or not runtime.only_mtp)
    ]


def _filled(line: str, names: Mapping[str, str]) -> str:
    for placeholder, name in names.items():
        shown = "".join(char if char.isprintable() else "?" for char in name)
        line = line.replace(placeholder, shlex.quote(shown))
    return line


def _proof(facts: Facts, node: Node) -> dict[str, Any]:
    """A validation's badge and what its page shows, under the backend it ran on."""
    line = badge_of(node)
    merged = [file for file in files(node) if file["role"] == "merged"]
    if not merged:
        raise FormatError(f"{node.where}.files: no merged file was validated")
    if merged[0]["sha256"] != facts.sha256:
        raise FormatError(
            f"{node.where}.files: is of a file with sha256 {merged[0]['sha256'][:64]!a}, "
            f"{facts.path} has {facts.sha256}"
        )
    shown = view(node)
    size = f"{counted(shown['n_prompts'], 'prompt')}, {counted(shown['n_tokens'], 'token')}"
    on = shown["backend"] or shown["device"]
    return {"badge": _Markdown(line), "on": on, "size": size, **shown}


def _tiers(proofs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Every tier's name, and what it came to in each of `proofs`."""
    names = dict.fromkeys(tier["name"] for proof in proofs for tier in proof["tiers"])
    found = [{tier["name"]: tier for tier in proof["tiers"]} for proof in proofs]
    return [(name, [_verdict(tiers.get(name)) for tiers in found]) for name in names]


def _verdict(tier: Mapping[str, Any] | None) -> str:
    if tier is None or tier["holds"] is None:
        return "not tested"
    word = "claimed" if tier["claimed"] else "reported"
    return f"{tier['verdict']} ({word}), {tier['prompts'].text} {tier['units']}"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        finalize=plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # not HTML: `plain` escapes what Markdown and HTML would take as markup
    )
    return environment.get_template("card.md")
