"""An export as ONNX, run by onnxruntime."""

import json
import re
import sys

import numpy as np
import pytest
import torch

import lm.evaluate
from lm.base.errors import ConfigError
from lm.base.rundir import RunDir
from lm.scoring.evaluation import evaluate
from lm.scoring.export import export_run
from lm.scoring.trained import load
from tests.conftest import TINY

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def session_of(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx")


def run(session, ids_TB, state):
    """Logits and the state after them, which is that before where `state` is None."""
    inputs = session.get_inputs()[1:]
    if state is None:
        state = [np.zeros((ids_TB.shape[1], one.shape[1]), np.float32) for one in inputs]
    feed = {one.name: tensor for one, tensor in zip(inputs, state, strict=True)}
    logits, *after = session.run(None, {"ids": ids_TB.numpy()} | feed)
    return torch.from_numpy(logits), after


def check_against_pytorch(session, model, vocabulary):
    """Logits and states of two windows, the second after the first, in batches and lengths of all kinds."""
    for time, batch in ((1, 1), (9, 1), (6, 5)):
        ids_TB = torch.randint(vocabulary, (2, time, batch))
        theirs, ours = None, model.initial_state(batch)
        for window in ids_TB:
            with torch.no_grad():
                output = model(window, ours)
            ours = output.state
            logits, theirs = run(session, window, theirs)
            torch.testing.assert_close(logits, model.decoder(output.after_dropout[-1]).detach(), rtol=1e-4, atol=1e-5)
            for found, expected in zip(theirs, [tensor for layer in ours for tensor in layer], strict=True):
                torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def exported(cli, tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "export"
    done = cli("evaluate", tiny_run, "--export", folder, "--format=onnx")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}\n", "")
    return folder


def test_the_graph_gives_the_logits_and_states_of_the_model_and_the_loss_of_evaluation(exported, tiny_run, corpus_dir):
    trained = load(tiny_run)
    session = session_of(exported)
    check_against_pytorch(session, trained.model, trained.tokenizer.vocab_size)
    ids = trained.tokenizer.encode((corpus_dir / "test.txt").read_text())
    logits, _ = run(session, torch.from_numpy(ids[:-1]).long().unsqueeze(1), None)
    loss = torch.nn.functional.cross_entropy(logits[:, 0], torch.from_numpy(ids[1:]).long()).item()
    assert loss == pytest.approx(evaluate(trained.model, ids, 1).loss, abs=1e-5)


@pytest.mark.parametrize("cell", ["GRU", "RNN_TANH", "RNN_RELU"])
def test_other_cells_and_an_untied_decoder_have_their_graphs(train_here, cell, small_dir, tmp_path):
    flags = [f"--model={cell}", "--no-tied", "--no-tensorboard", "--max-steps=3", "--eval-train-tokens=50"]
    train_here("--data", small_dir, *TINY, *flags, "--out-dir", tmp_path / "run")
    export_run(RunDir(tmp_path / "run"), RunDir(tmp_path / "export"), "onnx")
    model = load(tmp_path / "run").model
    check_against_pytorch(session_of(tmp_path / "export"), model, model.encoder.num_embeddings)


@pytest.mark.parametrize("layout", ["onnx", "transformers"])
@pytest.mark.parametrize("model", [["--model", "QRNN"], ["--cutoffs", "10", "25"]], ids="".join)
def test_a_cell_or_decoder_that_other_programs_lack_is_refused(train_here, layout, model, small_dir, tmp_path):
    flags = ["--no-tensorboard", "--max-steps=1", "--eval-train-tokens=50", "--no-eval-test", *model]
    train_here("--data", small_dir, *TINY, *flags, "--out-dir", tmp_path / "run")
    with pytest.raises(ConfigError, match=f"--format {layout}: not for {model[0]} .*; leave --format out"):
        export_run(RunDir(tmp_path / "run"), RunDir(tmp_path / "export"), layout)
    assert not (tmp_path / "export").exists()


def test_a_tied_matrix_is_stored_once_and_the_graph_carries_the_facts_of_its_run(exported, tiny_run):
    graph = onnx.load(exported / "model.onnx")
    stored = [tensor.dims for tensor in graph.graph.initializer]
    assert [list(dims) for dims in stored if 42 in dims and len(dims) == 2] == [[42, 8]]
    facts = session_of(exported).get_modelmeta().custom_metadata_map
    assert json.loads(facts["config"]) == json.loads((tiny_run / "config.json").read_text())
    result = json.loads((tiny_run / "result.json").read_text())
    assert json.loads(facts["trained_on"])["corpus_sha256"] == result["corpus_sha256"]


def test_the_code_of_the_card_runs(exported, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    assert not re.search(r"\blm\b", code)
    monkeypatch.chdir(exported)
    exec(code, {})
    assert len(eval(capsys.readouterr().out)) == 5


def test_it_is_written_again_but_not_over_what_others_stored(main_here, tiny_run, exported, tmp_path):
    assert main_here(lm.evaluate, tiny_run, "--export", exported, "--format=onnx") == f"{exported}\n"
    with pytest.raises(ConfigError, match="no export of this program for pytorch"):
        main_here(lm.evaluate, tiny_run, "--export", exported)
    for content in (b"", b"no graph", onnx.ModelProto(producer_name="another").SerializeToString()):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ConfigError, match="no export of this program for onnx"):
            main_here(lm.evaluate, tiny_run, "--export", tmp_path, "--format=onnx")
        assert (tmp_path / "model.onnx").read_bytes() == content


def test_without_the_package_the_message_says_what_to_install(main_here, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"--format onnx: .*requirements-export\.txt"):
        main_here(lm.evaluate, tiny_run, "--export", tmp_path / "export", "--format=onnx")
    assert not (tmp_path / "export").exists()
