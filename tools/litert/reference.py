"""An extracted drafter in Hugging Face's own model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM

from gguf_mtp.drafters.litert.checkpoint import write_checkpoint
from gguf_mtp.drafters.litert.package import read_drafter
from litert.original import Floats, Shape, inputs

OPTIONS = {"dtype": torch.float32, "attn_implementation": "eager"}
STEPS = 3


def extracted(package: Path) -> Gemma4AssistantForCausalLM:
    """The drafter of `package`, written as a checkpoint and loaded again."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(read_drafter(package), Path(name), force=True)
        return Gemma4AssistantForCausalLM.from_pretrained(name, **OPTIONS).eval()


def run(package: Path, shape: Shape, position: int) -> dict[str, Floats]:
    """Logits and projected hidden state for the inputs of `position`, as in `build.run`."""
    model = extracted(package)
    cap = read_drafter(package).found.softcap
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


def draft(package: Path, target: Path, ids: list[int]) -> dict[str, Floats]:
    """The drafter's logits and next hidden state at each of three greedy steps after the last of
    `ids`, over the keys and values of the model in `target`; all of them within the window."""
    model = extracted(package)
    base = Gemma4ForCausalLM.from_pretrained(target, **OPTIONS).eval()
    position = len(ids) - 1
    logits, states = [], []
    with torch.no_grad():
        seen = base(
            torch.tensor([ids]),
            use_cache=False,
            output_hidden_states=True,
            return_shared_kv_states=True,
        )
        visible = {
            kind: (keys[:, :, :position], values[:, :, :position])
            for kind, (keys, values) in dict(seen.shared_kv_states).items()
        }
        token, state = ids[position], seen.hidden_states[-1][:, position - 1 : position]
        for _ in range(STEPS):
            embedded = base.get_input_embeddings()(torch.tensor([[token]]))
            out = model(
                inputs_embeds=torch.cat((embedded, state), dim=-1),
                position_ids=torch.tensor([[position]]),
                shared_kv_states=visible,
            )
            token, state = int(out.logits.argmax()), out.last_hidden_state
            logits.append(out.logits.reshape(-1).numpy())
            states.append(state.reshape(-1).numpy())
    return {"logits": np.stack(logits), "hidden": np.stack(states)}
