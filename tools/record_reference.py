"""Record what Hugging Face transformers computes with the embedded pair, for llama.cpp to meet.

Writes reference.npz (logits, states and drafts at a few places), greedy.json (plain greedy text of
every shipped prompt) and acceptance.json (a greedy draft/verify loop over the same prompts). The
README beside them describes every array.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers

from fixture import prompts, tokenizer
from fixture.speculate import Pair, Tally, greedy

REPOSITORY = Path(__file__).resolve().parent.parent
PAIR = REPOSITORY / "tests" / "fixtures" / "gemma4-tiny"
PROMPTS = REPOSITORY / "gguf_mtp" / "data" / "prompts" / "python.jsonl"

NEW_TOKENS = 128
MAX_CONTEXT = 48  # below the sliding window of 64, where implementations differ by a row or two
STEPS = 3
REFERENCE_PROMPTS = (0, 9, 18, 27)


def record_sequence(pair: Pair, ids: list[int]) -> dict[str, np.ndarray]:
    """Return the arrays of one sequence of n <= MAX_CONTEXT tokens, BOS first."""
    count = len(ids)
    logits, hidden, shared = pair.run(ids)
    rows = np.unique(np.linspace(0, count - 1, 6).astype(int))
    chains = {
        dense: [
            [step.token for step in pair.draft(ids[p], p, hidden[p - 1], shared, STEPS, dense)]
            for p in range(1, count)
        ]
        for dense in (False, True)
    }
    # One place in full: the last token is the newest, the target has run over those before it.
    place = count - 1
    steps = pair.draft(ids[place], place, hidden[place - 1], shared, STEPS)
    return {
        "ids": np.array(ids, np.int32),
        "argmax": logits.argmax(-1).numpy().astype(np.int32),
        "rows": rows.astype(np.int32),
        "base_logits": logits[rows].numpy(),
        "hidden": hidden[rows].numpy(),
        "draft_tokens": np.array(chains[False], np.int32),
        "draft_tokens_dense": np.array(chains[True], np.int32),
        "draft_position": np.array(place, np.int32),
        "draft_hidden_in": hidden[place - 1].numpy(),
        "draft_ordered_logits": np.stack([step.ordered.numpy() for step in steps]),
        "draft_dense_logits": np.stack([step.dense.numpy() for step in steps]),
        "draft_centroids": np.stack([step.centroids.numpy() for step in steps]).astype(np.int32),
        "draft_hidden": np.stack([step.hidden.numpy() for step in steps]),
    }


def summarize(tallies: list[Tally], n_max: int) -> dict[str, Any]:
    """Turn the rounds of many runs into acceptance figures."""
    accepted = np.concatenate([tally.accepted for tally in tallies])
    novel = np.concatenate([tally.novel for tally in tallies])

    def figures(values: np.ndarray) -> dict[str, Any]:
        return {
            "rounds": len(values),
            "p_first_k_accepted": [
                round(float((values >= k).mean()), 4) for k in range(1, n_max + 1)
            ],
            "tokens_per_target_pass": round(float(values.mean() + 1), 4),
        }

    return {
        **figures(accepted),
        "novel_share": round(float(novel.mean()), 4),
        "novel": figures(accepted[novel]),
    }


@dataclass(frozen=True)
class Run:
    """One way of decoding speculatively."""

    n_max: int
    temperature: float = 0.0
    dense_head: bool = False


# The head is the ordered one unless it says otherwise.
RUNS = {
    "greedy": [Run(n_max) for n_max in range(1, STEPS + 1)],
    "greedy_dense_head": [Run(STEPS, dense_head=True)],
    "sampled_t_0.8": [Run(STEPS, temperature=0.8)],
}


@dataclass(frozen=True)
class PromptRecord:
    """Everything decoded from one prompt."""

    greedy_ids: list[int]
    margins: list[float]
    tallies: dict[Run, Tally]


@functools.cache
def loaded(directory: Path) -> Pair:
    """Load the pair, once in each process; nothing here needs gradients."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return Pair(directory)


def decode_prompt(directory: Path, ids: list[int], seed: int) -> PromptRecord:
    """Decode one prompt plainly and in every speculative way; greedy texts must all be equal."""
    pair = loaded(directory)
    plain, margins = greedy(pair.target, ids, NEW_TOKENS)
    tallies = {}
    for run in (run for runs in RUNS.values() for run in runs):
        text, tallies[run] = pair.speculate(
            ids, NEW_TOKENS, run.n_max, run.temperature, seed, run.dense_head
        )
        if run.temperature == 0.0 and text != plain:
            raise click.ClickException(f"prompt {seed}: {run} gives another text than plain greedy")
    return PromptRecord(plain, margins, tallies)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON with one line for each item of the two outer levels."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and any(isinstance(v, dict) for v in item.values()):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in item.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(item)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def check_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Compare fresh arrays with those on file: integers exactly, floats within 1e-4."""
    with np.load(path) as stored:
        if sorted(stored.files) != sorted(arrays):
            raise click.ClickException(f"{path.name}: other arrays than expected")
        for name, fresh in arrays.items():
            kept = stored[name]
            exact = fresh.dtype.kind != "f"
            same = np.array_equal(kept, fresh) if exact else np.allclose(kept, fresh, 0, 1e-4)
            if not same:
                raise click.ClickException(f"{path.name}: {name} differs from a fresh run")
    click.echo(f"{path.name}: {len(arrays)} arrays reproduced")


@click.command()
@click.option(
    "--pair",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=PAIR,
    show_default="tests/fixtures/gemma4-tiny",
    help="Directory with target/ and drafter/; the records go there too.",
)
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=PROMPTS,
    show_default="gguf_mtp/data/prompts/python.jsonl",
)
@click.option("--check", is_flag=True, help="Compare with reference.npz instead of writing.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
def main(directory: Path, prompt_file: Path, check: bool, jobs: int) -> None:
    """Record the reference values of the embedded pair.

    Example: python tools/record_reference.py --check
    """
    pair = loaded(directory)
    tok = tokenizer.load(directory / "target")
    rows = prompts.read(prompt_file)
    encoded = [tok.encode(row["text"]) for row in rows]
    about = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "dtype": "float32",
        "attention": "eager",
    }

    arrays = {name: np.array(value) for name, value in about.items()}
    for number, index in enumerate(REFERENCE_PROMPTS):
        for name, array in record_sequence(pair, encoded[index][:MAX_CONTEXT]).items():
            arrays[f"seq{number}_{name}"] = array
    if check:
        check_arrays(directory / "reference.npz", arrays)
        return
    np.savez_compressed(directory / "reference.npz", allow_pickle=False, **arrays)

    records = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        futures = [pool.submit(decode_prompt, directory, ids, i) for i, ids in enumerate(encoded)]
        for row, future in zip(rows, futures, strict=True):
            records.append(future.result())
            click.echo(f"{row['id']} decoded")

    texts = {
        row["id"]: {
            "prompt_ids": ids,
            "greedy_ids": record.greedy_ids,
            "margins": [round(margin, 3) for margin in record.margins],
        }
        for row, ids, record in zip(rows, encoded, records, strict=True)
    }
    write_json(directory / "greedy.json", {**about, "prompts": texts})

    acceptance: dict[str, Any] = {**about, "prompts": len(rows), "new_tokens": NEW_TOKENS}
    for title, runs in RUNS.items():
        acceptance[title] = {
            f"n_max_{run.n_max}": summarize([record.tallies[run] for record in records], run.n_max)
            for run in runs
        }
    write_json(directory / "acceptance.json", acceptance)
    for title in RUNS:
        for name, figures in acceptance[title].items():
            click.echo(f"{title}, {name}: {json.dumps(figures)}")


if __name__ == "__main__":
    main()
