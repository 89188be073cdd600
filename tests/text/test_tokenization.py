"""Characters and byte-level BPE: round trips, agreement with the `tokenizers` library, what lines become."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from lm.base.errors import CorpusError
from lm.text.bpe import BPETokenizer
from lm.text.characters import CharTokenizer
from lm.text.reading import split_lines
from lm.text.tokenization import Tokenization
from lm.text.tokenizer import EOS, UNK
from lm.text.words import WordTokenizer

TRAIN = " the cat sat on the mat . \n\n the  other cat <unk> ran\taway\r\n é 12 émigré 😀 \n" * 3
BPE = BPETokenizer.from_text(TRAIN, 290)
CHAR = CharTokenizer.from_text(TRAIN)
# Pieces at which a split could lose or join something, among any characters.
TEXTS = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\r\n", "\t", " the", "cat", EOS, UNK, "é", "e\u0301", "\x85", "\u2028", "\ufeff"]
    )
    | st.text(max_size=4),
    max_size=12,
).map("".join)
KNOWN = st.text(alphabet=sorted(set(TRAIN)), max_size=30)
few = settings(max_examples=40)


@pytest.fixture(scope="module", params=[CHAR, BPE], ids=["char", "bpe"])
def both(request, tmp_path_factory):
    """A tokenizer, and what the library makes of its file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    request.param.save(path)
    return request.param, path


def test_characters_are_numbered_by_first_appearance_with_the_line_end_as_eos():
    tokenizer = CharTokenizer.from_text("b a\nc\n")
    assert tokenizer.types == ["b", " ", "a", EOS, "c", UNK]
    assert (tokenizer.eos_id, tokenizer.unk_id) == (3, 5)
    assert CharTokenizer.from_text("ab").types == ["a", "b", EOS, UNK]
    ids = tokenizer.encode("a\n\ncx")
    assert (ids.dtype, ids.tolist()) == (np.int32, [2, 3, 3, 4, 5, 3])


@given(text=TEXTS)
@few
def test_bpe_gives_back_any_text_white_space_included(text):
    ids = BPE.encode(text, final_eos=False)
    assert BPE.text(ids) == text
    assert ids.dtype == np.int32


@given(text=KNOWN)
@few
def test_characters_give_back_any_text_of_known_ones(text):
    assert CHAR.text(CHAR.encode(text, final_eos=False)) == text
    assert not CHAR.unknown(text)


@given(text=TEXTS)
@few
def test_every_kind_ends_the_same_lines_with_eos_and_no_piece_spans_two(text):
    lines = split_lines(text)
    for tokenizer in (CHAR, BPE, WordTokenizer.from_text(TRAIN)):
        ids = tokenizer.encode(text)
        pieces = [tokenizer.encode(line + "\n") for line in lines]
        assert ids.tolist() == [index for piece in pieces for index in piece.tolist()]
        if tokenizer.kind != "word":  # there a literal <eos> is one too
            assert (ids == tokenizer.eos_id).sum() == len(lines)


@given(text=TEXTS.filter(lambda text: EOS not in text))
@few
def test_the_saved_file_reads_a_whole_text_in_the_library_as_we_do(both, text):
    tokenizer, path = both
    library = Tokenizer.from_file(str(path))
    assert library.encode(text).ids == tokenizer.encode(text, final_eos=False).tolist()
    assert library.get_vocab_size() == tokenizer.vocab_size
    assert library.token_to_id(EOS) == tokenizer.eos_id


def test_a_reloaded_tokenizer_is_the_same_and_another_kind_is_refused(both):
    tokenizer, path = both
    again = type(tokenizer).load(path)
    assert again.types == tokenizer.types
    text = f"a {EOS} the c\u0151w\n\n"
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    for kind in {"word", "char", "bpe"} - {tokenizer.kind}:
        with pytest.raises(CorpusError, match=r"tokenizer\.json: not a usable tokenizer"):
            Tokenization(kind).load(path)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_long_text_is_encoded_piece_by_piece_to_the_same_ids(monkeypatch, end):
    whole = BPE.encode(TRAIN + "the" + end, final_eos=False)
    monkeypatch.setattr("lm.text.bpe._BATCH", 4)
    assert BPE.encode(TRAIN + "the" + end, final_eos=False).tolist() == whole.tolist()


def test_a_literal_eos_or_unk_in_the_text_is_text():
    text = f"a{EOS}b {UNK}"
    for tokenizer in (CHAR, BPE):
        ids = tokenizer.encode(text, final_eos=False)
        assert not np.isin(ids, [tokenizer.eos_id]).any()
    assert len(CHAR.encode(text)) == len(text) + 1


def test_unknown_characters_become_unk_and_are_counted_and_bpe_has_none():
    assert CHAR.unknown("a\u0151\n\u0151z") == Counter({"\u0151": 2, "z": 1})
    ids = CHAR.encode("\u0151a\n")
    assert ids.tolist() == [CHAR.unk_id, CHAR.vocab["a"], CHAR.eos_id]
    assert CHAR.text(ids) == f"{UNK}a\n"
    assert (BPE.unknown("\u0151"), BPE.unk_id) == (Counter(), None)


def naive_merges(text, count):
    """Byte-pair merges by their definition: the most frequent neighbours in words; the text leaves no ties."""
    words = [list(f"\u0120{word}") for word in text.split()]  # U+0120 stands for the space before a word
    merges = []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        best = max(pairs.values())
        (pair,) = (pair for pair, n in pairs.items() if n == best)
        merges.append("".join(pair))
        for word in words:
            at = 0
            while at < len(word) - 1:
                if "".join(word[at : at + 2]) == merges[-1]:
                    word[at : at + 2] = [merges[-1]]
                at += 1
    return merges


def test_merges_are_those_of_the_definition():
    text = " abc" * 9 + " ab" * 5 + " xab" * 3 + " xq" * 2
    tokenizer = BPETokenizer.from_text(text, 263)
    assert tokenizer.types[257:] == naive_merges(text, 6)
    assert (tokenizer.types[0], sorted(tokenizer.types[1:257])) == (EOS, sorted(ByteLevel.alphabet()))


def test_merging_stops_when_no_pair_recurs():
    assert BPETokenizer.from_text(" ab ab cd\n", 1000).types[257:] == ["ab", "\u0120ab"]


def test_merges_do_not_depend_on_threads_or_process(environment):
    program = (
        "import sys; from tests.text.test_tokenization import TRAIN; from lm.text.bpe import BPETokenizer; "
        "print(BPETokenizer.from_text(TRAIN, 290).fingerprint())"
    )
    for parallel in ("false", "true"):
        found = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert found.strip() == BPE.fingerprint()


def test_bytes_that_are_no_text_are_shown_and_ids_outside_the_vocabulary_refused():
    first, second = BPE.encode("\u0151", final_eos=False).tolist()
    assert BPE.text([first, BPE.eos_id, second]) == "\ufffd\n\ufffd"
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\."):
        BPE.text([BPE.vocab_size])
