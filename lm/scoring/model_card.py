"""The model card of an export: what the model is, its figures, how it was made, and how to use it."""

from __future__ import annotations

import itertools
import shlex
from typing import Any

import torch
from torch import Tensor

from lm.config.schema import TrainConfig
from lm.nn.regularization import INACTIVE
from lm.text.cards import known_corpora
from lm.text.units import NAMES

_LAYERS = {
    "LSTM": "nn.LSTM({}, {})",
    "GRU": "nn.GRU({}, {})",
    "RNN_TANH": "nn.RNN({}, {})",
    "RNN_RELU": 'nn.RNN({}, {}, nonlinearity="relu")',
    "QRNN": "QRNN({}, {})",
}
_DECODER = """\
    return nn.functional.linear(x, weights["{weight}"], weights["decoder.bias"])"""
# Log-probabilities, which are logits of the same distribution.
_ADAPTIVE_DECODER = """\
    weight, bias = weights["{weight}"], weights["decoder.bias"]
    sizes = {sizes}  # head and tails of the adaptive softmax
    (head, *tails), (head_bias, *biases) = weight.split(sizes), bias.split(sizes)
    head = torch.cat([head, weights["decoder.cluster_weight"]])
    head_bias = torch.cat([head_bias, weights["decoder.cluster_bias"]])
    words, clusters = nn.functional.linear(x, head, head_bias).log_softmax(-1).split([sizes[0], len(tails)], -1)
    log_p = [nn.functional.linear(x, w, b).log_softmax(-1) for w, b in zip(tails, biases)]
    return torch.cat([words, *(log_p[k] + clusters[..., k, None] for k in range(len(tails)))], -1)"""
# PyTorch has no QRNN. The first layer's matrix is twice as wide as its input, as it reads the word before as well.
_QRNN = """\


class QRNN(nn.Module):
    def __init__(self, inputs, units):
        super().__init__()
        self.linear = nn.Linear(inputs, 3 * units)

    def forward(self, x):
        if self.linear.in_features == 2 * x.shape[-1]:
            x = torch.cat([x, torch.cat([torch.zeros_like(x[:1]), x[:-1]])], -1)
        z, f, o = self.linear(x).chunk(3, -1)
        z, f, o = z.tanh(), {keep}f.sigmoid(), o.sigmoid()
        states = [torch.zeros_like(z[0])]
        for z_t, f_t in zip(z, f):
            states.append(states[-1].lerp(z_t, f_t))
        return o * torch.stack(states[1:]), states[-1]


"""
_CARD = """\
# {title}

A language model of {layers} {cell} layers, trained on {dataset}: {vocab_size:,} types, embeddings of {emsize} units,
{params:,} parameters{tied}. {penalties} The code follows AWD-LSTM (arXiv 1708.02182).

## Figures

| | {train} | valid | test |
|---|--:|--:|--:|
| perplexity | {train_ppl} | {valid_ppl} | {test_ppl} |
| nats a token | {train_loss} | {valid_loss} | {test_loss} |
{units}| columns that the text was cut into | {eval_columns} | {eval_columns} | {test_columns} |

Perplexity is exp(nats / tokens) in fp32 without dropout, the hidden state carried through each column, `<eos>` counted
as a token. The last layer's activations h on valid: {activation}.{rounding}

## How it was made

- text: {dataset}{corpus}
{checksums}
- training: {status}, {training}
- command: `{command}`
- code: commit {commit}; {versions}

## Use

{use}"""
_ROUNDED = " The figures are those before the weights were rounded to bfloat16."
_USE = """\
```python
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
{definition}
weights = {{name: tensor.float() for name, tensor in load_file("model.safetensors").items()}}
embedding = nn.Embedding.from_pretrained(weights["encoder.weight"])
layers = [{modules}]
for i, layer in enumerate(layers):
    layer.load_state_dict({{name: weights[f"rnns.{{i}}.{{name}}"] for name in layer.state_dict()}})


@torch.no_grad()
def logits(ids):
    x = embedding(ids)
    for layer in layers:
        x, _ = layer(x)
{decoder}


tokenizer = Tokenizer.from_file("tokenizer.json")  # every line of the text ended in <eos>
ids = torch.tensor(tokenizer.encode("<eos> the").ids)
likeliest = logits(ids)[-1].topk(5).indices.tolist()
print([tokenizer.id_to_token(word) for word in likeliest])
```
"""


def _penalties(config: TrainConfig, result: dict[str, Any]) -> str:
    """What the weights were regularized with, as a sentence; nothing where fine-tuning did not change them."""
    if config.finetune and not result["best_epoch"]:
        return f"The weights are those of {config.finetune}, which fine-tuning did not improve."
    layers = ", over all layers" if config.ar_layers == "all" else ""
    norm = "" if config.ar_norm == "l2" else f" ({config.ar_norm})"
    verb = "Fine-tuned" if config.finetune else "Trained"
    return f"{verb} with AR {config.alpha:g}{norm} and TAR {config.beta:g}{layers} (arXiv 1708.01009)."


def _definition(config: TrainConfig) -> str:
    """The layer's code, where PyTorch has none. In evaluation zoneout scales the forget gate by its expectation."""
    if config.model != "QRNN":
        return ""
    return _QRNN.format(keep=f"{1 - config.zoneout!r} * " if config.zoneout else "")


def _training(config: TrainConfig, result: dict[str, Any]) -> str:
    source = f"fine-tuned from {config.finetune}, " if config.finetune else ""
    kept = (
        f"weights of epoch {result['best_epoch']} of {result['epochs']}" if result["best_epoch"] else "weights as there"
    )
    averaged = ", averaged" if result["averaged"] else ""
    return f"{source}seed {result['seed']}, {result['steps']:,} updates, {kept}{averaged}"


def _command(arguments: list[str]) -> str:
    """The command that trains the model again, without where the run lay and how it went on."""
    elsewhere = ("--out-dir", "--out_dir", "--resume", "--save")
    kept = []
    for before, argument in itertools.pairwise(["", *arguments]):
        if argument.partition("=")[0] not in elsewhere and before not in elsewhere:
            kept.append(argument)
    return shlex.join(["python", "-m", "lm.train", *kept])


def plain_use(config: TrainConfig, weights: dict[str, Tensor]) -> str:
    """The lines of plain PyTorch that use the weights."""
    reads = "linear.weight" if config.model == "QRNN" else "weight_ih_l0"
    shapes = [weights[f"rnns.{layer}.{reads}"].shape[1] for layer in range(config.nlayers)]
    bounds = [0, *config.cutoffs, len(weights["encoder.weight"])]
    return _USE.format(
        modules=", ".join(_LAYERS[config.model].format(i, h) for i, h in zip(shapes, config.widths, strict=True)),
        definition=_definition(config),
        decoder=(_ADAPTIVE_DECODER if config.cutoffs else _DECODER).format(
            weight="encoder.weight" if config.tied else "decoder.weight",
            sizes=[end - start for start, end in itertools.pairwise(bounds)],
        ),
    )


def model_card(
    title: str,
    config: TrainConfig,
    weights: dict[str, Tensor],
    result: dict[str, Any],
    environment: dict[str, Any],
    use: str,
) -> str:
    """The model card; every figure is one of the run's result.json, and `use` is how to use the model."""

    def shown(name: str, digits: int) -> str:
        return "not scored" if result.get(name) is None else f"{result[name]:.{digits}f}"

    splits = ("train", "valid", "test")
    statistics = result["activation"]
    corpus = known_corpora().get(result["dataset"])
    versions = result["versions"]
    git = result["git"]
    return _CARD.format(
        title=title, layers=config.nlayers, cell=config.model, vocab_size=len(weights["encoder.weight"]),
        emsize=config.emsize, params=result["params"], tied=", decoder tied to the embedding" if config.tied else "",
        penalties=_penalties(config, result), dataset=result["dataset"], status=result["status"],
        train=f"train, first {config.eval_train_tokens:,} tokens" if config.eval_train_tokens else "train",
        **{f"{split}_ppl": shown(f"{split}_ppl", 2) for split in splits},
        **{f"{split}_loss": shown(f"{split}_loss", 4) for split in splits},
        units="".join(
            f"| {NAMES[unit]} | {' | '.join(shown(f'{split}_{unit}', 4) for split in splits)} |\n"
            for unit in NAMES if unit != "ppl" and f"valid_{unit}" in result
        ),
        eval_columns=config.eval_batch_size, test_columns=config.test_batch_size,
        activation=f"rms {statistics['rms']:.4f}, mean |h| {statistics['mean_abs']:.4f}, "
        f"|h| < {INACTIVE} in {statistics['frac_small']:.1%}, rms of h[t+1] - h[t] {statistics['temporal_rms']:.4f}",
        rounding=_ROUNDED if weights["encoder.weight"].dtype == torch.bfloat16 else "",
        corpus=f", {corpus.title}; licence: {corpus.licence}" if corpus else "",
        checksums="\n".join(f"  - {split}: sha256 {digest}" for split, digest in result["corpus_sha256"].items()),
        training=_training(config, result),
        command=_command(environment["argv"][1:]),
        commit=f"{git['commit'] or 'unknown'}{', changed since' if git['dirty'] else ''}",
        versions=f"Python {versions['python']}, PyTorch {versions['torch']}, tokenizers {versions['tokenizers']}, "
        f"{versions['gpu'] or versions['cpu']}, {versions['precision']}",
        use=use,
    )  # fmt: skip
