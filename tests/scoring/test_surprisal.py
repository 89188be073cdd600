"""Surprisal of tokens and words: rows, offsets, sums, and the command line."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lm.evaluate
import lm.generate
from lm.base.errors import ConfigError, CorpusError
from lm.nn.model import AWDLSTM
from lm.scoring.surprisal import surprisal
from lm.text.bpe import BPETokenizer
from lm.text.characters import CharTokenizer
from lm.text.reading import split_words
from lm.text.words import WordTokenizer
from tests.nn.test_model import tiny

TRAIN = " the cat sat on the mat \n a caf\xe9 \u65e5\u672c the <unk> cat\n" * 2
TOKENIZERS = [WordTokenizer.from_text(TRAIN), CharTokenizer.from_text(TRAIN), BPETokenizer.from_text(TRAIN, 280)]
LINES = [" the cat", "", "  zork  caf\xe9 <unk> \u672c ", "\t", "the"]


def model_for(tokenizer):
    torch.manual_seed(0)
    return AWDLSTM(tokenizer.vocab_size, tiny()).eval()


def rows_of(tokenizer, text, **options):
    return [row for line in surprisal(model_for(tokenizer), tokenizer, text, **options) for row in line]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda one: one.kind)
@given(line=st.text(st.sampled_from("the cat\t \xa0\u65e5\xe9\U0001f600<unk>"), max_size=12))
def test_spans_say_where_each_token_stands(tokenizer, line):
    spans = tokenizer.spans(line)
    ids = tokenizer.encode(line, final_eos=False).tolist()
    assert len(spans) == len(ids)
    texts = [line[start:end] for start, end in spans]
    if tokenizer.kind == "word":
        assert texts == split_words(line)
    else:
        assert spans == sorted(spans)
        assert {place for span in spans for place in range(*span)} == set(range(len(line)))
    if tokenizer.kind == "bpe":  # its types are spelt in bytes
        whole = [(text, index) for text, index in zip(texts, ids, strict=True) if text.isascii()]
        assert all(tokenizer.text([index]) == text for text, index in whole)
    else:
        assert ids == [tokenizer.vocab.get(text, tokenizer.unk_id) for text in texts]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda one: one.kind)
def test_words_sum_the_tokens_that_they_and_the_white_space_before_them_consist_of(tokenizer, independent):
    tokens = rows_of(tokenizer, LINES, independent=independent)
    words = rows_of(tokenizer, LINES, independent=independent, per_word=True)
    assert [row["word"] for row in words if row["line"] == 3] == ["zork", "caf\xe9", "<unk>", "\u672c", "<eos>"]
    for word in words:
        assert LINES[word["line"] - 1][word["start"] : word["end"]] == word["word"].replace("<eos>", "")
    for number in range(1, 6):
        mine = [row for row in tokens if row["line"] == number]
        theirs = [row for row in words if row["line"] == number]
        assert sum(row["tokens"] for row in theirs) == len(mine)
        assert sum(r["surprisal"] for r in theirs) == pytest.approx(sum(r["surprisal"] for r in mine), rel=1e-9)
        assert [row["position"] for row in theirs] == list(range(1, len(theirs) + 1))
    first, eos = (row for row in words if row["line"] == 5)
    mine = [row for row in tokens if row["line"] == 5]
    assert first["surprisal"] == pytest.approx(sum(row["surprisal"] for row in mine[:-1]))
    assert eos["surprisal"] == pytest.approx(mine[-1]["surprisal"])


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda one: one.kind)
def test_a_line_sums_its_tokens_and_counts_the_unknown_ones(tokenizer, independent):
    tokens = rows_of(tokenizer, LINES, independent=independent)
    bits, nats = (
        rows_of(tokenizer, LINES, independent=independent, per_line=True, bits=bits) for bits in (True, False)
    )
    assert [row["line"] for row in bits] == [1, 2, 3, 4, 5]
    for row, in_nats in zip(bits, nats, strict=True):
        mine = [token for token in tokens if token["line"] == row["line"]]
        assert (row["tokens"], row["unknown"]) == (len(mine), sum(token["unknown"] for token in mine))
        assert row["surprisal"] == pytest.approx(sum(token["surprisal"] for token in mine), rel=1e-9)
        assert row["mean"] == pytest.approx(row["surprisal"] / row["tokens"])
        assert row["ppl"] == in_nats["ppl"] == pytest.approx(2 ** row["mean"])
        assert in_nats["surprisal"] == pytest.approx(row["surprisal"] * math.log(2))


def test_a_token_is_unknown_where_the_vocabulary_lacks_it_and_a_literal_unk_is_not():
    words, characters, pieces = ([row["unknown"] for row in rows_of(one, ["zork <unk> cat"])] for one in TOKENIZERS)
    assert words == [True, False, False, False]
    assert characters == [c not in TRAIN for c in "zork <unk> cat"] + [False]
    assert not any(pieces)
    assert [row["unknown"] for row in rows_of(TOKENIZERS[1], ["zork cat"], per_word=True)] == [True, False, False]


def test_bits_are_nats_over_ln_2_and_top_tokens_have_the_probability_of_their_rank():
    bits, nats = (
        rows_of(TOKENIZERS[0], ["the cat"], bits=bits, top=TOKENIZERS[0].vocab_size) for bits in (True, False)
    )
    for one, other in zip(bits, nats, strict=True):
        assert one["surprisal"] == pytest.approx(other["surprisal"] / math.log(2))
        assert one["entropy"] == pytest.approx(other["entropy"] / math.log(2))
        name, p = one["top"][one["rank"] - 1]
        assert name == one["word"]
        assert -math.log2(p) == pytest.approx(one["surprisal"], rel=1e-5)
        assert sum(p for _, p in one["top"]) == pytest.approx(1)


def test_one_running_line_and_text_as_a_string_or_lines_with_any_line_end():
    tokenizer = TOKENIZERS[0]
    expected = rows_of(tokenizer, ["the cat", "sat"])
    assert rows_of(tokenizer, "the cat\r\nsat\r\n") == rows_of(tokenizer, "the cat\rsat") == expected
    assert rows_of(tokenizer, ["the cat\n", "sat\r\n"]) == expected
    assert rows_of(tokenizer, [""])[0]["word"] == "<eos>"  # one token, which is predicted after another `<eos>`


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ([], {}, CorpusError),
        (["a\nb"], {}, CorpusError),
        (["a"], {"top": 11}, ConfigError),
        (["a"], {"top": 1, "per_word": True}, ConfigError),
        (["a"], {"top": 1, "per_line": True}, ConfigError),
        (["a"], {"per_word": True, "per_line": True}, ConfigError),
    ],
)
def test_what_makes_no_sense_is_refused(text, options, error):
    with pytest.raises(error):
        rows_of(TOKENIZERS[0], text, **options)


def table(text):
    head, *rows = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_valid_split_as_running_text_adds_up_to_its_evaluation(main_here, tiny_run, corpus_dir):
    flags = ["--score", corpus_dir / "valid.txt", "--per-token", "--base=e"]
    report = json.loads(main_here(lm.generate, tiny_run, *flags, "--json"))
    assert (report["unit"], report["mode"]) == ("nats", "continuous")
    nats = [row["surprisal"] for row in report["rows"][1:]]
    (whole,) = json.loads(main_here(lm.evaluate, tiny_run, "--split", "valid", "--columns=1", "--json"))["splits"]
    assert len(nats) == whole["targets"]
    assert math.fsum(nats) / len(nats) == pytest.approx(whole["loss"], rel=1e-9)
    rows = table(main_here(lm.generate, tiny_run, *flags, "--top=2"))
    columns = ["line", "position", "word", "start", "end", "surprisal", "unknown", "rank", "entropy"]
    assert list(rows[0]) == [*columns, "top1", "p1", "top2", "p2"]
    assert [float(row["surprisal"]) for row in rows[1:]] == pytest.approx(nats, abs=1e-6)
    assert (
        "".join(row["word"] for row in rows[:6])
        == (corpus_dir / "valid.txt").read_text().split("\n")[0].replace(" ", "") + "<eos>"
    )


@pytest.mark.parametrize("flags", [[], ["--independent", "--base=e"], ["--ids"]], ids=" ".join)
def test_the_row_of_a_line_adds_up_to_the_rows_of_its_tokens_as_printed(main_here, tiny_run, tmp_path, flags):
    (tmp_path / "lines.tsv").write_text("a1\tw1 zork w2 zork\na2\tw2 w3\nb1\tw1\n")
    score = [lm.generate, tiny_run, "--score", tmp_path / "lines.tsv", *flags]
    tokens, lines = (table(main_here(*score, per)) for per in ("--per-token", "--per-line"))
    head = ["id", "line"] if "--ids" in flags else ["line"]
    assert list(lines[0]) == [*head, "tokens", "unknown", "surprisal", "mean", "ppl"]
    assert len(lines) == 3
    for line in lines:
        mine = [row for row in tokens if [row[name] for name in head] == [line[name] for name in head]]
        assert (int(line["tokens"]), int(line["unknown"])) == (len(mine), sum(int(row["unknown"]) for row in mine))
        summed = sum(float(row["surprisal"]) for row in mine)
        assert float(line["surprisal"]) == pytest.approx(summed, abs=1e-6 * len(mine))
        assert float(line["mean"]) == pytest.approx(float(line["surprisal"]) / len(mine), abs=1e-6)
        mean = float(line["mean"]) * (1 if "--base=e" in flags else math.log(2))
        assert float(line["ppl"]) == pytest.approx(math.exp(mean), rel=1e-5)
    report = json.loads(main_here(*score, "--per-line", "--json"))
    assert report["unit"] == ("nats" if "--base=e" in flags else "bits")
    assert [f"{row['surprisal']:.6f}" for row in report["rows"]] == [row["surprisal"] for row in lines]


def test_ids_and_utf8_by_the_command_line_in_a_locale_without_it(cli, tiny_run, tmp_path):
    (tmp_path / "lines.tsv").write_bytes("a1\tw1 caf\xe9\r\na2\t w2\r\n".encode())
    flags = [tiny_run, "--score", tmp_path / "lines.tsv", "--independent", "--per-word", "--ids"]
    done = cli("generate", *flags, LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "read as <unk>: caf" in done.stderr and "(1 in all)" in done.stderr  # the ids are not text
    rows = table(done.stdout)
    assert [(row["id"], row["word"], row["start"], row["end"], row["unknown"]) for row in rows] == [
        ("a1", "w1", "0", "2", "0"), ("a1", "caf\xe9", "3", "7", "1"), ("a1", "<eos>", "7", "7", "0"),
        ("a2", "w2", "1", "3", "0"), ("a2", "<eos>", "3", "3", "0"),
    ]  # fmt: skip
    (tmp_path / "lines.tsv").write_text("a1\tw1\nw2\n")
    done = cli("generate", *flags)
    assert done.returncode == 3
    assert "line 2 has no tab" in done.stderr


def test_as_a_library_rows_come_in_one_list(tiny_run):
    rows = lm.load(tiny_run).surprisal(["w1 w2", "w3"], independent=True, top=1)
    assert [(row["line"], row["word"]) for row in rows] == [
        (1, "w1"), (1, "w2"), (1, "<eos>"), (2, "w3"), (2, "<eos>"),
    ]  # fmt: skip
    total = lm.load(tiny_run).logprob("w1 w2")
    assert sum(row["surprisal"] for row in rows[:3]) * math.log(2) == pytest.approx(-total, rel=1e-6)
