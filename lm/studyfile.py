"""The command line of a sweep, and the study.toml that it writes: a study given by flags, and what `--refine` and
`--search` add to one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lm.config import TrainConfig, make_config
from lm.errors import ConfigError
from lm.files import write_atomic
from lm.flags import Parser, corpus_name, flag_groups
from lm.study import STUDY_FILE, Study, identity, load_study, parse_study

logger = logging.getLogger("lm.sweep")

# Fields that have one value in a study.
_SINGLE = ("dataset", "data", "preset", "when")


def parse_args(description: str, arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line of a sweep. Raises ConfigError."""
    parser = Parser(
        prog="python -m lm.sweep", description=description, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("study", nargs="?", metavar="STUDY_DIR", help="folder with study.toml")
    parser.add_argument("--out", metavar="DIR", help="folder for a study that the flags below describe")
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="runs at a time (default: one a GPU, or what the CPUs carry)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of a run (default: 1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="as in lm.train")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="where to compute")
    parser.add_argument(
        "--ray-address",
        default="",
        metavar="HOST:PORT",
        help="head of the Ray cluster (default: a running one, or a new one here)",
    )
    parser.add_argument(
        "--refine", metavar="FIELD", help="coarse to fine over this field, after the grid (see lm.search)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="finer passes of --refine (default: 1)")
    parser.add_argument(
        "--search", choices=("random", "hyperband"), help="search by Optuna, after the grid (see lm.search)"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="cells that --search draws (default: every one)")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="run directories land in DIR/STUDY/ (default: runs)"
    )
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the study's tables and plots at the end",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    _grid_flags(parser)
    args = parser.parse_args(arguments)
    if bool(args.study) == bool(args.out):
        parser.error("give STUDY_DIR, or --out DIR and the study's flags")
    args.refine = args.refine and args.refine.replace("-", "_")
    if args.jobs < 0 or args.threads < 1:
        parser.error("--jobs: at least 0; --threads: at least 1")
    return args


def _grid_flags(parser: Parser) -> None:
    """Add a flag for every configuration field; several values make it a field of the grid."""
    parser.add_argument("--preset", default=argparse.SUPPRESS, metavar="NAME", help="start from a preset")
    hints = typing.get_type_hints(TrainConfig)
    for title, fields in flag_groups():
        group = parser.add_argument_group(f"{title} (several values: a field of the grid)")
        for field, text in fields:
            if field.name not in hints:
                continue
            hint, flag = hints[field.name], field.name.replace("_", "-")
            keywords: dict[str, Any] = {"nargs": "+", "type": hint, "metavar": hint.__name__.upper()[:1]}
            if hint is bool:
                keywords = {"nargs": "*", "type": _boolean, "metavar": "true|false"}
                group.add_argument(
                    f"--no-{flag}", dest=field.name, action="store_const", const=[False], default=argparse.SUPPRESS,
                    help=argparse.SUPPRESS,
                )  # fmt: skip
            elif typing.get_origin(hint) is Literal:
                keywords = {"nargs": "+", "choices": typing.get_args(hint)}
            elif typing.get_origin(hint) is tuple:
                keywords = {"nargs": "*", "type": int, "metavar": "N"}
            elif field.name in _SINGLE:
                keywords = {"metavar": "TEXT"}
            names = [f"--{flag}", "--epoch"] if field.name == "epochs" else [f"--{flag}"]
            group.add_argument(
                *names, dest=field.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **keywords
            )


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration fields among the parsed flags, in the order of the command line."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {name: value or [True] if value == [] and name != "when" else value
            for name, value in vars(args).items() if name in names}  # fmt: skip


def study_from_flags(args: argparse.Namespace, identify: Callable[[str | None, str | None], str]) -> Study:
    """The study that flags describe; not written yet. `identify` as in `lm.flags.parse_train_args`.

    Raises ConfigError if --out holds a study that asks something else, or a value makes no sense.
    """
    fields = given_fields(args)
    preset = fields.pop("preset", "")
    dataset = corpus_name(fields.pop("dataset", None), fields.get("data"), identify)
    seeds = fields.pop("seed", None) or [make_config(preset, dataset).seed]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seed: must be different integers, each at least 0; got {' '.join(map(str, seeds))}")
    grid = {name: v for name, v in fields.items() if name not in _SINGLE and len(v) > 1}
    flags = {name: v if name in _SINGLE else v[0] for name, v in fields.items() if name not in grid}
    refine: dict[str, Any] = {}
    if args.search:
        refine["space"], grid = grid, {}
    elif args.refine and args.refine in grid:
        refine["values"] = grid.pop(args.refine)
    text = _line("dataset", dataset) + (_line("preset", preset) if preset else "") + _line("seeds", seeds)
    text += _table("[flags]", flags) + _table("[[grid]]", grid)
    out = Path(args.out)
    study = dataclasses.replace(parse_study(tomllib.loads(text), out), refine=refine)
    if not (out / STUDY_FILE).exists():
        return study
    there = load_study(out)
    for key in ("preset", "dataset", "seeds", "flags", "cells"):
        if identity(getattr(there, key)) != identity(getattr(study, key)):
            raise ConfigError(
                f"--out: {out / STUDY_FILE} asks for other {key}; choose another folder, or run it as it is"
            )
    return dataclasses.replace(there, refine=_agreed(there, refine))


def with_refine(study: Study, args: argparse.Namespace) -> Study:
    """The study with what `--refine`, `--rounds`, `--search` and `--trials` ask besides its own `[refine]`.

    Raises ConfigError where the two contradict each other, or flags are left that nothing reads.
    """
    if args.study and (extra := given_fields(args)):
        raise ConfigError(f"--{next(iter(extra)).replace('_', '-')}: {study.path / STUDY_FILE} says what to run")
    asked = {"field": args.refine, "rounds": args.rounds, "search": args.search, "trials": args.trials}
    return dataclasses.replace(study, refine=_agreed(study, {k: v for k, v in asked.items() if v is not None}))


def _agreed(study: Study, asked: dict[str, Any]) -> dict[str, Any]:
    for key in asked.keys() & study.refine.keys():
        if identity(asked[key]) != identity(study.refine[key]):
            raise ConfigError(f"{study.path / STUDY_FILE}: refine.{key} is {study.refine[key]!r}, not {asked[key]!r}")
    return study.refine | asked


def save_study(study: Study) -> None:
    """Write study.toml, or add the `[refine]` that flags asked for; what is there stays as it was written."""
    file = study.path / STUDY_FILE
    if file.exists():
        text, refine = file.read_text(encoding="utf-8"), load_study(study.path).refine
        if refine or not study.refine:
            return
        logger.info("%s: [refine] added, a later sweep goes on with it without flags", file)
    else:
        study.path.mkdir(parents=True, exist_ok=True)
        text = _line("dataset", study.dataset) + (_line("preset", study.preset) if study.preset else "")
        text += _line("seeds", list(study.seeds)) + _table("[flags]", study.flags)
        if grid := {name: _distinct(cell[name] for cell in study.cells) for name in study.cells[0]}:
            text += _table("[[grid]]", grid)
    space = study.refine.get("space", {})
    text += _table("[refine]", {name: value for name, value in study.refine.items() if name != "space"})
    text += _table("[refine.space]", space)
    write_atomic(file, lambda stream: stream.write(text.encode()))


def _distinct(values: typing.Iterable[Any]) -> list[Any]:
    return list({identity(value): value for value in values}.values())


def _table(header: str, values: dict[str, Any]) -> str:
    return f"\n{header}\n" + "".join(_line(name, value) for name, value in values.items()) if values else ""


def _line(name: str, value: Any) -> str:
    return f"{name} = {_toml(value)}\n"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_toml(item)}' for name, item in value.items())}}}"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return json.dumps(value, ensure_ascii=False)  # strings, integers, true and false are written alike in JSON
