"""The start of a run, on its device: anew, from its last checkpoint, or from the weights of another run."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from lm.base.device import pick_device
from lm.base.errors import ConfigError
from lm.base.memory import keep_freed_memory
from lm.base.ranks import ALONE, Ranks
from lm.base.rundir import RunDir
from lm.base.threads import are_given, continue_with
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import vectors_digest
from lm.nn.kernels.choose import check_device
from lm.scoring.corpus import corpus_to_tune_on, extended_tokenizer
from lm.scoring.loading import load_trained
from lm.text.finding import configured_corpus
from lm.text.vectors import read_vectors
from lm.training.checkpoint import check_finite, fitting, load_checkpoint, load_latest
from lm.training.places import check_new
from lm.training.run import Run
from lm.training.transfer import known_share, with_new_types

logger = logging.getLogger(__name__)


def open_run(config: TrainConfig, options: RunOptions, run_dir: RunDir, ranks: Ranks = ALONE) -> tuple[Run, int]:
    """Build the run, restored when resuming; returns it and how much of metrics.jsonl belongs to it.

    Sets this process's threads and how it keeps memory. Raises ConfigError where the kernel cannot run on the device,
    CorpusError, and CheckpointError.
    """
    device = _prepare_device(config, options, ranks)
    state = None
    source = Path(options.resume)
    if options.resume == "auto":
        source = run_dir.last
        state, warning = load_latest(source)
        if warning:
            logger.warning("%s: continuing from the checkpoint before it", warning)
    elif options.resume:
        state = load_checkpoint(source)
    if state is None:
        check_new(run_dir, resume=True)
        return _begin(config, device, ranks), 0
    with fitting(source):
        tokenizer = extended_tokenizer(run_dir, state, len(state["model"]["encoder.weight"]))
        other_text = bool(state["progress"].get("from_run"))
    run = Run(config, configured_corpus(config, tokenizer), device, ranks, other_text=other_text)
    with fitting(source):
        if not options.threads and not are_given():
            continue_with(state.get("versions") or {})
        changes = len(state["progress"].get("changes", ()))
        run.load_state_dict(state)
        check_finite(source, run.model.state_dict())
        log_position = state["log_position"]
    if math.isfinite(run.progress.best_loss) or run_dir.best.exists():
        best = load_checkpoint(run_dir.best)  # the end of the run needs it: better to hear of damage now
        with fitting(run_dir.best):
            if len(run.progress.changes) > changes:
                # Updates differ from here on, so a validation after the checkpoint is not made again.
                run.progress.adopt_best(best["progress"])
    logger.info("resuming in epoch %d after update %d", run.progress.epoch, run.progress.step)
    return run, log_position


def _prepare_device(config: TrainConfig, options: RunOptions, ranks: Ranks) -> torch.device:
    """The device to train on, with this process set up for it."""
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device, ranks)
    check_device(config.kernel, device)
    return device


def _begin(config: TrainConfig, device: torch.device, ranks: Ranks) -> Run:
    """A run before its first update."""
    if config.finetune:
        source = RunDir(config.finetune)
        trained = load_trained(source)
        with fitting(source.path):
            corpus = corpus_to_tune_on(config, source, trained)
        run = Run(config, corpus, device, ranks, other_text=corpus.sha256 != trained["corpus_sha256"])
        with fitting(source.path):
            _finetune_from(run, trained["model"])
        return run
    run = Run(config, configured_corpus(config), device, ranks)
    if config.init_vectors:
        start_from_vectors(run)
    return run


def _finetune_from(run: Run, weights: dict[str, Tensor]) -> None:
    """Start from the weights of another run, whose types are the first of this run's vocabulary.

    On the text of that run, average from the first update on.
    """
    run.model.load_state_dict(with_new_types(weights, run.corpus.vocab_size))
    if run.finetunes:
        run.averaging.start(run.model)
        return
    known = run.progress.from_run = known_share(run.corpus, len(weights["encoder.weight"]))
    logger.info(
        "--finetune: of the %s types of train %s are known, %s are new; %.1f %% of its tokens are known",
        *(f"{known[name]:,}" for name in ("types", "known_types", "new_types")), 100 * known["share_of_tokens"],
    )  # fmt: skip


def start_from_vectors(run: Run) -> None:
    """Overwrite the embedding's rows of those types that the file of `--init-vectors` has.

    Raises ConfigError if the file is not the one of the configuration's checksum, or holds no usable vectors.
    """
    config = run.config
    if vectors_digest(config.init_vectors) != config.init_vectors_sha256:
        raise ConfigError(f"--init-vectors: {config.init_vectors} has another checksum than --init-vectors-sha256")
    vectors = read_vectors(Path(config.init_vectors), run.corpus.tokenizer.vocab, config.emsize)
    with torch.no_grad():
        for index, vector in vectors.items():
            run.model.encoder.weight[index] = torch.from_numpy(vector)
    counts = run.corpus.type_counts("train")
    run.progress.from_vectors = {
        "types": len(vectors),
        "share_of_types": len(vectors) / run.corpus.vocab_size,
        "share_of_tokens": float(counts[list(vectors)].sum() / counts.sum()),
    }
    logger.info(
        "--init-vectors: %s of %s types, %.1f %% of the tokens of train",
        f"{len(vectors):,}", f"{run.corpus.vocab_size:,}", 100 * run.progress.from_vectors["share_of_tokens"],
    )  # fmt: skip
