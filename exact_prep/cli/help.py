"""What `--help` prints: plain text in at most 80 columns, in which no name is ever cut.

Typer's own tables cut long names in a narrow terminal, and have no place for examples.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any, get_args

from typer.core import TyperCommand, TyperGroup

from exact_prep.cli.config_file import add_options
from exact_prep.errors import UsageError

TERM_WIDTH = 24
"""Columns of an option's names and value; longer ones have a line of their own."""

COMMAND_WIDTH = 10

EXAMPLES = "Examples:"
"""The line of a command's help from which lines are printed as they are."""

PLACEHOLDERS = {"integer": "N", "int": "N", "float": "X", "path": "PATH"}
"""What stands for a value, by the first word of its type's name."""


class Command(TyperCommand):
    """A command whose help has arguments, options by panel, and examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line, after the options of its `--config`."""
        commands = sorted(ctx.parent.command.commands) if ctx.parent else []
        arguments = add_options(self, ctx, args, commands)
        self.check_required(ctx, arguments)
        return super().parse_args(ctx, arguments)

    def check_required(self, ctx: Any, args: list[str]) -> None:
        """Raise UsageError that names everything that is missing: Click would name the first alone."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if ctx.resilient_parsing or given.get("help"):
            return
        missing = [each for each in self.get_params(ctx) if each.required and given.get(each.name) in (None, (), [])]
        if missing:
            named = [
                name_argument(each) if each.param_type_name == "argument" else name_option(each) for each in missing
            ]
            raise UsageError(f"missing: {'; '.join(named)}. See `{ctx.command_path} --help`")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        parameters = self.get_params(ctx)
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        text, examples = split_examples(self.help or "")
        write_paragraphs(formatter, [make_usage(ctx, map(name_argument, arguments)), *text])
        write_section(formatter, "Arguments", [(name_argument(each), explain(each)) for each in arguments])
        write_options(formatter, [each for each in parameters if each.param_type_name == "option"])
        write_examples(formatter, examples)


class Group(TyperGroup):
    """The program: its commands, options, and examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        text, examples = split_examples(self.help or "")
        write_paragraphs(formatter, [make_usage(ctx, ["COMMAND ..."]), *text])
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, split_examples(each.help or "")[0][0]) for name, each in commands if each is not None]
        write_section(formatter, "Commands", rows, COMMAND_WIDTH)
        write_options(formatter, self.get_params(ctx))
        write_examples(formatter, examples)


def split_examples(text: str) -> tuple[list[str], str]:
    """The paragraphs of a help text, and the lines of its examples."""
    text, _, examples = text.partition(f"\n{EXAMPLES}\n")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")], textwrap.dedent(examples).strip()


def make_usage(ctx: Any, words: Iterable[str]) -> str:
    """How a command is called."""
    return " ".join(("Usage:", ctx.command_path, "[OPTIONS]", *words))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, in which no word is broken, at a hyphen neither."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def write_paragraphs(formatter: Any, paragraphs: Iterable[str]) -> None:
    """Paragraphs, wrapped, with an empty line between two."""
    formatter.write("\n\n".join("\n".join(wrap(each, formatter.width)) for each in paragraphs) + "\n")


def write_section(formatter: Any, title: str, rows: list[tuple[str, str]], width: int = TERM_WIDTH) -> None:
    """Terms and what they mean, below a title; a term that is longer than `width` has a line of its own."""
    if not rows:
        return
    formatter.write(f"\n{title}:\n")
    for term, text in rows:
        lines = wrap(text, formatter.width - width - 4) or [""]
        if len(term) > width:
            formatter.write(f"  {term}\n")
            term = ""
        for line in lines:
            formatter.write(f"  {term:{width}}  {line}\n")
            term = ""


def write_options(formatter: Any, options: list[Any]) -> None:
    """Options by panel: those without one first, those about the run and --help last."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for option in sorted(options, key=lambda option: "--help" in option.opts):
        if not option.hidden:
            title = getattr(option, "rich_help_panel", None) or "Options"  # --help may be Click's own
            if "--help" in option.opts and "Run" in panels:
                title = "Run"
            panels.setdefault(title, []).append((name_option(option), explain(option)))
    for title in sorted(panels, key=lambda title: (title == "Run", title != "Options")):
        write_section(formatter, title, panels[title])


def write_examples(formatter: Any, lines: str) -> None:
    """Examples, to be copied: never wrapped."""
    if lines:
        formatter.write(f"\n{EXAMPLES}\n{textwrap.indent(lines, '  ')}\n")


def name_argument(argument: Any) -> str:
    """An argument as it stands in the usage line."""
    return (argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")


def name_option(option: Any) -> str:
    """Short names, long names and the value: `-o, --out PATH`."""
    names = ", ".join(sorted(option.opts, key=len) + option.secondary_opts)
    return names if option.is_flag else f"{names} {option.metavar or name_value(option)}"


def name_value(option: Any) -> str:
    """The choices of an option, or a word for its type."""
    if hasattr(option, "type"):  # up to Typer 0.26 or so, in which parameters are Click's
        choices, kind = getattr(option.type, "choices", ()), option.type.name.split()[0]
    else:
        annotation = option.type_descriptor.annotation
        choices, kind = get_args(annotation), getattr(annotation, "__name__", "")
    return "|".join(map(str, choices)) or PLACEHOLDERS.get(kind.lower(), "TEXT")


def explain(parameter: Any) -> str:
    """What a parameter does, and what holds if it is not given."""
    return f"{parameter.help or ''}{describe_default(parameter)}"


def describe_default(parameter: Any) -> str:
    """The default in words; nothing where leaving the option out says it all."""
    if parameter.required:
        return " [required]" if parameter.param_type_name == "option" else ""
    shown = parameter.show_default
    if not isinstance(shown, str):
        value = parameter.default
        if value is None or value is False or value in ((), [], "") or callable(value) or parameter.is_eager:
            return ""
        shown = str(value)
    return f" [default: {shown}]"
