"""One saved document that holds a validation of each backend: taken apart for rendering."""

from __future__ import annotations

from typing import Any

from gguf_mtp.errors import FormatError

SCHEMA = "gguf-mtp.validate-backends/1"


def single_reports(where: str, document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return a document's reports and what each goes by in errors; one of another schema as it is.

    Raises FormatError where the reports are not a list of objects.
    """
    if document.get("schema") != SCHEMA:
        return [(where, document)]
    each = document.get("backends")
    if not isinstance(each, list) or not each or not all(isinstance(r, dict) for r in each):
        raise FormatError(f'{where}: "backends" is not a list of reports')
    return [(f"{where} ({report.get('backend')})", report) for report in each]
