"""Loads merged files in one process and drafts with each: a line of JSON per file.

    LLAMA_CPP_LIB_PATH=DIR python tests/lookalike_runs.py FILE ...

A process of its own, since the bindings load one library only, and llama.cpp ends the process where
it finds a fault.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gguf_mtp.runtime.bindings import Context, ContextOptions, Model, ModelOptions
from gguf_mtp.runtime.generate import MtpModel
from gguf_mtp.runtime.library import Library, load_library
from gguf_mtp.runtime.speculative import decode_plainly

PROMPT, N_PLAIN, N_PREDICT, N_CTX, N_DRAFTS = "the cat", 2, 6, 64, 3
CPU = ModelOptions(device="cpu", repack=False)
BASE_ALONE = "base:"


def drafted(library: Library, path: Path) -> dict[str, Any]:
    """What became of drafts, and the base half's logits."""
    with MtpModel(path, n_ctx=N_CTX, n_threads=1, options=CPU, library=library) as model:
        answer = model.stream(PROMPT, N_PREDICT, n_max=N_DRAFTS)
        answer.text()
        done = answer.statistics
        counts = {"drafted": done.drafted, "accepted": done.accepted}
        return counts | logits(model.target)


def alone(library: Library, path: Path) -> dict[str, Any]:
    """The logits of a file that is a plain base model."""
    with (
        Model.open(library, path, CPU) as model,
        Context(model, ContextOptions(n_ctx=N_CTX)) as context,
    ):
        return logits(context)


def logits(context: Context) -> dict[str, Any]:
    """Fingerprints of the logits from which the first tokens are chosen, without drafts."""
    run = decode_plainly(context, context.model.tokenize(PROMPT), N_PLAIN)
    return {"logits": [print_.hex() for print_ in run.prints]}


def main(arguments: list[str]) -> None:
    library = load_library()
    for argument in arguments:
        base = argument.startswith(BASE_ALONE)
        run = alone if base else drafted
        result = run(library, Path(argument.removeprefix(BASE_ALONE)))
        print(json.dumps({"file": argument} | result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
