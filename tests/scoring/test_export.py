"""Exports: used by plain PyTorch as their card says, read back as runs are, and never half written."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lm.evaluate
import lm.generate
from lm.base.errors import CheckpointError, ConfigError, CorpusError
from lm.base.rundir import RunDir
from lm.scoring.export import export_run
from lm.scoring.loading import load_trained
from lm.scoring.model_card import _command
from lm.text.words import WordTokenizer
from lm.training.checkpoint import load_checkpoint
from tests.conftest import TINY

FLAGS = ["--no-tensorboard", "--max-steps=3"]


@pytest.fixture
def exported(tiny_run, tmp_path):
    export_run(RunDir(tiny_run), RunDir(tmp_path / "export"))
    return tmp_path / "export"


def card_code(directory):
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.S)
    assert not re.search(r"\blm\b", code)
    return code


def plain_perplexity(directory, text, columns, monkeypatch):
    """Perplexity of a text, computed by nothing but what the card shows."""
    monkeypatch.chdir(directory)
    shown = {}
    exec(card_code(directory), shown)
    ids = torch.tensor(shown["tokenizer"].encode(" ".join(f"{line} <eos>" for line in text.splitlines())).ids)
    data = ids[: len(ids) // columns * columns].view(columns, -1).t()
    return nn.functional.cross_entropy(shown["logits"](data[:-1]).flatten(0, 1), data[1:].flatten()).exp().item()


def test_the_code_of_the_card_gives_the_perplexities_of_the_card(
    main_here, tiny_run, corpus_dir, tmp_path, monkeypatch, capsys
):
    directory = tmp_path / "new" / "export"
    assert main_here(lm.evaluate, tiny_run, "--export", directory) == f"{directory}\n"
    assert sorted(os.listdir(directory)) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    card = (directory / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| perplexity"))
    result = json.loads((tiny_run / "result.json").read_text())
    assert row.split("|")[2:5] == [f" {result[f'{split}_ppl']:.2f} " for split in ("train", "valid", "test")]
    for split, columns in (("valid", 2), ("test", 1)):
        found = plain_perplexity(directory, (corpus_dir / f"{split}.txt").read_text(), columns, monkeypatch)
        assert found == pytest.approx(result[f"{split}_ppl"], rel=1e-4)
        assert len(eval(capsys.readouterr().out)) == 5  # the likeliest words
    facts = [f"{result['activation']['rms']:.4f}", "seed 1111", result["git"]["commit"] or "unknown", "--epochs=2"]
    facts += [*result["corpus_sha256"].values(), result["versions"]["torch"], f"--data {corpus_dir}"]
    assert [fact for fact in facts if fact not in card] == []


def test_the_card_says_how_to_train_the_model_again_wherever_its_run_lay(exported, tiny_run):
    (command,) = re.findall(r"command: `(.*)`", (exported / "README.md").read_text())
    assert command.startswith("python -m lm.train --data")
    assert "--epochs" in command
    assert str(tiny_run) not in command
    assert _command(["--lr=1", "--save", "x", "--out_dir=y", "--resume", "auto", "--clip", "2"]) == (
        "python -m lm.train --lr=1 --clip 2"
    )


def test_bf16_halves_the_file_and_leaves_the_model_that_rounded_weights_make(
    main_here, tiny_run, corpus_dir, tmp_path, monkeypatch, capsys
):
    half, whole = tmp_path / "half", tmp_path / "whole"
    main_here(lm.evaluate, tiny_run, "--export", half, "--bf16")
    main_here(lm.evaluate, tiny_run, "--export", whole)
    small, large = ((place / "model.safetensors").stat().st_size for place in (half, whole))
    tensors = sum(tensor.nbytes for tensor in load_file(whole / "model.safetensors").values())
    assert large - small == pytest.approx(tensors / 2, abs=64)
    rounded, exact = (load_trained(RunDir(place))["model"] for place in (half, whole))
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.bfloat16().float())
    assert "rounded to bfloat16" in (half / "README.md").read_text()
    text = (corpus_dir / "valid.txt").read_text()
    found = json.loads(main_here(lm.evaluate, half, "--columns", 2, "--split", "valid", "--data", corpus_dir, "--json"))
    assert plain_perplexity(half, text, 2, monkeypatch) == pytest.approx(found["splits"][0]["ppl"], rel=1e-5)
    with pytest.raises(ConfigError, match="--bf16"):
        main_here(lm.evaluate, tiny_run, "--export", half, "--bf16", "--format", "onnx")


@pytest.mark.parametrize("cell", ["GRU", "RNN_TANH", "RNN_RELU", "QRNN", "QRNN --zoneout=0.2"])
def test_the_code_of_the_card_fits_other_cells_and_an_untied_decoder(
    train_here, cell, corpus_dir, tmp_path, monkeypatch
):
    flags = ["--model", *cell.split(), "--no-tied", "--eval-train-tokens=100", *FLAGS]
    result = train_here("--data", corpus_dir, *TINY, *flags, "--out-dir", tmp_path / "run")
    export_run(RunDir(tmp_path / "run"), RunDir(tmp_path / "export"))
    found = plain_perplexity(tmp_path / "export", (corpus_dir / "test.txt").read_text(), 1, monkeypatch)
    assert found == pytest.approx(result["test_ppl"], rel=1e-4)
    assert "train, first 100 tokens" in (tmp_path / "export" / "README.md").read_text()


def test_evaluation_and_generation_are_those_of_the_run(main_here, tiny_run, exported):
    ours, theirs = (json.loads(main_here(lm.evaluate, path, "--json"))["splits"] for path in (exported, tiny_run))
    assert [(row["loss"], row["activation"]) for row in ours] == [(row["loss"], row["activation"]) for row in theirs]
    command = ("--prompt", "w1 w2", "--tokens", 20)
    assert main_here(lm.generate, exported, *command) == main_here(lm.generate, tiny_run, *command)


def test_generation_needs_no_corpus_and_evaluation_says_that_it_does(main_here, exported):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"data": "/nowhere"}))
    assert "w1 w2" in main_here(lm.generate, exported, "--prompt", "w1 w2", "--tokens", 3)
    with pytest.raises(CorpusError, match="/elsewhere"):
        main_here(lm.evaluate, exported, "--data=/elsewhere")


def test_the_tokenizer_of_another_model_is_refused(main_here, exported):
    WordTokenizer.from_text("a b c\n").save(exported / "tokenizer.json")
    with pytest.raises(CheckpointError, match="tokenizer.json: not as it was exported"):
        main_here(lm.generate, exported)


def test_a_tokenizer_of_the_same_size_but_other_words_is_refused_as_well(main_here, exported):
    file = exported / "tokenizer.json"
    words = list(WordTokenizer.load(file).vocab)
    WordTokenizer([*words[:-2], words[-1], words[-2]]).save(file)
    with pytest.raises(CheckpointError, match="tokenizer.json: not as it was exported"):
        main_here(lm.generate, exported)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lr=1", "--ar-norm=l1", "--ar-layers=all"], "Fine-tuned with AR 8 (l1) and TAR 0, over all layers"),
        (["--lr=1e-30"], "The weights are those of SOURCE, which fine-tuning did not improve."),
    ],
)
def test_the_card_of_a_fine_tuned_run_says_what_made_its_weights(flags, says, train_here, tiny_run, tmp_path):
    run, export = tmp_path / "run", tmp_path / "export"
    train_here(
        "--finetune", tiny_run, "--alpha=8", "--beta=0", "--epochs=1", *flags, "--no-tensorboard", "--out-dir", run
    )
    export_run(RunDir(run), RunDir(export))
    card = (export / "README.md").read_text()
    assert says.replace("SOURCE", str(tiny_run)) in card
    assert f"completed, fine-tuned from {tiny_run}, seed 1111, " in card


@pytest.mark.parametrize("name", ["result.json", "env.json"])
def test_a_run_whose_records_are_damaged_is_not_exported(name, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(CheckpointError, match="run: does not fit"):
        export_run(RunDir(tmp_path / "run"), RunDir(tmp_path / "export"))


def test_fine_tuning_an_export_is_fine_tuning_its_run(train_here, tiny_run, exported, tmp_path):
    results = {}
    for name, source in (("run", tiny_run), ("export", exported)):
        tuned = tmp_path / f"of-{name}"
        train_here("--finetune", source, *FLAGS, "--no-eval-test", "--out-dir", tuned)
        results[name] = load_checkpoint(tuned / "ckpt" / "last.pt")["model"]
    assert all(torch.equal(weight, results["run"][name]) for name, weight in results["export"].items())
    with pytest.raises(ConfigError, match="--nhid 12 .now 13"):
        train_here("--finetune", exported, "--nhid=13", "--out-dir", tmp_path / "wider")


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (["--resume=EXPORT"], CheckpointError, "--finetune EXPORT"),
        (["--resume=EXPORT/model.safetensors"], CheckpointError, "--finetune EXPORT"),
        (["--resume=auto", "--out-dir=EXPORT"], CheckpointError, "--finetune EXPORT"),
        (["--out-dir=EXPORT"], ConfigError, "--out-dir: EXPORT holds an export"),
        (["--finetune=EXPORT", "--out-dir=EXPORT"], ConfigError, "--out-dir: EXPORT holds an export"),
    ],
)
def test_training_cannot_go_on_in_an_export_and_says_what_can(train_here, exported, corpus_dir, flags, error, words):
    before = {path: path.read_bytes() for path in exported.iterdir()}
    flags = [flag.replace("EXPORT", str(exported)) for flag in flags]
    with pytest.raises(error, match=words.replace("EXPORT", str(exported))):
        train_here("--data", corpus_dir, *TINY, *flags)
    assert before == {path: path.read_bytes() for path in exported.iterdir()}


def test_every_kind_of_damage_is_one_message(exported):
    path = exported / "model.safetensors"
    intact = path.read_bytes()
    header = 8 + int.from_bytes(intact[:8], "little")
    label = intact.index(b'"format":"pt"')  # says nothing that is read
    flips = {*range(0, header, 11), *range(header, len(intact), 501), len(intact) - 1} - {*range(label, label + 13)}
    damaged = [intact[:i] + bytes([intact[i] ^ 4]) + intact[i + 1 :] for i in flips]
    for content in [b"", b"half", intact[: len(intact) // 2], intact + b"x", *damaged]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"^{exported}/[^\n]*$"):
            load_trained(RunDir(exported))
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not an export of this program"):
        load_trained(RunDir(exported))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: None, "config.json: no such file"),
        (lambda config: "{", "config.json: not readable"),
        (lambda config: "[]", "config.json: not a JSON object"),
        (lambda config: json.dumps(config | {"emsize": 9}), "another model"),
        (lambda config: json.dumps(config | {"nlayers": 3}), "another model"),
        (lambda config: json.dumps(config | {"tied": False}), "another model"),
        (lambda config: json.dumps(config | {"nhid": "x"}), "not the configuration"),
        (lambda config: json.dumps(config | {"colour": 1}), "not the configuration"),
        (lambda config: json.dumps(config | {"test_batch_size": 7}), "not as it was exported"),
    ],
)
def test_a_configuration_that_is_missing_or_of_another_model_is_refused(exported, change, words, main_here):
    path = exported / "config.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed) if changed else path.unlink()
    with pytest.raises(CheckpointError, match=words):
        main_here(lm.evaluate, exported)


def test_a_cell_of_the_same_shapes_is_no_other_way_to_read_the_weights(train_here, corpus_dir, tmp_path):
    flags = ["--data", corpus_dir, *TINY, *FLAGS, "--model=RNN_TANH", "--out-dir", tmp_path / "run"]
    train_here(*flags)
    export_run(RunDir(tmp_path / "run"), RunDir(tmp_path / "export"))
    path = tmp_path / "export" / "config.json"
    written = path.read_text()
    path.write_text(json.dumps(json.loads(written) | {"data": "/elsewhere"}))
    load_trained(RunDir(tmp_path / "export"))
    path.write_text(written.replace("RNN_TANH", "RNN_RELU"))
    with pytest.raises(CheckpointError, match="config.json: not as it was exported"):
        load_trained(RunDir(tmp_path / "export"))


def test_a_tokenizer_that_was_edited_is_refused_and_an_older_export_is_not(exported, monkeypatch):
    path = exported / "tokenizer.json"
    written = path.read_text()
    path.write_text(written.replace("{", "{ ", 1))
    with pytest.raises(CheckpointError, match="tokenizer.json: not as it was exported"):
        load_trained(RunDir(exported))
    path.unlink()
    load_trained(RunDir(exported))


def test_only_an_export_is_overwritten(tiny_run, exported, tmp_path):
    (exported / "notes.txt").write_text("mine")
    (exported / "README.md").write_text("old")
    export_run(RunDir(tiny_run), RunDir(exported))
    assert (exported / "README.md").read_text() != "old"
    assert (exported / "notes.txt").read_text() == "mine"
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("")
    for target in (tiny_run, tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="--export"):
            export_run(RunDir(tiny_run), RunDir(target))
    with pytest.raises(ConfigError, match="is an export already"):
        export_run(RunDir(exported), RunDir(tmp_path / "again"))
    assert before == {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    export_run(RunDir(tiny_run), RunDir(tmp_path / "empty"))


def test_weights_that_another_program_stored_are_not_overwritten(tiny_run, tmp_path):
    (tmp_path / "theirs").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    with pytest.raises(ConfigError, match="no export of this program"):
        export_run(RunDir(tiny_run), RunDir(tmp_path / "theirs"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}


def test_nothing_is_moved_from_another_file_system_and_what_a_killed_export_left_is_no_obstacle(
    tiny_run, tmp_path, monkeypatch
):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "export" / f".lm-scratch-{platform.node()}-abc-{ended.pid}").mkdir(parents=True)
    moved, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append((source, target)), real(source, target)))
    export_run(RunDir(tiny_run), RunDir(tmp_path / "export"))
    assert moved
    assert all(tmp_path / "export" in Path(path).parents for pair in moved for path in pair)
    assert len(os.listdir(tmp_path / "export")) == 4


def test_a_full_disk_leaves_the_old_export(tiny_run, exported, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in exported.iterdir()}
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 5:  # two a file: itself and its folder
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_run(RunDir(tiny_run), RunDir(exported))
    assert before == {path: path.read_bytes() for path in exported.iterdir()}
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("moved", range(4))
def test_killed_while_files_are_replaced_it_leaves_an_export_that_is_refused_and_can_be_written_again(
    tiny_run, exported, moved, tmp_path, monkeypatch
):
    replace = os.replace

    def export_and_be_killed(place):
        moves = []

        def killed(source, target):
            if target.parent == place:
                if len(moves) == moved:
                    raise KeyboardInterrupt
                moves.append(target)
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                export_run(RunDir(tiny_run), RunDir(place))

    export_and_be_killed(exported)
    with pytest.raises(CheckpointError, match="export incomplete"):
        load_trained(RunDir(exported))
    export_and_be_killed(tmp_path / "first")
    for place in (exported, tmp_path / "first"):
        export_run(RunDir(tiny_run), RunDir(place))
        load_trained(RunDir(place))


def test_a_run_without_a_result_or_a_checkpoint_is_not_exported(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "result.json").unlink()
    with pytest.raises(CheckpointError, match="result.json: no such file; the run is not finished"):
        export_run(RunDir(run), RunDir(tmp_path / "export"))
    (run / "ckpt" / "best.pt").unlink()
    with pytest.raises(CheckpointError, match="best.pt"):
        export_run(RunDir(run), RunDir(tmp_path / "export"))
    assert not (tmp_path / "export").exists()
