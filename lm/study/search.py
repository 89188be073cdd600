"""Looking for good values: from a coarse scale to a fine one, or by Optuna. `[refine]` of study.toml says how.

[refine]                     # coarse to fine over one field, all others at the baseline
field = "alpha"
values = [0, 0.1, 1, 10]     # first pass; default: the grid's, else 0, 0.1, 1, 10, 100 (probabilities 0, 0.2, ... 0.8)
rounds = 2                   # finer passes after the first (default 1)
points = 4                   # new values in each, half on either side of the best (default 4)
each = ["ar_norm"]           # anew for every combination that the grid has of these fields' values

[refine]                     # by Optuna
search = "random"            # or "hyperband": short runs for all, longer ones for the best third, and so on
trials = 20                  # left out: every configuration of the space
[refine.space]
alpha = {low = 0.01, high = 10, log = true}
dropout = [0.2, 0.4, 0.6]    # one of these
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from lm.base.errors import ConfigError
from lm.base.locks import take_lock
from lm.config.bounds import Bounds, field_types
from lm.config.schema import TrainConfig
from lm.config.values import is_open_ended
from lm.study.records import label
from lm.study.specification import Study, identity

logger = logging.getLogger(__name__)
JOURNAL = "search.journal"
LOCK = "search.lock"
# From rung to rung, runs get this many times as long and about this many times fewer (Hyperband's eta).
_REDUCTION = 3
# Fields by which a run may depend on its length (`is_open_ended`), or end before it.
_ENDS = ("schedule", "max_steps", "average_last", "validate_epochs")
# Rounds, points and trials: more would be listed before anything runs.
_MOST = 1_000_000
_KEYS: dict[str, type] = {
    "field": str, "values": list, "rounds": int, "points": int, "each": list,
    "search": str, "trials": int, "space": dict,
}  # fmt: skip
_KINDS = {str: "a string", list: "a list", dict: "a table", int: f"an integer from 1 to {_MOST:,}"}
# The keys that each of the two kinds reads.
_READ = {"field": {"field", "values", "rounds", "points", "each"}, "search": {"search", "trials", "space"}}


def check_settings(study: Study, settings: dict[str, Any], config: TrainConfig) -> None:
    """Raise ConfigError, naming file and key, unless `[refine]` makes sense for runs like the baseline's `config`."""
    file = study.source
    for key, value in settings.items():
        if key not in _KEYS:
            raise ConfigError(f"{file}: refine.{key}: unknown key; the keys are {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key] or (isinstance(value, int) and not 1 <= value <= _MOST):
            raise ConfigError(f"{file}: refine.{key}: must be {_KINDS[_KEYS[key]]}, not {value!r}")
    if ("field" in settings) == ("search" in settings):
        raise ConfigError(f"{file}: refine: needs either field or search, and not both")
    mode = "field" if "field" in settings else "search"
    if unread := sorted(settings.keys() - _READ[mode]):
        raise ConfigError(f"{file}: refine.{unread[0]}: has no use beside {mode}")
    if mode == "field":
        kind, bounds = _hint(study, settings["field"])
        for name in settings.get("each", []):
            if name == settings["field"] or name not in study.configurations[0]:
                raise ConfigError(f"{file}: refine.each: {name!r} is no other field of the grid")
        values = settings["values"] if "values" in settings else first_values(study, settings)
        if not all(type(v) in {int, kind} and v in bounds for v in values) or len({*values}) < 2:
            what = f"{'numbers' if kind is float else 'integers'}, {bounds}"
            raise ConfigError(f"{file}: refine.values: give {settings['field']} two or more different {what}")
        return
    if settings["search"] not in ("random", "hyperband"):
        raise ConfigError(f"{file}: refine.search: {settings['search']!r} is not one of random, hyperband")
    space = settings.get("space")
    if not space:
        raise ConfigError(f"{file}: refine.space: names no field to search, as alpha = [0, 1, 2]")
    if "epochs" in space:
        raise ConfigError(f"{file}: refine.space.epochs: a search has one length of runs; [[grid]] can have several")
    ends = not is_open_ended(config) or config.max_steps or not space.keys().isdisjoint(_ENDS)
    if settings["search"] == "hyperband" and ends:
        raise ConfigError(
            f"{file}: refine.search: hyperband lengthens runs: a schedule without end, no --max-steps, "
            "--average-last and --validate-epochs, nor any of these four in the space"
        )
    for name, values in space.items():
        ranged = isinstance(values, dict) and {"low", "high"} <= values.keys() <= {"low", "high", "log"}
        if not ranged and not (isinstance(values, list) and values):
            raise ConfigError(f"{file}: refine.space.{name}: must be a list of values, or low, high and perhaps log")
        if ranged:
            low, high = values["low"], values["high"]
            kinds = {int, _hint(study, name)[0]}
            if not {type(low), type(high)} <= kinds or not low < high or (values.get("log") and low <= 0):
                raise ConfigError(f"{file}: refine.space.{name}: low must be a number below high, above 0 with log")
            if "trials" not in settings:
                raise ConfigError(f"{file}: refine.trials: how many? A range has no end of values")


def require_optuna() -> None:
    """Raise ConfigError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("--search: Optuna is not installed; pip install optuna")


def _hint(study: Study, field: str) -> tuple[type, Bounds]:
    """Type and bounds of a numeric configuration field."""
    kind, bounds = field_types(TrainConfig).get(field, (None, None))
    if bounds is None or field == "seed":
        raise ConfigError(f"{study.source}: refine: {field!r} is no numeric configuration field")
    return kind, bounds


def parts(study: Study, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What `refine` is done for, each anew: the grid's values of the fields `each`; without them one empty part."""
    found = [{name: c[name] for name in settings.get("each", [])} for c in study.configurations]
    return list({identity(part): part for part in found}.values())


def first_values(study: Study, settings: dict[str, Any]) -> list[float]:
    """What `refine` tries first: values of `[refine]`, else those of the grid, else a coarse scale.

    They are of the field's type and within its bounds. Raises ConfigError if the field is not numeric.
    """
    field = settings["field"]
    kind, bounds = _hint(study, field)
    values = settings.get("values") or [c[field] for c in study.configurations if field in c]
    if len({*values}) < 2:
        values = [0, 0.2, 0.4, 0.6, 0.8] if bounds.high <= 1 else [0, 0.1, 1, 10, 100]
    return [value for value in dict.fromkeys(map(kind, values)) if value in bounds]


def refine(
    study: Study,
    settings: dict[str, Any],
    measure: Callable[[list[dict[str, Any]]], list[float]],
    part: dict[str, Any] | None = None,
) -> dict[float, float]:
    """Coarse to fine over one field; the next pass lies around the best value so far.

    Args:
        study: supplies the values of the other fields, which are those of its baseline.
        settings: the content of `[refine]`.
        part: fields with another value than the baseline's: one of `parts`.
        measure: configurations -> mean valid loss of each (nats per word); infinite where a run diverged.

    Returns:
        value -> mean valid loss, of everything that was tried.

    Raises:
        ConfigError: the field is not numeric.
    """
    field = settings["field"]
    kind, bounds = _hint(study, field)
    linear = bounds.high <= 1  # a probability
    tried: dict[float, float] = {}
    values = first_values(study, settings)
    for _ in range(1 + settings.get("rounds", 1)):
        values = [value for value in dict.fromkeys(map(kind, values)) if value not in tried and value in bounds]
        tried |= dict(
            zip(values, measure([study.baseline | (part or {}) | {field: value} for value in values]), strict=True)
        )
        if min(tried.values()) == math.inf:
            break
        values = finer(tried, settings.get("points", 4), linear=linear)
    return tried


def finer(tried: dict[float, float], points: int, *, linear: bool) -> list[float]:
    """New values around the best of `tried` (value -> loss): half of them on either side, evenly on the scale.

    The sides end at the neighbours that were tried. On the logarithmic scale an open side, or one that ends at 0, is a
    decade long; around 0 itself the new values fill the decade below the smallest positive one.
    """
    ordered = sorted(tried)
    best = min(ordered, key=lambda value: (tried[value], value))
    at = ordered.index(best)
    below = ordered[at - 1] if at else best
    above = ordered[at + 1] if at + 1 < len(ordered) else best
    if linear:
        sides = [(below, best), (best, above)]
    elif best == 0:
        sides = [(above / 10, above)]
    else:
        sides = [(below if 0 < below < best else best / 10, best), (best, above if above > best else best * 10)]
    found = []
    for low, high in sides:
        n = max(1, points // len(sides))
        for i in range(1, n + 1):
            part = i / (n + 1)
            value = low + (high - low) * part if linear else low * (high / low) ** part
            found.append(float(f"{value:.3g}"))
    return [value for value in dict.fromkeys(found) if value not in tried]


def search(
    study: Study,
    settings: dict[str, Any],
    epochs: int,
    measure: Callable[[list[dict[str, Any]], int], list[float]],
    prune: Callable[[dict[str, Any], int], None],
) -> None:
    """Random search, or successive halving (Hyperband; Li et al. 2018), by Optuna, with a journal in the study folder.

    All configurations in the race are trained to the next rung (1, 3, 9, ... epochs), then each is kept or pruned.

    Args:
        study: where the journal goes; fields outside the space have the values of its baseline.
        settings: the content of `[refine]`.
        epochs: length of a full run.
        measure: (configurations, epochs) -> mean valid loss of each after so many; infinite where a run diverged.
        prune: told of a configuration that is given up after so many epochs.

    Raises:
        ConfigError: another sweep is searching.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = take_lock(study.path / LOCK, wait=False)
    if lock is None:
        raise ConfigError(f"--search: another sweep is searching {study.path}; wait for it")
    try:
        _race(optuna, _open(optuna, study, settings, epochs), study, settings, epochs, measure, prune)
    finally:
        os.close(lock)


def _race(
    optuna: Any,
    found: Any,
    study: Study,
    settings: dict[str, Any],
    epochs: int,
    measure: Callable[[list[dict[str, Any]], int], list[float]],
    prune: Callable[[dict[str, Any], int], None],
) -> None:
    """Train the open trials of the Optuna study `found` and new ones, from rung to rung."""
    rungs = _rungs(epochs) if settings["search"] == "hyperband" else [epochs]
    begun = found.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
    trials = [optuna.trial.Trial(found, trial._trial_id) for trial in begun]
    waiting = len(found.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]))
    trials += [found.ask() for _ in range(waiting + max(0, settings.get("trials", 0) - len(found.trials)))]
    race = []
    for trial in trials:
        configuration = study.baseline | _draw(study, trial, settings["space"])
        try:
            study.config(**configuration, seed=study.seeds[0])
        except ConfigError as error:  # each value is fine by itself
            logger.warning("left out: %s: %s", label(configuration), error)
            found.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            race.append((trial, configuration))
    for rung in rungs:
        known = [found.trials[trial.number].intermediate_values.get(rung) for trial, _ in race]
        new = measure(
            [configuration for (_, configuration), loss in zip(race, known, strict=True) if loss is None], rung
        )
        for i, loss in zip([i for i, loss in enumerate(known) if loss is None], new, strict=True):
            known[i] = loss
            race[i][0].report(loss, rung)
        kept = []
        for (trial, configuration), loss in zip(race, known, strict=True):
            if rung == epochs:
                found.tell(trial, loss)
            elif loss == math.inf or trial.should_prune():
                prune(configuration, rung)
                found.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                kept.append((trial, configuration))
        race = kept


def _rungs(epochs: int) -> Iterator[int]:
    rung = 1
    while rung < epochs:
        yield rung
        rung *= _REDUCTION
    yield epochs


def _open(optuna: Any, study: Study, settings: dict[str, Any], epochs: int) -> Any:
    """The Optuna study in the journal, begun or continued; whatever asks for other runs begins one of its own."""
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(study.path / JOURNAL)))
    pruner = optuna.pruners.NopPruner()
    if settings["search"] == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(1, epochs, _REDUCTION)
    asked = (study.preset, study.dataset, study.flags, study.baseline, study.seeds, settings["space"])
    name = f"{settings['search']} {hashlib.sha256(repr(identity(asked)).encode()).hexdigest()[:12]}"
    found = optuna.create_study(storage=storage, study_name=name, pruner=pruner, load_if_exists=True)
    # Seeded with the number of trials, so that a search that is continued draws new ones.
    found.sampler = optuna.samplers.RandomSampler(seed=len(found.trials))
    if "trials" not in settings:  # GridSampler would do, but it works inside Study.optimize only
        space = settings["space"]
        for values in itertools.product(*space.values()):
            found.enqueue_trial(dict(zip(space, values, strict=True)), skip_if_exists=True)
    return found


def _draw(study: Study, trial: Any, space: dict[str, Any]) -> dict[str, Any]:
    """The trial's value of every field of the space; real ones out of a range with three significant digits."""
    configuration = {}
    for name, values in space.items():
        if isinstance(values, list):
            configuration[name] = trial.suggest_categorical(name, values)
            continue
        low, high = values["low"], values["high"]
        log = values.get("log", False)
        if _hint(study, name)[0] is int:
            configuration[name] = trial.suggest_int(name, low, high, log=log)
        else:
            value = float(f"{trial.suggest_float(name, float(low), float(high), log=log):.3g}")
            configuration[name] = min(max(value, float(low)), float(high))
    return configuration
