"""gguf-mtp: Gemma 4 and its multi-token-prediction heads in one GGUF."""

__version__ = "0.1.0"
