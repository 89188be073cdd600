"""lm.generate: sampling, beam search, prompts and scores, as functions and through the command line."""

import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lm.generate
from lm.base.errors import CorpusError
from lm.config.values import make_config
from lm.nn.model import AWDLSTM
from lm.scoring.sampling import Limits, Sampling, beam_search, next_word_probabilities, sample
from lm.scoring.score import score_text
from lm.scoring.tokens import read_running
from lm.scoring.trained import Trained, load
from lm.text.bpe import BPETokenizer
from lm.text.detokenize import detokenize
from lm.text.finding import load_corpus
from lm.text.words import WordTokenizer
from tests.nn.test_model import V, tiny


@pytest.fixture
def model():
    return AWDLSTM(V, tiny()).eval()


def tiny_model(vocabulary):
    model = AWDLSTM(vocabulary, tiny()).eval()
    with torch.no_grad():
        model.encoder.weight.mul_(20)
        model.decoder.bias.normal_()
    return model


LOGITS = torch.tensor([[0.5, 0.1, 0.3, 0.06, 0.04]]).log()


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(top_k=2), [0, 2]),
        (Sampling(top_k=9), [0, 1, 2, 3, 4]),
        (Sampling(top_p=0.49), [0]),
        (Sampling(top_p=0.51), [0, 2]),
        (Sampling(top_p=0.85), [0, 1, 2]),
        (Sampling(top_k=2, top_p=0.6), [0]),  # of the two, 0 has 0.5 / 0.8
        (Sampling(temperature=0.5, top_p=0.72), [0, 2]),  # 0 has 0.25 / 0.3542
        (Sampling(temperature=1e-300), [0]),
    ],
)
def test_cuts_keep_the_smallest_set_of_likeliest_words_and_leave_their_proportions(sampling, kept):
    p = next_word_probabilities(LOGITS, sampling)[0]
    assert p.nonzero().flatten().tolist() == kept
    expected = ((LOGITS[0].double() - LOGITS.max()) / sampling.temperature).exp()[kept]
    assert p[kept].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-6)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0, 3000, 0.9), Sampling(0.3, 0, 0.5)])
def test_probabilities_sum_to_one_and_uncut_every_word_has_its_softmax(sampling):
    logits = 3 * torch.randn(2, 33_278)
    p = next_word_probabilities(logits, sampling)
    assert p.sum(1).tolist() == pytest.approx([1, 1], abs=1e-12)
    if sampling == Sampling():
        torch.testing.assert_close(p, torch.softmax(logits.double(), 1), rtol=1e-12, atol=0)


def test_a_forbidden_word_has_no_probability_and_the_logits_stay():
    logits = LOGITS.double()
    p = next_word_probabilities(logits, Sampling(top_k=2), [0])
    assert p.nonzero()[:, 1].tolist() == [1, 2]
    assert torch.equal(logits, LOGITS.double())


def test_words_with_high_ids_are_drawn_as_often_as_others():
    model = AWDLSTM(1000, tiny()).eval()
    with torch.no_grad():
        model.encoder.weight.zero_()
    ids = np.array([one.ids for one in sample(model, [0], 60, Sampling(), range(100), Limits([7]))])
    assert 7 not in ids
    assert len(np.unique(ids)) > 980
    assert abs((ids >= 400).mean() - 0.6) < 0.03


def test_one_seed_gives_one_text_alone_or_among_others_and_the_global_generator_stays(model):
    before = torch.get_rng_state()
    alone = sample(model, [1, 2], 30, Sampling(), [5])
    assert sample(model, [1, 2], 30, Sampling(), [4, 5, 6])[1].ids == alone[0].ids
    assert sample(model, [1, 2], 30, Sampling(), [6])[0].ids != alone[0].ids
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_is_beam_1_and_top_k_1():
    model = tiny_model(V)
    greedy = beam_search(model, [1, 2], 20, 1)
    drawn = sample(model, [1, 2], 20, Sampling(top_k=1), [0])
    assert greedy[0].ids == drawn[0].ids
    assert greedy[0].logprob == pytest.approx(drawn[0].logprob, rel=1e-6)


def test_a_wide_beam_finds_what_exhaustive_search_finds():
    vocabulary, length, context = 5, 3, [0, 3]
    model = tiny_model(vocabulary)
    every = {}
    with torch.no_grad():
        for ids in itertools.product(range(vocabulary), repeat=length):
            text = torch.tensor([*context, *ids]).unsqueeze(1)
            output = model(text[:-1], model.initial_state(1))
            log_p = torch.log_softmax(model.decoder(output.after_dropout[-1][:, 0]).double(), 1)
            every[ids] = sum(log_p[len(context) - 1 + t, ids[t]].item() for t in range(length))
    ranked = sorted(every, key=every.get, reverse=True)
    found = beam_search(model, context, length, vocabulary**length)
    assert [tuple(one.ids) for one in found] == ranked
    assert [one.logprob for one in found] == pytest.approx([every[ids] for ids in ranked], rel=1e-6)
    assert math.isclose(sum(math.exp(one.logprob) for one in found), 1, rel_tol=1e-9)
    allowed = [ids for ids in ranked if 2 not in ids]
    assert [tuple(one.ids) for one in beam_search(model, context, length, 1000, Limits([2]))] == allowed
    assert len(beam_search(model, context, length, 2)) == 2


@pytest.mark.parametrize("way", ["sample", "beam"])
def test_a_continuation_has_the_log_probability_that_scoring_gives_it(model, way):
    one = sample(model, [0], 25, Sampling(), [3])[0] if way == "sample" else beam_search(model, [0], 25, 4)[0]
    (nats,) = read_running(model, np.array([0, *one.ids]))
    assert one.logprob == pytest.approx(-nats.sum(), rel=1e-6)


def test_counts_of_words_and_unknown_words_and_an_empty_line():
    tokenizer = WordTokenizer.from_text("a b cd\n")
    model = tiny_model(tokenizer.vocab_size)
    scores = score_text(model, tokenizer, "\na zork <unk>\n\nb", independent=True)
    counts = [(row["tokens"], row["words"], row["unknown"]) for row in [*scores["lines"], scores["total"]]]
    assert counts == [(1, 0, 0), (4, 3, 1), (1, 0, 0), (2, 1, 0), (8, 4, 1)]
    assert scores["lines"][0] == scores["lines"][2]
    first = score_text(model, tokenizer, "\na\n")["lines"][0]
    assert first == {"logprob": 0.0, "ppl": None, "tokens": 0, "words": 0, "unknown": 0}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("it was n't black monday <eos> he ca n't , i 'm", "it wasn't black monday\nhe can't, i'm"),
        ("standard & poor 's fell $ N or N % .", "standard & poor's fell $N or N%."),
        ('" The role " , 1 @,@ 500 ( a guest @-@ star ) of 2 @.@ 5', '"The role", 1,500 (a guest-star) of 2.5'),
        ("cities\\/abc <unk> <eos> <eos>", "cities/abc <unk>\n\n"),
        ('an open " <eos> " closed "', 'an open "\n"closed"'),
        ("", ""),
    ],
)
def test_detokenized_text_reads_as_english(words, text):
    assert detokenize(words.split()) == text


@given(st.lists(st.sampled_from(['"', "'s", "n't", ",", "(", ")", "$", "word", "Don", "''", "``"])))
def test_detokenizing_only_takes_spaces_away(words):
    assert detokenize(words).replace(" ", "") == "".join(words)


@given(st.lists(st.integers(0, 4)))
def test_generated_text_in_the_format_of_the_corpus_is_read_back_as_the_same_ids(ids):
    tokenizer = WordTokenizer.from_text("a b c\n")
    assert tokenizer.encode(tokenizer.text(ids), final_eos=False).tolist() == ids


def test_generating_by_the_command_line(cli, tiny_run):
    done = cli("generate", tiny_run, "--prompt", "w1 zork", "--tokens", 50, "--samples", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert "zork" in done.stderr
    report = json.loads(done.stdout)
    assert [len(one["ids"]) for one in report["samples"]] == [50, 50]
    assert all(one["text"].startswith("w1 <unk>") for one in report["samples"])
    assert "<unk>" not in report["samples"][0]["text"].removeprefix("w1 <unk>")
    again = cli("generate", tiny_run, "--prompt", "w1 zork", "--tokens", 50, "--seed", 1112)
    assert again.stdout == report["samples"][1]["text"] + "\n"
    best = cli("generate", tiny_run, "--tokens", 5, "--beam", 3, "--samples", 2, "--detokenize").stdout
    assert best.count("log-probability") == 2


def test_several_prompts_give_what_each_gives_alone(main_here, tiny_run):
    flags = [tiny_run, "--tokens", 4, "--samples", 2]
    prompts = ["w1 w2", "w3", ""]
    alone = [main_here(lm.generate, *flags, f"--prompt={prompt}") for prompt in prompts]
    given = [f"--prompt={prompt}" for prompt in prompts]
    together = main_here(lm.generate, *flags, *given)
    assert together == "".join(f"=== {prompt}\n{text}" for prompt, text in zip(prompts, alone, strict=True))
    reports = [json.loads(main_here(lm.generate, *flags, "--json", prompt)) for prompt in given]
    found = json.loads(main_here(lm.generate, *flags, "--json", *given))
    assert found["prompts"] == [{"prompt": one["prompt"], "samples": one["samples"]} for one in reports]
    assert list(reports[0]) == ["run", "prompt", "tokens", "samples"]


def json_lines(printed):
    return [json.loads(line) for line in printed.splitlines()]


def test_prompts_of_a_file_follow_those_of_the_command_line_and_json_lines_say_what_json_says(
    main_here, tiny_run, tmp_path
):
    (tmp_path / "prompts.txt").write_text("w3\n\nw7 w8\n")
    flags = [tiny_run, "--tokens", 4, "--samples", 2, "--prompt=w1 w2", "--prompt-file", tmp_path / "prompts.txt"]
    report = json.loads(main_here(lm.generate, *flags, "--json"))
    assert [one["prompt"] for one in report["prompts"]] == ["w1 w2", "w3", "", "w7 w8"]
    rows = json_lines(main_here(lm.generate, *flags, "--jsonl"))
    assert [(row["prompt"], row["sample"], row["seed"]) for row in rows] == [
        (one["prompt"], number, 1110 + number) for one in report["prompts"] for number in (1, 2)
    ]
    samples = [sample for one in report["prompts"] for sample in one["samples"]]
    assert [{name: row[name] for name in samples[0]} for row in rows] == samples


@pytest.fixture
def typed(monkeypatch):
    """Give this process a standard input of these bytes."""
    return lambda raw: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))


@pytest.mark.parametrize(
    "flags",
    [
        ["--tokens=3", "--jsonl", "--prompt-file"],
        ["--per-line", "--score"],
        ["--ids", "--per-token", "--score"],
        ["--out=x.npz", "--features"],
    ],
    ids=lambda flags: flags[-1],
)
def test_standard_input_is_read_as_a_file_is(main_here, tiny_run, tmp_path, typed, flags):
    raw = "\ufeffw1\tw2\r\nw3\tzork\r\n".encode()
    (tmp_path / "lines.txt").write_bytes(raw)
    typed(raw)
    printed, states = [], []
    for source in (tmp_path / "lines.txt", "-"):
        printed.append(main_here(lm.generate, tiny_run, *flags, source))
        states.append(np.load("x.npz")["vector"].tolist() if "--features" in flags else None)
    assert printed[0] == printed[1] != ""
    assert states[0] == states[1]
    for nothing in (b"", b"caf\xe9"):
        typed(nothing)
        with pytest.raises(CorpusError, match="standard input: "):
            main_here(lm.generate, tiny_run, *flags, "-")


def test_unknown_words_are_named_once_in_the_same_words_whatever_they_are_for(main_here, tiny_run, tmp_path, caplog):
    text = " ".join(f"z{number}" for number in range(12)) + " w1\nz0\n"
    (tmp_path / "lines.txt").write_text(text)
    for flags in (["--tokens=1", "--prompt-file"], ["--score"], ["--per-line", "--score"]):
        main_here(lm.generate, tiny_run, *flags, tmp_path / "lines.txt")
    named = ", ".join(f"z{number}" for number in range(10))
    assert [record.getMessage() for record in caplog.records] == 3 * [
        f"not in the vocabulary, read as <unk>: {named}, ... (13 in all)"
    ]


def test_ordinary_english_is_scored_as_its_tokenization_is_and_words_keep_their_places(main_here, tiny_run, tmp_path):
    raw = ["A\tW1's W2, W3.", "B\t\u201cW4\u201d costs 1,500 w5s"]
    written = ["A\tw1 's w2 w3", "B\tw4 costs N w5s"]
    (tmp_path / "raw.txt").write_text("\n".join(raw) + "\n", encoding="utf-8")
    (tmp_path / "written.txt").write_text("\n".join(written) + "\n")
    tables = []
    for name, flags in (("raw", ["--sentences=ptb"]), ("written", [])):
        flags = [*flags, "--ids", "--independent", "--per-token"]
        table = main_here(lm.generate, tiny_run, "--score", tmp_path / f"{name}.txt", *flags)
        tables.append([line.split("\t") for line in table.splitlines()])
    ours, theirs = tables
    kept = [place for place, column in enumerate(ours[0]) if column not in ("start", "end")]
    assert [[row[k] for k in kept] for row in ours] == [[row[k] for k in kept] for row in theirs]
    start, end = ours[0].index("start"), ours[0].index("end")
    places = [raw["AB".index(row[0])][2:][int(row[start]) : int(row[end])] for row in ours[1:]]
    assert places == ["W1", "'s", "W2", "W3", "", "W4", "costs", "1,500", "w5s", ""]
    report = json.loads(main_here(lm.generate, tiny_run, "--score", tmp_path / "raw.txt", "--sentences=auto", "--json"))
    assert report["sentences"] == "plain"  # of no known corpus


def test_a_piece_that_begins_with_a_space_has_the_place_of_its_word(main_here, monkeypatch, tmp_path):
    tokenizer = BPETokenizer.from_text(" the cat sat \n" * 9, 270)
    trained = Trained(AWDLSTM(tokenizer.vocab_size, tiny()).eval(), tokenizer, make_config(dataset="ptb"))
    monkeypatch.setattr(lm.generate, "load", lambda path, device: trained)
    (tmp_path / "raw.txt").write_text("The cat, sat.\n")
    flags = ["--sentences=auto", "--per-token", "--json"]
    rows = json.loads(main_here(lm.generate, "run", "--score", tmp_path / "raw.txt", *flags))["rows"]
    assert [(row["word"], "The cat, sat."[row["start"] : row["end"]]) for row in rows if row["word"] != " "] == [
        (" the", "The"), (" cat", "cat"), (" sat", "sat"), ("<eos>", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("way", [["--temperature=3"], ["--greedy"], ["--beam=3", "--samples=3"]])
def test_the_log_probability_of_each_token_is_that_of_scoring(main_here, tiny_run, way):
    trained = load(tiny_run)
    for row in json_lines(main_here(lm.generate, tiny_run, "--prompt=w1 w2", "--tokens=6", "--jsonl", *way)):
        context = [trained.tokenizer.eos_id, *trained.tokenizer.encode("w1 w2", final_eos=False)]
        nats = read_running(trained.model, np.array([*context, *row["ids"]]))[0][-6:]
        assert row["token_logprobs"] == pytest.approx((-nats).tolist(), abs=1e-5)
        assert row["logprob"] == pytest.approx(sum(row["token_logprobs"]))


@pytest.mark.parametrize("stop", ["w5", r"\n", " w1"])
def test_a_text_ends_before_its_stop_string_and_is_the_same_up_to_there(main_here, tiny_run, stop):
    flags = [tiny_run, "--prompt=w5 w1", "--tokens=200", "--samples=3", "--jsonl"]
    whole = json_lines(main_here(lm.generate, *flags))
    ended = json_lines(main_here(lm.generate, *flags, "--stop", stop, "--stop=never"))
    stop = stop.replace(r"\n", "\n")
    for before, row in zip(whole, ended, strict=True):
        start = len("w5 w1")
        assert stop in before["text"][start:]
        assert row["text"] == "w5 w1" + before["text"][start:].partition(stop)[0]
        assert row["ids"] == before["ids"][: len(row["ids"])]
        assert row["token_logprobs"] == before["token_logprobs"][: len(row["ids"])]
        text = load(tiny_run).tokenizer.text
        prompt = load(tiny_run).tokenizer.encode("w5 w1", final_eos=False).tolist()
        assert stop in text(prompt + row["ids"])[start:] and stop not in text(prompt + row["ids"][:-1])[start:]


def test_a_greedy_text_ends_at_its_stop_string_too():
    model = tiny_model(V)
    whole = beam_search(model, [1, 2], 20, 1)[0]
    last = whole.ids[4]
    ended = beam_search(model, [1, 2], 20, 1, Limits(ended=lambda ids: last in ids))[0]
    assert ended.ids == whole.ids[: whole.ids.index(last) + 1]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("way", ["sample", "greedy", "beam"])
def test_no_run_of_n_tokens_comes_twice_the_prompt_included(n, way):
    model, context = tiny_model(V), [0, 3, 1, 3]
    limits = Limits([2], no_repeat_ngram=n)
    if way == "sample":
        found = sample(model, context, 14, Sampling(temperature=0.3), [1, 2], limits)
        free = sample(model, context, 14, Sampling(temperature=0.3), [1, 2])
    else:
        width = 1 if way == "greedy" else 3
        found = beam_search(model, context, 14, width, limits)
        free = beam_search(model, context, 14, width)

    def repeated(one):
        ids = [*context, *one.ids]
        runs = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        return len(runs) - len(set(runs)) - (n == 1)  # the context repeats one token itself

    assert [repeated(one) for one in found] == [0] * len(found)
    assert all(repeated(one) > 0 for one in free)
    assert all(2 not in one.ids for one in found)


def test_where_every_word_would_repeat_a_text_goes_on_all_the_same():
    model = tiny_model(3)
    for found in (
        sample(model, [0], 9, Sampling(), [1], Limits([1], no_repeat_ngram=1)),
        beam_search(model, [0], 9, 1, Limits([1], no_repeat_ngram=1)),
    ):
        assert len(found[0].ids) == 9 and set(found[0].ids) <= {0, 2}


def test_scoring_the_test_split_by_the_command_line_gives_its_perplexity(cli, tiny_run, corpus_dir, tmp_path):
    done = cli("generate", tiny_run, "--score", corpus_dir / "test.txt", "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    result = json.loads((tiny_run / "result.json").read_text())
    assert scores["total"]["ppl"] == pytest.approx(result["test_ppl"], rel=1e-6)
    tokens = len(load_corpus(None, corpus_dir, tmp_path).splits["test"])
    assert scores["total"]["tokens"] == tokens - 1
    table = cli("generate", tiny_run, "--score", corpus_dir / "test.txt", "--independent").stdout.splitlines()
    assert table[0].split("\t") == ["line", "logprob", "ppl", "tokens", "words", "unknown"]
    assert table[-1].split("\t")[3:] == [str(tokens), str(tokens - 60), "0"]
    assert len(table) == 62


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature=0"], "--temperature"),
        (["--temperature=nan"], "--temperature"),
        (["--top-p=0"], "--top-p"),
        (["--top-p=1.1"], "--top-p"),
        (["--top-k=-1"], "--top-k"),
        (["--tokens=0"], "--tokens"),
        (["--samples=0"], "--samples"),
        (["--beam=0"], "--beam"),
        (["--seed=-1"], "--seed"),
        (["--beam=2", "--top-p=0.9"], "--top-p"),
        (["--greedy", "--seed=1"], "--seed"),
        (["--greedy", "--beam=2"], "--greedy"),
        (["--beam=2", "--samples=3"], "--samples"),
        (["--beam=2", "--stop=x"], "--stop"),
        (["--stop="], "--stop"),
        (["--no-repeat-ngram=-1"], "--no-repeat-ngram"),
        (["--jsonl", "--json"], "--jsonl"),
        (["--score=x", "--jsonl"], "--jsonl is for generating"),
        (["--independent"], "--independent"),
        (["--per-token"], "--per-token"),
        (["--per-line"], "--per-line is for scoring"),
        (["--score=x", "--per-token", "--per-word"], "--per-word"),
        (["--score=x", "--per-token", "--per-line"], "--per-line"),
        (["--score=x", "--per-word", "--top=3"], "--top"),
        (["--score=x", "--ids"], "--ids"),
        (["--score=x", "--base=e"], "--base"),
        (["--score=x", "--prompt=a"], "--prompt"),
        (["--score=x", "--score=y"], "--score: give one file, not x and y"),
        (["--prompt=\udcff"], "--prompt"),  # what Python makes of a byte that is not UTF-8
    ],
)
def test_a_flag_that_makes_no_sense_is_named(flags, named, monkeypatch):
    from lm.base.errors import ConfigError
    from lm.generate import main

    monkeypatch.setattr("sys.argv", ["lm.generate", "nowhere", *flags])
    with pytest.raises(ConfigError, match=named):
        main()


def test_a_file_that_cannot_be_scored_exits_with_3_and_is_named(cli, tiny_run, tmp_path):
    path = tmp_path / "latin.txt"
    for content in (None, b"caf\xe9\n"):
        if content:
            path.write_bytes(content)
        done = cli("generate", tiny_run, "--score", path)
        assert done.returncode == 3
        assert "latin.txt" in done.stderr
        assert "Traceback" not in done.stderr
