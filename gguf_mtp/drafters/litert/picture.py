"""A drafter's graph as a picture that a person can read: one SVG, nothing fetched from anywhere."""

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from gguf_mtp.drafters.litert.package import HEAD, LitertDrafter, provenance
from gguf_mtp.gemma4.config import SLIDING

BOX_WIDTH, BOX_HEIGHT = 190, 46
COLUMN = BOX_WIDTH + 34
RESIDUAL_X, FIRST_X = 70, 130
ATTENTION_HEIGHT, FEED_FORWARD_HEIGHT = 132, 176
COLORS = {"INT8": "#cfe2ff", "INT4": "#d1f0d1", "INT2": "#fff3bf"}
FLOAT_COLOR, STEP_COLOR, VALUE_COLOR = "#e9ecef", "#ffffff", "#f8e1f4"
STYLE = (
    "text{font:12px sans-serif;text-anchor:middle}.s{font-size:10px;fill:#555}"
    ".l{text-anchor:start}.h{font-size:15px;font-weight:bold;text-anchor:start}"
    "rect,circle{stroke:#444}path{fill:none;stroke:#444;marker-end:url(#a)}.r{stroke-width:2.5}"
)


@dataclass(frozen=True)
class Box:
    """A box by its left edge and the middle of its height."""

    x: float
    y: float

    @property
    def right(self) -> float:
        return self.x + BOX_WIDTH


class _Drawing:
    def __init__(self, drafter: LitertDrafter) -> None:
        self.drafter = drafter
        self.parts: list[str] = []

    def box(
        self, column: int, y: float, title: str, detail: str, color: str, hint: str = ""
    ) -> Box:
        x = FIRST_X + column * COLUMN
        middle = x + BOX_WIDTH / 2
        self.parts.append(
            f'<g><title>{_text(hint or title)}</title><rect x="{x}" y="{y - BOX_HEIGHT / 2}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{color}"/>'
            f'<text x="{middle}" y="{y - 3}">{_text(title)}</text>'
            f'<text x="{middle}" y="{y + 13}" class="s">{_text(detail)}</text></g>'
        )
        return Box(x, y)

    def weight(self, column: int, y: float, name: str) -> Box:
        """A step with a weight: its name, shape and type; the tensor's own name on hovering."""
        weight = self.drafter.weights[name]
        tensor = weight.tensor
        scales = "" if weight.scales is None else f", a scale per {weight.block}"
        shape = " x ".join(str(size) for size in weight.shape)
        title = "head" if name == HEAD else name.rsplit(".", 1)[-1]
        hint = f"{name}: tensor {tensor.index}, {tensor.name}, at {weight.place.offset}{scales}"
        color = COLORS.get(tensor.dtype, FLOAT_COLOR)
        return self.box(column, y, title, f"{tensor.dtype} {shape}", color, hint)

    def step(self, column: int, y: float, title: str, detail: str = "") -> Box:
        return self.box(column, y, title, detail, STEP_COLOR)

    def line(self, *points: tuple[float, float], residual: bool = False) -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        kind = ' class="r"' if residual else ""
        self.parts.append(f'<path d="M{path}"{kind}/>')

    def join(self, *boxes: Box) -> None:
        for left, right in pairwise(boxes):
            self.line((left.right, left.y), (right.x, right.y))

    def circle(self, x: float, y: float, sign: str) -> None:
        self.parts.append(
            f'<circle cx="{x}" cy="{y}" r="11" fill="{STEP_COLOR}"/>'
            f'<text x="{x}" y="{y + 4}">{sign}</text>'
        )

    def label(self, x: float, y: float, text: str, kind: str = "s l") -> None:
        self.parts.append(f'<text x="{x}" y="{y}" class="{kind}">{_text(text)}</text>')

    def branch(self, top: float, last: Box, bottom: float) -> None:
        """The residual from `top` on, and the way back to it from the end of a branch."""
        middle = last.x + BOX_WIDTH / 2
        self.line((middle, last.y + BOX_HEIGHT / 2), (middle, bottom), (RESIDUAL_X + 12, bottom))
        self.line((RESIDUAL_X, top), (RESIDUAL_X, bottom - 12), residual=True)
        self.circle(RESIDUAL_X, bottom, "+")


def draw_svg(drafter: LitertDrafter) -> str:
    """The layers from top to bottom, the residual on the left, each branch to its right."""
    findings = drafter.findings
    drawing = _Drawing(drafter)
    drawing.label(20, 30, f"{drafter.path.name}: {drafter.signature.key}", "h")
    drawing.label(20, 50, _legend(drafter))
    y: float = 100
    taken = drawing.box(
        0,
        y,
        "activations",
        f"{findings.backbone} embedding + {findings.backbone} hidden",
        VALUE_COLOR,
    )
    pre = drawing.weight(1, y, "pre_projection")
    drawing.join(taken, pre)
    middle = pre.x + BOX_WIDTH / 2
    y += 60
    drawing.line(
        (middle, pre.y + BOX_HEIGHT / 2), (middle, y), (RESIDUAL_X, y), (RESIDUAL_X, y + 10)
    )
    for index, kind in enumerate(findings.layer_types):
        y = _draw_layer(drawing, index, kind, y + 50)
    y += 70
    drawing.line((RESIDUAL_X, y - 70 + 12), (RESIDUAL_X, y), (FIRST_X, y), residual=True)
    norm = drawing.weight(0, y, "model.norm")
    head = drawing.weight(1, y - 30, HEAD)
    post = drawing.weight(1, y + 30, "post_projection")
    drawing.join(norm, head)
    drawing.join(norm, post)
    cap = drafter.found.softcap
    logits = drawing.box(3, y - 30, "logits", f"{findings.vocab_size}", VALUE_COLOR)
    if cap is None:
        drawing.join(head, logits)
    else:
        folded = "1 / cap folded into the head" if drafter.found.folded else ""
        drawing.join(head, drawing.step(2, y - 30, f"softcap {cap:g}", folded), logits)
    out = drawing.box(3, y + 30, "projected_activations", f"{findings.backbone}", VALUE_COLOR)
    drawing.join(post, out)
    width, height = FIRST_X + 6 * COLUMN, y + 80
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" '
        f'width="{width}" height="{height:g}"><style>{STYLE}</style><defs><marker id="a" '
        'viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill:#444;stroke:none;marker-end:none"/></marker></defs>'
        f'<rect width="{width}" height="{height:g}" style="fill:#fff;stroke:none"/>'
        f"{''.join(drawing.parts)}</svg>\n"
    )


def _legend(drafter: LitertDrafter) -> str:
    findings = drafter.findings
    counts = f"{len(findings.layer_types)} layers of {findings.hidden_size}"
    return (
        f"{counts}, {findings.heads} heads, for a target of {findings.backbone}; "
        "blue: INT8, green: INT4, yellow: INT2, grey: floats, pink: inputs and outputs"
    )


def _draw_layer(drawing: _Drawing, index: int, kind: str, y: float) -> float:
    """One layer from `y` down; returns where its residual ends."""
    findings = drawing.drafter.findings
    name = f"model.layers.{index}"
    window = findings.window if kind == SLIDING else None
    seen = f"a window of {window} keys" if window else kind.replace("_", " ")
    drawing.label(8, y - 26, f"layer {index}")
    attention = drawing.step(3, y, "attention", seen)
    boxes = [
        drawing.weight(0, y, f"{name}.input_layernorm"),
        drawing.weight(1, y, f"{name}.self_attn.q_proj"),
        drawing.weight(2, y, f"{name}.self_attn.q_norm"),
        attention,
        drawing.weight(4, y, f"{name}.self_attn.o_proj"),
        drawing.weight(5, y, f"{name}.post_attention_layernorm"),
    ]
    drawing.line((RESIDUAL_X, y), (FIRST_X, y))
    drawing.join(*boxes)
    source = findings.kv_layers[kind]
    drawing.label(attention.x + 6, y - 30, f"K, V of the target's layer {source}")
    bottom = y + ATTENTION_HEIGHT - 70
    drawing.branch(y - 40, boxes[-1], bottom)

    y += ATTENTION_HEIGHT + 18
    norm = drawing.weight(0, y, f"{name}.pre_feedforward_layernorm")
    gate = drawing.weight(1, y - 28, f"{name}.mlp.gate_proj")
    up = drawing.weight(1, y + 28, f"{name}.mlp.up_proj")
    curve = drawing.step(2, y - 28, "GELU", "tanh approximation")
    product = drawing.step(3, y, "product")
    down = drawing.weight(4, y, f"{name}.mlp.down_proj")
    last = drawing.weight(5, y, f"{name}.post_feedforward_layernorm")
    drawing.line((RESIDUAL_X, y), (FIRST_X, y))
    drawing.join(norm, gate, curve, product, down, last)
    drawing.join(norm, up, product)
    top, bottom = bottom + 12, y + FEED_FORWARD_HEIGHT - 96
    drawing.branch(top, last, bottom)
    scalar = drawing.drafter.found.layers[index].scalar
    if scalar is not None:
        drawing.label(RESIDUAL_X + 18, bottom + 22, f"times layer_scalar {scalar:g}")
    return bottom


def draw_html(drafter: LitertDrafter) -> str:
    """A page with the picture and, below, what else is known."""
    rows = "".join(
        f"<tr><th>{_text(name)}</th><td>{_value(value)}</td></tr>"
        for name, value in provenance(drafter).items()
    )
    return (
        f'<!doctype html><meta charset="utf-8"><title>{_text(drafter.path.name)}</title>'
        "<style>body{font:14px sans-serif;margin:1em}th{text-align:left;vertical-align:top;"
        "padding-right:1em}svg{max-width:100%;height:auto}</style>"
        f"{draw_svg(drafter)}<table>{rows}</table>\n"
    )


def _value(value: object) -> str:
    items = value if isinstance(value, list) else [value]
    return "<br>".join(_text(str(item)) for item in items)


def _text(text: str) -> str:
    """Text of a file, fit for XML: no control characters, escaped, not endless."""
    return escape("".join(char if char.isprintable() else "?" for char in text[:300]))
