"""Models on the Hugging Face hub, or in a folder: how they are named, which files are needed,
fetching."""

from gguf_mtp.hub.choose import BASE, CHECKPOINT, HEADS, PACKAGE
from gguf_mtp.hub.fetch import local_path

__all__ = ["BASE", "CHECKPOINT", "HEADS", "PACKAGE", "local_path"]
