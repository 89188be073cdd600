"""Whatever is put in: it works as a user expects, or it is one message with the documented exit code."""

import dataclasses
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from lm import bench, corpus, evaluate, generate, sweep, train
from lm.base.errors import ConfigError, LMError, run_cli
from lm.config.flags import Parser
from lm.config.schema import RunOptions, TrainConfig
from lm.study.settled import Settled
from lm.study.specification import load_study
from lm.tables.compare import compare, compare_text
from lm.tables.page import report, report_text
from lm.text.finding import load_corpus
from lm.train import configure
from lm.training.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import TINY
from tests.ledgers import LOSSES, records_of, write_study

SHORT = [*TINY, "--max-steps=2", "--epochs=1", "--save-every=1", "--no-tensorboard"]
SENTENCE = b"the cat sat on the mat and the dog ran off\n"


def write_splits(folder, **splits):
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_bytes(splits.get(split, SENTENCE * 5))
    return folder


@pytest.fixture
def ending(monkeypatch, capsys, tmp_path):
    """Run a command in this process; returns its exit code and what it printed on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lm.training.writer.git_state", dict)  # asks git, which takes its time

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_cli(module.main, getattr(module, "SMALLER", ""))
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two updates, and the flags that made it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        flags = ["--data", str(write_splits(Path.cwd() / "own")), *SHORT]
        config, options = configure([*flags, "--out-dir", str(Path.cwd() / "run")])
        train.train(config, options)
        yield Path(options.out_dir), flags


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of it that does not know that it is finished."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "same",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.removesuffix(b"\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b" ", b"\t \xc2\xa0"),
    ],
    ids=["crlf", "no last newline", "byte order mark", "other white space"],
)
def test_text_that_differs_in_layout_only_is_the_same_text(same, tmp_path):
    texts = {"train": SENTENCE * 3, "valid": SENTENCE, "test": SENTENCE}
    plain = load_corpus(None, write_splits(tmp_path / "plain", **texts), tmp_path)
    other = load_corpus(None, write_splits(tmp_path / "other", **{k: same(v) for k, v in texts.items()}), tmp_path)
    assert other.tokenizer.types == plain.tokenizer.types
    assert all(np.array_equal(other.splits[split], plain.splits[split]) for split in texts)


@pytest.mark.parametrize(
    ("splits", "types"),
    [
        ({"train": SENTENCE.replace(b"\n", b" ") * 20}, 11),
        ({"train": SENTENCE.replace(b"\n", b" ") * 23_300}, 11),
        ({"train": SENTENCE * 9 + b"x" * 1_000_000}, 12),
        ({"train": b" ".join(b"w%d" % i for i in range(200_000))}, 200_002),
        ({"valid": b"all of this is unheard of\n" * 9}, 11),
        ({"train": b"\n" * 50 + SENTENCE * 5}, 11),
    ],
    ids=["one line", "a million characters", "a word of a million", "200,000 types", "unknown words", "blank lines"],
)
def test_an_unusual_text_is_trained_on(splits, types, ending, tmp_path):
    folder, run = write_splits(tmp_path / "own", **splits), tmp_path / "run"
    assert ending(train, "--data", folder, *SHORT, "--eval-train-tokens=100", "--out-dir", run)[0] == 0
    result = json.loads((run / "result.json").read_text())
    assert 1 < result["valid_ppl"] < 3 * types
    assert load_checkpoint(run / "ckpt" / "best.pt")["vocab_size"] == types


@pytest.mark.parametrize(
    ("split", "content", "reason"),
    [
        ("valid", bytes(range(256)), "valid.txt: not UTF-8"),
        ("train", SENTENCE.decode().encode("utf-16"), "train.txt: not UTF-8"),
        ("test", SENTENCE + b"\0", "test.txt: not UTF-8 text: a NUL at byte 43"),
        ("test", b"", "test.txt: empty"),
        ("train", b"a b c\n", "train: 4 tokens are too few for --batch-size 4"),
        ("valid", b"a\n", "valid: 2 tokens are too few for --eval-batch-size 2"),
        ("test", os.mkdir, "test.txt: cannot be read: not a regular file"),
        ("test", lambda path: os.symlink(path, path), "test.txt: cannot be read: Too many levels of symbolic links"),
        ("test", lambda path: os.symlink("/proc/self/mem", path), "test.txt: cannot be read: Input/output error"),
    ],
    ids=["bytes", "utf-16", "nul", "empty", "short for the batch", "short valid", "folder", "loop", "unreadable"],
)  # fmt: skip
def test_an_unusable_text_exits_with_3_and_names_file_and_reason(split, content, reason, ending, tmp_path):
    folder = write_splits(tmp_path / "own")
    if callable(content):
        (folder / f"{split}.txt").unlink()
        content(folder / f"{split}.txt")
    else:
        (folder / f"{split}.txt").write_bytes(content)
    code, error = ending(train, "--data", folder, *SHORT, "--out-dir", tmp_path / "run")
    assert (code, reason in error, str(folder) in error) == (3, True, True), error
    assert not (tmp_path / "run").exists()


class Evil:
    """Unpickled, it would create a folder."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


def rewritten(change):
    """Damage that is written with a right checksum."""

    def damage(path):
        state = load_checkpoint(path)
        save_checkpoint(path, change(state) or state)

    return damage


def one_row_more(state):
    for name in ("encoder.weight", "decoder.weight"):
        state["model"][name] = torch.cat([state["model"][name], torch.zeros(1, 8)])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


UNREADABLE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "flipped bit": flipped,
    "empty": lambda path: os.truncate(path, 0),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "text": lambda path: path.write_text("no checkpoint\n"),
    "code": rewritten(lambda state: state | {"progress": Evil()}),
    "bare pickle of code": lambda path: path.write_bytes(pickle.dumps({"format": 1, "model": Evil()})),
    "a list": lambda path: torch.save([1], path),
    "newer": lambda path: torch.save({"format": 2}, path),
}
UNFITTING = {
    "nothing in it": rewritten(lambda state: {"format": 1}),
    "no model": rewritten(lambda state: state.pop("model") and None),
    "another kind of model": rewritten(lambda state: state | {"model": 3}),
    "another size": rewritten(lambda state: state["model"].update({"decoder.bias": torch.zeros(3)})),
    "another vocabulary": rewritten(one_row_more),
    "a weight that is no number": rewritten(lambda state: state["model"]["decoder.bias"][:1].fill_(math.nan) and None),
    "another text": rewritten(lambda state: state["corpus_sha256"].update(train="0")),
    "another kind of configuration": rewritten(lambda state: state | {"config": [1]}),
}


@pytest.mark.parametrize("damage", [*UNREADABLE.values(), *UNFITTING.values()], ids=[*UNREADABLE, *UNFITTING])
def test_an_unusable_checkpoint_exits_with_5_whoever_reads_it_and_runs_no_code(damage, run_dir, finished, ending):
    before = {path: path.read_bytes() for path in run_dir.glob("*.json*")}
    for name in ("last", "best"):
        damage(run_dir / "ckpt" / f"{name}.pt")
    for module, *arguments in [
        (train, *finished[1], "--resume", run_dir / "ckpt" / "last.pt"),
        (train, "--finetune", run_dir, "--out-dir", run_dir.parent / "tuned"),
        (evaluate, run_dir),
        (generate, run_dir, "--tokens=2"),
    ]:
        if module is generate and damage is UNFITTING["another text"]:
            continue  # it reads no text
        code, error = ending(module, *arguments)
        assert (code, "Traceback" in error, "weights_only" in error) == (5, False, False), error
        assert any(name in error for name in (str(run_dir), "--resume: ", "--finetune: ")), error
        remedies = ("put a good copy in its place", "train again", "update it", "best.pt: cannot be read")
        assert any(words in error for words in (*remedies, "last.pt: cannot be read", "another text")), error
    assert before == {path: path.read_bytes() for path in run_dir.glob("*.json*")}
    assert not os.path.exists("owned")


@pytest.mark.parametrize(
    ("module", "arguments", "code", "hint"),
    [
        (train, ["--alhpa=2"], 2, "did you mean --alpha?"),
        (sweep, ["mine"], 2, "did you mean results/mine?"),
        (evaluate, ["nowhere"], 5, "nowhere: no such run directory"),
        (evaluate, ["run/ckpt/best.pt"], 5, "give the run directory"),
        (evaluate, ["begun"], 5, "no epoch of this run has ended yet"),
        (evaluate, ["run", "--cache-theta=0.3", "--adapt", "dynamic"], 2, "is for --adapt cache"),
        (evaluate, ["run", "--dynamic-lr=0.3"], 2, "is for --adapt dynamic"),
        (evaluate, ["run", "--tune"], 2, "is for --adapt"),
        (evaluate, ["run", "--adapt=cache", "--tune", "--cache-lambda=0.3"], 2, "--cache-lambda: leave it out with"),
        (evaluate, ["run", "--adapt-fast"], 2, "--adapt-fast: is for --adapt"),
        (
            evaluate,
            ["run", "--adapt=dynamic", "--dynamic-rule=sgd", "--dynamic-epsilon=1"],
            2,
            "is for --dynamic-rule rms",
        ),
        (evaluate, ["run", "--adapt=dynamic", "--dynamic-epsilon=0"], 2, "--dynamic-epsilon: must be above 0"),
        (evaluate, ["run", "--adapt=dynamic", "--dynamic-lr=1e38", "--json"], 4, "--dynamic-lr"),
        (evaluate, ["run", "--adapt=dynamic+cache", "--dynamic-lr=1e38", "--json"], 4, "--dynamic-lr"),
        (train, ["--data=own", "--dataset=../own"], 2, "--dataset '../own' is not the name of a corpus"),
        (sweep, ["--dataset=ptb", "--seed", "1", "1", "--out=new"], 2, "--seed: must be different integers"),
        (sweep, ["--dataset=ptb", "--dropout=2", "--out=new"], 2, "--out new: --dropout"),
    ],
)
def test_a_slip_is_answered_with_what_was_likely_meant(module, arguments, code, hint, run_dir, tmp_path, ending):
    (tmp_path / "begun").mkdir()
    shutil.copy(run_dir / "config.json", tmp_path / "begun")
    (tmp_path / "results/mine").mkdir(parents=True)
    (tmp_path / "results/mine/study.toml").touch()
    found, text = ending(module, *arguments)
    assert (found, hint in text) == (code, True), text


@pytest.mark.parametrize("name", ["my corpus", "c++", ".hidden"])
def test_a_folder_may_have_any_name(name, ending, tmp_path):
    write_splits(tmp_path / name)
    assert ending(train, "--data", name, *SHORT, "--out-dir=run")[0] == 0
    assert ending(evaluate, "run", "--split=valid")[0] == 0


@pytest.mark.parametrize("place", ["own", "own/train.txt/best.pt", "/proc/best.pt"])
def test_a_copy_that_cannot_be_written_is_told_before_training(place, finished, ending, tmp_path):
    shutil.copytree(Path(finished[0]).parent / "own", tmp_path / "own")
    code, error = ending(train, *finished[1], "--out-dir=new", f"--save={place}")
    assert (code, f"--save: {place}" in error) == (2, True), error
    assert not Path("new").exists()


@pytest.mark.parametrize("damage", [UNREADABLE[name] for name in ("truncated", "flipped bit", "newer", "a list")])
def test_resuming_falls_back_on_the_checkpoint_before_where_that_is_good(damage, run_dir, finished, ending):
    last, resume = run_dir / "ckpt" / "last.pt", [*finished[1], "--resume=auto"]
    weights = load_checkpoint(last)["model"]
    damage(last)
    code, error = ending(train, *resume, "--out-dir", run_dir)
    assert code == 0, error
    assert all(torch.equal(load_checkpoint(last)["model"][name], weights[name]) for name in weights)
    for path in (last, last.with_name("last.prev.pt")):
        path.write_bytes(b"")
    (run_dir / "result.json").unlink()
    code, error = ending(train, *resume, "--out-dir", run_dir)
    assert (code, "last.prev.pt" in error, "delete them" in error) == (5, True, True), error


def test_outputs_that_are_no_numbers_exit_with_4_and_print_no_json(run_dir, ending, capsys):
    """Weights that are finite each, and too large together."""
    for path in run_dir.glob("ckpt/*.pt"):
        rewritten(lambda state: [weight.fill_(3e38) for weight in state["model"].values()] and None)(path)
    Path("text").write_bytes(SENTENCE)
    for module, *arguments in [
        (evaluate, "--json", "--split=valid"),
        (evaluate, "--activations=x.png"),
        (evaluate, "--adapt=cache", "--split=valid"),
        (generate, "--tokens=3", "--json"),
        (generate, "--tokens=3", "--beam=2"),
        (generate, "--score=text", "--json"),
        (generate, "--score=text", "--independent"),
    ]:
        code, error = ending(module, run_dir, *arguments)
        assert (code, error.count("\n"), "--lr" in error or "-lr" in error) == (4, 1, True), (arguments, error)


DAMAGED_JSON = [b"", b"\xff\xfe", b"{", b"[]", b"[1]", b'"x"', b"{}", b'{"when": 5}', b'{"nhid": null}', b'{"warp": 1}']


@pytest.mark.parametrize("content", DAMAGED_JSON)
def test_a_damaged_file_of_a_run_is_named_or_not_needed(content, run_dir, finished, ending):
    for name in ("config.json", "result.json", "tokenizer.json", "env.json", "metrics.jsonl"):
        (run_dir / name).write_bytes(content)
    assert ending(evaluate, run_dir, "--split=valid")[0] == 0
    code, error = ending(generate, run_dir, "--tokens=2")
    assert (code, "tokenizer.json" in error) == (3, True), error
    if content != b"{}":  # that is the configuration with every value at its default
        code, error = ending(train, "--finetune", run_dir, "--out-dir", run_dir.parent / "tuned")
        assert (code, "--finetune" in error, str(run_dir) in error) == (2, True, True), error
    with pytest.raises(ConfigError, match=r"run/result\.json"):
        compare([str(run_dir), "published"])
    assert ending(train, *finished[1], "--out-dir", run_dir, "--resume=auto")[0] == 0
    repaired, result = (json.loads((run / "result.json").read_text()) for run in (run_dir, finished[0]))
    assert (repaired["test_loss"], repaired["config"]) == (result["test_loss"], result["config"])


HINTS = typing.get_type_hints(TrainConfig) | typing.get_type_hints(RunOptions)
NUMERIC = [
    field.name
    for owner in (TrainConfig, RunOptions)
    for field in dataclasses.fields(owner)
    if HINTS[field.name] in (int, float)
]
# No flag takes these, whatever it means.
NEVER = ["-1", "nan", "inf", "-inf", "1e400", "", "x", "0x10"]
HUGE = {int: [str(2**31), str(2**63), "9" * 24], float: ["1e39", "1e300"]}


@pytest.mark.parametrize("name", NUMERIC)
def test_a_numeric_flag_at_its_edges_is_refused_by_name_or_works(name, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lm.training.writer.git_state", dict)
    flag, common = f"--{name.replace('_', '-')}", [*finished[1], "--no-eval-test"]
    for value in (*NEVER, "9" * 400):
        with pytest.raises(ConfigError, match=rf"{flag}\b"):
            configure([*common, f"{flag}={value}"])
    for value in ("0", "1", str(2**31 - 1), "1e30"):
        code, said = 0, ""
        try:
            config, options = configure([*common, f"--out-dir={value}", f"{flag}={value}"])
            train.train(config, options)
        except LMError as error:
            code, said = error.exit_code, str(error)
        assert code in (0, 2, 3, 4), said
        assert code in (0, 4) or flag in said or (name, value) == ("nlayers", "1"), said
        last = tmp_path / value / "ckpt" / "last.pt"
        if code == 4 and last.exists():
            assert all(weight.isfinite().all() for weight in load_checkpoint(last)["model"].values())


@pytest.mark.parametrize(
    ("module", "usual"),
    [
        (evaluate, ["RUN", "--adapt", "dynamic+cache"]),
        (generate, ["RUN"]),
        (sweep, ["--out=study", "--dry-run"]),
        (bench, []),
    ],
    ids=["evaluate", "generate", "sweep", "bench"],
)
def test_numeric_flags_of_the_other_commands_are_refused_by_name(module, usual, finished, ending, monkeypatch):
    parsers = []
    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", lambda parser, *_: parsers.append(parser) or sys.exit(0))
        ending(module)
    flags = [action.option_strings[0] for action in parsers[0]._actions if action.type in (int, float)]
    assert flags
    usual = [finished[0] if part == "RUN" else part for part in usual]
    kinds = {action.option_strings[0]: action.type for action in parsers[0]._actions if action.option_strings}
    monkeypatch.setattr(bench, "measure", lambda *arguments: pytest.fail("measured"))
    for flag in flags:
        for value in HUGE[kinds[flag]]:
            code, error = ending(module, *usual, f"{flag}={value}")
            assert code in (0, 2, 3, 4), (flag, value, error)
            assert code in (0, 4) or flag.strip("-") in error, (flag, value, error)
        for value in NEVER:
            code, error = ending(module, *usual, f"{flag}={value}")
            assert (code, flag.strip("-") in error) == (2, True), (flag, value, error)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (train, ["--data=caf\udce9"]),
        (train, ["--out-dir", "caf\udce9"]),
        (evaluate, ["caf\udce9"]),
        (generate, ["run", "--score=caf\udce9"]),
        (sweep, ["--data", "caf\udce9", "--alpha", "0", "1", "--out=s"]),
    ],
)
def test_a_name_that_is_no_utf8_is_refused_before_anything_is_made_of_it(module, arguments, ending, tmp_path):
    code, error = ending(module, *arguments)
    assert (code, "caf\\udce9" in error, "not UTF-8" in error) == (2, True, True), error
    assert not os.listdir(tmp_path)


def test_an_image_of_a_disk_is_no_text_and_is_not_read_to_its_end(ending, tmp_path):
    folder = write_splits(tmp_path / "own")
    os.truncate(folder / "valid.txt", 1 << 42)  # sparse: it takes no room, and no memory has that much
    code, error = ending(corpus, "--data", folder)
    assert (code, "valid.txt: not UTF-8 text: a NUL at byte 215" in error) == (3, True), error


def test_messages_of_this_program_are_shown_and_no_others(environment):
    program = """
import logging
from lm.base.errors import run_cli
levels = {10: " detail", 20: " message", 30: " warning"}
names = ("lm.corpus", "httpx")
run_cli(lambda: [logging.getLogger(n).log(i, n + levels[i]) for n in names for i in levels])
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "lm.corpus message\nlm.corpus warning\nhttpx warning\n"


def test_a_model_too_large_for_the_memory_is_one_message(finished, ending, tmp_path):
    code, error = ending(train, *finished[1], f"--nhid={2**20}", "--out-dir", tmp_path / "run")
    assert (code, "--nhid" in error) == (2, True), error


@pytest.mark.parametrize("stopped", [False, True], ids=["saved", "stopped by a signal"])
def test_an_update_that_ruins_the_weights_exits_with_4_and_keeps_the_last_good_checkpoint(
    stopped, finished, ending, tmp_path, monkeypatch
):
    real = train.update

    def second_ruins(run, window):
        if run.progress.step == 1:
            run.optimizer.param_groups[0]["weight_decay"] = 1e39
        real(run, window)
        if stopped and run.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "update", second_ruins)
    flags = [*finished[1], "--alpha=0", "--beta=0", "--max-steps=3", "--save-every=1"]
    code, error = ending(train, *flags, "--out-dir", tmp_path)
    assert (code, "--lr" in error) == (4, True), error
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"
    last = load_checkpoint(tmp_path / "ckpt" / "last.pt")
    assert last["progress"]["step"] == 1
    assert all(weight.isfinite().all() for weight in last["model"].values())


STRANGE = [None, -1, math.nan, 10**400, "x", [1], {"a": 1}]
KEYS = [(key,) for key in records_of(LOSSES)[0]] + [("config", "alpha"), ("config", "seed"), ("git", "commit")]


@pytest.mark.parametrize("key", KEYS, ids=" ".join)
def test_a_strange_value_in_a_ledger_or_result_is_shown_or_named(key, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.tables.page.draw_plots", lambda *arguments: [])
    for number, value in enumerate(STRANGE):
        records = records_of(LOSSES)
        for record in (records[0], records[-1]):
            for part in key[:-1]:
                record = record[part]
            record[key[-1]] = value
        study, run = write_study(tmp_path / f"study{number}", []), tmp_path / f"run{number}"
        run.mkdir()
        study.joinpath("runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        run.joinpath("result.json").write_text(json.dumps(records[0]))
        for show in (
            lambda study=study: report_text(report(str(study))),
            lambda study=study: compare_text(compare([str(study), "published"])),
            lambda run=run: compare_text(compare([str(run), "published"])),
            lambda study=study: Settled(load_study(study).ledger),
        ):
            said = ""
            try:
                show()
            except ConfigError as error:
                said = str(error)
            assert not said or str(tmp_path) in said
