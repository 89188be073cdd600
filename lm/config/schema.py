"""Every value of a run and its help text.

The fields of `TrainConfig` are the only place where a value is named: the command line and `--help`
(`lm.config.flags`), `config.json`, the identity of a run and the table of flags in the docs are derived from them.
Defaults are those of awd-lstm-lm (its --epochs apart), so that a command line published for it means the same here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm.base.errors import ConfigError
from lm.base.names import flag
from lm.config.bounds import (
    Count,
    Depth,
    NonNegative,
    Positive,
    Probability,
    Size,
    Threads,
    VocabSize,
    Width,
    check_fields,
)

# The cells of kernels that are not for all.
KERNEL_CELLS = {"fused": ("LSTM",), "triton": ("LSTM", "QRNN")}
# Parts that make a whole, as 0.33 + 0.56 + 0.11, add up to one this nearly.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class DataConfig:
    """corpus and batches"""

    dataset: str = ""
    """corpus: ptb, pennchar, wikitext-2, wikitext-103, enwik8, text8, pydocs or a folder in data/; empty: the corpus
    that --data holds, else ptb"""
    data: str = ""
    """folder with train.txt, valid.txt and, if there is one, test.txt: your own corpus, or your own copy of a known
    one; also .jsonl, .parquet, .gz, .zst, and several files a split"""
    tokenizer: Literal["word", "char", "bpe", "byte"] = "word"
    """what a token is: a word, a character, a piece of byte-level BPE, or a byte; `<eos>` ends each line in all four"""
    vocab_size: Count = 0
    """--tokenizer word: types at most, `<eos>` and `<unk>` included, the most frequent of train; 0: all"""
    min_count: Size = 1
    """--tokenizer word: a word that train has less often becomes `<unk>`"""
    lowercase: bool = False
    """--tokenizer word: read all text in lower case"""
    bpe_vocab_size: VocabSize = 8000
    """vocabulary size of --tokenizer bpe, learnt from train"""
    batch_size: Size = 80
    """columns of the training text (B), read in parallel"""
    bptt: Size = 70
    """base length of a training window (T), in tokens; backpropagation through time ends at its start"""
    variable_bptt: bool = True
    """draw each window's length around bptt, at least 5 (Merity et al. 2018, sec. 4.1); the learning rate scales with
    it, so a bptt below 8 multiplies the rate by more than 1.1"""
    max_seq_len_delta: Count = 20
    """the drawn length is capped at bptt + this, which caps memory"""
    eval_batch_size: Size = 10
    """columns of valid, and of train for its final perplexity"""
    test_batch_size: Size = 1
    """columns of test; 1 scores every token but the first"""
    train_tokens: Count = 0
    """tokens of train, from its start, that are trained on, with the vocabulary of all of it; 0: all"""
    eval_train_tokens: Count = 0
    """tokens of train, from its start, that its final perplexity is computed on; 0: all"""


@dataclass(frozen=True)
class ModelConfig:
    """model"""

    model: Literal["LSTM", "GRU", "RNN_TANH", "RNN_RELU", "QRNN"] = "LSTM"
    """recurrent cell; QRNN: window 2 in the first layer, 1 above"""
    emsize: Width = 400
    """embedding size (E)"""
    nhid: Width = 1150
    """hidden units of a layer (H); when tied, the last layer has emsize units"""
    nlayers: Depth = 3
    """recurrent layers"""
    tied: bool = True
    """share the embedding matrix with the decoder"""
    init_vectors: str = ""
    """file of word vectors, in word2vec's text format, that the embedding starts from; other types start as usual"""
    init_vectors_sha256: str = ""
    """checksum of that file, by which runs are told apart; computed where it is not given"""
    cutoffs: tuple[int, ...] = ()
    """adaptive softmax, for large vocabularies: words are numbered by frequency, and each N begins a cluster of rarer
    words (awd-lstm-lm, WikiText-103: 2800 20000 76000); none: one softmax over all words"""
    dropout: Probability = 0.4
    """dropout on the output of the last layer"""
    dropouth: Probability = 0.3
    """dropout between layers"""
    dropouti: Probability = 0.65
    """dropout on the embedded input"""
    dropoute: Probability = 0.1
    """dropout of whole words in the embedding matrix"""
    wdrop: Probability = 0.5
    """DropConnect on each hidden-to-hidden matrix; on a QRNN's only matrix, which reads the input"""
    zoneout: Probability = 0.0
    """QRNN: a unit keeps its state from one token to the next with this probability; in evaluation the expectation"""
    dropout_kind: Literal["locked", "standard"] = "locked"
    """locked: one mask a window, shared over time (AWD-LSTM); standard: every element anew (before AWD-LSTM)"""

    @property
    def widths(self) -> list[int]:
        """Units of each layer."""
        return [self.nhid] * (self.nlayers - 1) + [self.emsize if self.tied else self.nhid]


@dataclass(frozen=True)
class RegularizationConfig:
    """activation regularization"""

    alpha: NonNegative = 2.0
    """AR: alpha * mean((m*h)^2) over the dropped output of the last layer"""
    beta: NonNegative = 1.0
    """TAR: beta * mean((h[t+1] - h[t])^2) over the raw output of the last layer"""
    ar_norm: Literal["l2", "l1", "elastic"] = "l2"
    """norm of AR: mean square, mean absolute value, or the sum of both"""
    ar_layers: Literal["last", "all"] = "last"
    """layers that AR and TAR cover; all: the penalties of the layers are summed"""


@dataclass(frozen=True)
class OptimConfig:
    """optimization"""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """sgd: NT-ASGD unless --nonmono 0; adam: weight decay in the gradient (L2); adamw: decoupled weight decay"""
    lr: Positive = 30.0
    """learning rate"""
    clip: NonNegative = 0.25
    """maximum norm of the gradient; 0: no clipping"""
    wdecay: NonNegative = 1.2e-6
    """weight decay on all parameters"""
    nonmono: Count = 5
    """NT-ASGD: averaging starts when the valid loss exceeds the best of all but the last N validations; 0: never"""
    schedule: Literal["constant", "plateau", "linear", "onecycle", "trapezoid"] = "constant"
    """learning rate over the run; plateau: divided by 4 after each validation that is no better;
    trapezoid: up from lr/10, flat, down to lr/10, then along a cosine to 0"""
    trapezoid_rise: Probability = 1 / 12
    """trapezoid: part of the run in which the rate rises"""
    trapezoid_flat: Probability = 5 / 12
    """trapezoid: part of the run at the full rate"""
    trapezoid_fall: Probability = 5 / 12
    """trapezoid: part of the run in which the rate falls to lr/10; the rest of the run is the cosine"""
    trapezoid_beta1: Probability = 0.7
    """trapezoid: Adam's beta1 at the full rate; it moves between --adam-beta1 and this as the rate does"""
    average_last: Probability = 0.0
    """last part of the run over which weights are averaged; valid chooses between the mean and the raw weights"""
    min_lr: NonNegative = 0.0
    """--schedule plateau: the run ends when the learning rate falls below this"""
    when: tuple[int, ...] = ()
    """epochs after which the learning rate is divided by 10"""
    adam_beta1: Probability = 0.9
    """decay of Adam's mean of gradients"""
    adam_beta2: Probability = 0.999
    """decay of Adam's mean of squared gradients"""
    epochs: Size = 750
    """passes over the training text"""
    max_steps: Count = 0
    """end training, and the schedule, after this many updates; 0: no limit"""
    validate_every: Count = 0
    """updates between two validations within an epoch, beside the one at its end; 0: that one only"""
    validate_epochs: Size = 1
    """epochs from one validation at an epoch's end to the next; the last epoch always has one; for runs that valid does
    not steer"""
    patience: Count = 0
    """end training after this many validations in a row without a better one; 0: never"""
    seed: Count = 1111
    """seed of initial weights, masks and window lengths"""
    finetune: str = ""
    """run directory or export to fine-tune: starts from its best checkpoint and configuration, averages from the first
    update on, ends where NT-ASGD would start averaging; with another corpus its vocabulary grows by the words of that
    corpus, and training is that of the flags"""

    @property
    def nt_asgd(self) -> bool:
        """Whether valid decides when weights are averaged."""
        return self.optimizer == "sgd" and self.nonmono > 0


@dataclass(frozen=True)
class ComputeConfig:
    """arithmetic"""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """type of the matrix products' inputs, on CUDA of layers' outputs too; auto: bf16 where the hardware has it"""
    kernel: Literal["auto", "native", "fused", "triton"] = "auto"
    """recurrent layers: PyTorch's (native), this project's for LSTMs on CPUs (fused) and on CUDA for LSTMs in bf16 and
    QRNNs (triton), or by device, precision and size one of them (auto)"""
    deterministic: bool = False
    """deterministic algorithms only: CUDA runs become slower and repeat bit for bit; CPU runs repeat without it"""


@dataclass(frozen=True)
class TrainConfig(ComputeConfig, OptimConfig, RegularizationConfig, ModelConfig, DataConfig):
    """Everything that decides what a run computes. Inherited in reverse, so that fields keep the order above."""

    preset: str = ""
    """name of the preset that the values started from"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tied and self.nlayers == 1 and self.nhid != self.emsize:
            raise ConfigError("--nhid: one tied layer has emsize units; set --nhid to --emsize or use --no-tied")
        cells = KERNEL_CELLS.get(self.kernel)
        if cells and self.model not in cells:
            known = " and ".join(cells)
            raise ConfigError(f"--kernel: {self.kernel} is for {known}, not {self.model}; use auto or native")
        if self.zoneout and self.model != "QRNN":
            raise ConfigError("--zoneout: works with --model QRNN only")
        self._check_vocabulary()
        self._check_validations()
        if self.init_vectors_sha256 and not self.init_vectors:
            raise ConfigError("--init-vectors-sha256: works with --init-vectors only")
        if self.init_vectors and self.finetune:
            raise ConfigError("--init-vectors: fine-tuning starts from the weights of a run; leave it out")
        if self.min_lr and self.schedule != "plateau":
            raise ConfigError("--min-lr: works with --schedule plateau only")
        if self.min_lr > self.lr:
            raise ConfigError("--min-lr: the run would end before its first update; it must not be above --lr")
        self._check_annealing()

    def _check_vocabulary(self) -> None:
        if self.tokenizer != "bpe" and self.bpe_vocab_size != DataConfig.bpe_vocab_size:
            raise ConfigError("--bpe-vocab-size: works with --tokenizer bpe only")
        for name in ("vocab_size", "min_count", "lowercase"):
            if self.tokenizer != "word" and getattr(self, name) != getattr(DataConfig, name):
                other = "; use --bpe-vocab-size" if (name, self.tokenizer) == ("vocab_size", "bpe") else ""
                raise ConfigError(f"{flag(name)}: works with --tokenizer word only{other}")
        if list(self.cutoffs) != sorted(set(self.cutoffs)):
            raise ConfigError(f"--cutoffs: must increase; got {' '.join(map(str, self.cutoffs))}")
        if self.cutoffs and self.tokenizer != "word":
            raise ConfigError("--cutoffs: works with --tokenizer word only, which numbers words by frequency")
        if 0 < self.vocab_size < 3:
            raise ConfigError(
                f"--vocab-size: must be 0 (all) or at least 3, a word, <eos> and <unk>; got {self.vocab_size}"
            )

    def _check_validations(self) -> None:
        steered = self.nt_asgd or self.schedule == "plateau" or self.patience or self.finetune
        if self.validate_epochs > 1 and steered:
            raise ConfigError(
                "--validate-epochs: works where valid steers nothing; leave it out with --schedule plateau, --patience "
                "and --finetune, and with SGD add --nonmono 0"
            )

    def _check_annealing(self) -> None:
        if self.average_last and self.nt_asgd:
            raise ConfigError("--average-last: NT-ASGD averages already; add --nonmono 0, or leave it out")
        for name in ("trapezoid_rise", "trapezoid_flat", "trapezoid_fall", "trapezoid_beta1"):
            if self.schedule != "trapezoid" and getattr(self, name) != getattr(OptimConfig, name):
                raise ConfigError(f"{flag(name)}: works with --schedule trapezoid only")
        parts = self.trapezoid_rise + self.trapezoid_flat + self.trapezoid_fall
        if parts > 1 + _ROUNDING:
            raise ConfigError("--trapezoid-rise, --trapezoid-flat and --trapezoid-fall: must not exceed 1 in all")


@dataclass(frozen=True)
class RunOptions:
    """this run (where and how, not what)"""

    out_dir: str = ""
    """run directory; empty: runs/<dataset>-<preset or model>-<hash of the configuration>"""
    resume: str = ""
    """auto: continue the run in --out-dir, or start it; PATH: continue the run that this checkpoint belongs to"""
    save: str = ""
    """also copy the best checkpoint to this file"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto: CUDA if there is a device"""
    threads: Threads = 0
    """CPU threads; 0: those of the run that is resumed, else as many as CPUs that other processes leave free, unless
    the variable OMP_NUM_THREADS says how many"""
    log_interval: Size = 200
    """updates between two log records"""
    save_every: Size = 500
    """updates between two checkpoints; a killed run loses at most this many"""
    save_minutes: NonNegative = 0.0
    """minutes between two checkpoints, instead of --save-every; 0: use --save-every"""
    max_minutes: NonNegative = 0.0
    """stop after this many minutes, everything saved, with exit code 0; --resume auto continues; 0: no limit"""
    eval_test: bool = True
    """score test once, from the best checkpoint, at the end"""
    tensorboard: bool = True
    """write TensorBoard events to tb/"""
    dry_run: bool = False
    """check the configuration, corpus and model, print what would run, and stop"""
    print_config: bool = False
    """print the configuration as JSON and stop"""
    json: bool = False
    """print the result as one JSON object on stdout"""

    def __post_init__(self) -> None:
        check_fields(self)
