"""Load llama-server with requests, with drafts and without, and compare the answers.

    python tools/soak_server.py MERGED.gguf --requests 120 --seeds 3

Requests of several kinds run in several slots; some are cancelled on the way. The same requests go
to a server with ``--spec-type none``. On the `exact` build with an F32 cache the texts are equal.
With a unified cache (``--flag=-kvu``) they may part at near ties, as two runs without drafts do:
cells of other sequences lie between, and sums run in another order. Prints JSON.

Exit codes: 0 the same answers, 1 not the same or a failed request, 2 could not run.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.programs import BenchError, Server, server
from gguf_mtp.validate.prompts import load_prompts
from llamacpp.pin import SetupError, read_record

TIMEOUT = 600
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "repeat_penalty": 1.3},
    {"temperature": 0, "n_probs": 2},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.7, "n_probs": 2, "post_sampling_probs": True},
    {"temperature": 0.9, "grammar": "root ::= [a-z ]*"},
)


@dataclass(frozen=True)
class Request:
    """One request; `cancel_after` events its client goes away (None: it stays)."""

    body: dict[str, Any]
    cancel_after: int | None


@dataclass
class Answer:
    """What came back, without times; `error` is empty where all went well."""

    error: str = ""
    events: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Report:
    """What the soak of one seed came to."""

    seed: int
    requests: int
    cancelled: int
    drafted: int
    accepted: int
    probabilities_apart: float  # the largest distance between two of the same token
    errors: list[str]
    different: list[dict[str, Any]]


def make_requests(seed: int, number: int, cancelled: float) -> list[Request]:
    rng = random.Random(seed)
    prompts = [prompt.text for prompt in load_prompts(["python", "chat"])]
    requests = []
    for _ in range(number):
        body = {
            "prompt": rng.choice(prompts)[: rng.randrange(20, 400)],
            "n_predict": rng.randrange(1, 96),
            "seed": rng.randrange(1000),
            "cache_prompt": rng.random() < 0.5,
            "ignore_eos": rng.random() < 0.5,
            **rng.choice(SAMPLING),
        }
        if rng.random() < 0.3:
            body["stop"] = [rng.choice(["\n\n", "def", ".", "self"])]
        leaves = rng.random() < cancelled
        requests.append(Request(body, rng.randrange(1, 12) if leaves else None))
    return requests


def ask(address: tuple[str, int], request: Request) -> Answer:
    """Send a request and read its stream to the end, or until it is cancelled."""
    answer = Answer()
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
    try:
        body = json.dumps({**request.body, "stream": True, "return_tokens": True})
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return Answer(error=f"{response.status}: {response.read(300).decode(errors='replace')}")
        tokens, probabilities = [], []
        for line in response:
            if not line.startswith(b"data: {"):
                if line.startswith(b"error:"):
                    return Answer(error=line.decode(errors="replace")[:300])
                continue
            event = json.loads(line[len(b"data: ") :])
            if "error" in event:
                return Answer(error=json.dumps(event["error"])[:300])
            answer.events += 1
            tokens += event.get("tokens", [])
            probabilities += event.get("completion_probabilities", [])
            if event.get("stop"):
                names = ("stop_type", "stopping_word", "tokens_predicted", "tokens_cached")
                answer.result = {name: event[name] for name in names}
                answer.drafted = event["timings"].get("draft_n", 0)
                answer.accepted = event["timings"].get("draft_n_accepted", 0)
            if request.cancel_after is not None and answer.events >= request.cancel_after:
                break
        answer.result |= {"tokens": tokens, "probabilities": probabilities}
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return answer


def answers(running: Server, requests: list[Request], slots: int) -> list[Answer]:
    with ThreadPoolExecutor(slots + slots // 2) as pool:
        return list(pool.map(lambda request: ask(running.address, request), requests))


def parting(plain: Answer, drafting: Answer) -> dict[str, Any]:
    """The first field in which two answers differ and what it is in both; empty for none."""
    for name, value in plain.result.items():
        other = drafting.result[name]
        if name == "tokens" and value != other:
            pairs = enumerate(zip(value, other, strict=False))
            place = next((i for i, (one, two) in pairs if one != two), min(len(value), len(other)))
            return {"field": name, "place": place, "values": [value[place:][:1], other[place:][:1]]}
        if name != "probabilities" and value != other:
            return {"field": name, "values": [value, other]}
    return {}


def apart(plain: Answer, drafting: Answer) -> float:
    """The largest distance between two answers' probabilities or log probabilities of tokens."""
    key = {"logprob", "prob"}
    pairs = zip(plain.result["probabilities"], drafting.result["probabilities"], strict=True)
    return max((abs(one[k] - two[k]) for one, two in pairs for k in key & set(one)), default=0.0)


def compare(seed: int, requests: list[Request], found: list[list[Answer]]) -> Report:
    errors, different, distance = [], [], 0.0
    for number, (request, plain, drafting) in enumerate(zip(requests, *found, strict=True)):
        for kind, answer in (("without drafts", plain), ("with drafts", drafting)):
            if answer.error:
                errors.append(f"request {number} {kind}: {answer.error}")
        if request.cancel_after is not None or plain.error or drafting.error:
            continue
        parted = parting(plain, drafting)
        if parted:
            different.append({"request": number, "body": request.body, **parted})
        else:
            distance = max(distance, apart(plain, drafting))
    return Report(
        seed,
        len(requests),
        sum(request.cancel_after is not None for request in requests),
        sum(answer.drafted for answer in found[1]),
        sum(answer.accepted for answer in found[1]),
        distance,
        errors,
        different,
    )


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--requests", "number", default=60, show_default=True, help="Requests per seed.")
@click.option("--seeds", default=1, show_default=True, help="Number of seeds.")
@click.option("--slots", default=4, show_default=True, help="Slots of the server.")
@click.option("--cancel", default=0.15, show_default=True, help="Share of cancelled requests.")
@click.option("--variant", default="exact", show_default=True, help="Build: default or exact.")
@click.option("--flag", "flags", multiple=True, help="Passed to both servers as it is.")
def main(
    model: Path,
    number: int,
    seeds: int,
    slots: int,
    cancel: float,
    variant: str,
    flags: tuple[str, ...],
) -> None:
    reports = []
    try:
        record: dict[str, Any] = read_record()
        build = record if variant == "default" else record[variant]
        program = Path(build["bin_dir"]) / "llama-server"
        size = ("-c", str(1024 * slots), "-np", str(slots))
        common = ("-m", str(model), *size, "-t", "1", "-td", "1", "-ctk", "f32", "-ctv", "f32")
        modes = (("--spec-type", "none"), ("--no-spec-draft-auto-depth",))
        for seed in range(seeds):
            requests = make_requests(seed, number, cancel)
            found = []
            for mode in modes:
                with server(program, [*common, *flags, *mode], ()) as running:
                    found.append(answers(running, requests, slots))
            reports.append(compare(seed, requests, found))
    except (SetupError, BenchError, KeyError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps([asdict(report) for report in reports], indent=2))
    sys.exit(1 if any(report.errors or report.different for report in reports) else 0)


if __name__ == "__main__":
    click.ClickException.exit_code = 2
    main()
