"""A Gemma 4 drafter's forward pass in numpy, for one position: what HF's and LiteRT's must equal.

Source: transformers 5.22 ``models/gemma4_assistant/modeling_gemma4_assistant.py`` and
``models/gemma4/modeling_gemma4.py``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from litert.original import SLIDING, Shape, frequencies

Floats = npt.NDArray[np.float64]


def forward(
    weights: dict[str, npt.NDArray[Any]],
    shape: Shape,
    given: dict[str, npt.NDArray[Any]],
    softcap: float | None,
) -> dict[str, Floats]:
    """Logits and projected hidden state for the signature's inputs `given`, in float64.

    Sliding layers attend to `shape.window` keys, as LiteRT's do.
    """
    tensors = {name: value.astype(np.float64) for name, value in weights.items()}
    position = int(given["input_pos"][0])

    def linear(x: Floats, name: str) -> Floats:
        product: Floats = x @ tensors[f"{name}.weight"].T
        return product

    def norm(x: Floats, name: str) -> Floats:
        scaled: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return scaled * tensors[f"{name}.weight"].reshape(-1)

    x = linear(given["activations"].reshape(-1).astype(np.float64), "pre_projection")
    for layer, kind in enumerate(shape.layer_types):
        name, width = f"model.layers.{layer}", shape.head_dims[kind]
        q = linear(norm(x, f"{name}.input_layernorm"), f"{name}.self_attn.q_proj")
        q = norm(q.reshape(shape.heads, width), f"{name}.self_attn.q_norm")
        angles = position * frequencies(width, *shape.rope[kind]).astype(np.float64)
        first, second = q[:, : width // 2], q[:, width // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        q = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=1)

        begin = max(0, position + 1 - shape.window) if kind == SLIDING else 0
        source = shape.kv_layers[kind]
        group = shape.heads // shape.kv_heads
        heads = []
        for head in range(shape.heads):
            keys = given[f"kv_cache_k_{source}"][0, head // group, begin : position + 1]
            values = given[f"kv_cache_v_{source}"][0, head // group, :, begin : position + 1]
            scores = keys.astype(np.float64) @ q[head]
            shares = np.exp(scores - scores.max())
            heads.append(values.astype(np.float64) @ (shares / shares.sum()))
        out = linear(np.concatenate(heads), f"{name}.self_attn.o_proj")
        x = x + norm(out, f"{name}.post_attention_layernorm")

        h = norm(x, f"{name}.pre_feedforward_layernorm")
        gate = linear(h, f"{name}.mlp.gate_proj")
        gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        h = linear(gate * linear(h, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")
        x = x + norm(h, f"{name}.post_feedforward_layernorm")
        x = x * tensors.get(f"{name}.layer_scalar", np.ones(1))
    x = norm(x, "model.norm")
    logits = linear(x, "model.embed_tokens")
    if softcap is not None:
        logits = np.tanh(logits / softcap) * softcap
    return {"logits": logits, "projected_activations": linear(x, "post_projection")}
