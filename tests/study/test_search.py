"""Coarse to fine, random search and successive halving: on made-up losses, and once for real."""

import dataclasses
import math
from pathlib import Path

import pytest

from lm.base.errors import ConfigError
from lm.config.values import make_config
from lm.study.ledger import read_ledger
from lm.study.scheduler import Sweep
from lm.study.search import check_settings, finer, first_values, parts, refine, search
from lm.study.specification import load_study
from lm.sweep import parse_args
from tests.test_sweep import FLAGS, corpus, end, start, write_study  # noqa: F401 - fixtures


def study_at(folder: Path, text: str = ""):
    (folder / "study.toml").write_text(f'dataset = "ptb"\nseeds = [1, 2]\n{text}')
    return load_study(folder)


def log_bowl(best: float):
    """A loss with its minimum at `best`, symmetric on the logarithmic scale."""
    return lambda value: abs(math.log10(value) - math.log10(best)) if value else 9.0


@pytest.mark.parametrize("best", [0.004, 0.3, 2.7, 60.0, 700.0])
def test_refining_closes_in_on_the_best_value_over_decades(best, tmp_path):
    loss, passes = log_bowl(best), []

    def measure(configurations):
        passes.append([configuration["alpha"] for configuration in configurations])
        return [loss(configuration["alpha"]) for configuration in configurations]

    study = study_at(tmp_path, "[[grid]]\nbeta = [5, 6]\n")
    tried = refine(study, {"field": "alpha", "rounds": 4}, measure)
    assert passes[0] == [0, 0.1, 1, 10, 100]
    assert [len(values) for values in passes[1:4]] == [4] * 3
    assert min(tried.values()) < 0.12  # within a factor 1.3
    coarse = min(passes[0], key=loss)
    assert all(coarse / 10 < value < coarse * 10 for value in passes[1])


def test_refining_keeps_the_baseline_of_the_other_fields_and_repeats_exactly(tmp_path):
    study, seen = study_at(tmp_path, "[[grid]]\nbeta = [5, 6]\n[baseline]\nbeta = 6\n"), []

    def measure(configurations):
        seen.append(configurations)
        return [log_bowl(2.0)(configuration["alpha"]) for configuration in configurations]

    first = refine(study, {"field": "alpha"}, measure)
    assert all(configuration["beta"] == 6 for configurations in seen for configuration in configurations)
    assert refine(study, {"field": "alpha"}, measure) == first


def test_refining_is_done_anew_for_each_combination_of_the_grid(tmp_path):
    best = {("l1", 0): 0.3, ("l1", 1): 30.0, ("l2", 1): 3.0}
    study = study_at(
        tmp_path,
        '[[grid]]\nar-norm = ["l1"]\nbeta = [0, 1]\nalpha = [0]\n[[grid]]\nar-norm = ["l2"]\nbeta = [1]\nalpha = [1]\n'
        '[baseline]\nar-norm = "l1"\nbeta = 0\nalpha = 0\n[refine]\nfield = "alpha"\neach = ["ar-norm", "beta"]\n',
    )
    check_settings(study, study.refine, study.config())

    def measure(configurations):
        return [log_bowl(best[c["ar_norm"], c["beta"]])(c["alpha"]) for c in configurations]

    found = {}
    for part in parts(study, study.refine):
        tried = refine(study, study.refine | {"values": [0.01, 0.1, 1, 10, 100], "rounds": 3}, measure, part)
        found[part["ar_norm"], part["beta"]] = min(tried, key=tried.get)
    assert found == {key: pytest.approx(value, rel=0.3) for key, value in best.items()}


def test_around_zero_the_next_decade_below_is_tried():
    assert finer({0: 1.0, 0.1: 2.0, 1: 3.0}, 4, linear=False) == [0.0158, 0.0251, 0.0398, 0.0631]


def test_dropout_is_refined_on_a_linear_scale_and_stays_a_probability(tmp_path):
    tried = refine(
        study_at(tmp_path),
        {"field": "dropout", "rounds": 3},
        lambda configurations: [-configuration["dropout"] for configuration in configurations],
    )
    assert list(tried)[:5] == [0, 0.2, 0.4, 0.6, 0.8]
    assert all(value < 1 for value in tried)
    assert finer({0.2: 2.0, 0.4: 1.0, 0.6: 3.0}, 2, linear=True) == [0.3, 0.5]


def test_whole_number_fields_get_whole_numbers_and_a_diverged_value_is_never_best(tmp_path):
    losses = {10: math.inf, 100: 1.0, 1000: 2.0}
    tried = refine(
        study_at(tmp_path),
        {"field": "nhid", "values": list(losses)},
        lambda configurations: [losses.get(configuration["nhid"], 1.5) for configuration in configurations],
    )
    assert all(type(value) is int for value in tried)
    assert {21, 46, 215, 464} <= tried.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"field": "alpha", "search": "random"}, "either field or search"),
        ({"field": "optimizer"}, "no numeric"),
        ({"field": "alpha", "each": ["alpha"]}, "no other field of the grid"),
        ({"field": "alpha", "each": ["nhid"]}, "no other field of the grid"),
        ({"field": "alpha", "values": [1]}, "two or more"),
        ({"field": "dropout", "values": [0.5, 1.0]}, "give dropout two or more different numbers, at least 0 and at"),
        ({"field": "nonmono", "values": [0, 0.5]}, "give nonmono two or more different integers"),
        ({"field": "alpha", "values": []}, "two or more"),
        (
            {"field": "bpe_vocab_size"},
            "give bpe_vocab_size two or more different integers, at least 257",
        ),
        ({"search": "random", "trials": 3, "space": {"nhid": {"low": 10.5, "high": 20}}}, "refine.space.nhid: low"),
        ({"search": "random", "trials": 3, "space": {"lr": {"low": 0, "high": 2, "log": True}}}, "above 0 with log"),
        ({"search": "random", "trials": 3, "space": {"model": {"low": 0, "high": 2}}}, "no numeric"),
        ({"field": "alpha", "rounds": 0}, "refine.rounds"),
        ({"field": "alpha", "step": 1}, "unknown key"),
        ({"search": "best"}, "not one of random, hyperband"),
        ({"search": "random"}, "names no field"),
        ({"search": "random", "space": {"alpha": {"low": 0, "high": 1}}}, "refine.trials"),
        ({"search": "random", "space": {"alpha": 3}}, "refine.space.alpha"),
        ({"search": "random", "space": {"epochs": [3, 9]}}, "refine.space.epochs: a search has one length"),
        (
            {"search": "random", "trials": "20", "space": {"alpha": [1]}},
            "must be an integer from 1 to 1,000,000, not '20'",
        ),
    ],
)
def test_a_mistake_in_refine_names_its_key(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_settings(study_at(tmp_path), settings, make_config())


@pytest.mark.parametrize(
    ("values", "space"),
    [
        ({"schedule": "linear"}, {}),
        ({"max_steps": 5}, {}),
        ({"optimizer": "adam", "nonmono": 0, "average_last": 0.2}, {}),
        ({}, {"schedule": ["constant", "linear"]}),
        ({}, {"max_steps": [5, 9]}),
        ({}, {"average_last": [0, 0.2]}),
    ],
)
def test_hyperband_is_refused_where_runs_cannot_be_lengthened(values, space, tmp_path):
    settings = {"search": "hyperband", "space": {"alpha": [1]} | space}
    with pytest.raises(ConfigError, match="hyperband lengthens runs"):
        check_settings(study_at(tmp_path), settings, make_config(**values))


class Bench:
    """Runs with a made-up loss that falls with the epochs; counts them, and can break down."""

    def __init__(self) -> None:
        self.measured, self.pruned, self.breakdown = [], [], math.inf

    def measure(self, configurations, epochs):
        if len(self.measured) >= self.breakdown:
            raise KeyboardInterrupt
        self.measured.append((epochs, [configuration["alpha"] for configuration in configurations]))
        return [abs(configuration["alpha"] - 3) + 1 / epochs for configuration in configurations]

    def prune(self, configuration, epochs):
        self.pruned.append((configuration["alpha"], epochs))


def test_random_search_draws_from_ranges_and_choices_and_a_larger_one_goes_on(tmp_path):
    pytest.importorskip("optuna")
    study, bench = study_at(tmp_path), Bench()
    space = {"alpha": {"low": 0.01, "high": 10, "log": True}, "beta": [0, 1]}
    search(study, {"search": "random", "trials": 6, "space": space}, 9, bench.measure, bench.prune)
    ((epochs, alphas),) = bench.measured
    assert epochs == 9
    assert len(set(alphas)) == 6
    assert all(0.01 <= alpha <= 10 for alpha in alphas)
    search(study, {"search": "random", "trials": 8, "space": space}, 9, bench.measure, bench.prune)
    assert len(bench.measured[1][1]) == 2
    assert not set(bench.measured[1][1]) & set(alphas)


def test_what_asks_for_other_runs_is_searched_anew(tmp_path):
    pytest.importorskip("optuna")
    study, bench, settings = study_at(tmp_path), Bench(), {"search": "random", "space": {"alpha": [1, 2]}}
    wider = settings | {"space": {"alpha": [1, 2, 4]}}
    longer = dataclasses.replace(study, flags={"epochs": 12})
    more = dataclasses.replace(study, seeds=(1, 2, 3))
    for asked, of in ((study, settings), (study, wider), (longer, settings), (more, settings), (study, wider)):
        search(asked, of, 9, bench.measure, bench.prune)
    assert [sorted(alphas) for _, alphas in bench.measured] == [[1, 2], [1, 2, 4], [1, 2], [1, 2], []]


def test_values_that_do_not_go_together_are_left_out_and_the_others_tried(tmp_path, caplog):
    pytest.importorskip("optuna")
    space = {"nlayers": [1, 2], "nhid": [200, 400]}  # tied: the last layer has the size of the embedding
    drawn = []

    def measure(configurations, epochs):
        drawn.extend((c["nlayers"], c["nhid"]) for c in configurations)
        return [1.0] * len(configurations)

    study = study_at(tmp_path, "[flags]\nemsize = 200\ntied = true\nmodel = 'RNN_TANH'\n")
    for _ in range(2):
        search(study, {"search": "random", "space": space}, 9, measure, print)
    valid = [(n, h) for n in (1, 2) for h in (200, 400) if is_valid(study, nlayers=n, nhid=h)]
    assert sorted(drawn) == valid and 0 < len(valid) < 4
    assert len([r for r in caplog.records if "left out: nlayers" in r.getMessage()]) == 4 - len(valid)


def is_valid(study, **values):
    try:
        study.config(**values)
    except ConfigError:
        return False
    return True


def test_what_is_drawn_from_a_range_is_of_its_fields_type_and_inside(tmp_path):
    pytest.importorskip("optuna")
    configurations = []
    space = {"nhid": {"low": 3, "high": 5}, "dropout": {"low": 0.99961, "high": 0.99987}}
    settings = {"search": "random", "trials": 12, "space": space}
    check_settings(study_at(tmp_path), settings, make_config())
    search(study_at(tmp_path), settings, 9, lambda drawn, _: configurations.extend(drawn) or [1.0] * len(drawn), print)
    assert {configuration["nhid"] for configuration in configurations} == {3, 4, 5}
    assert all(
        type(configuration["nhid"]) is int and 0.99961 <= configuration["dropout"] <= 0.99987
        for configuration in configurations
    )


@pytest.mark.parametrize("field", ["alpha", "dropout", "lr", "nhid"])
def test_refining_needs_no_more_than_the_field(field, tmp_path):
    study = study_at(tmp_path)
    check_settings(study, {"field": field}, make_config())
    assert (
        len(
            refine(
                study,
                {"field": field},
                lambda configurations: [configuration[field] for configuration in configurations],
            )
        )
        > 4
    )


def test_the_usual_first_values_are_those_within_the_fields_bounds_and_of_its_type(tmp_path):
    study = study_at(tmp_path)
    first = {field: first_values(study, {"field": field}) for field in ("alpha", "lr", "nhid", "dropout")}
    assert first == {"alpha": [0, 0.1, 1, 10, 100], "lr": [0.1, 1, 10, 100], "nhid": [1, 10, 100],
                     "dropout": [0, 0.2, 0.4, 0.6, 0.8]}  # fmt: skip
    assert all(type(value) is int for value in first["nhid"])


def test_refining_starts_from_the_values_of_the_grid(tmp_path):
    study, asked = study_at(tmp_path, "[[grid]]\nalpha = [0, 2, 4]\nbeta = [0, 1]\n"), []
    tried = refine(
        study,
        {"field": "alpha"},
        lambda configurations: asked.append(configurations) or [abs(c["alpha"] - 2) for c in configurations],
    )
    assert [configuration["alpha"] for configuration in asked[0]] == [0, 2, 4]
    assert all(2 / 10 < alpha <= 4 for alpha in tried if alpha)


def test_hyperband_tries_every_choice_and_gives_only_the_better_ones_more_epochs(tmp_path):
    pytest.importorskip("optuna")
    bench, values = Bench(), list(range(12))
    search(study_at(tmp_path), {"search": "hyperband", "space": {"alpha": values}}, 9, bench.measure, bench.prune)
    assert [epochs for epochs, _ in bench.measured] == [1, 3, 9]
    assert sorted(bench.measured[0][1]) == values
    sizes = [len(alphas) for _, alphas in bench.measured]
    assert sizes[0] > sizes[1] >= sizes[2] > 0
    assert len(bench.pruned) + sizes[2] == 12
    assert 3 in bench.measured[2][1]


def test_a_search_that_was_cut_off_ends_as_an_undisturbed_one(tmp_path):
    pytest.importorskip("optuna")
    settings = {"search": "hyperband", "space": {"alpha": list(range(8))}}
    benches = []
    for name, breakdown in (("whole", math.inf), ("cut", 2)):
        (tmp_path / name).mkdir()
        study, bench = study_at(tmp_path / name), Bench()
        bench.breakdown = breakdown
        try:
            search(study, settings, 9, bench.measure, bench.prune)
        except KeyboardInterrupt:
            bench.breakdown = math.inf
            search(study, settings, 9, bench.measure, bench.prune)
        benches.append(bench)
    whole, cut = ([epochs_alphas for epochs_alphas in bench.measured if epochs_alphas[1]] for bench in benches)
    assert cut == whole
    assert benches[1].pruned == benches[0].pruned


def test_the_perplexity_of_a_configuration_that_is_given_up_is_per_word(corpus, tmp_path):  # noqa: F811
    study = write_study(tmp_path / "s", corpus, seeds=(1,), tokenizer="char", epochs=9)
    sweep = Sweep(load_study(study), parse_args("", [str(study)]))
    rung = {"status": "completed", "valid_ppl": 5.0, "valid_word_ppl": 80.0}
    sweep.results.enter(sweep.job({"alpha": 0}, 1, 3).id, rung)
    sweep.prune({"alpha": 0}, 3)
    (record,) = read_ledger(study / "runs.jsonl")
    assert record["error"] == "after 3 of 9 epochs, valid perplexity 80.00"


def test_hyperband_lengthens_real_runs_to_the_figures_of_straight_ones(start, corpus, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("optuna")
    from lm.config.schema import RunOptions
    from lm.config.values import config_from_dict
    from lm.train import train

    search_of = '[refine]\nsearch = "hyperband"\n[refine.space]\nlr = [0.01, 4.0, 0.02, 5]\n'
    study = write_study(tmp_path / "results" / "s", corpus, search_of, seeds=(1,), epochs=3)
    end(start(tmp_path, study, "--jobs=2", "--no-report"))
    records = {record["id"]: record for record in read_ledger(study / "runs.jsonl")}
    assert len(records) == 4  # lr 5, which the flags have, is trained before the race: its curve stands for its rungs
    assert all(record["config"]["epochs"] == 3 for record in records.values())
    pruned = [record for record in records.values() if record["status"] == "pruned"]
    assert all("after 1 of 3 epochs" in record["error"] and record["test_loss"] is None for record in pruned)
    tried = [r for r in records.values() if r["status"] == "completed" and r["config"]["lr"] != FLAGS["lr"]]
    monkeypatch.chdir(tmp_path)
    straight = train(config_from_dict(tried[0]["config"]), RunOptions(out_dir="straight", tensorboard=False))
    assert [straight[key] for key in ("valid_loss", "test_loss")] == [
        tried[0][key] for key in ("valid_loss", "test_loss")
    ]
