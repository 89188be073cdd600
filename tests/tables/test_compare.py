"""Studies, runs and published figures side by side."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from lm.base.errors import ConfigError
from lm.report import main
from lm.study.specification import load_study
from lm.tables.analysis import analyse
from lm.tables.compare import compare, compare_json, compare_text
from lm.tables.stats import holm
from tests.ledgers import LOSSES, configuration_of, record, records_of, row_of, write_run, write_study

# Published as 87.17 and 110.44 per token; test is cut into 10 columns, of 8,243 tokens and 8,242 targets.
PTB_200, PTB_200_SIX = 87.17 ** (8243 / 8242), 110.44 ** (8243 / 8242)


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


def test_a_diverged_run_is_told_as_such(tmp_path):
    a = write_run(tmp_path / "x", record(1, 4.5, test=4.45))
    b = write_run(tmp_path / "y", record(1, None, status="diverged"))
    rows = compare([a, b])
    assert rows[1].verdict == "diverged on some seed"
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
    turned = row_of(compare([theirs, ours]), ours, alpha=0.0, beta=0.0)
    assert (turned.verdict, turned.difference.p) == ("the reference diverged on some seed", None)
    quoted = [row for row in compare([theirs, "published"]) if row.quoted_from]
    assert quoted and all(row.difference is None or row.difference.p is None for row in quoted)


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


def test_a_damaged_result_file_is_a_config_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{")
    with pytest.raises(ConfigError, match="result.json"):
        compare([str(tmp_path / "run"), "published"])
