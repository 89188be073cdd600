"""Ordinary English in the tokenization of a corpus."""

import pytest

from lm.config.values import make_config
from lm.text.detokenize import detokenize
from lm.text.english import TOKENIZATIONS, spans_in, tokenization_for

SENTENCES = {
    "Derek's ex-wife can't stay.": (
        "derek 's ex-wife ca n't stay", "Derek 's ex @-@ wife can 't stay .", "derek 's ex-wife ca n't stay .",
    ),
    "Isn't that the guests' car?": (
        "is n't that the guests ' car", "Isn 't that the guests ' car ?", "is n't that the guests ' car ?",
    ),
    "Mr. Hall, of the U.S., paid $1,500.5 or 8%.": (
        "mr. hall of the u.s. paid $ N or N N", "Mr. Hall , of the U.S. , paid $ 1 @,@ 500 @.@ 5 or 8 % .", None,
    ),
    "\u201cI\u2019ll go\u201d, she cannot say in the 1950s...": (
        "i 'll go she can not say in the 1950s", "\" I 'll go \" , she cannot say in the 1950s ...", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_becomes_what_the_corpus_would_hold(sentence):
    for name, expected in zip(("ptb", "wikitext-2", "pydocs"), SENTENCES[sentence], strict=True):
        if expected:
            assert " ".join(TOKENIZATIONS[name](sentence).split()) == expected
    assert TOKENIZATIONS["plain"](sentence) == sentence


@pytest.mark.parametrize("sentence", ["The dog's bone, he didn't eat it.", "Isn't a well-known ex-wife there?"])
def test_detokenizing_gives_back_the_sentence_that_wikitext_would_hold(sentence):
    assert detokenize(TOKENIZATIONS["wikitext-2"](sentence).split()) == sentence


@pytest.mark.parametrize("name", ["ptb", "wikitext-2"])
def test_a_line_has_the_spaces_of_the_published_files(name):
    assert TOKENIZATIONS[name]("a cat") == " a cat "
    assert TOKENIZATIONS[name]("") == " "


@pytest.mark.parametrize("name", TOKENIZATIONS)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_words_are_found_in_the_sentence_that_they_were_made_of(sentence, name):
    words = TOKENIZATIONS[name](sentence).split()
    spans = spans_in(sentence, words)
    typographic = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
    straight = sentence.translate(typographic)
    for word, (start, end) in zip(words, spans, strict=True):
        found = straight[start:end]
        word = word.translate(typographic).strip("@")
        assert found.lower() == word.lower() or (word == "N" and (found[0].isdigit() or found == "%"))
    ends = [0, *(end for _, end in spans)]
    assert all(end <= start for end, (start, _) in zip(ends, spans, strict=False))


def test_the_letter_n_is_no_number():
    sentence = "Vitamin N has 5"
    spans = spans_in(sentence, TOKENIZATIONS["wikitext-2"](sentence).split())
    assert [sentence[slice(*span)] for span in spans] == ["Vitamin", "N", "has", "5"]


def test_a_word_that_the_sentence_lacks_has_an_empty_place_after_the_one_before_it():
    assert spans_in("a cat sat", ["a", "dog", "sat"]) == [(0, 1), (1, 1), (6, 9)]


def test_pydocs_reads_dashes_as_its_documentation_does():
    sentence = "It returns a value \u2014 or none."
    words = TOKENIZATIONS["pydocs"](sentence).split()
    assert words == ["it", "returns", "a", "value", "-", "or", "none", "."]
    assert [sentence[slice(*span)] for span in spans_in(sentence, words)][3:6] == ["value", "\u2014", "or"]


@pytest.mark.parametrize(
    ("dataset", "name"), [("ptb", "ptb"), ("wikitext-103", "wikitext-2"), ("pydocs", "pydocs"), ("mine", "plain")]
)
def test_auto_is_the_way_of_the_corpus(dataset, name):
    assert tokenization_for(make_config(dataset=dataset), "auto")[0] == name
