"""The type of options that take a path or the name of a repository."""

import click
from click.shell_completion import CompletionItem


class Source(click.types.StringParamType):
    """Text as it was given: whether it is a path is seen when it is used. Shells complete files."""

    name = "path|repo"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


SOURCE = Source()
