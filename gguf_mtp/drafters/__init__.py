"""Drafters: what the supported kinds of MTP heads mean, as `gemma4-assistant` models."""
