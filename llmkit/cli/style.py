"""Commands and groups of commands: help under headings, every mistake in one style."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import typer
from typer.completion import shell_completion  # type: ignore[attr-defined]
from typer.core import TyperCommand, TyperGroup

from llmkit.errors import UserError, for_programs, tell

# Click's, which some versions of typer hold inside.
_UsageError: Any = next(error for error in typer.BadParameter.__mro__ if error.__name__ == "UsageError")


@contextmanager
def _in_our_style(ctx: Any = None) -> Iterator[None]:
    """Print what click refuses as `error: ... / hint: ...`, like every other mistake; the exit code is 2.

    `ctx` is the command's, for the mistakes that do not know theirs.
    """
    try:
        yield
    except _UsageError as mistake:
        if type(mistake).__name__ == "NoArgsIsHelpError":  # which is no mistake
            raise
        context, parameter = mistake.ctx or ctx, getattr(mistake, "param", None)
        message = str(mistake.message or "").removeprefix("Value error, ").replace("Input should be", "must be")
        message = message[:1].lower() + message[1:].rstrip(".")
        if type(mistake).__name__ == "MissingParameter":
            message = "is missing"
        if parameter is not None:
            message = (
                f"{max(parameter.opts, key=len) if parameter.opts[0].startswith('-') else parameter.metavar} {message}"
            )
        command = context.command_path if context is not None else "llmkit"
        usage = " ".join(context.get_usage().split()).removeprefix("Usage: ") if context is not None else command
        hint = f"{usage.replace('{', '').replace('}', '')}; for more: {command} -h"
        tell(UserError(f"{command}: {message}", hint))
        raise typer.Exit(2) from None


def _asks_for_json(args: list[str]) -> bool:
    options = args[: args.index("--")] if "--" in args else args
    return bool({"--json", "--format=json"} & {*options}) or ("--format", "json") in pairwise(options)


class Group(TyperGroup):
    """A group of commands, listed under headings, that tells every mistake in one style."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if parent is None:
            for_programs(_asks_for_json(args))
        with _in_our_style():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _in_our_style():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = not args or args[0].startswith("-") or self.get_command(ctx, args[0]) is not None
        if not known and not ctx.resilient_parsing:
            from llmkit.recipe.types import nearest

            close, named = nearest(args[0], self.commands), ", ".join(self.list_commands(ctx))
            hint = f"did you mean `{ctx.command_path} {close}`?" if close else f"the commands are {named}"
            tell(UserError(f"{ctx.command_path} has no command `{args[0]}`", hint))
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.commands[name]
            heading = command.rich_help_panel if isinstance(command.rich_help_panel, str) else "Commands"
            groups.setdefault(heading, []).append((name, command.get_short_help_str(limit=1000)))
        width = max(map(len, self.commands))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:{width}}", said) for name, said in rows])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.epilog, formatter)


def _write_examples(examples: str | None, formatter: Any) -> None:
    """Write the lines of an epilog as they are: click would fill them into a paragraph."""
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in examples.splitlines()))


class Command(TyperCommand):
    """A command that answers an option that it does not have with what to type instead."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if ctx.resilient_parsing:
            return self._take_apart(ctx, args)
        named = {
            name: (parameter.opts[-1], bool(getattr(parameter, "is_flag", False)))
            for parameter in self.get_params(ctx)
            if parameter.param_type_name == "option"
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        words = (arg.partition("=")[0] for arg in args)
        if any(re.match("--?[A-Za-z]", word) and word not in named for word in words):
            from llmkit.instead import Known, refuse_options

            known = {name: Known(*option) for name, option in named.items()}
            try:
                refuse_options(ctx.command_path.partition(" ")[2], args, known)
            except UserError as mistake:
                tell(mistake)
                raise typer.Exit(2) from None
        with _in_our_style(ctx):
            return super().parse_args(ctx, args)

    def _take_apart(self, ctx: Any, args: list[str]) -> list[str]:
        """Give completion the words as they are: to convert them, typer would load pydantic."""
        parser = self.make_parser(ctx)
        given, ctx.args, _ = parser.parse_args(args=args)
        ctx._opt_prefixes.update(parser._opt_prefixes)
        ctx.params.update(given)
        for name, value in given.items():
            if value not in (None, ()):
                ctx.set_parameter_source(name, shell_completion.ParameterSource.COMMANDLINE)  # type: ignore[attr-defined]
        return ctx.args

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options under headings, without click's names of their types."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = getattr(parameter, "rich_help_panel", None)
                heading = "Arguments" if parameter.param_type_name == "argument" else own or "Options"
                groups.setdefault(heading, []).append((re.sub(r" <[^>]*>$", "", record[0]), record[1]))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.epilog, formatter)
