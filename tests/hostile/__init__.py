"""Hostile inputs: what each is, who opens it, what is promised, and a control that is accepted.

Inputs are made by code and not kept. `CASES` is the whole table; ``tests/test_hostile.py`` runs the
command line over all of it, and docs/robustness.md shows it.
"""

from hostile.case import Case
from hostile.checkpoints import INDEX, SAFETENSORS
from hostile.documents import DOCUMENTS
from hostile.gguf import GGUF
from hostile.joined import MANIFEST, PARTS, TAIL
from hostile.packages import LITERTLM, TFLITE
from hostile.settings import CONFIG, TOKENIZER

GROUPS: dict[str, tuple[Case, ...]] = {
    "GGUF": GGUF,
    "GGUF in parts": PARTS,
    "tail footer": TAIL,
    "safetensors": SAFETENSORS,
    "index JSON": INDEX,
    "config JSON": CONFIG,
    "tokenizer": TOKENIZER,
    "litertlm": LITERTLM,
    "TFLite": TFLITE,
    "manifest": MANIFEST,
    "other JSON": DOCUMENTS,
}
CASES = tuple(case for cases in GROUPS.values() for case in cases)
