"""Studies given by flags: from the command line of `lm.sweep` to a `Study`, and the study.toml that it is written to.

`--refine` and `--search` add to a study that is there already, and must agree with what it says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import write_bytes
from lm.base.names import flag
from lm.config.schema import TrainConfig
from lm.config.values import make_config
from lm.study.specification import STUDY_FILE, Study, identity, load_study, parse_study
from lm.text.finding import corpus_place

logger = logging.getLogger(__name__)
# Fields that have one value in a study.
SINGLE = ("dataset", "data", "preset", "when", "cutoffs")


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration fields among the parsed flags, in the order of the command line."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {
        name: [True] if value == [] and name not in SINGLE else value
        for name, value in vars(args).items()
        if name in names
    }


def study_from_flags(args: argparse.Namespace) -> Study:
    """The study that flags describe; not written yet.

    Raises ConfigError if --out holds a study that asks something else, or a value makes no sense.
    """
    fields = given_fields(args)
    preset = fields.pop("preset", "")
    dataset, place = corpus_place(fields.pop("dataset", None), fields.get("data"))
    fields |= {"data": place} if place else {}
    seeds = fields.pop("seed", None) or [make_config(preset, dataset).seed]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seed: must be different integers, each at least 0; got {' '.join(map(str, seeds))}")
    grid = {name: v for name, v in fields.items() if name not in SINGLE and len(v) > 1}
    flags = {name: v if name in SINGLE else v[0] for name, v in fields.items() if name not in grid}
    refine: dict[str, Any] = {}
    if args.search:
        refine["space"] = grid
        grid = {}
    elif args.refine and args.refine in grid:
        refine["values"] = grid.pop(args.refine)
    text = _line("dataset", dataset) + (_line("preset", preset) if preset else "") + _line("seeds", seeds)
    text += _table("[flags]", flags) + _table("[[grid]]", grid)
    out = Path(args.out)
    study = dataclasses.replace(parse_study(tomllib.loads(text), out), refine=refine)
    if not (out / STUDY_FILE).exists():
        return study
    there = load_study(out)
    for key in ("preset", "dataset", "seeds", "flags", "configurations"):
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
        raise ConfigError(f"{flag(next(iter(extra)))}: {study.path / STUDY_FILE} says what to run")
    asked = {"field": args.refine, "rounds": args.rounds, "search": args.search, "trials": args.trials}
    return dataclasses.replace(study, refine=_agreed(study, {k: v for k, v in asked.items() if v is not None}))


def _agreed(study: Study, asked: dict[str, Any]) -> dict[str, Any]:
    for key in asked.keys() & study.refine.keys():
        if identity(asked[key]) != identity(study.refine[key]):
            raise ConfigError(f"{study.path / STUDY_FILE}: refine.{key} is {study.refine[key]!r}, not {asked[key]!r}")
    return study.refine | asked


def save_study(study: Study) -> None:
    """Write study.toml, or add what flags asked for besides its own `[refine]`; the rest stays as it was written.

    Raises ConfigError where that takes a hand, for `[refine]` is written in a way of its own.
    """
    file = study.path / STUDY_FILE
    if file.exists():
        there = load_study(study.path).refine
        added = {name: value for name, value in study.refine.items() if name not in there}
        if not added:
            return
        text = _completed(file.read_bytes().decode(), added)
        if not _says(text, study.refine):
            lines = _refine_table(added).strip().replace("\n", "; ")
            raise ConfigError(f"{file}: write there what the flags ask for besides its own [refine]: {lines}")
        logger.info("%s: [refine] added, a later sweep goes on with it without flags", file)
    else:
        study.path.mkdir(parents=True, exist_ok=True)
        text = _line("dataset", study.dataset) + (_line("preset", study.preset) if study.preset else "")
        text += _line("seeds", list(study.seeds)) + _table("[flags]", study.flags)
        if grid := {
            name: _distinct(configuration[name] for configuration in study.configurations)
            for name in study.configurations[0]
        }:
            text += _table("[[grid]]", grid)
        text += _refine_table(study.refine)
    write_bytes(file, text.encode())


def _refine_table(values: dict[str, Any]) -> str:
    own = {name: value for name, value in values.items() if name != "space"}
    return _table("[refine]", own) + _table("[refine.space]", values.get("space", {}))


def _completed(text: str, added: dict[str, Any]) -> str:
    """The text of a study.toml with these keys under its `[refine]`, which is added where there is none."""
    if header := re.search(r"^\[refine\][^\n]*\n?", text, re.MULTILINE):
        lines = "".join(_line(name, value) for name, value in added.items())
        return f"{text[: header.end()].rstrip()}\n{lines}{text[header.end() :]}"
    if space := re.search(r"^\[refine\.space\]", text, re.MULTILINE):
        return f"{text[: space.start()]}{_refine_table(added).lstrip()}\n{text[space.start() :]}"
    return text + _refine_table(added)


def _says(text: str, refine: dict[str, Any]) -> bool:
    """Whether the text is a study.toml with this `[refine]`."""
    try:
        found = parse_study(tomllib.loads(text.removeprefix("\ufeff")), Path()).refine
    except (ConfigError, tomllib.TOMLDecodeError):
        return False
    return identity(found) == identity(refine)


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
    # Strings, integers, true and false are written alike in JSON, but TOML wants DEL escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
