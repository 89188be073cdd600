"""The page of results/digits, from its ledger: `python -m examples.digits.page`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from examples.digits.claims import (
    Runs,
    autoencoder_claims,
    classifier_claims,
    gain,
    mean,
    methods,
    of,
    points,
    strengths,
)
from examples.digits.data import RESULTS, read_records
from lm.base.files import write_bytes
from lm.tables.stats import with_holm
from lm.tables.text import markdown, p_text

_HEAD = """\
# Activation penalties on scikit-learn's digits

What is commonly said about activation penalties, measured on 1,797 images of digits with `lm.ActivationPenalty`.
Neither experiment is a language model; [ptb-200](../ptb-200/README.md) is.
"""
_READING = """\
- *Code 64* is an autoencoder with 64 hidden units. A *probe* is a linear classifier that reads the code. *Gains* are in
  points of accuracy on test.
- *L1* multiplies the sum of |h| over the units of a layer, averaged over images, as in Keras. `lm.ActivationPenalty`
  takes a mean over units, so it is given the strength times the number of units.
- *Test* is the same 497 images for every seed. A seed draws train and valid from the rest, initial weights and batches.
- *[a, b]* is a 95 % t-interval of differences paired by seed. It covers seeds, not the choice of the test images.
- Verdicts on gains go by p, adjusted by Holm's method over the claims of an experiment.
"""
_AUTOENCODERS = """\
## Autoencoders

64 pixels, a code, 64 pixels; 1,000 images of train, three seeds, all figures on test.
*Missed* is the part of the pixels' variance that the reconstruction misses; the probe is a ridge classifier.
"""
_CLASSIFIER = """\
## Classifier

64 pixels, 256 ReLU units, 10 classes, trained on 300 images. Each strength was chosen by the mean accuracy on valid:
0, then 0.0001, 0.001, 0.01 and 0.1, then 0.2, 0.5, 2 and 5 times the best of these; dropout out of 0 to 0.7. The
chosen settings then trained with other seeds and were scored on test once. Gains are over *nothing*, *nats* is the
cross entropy on test, and *p* is adjusted by Holm's method over this table, so it differs from that of the claims.
"""
_STRENGTHS = ("l1", "l2", "weight_decay", "dropout")
_METRICS = (("Exact zeros, %", "zeros"), ("Missed, %", "missed"), ("Accuracy of the probe, %", "probe_test"))


def autoencoder_tables(runs: Runs) -> list[str]:
    """A table a metric: inputs, activation and code by strength."""
    places = list(dict.fromkeys((run["inputs"], run["activation"], run["code"]) for run in runs))
    tables = []
    for title, metric in _METRICS:
        rows = [
            [
                f"{inputs}, {activation}, code {code}",
                *(
                    f"{100 * mean(runs, metric, inputs=inputs, activation=activation, code=code, l1=l1):.1f}"
                    for l1 in strengths(runs)
                ),
            ]
            for inputs, activation, code in places
        ]
        tables.append(markdown([title, *(f"L1 {l1:g}" for l1 in strengths(runs))], rows, 1).rstrip())
    return tables


def classifier_table(runs: Runs) -> str:
    """A row a method: strengths, accuracy, gain over no regularisation."""
    test = {method: of(runs, split="test", method=method) for method in methods(runs)}
    gains = [None if m == "nothing" else gain(found, test["nothing"], "accuracy") for m, found in test.items()]
    rows = []
    for (method, found), difference in zip(test.items(), with_holm(gains), strict=True):
        accuracy = [100 * run["accuracy"] for run in found]
        chosen = [f"{name} {found[0][name]:g}" for name in _STRENGTHS if found[0][name]]
        rows.append([
            method,
            ", ".join(chosen),
            str(len(found)),
            f"{fmean(accuracy):.2f}" + (f" ± {stdev(accuracy):.2f}" if len(found) > 1 else ""),
            points(difference) if difference else "",
            p_text(difference.p_holm).removeprefix("= ") if difference and difference.p_holm is not None else "",
            f"{fmean(run['nats'] for run in found):.3f}",
            f"{100 * fmean(run['zeros'] for run in found):.1f} %",
        ])  # fmt: skip
    head = ["method", "chosen", "n", "test accuracy, %", "gain, points [95 %]", "p", "nats", "exact zeros"]
    return markdown(head, rows, 2).rstrip()


def provenance(head: dict[str, Any]) -> str:
    """How an experiment was run."""
    versions, git = head["versions"], head["git"]
    commit = (git["commit"] or "unknown")[:12] + (" with uncommitted changes" if git["dirty"] else "")
    return (
        f"`{head['command']}`: {head['seconds'] / 60:.0f} minutes on one thread of a shared {versions['cpu']}; Python "
        f"{versions['python']}, PyTorch {versions['torch']}, scikit-learn {versions['scikit-learn']}; commit {commit}."
    )


def write_page(folder: Path = RESULTS) -> None:
    """Write README.md from the ledger, with a section an experiment that was run."""
    (auto, *autoencoders), (cls, *classifiers) = (
        read_records(folder, e) or [{}] for e in ("autoencoder", "classifier")
    )
    claims = (autoencoder_claims(autoencoders) if auto else []) + (classifier_claims(classifiers) if cls else [])
    blocks = [_HEAD, markdown(["claim", "measured here", "verdict"], claims, 3), _READING]
    if auto:
        pictures = (
            "![Zeros, error and probe over the strength of L1; ReLU, means over seeds.](autoencoders.png)\n\n"
            "![Decoder weights of 60 units of a code of 256, without and with L1.](features.png)\n\n"
            "Decoder weights of the 60 units with the largest ones, of a ReLU code of 256 (first seed), each on its\n"
            "own scale."
        )
        blocks += [_AUTOENCODERS, *autoencoder_tables(autoencoders), pictures, provenance(auto)]
    if cls:
        blocks += [_CLASSIFIER, classifier_table(classifiers), provenance(cls)]
    blocks.append("Generated by `python -m examples.digits.page` from `runs.jsonl`; not edited by hand.")
    write_bytes(folder / "README.md", ("\n\n".join(block.strip() for block in blocks) + "\n").encode())


if __name__ == "__main__":
    write_page()
