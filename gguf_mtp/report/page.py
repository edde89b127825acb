"""Saved reports to one HTML page that fetches nothing: styles and charts are inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gguf_mtp import __version__
from gguf_mtp.errors import FormatError, brief
from gguf_mtp.report import benchmark, common, validation
from gguf_mtp.report.node import Node

BACKENDS = "gguf-mtp.validate-backends/1"
View = Callable[[Node], dict[str, Any]]
VIEWS: dict[str, View] = {validation.SCHEMA: validation.view, benchmark.SCHEMA: benchmark.view}


def render(documents: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return one page of saved reports, each with the name it goes by in errors.

    Raises FormatError for a document of no known schema, or with a field missing or mistyped.
    """
    nodes = unpack(documents)
    views = [_view_of(node)(node) for node in nodes]
    html: str = (
        _environment()
        .get_template("page.html")
        .render(
            views=views,
            schemas=sorted({node.text("schema") for node in nodes}),
            version=__version__,
        )
    )
    return html


def unpack(documents: Sequence[tuple[str, dict[str, Any]]]) -> list[Node]:
    """Each report by itself: a validation on several backends holds one of each.

    Raises FormatError for what is no object with a schema.
    """
    nodes: list[Node] = []
    for where, document in documents:
        node = Node(document, where)
        several = node.text("schema") == BACKENDS
        nodes += node.children("backends") if several else [node]
    if not nodes:
        raise FormatError("no report to show")
    return nodes


def _view_of(node: Node) -> View:
    schema = node.text("schema")
    if schema not in VIEWS:
        known = ", ".join(VIEWS)
        raise FormatError(f"{node.where}.schema: found {brief(schema)}, expected one of {known}")
    return VIEWS[schema]


@functools.cache
def _environment() -> jinja2.Environment:
    # Prompts and token texts come from anywhere: all that is shown is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = common.number
    environment.filters["counted"] = common.counted
    environment.filters["times"] = common.times
    return environment
