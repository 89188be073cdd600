"""Sweeps as a user runs them: real runs on a tiny corpus, killed, stopped, failing, and two at a time."""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import sweep
from lm.base.errors import ConfigError, CorpusError, DivergedError
from lm.base.locks import take_lock
from lm.config.values import as_plain, make_config
from lm.study.executors import train_arguments
from lm.study.from_flags import save_study, study_from_flags, with_refine
from lm.study.ledger import append_ledger, read_ledger
from lm.study.records import METRICS
from lm.study.scheduler import Sweep
from lm.study.specification import load_study
from lm.sweep import parse_args, plan
from lm.train import configure
from tests.conftest import write_corpus

FLAGS = {"emsize": 8, "nhid": 12, "nlayers": 2, "batch_size": 4, "bptt": 7, "eval_batch_size": 2, "lr": 5, "epochs": 3}
GRID = "[[grid]]\nalpha = [0, 1]\nbeta = [2]\n"
RUNS = 4  # of the grid, with two seeds


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("sweep") / "tiny", train=60)


def write_study(folder: Path, corpus: Path, grid: str = GRID, seeds: tuple[int, ...] = (1, 2), **flags) -> Path:
    folder.mkdir(parents=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in (FLAGS | flags | {"data": str(corpus)}).items()]
    text = f'dataset = "tiny"\nseeds = {list(seeds)}\n[flags]\n' + "\n".join(lines) + f"\n{grid}"
    (folder / "study.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def start(environment):
    """Start `python -m lm.sweep ARGUMENTS` in a folder."""
    processes = []

    def begin(folder: Path, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "lm.sweep", *map(str, arguments), "--device=cpu"]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def swept(cli):
    """Sweep to the end where neither its process nor those of its runs are the point; returns stdout and stderr."""

    def run(folder: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
        done = cli("sweep", *arguments, "--device=cpu", folder=folder)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


def end(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def lines(study: Path) -> list[str]:
    try:
        return (study / "runs.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []


def figures(study: Path) -> dict:
    names = ("valid_loss", "test_loss", "train_loss", "curve", "steps")
    return {record["id"]: [record[name] for name in names] for record in read_ledger(study / "runs.jsonl")}


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(swept, corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    study = write_study(folder / "results" / "s", corpus)
    swept(folder, study, "--jobs=2", "--no-report")
    return study


def test_every_configuration_and_seed_becomes_one_ledger_line_with_curve_and_command(undisturbed):
    records = [json.loads(line) for line in lines(undisturbed)]
    asked = {
        (configuration["alpha"], configuration["beta"], seed) for configuration, seed in load_study(undisturbed).runs()
    }
    assert {(r["config"]["alpha"], r["config"]["beta"], r["seed"]) for r in records} == asked
    assert len(records) == len(asked) == RUNS
    for record in records:
        assert record["status"] == "completed"
        assert [epoch for epoch, _ in record["curve"]] == [1, 2, 3]
        assert METRICS["valid_ppl"](record) == pytest.approx(min(ppl for _, ppl in record["curve"]))


def test_the_command_in_the_ledger_makes_the_same_configuration(undisturbed):
    for record in read_ledger(undisturbed / "runs.jsonl"):
        words = shlex.split(record["command"])
        assert words[:3] == ["python", "-m", "lm.train"]
        config, options = configure(words[3:])
        assert json.loads(json.dumps(vars(config))) == record["config"]
        assert options.out_dir == f"runs/s/{record['id']}"


def test_started_again_it_starts_nothing(undisturbed, swept):
    before = lines(undisturbed)
    out, _ = swept(undisturbed.parent.parent, undisturbed, "--no-report", "--json")
    assert json.loads(out)["started"] == 0
    assert lines(undisturbed) == before


def test_runs_that_are_complete_are_only_entered_when_the_ledger_is_lost(undisturbed, swept):
    before = figures(undisturbed)
    (undisturbed / "runs.jsonl").unlink()
    out, _ = swept(undisturbed.parent.parent, undisturbed, "--no-report", "--json")
    assert json.loads(out)["started"] == 0
    assert figures(undisturbed) == before


def test_a_run_that_is_complete_is_entered_before_another_is_computed(swept, corpus, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus, grid="", seeds=(2,), epochs=1)
    swept(tmp_path, study, "--no-report")
    (study / "runs.jsonl").unlink()
    text = (study / "study.toml").read_text()
    (study / "study.toml").write_text(text.replace("seeds = [2]", "seeds = [1, 2]"))
    swept(tmp_path, study, "--jobs=1", "--no-report")
    assert [record["seed"] for record in read_ledger(study / "runs.jsonl")] == [2, 1]


def test_a_run_that_was_made_by_hand_without_a_test_is_tested_before_it_is_entered(swept, cli, corpus, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus, grid="", seeds=(2,), epochs=1)
    out, _ = swept(tmp_path, study, "--dry-run", "--json")
    (missing,) = json.loads(out)["missing"]
    command = shlex.split(missing["command"].replace("--out-dir=", f"--out-dir={tmp_path}/"))
    done = cli(*(word.removeprefix("lm.") for word in command[2:]), "--no-eval-test")
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("runs/s/*/result.json")]
    assert record["test_loss"] is None
    swept(tmp_path, study, "--no-report")
    (entered,) = read_ledger(study / "runs.jsonl")
    assert entered["test_ppl"] > 1 and entered["valid_loss"] == record["valid_loss"]


def test_killed_twice_and_continued_it_gives_the_same_figures(start, swept, corpus, undisturbed, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus)
    for done in (1, 2):
        process = start(tmp_path, study, "--jobs=2", "--no-report")
        wait_for(lambda done=done: len(lines(study)) >= done, process)
        process.kill()
        process.wait()
    runs = tmp_path / "runs" / "s"
    deadline = time.monotonic() + 60
    for lock in runs.glob("*/run.lock"):  # the runs of a killed sweep end by themselves
        while (taken := take_lock(lock, wait=False)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.close(taken)
    swept(tmp_path, study, "--jobs=2", "--no-report")
    assert len(lines(study)) == RUNS
    assert figures(study) == figures(undisturbed)


def test_two_sweeps_on_one_study_share_its_runs_and_both_end_with_the_full_ledger(start, corpus, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus, "[[grid]]\nalpha = [0, 1, 2]\n", seeds=(1,))
    both = [start(tmp_path, study, "--jobs=1", "--no-report", "--json") for _ in range(2)]
    summaries = [json.loads(end(process)[0]) for process in both]
    assert sum(summary["started"] for summary in summaries) == 3
    assert [summary["completed"] for summary in summaries] == [3, 3]
    assert len(lines(study)) == len(figures(study)) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_signal_lets_the_runs_save_and_the_same_command_continues(number, code, start, corpus, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus, "", seeds=(1,), epochs=500)
    process = start(tmp_path, study, "--no-report")
    wait_for(lambda: list(tmp_path.glob("runs/s/*/ckpt/last.pt")), process)
    process.send_signal(number)
    _, stderr = end(process, code)
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
    (result,) = tmp_path.glob("runs/s/*/result.json")
    assert json.loads(result.read_text())["status"] == "interrupted"
    assert not lines(study)


def test_failed_and_diverged_runs_are_listed_and_the_others_complete(swept, corpus, tmp_path):
    failing = "\n[[grid]]\nlr = [5]\nbatch_size = [9999]\n"
    study = write_study(
        tmp_path / "results" / "s", corpus, f"[[grid]]\nlr = [5, 1e30]\nbatch_size = [4]\n{failing}", seeds=(1,),
        model="RNN_RELU", clip=0, nonmono=0, epochs=1,
    )  # fmt: skip
    out, stderr = swept(tmp_path, study, "--jobs=2", "--no-report", "--json", code=1)
    assert sorted(record["status"] for record in read_ledger(study / "runs.jsonl")) == ["completed", "diverged"]
    (failed,) = json.loads(out)["failed"]
    assert failed.startswith("batch_size")  # named by what it has other than the baseline
    for text in (failed, stderr):
        assert "batch_size 9999, seed 1: exit code 3" in text
        assert "--batch-size" in text.split("\n", 1)[1]
        assert "output.log" in text
    file = study / "study.toml"
    file.write_text(file.read_text().replace(failing, ""))
    out, stderr = swept(tmp_path, study, "--jobs=2", "--no-report", "--json", code=4)
    assert json.loads(out)["started"] == 0  # it would diverge again
    assert "not finite" in stderr


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("[[grid]]\nalhpa = [0, 1]\n", "study.toml: unknown configuration field 'alhpa'"),
        ("[[grid]]\ndropout = [0, 1.5]\n", "study.toml: --dropout: must be"),
        ('[refine]\nfield = "model"\n', "study.toml: refine: 'model' is no numeric"),
        ('[refine]\nsearch = "random"\n[refine.space]\ndropout = [2]\n', "study.toml: --dropout"),
        (
            '[refine]\nsearch = "random"\n[refine.space]\nseed = [1]\n',
            "refine.space.seed: belongs to the top-level key",
        ),
        ('[refine]\nfield = "alpha"\ntrials = 3\n', "study.toml: refine.trials: has no use beside field"),
    ],
)
def test_a_mistake_in_the_study_names_file_and_field_before_anything_starts(grid, message, corpus, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus, grid)
    with pytest.raises(ConfigError, match=message):
        plan(Sweep(load_study(study), parse_args("", [str(study)])))


def test_refining_by_command_line_takes_up_what_study_toml_says(swept, corpus, tmp_path):
    study = write_study(tmp_path / "results" / "s", corpus, "", seeds=(1,), epochs=1, alpha=0, beta=0)
    file = study / "study.toml"
    file.write_text(file.read_text() + '[refine]\nfield = "alpha"\nvalues = [0, 1]\npoints = 2\n')
    _, stderr = swept(tmp_path, study, "--refine=alpha", "--jobs=2")
    assert "lowest mean valid loss" in stderr
    alphas = [record["config"]["alpha"] for record in read_ledger(study / "runs.jsonl")]
    assert alphas[0] == 0
    assert len(alphas) == len(set(alphas)) == 4
    assert f"alpha {max(alphas):g}" in (study / "README.md").read_text()
    assert "field is 'alpha', not 'beta'" in swept(tmp_path, study, "--refine=beta", code=2)[1]


VALUES = {
    "alpha": st.floats(0, 1e6), "lr": st.floats(1e-9, 1e9), "wdecay": st.floats(0, 1), "dropout": st.floats(0, 0.999),
    "nhid": st.integers(1, 5000), "seed": st.integers(0, 2**31 - 1), "variable_bptt": st.booleans(),
    "optimizer": st.sampled_from(["sgd", "adam", "adamw"]), "data": st.just(""), "deterministic": st.booleans(),
    "when": st.lists(st.integers(1, 99), max_size=3).map(tuple), "finetune": st.just("runs/gone"),
}  # fmt: skip


@settings(max_examples=25)
@given(
    st.sampled_from(["", "examples-200", "awd-lstm", "awd-lstm-onecycle"]), st.fixed_dictionaries({}, optional=VALUES)
)
def test_the_flags_of_a_run_make_exactly_its_configuration(preset, values):
    config = make_config(preset, "ptb", **values)
    assert configure(train_arguments(config))[0] == config


def from_flags(*flags: str):
    args = parse_args("", list(flags))
    return with_refine(study_from_flags(args), args)


def test_a_study_by_flags_is_the_same_as_by_file(tmp_path):
    flags = ("--preset=examples-200", "--dataset=ptb", "--alpha", "0", "1.5", "--beta", "0", "1", "--seed", "3", "4",
             "--epochs=2", "--no-tied", "--ar_norm", "l1", "--variable-bptt", "true", "false",
             "--out", str(tmp_path / "s"))  # fmt: skip
    study = from_flags(*flags)
    assert not (tmp_path / "s").exists()
    save_study(study)
    read = load_study(tmp_path / "s")
    assert (read.configurations, read.seeds, read.flags, read.preset) == (
        study.configurations,
        study.seeds,
        study.flags,
        study.preset,
    )
    assert read.configurations[3] == {"alpha": 0, "beta": 1, "variable_bptt": False}
    assert (read.seeds, read.flags) == ((3, 4), {"epochs": 2, "tied": False, "ar_norm": "l1"})
    text = (tmp_path / "s" / "study.toml").read_text()
    save_study(from_flags(*flags))
    assert (tmp_path / "s" / "study.toml").read_text() == text
    with pytest.raises(ConfigError, match="asks for other configurations"):
        from_flags(*flags, "--alpha", "0", "2")


@pytest.mark.parametrize("name", ["a\x7fb", 'quo"ted', "back\\slash", "tab\t", "ü"])
def test_a_study_by_flags_may_be_of_a_folder_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / name, train=20)
    args = parse_args("", ["--data", name, "--alpha", "0", "1", "--out=s"])
    study = study_from_flags(args)
    save_study(study)
    assert load_study("s").flags == study.flags == {"data": name}


def test_a_folder_of_text_needs_no_name(corpus, tmp_path, swept):
    flags = ("--data", corpus, "--alpha", 0, 1, "--epochs=1", "--dry-run", "--out", tmp_path / "results" / "a" / "s")
    out, _ = swept(tmp_path, *flags)
    assert out.count("--out-dir=runs/a/s/") == 2
    assert "2 runs asked for" in out and "--dataset=tiny" in out and f"--data={corpus}" in out
    with pytest.raises(CorpusError, match="corpus nowhere not found"):
        from_flags("--dataset=nowhere", "--out", str(tmp_path / "s"))


def test_a_dry_run_says_where_the_runs_will_be(main_here, tmp_path):
    flags = ["--dataset=ptb", "--alpha", "0", "1", "--out", tmp_path / "s", "--runs-dir", tmp_path / "big disk"]
    out = main_here(sweep, *flags, "--dry-run")
    assert [Path(shlex.split(line)[-1]).parent for line in out.splitlines() if "lm.train" in line] == [
        Path(f"--out-dir={tmp_path}/big disk/s")
    ] * 2
    assert json.loads(main_here(sweep, *flags, "--dry-run", "--json"))["missing"][0]["command"] in out


def test_values_of_a_flag_that_is_given_again_join_the_grid(tmp_path):
    study = from_flags("--dataset=ptb", "--alpha=0", "--alpha=1", "--seed=3", "--seed=4", "--out", str(tmp_path / "s"))
    assert ([c["alpha"] for c in study.configurations], study.seeds) == ([0, 1], (3, 4))


def test_a_dry_run_is_one_json_object_if_asked(main_here, tmp_path):
    out = main_here(sweep, "--dataset=ptb", "--alpha", "0", "1", "--out", tmp_path / "s", "--dry-run", "--json")
    found = json.loads(out)
    assert (found["asked"], len(found["missing"])) == (2, 2)
    assert "--alpha=1.0" in found["missing"][1]["command"]


def test_a_diverged_line_that_the_study_does_not_ask_for_fails_no_sweep(tmp_path, monkeypatch):
    file = tmp_path / "study.toml"
    file.write_text('dataset = "ptb"\nseeds = [1]\n[[grid]]\nlr = [1, 1000]\n')
    args = parse_args("", [str(tmp_path), "--no-report"])
    for job, status in zip(plan(Sweep(load_study(tmp_path), args)), ("completed", "diverged"), strict=True):
        append_ledger(tmp_path / "runs.jsonl", {"id": job.id, "status": status, "config": as_plain(job.config)})
    for grid, fails in (("[1, 1000]", True), ("[1]", False)):
        file.write_text(file.read_text().replace("[1, 1000]", grid))
        study = Sweep(load_study(tmp_path), args)
        with pytest.raises(DivergedError) if fails else contextlib.nullcontext():
            sweep.finish(study, plan(study), args)


def test_refine_by_flags_takes_the_values_of_its_field_and_is_added_to_the_file_once(tmp_path):
    out = ("--out", str(tmp_path / "s"))
    save_study(from_flags("--alpha", "0", "1", "--beta", "0", "1", "--refine=alpha", "--rounds=2", *out))
    study = load_study(tmp_path / "s")
    assert study.refine == {"values": [0, 1], "field": "alpha", "rounds": 2}
    assert study.configurations == ({"beta": 0}, {"beta": 1})
    args = parse_args("", [str(tmp_path / "s"), "--refine=alpha"])
    assert with_refine(study, args).refine == study.refine
    with pytest.raises(ConfigError, match="rounds is 2, not 3"):
        with_refine(study, parse_args("", [str(tmp_path / "s"), "--rounds=3"]))


def test_a_study_file_is_told_of_and_keeps_its_text_when_refine_is_added(tmp_path, caplog):
    file = tmp_path / "study.toml"
    file.write_text(text := 'dataset = "ptb"\nseeds = [1] # one\n[[grid]]\nalpha = [0, 1]\n')
    for _ in range(2):
        with caplog.at_level(logging.INFO, logger="lm"):
            save_study(with_refine(load_study(tmp_path), parse_args("", [str(tmp_path), "--refine=alpha"])))
    assert file.read_text() == text + '\n[refine]\nfield = "alpha"\n'
    assert [record.getMessage().split(", ")[0] for record in caplog.records] == [f"{file}: [refine] added"]


SPACE = "[refine.space] # where\ndropout = [0.2, 0.4]\n"


@pytest.mark.parametrize(
    ("refine", "flags", "lines"),
    [
        ("[refine]  # read by lm.sweep\n", ["--refine=alpha"], '[refine]  # read by lm.sweep\nfield = "alpha"\n'),
        ("[refine]", ["--refine=alpha"], '[refine]\nfield = "alpha"\n'),
        ('[refine]\nfield = "alpha"\n', ["--rounds=3"], '[refine]\nrounds = 3\nfield = "alpha"\n'),
        (SPACE, ["--search=random", "--trials=9"], f'[refine]\nsearch = "random"\ntrials = 9\n\n{SPACE}'),
        (f"[refine]\n{SPACE}", ["--search=hyperband"], f'[refine]\nsearch = "hyperband"\n{SPACE}'),
        ("", ["--refine=beta"], '\n[refine]\nfield = "beta"\n'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_flags_beside_a_refine_of_its_own_are_added_to_it_and_nothing_else_changes(
    mark, refine, flags, lines, tmp_path
):
    file = tmp_path / "study.toml"
    head = f'{mark}dataset = "ptb"\r\nseeds = [1] # one\r\n'
    file.write_bytes((head + refine).encode())
    asked = with_refine(load_study(tmp_path), parse_args("", [str(tmp_path), *flags]))
    save_study(asked)
    assert file.read_bytes().decode() == head + lines
    assert load_study(tmp_path).refine == asked.refine
    save_study(load_study(tmp_path))
    assert file.read_bytes().decode() == head + lines


def test_a_refine_that_no_line_can_be_added_to_is_told_with_the_line(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(text := 'dataset = "ptb"\nseeds = [1]\nrefine = {field = "alpha"}\n')
    with pytest.raises(ConfigError, match=r"besides its own \[refine\]: \[refine\]; rounds = 2"):
        save_study(with_refine(load_study(tmp_path), parse_args("", [str(tmp_path), "--rounds=2"])))
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokenizer=bpe", "--refine=bpe_vocab_size"], "refine.values: give bpe_vocab_size two or more"),
        (["--refine=trapezoid_rise"], "--trapezoid-rise: works with --schedule trapezoid only"),
        (["--beta", "1", "x", "--refine=alpha"], "--beta"),
    ],
)
def test_values_that_refining_would_end_at_after_the_grid_are_told_before_anything_runs(
    flags, message, cli, corpus, tmp_path
):
    sizes = [f"--{name}={value}" for name, value in FLAGS.items()]
    done = cli("sweep", "--data", corpus, *sizes, *flags, "--out", tmp_path / "s", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_flags_beside_a_study_folder_are_refused(tmp_path):
    (tmp_path / "study.toml").write_text('dataset = "ptb"\nseeds = [1]\n')
    with pytest.raises(ConfigError, match="--alpha: .*study.toml says what to run"):
        with_refine(load_study(tmp_path), parse_args("", [str(tmp_path), "--alpha", "1"]))
