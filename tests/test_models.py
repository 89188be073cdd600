"""The models that come with the repository: small, whole, and as good as their cards say."""

import json
import re
from pathlib import Path

import pytest
import torch

import lm.generate
from lm.base.errors import CheckpointError, CorpusError
from lm.base.files import ROOT
from lm.base.rundir import RunDir
from lm.scoring.evaluation import evaluate
from lm.scoring.loading import load_run

MODELS = sorted(path.parent for path in (ROOT / "models").glob("*/config.json"))


def ledger_line(model: Path) -> dict:
    """The record of the run that made a model, in the study of its name; the command that made it has its id."""
    records = map(json.loads, (ROOT / "results" / model.name / "runs.jsonl").read_text().splitlines())
    (record,) = [one for one in records if one["id"] in (ROOT / "models/README.md").read_text()]
    return record


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_model_is_small_and_its_card_has_the_figures_of_its_ledger(model):
    assert (model / "model.safetensors").stat().st_size < 8e6
    card, record = (model / "README.md").read_text(), ledger_line(model)
    row = re.search(r"^\| perplexity \|(.*)\|$", card, re.M)[1]
    assert [float(cell) for cell in row.split("|")] == [
        round(record[f"{split}_ppl"], 2) for split in ("train", "valid", "test")
    ]
    assert not re.search(r"/(home|root|tmp|work)\b", card)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_rounding_to_bf16_costs_nothing_that_the_card_would_show(model):
    try:
        trained, config, corpus = load_run(RunDir(model), torch.device("cpu"))
    except (CheckpointError, CorpusError):
        pytest.skip("its text is not here; another version of Python has another pydocs")
    loss = evaluate(trained, corpus.splits["valid"], config.eval_batch_size).loss
    assert loss == pytest.approx(ledger_line(model)["valid_loss"], abs=2e-3)


def test_a_model_writes_and_scores_without_any_training(main_here, tmp_path):
    (tmp_path / "lines.txt").write_text("the function returns a list\nlist a returns function the\n")
    model = ROOT / "models" / "pydocs-small"
    assert main_here(lm.generate, model, "--prompt", "the function", "--tokens", 5).startswith("the function")
    rows = main_here(lm.generate, model, "--score", tmp_path / "lines.txt", "--independent").splitlines()
    likely, unlikely = (float(row.split("\t")[1]) for row in rows[1:3])
    assert likely > unlikely + 5
