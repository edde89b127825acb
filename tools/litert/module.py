"""A Gemma 4 drafter as a torch module with the inputs and outputs of LiteRT-LM's `mtp_drafter`.

It stands for the graph inside Google's packages, as far as that is known: activations (embedding
first, then the hidden state), one position, a mask and the target's key-value cache go in; logits
and the projected hidden state come out. A dense head, the window inside the graph.
"""

from dataclasses import dataclass

import torch
from litert_torch.generative.layers.normalization import rms_norm_with_hlfb
from torch.nn import functional

from litert.original import FULL, SLIDING, Shape, frequencies

EPSILON = 1e-6
# The parts of tensor names in Google's packages that tell one matrix from another.
EXPORTED = {
    "pre_projection": "mtp_pre_proj",
    "post_projection": "mtp_post_proj",
    "embed_tokens": "embedder_decode",
    "q_proj": "q_einsum",
    "o_proj": "attn_vec_einsum",
    "gate_proj": "gating_einsum1",
    "up_proj": "gating_einsum2",
    "down_proj": "mlp_linear",
}


@dataclass(frozen=True)
class Style:
    """What exporters differ in. `composite`: norms as `odml.rms_norm`, else decomposed."""

    composite: bool = True
    softcap: float | None = None


class Drafter(torch.nn.Module):  # type: ignore[misc]
    """`weights` by their Hugging Face names, float32."""

    def __init__(self, shape: Shape, weights: dict[str, torch.Tensor], style: Style) -> None:
        super().__init__()
        self.shape = shape
        self.style = style
        self.linears = torch.nn.ModuleDict()
        self.vectors = torch.nn.ParameterDict()
        for name, value in weights.items():
            parameter = torch.nn.Parameter(value.float(), requires_grad=False)
            if value.dim() == 2:
                linear = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
                linear.weight = parameter
                self.linears[exported_name(name)] = linear
            else:
                self.vectors[name.replace(".", "/")] = parameter
        for kind, (theta, rotated) in shape.rope.items():
            turns = frequencies(shape.head_dims[kind], theta, rotated)
            self.register_buffer(f"rope_{kind}", torch.from_numpy(turns))

    def vector(self, name: str) -> torch.Tensor:
        return self.vectors[name.replace(".", "/")]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self.linears[exported_name(f"{name}.weight")](x)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.vector(f"{name}.weight")
        if self.style.composite:
            return rms_norm_with_hlfb(x, weight, EPSILON, torch.ones_like(weight))
        return x * torch.pow(x.pow(2).mean(-1, keepdim=True) + EPSILON, -0.5) * weight

    def rotate(self, q: torch.Tensor, position: torch.Tensor, kind: str) -> torch.Tensor:
        angles = position.float().reshape(1, 1, 1, 1) * getattr(self, f"rope_{kind}")
        cos, sin = torch.cos(angles), torch.sin(angles)
        first, second = q.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def attend(
        self,
        x: torch.Tensor,
        layer: int,
        position: torch.Tensor,
        mask: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
    ) -> torch.Tensor:
        kind = self.shape.layer_types[layer]
        width, groups = self.shape.head_dims[kind], self.shape.kv_heads
        name = f"model.layers.{layer}.self_attn"
        q = self.linear(x, f"{name}.q_proj").reshape(1, self.shape.heads, 1, width)
        q = self.rotate(self.norm(q, f"{name}.q_norm"), position, kind)
        q = q.reshape(1, groups, self.shape.heads // groups, width)
        scores = torch.matmul(q, k.transpose(-1, -2))
        weights = torch.softmax(torch.where(mask, scores, torch.full_like(scores, -1e9)), dim=-1)
        out = torch.matmul(weights, v.transpose(-1, -2)).reshape(1, 1, self.shape.heads * width)
        return self.linear(out, f"{name}.o_proj")

    def forward(
        self,
        activations: torch.Tensor,
        input_pos: torch.Tensor,
        mask: torch.Tensor,
        **kv: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        positions = torch.arange(self.shape.context, dtype=torch.int32).reshape(1, 1, 1, -1)
        near = positions > input_pos.reshape(1, 1, 1, 1) - self.shape.window
        masks = {FULL: mask, SLIDING: torch.logical_and(mask, near)}
        x = self.linear(activations, "pre_projection")
        for layer, kind in enumerate(self.shape.layer_types):
            name = f"model.layers.{layer}"
            source = self.shape.kv_layers[kind]
            k, v = kv[f"kv_cache_k_{source}"], kv[f"kv_cache_v_{source}"]
            h = self.norm(x, f"{name}.input_layernorm")
            h = self.attend(h, layer, input_pos, masks[kind], k, v)
            x = x + self.norm(h, f"{name}.post_attention_layernorm")
            h = self.norm(x, f"{name}.pre_feedforward_layernorm")
            gate = functional.gelu(self.linear(h, f"{name}.mlp.gate_proj"), approximate="tanh")
            h = self.linear(gate * self.linear(h, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")
            x = x + self.norm(h, f"{name}.post_feedforward_layernorm")
            if f"{name}.layer_scalar".replace(".", "/") in self.vectors:
                x = x * self.vector(f"{name}.layer_scalar")
        x = self.norm(x, "model.norm")
        logits = self.linear(x, "model.embed_tokens")
        if self.style.softcap is not None:
            logits = torch.tanh(logits / self.style.softcap) * self.style.softcap
        return {"logits": logits, "projected_activations": self.linear(x, "post_projection")}


def exported_name(name: str) -> str:
    """The submodule that holds the matrix `name`; the exporter names its tensors after it."""
    parts = name.split(".")
    layer = f"layer_{parts[2]}_" if parts[1] == "layers" else ""
    return layer + EXPORTED[parts[-2]]
