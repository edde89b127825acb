"""An extracted drafter in Hugging Face's own model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import Gemma4AssistantForCausalLM

from gguf_mtp.drafters.litert.checkpoint import write_checkpoint
from gguf_mtp.drafters.litert.package import read_drafter
from litert.original import Floats, Shape, inputs


def run(package: Path, shape: Shape, position: int) -> dict[str, Floats]:
    """Logits and projected hidden state for the inputs of `position`, as in `build.run`."""
    torch.set_num_threads(1)
    drafter = read_drafter(package)
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(drafter, Path(name), force=True)
        model = Gemma4AssistantForCausalLM.from_pretrained(
            name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    cap = drafter.found.softcap
    given = {key: torch.from_numpy(value) for key, value in inputs(shape, position).items()}
    visible = {}
    for kind, layer in shape.kv_layers.items():
        # A window of W attends to W keys in LiteRT, to W + 1 in Hugging Face's model: cut here.
        first = 0 if kind == "full_attention" else max(0, position + 1 - shape.window)
        keys = given[f"kv_cache_k_{layer}"][:, :, first : position + 1]
        values = given[f"kv_cache_v_{layer}"].transpose(-1, -2)[:, :, first : position + 1]
        visible[kind] = (keys, values)
    with torch.no_grad():
        out = model(
            inputs_embeds=given["activations"],
            position_ids=torch.tensor([[position]]),
            shared_kv_states=visible,
        )
    logits = out.logits if cap is None else torch.tanh(out.logits / cap) * cap
    return {
        "logits": logits.numpy(),
        "projected_activations": out.last_hidden_state.numpy(),
    }
