"""Every measured figure of README.md and of the pages under results/ is recomputed from the committed ledgers.

A page's figures stand in `EXPECTED`, as the text around them with the recomputed values in it: a wrong digit on the
page fails, and so does a figure with a decimal point that no expected text covers, unless it is a setting, or quoted
with its source in the same paragraph or row. Blocks of code show what a command printed, and are left out. `IN_DOCS`
has the figures that pages under docs/ take from ledgers; other figures there are not looked for.
"""

import json
import re
import tomllib
from statistics import fmean

import numpy as np
import pytest

from lm.scoring import pairs_difference
from lm.tables.published import per_target
from tests import gpu_page
from tests.figures import digits, dropout_0_2, full_size, others, small_text
from tests.figures.reading import ROOT, THREE, activation, bracket, gain, mean_sd, only, runs, values


def readme_rows() -> list[str]:
    """The README's table, ours against published per target, and its findings."""
    base, views = runs(0, 0), dropout_0_2.both_views()
    there = {name: per_target(ppl, 82430, 10) for name, ppl in (("40", 87.17), ("6", 110.44), ("650", 75.96))}
    wt2 = per_target(100.33, 245569, 10)
    both = runs(1, 1)
    all_three, over_all, _, held, _, p = views["alpha 1 and beta 1"]
    elsewhere = [
        gain(runs(1, 1, study=study)[1111], runs(0, 0, study=study)[1111], "test")
        for study in ("wikitext-2-200", "ptb-650")
    ]
    return [
        f"| 2x200 LSTM, PTB, 40 epochs | 3 | {mean_sd(base, 'test_ppl', interval=True)} | {there['40']:.2f} |",
        f"| 2x200 LSTM, PTB, 6 epochs | 1 | {only('ptb-six')['test_ppl']:.2f} | {there['6']:.2f} |",
        f"| 2x650 LSTM, PTB, 40 epochs | 1 | {only('ptb-650')['test_ppl']:.2f} | {there['650']:.2f} |",
        f"| 2x200 LSTM, WikiText-2, 40 epochs | 1 | {only('wikitext-2-200')['test_ppl']:.2f} | {wt2:.2f} |",
        *full_size.readme(),
        f"from {mean_sd(base, 'test_ppl')} to {mean_sd(both, 'test_ppl')} (n = 3)",
        f"{all_three:.3f} nats {bracket(*over_all, 3)}, Welch",
        f"The other two alone give {held:.3f} nats (Holm-adjusted p = {p:.3f})",
        f"gains {elsewhere[0]:.3f} nats on WikiText-2 and {elsewhere[1]:.3f} at 650 units",
        small_text.transferred()[-1],
        small_text.tuned_gain(),
        small_text.norm_gains()[1].partition(" (")[0],
        f"Training without it costs {-gain(runs(0, 0, 0)[1111], base[1111], 'test'):.3f} nats on test",
        f"At dropout 0.2 the pair gains {gain(both[1111], base[1111], 'test'):.3f} nats (one seed)",
        f"{100 * activation(runs(0.8, 0, 0.2, 'l1'), 'frac_small'):.1f} % of the activations nearly zero "
        f"({100 * base[1111]['activation']['frac_small']:.1f} % without a penalty)",
    ]


IN_DOCS = {
    "docs/commands.md": others.presets_reach(), "docs/studies.md": [others.minutes_of_an_epoch()],
    "docs/text.md": [others.large_vocabulary()],
}  # fmt: skip
EXPECTED = {
    "README.md": readme_rows(),
    "results/README.md": [
        *others.baselines(), *dropout_0_2.three_seeds(), *dropout_0_2.strengths(), *dropout_0_2.noise(),
        *dropout_0_2.activations(), dropout_0_2.own_page(), dropout_0_2.beside_a_cache(), *dropout_0_2.elsewhere(),
        *small_text.searched("ptb-60k-budget", "ptb-60k-final"), *small_text.pilot(), *small_text.unreadable(),
        *small_text.norms(), *small_text.width(), *small_text.transferred()[:-1], *others.others(),
        *full_size.results(), full_size.side_by_side(),
        *others.beside_the_lstm_of_words(), others.speed(), *digits.claims(), others.grammar()[0],
    ],
    "results/blimp/README.md": others.grammar(),
    "results/ptb-200/adaptation.md": [*dropout_0_2.adaptation(), dropout_0_2.six_epochs()],
    "results/digits/README.md": [*digits.autoencoders(), *digits.classifier()],
}  # fmt: skip
# Figures that others published -> the source that stands in the same paragraph or row.
QUOTED = {
    "61.2": "awd-lstm-lm", "58.8": "awd-lstm-lm", "68.7": "awd-lstm-lm", "65.6": "awd-lstm-lm",
    "53.2": "awd-lstm-lm", "52.5": "awd-lstm-lm", "52.2": "awd-lstm-lm", "50.6": "awd-lstm-lm",
    "60.3": "Merity et al. 2018", "57.3": "Merity et al. 2018",
    "70.1": "Merity et al. 2018", "65.8": "Merity et al. 2018", "87.17": "pytorch/examples",
    "69.8": "Warstadt et al. 2020", "65.5": "sgugger/Adam-experiments", "62.7": "Merity et al. 2018",
    "60.7": "Merity et al. 2018", "60.0": "Merity et al. 2018", "51.1": "Krause et al. 2018",
}  # fmt: skip
# Coefficients, dropouts, thresholds and versions.
SETTINGS = {
    "0.0001", "0.0004", "0.001", "0.002", "0.004", "0.008", "0.01", "0.016", "0.02", "0.03", "0.032", "0.05", "0.1",
    "0.2", "0.3", "0.4", "0.5", "0.6", "0.632", "0.7", "0.8", "1.5", "3.11",
}  # fmt: skip
_FIGURE = re.compile(r"(?<![\w.-])\d+\.\d+(?!\.?\w)")


def blocks(page: str) -> list[str]:
    """Paragraphs, list items and table rows of a page, each on one line, without code and addresses."""
    text = re.sub(r"^```.*?^```", "\n", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\n(?=\||- )", "\n\n", text)
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]


@pytest.mark.parametrize(
    ("page", "expected"), [(page, text) for page, texts in (EXPECTED | IN_DOCS).items() for text in texts]
)
def test_a_page_says_what_the_ledgers_give(page, expected):
    assert any(expected in block for block in blocks(page))


@pytest.mark.parametrize("page", EXPECTED)
def test_a_page_has_no_figure_that_is_neither_recomputed_nor_quoted_with_its_source(page):
    left = []
    for block in blocks(page):
        rest = block
        for expected in sorted(EXPECTED[page], key=len, reverse=True):
            rest = rest.replace(expected, "")
        rest = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+|\b\d{4}\.\d{5}\b|sec\. [\d., ]+", "", rest)
        for figure in _FIGURE.findall(rest):
            source = QUOTED.get(figure)
            if figure not in SETTINGS and (source is None or source not in block):
                left.append(f"{figure} in: {block[:100]}")
    assert not left


def test_the_page_on_the_triton_lstm_is_what_its_figures_make():
    folder = ROOT / "results/speed"
    assert (folder / "gpu-lstm.md").read_text() == gpu_page.page(json.loads((folder / "gpu-lstm.json").read_text()))


def test_the_page_on_minimal_pairs_has_the_table_of_the_committed_scores():
    found, reports, records = others.judged()
    names = [
        f"{report['run']}: AR {record['config']['alpha']:g}, TAR {record['config']['beta']:g}"
        for report, record in zip(reports, records, strict=True)
    ]
    page = (ROOT / "results/blimp/README.md").read_text()
    assert pairs_difference.table(names, reports, found["difference"]) in page


@pytest.mark.parametrize(
    ("study", "records"),
    [
        ("min-lr", [runs(0, 0, 0)[1111]]),
        ("cuda", [runs(0, 0)[1111]]),
        ("quick/ptb", [runs(0, 0), runs(1, 1)]),
        ("quick/wikitext-2", [runs(0, 0, study="wikitext-2-200"), runs(1, 1, study="wikitext-2-200")]),
    ],
)
def test_a_study_quotes_another_of_this_repository_as_its_ledger_has_it(study, records):
    rows = tomllib.loads((ROOT / "results" / study / "study.toml").read_text())["quoted"]
    own = [(row["valid_ppl"], row["test_ppl"]) for row in rows if "of this repository" in row["source"]]
    by_seed = [record if 1111 in record else {1111: record} for record in records]
    assert own == [
        tuple(round(fmean(values(found, f"{split}_ppl")), 2) for split in ("valid", "test")) for found in by_seed
    ]


def test_the_penalties_cost_perplexity_in_the_first_three_epochs():
    base = dict(runs(0, 0)[1111]["curve"])
    for coefficients in THREE.values():
        ours = dict(runs(*coefficients)[1111]["curve"])
        assert all(ours[epoch] > base[epoch] for epoch in (1, 2, 3))
        assert ours[40] < base[40]


def test_what_was_still_improving_was_not_at_its_lowest_rate():
    for record in (runs(0, 0, 0.4)[1111], runs(1, 1, 0.4)[1111]):
        assert np.all(np.diff([ppl for _, ppl in record["curve"][-4:]]) < 0)


def test_the_pair_gains_nothing_at_a_dropout_of_0_4():
    assert gain(runs(1, 1, 0.4)[1111], runs(0, 0, 0.4)[1111], "test") < 0
