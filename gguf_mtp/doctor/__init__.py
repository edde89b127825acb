"""What this machine has for gguf-mtp, what fits on it, and what to do next."""

from gguf_mtp.doctor.checks import MISSING, OK, WARN, Check
from gguf_mtp.doctor.examine import Examination, examine

__all__ = ["MISSING", "OK", "WARN", "Check", "Examination", "examine"]
