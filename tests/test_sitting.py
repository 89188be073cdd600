"""What a sitting on a borrowed GPU decides and carries; all of it in tiny sizes: `python -m tests.sitting --tiny`."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.base.files import ROOT
from lm.base.rundir import RunDir
from lm.scoring.export import export_run
from lm.scoring.loading import load_trained
from lm.study.executors import Job
from lm.study.specification import load_study
from tests.parcel import join, pack, split, unpack
from tests.sitting_plan import (
    MARGIN,
    MODES,
    PLAN,
    PTB,
    WT2,
    Task,
    choose_epochs,
    epoch_seconds,
    scoring_seconds,
    tiny_study,
    with_epochs,
)


@given(st.floats(-100, 1e4), st.floats(0.1, 1e3), st.integers(1, 100))
def test_as_many_epochs_are_chosen_as_fit_with_a_margin(seconds, epoch, most):
    epochs = choose_epochs(seconds, epoch, most)
    assert 1 <= epochs <= most
    assert epochs == 1 or epochs * epoch * MARGIN <= seconds
    assert epochs == most or (epochs + 1) * epoch * MARGIN > seconds


def test_an_epoch_is_measured_without_the_first_and_estimated_from_the_speed_where_none_has_ended():
    steps = [{"kind": "step", "tokens_per_s": speed} for speed in (10, 50, 40)]
    ends = [{"kind": "epoch", "seconds": seconds} for seconds in (9.0, 13.0, 17.0)]
    assert epoch_seconds([*steps, *ends], 100) == 4.0
    assert epoch_seconds([*steps, ends[0]], 100) == 9.0
    assert epoch_seconds(steps, 100) == 2.0
    with pytest.raises(ValueError, match="too short"):
        epoch_seconds([], 100)


def test_scoring_takes_seconds_on_ptb_and_a_minute_on_wikitext_2():
    assert sum(scoring_seconds(929_589, 73_760, 82_430)) == pytest.approx(44, abs=1)
    assert sum(scoring_seconds(2_088_628, 217_646, 245_569)) == pytest.approx(98, abs=1)


@pytest.mark.parametrize("study", [PTB, WT2])
def test_the_plan_is_every_run_of_the_studies_once_the_recipe_first(study):
    asked = [(study, c["alpha"], c["beta"], seed) for c, seed in load_study(ROOT / "results" / study).runs()]
    planned = [run for run in PLAN if run[0] == study]
    assert sorted(planned) == sorted(asked)
    assert {run[1:3] for run in PLAN[:2]} == {(3, 1.5)}


def test_a_study_gets_another_number_of_epochs_and_tiny_sizes_and_stays_one(tmp_path):
    text = (ROOT / "results" / PTB / "study.toml").read_text()
    (tmp_path / "study.toml").write_text(with_epochs(text, 81))
    changed, before = load_study(tmp_path), load_study(ROOT / "results" / PTB)
    assert changed.config(alpha=3, beta=1.5, seed=141) == replace(before.config(alpha=3, beta=1.5, seed=141), epochs=81)
    (tmp_path / "study.toml").write_text(with_epochs(tiny_study(text), 2))
    config = load_study(tmp_path).config(alpha=3, beta=1.5, seed=141)
    assert (config.dataset, config.epochs, config.nhid) == ("tiny", 2, 12)
    with pytest.raises(ValueError, match="epochs"):
        with_epochs("seeds = [1]", 3)


def test_what_adapt_txt_holds_is_not_scored_again(tmp_path):
    plain, dynamic = (Task(PTB, Job("1", "1", None, (), RunDir(tmp_path)), modes) for modes in MODES)
    assert not plain.scored
    (tmp_path / "adapt.txt").write_text(f"$ {' '.join(plain.scoring)}\nfigures\n")
    assert plain.scored
    assert not dynamic.scored


@given(st.binary(min_size=1, max_size=400), st.integers(33, 90))
def test_pieces_are_small_and_only_all_of_them_in_order_make_a_whole(data, most):
    pieces = split(data, most)
    assert max(map(len, pieces)) <= most
    assert join(pieces) == data
    damaged = [pieces[0][:-1] + bytes([pieces[0][-1] ^ 1]), *pieces[1:]]
    swapped = pieces[::-1] if pieces != pieces[::-1] else pieces[1:]
    for bad in (pieces[:-1], damaged, swapped):
        with pytest.raises(ValueError, match="no whole"):
            join(bad)


def test_weights_come_home_rounded_to_bf16_and_can_be_used(tiny_run, tmp_path):
    export_run(RunDir(tiny_run), RunDir(tmp_path / "there"))
    unpack(join(split(pack(tmp_path / "there"), 4096)), tmp_path / "here")
    sent, home = (load_trained(RunDir(tmp_path / name)) for name in ("there", "here"))
    for name, weight in sent["model"].items():
        assert torch.equal(home["model"][name], weight.bfloat16().float()), name
    assert {key: value for key, value in home.items() if key != "model"} == {
        key: value for key, value in sent.items() if key != "model"
    }
    assert json.loads((tmp_path / "here" / "config.json").read_text()) == home["config"]
    assert "rounded to bf16" in (tmp_path / "here" / "README.md").read_text()
