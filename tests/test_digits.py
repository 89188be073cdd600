"""The digits experiments of examples/digits: what they promise, at tiny sizes."""

import json

import pytest
import torch

from examples.digits import autoencoder, classifier
from examples.digits.claims import best_l1, gain, verdicts
from examples.digits.data import load_parts, read_records
from examples.digits.page import write_page
from lm.tables.stats import Difference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both experiments with one update a run."""
    folder = tmp_path_factory.mktemp("digits")
    classifier.main(folder, tuning_seeds=(1,), test_seeds=(11, 12), updates=1)
    autoencoder.main(folder, seeds=(1,), updates=1)
    return folder


def test_no_seed_trains_or_chooses_on_test():
    first, second = load_parts(1, 300), load_parts(2, 300)
    assert len(first["test"].labels) == 497
    assert torch.equal(first["test"].labels, second["test"].labels)
    raw = [load_parts(seed, 300, "raw") for seed in (1, 2)]
    assert torch.equal(raw[0]["test"].images, raw[1]["test"].images)
    held_out = {tuple(image.tolist()) for image in raw[0]["test"].images}
    for parts in raw:
        for name in ("train", "valid"):
            assert not held_out & {tuple(image.tolist()) for image in parts[name].images}


def test_standardised_pixels_of_train_have_mean_0_and_deviation_1_or_0():
    images = load_parts(1, 1000)["train"].images
    assert images.mean(0).abs().max() < 1e-5
    deviation = images.std(0, correction=0)
    assert ((deviation - 1).abs().lt(1e-4) | deviation.eq(0)).all()


def test_l1_makes_a_relu_code_sparser_and_a_tanh_code_has_no_exact_zeros():
    parts = load_parts(1, 300)
    zeros = {}
    for activation, l1 in (("relu", 0.0), ("relu", 0.03), ("tanh", 0.03)):
        model = autoencoder.train(parts["train"].images, 64, activation, l1, 1, updates=50)
        zeros[activation, l1] = autoencoder.measure(model, parts)["zeros"]
    assert zeros["relu", 0.03] > zeros["relu", 0.0] + 0.1
    assert zeros["tanh", 0.03] == 0


def test_every_autoencoder_that_was_asked_for_has_a_line_after_one_that_says_how_it_was_run(folder):
    head, *runs = read_records(folder, "autoencoder")
    assert head["command"] == "python -m examples.digits.autoencoder"
    assert head["versions"]["torch"] == torch.__version__
    settings = {(r["inputs"], r["activation"], r["code"], r["l1"], r["seed"]) for r in runs}
    assert len(settings) == len(runs) == 2 * 2 * 3 * 5
    assert {r["l1"] for r in runs} == {0, 1e-4, 1e-3, 1e-2, 1e-1}


def test_strengths_are_chosen_on_valid_and_only_the_chosen_ones_are_scored_on_test(folder):
    _, *runs = read_records(folder, "classifier")
    tuned, tested = ([r for r in runs if r["split"] == split] for split in ("valid", "test"))
    assert {r["seed"] for r in tuned}.isdisjoint({r["seed"] for r in tested})
    assert len(tested) == 8 * 2
    l1_alone = [r for r in tuned if not (r["l2"] or r["weight_decay"] or r["dropout"])]
    coarse = max((1e-4, 1e-3, 1e-2, 1e-1), key=lambda l1: score(l1_alone, l1))
    tried = {r["l1"] for r in l1_alone}
    assert tried == {0, 1e-4, 1e-3, 1e-2, 1e-1} | {float(f"{coarse * f:.3g}") for f in (0.2, 0.5, 2, 5)}
    best = max(sorted(tried), key=lambda l1: score(l1_alone, l1))
    assert {r["l1"] for r in tested if r["method"] == "L1"} == {best}


def score(runs, l1):
    (run,) = (r for r in runs if r["l1"] == l1)
    return run["accuracy"], -run["nats"]


def test_an_experiment_replaces_its_own_lines_alone(folder):
    before = (folder / "runs.jsonl").read_text()
    assert [json.loads(line)["experiment"] for line in before.splitlines()] == ["autoencoder"] * 61 + [
        "classifier"
    ] * len(read_records(folder, "classifier"))


def test_page_and_pictures_are_written_and_the_page_repeats_itself(folder):
    page = (folder / "README.md").read_text()
    write_page(folder)
    assert (folder / "README.md").read_text() == page
    for name in ("features.png", "autoencoders.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in page
    for text in ("| L1 helps next to dropout |", "`python -m examples.digits.classifier`", "| weight decay + L1 |"):
        assert text in page


def test_gains_are_paired_by_seed():
    ours = [{"seed": s, "accuracy": 0.9 + 0.01 * s} for s in (1, 2, 3)]
    theirs = [{"seed": s, "accuracy": 0.89 + 0.01 * s + 0.001 * (s == 2)} for s in (3, 2, 1)]
    assert gain(ours, theirs, "accuracy").mean == pytest.approx(100 * (0.01 - 0.001 / 3))


def test_a_verdict_goes_by_the_p_that_is_adjusted_for_all_claims():
    gained, lost, unclear = (Difference(mean, 3, p=p) for mean, p in ((1.0, 0.01), (-1.0, 0.001), (1.0, 0.03)))
    assert verdicts(gained, lost) == ["holds", "does not hold"]
    assert verdicts(unclear) == ["holds"]
    assert verdicts(unclear, Difference(0.1, 3, p=0.9)) == ["not shown (p = 0.060)", "not shown (p = 0.900)"]
    assert verdicts(Difference(1.0, 1)) == ["not shown: too few seeds"]


def test_the_best_strength_is_chosen_on_valid_not_on_test():
    runs = [{"l1": l1, "probe_valid": v, "probe_test": 1 - v} for l1, v in ((0, 0.9), (0.1, 0.7), (0.2, 0.8), (1, 0.8))]
    assert best_l1(runs) == 0.2
