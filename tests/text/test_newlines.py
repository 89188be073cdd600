r"""Lines that end in \r\n or \r are the lines that end in \n: in corpora, in scored text, in prompts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.config.values import make_config
from lm.nn.model import AWDLSTM
from lm.scoring.score import score_text
from lm.text.bpe import BPETokenizer, _short_runs
from lm.text.finding import load_corpus
from lm.text.reading import split_lines, text_of, universal_newlines
from lm.text.tokenization import Tokenization
from tests.conftest import write_corpus

KINDS = [Tokenization("word"), Tokenization("char"), Tokenization("bpe", 300)]
ENDS = [b"\r\n", b"\r"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n")), min_size=2).filter(lambda lines: any(lines[1:])))
def test_a_text_is_the_same_lines_whatever_ends_them(lines):
    for end in ("\n", "\r\n", "\r"):
        assert split_lines(universal_newlines(end.join(lines))) == split_lines("\n".join(lines))
    assert text_of("\ufeffa\r\nb".encode()) == "a\nb"


def test_a_carriage_return_within_a_line_stays():
    assert universal_newlines("a\rb\nc\r\n") == "a\rb\nc\n"


@pytest.mark.parametrize("tokenization", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("end", ENDS)
def test_a_corpus_gives_the_same_tokens_and_vocabulary(tokenization, end, tmp_path):
    unix = write_corpus(tmp_path / "unix", train=30, held_out=9)
    other = write_corpus(tmp_path / "other", train=30, held_out=9)
    for path in other.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", end))
    one, two = (load_corpus(None, folder, tmp_path, tokenization) for folder in (unix, other))
    assert one.tokenizer.fingerprint() == two.tokenizer.fingerprint()
    assert (one.lines, one.words) == (two.lines, two.words)
    assert one.lines["train"] == 30
    assert all(np.array_equal(one.splits[split], two.splits[split]) for split in one.splits)
    assert one.sha256 != two.sha256
    assert load_corpus(None, other, tmp_path, tokenization).path == two.path  # out of the cache


@pytest.mark.parametrize("tokenization", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("independent", [False, True])
def test_a_text_has_the_same_score(tokenization, end, independent):
    text = "the cat sat\nthe dog ran\n"
    tokenizer = tokenization.learn([text * 5])
    torch.manual_seed(1)
    model = AWDLSTM(tokenizer.vocab_size, make_config(emsize=8, nhid=8, nlayers=1)).eval()
    assert score_text(model, tokenizer, text.replace("\n", end), independent=independent) == score_text(
        model, tokenizer, text, independent=independent
    )


@given(st.text(st.sampled_from("ab \t"), max_size=40).map(lambda line: line.replace("a", "a" * 400)))
def test_lines_are_cut_for_the_bpe_trainer_in_runs_that_no_word_has_and_nowhere_else(line):
    pieces = list(_short_runs(line))
    assert "".join(pieces) == line
    longest = max((len(run) for run in line.replace("\t", " ").split(" ")), default=0)
    if longest < 1000:
        assert pieces == [line]
    for piece in pieces:
        assert all(len(run) <= 1000 for run in piece.split())


def test_bpe_learns_from_one_long_run_in_a_moment():
    """Its trainer's time grows with the square of a run: uncut, this took a minute."""
    text = "acgtgattaca" * 20_000
    tokenizer = BPETokenizer.from_text(text, 300)
    assert tokenizer.text(tokenizer.encode(text, final_eos=False)) == text
    assert len(tokenizer.encode(text)) < len(text) / 4
