"""lm.evaluate: exact perplexity against plain PyTorch and against the run's own figures."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from lm.nn.model import AWDLSTM
from lm.scoring.evaluation import evaluate
from tests.nn.test_model import V, tiny


@pytest.fixture
def model():
    return AWDLSTM(V, tiny())


IDS = np.random.default_rng(0).integers(0, V, 203).astype(np.int32)


def whole_text(model, ids, batch_size):
    """Raw outputs and mean loss of all columns in one forward pass."""
    model.eval()
    rows = len(ids) // batch_size
    columns = torch.from_numpy(ids[: rows * batch_size].astype(np.int64)).view(batch_size, rows).t()
    with torch.no_grad():
        output = model(columns[:-1], model.initial_state(batch_size))
        return output.raw[-1], model.loss(output, columns[1:]).item()


@pytest.mark.parametrize("window", [1, 7, 50, 500, None])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_window_length_does_not_change_loss_or_statistics(model, window, batch_size):
    raw, loss = whole_text(model, IDS, batch_size)
    result = evaluate(model, IDS, batch_size, window=window)
    assert result.targets == (203 // batch_size - 1) * batch_size
    assert math.isclose(result.loss, loss, rel_tol=1e-6)
    assert math.isclose(result.perplexity, math.exp(loss), rel_tol=1e-5)
    expected = {
        "rms": raw.square().mean().sqrt(),
        "mean_abs": raw.abs().mean(),
        "frac_small": (raw.abs() < 0.01).float().mean(),
        "frac_zero": (raw == 0).float().mean(),
        "temporal_rms": (raw[1:] - raw[:-1]).square().mean().sqrt(),
    }
    histogram = result.activation.pop("histogram")
    assert result.activation == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)
    assert histogram == pytest.approx((np.histogram(raw, 20, (-1, 1))[0] / raw.numel()).tolist(), abs=1e-6)


def test_a_uniform_model_has_the_vocabulary_size_as_perplexity(model):
    with torch.no_grad():
        model.encoder.weight.zero_()
    assert math.isclose(evaluate(model, IDS, 3).perplexity, V, rel_tol=1e-6)


def test_evaluation_leaves_the_mode_and_the_generator_as_they_were(model):
    model.train()
    before = torch.get_rng_state()
    evaluate(model, IDS, 3)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_best_checkpoint_in_plain_pytorch_gives_the_reported_perplexities(tiny_run, corpus_dir):
    from tokenizers import Tokenizer

    result = json.loads((tiny_run / "result.json").read_text())
    weights = torch.load(tiny_run / "ckpt" / "best.pt", weights_only=True)["model"]
    tokenizer = Tokenizer.from_file(str(tiny_run / "tokenizer.json"))
    for split, columns in (("valid", 2), ("test", 1)):
        lines = (corpus_dir / f"{split}.txt").read_text().splitlines()
        ids = torch.tensor([i for line in lines for i in tokenizer.encode(line + " <eos>").ids])
        data = ids[: len(ids) // columns * columns].view(columns, -1).t()
        x = weights["encoder.weight"][data[:-1]]
        for layer in range(2):
            mine = {k.split(".")[2]: w for k, w in weights.items() if k.startswith(f"rnns.{layer}.")}
            lstm = nn.LSTM(x.shape[2], mine["weight_hh_l0"].shape[1])
            lstm.load_state_dict(mine)
            x = lstm(x)[0]
        logits = x @ weights["decoder.weight"].t() + weights["decoder.bias"]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), data[1:].flatten())
        assert math.isclose(loss.exp().item(), result[f"{split}_ppl"], rel_tol=1e-4)


def test_the_command_line_repeats_the_figures_of_the_run(cli, tiny_run):
    result = json.loads((tiny_run / "result.json").read_text())
    done = cli("evaluate", tiny_run, "--split", "valid", "test", "train", "--json")
    assert done.returncode == 0, done.stderr
    found = {row["split"]: row["ppl"] for row in json.loads(done.stdout)["splits"]}
    expected = {split: result[f"{split}_ppl"] for split in ("train", "valid", "test")}
    assert found == pytest.approx(expected, rel=1e-6)
    assert "perplexity" in cli("evaluate", tiny_run).stdout


def test_a_folder_without_a_run_exits_with_5_and_says_what_is_missing(cli, tmp_path):
    done = cli("evaluate", tmp_path)
    assert done.returncode == 5
    assert "best.pt" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_whose_text_has_changed_is_refused(cli, tiny_run, tmp_path):
    import shutil

    moved = tmp_path / "tiny"
    shutil.copytree(tiny_run, moved)
    state = torch.load(moved / "ckpt" / "best.pt", weights_only=True)
    state["corpus_sha256"]["train"] = "0" * 64
    torch.save(state, moved / "ckpt" / "best.pt")
    done = cli("evaluate", moved)
    assert done.returncode == 5
    assert "another text" in done.stderr


def test_a_model_that_trains_in_bf16_is_evaluated_in_fp32():
    exact, rounded = AWDLSTM(V, tiny()), AWDLSTM(V, tiny(), precision="bf16")
    rounded.load_state_dict(exact.state_dict())
    assert evaluate(exact, IDS, 3).loss == evaluate(rounded, IDS, 3).loss
    assert rounded.precision == rounded.rnns[0].precision == "bf16"
