"""Published figures: where they come from, and what they were divided by."""

import math

import numpy as np
import pytest

from lm.config.values import make_config
from lm.tables.compare import compare, compare_text
from lm.tables.published import comparable_ppl, load_published, per_target
from tests.ledgers import records_of, write_study


@pytest.mark.parametrize(
    ("published", "tokens", "expected"),
    [
        (87.17, 82430, 87.22), (75.96, 82430, 76.00), (72.30, 82430, 72.34), (110.44, 82430, 110.50),
        (105.97, 217646, 105.99), (100.33, 245569, 100.35),
    ],
)  # fmt: skip
def test_a_figure_divided_by_tokens_becomes_one_per_target(published, tokens, expected):
    assert round(per_target(published, tokens, 10), 2) == expected


def test_a_loss_divided_by_tokens_and_converted_is_the_mean_over_targets():
    nats = np.random.default_rng(0).uniform(1, 9, size=(11, 4))  # targets of 50 tokens in 4 columns of 12
    assert per_target(math.exp(nats.mean(1).sum() / 12), 50, 4) == pytest.approx(math.exp(nats.mean()))


def test_only_figures_that_were_divided_by_tokens_are_converted():
    columns = {"valid": 10, "test": 10}
    converted = [f for f in load_published() if f["source"] == "pytorch/examples word_language_model README"]
    assert len(converted) == 6
    assert all(comparable_ppl(f, columns)["test_ppl"] > f["test_ppl"] for f in converted)
    plain = next(f for f in load_published() if f["source"] == "README of awd-lstm-lm")
    assert comparable_ppl(plain, columns) == {"valid_ppl": 61.2, "test_ppl": 58.8}


def test_the_comparison_says_what_was_published_and_that_it_was_converted(tmp_path):
    study = str(write_study(tmp_path / "a", records_of({(0, 0): (4.50, 4.51, 4.52)})))
    text = compare_text(compare([study, "published"]))
    assert "published as 87.17 on test per token, shown per target" in text
    assert " 87.22 " in text


def test_every_published_figure_names_its_source_and_mark_and_parameters_of_this_project():
    for figure in load_published():
        assert figure["mark"] in ("V", "X")
        assert figure["source"]
        assert {"valid_ppl", "test_ppl"} & figure.keys()
        make_config(figure["preset"], figure["dataset"], **figure["config"])
