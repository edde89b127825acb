"""Running a base model with its MTP heads on llama.cpp, through llama-cpp-python."""

from gguf_mtp.runtime.bindings import Context, ContextOptions, Model, ModelOptions
from gguf_mtp.runtime.generate import Chat, Generation, MtpModel, Piece, Statistics
from gguf_mtp.runtime.library import Library, load_library
from gguf_mtp.runtime.pair import Pair, PairContexts, open_pair
from gguf_mtp.runtime.sampling import CoupledRule, MatchRule, SamplingLoop
from gguf_mtp.runtime.speculative import (
    MtpDrafter,
    RejectAllLoop,
    Round,
    Run,
    SpeculativeLoop,
    decode_plainly,
)

__all__ = [
    "Chat",
    "Context",
    "ContextOptions",
    "CoupledRule",
    "Generation",
    "Library",
    "MatchRule",
    "Model",
    "ModelOptions",
    "MtpDrafter",
    "MtpModel",
    "Pair",
    "PairContexts",
    "Piece",
    "RejectAllLoop",
    "Round",
    "Run",
    "SamplingLoop",
    "SpeculativeLoop",
    "Statistics",
    "decode_plainly",
    "load_library",
    "open_pair",
]
