"""Train a language model: `python -m lm.train --preset awd-lstm --dataset ptb --out-dir runs/ptb`.

The program: parse flags, load the corpus, build the model; then epochs of `update` (window -> loss + AR + TAR ->
gradient -> clip -> step) and `end_epoch` (validate, keep the best, steer learning rate and averaging); at last one
test of the best checkpoint.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import functools
import json
import logging
import math
import time
from typing import Any

import torch
from torch import Tensor

from lm.base.errors import CorpusError, DivergedError, Interrupted, run_cli
from lm.base.process import show
from lm.base.ranks import ALONE, RankLost, Ranks
from lm.base.signals import StopSignals
from lm.base.threads import choose_threads
from lm.config.flags import parse_train_args
from lm.config.inherit import with_inherited, with_vectors
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import as_plain, make_config
from lm.nn.model import carry_state, count_parameters
from lm.nn.regularization import regularization_terms
from lm.scoring.opening import open_run
from lm.scoring.validation import final_scores, log_valid, validate
from lm.text.batching import Window
from lm.text.finding import corpus_place
from lm.text.units import summary
from lm.text.windows import windows_warning
from lm.training.distributed import SilentWriter, joined, run_log
from lm.training.divergence import check_update, check_weights
from lm.training.log import RunLog, record_step
from lm.training.optim import clip, set_beta1, set_rate
from lm.training.results import check_text, choose_run_dir, finished_result
from lm.training.run import Run
from lm.training.writer import RunWriter, SaveTimes

logger = logging.getLogger("lm.train")
# Against too little memory.
SMALLER = "--batch-size, --bptt, --emsize, --nhid or --nlayers"


def gradient_step(run: Run, tokens_TB: Tensor, targets_TB: Tensor) -> None:
    """Loss + AR + TAR of one window, their gradient, and the step it makes; all of it on the run's device."""
    config = run.config
    output = run.forward(tokens_TB, run.hidden)
    loss = run.model.loss(output, targets_TB)
    terms = regularization_terms(
        output.raw, output.after_dropout, config.alpha, config.beta, config.ar_norm, config.ar_layers
    )

    run.optimizer.zero_grad(set_to_none=run.step_in_graph)  # else every graph leaves its gradients in one place
    run.backward(sum(terms.values(), start=loss))
    loss, *penalties = run.ranks.mean([loss, *terms.values()], run.columns)
    norm = clip(run.optimizer, config.clip)
    if run.step_in_graph:
        run.optimizer.step()
    if run.device.type == "cpu":  # on a GPU this would wait for the device: `check_run` looks now and then
        check_update(sum(penalties, start=loss).item(), norm.item(), run.progress.step + 1)
    run.means.add(loss, dict(zip(terms, penalties, strict=True)), norm, config.clip, run.targets(targets_TB))
    carry_state(run.hidden, output.state)


def update(run: Run, window: Window) -> None:
    """One step of truncated backpropagation through time."""
    fraction = run.fraction(window.fraction)
    run.rate = run.learning_rate.at(fraction)
    set_rate(run.optimizer, run.rate * window.lr_scale)
    if run.averaging.averaged is None and fraction >= 1 - run.config.average_last:
        run.averaging.start(run.model)
    run.cuda_graphs(functools.partial(gradient_step, run), window.tokens_TB, window.targets_TB)
    if run.momentum is not None:
        set_beta1(run.optimizer, run.momentum.beta1(fraction))
        run.optimizer.step()
    run.averaging.after_update(run.model)
    run.means.count(run.targets(window.targets_TB))
    run.progress.step += 1
    run.progress.tokens += run.targets(window.targets_TB)


def train_epoch(
    run: Run, writer: RunWriter, options: RunOptions, log: RunLog, stop: StopSignals, saves: SaveTimes
) -> None:
    """The rest of the current epoch, with its log records and checkpoints."""
    progress = run.progress
    max_steps = run.config.max_steps or math.inf
    done = run.windows.rows_read * run.columns.total
    log.start_epoch(progress.epoch, run.config.epochs, run.targets_per_epoch, done)
    logged_tokens = progress.tokens
    seconds = 0.0  # of training since then, without validations
    while progress.step < max_steps:
        if run.validation_due():
            score_valid(run, writer, log, stop, in_epoch=True)
            if run.has_stalled():
                progress.finished = True
                writer.save_last(run, log.sync())
                return
        if (window := next(run.windows, None)) is None:
            return
        started = time.perf_counter()
        update(run, window)
        due = run.means.updates >= options.log_interval
        stopped = stop.asked
        save = saves.due(progress.step)
        if due or save or stopped:  # what is saved must be good; waits for a GPU, whose work is in the time then
            check_run(run)
        spent = time.perf_counter() - started
        progress.seconds += spent
        seconds += spent
        log.progress(run.targets(window.targets_TB))
        if due:
            record_step(run, log, (progress.tokens - logged_tokens) / seconds)
            logged_tokens = progress.tokens
            seconds = 0.0
        if save:
            writer.save_last(run, log.sync())
            saves.start()
        if stopped:
            stop.check()


def check_run(run: Run) -> None:
    """Raise DivergedError if a value since the last record, or what the updates made of a weight, is not finite."""
    check_weights(run.model.parameters(), run.means.finite(), run.progress.step)


def score_valid(run: Run, writer: RunWriter, log: RunLog, stop: StopSignals, *, in_epoch: bool) -> None:
    """Validate, keep the best, and let the loss steer learning rate and averaging."""
    progress = run.progress
    started = time.perf_counter()
    check_run(run)
    writer.save_first(run, log)
    after = f"update {progress.step}" if in_epoch else f"epoch {progress.epoch}"
    evaluations = validate(run, f"valid after {after}", stop)
    progress.seconds += time.perf_counter() - started
    log_valid(run, log, evaluations, in_epoch=in_epoch)
    better, valid = next(iter(evaluations.items()))
    progress.validated = progress.step
    progress.waited += 1
    if valid.loss < progress.best_loss:
        progress.waited = 0
        progress.best_epoch = progress.epoch
        progress.best_loss = valid.loss
        progress.best_activation = valid.activation
        progress.best_averaged = better == "averaged"
        writer.keep_best(run, run.candidates()[better])
    run.learning_rate.after_validation(valid.loss)
    if run.averaging.after_validation(valid.loss) and not run.finetunes:
        run.averaging.start(run.model)
        log.message(f"NT-ASGD: averaging from here on (best valid loss {progress.best_loss:.4f})")


def end_epoch(run: Run, writer: RunWriter, log: RunLog, stop: StopSignals, saves: SaveTimes) -> None:
    """Validate, where it is due, and go to the top of the text."""
    progress = run.progress
    if run.validates_epoch():
        score_valid(run, writer, log, stop, in_epoch=False)
    else:
        started = time.perf_counter()
        check_run(run)
        progress.seconds += time.perf_counter() - started
    run.learning_rate.end_epoch(progress.epoch)
    progress.epoch += 1
    progress.finished = run.is_over()
    run.windows.rewind()
    carry_state(run.hidden, run.model.initial_state(run.columns.count))
    if saves.at_epochs or saves.due(progress.step) or progress.finished:
        writer.save_last(run, log.sync())
        saves.start()


def keep_starting_point(run: Run, writer: RunWriter, log: RunLog, stop: StopSignals) -> None:
    """Make what fine-tuning starts from the best so far, so that it never ends worse on valid."""
    progress = run.progress
    writer.save_first(run, log)
    better, valid = next(iter(validate(run, f"valid of {run.config.finetune}", stop).items()))
    progress.best_loss = valid.loss
    progress.best_activation = valid.activation
    writer.keep_best(run, run.candidates()[better])
    writer.save_kept()
    log.message(f"fine-tuning {run.config.finetune}: valid {valid.loss:.4f}  ppl {valid.perplexity:8.2f} at the start")


def train(config: TrainConfig, options: RunOptions, ranks: Ranks = ALONE) -> dict[str, Any]:
    """One run, from a configuration to the content of its result.json ({} for a dry run of one that is to be computed).

    All processes that share a run call this, and the first of them writes its files.

    Raises:
        ConfigError, CorpusError, CheckpointError: nothing was started.
        DivergedError: a non-finite loss or gradient; result.json says `diverged`, checkpoints are the last good ones.
        Interrupted: SIGINT, SIGTERM, SIGHUP or --max-minutes; everything is saved, `--resume auto` continues.
        RankLost: another process of the run has ended; `--resume auto` continues from the last checkpoint.
    """
    with ranks.agreed():
        run_dir = choose_run_dir(config, options)
        writer = RunWriter(run_dir, options.save) if ranks.first else SilentWriter()
        if result := finished_result(run_dir, config, tested=options.eval_test):
            check_text(run_dir, result, config)
            logger.info("%s is complete: nothing to do", run_dir)
            if not options.dry_run:
                writer.copy_best()
            return result
        run, log_position = open_run(config, options, run_dir, ranks)
    logger.info(
        "%s: %s tokens, %s types; %s parameters; %s, %s, %d threads; %s",
        run.corpus.name, f"{len(run.corpus.splits['train']):,}", f"{run.corpus.vocab_size:,}",
        f"{count_parameters(run.model):,}", run.device, run.model.precision, torch.get_num_threads(), run_dir,
    )  # fmt: skip
    if options.dry_run:
        return {}
    run.connect()
    with (
        StopSignals(options.max_minutes, ranks) as stop,
        writer.locked(),
        run_log(run_dir, run, log_position, tensorboard=options.tensorboard) as log,
    ):
        try:
            writer.prepare(run)
            for change in run.progress.changes:
                log.message(change)
            if config.finetune and run.progress.step == 0:
                keep_starting_point(run, writer, log, stop)
            saves = SaveTimes(options, ranks)
            while not run.progress.finished:
                train_epoch(run, writer, options, log, stop, saves)
                if not run.progress.finished:
                    end_epoch(run, writer, log, stop, saves)
            writer.copy_best()
            result = writer.write_result(run, "completed", final_scores(run, run_dir, options, stop))
        except Interrupted as interruption:
            if not run.progress.finished:  # else last.pt is written, and the model may hold the best weights by now
                writer.save_last(run, log.sync())
            writer.write_result(run, "interrupted", {})
            text = f"{interruption}; saved: --resume auto continues {run_dir}"
            raise Interrupted(text, interruption.exit_code) from None
        except RankLost as lost:  # with the hidden state of its columns
            raise RankLost(f"{lost}: --resume auto continues {run_dir} from its last checkpoint") from None
        except DivergedError:
            writer.save_kept()
            writer.write_result(run, "diverged", {})
            raise
        log.hparams(as_plain(config), {f"final/{key}": result[key] for key in ("valid_ppl", "test_ppl", "train_ppl")})
    return result


def configure(argv: list[str] | None) -> tuple[TrainConfig, RunOptions]:
    """Configuration and options of a command line (None: that of this process). Raises ConfigError, CorpusError."""
    given = with_inherited(parse_train_args(argv))
    values = given.values
    data = values.get("data")
    try:
        dataset, place = corpus_place(given.dataset, data)  # a preset's values may depend on the name
    except CorpusError:
        if not (given.inherited and data and given.dataset):
            raise
        dataset, place = corpus_place(given.dataset, None)
    values = values | {"data": place}
    config = with_vectors(make_config(given.preset or "", dataset, **values), given.options)
    for warning in (*given.warnings, windows_warning(config)):
        if warning:
            logger.warning(warning)
    return config, given.options


def main() -> None:
    """Command line."""
    with joined() as ranks:
        with ranks.agreed():
            config, options = configure(None)
        if options.print_config:
            show(json.dumps(as_plain(config), indent=2) + "\n")
            return
        if not options.threads:
            choose_threads("--threads N")
        result = train(config, options, ranks)
        if options.json:
            show(json.dumps(result) + "\n")
        elif result:
            show(summary(result))


if __name__ == "__main__":
    run_cli(main, SMALLER)
