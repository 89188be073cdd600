"""A training run: its parts, how far it is, and their state in checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lm.base.device import pick_precision, rng_state, set_determinism, set_rng_state
from lm.base.errors import CheckpointError, ConfigError
from lm.base.names import flag
from lm.base.provenance import versions
from lm.base.ranks import ALONE, Ranks, reachable
from lm.config.schema import TrainConfig
from lm.config.values import as_plain, resume_conflicts
from lm.nn.model import AWDLSTM, carry_state
from lm.text.batching import BPTTWindows, batchify, check_columns
from lm.text.corpus import Corpus
from lm.training.averaging import NTASGD
from lm.training.cudagraphs import CUDAGraphs
from lm.training.means import IntervalMeans
from lm.training.optim import build_optimizer, load_state
from lm.training.progress import Progress
from lm.training.results import OTHER_TEXT
from lm.training.schedule import LearningRate, trapezoid_of

logger = logging.getLogger(__name__)
# What, with the configuration, decides how results are rounded, among `versions`.
_DECIDE_BITS = ("torch", "cpu", "gpu", "device", "threads", "processes", "precision", "kernel")


class Run:
    """The parts of a training run. Equal configurations and corpora build equal runs, to the bit.

    Of a run on several processes each has its columns of the batch and its rows of the hidden state; all else, and what
    a checkpoint holds, is the same in every process. With `other_text` the run to fine-tune had another corpus.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        device: torch.device,
        ranks: Ranks = ALONE,
        *,
        other_text: bool = False,
    ) -> None:
        self.config = config
        # As published, by averaging; on another text than that of the run it starts from, it is trained as any other.
        self.finetunes = config.finetune != "" and not other_text
        self.corpus = corpus
        self.device = device
        self.ranks = ranks
        self.columns = ranks.columns(config.batch_size)
        set_determinism(config.deterministic, config.seed)
        with device:
            self.model = AWDLSTM(corpus.vocab_size, config, pick_precision(config.precision, device))
        self.model.share_masks(self.columns)
        self.forward: nn.Module = self.model
        self.optimizer = build_optimizer(self.model, config)
        self.averaging = NTASGD(config.nonmono if config.nt_asgd or self.finetunes else 0)
        trapezoid = trapezoid_of(config) if config.schedule == "trapezoid" else None
        self.learning_rate = LearningRate(config.schedule, config.lr, config.when, trapezoid)
        self.momentum = trapezoid if config.optimizer != "sgd" else None
        # Fused Adam takes beta1 as a number, which a CUDA graph would freeze.
        self.step_in_graph = self.momentum is None
        self._check_columns()
        columns_NB = batchify(self.text("train"), config.batch_size, device)
        self.windows = BPTTWindows(
            columns_NB[:, self.columns.place],
            config.bptt,
            variable=config.variable_bptt,
            max_delta=config.max_seq_len_delta,
            seed=config.seed,
            device=device,
        )
        self.targets_per_epoch = (len(columns_NB) - 1) * config.batch_size
        self.hidden = self.model.initial_state(self.columns.count)
        self.means = IntervalMeans(device)
        # Sizes of the adaptive softmax depend on the targets; several processes wait for each other.
        self.cuda_graphs = CUDAGraphs(device, off=bool(config.cutoffs) or ranks.size > 1)
        self.progress = Progress()
        self.rate = config.lr  # of the last update, before its scaling by window length

    def text(self, split: str) -> np.ndarray:
        """Token ids of a split, of train those that the run is to see."""
        limit = self.config.train_tokens if split == "train" else 0
        return self.corpus.splits[split][: limit or None]

    def _check_columns(self) -> None:
        """Raise CorpusError, naming split and flag, where a split is too short for what training will cut it into."""
        config = self.config
        corpus = self.corpus
        if config.batch_size < self.ranks.size:
            raise ConfigError(f"--batch-size: {config.batch_size} columns are too few for {self.ranks.size} processes")
        if 0 < config.train_tokens < 2 * (most := max(config.batch_size, config.eval_batch_size)):
            raise ConfigError(f"--train-tokens: {config.train_tokens} are less than two a column, {2 * most}")
        columns = [("train", "batch_size"), ("train", "eval_batch_size"), ("valid", "eval_batch_size")]
        if "test" in corpus.splits:
            columns.append(("test", "test_batch_size"))
        for split, field_name in columns:
            where = f"{corpus.source}, {split}"
            check_columns(len(self.text(split)), getattr(config, field_name), where, flag(field_name))
        if config.train_tokens > (tokens := len(corpus.splits["train"])):
            logger.warning("--train-tokens: train has no more than %s tokens, all of which are used", f"{tokens:,}")
        if 0 < config.eval_train_tokens < 2 * config.eval_batch_size:
            raise ConfigError(f"--eval-train-tokens: {config.eval_train_tokens} are less than 2 * --eval-batch-size")

    def connect(self) -> None:
        """Have gradients averaged over the processes during the backward pass; all call this, and none alone."""
        if self.ranks.size > 1:
            from torch.nn.parallel import DistributedDataParallel

            with reachable():
                self.forward = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def backward(self, total: Tensor) -> None:
        """Compute the gradient of a mean over this process's columns, so that all add up to that of the batch."""
        weight = self.columns.count * self.ranks.size / self.columns.total  # 1 unless the columns differ in number
        with reachable():
            total.backward(total.new_full((), weight))

    def targets(self, targets_TB: Tensor) -> int:
        """Targets in a window of all columns, of which `targets_TB` are this process's."""
        return len(targets_TB) * self.columns.total

    def fraction(self, of_epoch: float) -> float:
        """How much of the run (0 to 1) is over after `of_epoch` (0 to 1) of the current epoch, for the schedule."""
        config = self.config
        progress = self.progress
        done = (progress.epoch - 1 + of_epoch) / config.epochs
        return max(done, progress.step / config.max_steps) if config.max_steps else done

    @property
    def epochs_begun(self) -> int:
        """Epochs that training has been in, the current one from its first update on."""
        return self.progress.epoch - self.windows.at_start

    def candidates(self) -> dict[str, AWDLSTM]:
        """What valid is to choose from: `raw` or `averaged` weights or, where --average-last asks for it, both."""
        averaged = self.averaging.averaged
        if averaged is None:
            return {"raw": self.model}
        return ({"raw": self.model} if self.config.average_last else {}) | {"averaged": averaged}

    def is_over(self) -> bool:
        """Whether training ends at this end of an epoch."""
        config = self.config
        progress = self.progress
        steps_done = config.max_steps > 0 and progress.step >= config.max_steps
        return progress.epoch > config.epochs or steps_done or self.has_stalled()

    def has_stalled(self) -> bool:
        """Whether what valid said so far ends training."""
        config = self.config
        return (
            self.learning_rate.base < config.min_lr
            or 0 < config.patience <= self.progress.waited
            or (self.finetunes and self.averaging.triggered)
        )

    def validates_epoch(self) -> bool:
        """Whether valid is to be scored at the end of this epoch."""
        config = self.config
        progress = self.progress
        last = progress.epoch == config.epochs or 0 < config.max_steps <= progress.step
        return last or progress.epoch % config.validate_epochs == 0

    def validation_due(self) -> bool:
        """Whether valid is to be scored within the epoch, before the next update."""
        every = self.config.validate_every
        step = self.progress.step
        return every > 0 and step % every == 0 and step > self.progress.validated and not self.windows.at_end

    def state_dict(self, log_position: int) -> dict[str, Any]:
        """All state, as tensors and plain values; `log_position` is how much of metrics.jsonl belongs to it."""
        return self._header() | {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaging": self.averaging.state_dict(),
            "learning_rate": self.learning_rate.state_dict(),
            "rate": self.rate,
            "windows": self.windows.state_dict(),
            "hidden": self._whole_state(),
            "means": self.means.state_dict(),
            "rng": rng_state(self.device),
            "versions": self.versions(),
            "log_position": log_position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken (tensors on the CPU); warns where rounding will differ.

        Raises:
            ConfigError: it was taken under another configuration; the message says what differs.
            CheckpointError: it is of another corpus, or not of a run's state.
        """
        if conflicts := resume_conflicts(self.config, state["config"]):
            raise ConfigError(
                f"--resume: the checkpoint was made with {', '.join(conflicts)}; "
                "repeat the flags that the run was started with, which its env.json has as argv"
            )
        if state["corpus_sha256"] != self.corpus.sha256:
            raise CheckpointError(f"--resume: {OTHER_TEXT}")
        self.corpus.check_vocabulary(state)
        if "optimizer" not in state:
            raise CheckpointError("--resume: this checkpoint holds weights only; continue from a last.pt")
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        self.averaging.load_state_dict(state["averaging"], self.model)
        self.learning_rate.load_state_dict(state["learning_rate"])
        self.rate = state["rate"]
        old_rate = state["config"]["lr"]
        self.learning_rate.base *= self.config.lr / old_rate  # 1 unless it was changed
        self.windows.load_state_dict(state["windows"])
        mine = self.columns.place
        carry_state(self.hidden, [tuple(whole[mine] for whole in layer) for layer in state["hidden"]])
        self.means.load_state_dict(state["means"])
        self.progress = Progress(**state["progress"])
        if (begun := self.epochs_begun) > self.config.epochs:
            raise ConfigError(f"--epochs: this run is in epoch {begun} already; give at least as many")
        if 0 < self.config.max_steps < self.progress.step:
            raise ConfigError(f"--max-steps: this run has made {self.progress.step} updates already; give as many")
        begins = f"from update {self.progress.step} on with"
        if old_rate != self.config.lr:
            self.progress.changes.append(f"{begins} --lr {self.config.lr:g} (was {old_rate:g})")
        epochs_read = (self.progress.epoch - 1) * self.targets_per_epoch
        if self.progress.finished and self.progress.tokens < epochs_read and not self.is_over():
            old = state["config"]["max_steps"]  # it ended an epoch early, with a validation there
            self.progress.changes.append(f"{begins} --max-steps {self.config.max_steps} (was {old}), in the next epoch")
        self.progress.finished = self.has_stalled() or (self.windows.at_start and self.is_over())
        set_rng_state(state["rng"], self.device)
        now, before = self.versions(), {"processes": 1} | state.get("versions", {})
        if changed := [f"{n}={now[n]} (was {before[n]})" for n in _DECIDE_BITS if n in before and before[n] != now[n]]:
            logger.warning("resuming with %s: results will not be bit-identical", ", ".join(changed))

    def versions(self) -> dict[str, Any]:
        """What decides the bits and the speed of the run, next to its configuration."""
        here = {"processes": self.ranks.size, "kernel": self.model.kernels}
        return versions(self.device, self.model.precision) | here

    def _whole_state(self) -> list[list[Tensor]]:
        """The hidden state of all columns, gathered from the processes."""
        if self.ranks.size == 1:
            return [list(layer) for layer in self.hidden]
        state = self.model.initial_state(self.columns.total)
        for layer, mine in zip(state, self.hidden, strict=True):
            for whole, part in zip(layer, mine, strict=True):
                whole[self.columns.place] = part
                self.ranks.add(whole)
        return [list(layer) for layer in state]

    def best_state(self, model: AWDLSTM) -> dict[str, Any]:
        """What `best.pt` holds: the validated weights and what is needed to use them."""
        return self._header() | {"vocab_size": self.corpus.vocab_size, "model": model.state_dict()}

    def _header(self) -> dict[str, Any]:
        return {
            "config": as_plain(self.config),
            "corpus_sha256": self.corpus.sha256,
            "vocabulary": self.corpus.tokenizer.fingerprint(),
            "progress": dataclasses.asdict(self.progress),
            **({"extends": True} if self.corpus.extends else {}),
        }
