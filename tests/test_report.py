"""Statistics against scipy and hand-made ledgers, the written files, and comparisons."""

import csv
import json
import math
import random
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, special, stats

from lm.base.errors import ConfigError, run_cli
from lm.config.values import as_plain, make_config
from lm.report import main
from lm.study.ledger import append_ledger
from lm.study.specification import load_study
from lm.tables.analysis import analyse
from lm.tables.answer import answer
from lm.tables.compare import compare, compare_json, compare_text
from lm.tables.page import readme, report, report_text, unfinished
from lm.tables.plots import draw_plots
from lm.tables.published import comparable_ppl, load_published, per_target
from lm.tables.stats import draw_difference, holm, paired_difference, pooled_sd, welch_difference
from lm.tables.text import verdict

ROOT = Path(__file__).resolve().parent.parent
GRID = "[[grid]]\nalpha = [0, 1, 2]\nbeta = [0, 1]\n"
# Published as 87.17 and 110.44 per token; test is cut into 10 columns, of 8,243 tokens and 8,242 targets.
PTB_200, PTB_200_SIX = 87.17 ** (8243 / 8242), 110.44 ** (8243 / 8242)
# Test losses that are easy to check by hand: configurations by (alpha, beta), one value a seed.
LOSSES = {(0, 0): (4.50, 4.52, 4.51), (1, 0): (4.47, 4.48, 4.49), (2, 0): (4.44, 4.47, 4.46)}


def record(seed, valid_loss, *, test=None, status="completed", config=None, **more):
    """A ledger line with the given losses, in nats; `more` replaces or adds keys."""
    config = as_plain(make_config("examples-200", "ptb")) | (config or {})
    config["seed"] = seed
    done = status == "completed" and valid_loss is not None
    line = {
        "id": json.dumps(config, sort_keys=True), "status": status, "config": config, "seed": seed, "dataset": "ptb",
        "best_epoch": 3, "valid_loss": valid_loss, "valid_ppl": math.exp(valid_loss) if done else None,
        "test_loss": test, "test_ppl": math.exp(test) if test else None, "train_ppl": 60.0 if done else None,
        "activation": {"rms": 0.3, "mean_abs": 0.2, "frac_small": 0.1, "temporal_rms": 0.25} if done else {},
        "seconds": 90.0, "versions": {"torch": "2.13.0", "cpu": "A CPU", "gpu": None, "threads": 1},
        "git": {"commit": "0123456789abcdef", "dirty": False}, "corpus_sha256": {"train": "00"},
    }  # fmt: skip
    return line | more


def write_study(folder, records, *, seeds=(1, 2, 3), body=GRID):
    folder.mkdir(parents=True, exist_ok=True)
    head = 'title = "T"\nquestion = "Q?"\ndataset = "ptb"\npreset = "examples-200"\n'
    (folder / "study.toml").write_text(f"{head}seeds = {list(seeds)}\n{body}")
    for line in records:
        append_ledger(folder / "runs.jsonl", line)
    return folder


def records_of(losses, *, offset=0.04):
    """Valid losses from a table; test losses lie `offset` below, plus a little by seed and configuration."""
    return [
        record(
            seed,
            loss,
            test=loss - offset + 0.001 * math.sin(7 * a + 3 * b + seed),
            config={"alpha": float(a), "beta": b},
        )
        for (a, b), values in losses.items()
        for seed, loss in enumerate(values, start=1)
    ]


def analysis_of(folder, records, **study):
    study = load_study(write_study(folder, records, **study))
    return analyse(study, records)


def configuration_of(analysis, **values):
    return next(
        configuration
        for configuration in analysis.configurations
        if all(configuration.values[name] == value for name, value in values.items())
    )


def test_holm_equals_numbers_worked_out_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last is raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.02), None, pytest.approx(0.02)]
    assert holm([]) == []


def test_paired_difference_agrees_with_the_paired_t_test_and_a_quantile_found_by_root_search():
    generator = random.Random(3)
    ours = {seed: 4.4 + generator.gauss(0, 0.01) for seed in range(6)}
    theirs = {seed: 4.5 + generator.gauss(0, 0.01) for seed in range(1, 7)}
    seeds = range(1, 6)
    difference = paired_difference(ours, theirs)
    assert difference.n == 5
    assert difference.p == pytest.approx(stats.ttest_rel([ours[s] for s in seeds], [theirs[s] for s in seeds]).pvalue)
    d = [ours[s] - theirs[s] for s in seeds]
    mean = sum(d) / 5
    error = math.sqrt(sum((x - mean) ** 2 for x in d) / 4 / 5)
    quantile = optimize.brentq(lambda t: special.stdtr(4, t) - 0.975, 0, 100)
    assert difference.mean == pytest.approx(mean)
    assert (difference.low, difference.high) == pytest.approx((mean - quantile * error, mean + quantile * error))


def test_one_common_seed_gives_a_difference_without_interval_and_none_gives_nothing():
    difference = paired_difference({1: 4.0, 2: 4.1}, {2: 4.3, 3: 4.4})
    assert (difference.mean, difference.n) == (pytest.approx(-0.2), 1)
    assert (difference.low, difference.high, difference.p) == (None, None, None)
    assert "n = 1" in verdict(difference)
    assert paired_difference({1: 4.0}, {2: 4.0}) is None


def test_differences_without_spread_are_not_tested_and_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tie = paired_difference({1: 4.1, 2: 4.2, 3: 4.3}, {1: 4.1, 2: 4.2, 3: 4.3})
        constant = paired_difference({1: 4.1, 2: 4.2, 3: 4.3}, {1: 4.0, 2: 4.1, 3: 4.2})
        welch = welch_difference([4.0, 4.0], [4.1, 4.1])
    assert (tie.mean, tie.low, tie.high, tie.p) == (0, 0, 0, 1)
    assert (constant.mean, constant.low, constant.p) == (pytest.approx(0.1), None, None)
    assert (welch.mean, welch.p) == (pytest.approx(-0.1), None)
    assert "cannot test" in verdict(constant)


def test_welch_difference_equals_welchs_formula():
    a, b = [4.0, 4.1, 4.3, 4.2], [4.4, 4.5, 4.9]
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    difference = welch_difference(a, b)
    assert difference.p == pytest.approx(2 * special.stdtr(freedom, -abs(t)))
    assert difference.high == pytest.approx(difference.mean + special.stdtrit(freedom, 0.975) * math.sqrt(va + vb))
    assert difference.n == 3


def test_a_published_figure_is_a_draw_so_a_true_one_is_rejected_in_one_case_of_twenty():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(4000, 4))
    rejected = np.mean([draw_difference(row[3], row[:3]).p < 0.05 for row in samples])
    assert rejected == pytest.approx(0.05, abs=0.012)


def test_pooled_sd_weights_configurations_by_their_degrees_of_freedom():
    # Variances 0.02 (1 degree of freedom) and 0.01 (2): (0.02 + 2 * 0.01) / 3.
    assert pooled_sd([[0.0, 0.2], [0.0, 0.1, 0.2], [5.0], []]) == pytest.approx(math.sqrt(0.04 / 3))
    assert pooled_sd([[1.0]]) is None


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


def test_a_configuration_that_diverged_on_one_seed_is_not_chosen(tmp_path):
    lines = records_of({**LOSSES, (2, 0): (4.2, 4.2)})
    lines.append(record(3, None, status="diverged", config={"alpha": 2.0}, error="non-finite loss"))
    analysis = analysis_of(tmp_path, lines)
    assert analysis.configurations[analysis.chosen].values["alpha"] == 1.0
    assert "alpha 2, seed 3: diverged: non-finite loss" in unfinished(analysis)


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


@pytest.fixture(scope="module")
def full_study(tmp_path_factory):
    """A study with every kind of plot: a full grid of two seeds, curves, a failure, a quoted figure."""
    folder = tmp_path_factory.mktemp("results") / "full"
    lines = records_of({(a, b): (4.5 - 0.02 * a - 0.01 * b, 4.51 - 0.02 * a) for a in (0, 1, 2) for b in (0, 1)})
    for line in lines:
        rms = 0.3 / (1 + line["config"]["alpha"])
        line["activation"] = {"rms": rms, "mean_abs": 0.8 * rms, "frac_small": 0.1, "temporal_rms": 0.9 * rms}
        line["curve"] = [[e, line["valid_ppl"] + 100 / e] for e in range(1, 6)]
    lines[-1] = record(2, None, status="failed", config={"alpha": 2.0, "beta": 1}, error="killed")
    quoted = '[[quoted]]\nlabel = "2x200"\nsource = "a README"\nprotocol = "40 epochs"\ntest_ppl = 87.17\n'
    return write_study(folder, lines, seeds=(1, 2), body=GRID + quoted)


def test_regenerated_files_are_byte_identical_whatever_the_users_matplotlib_settings(full_study, monkeypatch):
    import matplotlib

    report(str(full_study))
    outputs = [path for path in sorted(full_study.iterdir()) if path.suffix in (".md", ".csv", ".png")]
    first = {path.name: path.read_bytes() for path in outputs}
    assert first.keys() == {
        "README.md", "table.csv", "alpha.png", "beta.png", "heatmap.png", "activations.png", "curves.png",
    }  # fmt: skip
    for path in outputs:
        path.unlink()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        report(str(full_study))
    assert {name: (full_study / name).read_bytes() for name in first} == first


def test_plots_are_png_files_of_a_readable_size_without_software_or_date(full_study):
    report(str(full_study))
    for path in full_study.glob("*.png"):
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 300 < width < 2500
        assert 200 < height < 2000
        assert b"tEXt" not in data
        assert b"tIME" not in data


def test_a_configuration_far_off_is_marked_at_the_edge_and_does_not_flatten_the_others(tmp_path, monkeypatch):
    lines = records_of({(0, 0): (4.50,), (1, 0): (4.45,), (0, 1): (4.47,), (2, 0): (5.50,)})
    for line, rms in zip(lines, (0.3, 0.2, 0.25, 0.1), strict=True):
        line["activation"] |= {"rms": rms, "temporal_rms": rms / 2}
    figures = {}
    monkeypatch.setattr("lm.tables.plots.save_png", lambda figure, path: figures.update({path.name: figure}))
    caption = dict(draw_plots(analysis_of(tmp_path, lines, seeds=(1,)), tmp_path))["activations.png"]
    assert "triangles: above the scale" in caption
    for ax in figures["activations.png"].axes:
        top = ax.get_ylim()[1]
        assert top < 100  # of 82 to 86, and 235
        assert [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "^"] == [top]
        assert {text.get_text() for text in ax.texts} == {"0/0", "1/0", "0/1", "2/0: 235.3"}
    caption = dict(draw_plots(analysis_of(tmp_path / "near", lines[:3], seeds=(1,)), tmp_path))["activations.png"]
    assert "triangles" not in caption


def test_a_study_of_one_configuration_is_told_as_a_measurement_beside_what_is_quoted(tmp_path):
    quoted = '[[quoted]]\nlabel = "2x200"\nsource = "a README"\ntest_ppl = 87.17\n'
    analysis = analysis_of(tmp_path, [record(1, 4.5, test=4.4)], seeds=(1,), body=quoted)
    assert answer(analysis) == (
        "Measured: perplexity valid 90.02 / test 81.45 (one seed). Quoted, 2x200: perplexity test 87.17."
    )
    page = readme(analysis, [])
    assert "\n- One seed; *train* is without dropout.\n- *gap*" in page
    assert "baseline" not in page


def test_the_page_holds_answer_table_quoted_figure_command_commit_and_cost(full_study):
    report(str(full_study))
    page = (full_study / "README.md").read_text()
    assert page.index("**Answer.** Best on valid") < page.index("| baseline | alpha 0, beta 0 |")
    assert "| quoted | 2x200 [1] |" in page
    assert "[1] quoted, not measured here: 2x200, from a README; protocol: 40 epochs" in page
    assert f"`python -m lm.sweep {full_study}` without `runs.jsonl`" in page
    assert "0123456789ab" in page
    assert "A CPU" in page
    assert f"{12 * 90 / 3600:.2f} hours" in page
    assert "alpha 2, beta 1, seed 2: failed: killed" in page
    assert "![" in page


def test_runs_of_changed_or_several_versions_of_the_code_are_named(tmp_path):
    lines = [record(1, 4.5), record(2, 4.5, git={"commit": "fedcba9876543210", "dirty": True})]
    text = report_text(analysis_of(tmp_path, lines))
    assert "Commit: 0123456789ab, fedcba987654 with uncommitted changes." in text


def test_the_csv_file_repeats_the_numbers_of_the_analysis(full_study):
    analysis = report(str(full_study))
    rows = list(csv.DictReader((full_study / "table.csv").open()))
    assert len(rows) == len(analysis.configurations) + 1
    for row, configuration in zip(rows, analysis.configurations, strict=False):
        assert float(row["valid_ppl_mean"]) == pytest.approx(configuration.mean("valid_ppl"), rel=1e-5)
        assert (float(row["alpha"]), float(row["beta"])) == (
            configuration.values["alpha"],
            configuration.values["beta"],
        )
    assert (rows[-1]["quoted_from"], rows[-1]["test_ppl_mean"]) == ("a README", "87.17")


def test_json_is_one_object_without_nan(full_study, capsys):
    main([str(full_study), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    (study,) = found["studies"]
    assert sum(configuration["chosen"] for configuration in study["configurations"]) == 1
    assert study["configurations"][0]["config"] == {"alpha": 0.0, "beta": 0.0}


def test_columns_of_the_printed_table_are_aligned(full_study, capsys):
    main([str(full_study)])
    lines = capsys.readouterr().out.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    ends = [i for i in range(1, len(lines[rule])) if lines[rule][i] == " " and lines[rule][i - 1] == "-"]
    for line in lines[rule - 1 : rule + 8]:
        assert all(line[end : end + 2].strip() == "" for end in ends)


def test_reports_and_comparisons_need_no_torch(full_study):
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'tokenizers', 'datasets'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from lm.report import main\n"
        f"main([{str(full_study)!r}])\n"
        f"main(['--compare', {str(full_study)!r}, 'published'])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Best on valid" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--compare", "b", "c"], ["--compare"], ["nowhere"], ["--compare", "nowhere", "published"]]
)
def test_wrong_use_ends_with_status_2_and_a_message(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: main(arguments))
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_command_line_reports_a_missing_study_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "lm.report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def write_run(folder, line):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({key: value for key, value in line.items() if key != "id"}))
    return str(folder)


def row_of(rows, source, **values):
    return next(r for r in rows if r.source == source and all(r.values[k] == v for k, v in values.items()))


def test_two_studies_are_matched_on_what_varies_and_paired_where_seeds_agree(tmp_path):
    a = str(write_study(tmp_path / "a", records_of(LOSSES)))
    shifted = {key: [x - 0.1 + 0.003 * i for i, x in enumerate(values)] for key, values in LOSSES.items()}
    lines = records_of(shifted)
    b = str(write_study(tmp_path / "b", [line | {"config": line["config"] | {"epochs": 50}} for line in lines]))
    rows = compare([a, b])
    row = row_of(rows, b, alpha=1.0, beta=0)
    configurations = [
        configuration_of(analyse(load_study(p), lines), alpha=1, beta=0)
        for p, lines in ((a, records_of(LOSSES)), (b, lines))
    ]
    ours, theirs = (
        list(configuration.by_seed("test_loss").values()) for configuration in (configurations[1], configurations[0])
    )
    assert row.split == "test"
    assert row.difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (row.difference.n, row.difference.p) == (3, pytest.approx(stats.ttest_rel(ours, theirs).pvalue))
    assert row.ppl_difference == pytest.approx(np.exp(ours).mean() - np.exp(theirs).mean())
    assert row.config_differs == ("epochs 40 / 50",)
    assert row_of(rows, a, alpha=1.0, beta=0).verdict == "reference"


def test_studies_with_other_seeds_are_compared_by_welchs_test(tmp_path):
    a = str(write_study(tmp_path / "a", [record(s, 4.5 + 0.01 * (s % 3)) for s in (1, 2, 3)]))
    b = str(write_study(tmp_path / "b", [record(s, 4.4 + 0.02 * (s % 3)) for s in (4, 5, 6)], seeds=(4, 5, 6)))
    row = row_of(compare([a, b]), b, alpha=0, beta=0)
    expected = stats.ttest_ind([4.42, 4.44, 4.40], [4.51, 4.52, 4.50], equal_var=False).pvalue
    assert row.difference.p == pytest.approx(expected)
    assert row.split == "valid"
    assert "more than seed noise" in row.verdict


def test_p_values_of_a_comparison_are_adjusted_over_all_its_rows(tmp_path):
    a = str(write_study(tmp_path / "a", records_of(LOSSES)))
    b = str(write_study(tmp_path / "b", records_of({k: [x - 0.01 for x in v] for k, v in LOSSES.items()}, offset=0.01)))
    c = str(
        write_study(tmp_path / "c", records_of({k: [x + 0.01 * i for i, x in enumerate(v)] for k, v in LOSSES.items()}))
    )
    found = [row.difference for row in compare([a, b, c]) if row.difference and row.difference.p is not None]
    assert len(found) >= 3
    assert [d.p_holm for d in found] == pytest.approx(holm([d.p for d in found]))


def test_a_run_is_matched_to_the_configuration_of_its_configuration_and_cannot_tell_alone(tmp_path):
    study = str(write_study(tmp_path / "a", records_of(LOSSES)))
    run = write_run(tmp_path / "run", record(9, 4.40, test=4.38, config={"alpha": 2.0}))
    rows = compare([study, run])
    row = row_of(rows, run)
    assert row.values == {"alpha": 2.0, "beta": 0.0}
    assert row.difference.mean == pytest.approx(
        4.38 - np.mean(list(row_of(rows, study, alpha=2.0, beta=0).configuration.by_seed("test_loss").values()))
    )
    assert row.verdict == "n = 1: cannot tell from seed noise"
    assert (
        len([line for line in compare_text(rows).splitlines() if "reference" in line and line.startswith("alpha")]) == 1
    )


def test_two_runs_stand_side_by_side_with_what_differs_between_them(tmp_path):
    a = write_run(tmp_path / "x", record(1, 4.5, test=4.45))
    b = write_run(tmp_path / "y", record(1, 4.4, test=4.36, config={"alpha": 2.0}))
    rows = compare([a, b])
    assert [row.source for row in rows] == [a, b]
    assert rows[1].difference.mean == pytest.approx(-0.09)
    assert rows[1].config_differs == ("alpha 0 / 2",)
    assert "cannot tell" in compare_text(rows)


def test_unequal_sets_of_seeds_are_compared_on_the_common_ones_in_both_columns(tmp_path):
    a = str(write_study(tmp_path / "a", [record(s, 4.5 + 0.1 * s) for s in (1, 2, 3)]))
    b = str(write_study(tmp_path / "b", [record(s, 4.49 + 0.1 * s) for s in (2, 3, 4)], seeds=(2, 3, 4)))
    row = row_of(compare([a, b]), b, alpha=0, beta=0)
    assert row.difference.mean == pytest.approx(-0.01)
    assert row.ppl_difference == pytest.approx(np.mean(np.exp([4.69, 4.79]) - np.exp([4.7, 4.8])))


def test_runs_on_another_text_of_the_same_name_are_set_apart_and_not_tested(tmp_path):
    a = str(write_study(tmp_path / "a", [record(s, 4.5 + 0.01 * s) for s in (1, 2, 3)]))
    other = [record(s, 4.1 + 0.02 * s, corpus_sha256={"train": "11"}) for s in (1, 2, 3)]
    row = row_of(compare([a, str(write_study(tmp_path / "b", other))]), str(tmp_path / "b"), alpha=0, beta=0)
    assert "another text" in row.verdict
    assert row.difference.p is None


def test_a_diverged_run_has_nothing_to_compare(tmp_path):
    a = write_run(tmp_path / "x", record(1, 4.5, test=4.45))
    b = write_run(tmp_path / "y", record(1, None, status="diverged"))
    rows = compare([a, b])
    assert rows[1].verdict == "nothing to compare"
    assert "without a result: seed 1: diverged\n" in compare_text(rows)


def test_published_figures_meet_the_configuration_of_their_protocol_and_no_other(tmp_path):
    near = {(0, 0): (4.50, 4.51, 4.52), (2, 0): (4.45, 4.46, 4.47)}
    study = str(write_study(tmp_path / "a", records_of(near)))
    quoted = [row for row in compare(["published", study]) if row.quoted_from]
    assert {(row.values["alpha"], row.values["beta"]) for row in quoted} == {(0.0, 0.0)}
    full = next(row for row in quoted if row.configuration.mean("test_ppl") == pytest.approx(PTB_200))
    assert full.difference.n == 3
    assert "within seed noise" in full.verdict
    short = next(row for row in quoted if row.configuration.mean("test_ppl") == pytest.approx(PTB_200_SIX))
    assert short.difference.p is None
    assert "epochs 6 there, 40 here" in short.verdict


def test_a_figure_of_another_protocol_is_not_tested_and_says_what_differs(tmp_path):
    other = {"optimizer": "adamw", "lr": 0.001, "dropouti": 0.65, "test_batch_size": 1}
    run = write_run(tmp_path / "x", record(1, 4.5, test=4.47, config=other))
    row = next(r for r in compare([run, "published"]) if r.configuration.mean("test_ppl") == pytest.approx(PTB_200))
    assert all(f"{name} " in row.verdict for name in other)
    assert row.difference.p is None


def test_a_configuration_that_has_not_run_meets_its_published_figure_and_an_old_line_its_configuration(tmp_path):
    lines = records_of({(0, 0): (4.50, 4.51, 4.52)})
    for line in lines:
        del line["config"]["tokenizer"]  # as in lines from before it was a field
    old = str(write_study(tmp_path / "old", lines))
    new = str(write_study(tmp_path / "new", [], body='[[grid]]\ntokenizer = ["word", "char"]\n'))
    rows = compare([old, new, "published"])
    assert row_of(rows, new, alpha=0.0, beta=0.0, tokenizer="word").verdict == "nothing to compare"
    assert row_of(rows, old, alpha=0.0, beta=0.0, tokenizer="word").reference
    assert any(row.quoted_from for row in compare([new, "published"]))


def test_seeds_that_diverged_are_named_and_the_others_are_not_tested(tmp_path):
    ours = str(write_study(tmp_path / "a", records_of({(0, 0): (4.50, 4.52, 4.54)})))
    lines = [*records_of({(0, 0): (4.30, 4.34)}), record(3, None, status="diverged", error="loss nan")]
    theirs = str(write_study(tmp_path / "b", lines))
    rows = compare([ours, theirs])
    row = row_of(rows, theirs, alpha=0.0, beta=0.0)
    assert (row.verdict, row.difference.p) == ("diverged on some seed", None)
    assert "without a result: seed 3: diverged: loss nan" in compare_text(rows)
    assert {3: "diverged: loss nan"} in [found["unfinished"] for found in compare_json(rows)["rows"]]


def test_a_published_figure_far_from_our_seeds_exceeds_their_noise(tmp_path):
    study = str(write_study(tmp_path / "a", records_of({(0, 0): (4.60, 4.601, 4.602)})))
    row = next(r for r in compare([study, "published"]) if r.quoted_from and not r.other_protocol)
    assert "more than seed noise" in row.verdict


def test_a_published_figure_against_one_run_cannot_tell(tmp_path):
    run = write_run(tmp_path / "x", record(1, 4.5, test=4.47))
    row = next(r for r in compare([run, "published"]) if r.quoted_from and not r.other_protocol)
    assert row.difference.mean == pytest.approx(math.log(PTB_200) - 4.47)
    assert "n = 1" in row.verdict


def test_studies_of_different_corpora_are_never_subtracted(tmp_path):
    a = str(write_study(tmp_path / "a", records_of(LOSSES)))
    b = tmp_path / "b"
    write_study(
        b, [r | {"dataset": "pydocs", "config": r["config"] | {"dataset": "pydocs"}} for r in records_of(LOSSES)]
    )
    (b / "study.toml").write_text((b / "study.toml").read_text().replace("ptb", "pydocs"))
    rows = compare([a, str(b)])
    assert {row.dataset for row in rows} == {"ptb", "pydocs"}
    assert all(row.difference is None for row in rows)


def test_compare_prints_json_and_refuses_a_source_named_twice_or_alone(tmp_path, capsys):
    study = str(write_study(tmp_path / "a", records_of(LOSSES)))
    main(["--compare", study, "published", "--json"])
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    assert rows[0]["verdict"] == "reference"
    for names in ([study], [study, study], ["published"]):
        with pytest.raises(ConfigError, match="two different sources"):
            compare(names)


def test_a_study_that_no_run_could_have_is_refused_as_by_the_sweep(tmp_path):
    study = write_study(tmp_path / "a", records_of(LOSSES), body=GRID + "[flags]\nemsizes = 8\n")
    with pytest.raises(ConfigError, match=r"study\.toml: .*emsizes"):
        report(study)


def test_a_study_is_reported_whose_flags_alone_are_no_configuration(tmp_path):
    body = '[flags]\nnlayers = 1\n[[grid]]\n"nhid+emsize" = [100, 200]\n[baseline]\nnhid = 200\nemsize = 200\n'
    sizes = [{"nlayers": 1, "nhid": size, "emsize": size} for size in (100, 200)]
    records = [record(seed, 4.5 - size["nhid"] / 1000, config=size) for size in sizes for seed in (1, 2, 3)]
    analysis = report(write_study(tmp_path / "a", records, body=body))
    assert [len(one.runs) for one in analysis.configurations] == [3, 3]
    assert analysis.base.values == {"nhid": 200, "emsize": 200}


@pytest.mark.parametrize("files", ["ab", "aa"])
def test_a_report_reads_no_word_vectors(files, tmp_path):
    vectors = [{"init_vectors": "gone/glove.txt", "init_vectors_sha256": 64 * digest} for digest in files]
    records = [record(seed, 4.5, config=one) for one in vectors for seed in (1, 2)]
    body = '[flags]\ninit_vectors = "gone/glove.txt"\n'
    analysis = report(write_study(tmp_path / "a", records, body=body, seeds=(1, 2)))
    assert [len(one.runs) for one in analysis.configurations] == [2] * len({*files})
    assert analysis.baseline == 0


def test_a_damaged_result_file_is_a_config_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{")
    with pytest.raises(ConfigError, match="result.json"):
        compare([str(tmp_path / "run"), "published"])


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


def test_the_command_names_a_study_of_the_repository_by_its_path_below_results(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.study.specification.ROOT", tmp_path)
    folder = tmp_path / "results" / "quick" / "ptb"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text('dataset = "ptb"\nseeds = [1]\n')
    report(folder)
    assert "`bash run.sh study quick/ptb` without `runs.jsonl`" in (folder / "README.md").read_text()
