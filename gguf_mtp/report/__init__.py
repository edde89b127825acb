"""Saved results as pages that a person can read: rendered from their JSON alone."""

from gguf_mtp.report.badge import badge, badges
from gguf_mtp.report.page import render

__all__ = ["badge", "badges", "render"]
