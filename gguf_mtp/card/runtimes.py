"""What to type in each program, one row a program: a new one is one more row.

``$FILE`` is the merged file, ``$BASE`` and ``$HEADS`` what `split` makes of it, ``$TYPE`` the
``--spec-type`` of its drafter. A row is tested where one of this project's tests runs that command,
on its small embedded pair; `test` names it.
"""

from dataclasses import dataclass

from gguf_mtp.merged import INLINE
from gguf_mtp.tail import TAIL

SPLIT = "gguf-mtp split $FILE --base-out $BASE --heads-out $HEADS"


@dataclass(frozen=True)
class Runtime:
    """A program, what it does with the file, and the `commands` that make it. `test` is empty for
    what was not run; `only_mtp` is for MTP heads, not for other drafters."""

    program: str
    what: str
    commands: tuple[str, ...]
    test: str = ""
    layouts: tuple[str, ...] = (INLINE, TAIL)
    language: str = "sh"
    only_mtp: bool = False


RUNTIMES = (
    Runtime(
        "llama.cpp, patched",
        "drafts with what is in the file; `--spec-type none` turns that off",
        ("llama-server -m $FILE",),
        "test_programs.py::test_server_gives_one_text",
    ),
    Runtime(
        "llama.cpp as it is, from the one file",
        "runs the base without MTP",
        ("llama-server -m $FILE",),
        "test_tail.py::test_stock_llama_cpp_loads_the_plain_base",
        (TAIL,),
    ),
    Runtime(
        "llama.cpp as it is, from two files",
        "drafts, scoring all of the vocabulary for each drafted token (tested with "
        "llama-speculative-simple, which takes the same options)",
        (SPLIT, "llama-server -m $BASE -md $HEADS --spec-type $TYPE"),
        "test_programs.py::test_split_halves_run_on_an_unpatched_build",
    ),
    Runtime(
        "Ollama, a Modelfile",
        "drafts where its version knows DRAFT",
        ("FROM ./$BASE", "DRAFT ./$HEADS"),
        language="text",
    ),
    Runtime("LM Studio", "runs the base without MTP", (SPLIT, "lms import $BASE")),
    Runtime(
        "koboldcpp",
        "drafts where its llama.cpp has that type of drafter",
        (SPLIT, "koboldcpp --model $BASE --draftmodel $HEADS"),
    ),
    Runtime(
        "ik_llama.cpp",
        "drafts; it wants tensor names of its own",
        (f"{SPLIT} --dialect ik", "llama-server -m $BASE -md $HEADS"),
        only_mtp=True,
    ),
)
