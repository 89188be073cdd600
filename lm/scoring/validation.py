"""How a training run is scored: valid after epochs and where --validate-every says, train and test at its end.

Losses are nats per target as the run's protocol cuts the text (`lm.scoring.evaluation`). Perplexities, and the units
that compare across tokenizers (`lm.text.units`), are derived from them.
"""

from __future__ import annotations

from typing import Any

from lm.base.errors import CheckpointError
from lm.base.numbers import perplexity
from lm.base.rundir import RunDir
from lm.base.signals import StopSignals
from lm.config.schema import RunOptions
from lm.scoring.evaluation import Evaluation, evaluate
from lm.text.units import split_units, units_text
from lm.training.checkpoint import fitting, load_checkpoint
from lm.training.divergence import check_loss
from lm.training.log import RunLog
from lm.training.run import Run


def validate(run: Run, where: str, stop: StopSignals) -> dict[str, Evaluation]:
    """Each candidate, `raw` or `averaged`, on valid, the better one first. Raises DivergedError, naming `where`."""
    ids = run.corpus.splits["valid"]
    columns = run.config.eval_batch_size
    found = {}
    for name, model in run.candidates().items():
        found[name] = evaluate(model, ids, columns, between_windows=stop.check, ranks=run.ranks)
        check_loss(found[name].loss, where, activation=found[name].activation)
    return dict(sorted(found.items(), key=lambda pair: pair[1].loss))


def log_valid(run: Run, log: RunLog, evaluations: dict[str, Evaluation], *, in_epoch: bool) -> None:
    """Record a validation, a record `epoch` or, within one, `valid`: the better of `evaluations`, which comes first,
    and the losses of both."""
    progress = run.progress
    better, valid = next(iter(evaluations.items()))
    averaged = better == "averaged"
    losses = {f"valid_loss_{name}": each.loss for name, each in evaluations.items()} if len(evaluations) > 1 else {}
    rate = run.rate if in_epoch else run.learning_rate.at(run.fraction(1.0))
    figures = split_units(run.corpus, "valid", valid.loss)
    values = {
        "epoch": progress.epoch, "lr": rate, "valid_loss": valid.loss, "valid_ppl": valid.perplexity,
        "averaged": averaged, "activation": valid.activation, "seconds": round(progress.seconds, 2),
    } | losses | {f"valid_{name}": value for name, value in figures.items()}  # fmt: skip
    log.record("valid" if in_epoch else "epoch", progress.step, values)
    log.histogram("activation", valid.sample_TBH, progress.step)
    step = f"step {progress.step:7}  " if in_epoch else ""
    log.message(
        f"epoch {progress.epoch:3}/{run.config.epochs}  {step}lr {rate:<8.4g} valid {valid.loss:.4f}  "
        f"ppl {valid.perplexity:8.2f}{'*' if valid.loss < progress.best_loss else ' '} "
        f"rms h {valid.activation['rms']:.3f}  rms dh {valid.activation['temporal_rms']:.3f}  "
        f"{progress.seconds:6.0f} s{'  (averaged)' if averaged else ''}{units_text(figures)}"
    )


def final_scores(run: Run, run_dir: RunDir, options: RunOptions, stop: StopSignals) -> dict[str, Any]:
    """Perplexity of the best checkpoint on train (the generalisation gap) and, once, on test, if there is one.

    Returns losses (`train_loss`, ... in nats per target), perplexities (`train_ppl`, ...) and, of characters and bytes,
    other units. Raises CheckpointError where best.pt cannot be used, or is not the best that the run speaks of.
    """
    config = run.config
    corpus = run.corpus
    if run.ranks.first:
        best = load_checkpoint(run_dir.best)
        with fitting(run_dir.best):
            known = best["progress"]["best_loss"]
            run.model.load_state_dict(best["model"])
        if known != run.progress.best_loss:
            raise CheckpointError(
                f"{run_dir.best}: its valid loss is {known:.4f}, but the best of this run is "
                f"{run.progress.best_loss:.4f}; continue from the last.pt beside it, or train again"
            )
    run.ranks.tell(run.model.parameters())

    def score(split: str, columns: int, tokens: int | None = None) -> float:
        ids = run.text(split)[:tokens]
        found = evaluate(run.model, ids, columns, between_windows=stop.check, ranks=run.ranks)
        check_loss(found.loss, split, activation=found.activation)
        return found.loss

    scores = {"train_loss": score("train", config.eval_batch_size, config.eval_train_tokens or None)}
    if options.eval_test and "test" in corpus.splits:
        scores["test_loss"] = score("test", config.test_batch_size)
        if config.test_batch_size != 1:  # beside the protocol's figure the one that scores every token
            scores["test_batch1_loss"] = score("test", 1)
    figures: dict[str, float] = {}
    for name, loss in (scores | {"valid_loss": run.progress.best_loss}).items():
        units = {"ppl": perplexity(loss)} | split_units(corpus, name.split("_")[0], loss)
        figures |= {name.replace("loss", unit): value for unit, value in units.items()}
    return scores | figures
