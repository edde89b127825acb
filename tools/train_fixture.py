"""Build the embedded Gemma 4 pair: corpus -> tokenizer -> target -> drafter -> HF directories.

Each stage leaves its result in the work directory and is skipped when that is already there, so
an interrupted run goes on where it stopped. Seeds are fixed; rounding, and so the exact weights,
may still differ between machines and builds of torch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import numpy as np
import torch
from transformers import (
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    GemmaTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from fixture import corpus, drafter, prompts, target, tokenizer
from fixture.speculate import greedy

REPOSITORY = Path(__file__).resolve().parent.parent
PAIR = REPOSITORY / "tests" / "fixtures" / "gemma4-tiny"
PROMPTS = REPOSITORY / "gguf_mtp" / "data" / "prompts" / "python.jsonl"
PROMPT_CHECK_TOKENS = 128


class Stages:
    """The stages in order; each returns its result, from the work directory when it is there."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.files = corpus.stdlib_sources()

    def tokenizer(self) -> GemmaTokenizer:
        """Learn the vocabulary."""
        directory = self.work / "tokenizer"
        if not directory.exists():
            tokenizer.build(self.files).save_pretrained(directory)
        return tokenizer.load(directory)

    def streams(self, tok: GemmaTokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Encode the corpus: token streams (uint16) for training and held out."""
        streams = []
        for name, held_out in (("train", False), ("held_out", True)):
            path = self.work / f"{name}.npy"
            if not path.exists():
                files = [file for file in self.files if file.held_out is held_out]
                np.save(path, tokenizer.encode_stream(tok, files))
            streams.append(np.load(path))
            click.echo(f"{name}: {len(streams[-1])} tokens")
        return streams[0], streams[1]

    def target(
        self, tok: GemmaTokenizer, stream: np.ndarray, held_out: np.ndarray
    ) -> Gemma4ForCausalLM:
        """Train the target; returns it in float32 with its weights rounded to bfloat16."""
        directory = self.work / "target"
        if not directory.exists():
            model = target.new_model(len(tok))
            figures = target.train(model, stream, held_out, tok.bos_token_id)
            self.save(model, tok, directory, figures)
        return Gemma4ForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def prompts(self, tok: GemmaTokenizer, base: Gemma4ForCausalLM) -> list[dict[str, str]]:
        """Choose the prompts, leaving out those the target answers with a short loop."""

        def accept(ids: list[int]) -> bool:
            continuation, _ = greedy(base, ids, PROMPT_CHECK_TOKENS)
            return not prompts.degenerate(continuation, tok.eos_token_id)

        return prompts.pick(tok, self.files, accept)

    def generated(self, base: Gemma4ForCausalLM, stream: np.ndarray, bos: int) -> np.ndarray:
        """Let the target write half of the drafter's training text."""
        path = self.work / "generated.npy"
        if not path.exists():
            np.save(path, drafter.generate(base, stream, bos).astype(np.uint16))
        own: np.ndarray = np.load(path).astype(np.int64)
        return own

    def drafter(
        self, tok: GemmaTokenizer, base: Gemma4ForCausalLM, stream: np.ndarray, own: np.ndarray
    ) -> Gemma4AssistantForCausalLM:
        """Train the drafter in two phases; returns it with its weights rounded to bfloat16."""
        model = drafter.new_model(base)
        for phase, name in ((drafter.LEARN, "drafter-learned"), (drafter.REFINE, "drafter")):
            directory = self.work / name
            if not directory.exists():
                figures = drafter.train(model, base, stream, own, tok.bos_token_id, phase)
                self.save(model, tok, directory, figures)
            model = Gemma4AssistantForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return model

    def save(
        self,
        model: PreTrainedModel,
        tok: GemmaTokenizer,
        directory: Path,
        figures: dict[str, float],
    ) -> None:
        """Write an HF directory in bfloat16, and the training figures beside it."""
        click.echo(f"{directory.name}: {figures}")
        directory.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
        model.generation_config = GenerationConfig(
            bos_token_id=tok.bos_token_id,
            eos_token_id=[tok.eos_token_id, tok.convert_tokens_to_ids("<turn|>")],
            pad_token_id=tok.pad_token_id,
            **({"num_assistant_tokens": 3} if directory.name != "target" else {}),
        )
        partial = directory.with_suffix(".partial")
        model.to(torch.bfloat16).save_pretrained(partial)
        shutil.copytree(self.work / "tokenizer", partial, dirs_exist_ok=True)
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.rename(directory)


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory for intermediate results; delete it to start over.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=PAIR,
    show_default="tests/fixtures/gemma4-tiny",
    help="Where target/ and drafter/ go.",
)
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=PROMPTS,
    show_default="gguf_mtp/data/prompts/python.jsonl",
    help="Where the prompts from held-out files go.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(work: Path, out: Path, prompt_file: Path, threads: int) -> None:
    """Train the small Gemma 4 pair and write it as two Hugging Face directories.

    Example: python tools/train_fixture.py --work /tmp/gemma4-tiny
    """
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    stages = Stages(work)
    tok = stages.tokenizer()
    stream, held_out = stages.streams(tok)
    base = stages.target(tok, stream, held_out)
    prompts.write(prompt_file, stages.prompts(tok, base))
    own = stages.generated(base, stream, tok.bos_token_id)
    stages.drafter(tok, base, stream, own)
    for name in ("target", "drafter"):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(work / name, out / name)
        click.echo(f"wrote {out / name}")


if __name__ == "__main__":
    main()
