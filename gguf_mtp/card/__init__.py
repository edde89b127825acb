"""Model cards for merged files."""

from gguf_mtp.card.card import Facts, front_matter, render

__all__ = ["Facts", "front_matter", "render"]
