"""The installed package: what a wheel holds, its commands, its requirements, and lm as a library."""

import doctest
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

import lm
import lm.base.commands
from lm.base.errors import CheckpointError, CorpusError
from lm.base.rundir import RunDir
from lm.scoring.evaluation import evaluate
from lm.scoring.export import export_run
from lm.scoring.trained import load

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = sorted(path.stem for path in (ROOT / "lm").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built out of a copy: a build leaves files behind, which the next one would pack again."""
    pytest.importorskip("setuptools", "77", reason="building a wheel without the network needs setuptools here")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("lm", "tests", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *flags, str(copy)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


def test_a_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"lm-{lm.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"lm", info}
    assert f"{info}/licenses/LICENSE" in names
    ours = [path.relative_to(ROOT).as_posix() for path in (ROOT / "lm").rglob("*") if path.is_file()]
    assert sorted(name for name in names if name.startswith("lm/")) == sorted(
        name for name in ours if "__pycache__" not in name
    )
    assert {"lm/py.typed", "lm/text/corpora.toml", "lm/tables/published.toml", "lm/scoring/blimp.toml"} < set(names)


def test_an_unpacked_wheel_is_imported_from_an_empty_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import lm, lm.text.cards, lm.tables.published, sys\n"
        "assert 'torch' not in sys.modules\n"
        "print(lm.__file__, len(lm.text.cards.known_corpora()), len(lm.tables.published.load_published()))"
    )
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path / "empty", env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    place, *counts = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path)
    assert "0" not in counts
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_project_names_a_command_for_each_module_at_the_top():
    assert PROJECT["scripts"] == {f"lm-{name}": f"lm.base.commands:{name}" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_installed_command_does_what_python_m_does(name, monkeypatch, capsys):
    module, function = PROJECT["scripts"][f"lm-{name}"].split(":")
    command = getattr(importlib.import_module(module), function)
    monkeypatch.delitem(sys.modules, f"lm.{name}", raising=False)
    monkeypatch.setattr("sys.argv", [f"lm-{name}", "--help"])
    with pytest.raises(SystemExit) as exit_:
        command()
    assert exit_.value.code == 0
    assert f"usage: python -m lm.{name}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [f"lm-{name}", "--no-such-flag"])
    with pytest.raises(SystemExit) as exit_:
        command()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def requirements(name):
    return sorted(line for line in (ROOT / name).read_text().splitlines() if line)


def test_requirements_are_those_of_the_project_with_torch_pinned():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"]]
    assert requirements("requirements.txt") == sorted(
        "torch==2.13.0" if re.match(r"torch\b", requirement) else requirement for requirement in wanted
    )
    assert requirements("requirements-search.txt") == sorted(extras["search"])
    assert requirements("requirements-export.txt") == sorted(extras["export"])
    assert requirements("requirements-cluster.txt") == sorted(extras["cluster"])


def test_every_name_that_lm_offers_is_there_and_no_other():
    assert all(getattr(lm, name).__name__ == name for name in lm.__all__)
    assert set(lm.__all__) | {"__version__"} <= set(dir(lm))
    with pytest.raises(AttributeError, match="no attribute 'AWDLTSM'"):
        lm.AWDLTSM  # noqa: B018


def test_a_model_is_made_in_one_line():
    model = lm.AWDLSTM(vocab_size=100, config=lm.make_config(emsize=8, nhid=12, nlayers=2, dropouti=0.2))
    output = model(torch.zeros(5, 3, dtype=torch.long), model.initial_state(3))
    assert [h_TBH.shape for h_TBH in output.raw] == [(5, 3, 12), (5, 3, 8)]


@pytest.fixture
def exported(tiny_run, tmp_path):
    export_run(RunDir(tiny_run), RunDir(tmp_path / "export"))
    return tmp_path / "export"


def test_a_run_and_its_export_load_to_the_same_model_that_scores_as_evaluation_does(tiny_run, exported, corpus_dir):
    text = (corpus_dir / "test.txt").read_text()
    of_run, of_export = load(tiny_run), load(str(exported))
    expected = evaluate(of_run.model, of_run.tokenizer.encode(text), 1).perplexity
    assert not of_run.model.training
    assert of_run.config.emsize == 8
    for trained in (of_run, of_export):
        assert trained.perplexity(text) == pytest.approx(expected, rel=1e-5)


def test_a_line_alone_has_the_log_probability_of_independent_scoring(tiny_run):
    trained = load(tiny_run)
    lines = ["w1 w2 w3", "w7", ""]
    scores = trained.score("\n".join(lines) + "\n", independent=True)
    assert [trained.logprob(line) for line in lines] == pytest.approx([row["logprob"] for row in scores["lines"]])
    assert trained.logprob("w7\n") == trained.logprob("w7")


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_text_without_a_token_to_predict_is_refused(tiny_run, text):
    with pytest.raises(CorpusError):
        load(tiny_run).perplexity(text)


def test_what_cannot_be_loaded_is_refused(exported, tmp_path):
    with pytest.raises(CheckpointError, match="no such run directory or export"):
        load(tmp_path / "nothing")
    other = load(exported).tokenizer
    type(other)([*other.types, "new"]).save(exported / "tokenizer.json")
    with pytest.raises(CheckpointError, match="not as it was exported"):
        load(exported)
    (exported / "tokenizer.json").unlink()
    with pytest.raises(CorpusError, match=r"tokenizer\.json"):
        load(exported)


@pytest.mark.parametrize("documented", [load, lm.AWDLSTM])
def test_the_example_in_a_docstring_runs(documented, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ptb").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(recurse=False).find(documented, "example", globs={"torch": torch})
    assert len(found) == 1
    assert doctest.DocTestRunner().run(found[0]) == (0, len(found[0].examples))


def test_the_citation_names_the_software_and_both_papers():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"][0]["name"] == PROJECT["authors"][0]["name"]
    assert [reference["url"][-10:] for reference in citation["references"]] == ["1708.02182", "1708.01009"]
