"""From a ledger to configurations, their differences and the choice among them."""

import csv
import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from lm.study.specification import load_study
from lm.tables.analysis import analyse
from lm.tables.answer import answer
from lm.tables.axes import slices_over
from lm.tables.compare import compare, compare_text
from lm.tables.page import report, report_text, unfinished
from tests.ledgers import GRID, LOSSES, analysis_of, configuration_of, record, records_of, write_study


def test_configurations_hold_mean_sd_and_n_of_perplexity_and_the_gap_in_nats(tmp_path):
    configuration = configuration_of(analysis_of(tmp_path, records_of(LOSSES)), alpha=1, beta=0)
    ppl = np.exp(LOSSES[1, 0])
    found = configuration.estimates["valid_ppl"]
    assert (found.mean, found.sd, found.n) == pytest.approx((ppl.mean(), ppl.std(ddof=1), 3))
    assert configuration.estimates["gap"].mean == pytest.approx(4.48 - math.log(60))
    assert configuration.differences["valid"].mean == pytest.approx(-0.03)
    assert configuration.differences["valid"].p == pytest.approx(stats.ttest_rel(LOSSES[1, 0], LOSSES[0, 0]).pvalue)


def test_holm_runs_over_all_comparisons_of_the_study(tmp_path):
    analysis = analysis_of(tmp_path, records_of(LOSSES))
    found = [
        configuration.differences["test"]
        for configuration in analysis.configurations
        if configuration.differences["test"]
    ]
    p = sorted(d.p for d in found)
    assert len(p) == 2
    assert sorted(d.p_holm for d in found) == pytest.approx([min(1, 2 * p[0]), max(min(1, 2 * p[0]), p[1])])


def test_the_choice_is_made_on_valid_even_where_test_says_otherwise(tmp_path):
    lines = [
        record(1, 4.5, test=4.4),
        record(1, 4.3, test=4.6, config={"alpha": 1.0}),
        record(1, 4.4, test=4.1, config={"alpha": 2.0}),
    ]
    analysis = analysis_of(tmp_path, lines, seeds=[1])
    assert analysis.configurations[analysis.chosen].values["alpha"] == 1.0
    assert analysis.split == "test"
    assert "alpha 1" in answer(analysis)
    assert "+0.2000 nats per token on test" in answer(analysis)


def test_ties_are_broken_by_the_order_of_the_study(tmp_path):
    lines = [record(1, 4.3, config={"alpha": float(a)}) for a in (2, 1, 0)]
    analysis = analysis_of(tmp_path, lines, seeds=[1])
    assert analysis.chosen == analysis.baseline == 0
    assert "No configuration beats the baseline" in answer(analysis)


def test_beside_a_baseline_that_diverged_on_a_seed_nothing_is_tested_and_nothing_is_left_to_run(tmp_path):
    losses = {0: (4.5, 4.52), 1: (4.4, 4.43, 4.41)}
    lines = [
        record(seed, loss, test=loss, config={"alpha": alpha})
        for alpha, found in losses.items()
        for seed, loss in enumerate(found, 1)
    ]
    lines.append(record(3, None, status="diverged", config={"alpha": 0}, error="non-finite loss"))
    text = answer(analysis_of(tmp_path, lines, seeds=(1, 2, 3), body="[[grid]]\nalpha = [0, 1]\n"))
    assert "not tested: a run of one of the two diverged" in text
    assert "no spread" not in text and "So far" not in text and "  " not in text


def test_a_configuration_that_diverged_on_one_seed_is_not_chosen(tmp_path):
    lines = records_of({**LOSSES, (2, 0): (4.2, 4.2)})
    lines.append(record(3, None, status="diverged", config={"alpha": 2.0}, error="non-finite loss"))
    analysis = analysis_of(tmp_path, lines)
    assert analysis.configurations[analysis.chosen].values["alpha"] == 1.0
    assert "alpha 2, seed 3: diverged: non-finite loss" in unfinished(analysis)
    p = [configuration_of(analysis, alpha=alpha, beta=0).differences["test"].p for alpha in (2, 1)]
    assert p[0] is None and p[1] is not None  # nor is it tested by the seeds that it has left


def test_configurations_are_ranked_by_what_they_differ_from_the_baseline_on_its_own_seeds(tmp_path):
    lucky = {(0, 0): (4.50, 4.54, 4.55), (1, 0): (4.46, 4.50, 4.51), (2, 0): (4.45,)}
    analysis = analysis_of(tmp_path / "lucky", records_of(lucky))  # alpha 2 has run on the best seed alone
    assert [analysis.configurations[i].values["alpha"] for i in analysis.ranking] == [1, 0]
    alone = {(0, 0): (4.50, 4.54, 4.55), (1, 0): (4.46,), (2, 0): (4.47,)}
    analysis = analysis_of(tmp_path / "alone", records_of(alone))
    assert [analysis.configurations[i].values["alpha"] for i in analysis.ranking] == [1, 2, 0]
    assert f"against perplexity valid {math.exp(4.5):.2f} / " in answer(analysis)  # that of the common seed
    more = {(0, 0): (4.50,), (1, 0): (4.48, 4.58, 4.60)}
    analysis = analysis_of(tmp_path / "more", records_of(more))
    assert analysis.configurations[analysis.chosen].values["alpha"] == 1
    assert f"Best on valid: alpha 1, perplexity valid {math.exp(4.48):.2f} / " in answer(analysis)
    assert " (n = 1)" in report_text(analysis)


def test_failed_and_missing_runs_are_listed_and_do_not_count(tmp_path):
    lines = records_of({(0, 0): (4.5, 4.6), (1, 0): (4.4,)})
    lines.append(record(2, None, status="failed", config={"alpha": 1.0}, error="killed\nby signal 9"))
    lines.append(record(3, float("nan"), config={"alpha": 1.0}))
    analysis = analysis_of(tmp_path, lines)
    listed = unfinished(analysis)
    assert "alpha 0, beta 0, seed 3: not run" in listed
    assert "alpha 1, seed 2: failed: killed by signal 9" in listed
    assert "alpha 1, seed 3: completed: no finite valid loss" in listed
    assert "alpha 2, beta 1, seeds 1, 2, 3: not run" in listed
    assert configuration_of(analysis, alpha=1, beta=0).estimates["valid_ppl"].n == 1
    assert "3 of 18 runs" in answer(analysis)


def test_one_seed_is_said_to_tell_nothing_and_the_noise_of_other_configurations_is_named(tmp_path):
    analysis = analysis_of(tmp_path / "a", records_of({(0, 0): (4.50,), (1, 0): (4.40,)}))
    assert "n = 1" in answer(analysis)
    assert "exceeds" not in answer(analysis)
    assert "(sd)" not in answer(analysis)
    analysis = analysis_of(tmp_path / "b", records_of({(0, 0): (4.50, 4.52), (1, 0): (4.40,)}))
    noise = analysis.noise
    assert noise == pytest.approx(np.std([r["test_loss"] for r in analysis.records[:2]], ddof=1))
    assert f"{noise:.4f} nats (sd)" in answer(analysis)


def test_seed_noise_is_told_from_an_effect(tmp_path):
    clear = {(0, 0): (4.500, 4.520, 4.510), (1, 0): (4.400, 4.421, 4.409)}
    assert "more than seed noise" in answer(analysis_of(tmp_path / "a", records_of(clear)))
    noisy = {(0, 0): (4.500, 4.520, 4.510), (1, 0): (4.400, 4.560, 4.509)}
    assert "within seed noise" in answer(analysis_of(tmp_path / "b", records_of(noisy)))


def test_without_test_scores_claims_are_made_on_valid(tmp_path):
    lines = [record(s, 4.5 + 0.01 * s + 0.1 * (a == 0), config={"alpha": float(a)}) for a in (0, 1) for s in (1, 2)]
    analysis = analysis_of(tmp_path, lines)
    assert analysis.split == "valid"
    assert "nats per token on valid" in answer(analysis)


def test_the_order_of_the_ledger_does_not_matter(tmp_path):
    lines = records_of(LOSSES)
    shuffled = random.Random(1).sample(lines, len(lines))
    study = load_study(write_study(tmp_path, []))
    assert report_text(analyse(study, lines)) == report_text(analyse(study, shuffled))


def test_configurations_that_a_refinement_added_follow_the_grid_sorted_by_value(tmp_path):
    lines = records_of({(2, 0): (4.4,), (1.5, 0): (4.3,), (0.5, 0): (4.45,), (0, 0): (4.5,)})
    analysis = analysis_of(tmp_path, lines, seeds=[1])
    assert [configuration.values["alpha"] for configuration in analysis.configurations][-2:] == [0.5, 1.5]
    assert analysis.configurations[analysis.chosen].values["alpha"] == 1.5


def test_runs_under_other_flags_are_kept_apart(tmp_path):
    lines = [record(1, 4.5), record(1, 5.5, config={"epochs": 2}), record(1, 4.4, config={"alpha": 1.0})]
    analysis = analysis_of(tmp_path, lines, seeds=[1], body="[flags]\nepochs = 40\n" + GRID)
    assert analysis.fields == ("alpha", "beta", "epochs")
    assert analysis.configurations[analysis.baseline].values["epochs"] == 40
    assert configuration_of(analysis, epochs=2).differences["valid"].mean == pytest.approx(1.0)


def test_a_field_that_follows_from_the_grid_makes_no_column(tmp_path):
    lines = [record(1, 4.5 - a / 10, config={"alpha": float(a), "derived": a + 1}) for a in (0, 1, 2)]
    assert analysis_of(tmp_path, lines, seeds=[1]).fields == ("alpha", "beta")


def test_fields_that_are_equal_in_every_configuration_are_shown_as_one(tmp_path):
    blocks = "".join(f"[[grid]]\nalpha = [0, 2]\ndropout = [{p}]\ndropouth = [{p}]\n" for p in (0.2, 0, 0.4))
    lines = [
        record(1, 4.5 + p - a / 10, config={"alpha": float(a), "dropout": p, "dropouth": p})
        for a, p in ((0, 0.2), (2, 0.2), (2, 0.4))
    ]
    analysis = analysis_of(tmp_path / "equal", lines, seeds=[1], body=blocks)
    assert analysis.fields == ("alpha", "dropout")
    assert [configuration.label for configuration in analysis.configurations[:2]] == ["alpha 0, dropout 0.2", "alpha 2"]
    assert [configuration.label for configuration in analysis.configurations[4:]] == [
        "dropout 0.4",
        "alpha 2, dropout 0.4",
    ]
    assert [len(configuration.runs) for configuration in analysis.configurations] == [
        1,
        1,
        0,
        0,
        0,
        1,
    ] and analysis.baseline == 0
    assert analysis.notes == ("dropout is the value of dropouth as well, in every configuration.",)
    assert "dropouth" in report_text(analysis)
    lines.append(record(1, 4.4, config={"alpha": 2.0, "dropout": 0.3, "dropouth": 0.1}))
    other = analysis_of(tmp_path / "one_differs", lines, seeds=[1], body=blocks)
    assert other.fields == ("alpha", "dropout", "dropouth") and other.notes == ()


def per_word(seed, valid, ratio, **config):
    """A run whose tokens are parts of words: fewer nats a token, and `ratio` tokens a word."""
    units = {"valid": valid, "test": valid - 0.1, "train": math.log(60) / ratio}
    more = {f"{split}_word_ppl": math.exp(loss * ratio) for split, loss in units.items()}
    more |= {"valid_bits_per_char": valid / math.log(2)} if config["tokenizer"] == "char" else {}
    return record(seed, valid, test=units["test"], config=config, train_ppl=math.exp(units["train"]), **more)


def test_coefficients_that_change_together_are_both_named(tmp_path):
    lines = [record(1, 4.5 - a / 10, config={"alpha": float(a), "beta": float(a)}) for a in (0, 1)]
    study = write_study(
        tmp_path, lines, seeds=(1,), body="".join(f"[[grid]]\nalpha = [{a}]\nbeta = [{a}]\n" for a in (0, 1))
    )
    assert "Best on valid: alpha 1, beta 1," in answer(report(str(study)))
    assert not (study / "alpha.png").exists()


def test_runs_on_characters_and_bpe_are_compared_per_word_and_the_table_says_so(tmp_path):
    body = '[[grid]]\ntokenizer = ["word", "char", "bpe"]\n'
    words = [record(seed, 4.5 + 0.01 * seed, test=4.4, config={"tokenizer": "word"}) for seed in (1, 2)]
    parts = [per_word(s, 1.0, 4.6, tokenizer="char") for s in (1, 2)] + [
        per_word(s, 3.9, 1.2, tokenizer="bpe") for s in (1, 2)
    ]
    analysis = analysis_of(tmp_path, words + parts, body=body, seeds=(1, 2))
    assert analysis.configurations[analysis.chosen].label == "tokenizer word"  # of the lowest nats a word, not a token
    for kind, valid, test in (("word", 4.515, 4.4), ("char", 4.6, 4.14), ("bpe", 4.68, 4.56)):
        configuration = configuration_of(analysis, tokenizer=kind)
        assert configuration.mean("valid_loss") == pytest.approx(valid)
        assert configuration.mean("test_ppl") == pytest.approx(math.exp(test))
        assert configuration.mean("gap") == pytest.approx(valid - math.log(60))
    assert configuration_of(analysis, tokenizer="char").mean("valid_bits_per_char") == pytest.approx(1 / math.log(2))
    text = report_text(analysis)
    assert "valid ppl/word" in text
    assert "valid bits/char" in text
    assert "nats per word on test" in text
    words_alone = report_text(
        analysis_of(tmp_path / "words", words, seeds=(1, 2), body='[[grid]]\ntokenizer = ["word"]\n')
    )
    assert "per word" not in words_alone
    assert "/" not in words_alone.split("\n\n")[1].splitlines()[0]


def test_a_published_figure_is_not_the_protocol_of_a_run_on_bpe(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(per_word(1, 3.9, 1.2, tokenizer="bpe")))
    quoted = [row for row in compare([str(folder), "published"]) if row.quoted_from]
    assert quoted
    assert all("tokenizer word there, bpe here" in row.other_protocol for row in quoted)
    assert "per word" in compare_text(compare([str(folder), "published"]))


def test_lines_of_another_corpus_are_left_out_and_said_so(tmp_path):
    lines = [record(1, 4.5), record(1, 3.0, dataset="pydocs", config={"dataset": "pydocs", "alpha": 1.0})]
    analysis = analysis_of(tmp_path, lines, seeds=[1])
    assert len(analysis.records) == 1
    assert "another corpus" in report_text(analysis)


def test_two_texts_under_one_corpus_name_are_warned_of(tmp_path):
    lines = [record(1, 4.5), record(1, 4.4, config={"alpha": 1.0}, corpus_sha256={"train": "11"})]
    assert "different texts" in report_text(analysis_of(tmp_path, lines, seeds=[1]))


def test_an_empty_ledger_gives_a_table_that_says_so(tmp_path):
    analysis = report(str(write_study(tmp_path, [])))
    assert answer(analysis) == "Nothing has run yet."
    assert "Nothing has run yet." in (tmp_path / "README.md").read_text()
    assert len(list(csv.DictReader((tmp_path / "table.csv").open()))) == 6
    assert list(tmp_path.glob("*.png")) == []


def test_a_line_older_than_a_field_stays_apart_from_a_newer_one_that_sets_it(tmp_path):
    old, new = record(1, 4.6, test=4.5), record(1, 4.9, test=4.8, config={"min_lr": 1.0})
    analysis = analysis_of(tmp_path, [old, new])
    found = {
        configuration.values["min_lr"]: configuration.mean("valid_loss")
        for configuration in analysis.configurations
        if configuration.runs
    }
    assert found == {0.0: 4.6, 1.0: 4.9}


def test_the_baseline_of_a_search_has_the_presets_values_and_the_answer_counts_what_was_asked(tmp_path):
    lines = [
        record(seed, loss, test=loss, config={"dropout": p, "alpha": 0.0, "beta": 0.0})
        for p, loss in ((0.1, 4.3), (0.2, 4.5), (0.4, 4.4))
        for seed in (1, 2)
    ]
    pruned = record(1, 4.8, status="pruned", config={"dropout": 0.6})
    analysis = analysis_of(tmp_path, [*lines, pruned], seeds=(1, 2), body="")
    assert analysis.configurations[analysis.baseline].values == {"dropout": 0.2}
    assert "finished" not in answer(analysis)
    fewer = analysis_of(tmp_path / "fewer", lines[1:3] + lines[4:], seeds=(1, 2), body="")
    assert "So far 1 of 2 runs are finished" in answer(fewer)


def test_a_missing_baseline_is_said_and_nothing_is_compared(tmp_path):
    analysis = analysis_of(tmp_path, records_of({(1, 0): (4.4, 4.5)}))
    assert "has not finished yet" in answer(analysis)
    assert all(configuration.differences["test"] is None for configuration in analysis.configurations)


def test_a_plot_over_a_number_has_a_line_for_what_differs_in_words_and_for_other_numbers_that_cover_its_values(
    tmp_path,
):
    configs = [(norm, wdecay, alpha) for norm in ("l2", "l1") for wdecay in (0, 0.1, 0.2) for alpha in (0.2, 2, 20)]
    lines = [record(1, 4.5, config={"ar_norm": n, "wdecay": w, "alpha": a}) for n, w, a in configs]
    missing = [("l2", 0.2, 2), ("l1", 0, 20), ("l1", 0.1, 20), ("l1", 0.2, 20)]
    body = '[[grid]]\nar_norm = ["l2", "l1"]\nwdecay = [0, 0.1, 0.2]\nalpha = [0.2, 2, 20]\n'
    done = [line for line, config in zip(lines, configs, strict=True) if config not in missing]
    analysis = analysis_of(tmp_path, done, seeds=[1], body=body)
    slices = slices_over(analysis, "alpha", 4)
    found = {label: [c.values["alpha"] for c in line] for label, line in slices.items()}
    assert found == {"wdecay 0.1": [0.2, 2, 20], "ar_norm l1": [0.2, 2]}
    assert list(slices_over(analysis, "alpha", 1)) == ["wdecay 0.1"]
    assert slices_over(analysis, "alpha", 0) == {}
