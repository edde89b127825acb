"""Run llama.cpp's converter on several checkpoints in one process: its imports take seconds.

    PYTHON_WITH_TORCH tools/upstream_converter.py LLAMA_CPP_DIR < JOBS

A job is a line of JSON, [checkpoint, output, number type]; the answer is a line of JSON, null or
the error in words.
"""

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    tree = Path(sys.argv[1])
    sys.path[:0] = [str(tree / "gguf-py"), str(tree)]
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    import torch

    torch.set_num_threads(1)
    logging.disable()
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        checkpoint, out, outtype = json.loads(line)
        sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", out, "--outtype", outtype]
        error = None
        try:
            convert_hf_to_gguf.main()
        except (Exception, SystemExit) as failure:
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps(error), file=answers, flush=True)


if __name__ == "__main__":
    main()
