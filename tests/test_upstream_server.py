"""A selection of llama.cpp's own server tests on the patched server, with and without drafts.

Only what the stock server passes with the same model. All that it passes: `make test-llamacpp`.
"""

from collections import Counter
from pathlib import Path

import pytest

from llama_programs import programs
from llamacpp import server_tests

SELECTION = {  # test: its cases
    "unit/test_completion.py::test_completion_parallel_slots": 5,
    "unit/test_completion.py::test_completion_unified": 4,
    "unit/test_completion.py::test_consistent_result_same_seed": 2,
    "unit/test_completion.py::test_logit_bias": 4,
    "unit/test_completion.py::test_n_probs": 1,
    "unit/test_completion.py::test_n_probs_post_sampling": 1,
    "unit/test_completion.py::test_n_probs_stream": 1,
    "unit/test_ctx_shift.py::test_ctx_shift_disabled_stream": 1,
}
MODES = {"without drafts": ("--spec-type", "none"), "with drafts": ("--no-spec-draft-auto-depth",)}


@pytest.mark.parametrize("mode", MODES)
def test_what_the_stock_server_passes(mode: str, merged_f32: Path) -> None:
    build = programs("default")
    server = server_tests.Mode(mode, build / "llama-server", merged_f32, MODES[mode])
    found = server_tests.passed(build.parent.parent, server, SELECTION)
    assert Counter(test.partition("[")[0] for test in found) == SELECTION
