"""The command line of training, built from the configuration's fields; `python -m lm.config.flags` prints its table."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lm.base.errors import ConfigError
from lm.base.names import flag
from lm.config.presets import presets_help
from lm.config.schema import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RegularizationConfig,
    RunOptions,
    TrainConfig,
)

# Other spellings in published command lines.
ALIASES = {"epochs": ("--epoch",)}


@functools.cache
def field_help(owner: type) -> dict[str, str]:
    """Field name -> the docstring below it, for a dataclass of `lm.config.schema`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, following in itertools.pairwise(tree.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


@functools.cache
def _hints() -> dict[str, Any]:
    """Field name -> type, for every field that is a flag."""
    return typing.get_type_hints(TrainConfig) | typing.get_type_hints(RunOptions)


def flag_groups() -> Iterator[tuple[str, list[tuple[dataclasses.Field, str]]]]:
    """Group title and its (field, help) pairs, in the order of `--help`."""
    for owner in (DataConfig, ModelConfig, RegularizationConfig, OptimConfig, ComputeConfig, RunOptions):
        texts = field_help(owner)
        yield owner.__doc__ or "", [(field, texts[field.name]) for field in dataclasses.fields(owner)]


def _hyphenated(argument: str) -> str:
    """`--batch_size=3` -> `--batch-size=3`; anything but a flag's name stays."""
    name, equals, value = argument.partition("=")
    return flag(name[2:]) + equals + value if name.startswith("--") else argument


class Parser(argparse.ArgumentParser):
    """Takes `_` for `-` in names of flags, each in full, and reports a bad argument as ConfigError."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(prog, **keywords | {"allow_abbrev": False})

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:  # noqa: D102 - argparse's
        spelt = [_hyphenated(argument) for argument in (sys.argv[1:] if args is None else args)]
        for argument in spelt:  # names stand in logs, records and pages, which are UTF-8
            if any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise ConfigError(f"{ascii(argument)}: not UTF-8; rename the file or folder")
        return super().parse_known_args(spelt, namespace)

    def error(self, message: str) -> typing.NoReturn:  # noqa: D102 - argparse's
        unknown = [word.partition("=")[0] for word in message.split() if "unrecognized" in message and word[:2] == "--"]
        for name in unknown:
            if near := difflib.get_close_matches(name, self._option_string_actions, 1):
                message += f"; did you mean {near[0]}?"
        raise ConfigError(f"{message} (see {self.prog} --help)")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Parser with one flag a field."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--preset NAME] [--dataset NAME | --data DIR] [--out-dir DIR] [flags]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=presets_help(),
    )
    parser.add_argument("--preset", metavar="NAME", help="start from a preset (below)")
    # awd-lstm-lm's --cuda turned CUDA off, and people passed it to turn it on: neither is guessed.
    parser.add_argument("--cuda", action="store_true", help=argparse.SUPPRESS)
    for title, fields in flag_groups():
        group = parser.add_argument_group(title)
        for field, text in fields:
            names = [flag(field.name), *ALIASES.get(field.name, ())]
            keywords = _flag_type(_hints()[field.name], field, text)
            group.add_argument(*names, dest=field.name, default=argparse.SUPPRESS, **keywords)
    return parser


def shown_default(field: dataclasses.Field) -> str:
    """A field's default as a user would write it; nothing for an empty one."""
    if field.default in ("", ()):
        return ""
    return f"{field.default:.4g}" if isinstance(field.default, float) else json.dumps(field.default).strip('"')


def _flag_type(hint: Any, field: dataclasses.Field, text: str) -> dict[str, Any]:
    """argparse keywords for one field."""
    default = "none" if field.default == () else shown_default(field)
    text = (text if default == "" else f"{text} (default: {default})").replace("%", "%%")
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint), "help": text}
    if typing.get_origin(hint) is tuple:
        return {"type": int, "nargs": "*", "metavar": "N", "help": text}
    metavar = {int: "N", float: "X", str: "TEXT"}[hint]
    return {"type": hint, "metavar": metavar, "help": text}


@dataclass(frozen=True)
class TrainArguments:
    """A parsed training command line. Which corpus it names, on which a preset's values may depend, is open."""

    preset: str | None
    """None: not given; then fine-tuning takes over what is not given"""
    dataset: str | None
    values: dict[str, Any]
    """configuration fields that were given, or that fine-tuning takes over"""
    options: RunOptions
    warnings: list[str]
    inherited: bool = False
    """whether the corpus is that of the run to fine-tune, which may have moved from `data`"""


def parse_train_args(argv: list[str] | None) -> TrainArguments:
    """Parse a training command line; None: that of the process.

    Raises:
        ConfigError: a flag is unknown or its value makes no sense.
    """
    given = vars(build_parser("python -m lm.train").parse_args(argv))
    warnings = []
    if given.pop("cuda"):
        warnings.append("--cuda is ignored: use --device cuda, --device cpu or nothing for automatic choice")
    options = RunOptions(**{f.name: given.pop(f.name) for f in dataclasses.fields(RunOptions) if f.name in given})
    return TrainArguments(given.pop("preset"), given.pop("dataset", None), given, options, warnings)


def flags_markdown() -> str:
    """Table of all flags of `lm.train`, as it stands in docs/commands.md."""
    lines = ["| flag | default | meaning |", "|---|---|---|", "| `--preset` |  | start from a preset |"]
    for title, fields in flag_groups():
        lines.append(f"| **{title}** | | |")
        for field, text in fields:
            default = shown_default(field)
            hint = _hints()[field.name]
            if typing.get_origin(hint) is Literal:
                text = f"{', '.join(f'`{choice}`' for choice in typing.get_args(hint))}: {text}"
            lines.append(f"| `{flag(field.name)}` | {default} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(flags_markdown() + "\n")
