"""QRNN models through the commands, and their state through checkpoints."""

import json

import pytest
import torch

import lm
import lm.evaluate
import lm.generate
import lm.train
from lm.bench import random_run
from lm.config.values import make_config
from lm.training.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import TINY


def test_a_checkpoint_in_the_middle_of_an_epoch_continues_to_the_same_bits(tmp_path):
    config = make_config(model="QRNN", zoneout=0.1, emsize=8, nhid=12, nlayers=2, batch_size=4, bptt=7)
    run, resumed = random_run(config, 30), random_run(config, 30)

    def updates(one):
        for _ in range(3):
            lm.train.update(one, next(one.windows))

    updates(run)
    assert all(part.any() for layer in run.hidden for part in layer)  # the last input of the first layer among them
    save_checkpoint(tmp_path / "last.pt", run.state_dict(0))
    resumed.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
    found = []
    for one in (run, resumed):
        torch.set_rng_state(load_checkpoint(tmp_path / "last.pt")["rng"]["cpu"])
        updates(one)
        found.append([*one.model.state_dict().values(), *(part for layer in one.hidden for part in layer)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_every_command_works_with_a_qrnn(train_here, main_here, small_dir, tmp_path):
    run, export = tmp_path / "run", tmp_path / "export"
    flags = ("--no-tensorboard", "--max-steps=8", "--eval-train-tokens=100")
    result = train_here("--data", small_dir, *TINY, "--model=QRNN", "--zoneout=0.1", *flags, "--out-dir", run)
    assert result["activation"]["rms"] > 0
    rows = json.loads(main_here(lm.evaluate, run, "--split", "test", "--adapt", "none", "cache", "dynamic", "--json"))
    losses = [row["loss"] for row in rows["splits"]]
    assert losses[0] == pytest.approx(result["test_loss"], rel=1e-6) and len(set(losses)) == 3
    main_here(lm.evaluate, run, "--export", export)
    generated = [main_here(lm.generate, place, "--prompt", "w1 w2", "--tokens", 9) for place in (run, export)]
    assert generated[0] == generated[1] and generated[0].startswith("w1 w2")
    trained = lm.load(export)
    assert trained.perplexity((small_dir / "test.txt").read_text()) == pytest.approx(result["test_ppl"], rel=0.05)
    tuned = train_here("--finetune", run, "--no-tensorboard", "--max-steps=3", "--out-dir", tmp_path / "tuned")
    assert tuned["config"]["model"] == "QRNN" and tuned["valid_loss"] <= result["valid_loss"]
