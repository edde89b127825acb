"""Options that several verbs have: one definition each, so that they mean and say the same."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_mtp.runtime.bindings import FLASH_ATTN, KV_TYPES
from gguf_mtp.runtime.targets import BACKENDS

# Of the verbs that run models.
threads = click.option("--threads", type=click.IntRange(1), help="Default: half the CPUs.")
kv_type = click.option(
    "--kv-type",
    default="f16",
    show_default=True,
    type=click.Choice(list(KV_TYPES)),
    help="KV cache type.",
)
flash_attn = click.option(
    "--flash-attn",
    default="auto",
    show_default=True,
    type=click.Choice(list(FLASH_ATTN)),
    help="Flash attention.",
)
verbose = click.option("--verbose", is_flag=True, help="Show llama.cpp's log.")

device = click.option(
    "--device", help="Devices of one backend between commas, such as Vulkan0, or cpu."
)
rpc = click.option(
    "--rpc",
    "rpc_servers",
    multiple=True,
    metavar="HOST:PORT",
    help="A ggml-rpc-server whose devices join the library's; repeatable. Trusted networks only.",
)
gpu_layers = click.option(
    "--gpu-layers",
    default=-1,
    show_default=True,
    type=click.IntRange(-1),
    help="Layers to offload; -1 is all.",
)

# Of those that run them in one place.
heads = click.option(
    "--heads", type=click.Path(path_type=Path), help="A drafter GGUF, where MODEL has no heads."
)
backend = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    help="Run on this backend's devices. Default: on all that the library has.",
)
exact = click.option("--exact", is_flag=True, help="Use the recorded batch-invariant build.")

# Of those that measure over prompts and report.
n_prompts = click.option(
    "--n-prompts",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Prompts taken, in turns from each set.",
)
prompt_sets = click.option(
    "--prompts",
    "prompt_sets",
    multiple=True,
    metavar="FILE|NAME",
    help="A shipped set or a JSON-lines file; repeatable. Default: all sets.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
output = click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the report, as JSON, to FILE; an earlier one there is removed first.",
)
html = click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write it as a page to read, in the same way.",
)
n_ctx = click.option(
    "--ctx", "n_ctx", type=click.IntRange(8), help="Context size. Default: as needed."
)
chat = click.option("--chat", is_flag=True, help="Wrap prompts in Gemma 4's turn markup.")
ignore_end = click.option("--ignore-end", is_flag=True, help="Decode on past end-of-text tokens.")
