"""Saved results as pages that a person can read: rendered from their JSON alone."""

from gguf_mtp.report.badge import badges
from gguf_mtp.report.page import render

__all__ = ["badges", "render"]
