"""Minimal pairs: accuracies against one sentence at a time, what counts, the files, and the command line."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

import lm.evaluate
from lm.base.errors import ConfigError, CorpusError
from lm.nn.model import AWDLSTM
from lm.scoring import pairs_difference
from lm.scoring.pairs import BLIMP_FILE, Answers, PairSet, answer_pairs, load_pairs, report, table
from lm.scoring.score import score_text
from lm.text.english import as_it_stands, as_ptb, tokenization_for
from lm.text.words import WordTokenizer
from tests.nn.test_model import tiny

WORDS = ["a", "b", "c", "d", "e", "f", "g"]
TOKENIZER = WordTokenizer.from_text(" ".join(WORDS) + "\n")


def score_pairs(model, tokenizer, sets, tokenize):
    return report(sets, answer_pairs(model, tokenizer, sets, tokenize))


@pytest.fixture
def model():
    model = AWDLSTM(TOKENIZER.vocab_size, tiny()).eval()
    with torch.no_grad():
        model.encoder.weight.mul_(20)
        model.decoder.bias.normal_()
    return model


def some_sets():
    generator = torch.Generator().manual_seed(0)

    def sentence():
        return " ".join(
            WORDS[i]
            for i in torch.randint(7, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator)
        )

    return [
        PairSet(f"set_{n}", "even" if n % 2 == 0 else "odd", [(sentence(), sentence()) for _ in range(20)])
        for n in range(4)
    ]


def wilson(right, n, z=1.959963984540054):
    """The interval in percent, by its formula."""
    p = right / n
    middle, reach = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return [100 * (middle - reach) / (1 + z * z / n), 100 * (middle + reach) / (1 + z * z / n)]


def test_accuracies_are_those_of_one_sentence_at_a_time(model):
    sets = some_sets()
    found = score_pairs(model, TOKENIZER, sets, as_it_stands)

    def logprob(sentence):
        return score_text(model, TOKENIZER, sentence, independent=True)["total"]["logprob"]

    right = {one.name: sum(logprob(good) > logprob(bad) for good, bad in one.pairs) for one in sets}
    assert {one["set"]: one["accuracy"] for one in found["sets"]} == {name: 5 * n for name, n in right.items()}
    for one in found["sets"]:
        assert [one["low"], one["high"]] == pytest.approx(wilson(right[one["set"]], 20))
    odd = right["set_1"] + right["set_3"]
    assert {one["phenomenon"]: one["accuracy"] for one in found["phenomena"]}["odd"] == pytest.approx(100 * odd / 40)
    whole = found["overall"]
    assert (whole["pairs"], whole["tied"], whole["unknown"]) == (80, 0, 0)
    assert whole["accuracy"] == whole["known_accuracy"] == pytest.approx(100 * sum(right.values()) / 80)


def test_pairs_that_are_read_alike_are_tied_and_wrong_and_those_with_unknown_words_counted(model):
    pairs = [("a zork b c d e f g a", "a blick b c d e f g a"), ("a b", "a zork"), ("c d", "c e")]
    found = score_pairs(model, TOKENIZER, [PairSet("x", "y", pairs)], as_it_stands)["overall"]
    alone = score_pairs(model, TOKENIZER, [PairSet("x", "y", pairs[2:])], as_it_stands)["overall"]
    assert (found["pairs"], found["tied"], found["unknown"]) == (3, 1, 2)
    assert found["known_accuracy"] == alone["accuracy"]
    swapped = score_pairs(model, TOKENIZER, [PairSet("x", "y", [p[::-1] for p in pairs])], as_it_stands)["overall"]
    assert found["accuracy"] + swapped["accuracy"] == pytest.approx(100 * 2 / 3)


def test_where_every_pair_has_an_unknown_word_there_is_no_accuracy_without(model):
    found = score_pairs(model, TOKENIZER, [PairSet("x", "y", [("zork", "a")])], as_it_stands)
    assert found["overall"]["known_accuracy"] is None
    assert "none" in table(found)


def test_sentences_are_tokenized_as_the_runs_corpus_unless_told(model):
    config = lm.make_config(dataset="ptb")
    assert tokenization_for(config, "auto") == ("ptb", as_ptb)
    assert tokenization_for(config, "plain") == ("plain", as_it_stands)
    assert tokenization_for(lm.make_config(dataset="mine"), "auto") == ("plain", as_it_stands)
    sets = [PairSet("x", "y", [("A, b.", "C!")])]
    assert score_pairs(model, TOKENIZER, sets, as_ptb)["overall"]["unknown"] == 0
    assert score_pairs(model, TOKENIZER, sets, as_it_stands)["overall"]["unknown"] == 1


def test_published_figures_stand_beside_the_whole_of_blimp_only(model):
    import tomllib

    phenomena = tomllib.loads(BLIMP_FILE.read_text())["phenomena"]
    sets = [PairSet(name, of, [("a", "b")]) for of, names in phenomena.items() for name in names]
    assert (len(sets), len(phenomena)) == (67, 12)
    found = score_pairs(model, TOKENIZER, sets, as_it_stands)
    assert [one["accuracy"] for one in found["published"]] == [61.2, 69.8, 69.6, 83.0]
    assert "LSTM (83M words of Wikipedia) 69.8" in table(found)
    assert not score_pairs(model, TOKENIZER, sets[1:], as_it_stands)["published"]


def write(path, *pairs, **names):
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad} | names) for good, bad in pairs]
    path.write_text("\n".join(lines) + "\n")


def test_a_folder_gives_its_sets_and_skips_what_holds_no_pairs(tmp_path):
    write(
        tmp_path / "one.jsonl", ("a", "b"), ("a b", "b a"), UID="animate_subject_trans", linguistics_term="s-selection"
    )
    write(tmp_path / "two.jsonl", ("c", "d"))
    (tmp_path / "published.jsonl").write_text('{"UID": "x", "lstm": 0.5}\n')
    assert load_pairs(tmp_path) == [
        PairSet("two", "all", [("c", "d")]),
        PairSet("animate_subject_trans", "argument_structure", [("a", "b"), ("a b", "b a")]),
    ]
    assert load_pairs(tmp_path / "two.jsonl")[0].name == "two"


@pytest.mark.parametrize(
    "content",
    [None, "", "[1]\n", '{"sentence_good": "a"}\n', '{"sentence_good": "a", "sentence_bad": " "}\n', "{}\nnonsense\n",
     '{"sentence_good": "a\\nb", "sentence_bad": "a"}\n', '{"sentence_good": "a", "sentence_bad": 1}\n',
     "[" * 100_000 + "\n", '{"sentence_good": "\\ud800", "sentence_bad": "a"}\n'],
)  # fmt: skip
def test_a_file_that_holds_no_pairs_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(CorpusError, match="pairs.jsonl"):
        load_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"holds no \.jsonl"):
        load_pairs(tmp_path / "empty")


def test_pairs_by_the_command_line_with_a_plot(main_here, tiny_run, tmp_path):
    write(tmp_path / "p.jsonl", ("w1 w2 w3", "w1 w30 w3"), ("w4 w5", "w4 zork"), UID="a_$_set", linguistics_term="b")
    flags = [tiny_run, "--pairs", tmp_path / "p.jsonl"]
    found = json.loads(main_here(lm.evaluate, *flags, "--json", "--plot", tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (found["sentences"], found["overall"]["pairs"], found["overall"]["unknown"]) == ("plain", 2, 1)
    text = main_here(lm.evaluate, *flags, "--sentences", "ptb")
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["overall", "b", "a_$_set"]


def test_two_models_differ_by_students_interval_over_the_pairs_and_over_the_sets():
    sets = [PairSet(f"set_{n}", "even" if n % 2 == 0 else "odd", [("a", "b")] * 10) for n in range(4)]
    draws = np.random.default_rng(0)
    mine, theirs = (Answers(draws.random(40) < share, *np.zeros((2, 40), bool)) for share in (0.8, 0.4))
    found = pairs_difference.differences(sets, mine, theirs)

    def expected(first, second):
        test = scipy.stats.ttest_rel(first, second)
        interval = test.confidence_interval()
        return pytest.approx([np.mean(first - second), interval.low, interval.high])

    points = [100.0 * one.right for one in (mine, theirs)]
    assert list(found["overall"].values()) == expected(*points)
    assert list(found["over_sets"].values()) == expected(*(one.reshape(4, 10).mean(1) for one in points))
    even = [one.reshape(4, 10)[[0, 2]].ravel() for one in points]
    assert list(found["phenomena"][0].values()) == ["even", *expected(*even).expected]
    alone = pairs_difference.differences(sets[:1], mine, theirs)["over_sets"]
    assert alone["low"] is alone["high"] is None


def test_two_runs_side_by_side_by_the_command_line(main_here, tiny_run, tmp_path):
    write(tmp_path / "p.jsonl", ("w1 w2 w3", "w1 w30 w3"), ("w4 w5", "w4 zork"), linguistics_term="b")
    flags = [tiny_run, "--pairs", tmp_path / "p.jsonl", "--beside", tiny_run]
    found = json.loads(main_here(lm.evaluate, *flags, "--json", "--plot", tmp_path / "p.png"))
    assert found["beside"]["overall"] == found["overall"]
    assert found["difference"]["overall"] == {"difference": 0, "low": 0, "high": 0}
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    lines = main_here(lm.evaluate, *flags).splitlines()
    assert [line.split()[0] for line in lines] == ["A:", "B:", "pairs", "overall", "b", "mean"]
    assert lines[-1].split() == ["mean", "of", "the", "sets,", "n", "=", "1", "+0.0"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--beside=x"], "--beside: is for --activations PNG or --pairs PATH"),
        (["--plot=x.png"], "--plot: is for --pairs"),
        (["--sentences=ptb"], "--sentences: is for --pairs"),
        (["--pairs=x", "--split=test"], "--split: leave it out with --pairs"),
        (["--pairs=x", "--cache-lambda=0.2"], "--cache-lambda: leave it out with --pairs"),
        (["--pairs=x", "--plot=x.pdf"], "--plot: the file's name must end in .png"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(flags, named, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lm.evaluate", "nowhere", *flags])
    with pytest.raises(ConfigError, match=named):
        lm.evaluate.main()
