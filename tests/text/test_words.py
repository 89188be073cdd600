"""The word-level tokenizer: vocabulary order, agreement with the `tokenizers` library, files."""

import json
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit

from lm.base.errors import CorpusError
from lm.text.reading import read_text, split_lines, split_words
from lm.text.tokenizer import EOS, UNK
from lm.text.words import WordTokenizer

# Words and separators at which `str.split`, `str.splitlines` and `WhitespaceSplit` disagree, and look-alikes of tokens.
PIECES = [
    "a", "b", "A", "é", "e\u0301", "<unk>", "<eos>", "<UNK>", "[UNK]", "<", ">", "@-@", "\ufeff", "\u200b", "\u180e",
    " ", "  ", "\n", "\r\n", "\r", "\t", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u2028",
    "\u2029", "\u3000", "\u1680", "\u202f", "\x7f", "\U0001f600",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join)


def saved(tokenizer: WordTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    return Tokenizer.from_file(str(path))


def test_vocabulary_is_numbered_by_first_appearance_with_eos_at_the_first_line_end():
    tokenizer = WordTokenizer.from_text("b a b\n\nc <unk> a\n")
    assert tokenizer.types == ["b", "a", EOS, "c", UNK]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.unk_id) == (5, 2, 4)


def test_unk_is_added_at_the_end_where_the_text_has_none():
    assert WordTokenizer.from_text("b a\nc").types == ["b", "a", EOS, "c", UNK]


def test_every_line_ends_with_eos_blank_ones_and_an_unfinished_last_one_too():
    tokenizer = WordTokenizer.from_text("a\n")
    for text, words in {
        "a\n\n \na": ["a", EOS, EOS, EOS, "a", EOS],
        "a\r\na\r\n": ["a", EOS, "a", EOS],
        "\n": [EOS],
        "": [],
    }.items():
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == words


def test_a_prompt_is_left_open_but_its_inner_lines_end():
    tokenizer = WordTokenizer.from_text("a b\n")
    for prompt, words in {"a\nb": ["a", EOS, "b"], "a\n": ["a", EOS], "": [], "\n": [EOS]}.items():
        assert tokenizer.decode(tokenizer.encode(prompt, final_eos=False)) == words


def test_lines_end_at_newlines_only():
    assert split_lines("a\x0bb\x0cc\x1cd\x85e\u2028f\rg\r\nh") == ["a\x0bb\x0cc\x1cd\x85e\u2028f\rg\r", "h"]


def test_white_space_is_that_of_the_library_for_every_character():
    splits = WhitespaceSplit().pre_tokenize_str
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000:
            text = f"a{chr(code)}b"
            assert len(split_words(text)) == len(splits(text)), hex(code)


def test_unknown_words_are_counted_and_a_literal_unk_is_not():
    tokenizer = WordTokenizer.from_text("a <unk>\n")
    text = "a x <unk>\nx y\n"
    assert tokenizer.unknown(text) == {"x": 2, "y": 1}
    assert tokenizer.decode(tokenizer.encode(text)) == ["a", UNK, UNK, EOS, UNK, UNK, EOS]


@given(train=TEXTS, text=TEXTS)
def test_ids_equal_those_of_the_saved_file_in_the_library(tmp_path_factory, train, text):
    tokenizer = WordTokenizer.from_text(train)
    library = saved(tokenizer, tmp_path_factory)
    expected = [index for line in split_lines(text) for index in library.encode(f"{line} {EOS}").ids]
    assert tokenizer.encode(text).tolist() == expected
    assert library.get_vocab_size() == tokenizer.vocab_size


@given(text=TEXTS)
def test_decoding_gives_back_the_words_and_a_reload_the_vocabulary(tmp_path_factory, text):
    tokenizer = WordTokenizer.from_text(text)
    words = [word for line in split_lines(text) for word in [*split_words(line), EOS]]
    assert tokenizer.decode(tokenizer.encode(text)) == words
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    assert WordTokenizer.load(path).types == tokenizer.types


@pytest.mark.parametrize("ids", [[-1], [3], [0, 99]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match="token ids must lie in 0..2"):
        WordTokenizer.from_text("a\n").decode(ids)


@pytest.mark.parametrize("words", [["a", EOS], ["a", UNK], ["a", "a", EOS, UNK], ["a b", EOS, UNK], ["", EOS, UNK]])
def test_a_vocabulary_that_cannot_be_encoded_with_is_refused(words):
    with pytest.raises(ValueError, match="vocabulary"):
        WordTokenizer(words)


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    WordTokenizer.from_text("a\n").save(path)
    assert WordTokenizer.load(path).types == ["a", EOS, UNK]
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    def disk_full(_: int) -> None:
        raise OSError("no space left")

    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        WordTokenizer.from_text("a\n").save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def holes(model: dict) -> dict:
    model["model"]["vocab"]["a"] = 7
    return model


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-40], lambda text: "{}", lambda text: json.dumps(holes(json.loads(text)))]
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    WordTokenizer.from_text("a\n").save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorpusError, match=r"tokenizer\.json: not a usable tokenizer"):
        WordTokenizer.load(path)


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(BPE()).save(str(path))
    with pytest.raises(CorpusError, match="not a word-level tokenizer"):
        WordTokenizer.load(path)


def test_a_text_file_is_read_without_its_byte_order_mark_and_with_line_ends_of_one_kind(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffa é\r\nb".encode())
    assert read_text(tmp_path / "text") == "a é\nb"
