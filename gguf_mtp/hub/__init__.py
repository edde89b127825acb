"""Models that lie on the Hugging Face hub: how they are named, which files are needed, fetching."""

from gguf_mtp.hub.fetch import local_path
from gguf_mtp.hub.select import BASE, CHECKPOINT, HEADS, PACKAGE

__all__ = ["BASE", "CHECKPOINT", "HEADS", "PACKAGE", "local_path"]
