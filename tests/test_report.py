"""The files and the words of a report, and its command line."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lm.base.errors import ConfigError, run_cli
from lm.report import main
from lm.tables.answer import answer
from lm.tables.page import readme, report, report_text
from lm.tables.plots import draw_plots
from tests.ledgers import GRID, LOSSES, analysis_of, record, records_of, write_study

ROOT = Path(__file__).resolve().parent.parent


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


def test_the_command_names_a_study_of_the_repository_by_its_path_below_results(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.study.specification.ROOT", tmp_path)
    folder = tmp_path / "results" / "quick" / "ptb"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text('dataset = "ptb"\nseeds = [1]\n')
    report(folder)
    assert "`bash run.sh study quick/ptb` without `runs.jsonl`" in (folder / "README.md").read_text()
