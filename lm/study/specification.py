"""A study: a folder with `study.toml` (what is asked) and `runs.jsonl` (see `lm.study.ledger`).

title = "AR and TAR on PTB"
question = "Do AR and TAR lower perplexity on a 2x200 LSTM?"
preset = "examples-200"
dataset = "ptb"
seeds = [1, 2, 3]
[flags]                      # configuration fields that are the same in every run
epochs = 40
[[grid]]                     # product inside a block, union over blocks
alpha = [0, 1, 2, 4]
beta = [0]
seed = [1]                   # optional: this block's seeds instead of the study's
[[grid]]
alpha = [0]
beta = [1, 2, 4]             # "dropout+dropouth" = [0.1, 0.2] would set two fields to one value in each run
[baseline]                   # the configuration that the others are compared with; default: the first
alpha = 0
beta = 0
[[quoted]]                   # published figures, shown as quoted
label = "2x200 tied"
source = "pytorch/examples README"
test_ppl = 87.17
[refine]                     # read by `lm.sweep`
"""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.base import names
from lm.base.errors import ConfigError
from lm.base.files import ROOT, read_file
from lm.config.schema import TrainConfig
from lm.config.values import make_config

STUDY_FILE = "study.toml"
LEDGER_FILE = "runs.jsonl"
_KEYS = {"title", "question", "preset", "dataset", "seeds", "flags", "grid", "baseline", "quoted", "refine"}
_QUOTED_KEYS: dict[str, type | tuple[type, ...]] = {
    "label": str, "source": str, "protocol": str, "valid_ppl": (int, float), "test_ppl": (int, float),
}  # fmt: skip
# Fields that have a place of their own in study.toml, so that a value has one home.
_OWN_PLACE = {"seed": "seeds", "dataset": "dataset", "preset": "preset"}


@dataclass(frozen=True)
class Study:
    """What a study asks. Every configuration has a value for every field of the grid, in one order of fields."""

    path: Path
    title: str
    question: str
    preset: str
    dataset: str
    seeds: tuple[int, ...]
    flags: dict[str, Any]
    configurations: tuple[dict[str, Any], ...]
    configuration_seeds: tuple[tuple[int, ...], ...]
    baseline: dict[str, Any]
    quoted: tuple[dict[str, Any], ...]
    refine: dict[str, Any]

    @property
    def ledger(self) -> Path:
        """The file of the study's finished runs."""
        return self.path / LEDGER_FILE

    @property
    def source(self) -> str:
        """What asks for the study, for messages: its file, or the flags where that is not written yet."""
        file = self.path / STUDY_FILE
        return str(file) if file.exists() else f"--out {self.path}"

    def config(self, **values: Any) -> TrainConfig:
        """Configuration of a run with `values`. Raises ConfigError, naming the source, where one makes no sense."""
        try:
            return make_config(self.preset, self.dataset, **self.flags | values)
        except ConfigError as error:
            raise ConfigError(f"{self.source}: {error}") from None

    @property
    def name(self) -> str:
        """Its path below `results`, by which `bash run.sh study` finds it; elsewhere the name of its folder."""
        parts = self.path.resolve().parts
        below = [i for i, part in enumerate(parts[:-1], start=1) if part == "results"]
        return "/".join(parts[max(below, default=-1) :])

    @property
    def command(self) -> str:
        """What runs it."""
        ours = self.path.resolve() == ROOT / "results" / self.name
        return f"bash run.sh study {self.name}" if ours else f"python -m lm.sweep {self.path}"

    def runs(self) -> list[tuple[dict[str, Any], int]]:
        """Every (configuration, seed) asked for, in the order of study.toml, one seed of all after the other."""
        order = dict.fromkeys(itertools.chain(self.seeds, *self.configuration_seeds))
        pairs = list(zip(self.configurations, self.configuration_seeds, strict=True))
        return [(configuration, seed) for seed in order for configuration, seeds in pairs if seed in seeds]


def identity(value: Any) -> Any:
    """A hashable stand-in that is equal for equal values: 1 and 1.0 are one value, 1 and true are not."""
    if isinstance(value, (list, tuple)):
        return tuple(identity(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, identity(item)) for key, item in value.items()))
    return ("bool", value) if isinstance(value, bool) else value


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read the study in folder `path`. Raises ConfigError that names the file and the key at fault."""
    folder = Path(path)
    folder = folder.parent if folder.name == STUDY_FILE else folder
    file = folder / STUDY_FILE
    try:
        values = tomllib.loads(read_file(file).decode("utf-8-sig"))
    except FileNotFoundError:
        there = Path("results", folder)
        hint = f"did you mean {there}?" if (there / STUDY_FILE).exists() else f"a study is a folder with a {STUDY_FILE}"
        raise ConfigError(f"{file}: no such file; {hint}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    return parse_study(values, folder)


def parse_study(values: dict[str, Any], folder: Path) -> Study:
    """The study in `folder` whose study.toml holds `values`. Raises ConfigError that names the file and the key."""
    file = folder / STUDY_FILE
    if unknown := sorted(values.keys() - _KEYS):
        raise ConfigError(f"{file}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(_KEYS))}")
    for key in ("title", "question", "preset", "dataset"):
        _check(file, key, isinstance(values.get(key, ""), str), "must be a string")
    _check(file, "dataset", bool(values.get("dataset")), "must name the corpus")
    for key in ("flags", "baseline", "refine"):
        _check(file, key, isinstance(values.get(key, {}), dict), f"must be a table: [{key}]")
    seeds = _seeds(file, "seeds", values.get("seeds"))
    flags = _fields(file, "flags", values.get("flags", {}))
    configurations, configuration_seeds = _expand(file, values.get("grid", []), flags, seeds)
    return Study(
        path=folder,
        title=" ".join(values.get("title", "").split()) or folder.resolve().name,
        question=values.get("question", ""),
        preset=values.get("preset", ""),
        dataset=values["dataset"],
        seeds=seeds,
        flags=flags,
        configurations=configurations,
        configuration_seeds=configuration_seeds,
        baseline=_baseline(file, values.get("baseline", {}), flags, configurations),
        quoted=_quoted(file, values.get("quoted", [])),
        refine=_refine(file, values.get("refine", {})),
    )


def _check(file: Path, key: str, good: bool, demand: str) -> None:
    if not good:
        raise ConfigError(f"{file}: {key}: {demand}")


def _check_values(file: Path, name: str, values: Any) -> None:
    _check(file, f"grid.{name}", isinstance(values, list) and bool(values), "must be a list of values")


def _seeds(file: Path, key: str, seeds: Any) -> tuple[int, ...]:
    good = isinstance(seeds, list) and bool(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)
    _check(file, key, good and len(set(seeds)) == len(seeds), "must be a list of different integers, each at least 0")
    return tuple(seeds)


def _fields(file: Path, key: str, table: dict[str, Any]) -> dict[str, Any]:
    """The table with `-` in field names read as `_`; a field that has a place of its own is refused."""
    for name in table:
        place = _OWN_PLACE.get(name)
        _check(file, f"{key}.{name}", place is None, f"belongs to the top-level key {place}")
    return {names.field(name): value for name, value in table.items()}


def _expand(
    file: Path, blocks: Any, flags: dict[str, Any], seeds: tuple[int, ...]
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[int, ...], ...]]:
    """Configurations of the grid and the seeds of each; without a grid one configuration, the flags alone."""
    _check(file, "grid", isinstance(blocks, list) and all(isinstance(b, dict) for b in blocks), "must be [[grid]]")
    if not blocks:
        return ({},), (seeds,)
    blocks = [step for block in blocks for step in _in_step(file, block)]
    block_seeds = [_seeds(file, "grid.seed", b.pop("seed")) if "seed" in b else seeds for b in blocks]
    blocks = [_fields(file, "grid", block) for block in blocks]
    fields = list(dict.fromkeys(name for block in blocks for name in block))
    found: dict[Any, tuple[dict[str, Any], dict[int, None]]] = {}
    for block, own_seeds in zip(blocks, block_seeds, strict=True):
        for name in fields:
            _check(
                file,
                f"grid.{name}",
                name in block or name in flags,
                "one block sets it and another does not; give it in every block, or its usual value under [flags]",
            )
            values = block.get(name, [flags.get(name)])
            _check_values(file, name, values)
        for combination in itertools.product(*(block.get(name, [flags.get(name)]) for name in fields)):
            configuration = dict(zip(fields, combination, strict=True))
            found.setdefault(identity(configuration), (configuration, {}))[1].update(dict.fromkeys(own_seeds))
    return tuple(configuration for configuration, _ in found.values()), tuple(tuple(own) for _, own in found.values())


def _in_step(file: Path, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The block as several without keys such as `dropout+dropouth`: in each, these fields have the same value."""
    joined = {key: values for key, values in block.items() if "+" in key}
    for key, values in joined.items():
        _check_values(file, key, values)
    others = {key: values for key, values in block.items() if key not in joined}
    for combination in itertools.product(*joined.values()):
        yield others | {
            field.strip(): [value] for key, value in zip(joined, combination, strict=True) for field in key.split("+")
        }


def _baseline(
    file: Path, wanted: Any, flags: dict[str, Any], configurations: tuple[dict[str, Any], ...]
) -> dict[str, Any]:
    """The configuration that `[baseline]` names; a field it leaves out has its value under `[flags]`, if any."""
    wanted = _fields(file, "baseline", wanted)
    if not wanted:
        return configurations[0]
    for name in wanted:
        _check(file, f"baseline.{name}", name in configurations[0], "is not a field of the grid")
    wanted = {name: flags[name] for name in configurations[0] if name in flags} | wanted
    matches = [
        configuration
        for configuration in configurations
        if all(identity(configuration[name]) == identity(v) for name, v in wanted.items())
    ]
    _check(file, "baseline", bool(matches), "names no configuration of the grid; add it to the grid so that it is run")
    missing = ", ".join(name for name in configurations[0] if name not in wanted)
    _check(
        file, "baseline", len(matches) == 1, f"names {len(matches)} configurations of the grid; give {missing} as well"
    )
    return matches[0]


def _refine(file: Path, table: dict[str, Any]) -> dict[str, Any]:
    if isinstance(table.get("space"), dict):
        table |= {"space": _fields(file, "refine.space", table["space"])}
    if isinstance(table.get("field"), str):
        table |= {"field": names.field(table["field"])}
    if isinstance(table.get("each"), list):
        table |= {"each": [names.field(str(name)) for name in table["each"]]}
    return table


def _quoted(file: Path, rows: Any) -> tuple[dict[str, Any], ...]:
    _check(file, "quoted", isinstance(rows, list) and all(isinstance(r, dict) for r in rows), "must be [[quoted]]")
    for row in rows:
        for key, value in row.items():
            _check(file, f"quoted.{key}", key in _QUOTED_KEYS, f"unknown; the keys are {', '.join(_QUOTED_KEYS)}")
            good = isinstance(value, _QUOTED_KEYS[key]) and not isinstance(value, bool)
            _check(file, f"quoted.{key}", good, "must be a number" if key.endswith("_ppl") else "must be a string")
            _check(file, f"quoted.{key}", not key.endswith("_ppl") or 1 <= value <= 1e300, "is no perplexity")
        for key in ("label", "source"):
            _check(file, f"quoted.{key}", bool(row.get(key)), "a published figure needs one")
        _check(file, "quoted", "valid_ppl" in row or "test_ppl" in row, "needs valid_ppl or test_ppl")
    return tuple({key: " ".join(v.split()) if isinstance(v, str) else v for key, v in row.items()} for row in rows)
