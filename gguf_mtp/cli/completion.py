"""``gguf-mtp completion``: what makes a shell complete verbs, options and files."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_GGUF_MTP_COMPLETE"  # click's name for a program called gguf-mtp


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, to be read when it starts.

    \b
    Example:
      gguf-mtp completion bash >> ~/.bash_completion
      gguf-mtp completion zsh > ~/.zfunc/_gguf-mtp      # a directory in $fpath
      gguf-mtp completion fish > ~/.config/fish/completions/gguf-mtp.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this click knows no completion for {shell}")
    click.echo(found(ctx.find_root().command, {}, "gguf-mtp", VARIABLE).source())
