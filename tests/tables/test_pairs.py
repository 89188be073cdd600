"""Two runs with one seed are a pair where they ran on one kind of device: another kind draws other initial weights."""

import pytest
from scipy import stats

from lm.study.specification import load_study
from lm.tables.analysis import analyse
from lm.tables.answer import answer
from lm.tables.compare import compare
from lm.tables.page import report_text, table
from tests.ledgers import LOSSES, configuration_of, record, row_of, write_study

GRID = "[[grid]]\nalpha = [0, 1, 2]\n"


def lines_on(devices, losses=LOSSES):
    """A ledger without beta: `devices` is (alpha, seed) -> kind of device, else cpu."""
    return [
        record(seed, loss, config={"alpha": float(alpha), "beta": 0.0})
        | {"versions": {"device": devices.get((alpha, seed), "cpu")}}
        for (alpha, _), values in losses.items()
        for seed, loss in enumerate(values, start=1)
    ]


def analysis_on(folder, devices):
    lines = lines_on(devices)
    return analyse(load_study(write_study(folder, lines, body=GRID)), lines)


def test_a_seed_on_two_kinds_of_device_makes_no_pair_and_welchs_test_takes_its_place(tmp_path):
    analysis = analysis_on(tmp_path, {(2, 2): "cuda"})
    base, one, two = (list(LOSSES[alpha, 0]) for alpha in (0, 1, 2))
    paired, unpaired = (configuration_of(analysis, alpha=alpha).differences["valid"] for alpha in (1, 2))
    assert (paired.welch, unpaired.welch) == (False, True)
    assert paired.p == pytest.approx(stats.ttest_rel(one, base).pvalue)
    expected = stats.ttest_ind(two, base, equal_var=False)
    assert unpaired.p == pytest.approx(expected.pvalue)
    assert (unpaired.low, unpaired.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (unpaired.mean, unpaired.n) == (pytest.approx(sum(two) / 3 - sum(base) / 3), 3)


def test_table_and_answer_call_such_a_difference_unpaired_and_others_not(tmp_path):
    analysis = analysis_on(tmp_path, {(2, 2): "cuda"})
    rows = {row[1]: " ".join(row) for row in table(analysis)[1]}
    assert "unpaired)" in rows["alpha 2"]
    assert "unpaired" not in rows["alpha 1"]
    assert "n = 3, unpaired)" in answer(analysis)
    assert "Seed 2: the baseline and alpha 2 ran on different kinds of device" in report_text(analysis)


def test_seeds_that_only_one_of_them_has_do_not_matter(tmp_path):
    analysis = analysis_on(tmp_path, {})
    assert all(not c.differences["valid"].welch for c in analysis.configurations[1:])
    assert "unpaired" not in report_text(analysis)


def test_studies_on_two_kinds_of_device_are_compared_by_welchs_test(tmp_path):
    cpu = str(write_study(tmp_path / "cpu", lines_on({}), body=GRID))
    shifted = {key: [loss - 0.1 for loss in losses] for key, losses in LOSSES.items()}
    for name, devices in (("same", {}), ("gpu", {(1, seed): "cuda" for seed in (1, 2, 3)})):
        other = str(write_study(tmp_path / name, lines_on(devices, shifted), body=GRID))
        assert row_of(compare([cpu, other]), other, alpha=1.0).difference.welch == (name == "gpu")


def test_exact_zeros_have_a_column_where_there_are_any(tmp_path):
    for name, share, shown in (("lstm", 0.0, False), ("relu", 0.25, True)):
        lines = lines_on({})
        for line in lines:
            line["activation"]["frac_zero"] = share
        head, rows = table(analyse(load_study(write_study(tmp_path / name, lines, body=GRID)), lines))
        assert ("exactly 0" in head) == shown
        if shown:
            assert {row[head.index("exactly 0")] for row in rows} == {"25.0 %"}
