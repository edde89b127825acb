"""``gguf-mtp run``: text from a merged file with MTP, as it is made, and what MTP gained."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from gguf_mtp.cli import shared
from gguf_mtp.cli.devices import model_options, open_library
from gguf_mtp.runtime.bindings import MAX_OUTPUTS
from gguf_mtp.runtime.coupled import SEEDS
from gguf_mtp.runtime.generate import DEFAULT_DRAFTS, STOPPED, Generation, MtpModel, Statistics

INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True)
class _Shown:
    """How text goes to stdout."""

    marks: bool  # underline what was drafted
    safe: bool  # a terminal acts on control characters

    def write(self, text: str, drafted: bool) -> None:
        if self.safe:
            text = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
        if self.marks and drafted:
            text = click.style(text, fg="green", underline=True)
        # Click drops colours where stdout is no terminal; here they were asked for.
        click.echo(text, nl=False, color=True if self.marks else None)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Go on asking; the conversation is kept.")
@click.option(
    "--raw", is_flag=True, help="Continue PROMPT as it stands, also where the file has a template."
)
@click.option(
    "-n",
    "--n-predict",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens at most, of each answer.",
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0 is greedy; above it every token is sampled from the model's distribution.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, SEEDS - 1),
    help="Repeat a sampled text: the same for every --n-max. Default: a random seed.",
)
@click.option(
    "--n-max",
    default=DEFAULT_DRAFTS,
    show_default=True,
    type=click.IntRange(0, MAX_OUTPUTS - 1),
    help="Tokens drafted per round; 0 decodes without drafts.",
)
@click.option("--no-mtp", is_flag=True, help="Same as --n-max 0.")
@click.option("--show-drafts", is_flag=True, help="Underline what the heads guessed.")
@shared.heads
@shared.threads
@click.option("--ctx", "n_ctx", type=click.IntRange(8), help="Context. Default: up to 4096.")
@shared.kv_type
@shared.flash_attn
@shared.backend
@shared.device
@shared.rpc
@shared.gpu_layers
@shared.exact
@click.option("-q", "--quiet", is_flag=True, help="Print no figures behind the text.")
@click.option("--json", "as_json", is_flag=True, help="Print text and figures as JSON.")
@shared.verbose
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    prompt: str | None,
    chat: bool,
    raw: bool,
    n_predict: int,
    temperature: float,
    seed: int | None,
    n_max: int,
    no_mtp: bool,
    show_drafts: bool,
    heads: Path | None,
    threads: int | None,
    n_ctx: int | None,
    kv_type: str,
    flash_attn: str,
    backend: str | None,
    device: str | None,
    rpc_servers: tuple[str, ...],
    gpu_layers: int,
    exact: bool,
    quiet: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Answer PROMPT (- reads it from stdin) with MODEL, drafting with the heads inside it.

    A file with a chat template gets PROMPT as a user's turn, in Gemma 4's markup. Text goes to
    stdout, figures to stderr: tokens a second, with a short plain continuation to compare with.
    Ctrl-C ends an answer; with --chat, Ctrl-D the conversation.

    \b
    Example:
      gguf-mtp run e2b-mtp.gguf "Why is the sky blue?"
    """
    if prompt is None and not chat:
        raise click.UsageError("give a PROMPT, - for stdin, or --chat")
    for given, option in ((raw, "--raw"), (as_json, "--json")):
        if chat and given:
            raise click.UsageError(f"--chat does not go with {option}")
    if prompt is not None:
        prompt = _text(prompt)
    library = open_library(
        exact=exact, backend=backend, device=device, servers=rpc_servers, verbose=verbose
    )
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "seed": seed,
        "n_max": 0 if no_mtp else n_max,
    }
    shown = _Shown(marks=show_drafts, safe=sys.stdout.isatty())
    with MtpModel(
        model,
        heads,
        n_ctx=n_ctx,
        n_threads=threads,
        kv_type=kv_type,
        flash_attn=flash_attn,
        options=model_options(library, backend, device, gpu_layers),
        library=library,
    ) as opened:
        if chat:
            _converse(opened, prompt, n_predict, sampling, shown, quiet)
            return
        turn = not raw and opened.pair.base.has_chat_template
        answer = opened.stream(prompt or "", n_predict, turn=turn, **sampling)
        if as_json:
            text = _collect(answer)
            click.echo(json.dumps(_facts(opened, answer, text), indent=2))
        else:
            _show(answer, shown)
            if not quiet:
                click.echo(summary(answer.statistics, _plain(opened, answer)), err=True)
    if answer.statistics.ended == STOPPED:
        ctx.exit(INTERRUPTED)


@contextmanager
def _as_utf8() -> Iterator[None]:
    """Within, text that is not UTF-8 is a UsageError."""
    try:
        yield
    except UnicodeError as error:
        raise click.UsageError(f"the prompt is not UTF-8 ({error})") from None


def _text(prompt: str) -> str:
    """The prompt, from stdin where it is "-"."""
    with _as_utf8():
        if prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        prompt.encode("utf-8")
    return prompt


def _converse(
    model: MtpModel,
    first: str | None,
    n_predict: int,
    sampling: dict[str, Any],
    shown: _Shown,
    quiet: bool,
) -> None:
    conversation = model.chat()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # between answers it asks again
    for message in _messages(first):
        answer = conversation.say(message, n_predict, **sampling)
        _show(answer, shown)
        if not quiet:
            click.echo(summary(answer.statistics, _plain(model, answer)), err=True)


def _messages(first: str | None) -> Iterator[str]:
    """What the user says, until Ctrl-D; empty lines and Ctrl-C ask again."""
    if first is not None:
        yield first
    interactive = sys.stdin.isatty()
    while True:
        try:
            with _as_utf8():
                message = input("> ") if interactive else _line()
                message.encode("utf-8")
        except EOFError:
            if interactive:
                click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D ends the conversation)", err=True)
            continue
        if message.strip():
            yield message


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _show(answer: Generation, shown: _Shown) -> None:
    last = "\n"
    with _stop_on_interrupt(answer):
        for piece in answer:
            if piece.text:
                shown.write(piece.text, piece.drafted)
                last = piece.text
    if not last.endswith("\n"):
        click.echo()


def _collect(answer: Generation) -> str:
    with _stop_on_interrupt(answer):
        return answer.text()


@contextmanager
def _stop_on_interrupt(answer: Generation) -> Iterator[None]:
    """Within, Ctrl-C ends the answer, and a second one the program."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answer.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _plain(model: MtpModel, answer: Generation) -> float | None:
    """Tokens a second without drafts, where there were drafts and nobody waits for the prompt."""
    statistics = answer.statistics
    if not statistics.drafted or statistics.ended == STOPPED:
        return None
    return model.plain_tokens_per_second()


def summary(s: Statistics, plain: float | None) -> str:
    """One line of figures; `plain` is the speed without drafts, where it was measured."""
    rate = s.tokens_per_second
    parts = [f"{s.tokens} tokens"]
    if rate is not None:
        parts.append(f"{rate:.1f} tokens/s" + (" with MTP" if s.drafted else ""))
        if plain is not None:
            parts.append(f"{plain:.1f} without: {rate / plain:.2f}x")
    if s.acceptance is not None and s.tokens_per_pass is not None:
        parts.append(f"{100 * s.acceptance:.0f} % of drafts accepted")
        parts.append(f"{s.tokens_per_pass:.2f} tokens a pass")
    if s.ended != "end":
        parts.append(
            {"length": "cut at -n", "context": "the context is full"}.get(s.ended, s.ended)
        )
    return f"[{', '.join(parts)}]"


def _facts(model: MtpModel, answer: Generation, text: str) -> dict[str, Any]:
    s = answer.statistics
    return {
        "text": text,
        "tokens": answer.tokens,
        "statistics": asdict(s),
        "tokens_per_second": s.tokens_per_second,
        "plain_tokens_per_second": _plain(model, answer),
        "tokens_per_pass": s.tokens_per_pass,
        "acceptance": s.acceptance,
    }
