"""The pairs that benchmarks generate: the small ones of those released."""

from dataclasses import replace

from gguf_mtp.gemma4.released import RELEASED

PAIRS = {name.lower(): replace(RELEASED[name], name=name.lower()) for name in ("E2B", "E4B")}
