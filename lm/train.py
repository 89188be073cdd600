"""Train a language model: `python -m lm.train --preset awd-lstm --dataset ptb --out-dir runs/ptb`.

The program: parse flags, load the corpus, build the model; then epochs of `update` (window -> loss + AR + TAR ->
gradient -> clip -> step) and `end_epoch` (validate, keep the best, steer learning rate and averaging); at last one
test of the best checkpoint.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.base.device import keep_freed_memory, peak_memory, pick_device
from lm.base.errors import ConfigError, DivergedError, Interrupted, run_cli
from lm.base.numbers import perplexity
from lm.base.rundir import RunDir
from lm.base.signals import StopSignals
from lm.config.flags import parse_train_args
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import as_plain, make_config
from lm.nn.kernels.choose import check_device
from lm.nn.model import carry_state, count_parameters
from lm.nn.regularization import regularization_terms
from lm.scoring.evaluation import Evaluation, evaluate
from lm.scoring.loading import load_trained
from lm.text.batching import Window
from lm.text.finding import configured_corpus, corpus_name
from lm.text.units import split_units, summary, units_text
from lm.training.checkpoint import fitting, load_checkpoint, load_latest
from lm.training.divergence import check_loss, check_update, check_weights
from lm.training.log import RunLog, log_to
from lm.training.optim import clipped_step, set_rate
from lm.training.results import choose_run_dir, finished_result
from lm.training.run import Run
from lm.training.writer import RunWriter

logger = logging.getLogger("lm.train")


def gradient_step(run: Run, tokens_TB: Tensor, targets_TB: Tensor) -> None:
    """Loss + AR + TAR of one window, their gradient, and the step it makes; all of it on the run's device."""
    config, model = run.config, run.model
    output = model(tokens_TB, run.hidden)
    loss = model.loss(output, targets_TB)
    terms = regularization_terms(
        output.raw, output.after_dropout, config.alpha, config.beta, config.ar_norm, config.ar_layers
    )
    total = sum(terms.values(), start=loss)

    run.optimizer.zero_grad()
    total.backward()
    norm = clipped_step(run.optimizer, config.clip)
    if run.device.type == "cpu":  # on a GPU this would wait for the device: `check_run` looks now and then
        check_update(total.item(), norm.item(), run.progress.step + 1)
    run.means.add(loss, terms, norm, config.clip, targets_TB.numel())
    carry_state(run.hidden, output.state)


def update(run: Run, window: Window) -> None:
    """One step of truncated backpropagation through time."""
    run.rate = run.learning_rate.at(run.fraction(window.fraction))
    set_rate(run.optimizer, run.rate * window.lr_scale)
    run.cuda_graphs(functools.partial(gradient_step, run), window.tokens_TB, window.targets_TB)
    run.averaging.after_update(run.model)
    run.means.count(window.targets_TB.numel())
    run.progress.step += 1
    run.progress.tokens += window.targets_TB.numel()


def train_epoch(run: Run, writer: RunWriter, options: RunOptions, log: RunLog, stop: StopSignals) -> None:
    """The rest of the current epoch, with its log records and checkpoints."""
    progress, max_steps = run.progress, run.config.max_steps or math.inf
    done = progress.tokens - (progress.epoch - 1) * run.targets_per_epoch
    log.start_epoch(progress.epoch, run.config.epochs, run.targets_per_epoch, done)
    logged_tokens, logged_seconds = progress.tokens, progress.seconds
    while progress.step < max_steps and (window := next(run.windows, None)) is not None:
        started = time.perf_counter()
        update(run, window)
        due, stopped = run.means.updates >= options.log_interval, stop.received is not None
        save = progress.step % options.save_every == 0
        if due or save or stopped:  # what is saved must be good; waits for a GPU, whose work is in the time then
            check_run(run)
        progress.seconds += time.perf_counter() - started
        log.progress(window.targets_TB.numel())
        if due:
            record_step(run, log, (progress.tokens - logged_tokens) / (progress.seconds - logged_seconds))
            logged_tokens, logged_seconds = progress.tokens, progress.seconds
        if save:
            writer.save_last(run, log.sync())
        if stopped:
            stop.check()


def check_run(run: Run) -> None:
    """Raise DivergedError if a value since the last record, or what the updates made of a weight, is not finite."""
    check_weights(run.model.parameters(), run.means.finite(), run.progress.step)


def record_step(run: Run, log: RunLog, tokens_per_s: float) -> None:
    """Record the means over the updates since the last record."""
    means, epoch, step, rate = run.means.take(), run.progress.epoch, run.progress.step, run.rate
    values = {"epoch": epoch, "lr": rate, **means, "tokens_per_s": round(tokens_per_s)}
    log.record("step", step, values | peak_memory(run.device))
    log.message(
        f"epoch {epoch:3}  step {step:7}  lr {rate:<8.4g} loss {means['loss']:.4f}  ppl {means['ppl']:8.6g}  "
        f"ar {means['ar']:.4f}  tar {means['tar']:.4f}  grad {means['grad_norm']:.3f}  {tokens_per_s:7.0f} tokens/s",
        logging.DEBUG,
    )
    log.progress(0, f"ppl {means['ppl']:.4g}")


def end_epoch(run: Run, writer: RunWriter, log: RunLog, stop: StopSignals) -> None:
    """Validate, keep the best, and let the validation loss steer learning rate and averaging."""
    config, progress = run.config, run.progress
    started = time.perf_counter()
    check_run(run)
    model = run.averaging.evaluated(run.model)
    valid = evaluate(model, run.corpus.splits["valid"], config.eval_batch_size, between_windows=stop.check)
    progress.seconds += time.perf_counter() - started
    check_loss(valid.loss, f"valid after epoch {progress.epoch}", activation=valid.activation)
    log_epoch(run, log, valid)
    if valid.loss < progress.best_loss:
        progress.best_epoch, progress.best_loss = progress.epoch, valid.loss
        progress.best_activation, progress.best_averaged = valid.activation, model is not run.model
        writer.save_best(run, model)
    run.learning_rate.end_epoch(progress.epoch, valid.loss)
    if run.averaging.end_epoch(valid.loss) and not config.finetune:
        run.averaging.start(run.model)
        log.message(f"NT-ASGD: averaging from here on (best valid loss {progress.best_loss:.4f})")
    progress.epoch += 1
    progress.finished = run.is_over()
    run.windows.rewind()
    carry_state(run.hidden, run.model.initial_state(config.batch_size))
    writer.save_last(run, log.sync())


def keep_starting_point(run: Run, writer: RunWriter, log: RunLog, stop: StopSignals) -> None:
    """Make what fine-tuning starts from the best so far, so that it never ends worse on valid."""
    config, progress = run.config, run.progress
    valid = evaluate(run.model, run.corpus.splits["valid"], config.eval_batch_size, between_windows=stop.check)
    check_loss(valid.loss, f"valid of {config.finetune}", activation=valid.activation)
    progress.best_loss, progress.best_activation = valid.loss, valid.activation
    writer.save_best(run, run.model)
    log.message(f"fine-tuning {config.finetune}: valid {valid.loss:.4f}  ppl {valid.perplexity:8.2f} at the start")


def log_epoch(run: Run, log: RunLog, valid: Evaluation) -> None:
    """Record an epoch's validation."""
    progress, averaged = run.progress, run.averaging.averaged is not None
    rate = run.learning_rate.at(run.fraction(1.0))
    figures = split_units(run.corpus, "valid", valid.loss)
    values = {
        "epoch": progress.epoch, "lr": rate, "valid_loss": valid.loss, "valid_ppl": valid.perplexity,
        "averaged": averaged, "activation": valid.activation, "seconds": round(progress.seconds, 2),
    } | {f"valid_{name}": value for name, value in figures.items()}  # fmt: skip
    log.record("epoch", progress.step, values)
    log.histogram("activation", valid.sample_TBH, progress.step)
    log.message(
        f"epoch {progress.epoch:3}/{run.config.epochs}  lr {rate:<8.4g} valid {valid.loss:.4f}  "
        f"ppl {valid.perplexity:8.2f}{'*' if valid.loss < progress.best_loss else ' '} "
        f"rms h {valid.activation['rms']:.3f}  rms dh {valid.activation['temporal_rms']:.3f}  "
        f"{progress.seconds:6.0f} s{'  (averaged)' if averaged else ''}{units_text(figures)}"
    )


def final_scores(run: Run, run_dir: RunDir, options: RunOptions, stop: StopSignals) -> dict[str, Any]:
    """Perplexity of the best checkpoint on train (the generalisation gap) and, once, on test."""
    config, corpus = run.config, run.corpus
    best = load_checkpoint(run_dir.best)
    with fitting(run_dir.best):
        run.model.load_state_dict(best["model"])

    def score(split: str, columns: int, tokens: int | None = None) -> float:
        found = evaluate(run.model, corpus.splits[split][:tokens], columns, between_windows=stop.check)
        check_loss(found.loss, split, activation=found.activation)
        return found.loss

    scores = {"train_loss": score("train", config.eval_batch_size, config.eval_train_tokens or None)}
    if options.eval_test:
        scores["test_loss"] = score("test", config.test_batch_size)
        if config.test_batch_size != 1:  # beside the protocol's figure the one that scores every token
            scores["test_batch1_loss"] = score("test", 1)
    figures = {}
    for name, loss in (scores | {"valid_loss": run.progress.best_loss}).items():
        units = {"ppl": perplexity(loss)} | split_units(corpus, name.split("_")[0], loss)
        figures |= {name.replace("loss", unit): value for unit, value in units.items()}
    return scores | figures


def open_run(config: TrainConfig, options: RunOptions, device: torch.device, run_dir: RunDir) -> tuple[Run, int]:
    """Build the run, restored when resuming; returns it and how much of metrics.jsonl belongs to it."""
    run = Run(config, configured_corpus(config), device)
    state, source = None, Path(options.resume)
    if options.resume == "auto":
        source = run_dir.last
        state, warning = load_latest(source)
        if warning:
            logger.warning("%s: continuing from the checkpoint before it", warning)
    elif options.resume:
        state = load_checkpoint(source)
    if state is None:
        if config.finetune:
            with fitting(Path(config.finetune)):
                run.finetune_from(load_trained(RunDir(Path(config.finetune))))
        return run, 0
    with fitting(source):
        run.load_state_dict(state)
        log_position = state["log_position"]
    if math.isfinite(run.progress.best_loss):
        load_checkpoint(run_dir.best)  # the end of the run needs it: better to hear of damage now
    logger.info("resuming in epoch %d after update %d", run.progress.epoch, run.progress.step)
    return run, log_position


def train(config: TrainConfig, options: RunOptions) -> dict[str, Any]:
    """One run, from a configuration to the content of its result.json ({} for a dry run).

    Raises:
        ConfigError, CorpusError, CheckpointError: nothing was started.
        DivergedError: a non-finite loss or gradient; result.json says `diverged`, checkpoints are the last good ones.
        Interrupted: SIGINT or SIGTERM; everything is saved, `--resume auto` continues.
    """
    run_dir = choose_run_dir(config, options)
    writer = RunWriter(run_dir, options.save)
    if run_dir.config.exists() and not options.resume:
        raise ConfigError(
            f"--out-dir: {run_dir} holds a run already: continue it with --resume auto, or choose another"
        )
    if result := finished_result(run_dir, config, tested=options.eval_test):
        logger.info("%s is complete: nothing to do", run_dir)
        writer.copy_best()
        return result
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    check_device(config.kernel, device)
    run, log_position = open_run(config, options, device, run_dir)
    logger.info(
        "%s: %s tokens, %s types; %s parameters; %s, %s, %d threads; %s",
        run.corpus.name, f"{len(run.corpus.splits['train']):,}", f"{run.corpus.vocab_size:,}",
        f"{count_parameters(run.model):,}", device, run.model.precision, torch.get_num_threads(), run_dir,
    )  # fmt: skip
    if options.dry_run:
        return {}
    with (
        writer.locked(),
        log_to(run_dir.log),
        RunLog(run_dir, position=log_position, step=run.progress.step, tensorboard=options.tensorboard) as log,
        StopSignals() as stop,
    ):
        try:
            writer.prepare(run)
            if config.finetune and run.progress.step == 0:
                keep_starting_point(run, writer, log, stop)
            while not run.progress.finished:
                train_epoch(run, writer, options, log, stop)
                end_epoch(run, writer, log, stop)
            writer.copy_best()
            result = writer.write_result(run, "completed", final_scores(run, run_dir, options, stop))
        except Interrupted as interruption:
            if not run.progress.finished:  # else last.pt is written, and the model may hold the best weights by now
                writer.save_last(run, log.sync())
            writer.write_result(run, "interrupted", {})
            raise Interrupted(stop.received, f"{interruption}; saved: --resume auto continues {run_dir}") from None
        except DivergedError:
            writer.write_result(run, "diverged", {})
            raise
        final = {f"final/{key}": result[key] for key in ("valid_ppl", "test_ppl", "train_ppl") if result[key]}
        log.hparams(as_plain(config), final)
    return result


def configure(argv: list[str] | None) -> tuple[TrainConfig, RunOptions]:
    """Configuration and options of a command line (None: that of this process). Raises ConfigError, CorpusError."""
    given = parse_train_args(argv)
    for warning in given.warnings:
        logger.warning(warning)
    dataset = corpus_name(given.dataset, given.data)  # a preset's values may depend on it
    return make_config(given.preset, dataset, **given.values), given.options


def main() -> None:
    """Command line."""
    config, options = configure(None)
    if options.print_config:
        sys.stdout.write(json.dumps(as_plain(config), indent=2) + "\n")
        return
    result = train(config, options)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    elif result:
        sys.stdout.write(summary(result))


if __name__ == "__main__":
    run_cli(main)
