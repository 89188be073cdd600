"""A study's page and table.csv, whatever its words are."""

import csv
import io

import pytest

from lm.study.specification import load_study
from lm.tables.analysis import analyse
from lm.tables.page import _inert, readme, table_csv
from lm.tables.text import aligned, markdown

STUDY = '''title = """Two
lines"""
dataset = "ptb"
seeds = [1]
[flags]
data = "=cmd|' /C calc'!A0"
[[grid]]
lr = [1.5, 20]
finetune = [""]
[[quoted]]
label = """=1+1
@two"""
source = """a
b"""
test_ppl = 90
'''


@pytest.fixture
def analysis(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    return analyse(load_study(tmp_path), [])


def test_line_breaks_in_words_break_no_heading_row_or_list(analysis):
    page = readme(analysis, [])
    assert page.startswith("# Two lines\n")
    assert "| quoted | =1+1 @two [1] |" in page
    assert "- [1] quoted, not measured here: =1+1 @two, from a b" in page


def test_a_cell_is_one_line():
    rows = [["a\nb", "c\r\nd"]]
    assert markdown(["x", "y"], rows, 2).splitlines()[2] == "| a b | c d |"
    assert len(aligned(["x", "y"], rows, 2).splitlines()) == 3


def test_a_spreadsheet_computes_nothing_of_the_words_in_table_csv(analysis):
    rows = list(csv.DictReader(io.StringIO(table_csv(analysis))))
    assert rows[-1]["configuration"] == "'=1+1 @two"
    assert rows[-1]["test_ppl_mean"] == "90"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=A1", "'=A1"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x"), ("\tx", "'\tx"), ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"), ("alpha 2", "alpha 2"), ("", ""), (-2, -2), (None, None), (True, True),
    ],
)  # fmt: skip
def test_only_text_that_would_be_computed_is_marked(value, cell):
    assert _inert(value) == cell
