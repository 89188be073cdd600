"""Word vectors as text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.base.errors import ConfigError
from lm.text.vectors import read_vectors, write_vectors

FLOATS = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3), min_size=1, unique=True),
    st.data(),
)
def test_what_is_written_is_read_back_bit_for_bit_words_of_white_space_among_it(tmp_path_factory, words, data):
    words = [word for word in words if "<U+" not in word] or ["a"]
    rows = [data.draw(st.lists(FLOATS, min_size=2, max_size=2)) for _ in words]
    matrix = np.array(rows, dtype=np.float32)
    path = tmp_path_factory.mktemp("vectors") / "v.txt"
    write_vectors(path, words, matrix)
    vocab = {word: index for index, word in enumerate(words)}
    found = read_vectors(path, vocab, 2)
    assert np.array_equal(np.stack([found[index] for index in range(len(words))]), matrix)
    lines = path.read_text().split("\n")
    assert lines[0] == f"{len(words)} 2" and {len(line.split()) for line in lines[1:-1]} == {3}


def test_a_file_without_a_first_line_and_with_words_of_several_parts_is_read_and_the_first_of_two_counts(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2\r\n. . 3 4\r\nother 9 9\r\nthe 5 6\r\n")
    found = read_vectors(path, {"the": 0, ". .": 1, "none": 2}, 2)
    assert {index: vector.tolist() for index, vector in found.items()} == {0: [1, 2], 1: [3, 4]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "none of the 1 types"),
        (b"1 3\nthe 1 2 3\n", r"no vectors of 2 values \(--emsize\), but of 3"),
        (b"the 1 2 3\n", "but of 3"),
        (b"\nthe 1 2\n", "its first line is empty"),
        (b"2 2\nthe 1 x\n", "v.txt:2: not a word and 2 finite values"),
        (b"2 2\nthe 1 nan\n", "v.txt:2"),
        (b"2 2\nthe 1\n", "v.txt:2"),
        (b"1 2\nother 1 2\n", "none of the 1 types"),
    ],
)
def test_a_file_that_is_of_no_use_is_named_with_the_flag(tmp_path, content, words):
    path = tmp_path / "v.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--init-vectors: .*{words}"):
        read_vectors(path, {"the": 0}, 2)
