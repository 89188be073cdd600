"""Study files and the ledger: what is refused, how the grid unfolds, and appending from several processes."""

import fcntl
import itertools
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.base.errors import ConfigError
from lm.study.ledger import append_ledger, read_ledger
from lm.study.specification import load_study

BASE = 'dataset = "ptb"\nseeds = [1, 2]\n'


def study_at(folder: Path, text: str):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(text)
    return load_study(folder)


def test_every_key_of_a_full_file_is_read(tmp_path):
    study = study_at(
        tmp_path / "mine",
        """
        title = "T"
        question = "Q?"
        preset = "examples-200"
        dataset = "ptb"
        seeds = [3, 1]
        [flags]
        epochs = 40
        [[grid]]
        alpha = [0, 1.5]
        [baseline]
        alpha = 1.5
        [[quoted]]
        label = "L"
        source = "S"
        test_ppl = 87.17
        [refine]
        field = "alpha"
        """,
    )
    assert (study.title, study.question, study.preset, study.dataset) == ("T", "Q?", "examples-200", "ptb")
    assert (study.seeds, study.flags) == ((3, 1), {"epochs": 40})
    assert study.configurations == ({"alpha": 0}, {"alpha": 1.5})
    assert study.baseline == {"alpha": 1.5}
    assert study.quoted[0]["test_ppl"] == 87.17
    assert study.refine == {"field": "alpha"}
    assert study.ledger == tmp_path / "mine" / "runs.jsonl"


def test_a_study_can_be_named_by_its_file_and_its_title_defaults_to_the_folder(tmp_path):
    study_at(tmp_path / "mine", BASE)
    assert load_study(tmp_path / "mine" / "study.toml").title == "mine"


@pytest.mark.parametrize(
    ("place", "name"),
    [("results/quick/ptb", "quick/ptb"), ("results/a/results/b", "b"), ("mine", "mine"), ("x/results", "results")],
)
def test_a_study_is_named_by_its_path_below_results_or_by_its_folder(tmp_path, place, name):
    assert study_at(tmp_path / place, BASE).name == name


def test_blocks_unfold_to_products_and_join_without_duplicates_in_order(tmp_path):
    study = study_at(
        tmp_path, BASE + "[[grid]]\nalpha = [0, 1]\nbeta = [0, 2]\n[[grid]]\nalpha = [1.0, 5]\nbeta = [0]\n"
    )
    configurations = [tuple(configuration.values()) for configuration in study.configurations]
    assert configurations == [(0, 0), (0, 2), (1, 0), (1, 2), (5, 0)]
    assert study.baseline == {"alpha": 0, "beta": 0}


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.lists(st.integers(0, 3), min_size=1, max_size=3)] * 2), min_size=1, max_size=3))
def test_configurations_are_the_set_union_of_the_blocks_products(tmp_path_factory, blocks):
    text = BASE + "".join(f"[[grid]]\nalpha = {a}\nbeta = {b}\n" for a, b in blocks)
    study = study_at(tmp_path_factory.mktemp("s"), text)
    configurations = [tuple(configuration.values()) for configuration in study.configurations]
    assert len(configurations) == len(set(configurations))
    assert set(configurations) == {pair for a, b in blocks for pair in itertools.product(a, b)}


def test_fields_that_are_named_together_have_the_same_value_in_every_run(tmp_path):
    study = study_at(tmp_path, BASE + '[[grid]]\nalpha = [0, 1]\n"dropout + dropout-h" = [0.1, 0.2]\nseed = [1]\n')
    assert [tuple(c.items()) for c in study.configurations] == [
        (("alpha", alpha), ("dropout", value), ("dropout_h", value)) for value in (0.1, 0.2) for alpha in (0, 1)
    ]
    assert set(study.configuration_seeds) == {(1,)}


def test_a_field_that_a_block_leaves_out_takes_its_value_from_the_flags(tmp_path):
    text = BASE + "[flags]\ndropout = 0.2\n[[grid]]\nalpha = [0]\n[[grid]]\nalpha = [0]\ndropout = [0.2, 0.4]\n"
    study = study_at(tmp_path, text)
    assert study.configurations == ({"alpha": 0, "dropout": 0.2}, {"alpha": 0, "dropout": 0.4})


def test_a_block_can_name_its_own_seeds_and_a_configuration_in_two_blocks_has_the_seeds_of_both(tmp_path):
    text = BASE + "[[grid]]\nalpha = [0, 1]\nseed = [1]\n[[grid]]\nalpha = [1]\n"
    study = study_at(tmp_path, text)
    assert study.configuration_seeds == ((1,), (1, 2))
    assert study.runs() == [({"alpha": 0}, 1), ({"alpha": 1}, 1), ({"alpha": 1}, 2)]


def test_without_a_grid_there_is_one_configuration(tmp_path):
    study = study_at(tmp_path, BASE)
    assert (study.configurations, study.baseline, study.runs()) == (({},), {}, [({}, 1), ({}, 2)])


def test_dashes_and_underscores_name_the_same_field(tmp_path):
    assert study_at(tmp_path, BASE + "[[grid]]\nbatch-size = [20]\n").configurations == ({"batch_size": 20},)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (BASE + "sede = 1\n", "sede"),
        ("seeds = [1]\n", "dataset"),
        ('dataset = "ptb"\n', "seeds"),
        ('dataset = "ptb"\nseeds = []\n', "seeds"),
        ('dataset = "ptb"\nseeds = [1, 1]\n', "seeds"),
        ('dataset = "ptb"\nseeds = [true]\n', "seeds"),
        ('dataset = "ptb"\nseeds = [-1]\n', "seeds"),
        (BASE + "title = 3\n", "title"),
        (BASE + "flags = 3\n", "flags"),
        (BASE + "[flags]\nseed = 3\n", "flags.seed"),
        (BASE + '[[grid]]\ndataset = ["ptb"]\n', "grid.dataset"),
        (BASE + "[grid]\nalpha = [1]\n", "grid"),
        (BASE + "[[grid]]\nalpha = 1\n", "grid.alpha"),
        (BASE + "[[grid]]\nalpha = []\n", "grid.alpha"),
        (BASE + '[[grid]]\n"alpha+beta" = 1\n', "grid.alpha+beta"),
        (BASE + '[[grid]]\n"alpha+beta" = []\n', "grid.alpha+beta"),
        (BASE + "[[grid]]\nalpha = [0]\n[[grid]]\nbeta = [1]\n", "grid.beta"),
        (BASE + "[[grid]]\nalpha = [0]\nseed = 1\n", "grid.seed"),
        (BASE + "[[grid]]\nalpha = [0]\n[baseline]\nbeta = 1\n", "baseline.beta"),
        (BASE + "[[grid]]\nalpha = [0]\n[baseline]\nalpha = 1\n", "baseline"),
        (BASE + "[[grid]]\nalpha = [0]\nbeta = [0, 1]\n[baseline]\nalpha = 0\n", "baseline"),
        (BASE + '[[quoted]]\nlabel = "x"\ntest_ppl = 3.0\n', "quoted.source"),
        (BASE + '[[quoted]]\nlabel = "x"\nsource = "y"\n', "quoted"),
        (BASE + '[[quoted]]\nlabel = "x"\nsource = "y"\ntest_ppl = "3"\n', "quoted.test_ppl"),
        (BASE + '[[quoted]]\nlabel = "x"\nsource = "y"\ntest_ppl = 0.5\n', "quoted.test_ppl"),
        (BASE + '[[quoted]]\nlabel = "x"\nsource = "y"\nppl = 3.0\n', "quoted.ppl"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_with_file_and_key(tmp_path, text, key):
    with pytest.raises(ConfigError) as caught:
        study_at(tmp_path, text)
    assert str(tmp_path / "study.toml") in str(caught.value)
    assert key in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_study(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xef\xbb\xbf" + b'dataset = "ptb"\nseeds = [1]\n')
    assert load_study(tmp_path).dataset == "ptb"


def test_a_missing_study_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_study(tmp_path / "nowhere")


def test_the_baseline_takes_what_it_leaves_out_from_the_flags(tmp_path):
    text = BASE + "[flags]\ndropout = 0.4\n[[grid]]\nalpha = [1, 0]\ndropout = [0.2, 0.4]\n[baseline]\nalpha = 0\n"
    assert study_at(tmp_path, text).baseline == {"alpha": 0, "dropout": 0.4}


def test_a_missing_or_empty_ledger_holds_nothing(tmp_path):
    assert read_ledger(tmp_path / "runs.jsonl") == []
    (tmp_path / "runs.jsonl").touch()
    assert read_ledger(tmp_path / "runs.jsonl") == []


def test_records_come_back_as_they_were_appended_and_the_last_of_an_id_wins(tmp_path):
    ledger = tmp_path / "new" / "runs.jsonl"
    append_ledger(ledger, {"id": "a", "status": "failed"})
    append_ledger(ledger, {"id": "b", "text": "ü\n"})
    append_ledger(ledger, {"id": "a", "status": "completed"})
    assert read_ledger(ledger) == [{"id": "a", "status": "completed"}, {"id": "b", "text": "ü\n"}]
    assert ledger.read_bytes().count(b"\n") == 3


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    ledger = tmp_path / "runs.jsonl"
    append_ledger(ledger, {"id": "a", "loss": float("nan"), "nested": {"list": [float("inf"), 1.5]}})
    assert "NaN" not in ledger.read_text()
    assert read_ledger(ledger) == [{"id": "a", "loss": None, "nested": {"list": [None, 1.5]}}]


def test_a_record_without_an_id_is_not_appended(tmp_path):
    with pytest.raises(ValueError, match="id"):
        append_ledger(tmp_path / "runs.jsonl", {"status": "completed"})
    assert not (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_truncated_last_line_is_skipped_with_a_warning(tmp_path, caplog, cut):
    ledger = tmp_path / "runs.jsonl"
    ledger.write_text('{"id": "a"}\n' + '{"id": "ü"}'[:cut])
    with caplog.at_level(logging.WARNING):
        records = read_ledger(ledger)
    whole = cut == len('{"id": "ü"}')
    assert [record["id"] for record in records] == (["a", "ü"] if whole else ["a"])
    assert bool(caplog.records) is not whole


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    ledger = tmp_path / "runs.jsonl"
    ledger.write_text('{"id": "a"}\n{"id": \n{"id": "b"}\n')
    with pytest.raises(ConfigError, match="runs.jsonl:2"):
        read_ledger(ledger)


def test_appending_cuts_off_a_truncated_line_and_completes_one_without_newline(tmp_path):
    ledger = tmp_path / "runs.jsonl"
    ledger.write_text('{"id": "a"}\n{"id": "b", "stat')
    append_ledger(ledger, {"id": "c"})
    assert ledger.read_text() == '{"id": "a"}\n{"id": "c"}\n'
    ledger.write_text('{"id": "a"}')
    append_ledger(ledger, {"id": "c"})
    assert ledger.read_text() == '{"id": "a"}\n{"id": "c"}\n'


def test_processes_that_append_at_once_lose_and_mix_nothing(tmp_path):
    ledger = tmp_path / "runs.jsonl"
    code = (
        "import sys; from lm.study.ledger import append_ledger\n"
        "for i in range(40): append_ledger(sys.argv[1], {'id': f'{sys.argv[2]}-{i}', 'pad': sys.argv[2] * 20000})\n"
    )
    root = str(Path(__file__).resolve().parent.parent.parent)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(ledger), str(n)], cwd=root) for n in range(4)]
    assert [writer.wait(timeout=300) for writer in writers] == [0] * 4
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {line["id"] for line in lines} == {f"{n}-{i}" for n in range(4) for i in range(40)}
    assert len(lines) == 160
    for n in range(4):
        assert [line["id"] for line in lines if line["pad"][0] == str(n)] == [f"{n}-{i}" for i in range(40)]


def test_an_append_waits_while_another_process_holds_the_ledger(tmp_path):
    ledger = tmp_path / "runs.jsonl"
    ledger.write_text('{"id": "a"}\n')
    with ledger.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        writer = threading.Thread(target=append_ledger, args=(ledger, {"id": "b"}))
        writer.start()
        writer.join(timeout=0.3)
        assert ledger.read_text() == '{"id": "a"}\n'
    writer.join(timeout=30)
    assert ledger.read_text() == '{"id": "a"}\n{"id": "b"}\n'
