"""`--config FILE.yaml`: the options of any command from a YAML file.

Keys are the long names of the options; `adapters` holds the references. What the command line
gives, the file does not add to. Paths are those of the current directory. A file may come from a
stranger, so it cannot let code run and cannot publish anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from loraprobe import limits
from loraprobe.cli.call import CALL
from loraprobe.cli.parameters import OUTPUT, DebugOption, setting, settings
from loraprobe.errors import UsageError
from loraprobe.formatting import nearest

NAMES_FILE = re.compile(r"--config(=|$)")
TYPED_ONLY = ("trust-remote-code", "run-unsafe-code", "push", "public")
ARGUMENTS = {"refs": "adapters"}  # name of a parameter -> its key in a file


ConfigOption = Annotated[
    str | None,
    setting(
        "FILE",
        "Take options that are not given here from this YAML file, by their long names.",
        OUTPUT,
        show_default=False,
    ),
]


def _everywhere(*, config: ConfigOption = None, debug: DebugOption = False) -> None:
    """The options that every command has; its function does not get their values."""


class Configured(TyperCommand):
    """A command whose options are written as their fields say, with what all commands take.

    It reads the options that were not given from the file of --config.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        for parameter in self.params:
            if parameter.name in settings() and not vars(parameter)["help"]:
                _write_as_its_field(parameter)
        app = typer.Typer(add_completion=False)
        app.command()(_everywhere)
        for option in typer.main.get_command(app).params:
            option.expose_value = False
            self.params.append(option)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing or not any(map(NAMES_FILE.match, args)):
            return super().parse_args(ctx, args)
        given = self.make_parser(ctx).parse_args(list(args))[0]
        file, rest = given.pop("config", None), list(_without(args, "--config"))
        from_file = self._of_file(ctx, str(file)) if file else {}
        added = [word for name, words in from_file.items() if not given.get(name) for word in words]
        CALL.words[len(CALL.words) - len(args) :] = [*added, *rest]
        return super().parse_args(ctx, [*added, *rest])

    def _of_file(self, ctx: Any, file: str) -> dict[str, list[str]]:
        """Name of a parameter -> its words on a command line. Raises UsageError."""
        parameters = {p.name: p for p in self.get_params(ctx) if p.name not in ("help", "config")}
        content = _read(file)
        known = {
            option.lstrip("-"): parameter
            for parameter in parameters.values()
            for option in _names(parameter)
        }
        words = {}
        for key, value in content.items():
            name = str(key).replace("_", "-")
            if name not in known:
                hint = nearest(name, known)
                raise UsageError(f"{file}: {ctx.command_path} has no option {name!r}: {hint}")
            if name in TYPED_ONLY:
                raise UsageError(
                    f"{file} cannot set {name}, which lets code run or publishes; give --{name} on "
                    "the command line."
                )
            words[known[name].name] = _words(known[name], value, f"{file}: {name}")
        return words


def _write_as_its_field(option: Any) -> None:
    """Gives an option the flags, metavar, help and panel of its field."""
    told = settings()[option.name]
    option.opts = list(told["flags"] or [f"--{option.name.replace('_', '-')}"])
    option.secondary_opts = []  # no --no-json beside --json
    option.metavar, option.help = told["metavar"] or " ", told["help"]
    option.rich_help_panel = told["panel"]


def _names(parameter: Any) -> list[str]:
    """The names by which a file calls a parameter: long options, or that of an argument."""
    if parameter.param_type_name == "argument":
        return [ARGUMENTS.get(parameter.name, parameter.name)]
    return [option for option in parameter.opts if option.startswith("--")]


def _read(file: str) -> Mapping[Any, Any]:
    """The mapping in a YAML file."""
    path = Path(file)
    import yaml  # which most commands do without

    try:
        size = path.stat().st_size
        if size > limits.CONFIG:
            raise UsageError(f"--config: {file} has {size:,} bytes; name a smaller file.")
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"--config: {file} cannot be read ({error.strerror}); check the path."
        ) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"--config: {file} is no YAML ({why}); correct it.") from None
    if not isinstance(content, Mapping):
        raise UsageError(f"--config: {file} must hold options by name, such as margin: 0.1.")
    return content


def _words(parameter: Any, value: Any, where: str) -> list[str]:
    """A value of a file as the words of a command line."""
    option = next(iter(parameter.opts), "") if parameter.param_type_name == "option" else ""
    if value is None or value is False:
        return []
    if option and parameter.is_flag:
        if value is not True:
            raise UsageError(f"{where} takes true or false, not {value!r}.")
        return [option]
    if isinstance(value, Mapping):
        from loraprobe.options import as_fields

        value = as_fields(value)
    repeats = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    several = [value] if isinstance(value, str) or not isinstance(value, Iterable) else [*value]
    if any(isinstance(one, (Mapping, list, bool)) for one in several):
        raise UsageError(f"{where} takes a text, a number or a list of them, not {value!r:.80}.")
    texts = list(map(str, several)) if repeats else [",".join(map(str, several))]
    return [word for text in texts for word in ([option, text] if option else [text])]


def _without(args: Sequence[str], option: str) -> Iterator[str]:
    """The words without an option and its value."""
    words = iter(args)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            yield word
