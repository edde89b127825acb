"""Tensor names as a second opinion: where one speaks of a role, it must be the role found.

Names are no contract and most are missing after a rewrite, so silence says nothing.
"""

from gguf_mtp.drafters.litert.dataflow import Dataflow
from gguf_mtp.drafters.litert.identify import Found
from gguf_mtp.errors import FormatError

# Part of a name in Google's packages -> the end of the Hugging Face name.
HINTS = {
    "mtp_pre_proj": "pre_projection",
    "mtp_post_proj": "post_projection",
    "q_einsum": "q_proj",
    "attn_vec_einsum": "o_proj",
    "gating_einsum1": "gate_proj",
    "gating_einsum2": "up_proj",
    "mlp/linear": "down_proj",
    "embedder.decode": "embed_tokens",
}


def check_names(flow: Dataflow, found: Found) -> None:
    """Raise FormatError where the name of a weight contradicts its role."""
    for name, role in found.roles.items():
        tensor = flow.tensor(role.value)
        said = {ending for part, ending in HINTS.items() if part in tensor.name}
        if said and not any(name.endswith(ending) for ending in said):
            raise FormatError(
                f"{flow.where}: tensor {tensor.index} is {name} by the dataflow, "
                f"{' or '.join(sorted(said))} by its name {tensor.name!a} "
                "(--ignore-names trusts the dataflow)"
            )
