"""The flags of `--adapt MODE`, the settings that they give, and the report of `lm.evaluate`; see `lm.scoring.adapt`.

`lm.evaluate RUN_DIR --adapt MODE...` scores splits, `lm.generate RUN_DIR --score FILE --adapt MODE` your own text.

A setting is the flag's, else the one published for the corpus (cache) or the default, or with `--tune` chosen on valid.
As published, the text is read in one column, and the gradient statistics come from all of train; `--adapt-fast` reads
the protocol's columns side by side, which is faster and not what was published.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from typing import Any

import numpy as np
from torch import Tensor

from lm.base.errors import ConfigError
from lm.base.names import flag
from lm.base.numbers import perplexity
from lm.config.presets import CACHE_POINTER
from lm.config.schema import TrainConfig
from lm.nn.model import AWDLSTM
from lm.scoring.adapt import Adapt, adapted_nats, check_running
from lm.scoring.cache import Cache
from lm.scoring.dynamic import Dynamic, fast_statistics, published_statistics
from lm.scoring.evaluation import protocol_columns
from lm.scoring.loading import load_run
from lm.scoring.tune import setting_flag, tune_cache, tune_dynamic
from lm.text.corpus import Corpus
from lm.text.units import split_units
from lm.training.divergence import check_loss

logger = logging.getLogger(__name__)
MODES = ("none", "cache", "dynamic", "dynamic+cache")
# Where the sgd rule, whose steps are not divided by the gradients' size, needs another than `Dynamic`'s default.
_SGD = {"lr": 2.0}
# The fast variant's: the rate was chosen on valid of PTB for models of 2x200; the published decay is scaled to segments
# of 20, as the authors' code does it.
_FAST = {"lr": 8e-4, "decay": 8e-3, "epsilon": 1e-5, "segment": 20}
_HELP = {
    "cache_window": "words that the cache holds",
    "cache_lam": "weight of the cache in the mixture",
    "cache_theta": "sharpness of the cache's attention",
    "dynamic_rule": "rms (steps divided by the gradients' rms on train) or sgd",
    "dynamic_lr": "learning rate",
    "dynamic_decay": "decay towards the trained weights",
    "dynamic_epsilon": "added to the rms, for rule rms",
    "dynamic_segment": "words of a column between two updates",
}


def add_adaptation_flags(parser: argparse.ArgumentParser, *, splits: bool) -> None:
    """Add the flags of adaptation to a parser: for splits of the corpus, in several modes; else for a text, in one."""
    group = parser.add_argument_group("adaptation while reading")
    modes = ", ".join(MODES)
    several = f"one or more of {modes}: a row of the table each"
    one = f"adapt to the running text of --score while reading it: {modes}"
    group.add_argument(
        "--adapt",
        nargs="+" if splits else 1,
        action="extend",
        choices=MODES,
        metavar="MODE",
        help=several if splits else one,
    )
    columns = "read in the protocol's columns, which learn together and have a cache each, "
    faster = f"{columns * splits}longer segments, gradient statistics from 300 windows of train"
    usual = f"{'one column, ' * splits}statistics from all of train"
    group.add_argument("--adapt-fast", action="store_true", help=f"not as published: {faster} (default: {usual})")
    if splits:
        group.add_argument(
            "--tune",
            action="store_true",
            help="choose on valid first: the cache's values, and --dynamic-lr and --dynamic-decay from those given on",
        )
    for owner, prefix in ((Cache, "cache"), (Dynamic, "dynamic")):
        for field in dataclasses.fields(owner):
            name = f"{prefix}_{field.name}"
            default = f"{'published for the corpus, else ' if owner is Cache else ''}{field.default}"
            if owner is Dynamic and field.name in _FAST:
                default += f", fast {_FAST[field.name]}"
            if owner is Dynamic and field.name in _SGD:
                default += f", for sgd {_SGD[field.name]}"
            group.add_argument(
                setting_flag(name),
                dest=name,
                type=type(field.default),
                metavar=setting_flag(name).rpartition("-")[2].upper(),
                help=f"{_HELP[name]} (default: {default})",
            )


def check_adaptation_flags(given: set[str], args: argparse.Namespace) -> None:
    """Raise ConfigError for a flag among `given` (names of arguments) that no mode or rule asked for reads."""
    args.adapt = modes = args.adapt or ["none"]
    for kind in ("cache", "dynamic"):
        flags = sorted(setting_flag(name) for name in given if name.startswith(kind))
        if flags and not any(kind in mode for mode in modes):
            raise ConfigError(f"{flags[0]}: is for --adapt {kind}")
    for name in ("tune", "adapt_fast"):
        if name in given and set(modes) == {"none"}:
            raise ConfigError(f"{flag(name)}: is for --adapt cache, dynamic or dynamic+cache")
    if "tune" in given and (chosen := sorted(name for name in given if name.startswith("cache"))):
        raise ConfigError(f"{setting_flag(chosen[0])}: leave it out with --tune, which chooses it")
    if "dynamic_epsilon" in given and args.dynamic_rule == "sgd":
        raise ConfigError("--dynamic-epsilon: is for --dynamic-rule rms")


def check_one_mode(given: set[str], args: argparse.Namespace) -> None:
    """As `check_adaptation_flags`, where a text is read, in one mode. Raises ConfigError also beside --independent."""
    check_adaptation_flags(given, args)
    if len(args.adapt) > 1:
        raise ConfigError(f"--adapt: give one mode, not {' and '.join(args.adapt)}")
    learns = "dynamic" in args.adapt[0]
    if "adapt_fast" in given and not learns:
        raise ConfigError("--adapt-fast: is for --adapt dynamic")
    if "data" in given and not (learns and args.dynamic_rule != "sgd"):
        raise ConfigError("--data: is for --adapt dynamic and its rule rms, which needs the text of train")
    check_running(args.adapt != ["none"], args.independent)


def _values(owner: type, prefix: str, args: argparse.Namespace, defaults: dict[str, Any]) -> Any:
    given = {field.name: getattr(args, f"{prefix}_{field.name}") for field in dataclasses.fields(owner)}
    return owner(**defaults | {name: value for name, value in given.items() if value is not None})


def _settings(args: argparse.Namespace, dataset: str) -> tuple[Cache, Dynamic]:
    """Both settings as the flags give them."""
    published = zip(("window", "lam", "theta"), CACHE_POINTER.get(dataset, ()), strict=False)
    usual = (_FAST if args.adapt_fast else {}) | (_SGD if args.dynamic_rule == "sgd" else {})
    return _values(Cache, "cache", args, dict(published)), _values(Dynamic, "dynamic", args, usual)


def _statistics(
    model: AWDLSTM, config: TrainConfig, train: np.ndarray, dynamic: Dynamic, fast: bool
) -> list[Tensor] | None:
    """What the rule needs to know of the gradients on train."""
    if dynamic.rule != "rms":
        return None
    if fast:
        return fast_statistics(model, train, config.batch_size, config.bptt)
    logger.info("gradient statistics of train, all %s tokens", f"{len(train):,}")
    return published_statistics(model, train, dynamic.segment)


def settings_text(row: dict[str, Any]) -> str:
    """`window 500, lam 0.1, theta 1.0`: the values in a report, which has `cache`, `dynamic` and `fast`."""
    settings = [f"{k} {v}" for part in (row["cache"], row["dynamic"]) if part for k, v in part.items()]
    return ", ".join(settings + ["fast, not as published"] * row["fast"])


def adapt_to_text(args: argparse.Namespace, model: AWDLSTM, config: TrainConfig) -> Adapt:
    """The one mode of adaptation that a command line asks for; its run's corpus is read where a rule needs train.

    Raises:
        ConfigError: a setting is out of its range.
        CorpusError: train is needed, and not to be found.
    """
    (mode,) = args.adapt
    cache, dynamic = _settings(args, config.dataset)
    looks = cache if "cache" in mode else None
    if "dynamic" not in mode:
        return Adapt(looks)
    rms = None
    if dynamic.rule == "rms":
        _, _, corpus = load_run(args.run_dir, model.decoder.bias.device, args.data)
        rms = _statistics(model, config, corpus.splits["train"], dynamic, args.adapt_fast)
    return Adapt(looks, dynamic, rms)


class Adaptation:
    """The modes that one command asks for, their settings given, published for the corpus, or tuned on valid."""

    def __init__(self, model: AWDLSTM, config: TrainConfig, corpus: Corpus, args: argparse.Namespace) -> None:
        self._model = model
        self._config = config
        self._corpus = corpus
        self._columns: int | None = args.columns
        self._fast: bool = args.adapt_fast
        self._tune: bool = args.tune
        self.plain = "none" in args.adapt
        self._modes = [mode for mode in args.adapt if mode != "none"]
        self._cache, self._dynamic = _settings(args, corpus.name)
        self._adapts: dict[str, Adapt] = {}
        self._notes: dict[str, list[str]] = {}

    def prepare(self) -> None:
        """Read what dynamic evaluation needs of train, and tune on valid where that is asked for: minutes to hours."""
        model, train, valid = self._model, self._corpus.splits["train"], self._corpus.splits["valid"]
        dynamic, columns = self._dynamic, self.columns("valid")
        learning = any("dynamic" in mode for mode in self._modes)
        rms = _statistics(model, self._config, train, dynamic, self._fast) if learning else None
        learnt: list[str] = []
        if learning and self._tune:
            dynamic, learnt = tune_dynamic(model, valid, columns, dynamic, rms)
        for mode in self._modes:
            looks = self._cache if "cache" in mode else None
            learns = dynamic if "dynamic" in mode else None
            self._notes[mode] = list(learnt) if learns else []
            if looks and self._tune:
                looks, notes = tune_cache(model, valid, columns, learns, rms)
                self._notes[mode] += notes
            self._adapts[mode] = Adapt(looks, learns, rms)

    def columns(self, split: str) -> int:
        """Columns that a split is read in: those asked for, one for a model that adapts, else those of the protocol.

        All rows of a table share them, that without adaptation too, so that they can be compared.
        """
        if self._columns:
            return self._columns
        return 1 if self._modes and not self._fast else protocol_columns(self._config, split)

    def report(self, split: str) -> list[dict[str, Any]]:
        """Loss and perplexity of a split in every mode, with the settings used."""
        rows = []
        columns = self.columns(split)
        for mode, adapt in self._adapts.items():
            started = time.perf_counter()
            (nats,), targets = adapted_nats(
                self._model, self._corpus.splits[split], columns, (adapt.cache,), adapt.dynamic, adapt.rms
            )
            check_loss(nats / targets, f"--adapt {mode}: {split}", "try a lower --dynamic-lr")
            rows.append({
                "split": split, "adapt": mode, "loss": nats / targets, "ppl": perplexity(nats / targets),
                "targets": targets, "batch_size": columns, "seconds": round(time.perf_counter() - started, 2),
                **adapt.settings(), "fast": self._fast, "notes": self._notes[mode],
                **split_units(self._corpus, split, nats / targets),
            })  # fmt: skip
        return rows
