"""Saved results as pages that a person can read: rendered from their JSON alone."""

from gguf_mtp.report.badge import badge
from gguf_mtp.report.page import render
from gguf_mtp.report.several import single_reports

__all__ = ["badge", "render", "single_reports"]
