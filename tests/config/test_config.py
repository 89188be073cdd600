"""Configuration: defaults, presets, published command lines, bounds, and identity."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.base.errors import ConfigError
from lm.config.flags import field_help, flag_groups, parse_train_args
from lm.config.presets import PRESETS
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import as_plain, config_from_dict, config_id, make_config, resume_conflicts
from lm.train import configure
from tests.full_size import ENWIK8, WIKITEXT_103


def parse(line):
    return configure(line.split())[0]


def test_the_defaults_are_those_of_awd_lstm_lm():
    published = {
        "model": "LSTM", "emsize": 400, "nhid": 1150, "nlayers": 3, "lr": 30, "clip": 0.25, "batch_size": 80,
        "bptt": 70, "dropout": 0.4, "dropouth": 0.3, "dropouti": 0.65, "dropoute": 0.1, "wdrop": 0.5, "seed": 1111,
        "nonmono": 5, "alpha": 2, "beta": 1, "wdecay": 1.2e-6, "optimizer": "sgd", "tied": True,
    }  # fmt: skip
    config = dataclasses.asdict(parse(""))
    assert {name: config[name] for name in published} == published


def test_the_published_ptb_command_line_means_the_ptb_preset():
    line = "--batch_size 20 --data data/penn --dropouti 0.4 --dropouth 0.25 --seed 141 --epoch 500 --save PTB.pt"
    config, options = configure(line.split())
    assert options.save == "PTB.pt"
    assert dataclasses.replace(config, data="", preset="awd-lstm") == make_config("awd-lstm", "ptb")


def test_the_published_wikitext_command_line_means_the_wikitext_preset():
    line = "--epochs 750 --data data/wikitext-2 --save WT2.pt --dropouth 0.2 --seed 1882"
    assert dataclasses.replace(parse(line), data="", preset="awd-lstm") == make_config("awd-lstm", "wikitext-2")


# README of awd-lstm-lm: the line, and the corpus that it is for.
QRNN_LINES = [
    ("--model QRNN --batch_size 20 --clip 0.2 --wdrop 0.1 --nhid 1550 --nlayers 4 --emsize 400 --dropouth 0.3 "
     "--seed 9001 --dropouti 0.4 --epochs 550 --save PTB.pt", "ptb"),
    ("--epochs 500 --data data/wikitext-2 --clip 0.25 --dropouti 0.4 --dropouth 0.2 --nhid 1550  --nlayers 4 "
     "--seed 4002 --model QRNN --wdrop 0.1 --batch_size 40 --save WT2.pt", "wikitext-2"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "dataset"), QRNN_LINES)
def test_the_published_qrnn_command_lines_mean_the_qrnn_preset(line, dataset):
    assert dataclasses.replace(parse(line), data="", preset="awd-qrnn") == make_config("awd-qrnn", dataset)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (WIKITEXT_103,
         {"model": "QRNN", "nhid": 2500, "bptt": 140, "when": (12,), "wdrop": 0, "data": "data/wikitext-103"}),
        (ENWIK8, {"model": "LSTM", "nhid": 1840, "bptt": 200, "when": (25, 35), "wdrop": 0.2, "data": "data/enwik8"}),
    ],
)  # fmt: skip
def test_the_published_command_lines_of_larger_corpora_are_understood(line, expected):
    config = dataclasses.asdict(make_config(**parse_train_args(line.split()).values))
    assert {name: config[name] for name in expected} == expected
    assert (config["optimizer"], config["lr"], config["alpha"], config["beta"]) == ("adam", 1e-3, 0, 0)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dataset", ["ptb", "wikitext-2", "pydocs"])
def test_every_preset_is_a_valid_configuration_with_a_source(name, dataset):
    assert make_config(name, dataset).preset == name
    assert PRESETS[name].source


def test_flags_override_the_preset_and_the_preset_overrides_defaults():
    config = parse("--preset examples-200 --dataset ptb --lr 5")
    assert (config.lr, config.emsize, config.clip) == (5, 200, 0.25)


@pytest.mark.parametrize("line", ["--batch_size 3 --no_tied", "--batch-size 3 --no-tied"])
def test_underscore_and_hyphen_are_both_accepted(line):
    assert (parse(line).batch_size, parse(line).tied) == (3, False)


def test_cuda_flag_is_ignored_with_a_warning():
    given = parse_train_args(["--cuda"])
    assert parse("--cuda") == parse("")
    assert given.options.device == "auto"
    assert "--device" in given.warnings[0]


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--dropout 1", "--dropout"), ("--dropouth -0.1", "--dropouth"), ("--lr 0", "--lr"), ("--lr nan", "--lr"),
        ("--lr inf", "--lr"), ("--alpha -1", "--alpha"), ("--batch-size 0", "--batch-size"),
        ("--nhid 99999999999", "--nhid"), ("--model XRNN", "--model"), ("--zoneout 0.1", "--zoneout"),
        ("--epochs x", "--epochs"),
        ("--when 0", "--when"), ("--seed -1", "--seed"), ("--nosuch 1", "--nosuch"), ("--min-lr 1", "--min-lr"),
        ("--preset none", "--preset"), ("--log-interval 0", "--log-interval"), ("--nlayers 1", "--nhid"),
        ("--tokenizer subword", "--tokenizer"), ("--bpe-vocab-size 300", "--bpe-vocab-size"),
        ("--tokenizer bpe --bpe-vocab-size 256", "--bpe-vocab-size"),
        ("--schedule plateau --nonmono 0 --lr 1 --min-lr 2", "--min-lr"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_the_flags_name(line, flag):
    with pytest.raises(ConfigError, match=flag):
        parse(line)


def test_configuration_survives_json():
    config = parse("--when 3 5 --preset awd-lstm --dataset ptb")
    assert config_from_dict(json.loads(json.dumps(as_plain(config)))) == config


@given(alpha=st.floats(0, 100), seed=st.integers(0, 2**31 - 1), when=st.lists(st.integers(1, 99), max_size=3))
def test_flags_round_trip_to_equal_configurations_with_equal_identity(alpha, seed, when):
    config = make_config(alpha=alpha, seed=seed, when=when, dataset="ptb")
    line = f"--dataset ptb --alpha {alpha!r} --seed {seed} --when {' '.join(map(str, when))}"
    assert parse(line) == config
    assert config_id(parse(line)) == config_id(config)


def test_identity_ignores_the_preset_name_and_the_spelling_of_numbers_but_no_value():
    config = make_config("examples-200", "ptb")
    assert config_id(dataclasses.replace(config, preset="")) == config_id(config)
    assert config_id(make_config(alpha=1)) == config_id(make_config(alpha=1.0))
    assert config_id(make_config(alpha=1)) != config_id(make_config(alpha=1.5))
    kinds = [{}, {"tokenizer": "char"}, {"tokenizer": "bpe"}, {"tokenizer": "bpe", "bpe_vocab_size": 300}]
    assert len({config_id(make_config(**kind)) for kind in kinds}) == 4
    assert config_id(make_config()) == config_id(make_config(tokenizer="word", bpe_vocab_size=8000))


def test_what_an_earlier_version_wrote_means_the_same_though_it_lacks_a_younger_field():
    config = make_config("examples-200", "ptb", alpha=2)
    younger = ("finetune", "tokenizer", "bpe_vocab_size", "vocab_size", "min_count", "lowercase")
    older = {name: value for name, value in as_plain(config).items() if name not in younger}
    assert config_from_dict(older) == config
    assert resume_conflicts(config, older) == []
    with pytest.raises(ConfigError, match="warp"):
        config_from_dict(older | {"warp": 1})


def test_resuming_may_extend_epochs_only_where_the_learning_rate_does_not_depend_on_them():
    for schedule, conflicts in (("constant", 0), ("plateau", 0), ("linear", 1), ("onecycle", 1)):
        before = make_config(schedule=schedule, epochs=3)
        assert len(resume_conflicts(dataclasses.replace(before, epochs=9), as_plain(before))) == conflicts
    assert "--nhid 1150 (now 7)" in resume_conflicts(make_config(nhid=7), as_plain(make_config()))[0]


def test_every_field_has_help_and_stands_in_one_group():
    names = [field.name for _, fields in flag_groups() for field, text in fields if text]
    declared = [f.name for f in dataclasses.fields(TrainConfig)] + [f.name for f in dataclasses.fields(RunOptions)]
    assert sorted(names) == sorted(set(declared) - {"preset"})
    assert field_help(TrainConfig)["preset"]
