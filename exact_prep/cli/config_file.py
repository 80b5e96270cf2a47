"""Options from a TOML file: `--config run.toml`, for every command. The command line wins.

    seq-len = ["4k", "16k"]        # an option by its long name; a list where it may be repeated
    overwrite = true               # an option without a value

    [weigh]                        # what only one command takes
    alpha = 0.3

Keys outside of tables are for whatever command is given the file. Paths are relative to the working directory, as on
the command line.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from exact_prep.errors import UsageError

OPTION = "config"
"""The parameter that names the file."""


def add_options(command: Any, context: Any, arguments: list[str], commands: list[str]) -> list[str]:
    """The words of a command line with those of its `--config` in front; options that it gives itself are left out.

    Raises UsageError for a file that is not TOML, and for keys or values that are not those of the command.
    """
    if not any(word == f"--{OPTION}" or word.startswith(f"--{OPTION}=") for word in arguments):
        return arguments
    given, _, _ = command.make_parser(context).parse_args(args=list(arguments))
    path = given[OPTION]
    words: list[str] = []
    positional: list[str] = []
    parameters = {find_key(each): each for each in command.get_params(context)}
    for unusable in (OPTION, "help"):
        parameters.pop(unusable, None)
    for key, value in load_config(path, context.info_name, commands).items():
        if key not in parameters:
            raise UsageError(f"{path}: {key} is not an option of {context.info_name}{suggest(key, parameters)}")
        parameter = parameters[key]
        if given.get(parameter.name) not in (None, (), []):
            continue
        where = f"{path}: {key}"
        if parameter.param_type_name == "argument":
            positional += list_values(value, where, many=parameter.nargs == -1)
        elif parameter.is_flag:
            words += choose_flag(parameter, value, where)
        else:
            words += [f"--{key}={word}" for word in list_values(value, where, many=parameter.multiple)]
    return [*words, *positional, *arguments]


def load_config(path: str, command: str, commands: list[str]) -> dict[str, Any]:
    """The keys of a file that a command takes: those outside of tables, and those of its own table."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"--config {path}: not TOML ({error})") from None
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    if unknown := [name for name in tables if name not in commands]:
        raise UsageError(f"{path}: [{unknown[0]}] is not a command{suggest(unknown[0], commands)}")
    return {key: value for key, value in data.items() if key not in tables} | tables.get(command, {})


def find_key(parameter: Any) -> str:
    """What a file calls a parameter: an option's long name, an argument's own."""
    if parameter.param_type_name == "argument":
        return parameter.name
    return max(parameter.opts, key=len).lstrip("-")


def suggest(key: str, known: Any) -> str:
    """The names that a key may have been meant to be."""
    close = difflib.get_close_matches(key.replace("_", "-"), list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there is {', '.join(sorted(known))}"


def list_values(value: Any, where: str, *, many: bool) -> list[str]:
    """A value as words of a command line, one for each element of a list where several may be given."""
    values = value if isinstance(value, list) else [value]
    if len(values) != 1 and not many:
        raise UsageError(f"{where} takes one value, not a list of {len(values)}")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (str, int, float)):
            raise UsageError(f"{where} takes text or a number, not {one!r}")
    return [str(one) for one in values]


def choose_flag(parameter: Any, value: Any, where: str) -> list[str]:
    """The word that turns an option without a value on or off; none where leaving it out turns it off."""
    if not isinstance(value, bool):
        raise UsageError(f"{where} is true or false, not {value!r}")
    return parameter.opts[:1] if value else parameter.secondary_opts[:1]
