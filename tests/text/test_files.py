"""Texts as streams: blocks, compressed files, rows, several files a split, corpora cut out of one file."""

import gzip
import hashlib
import json
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lm.base.errors import CorpusError
from lm.text import cards, formats, sources
from lm.text.byte_level import ByteTokenizer
from lm.text.encoding import Encoding
from lm.text.finding import load_corpus
from lm.text.formats import in_order
from lm.text.layout import SPLITS
from lm.text.reading import count_words, split_lines, split_words, text_of
from lm.text.sources import FileText, MemoryText, survey
from lm.text.tokenization import Tokenization
from lm.text.tokenizer import EOS, UNK
from lm.text.words import WordTokenizer

KINDS = [
    Tokenization("word"),
    Tokenization("word", vocab_size=6, lowercase=True),
    Tokenization("char"),
    Tokenization("bpe", 270),
    Tokenization("byte"),
]
PIECES = st.sampled_from(
    ["a", "B", "ab", " ", "  ", "\n", "\r\n", "\r", "\t", UNK, EOS, "é", "Σ", "😀", "\u2028", "\ufeff"]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join).filter(lambda text: split_words(text_of(text.encode())))
LINES = ["the cat sat", "", "the  dog ran", " a é cat "]
few = settings(max_examples=60)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LM_CORPORA", raising=False)


class Pieces(MemoryText):
    """A text in memory that is handed out a few bytes at a time."""

    def chunks(self):
        return (self.content[start : start + 3] for start in range(0, len(self.content), 3))


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@given(text=TEXTS)
@few
def test_a_text_in_pieces_has_the_lines_and_the_checksum_that_it_has_as_a_whole(text):
    stream = Pieces("text", text.encode())
    blocks = list(stream.blocks())
    assert "".join(blocks) == text_of(text.encode())
    assert all(block.endswith("\n") for block in blocks[:-1])
    assert survey(stream).sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("tokenization", KINDS, ids=str)
@given(text=TEXTS)
@few
def test_a_text_in_pieces_is_encoded_and_counted_as_it_is_as_a_whole(tokenization, text):
    encoding = Encoding({"train": Pieces("text", (text + "a b a").encode())}, tokenization)
    whole = text_of((text + "a b a").encode())
    tokenizer = encoding.tokenizer
    assert tokenizer.types == tokenization.learn([whole]).types
    ids = np.concatenate(list(encoding.ids("train")))
    assert (ids.dtype, ids.tolist()) == (np.uint16, tokenizer.encode(whole).tolist())
    counts = encoding.counts
    assert counts.tokens["train"] == len(ids)
    assert counts.unk["train"] == tokenizer.unknown(whole).total()
    assert (counts.lines["train"], counts.words["train"]) == (len(split_lines(whole)), count_words(whole))


@pytest.mark.parametrize("tokenization", KINDS, ids=str)
def test_a_line_of_megabytes_is_cut_between_words_to_the_same_ids(monkeypatch, tokenization):
    text = " ".join(random.Random(1).choices(["the", "cat", " sat", "é", "."], k=400))
    whole = Encoding({"train": MemoryText("text", text.encode())}, tokenization)
    monkeypatch.setattr(sources, "_LONG_LINE", 20)
    stream = Pieces("text", text.encode())
    assert max(map(len, stream.blocks())) < 40
    pieces = Encoding({"train": stream}, tokenization)
    assert pieces.tokenizer.types == whole.tokenizer.types
    one, other = (np.concatenate(list(encoding.ids("train"))).tolist() for encoding in (pieces, whole))
    assert one == other


def rows_of(lines: list[str]) -> str:
    return "".join(json.dumps({"id": 1, "text": line}) + "\n" for line in lines)


def write_rows(path: Path, lines: list[str], column: str = "text") -> None:
    pq.write_table(pa.table({"id": list(range(len(lines))), column: lines}), path)


def as_parquet(folder: Path, split: str) -> None:
    for number, part in enumerate((LINES[:1], LINES[1:])):
        write_rows(folder / f"{split}-{number:05}-of-00002.parquet", part)


def as_numbered(folder: Path, split: str) -> None:
    write(folder, **{f"{split}_{number}.txt": line for number, line in zip((2, 9, 10, 100), LINES, strict=True)})


def as_folder(folder: Path, split: str) -> None:
    write(
        folder / split,
        **{"b.jsonl": rows_of(LINES[2:]), "a.txt": "".join(f"{line}\n" for line in LINES[:2]), "notes.md": "no text"},
    )


def test_files_whose_last_row_fills_a_block_have_no_blank_line_between_them(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_CHUNK", 4)
    folder = write(tmp_path, **{"a.jsonl": rows_of(["the cat", "sat"]), "b.jsonl": rows_of(["the dog"])})
    text = FileText.of([folder / "a.jsonl", folder / "b.jsonl"])
    assert b"".join(text.chunks()) == b"the cat\nsat\nthe dog\n"


TEXT = "\n".join(LINES) + "\n"
WRITERS = {
    "gzip": lambda folder, split: write(folder, **{f"{split}.txt.gz": gzip.compress(TEXT.encode())}),
    "zstandard": lambda folder, split: write(
        folder, **{f"{split}.txt.zst": pa.compress(TEXT.encode(), codec="zstd", asbytes=True)}
    ),
    "json": lambda folder, split: write(folder, **{f"{split}.jsonl": rows_of(LINES)}),
    "rows that end": lambda folder, split: write(folder, **{f"{split}.jsonl": rows_of([ln + "\n" for ln in LINES])}),
    "json, gzip": lambda folder, split: write(folder, **{f"{split}.jsonl.gz": gzip.compress(rows_of(LINES).encode())}),
    "parquet": as_parquet,
    "numbered": as_numbered,
    "folder": as_folder,
}


@pytest.mark.parametrize("spelling", ["valid", "validation", "dev"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_corpus_is_the_same_in_every_kind_of_file(tmp_path, writer, spelling):
    plain = load_corpus(None, write(tmp_path / "plain", **{f"{split}.txt": TEXT for split in SPLITS}))
    for split in ("train", spelling, "test"):
        (tmp_path / "own").mkdir(exist_ok=True)
        writer(tmp_path / "own", split)
    corpus = load_corpus(None, tmp_path / "own")
    assert (corpus.sha256, corpus.lines, corpus.name) == (plain.sha256, plain.lines, "own")
    assert all(np.array_equal(corpus.splits[split], plain.splits[split]) for split in SPLITS)


def test_a_folder_of_many_files_may_stand_beside_the_other_splits(tmp_path):
    folder = write(tmp_path / "own", **{"dev.txt": TEXT, "test.jsonl": rows_of(LINES)})
    as_folder(folder, "train")
    assert set(load_corpus(None, folder).lines.values()) == {4}


def test_files_come_in_the_order_of_their_numbers():
    paths = [Path(f"train-{number}.txt") for number in (10, 9, 100)]
    assert [path.stem for path in in_order(paths)] == ["train-9", "train-10", "train-100"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"train.txt": "a\n", "valid.txt": "a\n", "dev.txt": "b\n"}, r"dev\.txt and valid\.txt: which is valid\?"),
        ({"train.txt": "a\n", "test.txt": "a\n"}, r"only a part of a corpus: valid\.txt missing"),
        ({"train.jsonl": '{"text": "a"}\n{"body": "b"}\n', "valid.txt": "a\n"}, r"train\.jsonl: row 2 has no text"),
        ({"train.jsonl": '{"text": "a"\n', "valid.txt": "a\n"}, r"train\.jsonl: row 1 has no text"),
        ({"train.jsonl": '{"text": "\\ud800"}\n', "valid.txt": "a\n"}, r"train\.jsonl: row 1 has no text"),
        ({"train.txt.gz": gzip.compress(b"a b\n" * 99)[:-9], "valid.txt": "a\n"}, r"txt\.gz: cannot be decompressed"),
        ({"train.txt.gz": b"no gzip", "valid.txt": "a\n"}, r"train\.txt\.gz: cannot be read: Not a gzipped file"),
        ({"train.txt.zst": b"no zstandard", "valid.txt": "a\n"}, r"train\.txt\.zst: cannot be read: ZSTD"),
        ({"train.parquet": b"no parquet", "valid.txt": "a\n"}, r"train\.parquet: not a Parquet file"),
        (
            {"train-00000-of-00003.txt": "a\n", "valid.txt": "a\n"},
            "train-00000-of-00003.txt: one of 3 files, .* only 1",
        ),
        ({"train.txt": "a\n", "valid.jsonl": '{"text": " "}\n'}, r"valid\.jsonl: empty, holds no word"),
    ],
)
def test_what_is_no_corpus_is_refused_by_file_and_reason(tmp_path, files, reason):
    with pytest.raises(CorpusError, match=reason):
        load_corpus(None, write(tmp_path / "own", **files))


def test_a_parquet_file_without_a_column_of_text_and_an_empty_folder_are_refused(tmp_path):
    folder = write(tmp_path / "own", **{"valid.txt": "a\n"})
    write_rows(folder / "train.parquet", LINES, "sentence")
    with pytest.raises(CorpusError, match="has no column 'text', only id, sentence"):
        load_corpus(None, folder)
    write_rows(folder / "train.parquet", [b"bytes"])
    with pytest.raises(CorpusError, match="row 1 has no text in 'text'"):
        load_corpus(None, folder)
    (folder / "train.parquet").unlink()
    (folder / "train").mkdir()
    with pytest.raises(CorpusError, match="train: holds no file of text"):
        load_corpus(None, folder)


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path, **{"train.txt": "a\n"}) / "train.txt"
    before = survey(FileText.of([path])).sha256
    path.write_text("a b\n")
    assert survey(FileText.of([path])).sha256 != before


def naive_vocabulary(text: str, vocab_size: int, min_count: int) -> list[str]:
    """The most frequent words by their definition, in order of first appearance."""
    words = [word for line in text.splitlines() for word in [*line.split(), EOS]]
    counts = Counter(word for word in words if word not in (EOS, UNK))
    ranked = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], words.index(w)))
    kept = {*ranked[: vocab_size - 2 if vocab_size else None], EOS, UNK}
    return [word for word in dict.fromkeys([*words, UNK]) if word in kept]


@given(
    words=st.lists(st.sampled_from([*"abcdef", "\n", UNK]), min_size=1, max_size=60),
    vocab_size=st.sampled_from([0, 3, 5, 9]),
    min_count=st.integers(1, 4),
)
@few
def test_a_capped_vocabulary_is_that_of_its_definition(words, vocab_size, min_count):
    text = " ".join(words) + "\n"
    tokenizer = WordTokenizer.from_blocks([text], vocab_size, min_count=min_count)
    assert tokenizer.types == naive_vocabulary(text, vocab_size, min_count)


@given(text=TEXTS)
@few
def test_lower_case_in_the_saved_file_is_ours(tmp_path_factory, text):
    tokenizer = WordTokenizer.from_blocks([text.lower() + "\nσ ab b"], lowercase=True)
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    tokenizer.save(path)
    library = Tokenizer.from_file(str(path))
    for line in split_lines(text):
        assert tokenizer.encode(line, final_eos=False).tolist() == library.encode(line).ids
    again = WordTokenizer.load(path)
    assert (again.lowercase, again.types) == (True, tokenizer.types)


def test_bytes_are_those_of_the_text_and_of_the_library(tmp_path):
    tokenizer = ByteTokenizer.from_text("")
    text = "".join(map(chr, range(1, 0x800))) + "\ufffd😀\n\na"
    ids = tokenizer.encode(text, final_eos=False)
    assert len(ids) == len(text.encode())
    assert tokenizer.text(ids) == text
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == ids.tolist()
    assert ByteTokenizer.load(tmp_path / "tokenizer.json").types == tokenizer.types
    with pytest.raises(CorpusError, match="more than bytes"):
        Tokenization("bpe", 300).learn(["abab abab"]).save(tmp_path / "bpe.json")
        ByteTokenizer.load(tmp_path / "bpe.json")


WHOLE = "día a a b\r\n".encode() * 9


def whole_card(path: Path, content: bytes, valid: int, test: int, tokens: tuple[int, int, int], **more: object) -> Path:
    values = {"title": "Toy", "licence": "", "source": "", "tokenizer": "byte", "vocab_size": 257} | more
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    counts = ", ".join(f"{split} = {count}" for split, count in zip(SPLITS, tokens, strict=True))
    md5 = hashlib.md5(content).hexdigest()
    lines.append(f"tokens = {{ {counts} }}")
    lines.append(f'whole = {{ file = "toy8", size = {len(content)}, md5 = "{md5}", valid = {valid}, test = {test} }}')
    path.write_text("[toy8]\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["", ".zip", ".gz"])
def test_a_corpus_of_one_file_is_cut_at_its_bytes(tmp_path, monkeypatch, suffix):
    card = whole_card(tmp_path / "cards.toml", WHOLE, 50, 73, (50, 23, len(WHOLE) - 73))
    monkeypatch.setattr(cards, "CARDS_FILE", card)
    monkeypatch.setattr(formats, "_CHUNK", 7)
    folder = write(tmp_path / "data" / "toy8")
    if suffix == ".zip":
        with zipfile.ZipFile(folder / "toy8.zip", "w") as file:
            file.writestr("toy8", WHOLE)
    else:
        (folder / f"toy8{suffix}").write_bytes(gzip.compress(WHOLE) if suffix else WHOLE)
    corpus = load_corpus("toy8", tokenization=Tokenization("byte"))
    table = np.array([corpus.tokenizer.eos_id if byte == 10 else byte + 1 for byte in WHOLE])
    for split, (start, stop) in {"train": (0, 50), "valid": (50, 73), "test": (73, len(WHOLE))}.items():
        assert corpus.splits[split].tolist() == table[start:stop].tolist()
        assert corpus.sha256[split] == hashlib.sha256(WHOLE[start:stop]).hexdigest()
    characters = load_corpus(None, folder, tokenization=Tokenization("char"))  # whatever was cut in two is unknown
    assert sum(map(len, characters.splits.values())) == pytest.approx(len(WHOLE.decode()), abs=2)


def test_a_corpus_of_one_file_that_is_another_is_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cards, "CARDS_FILE", whole_card(tmp_path / "cards.toml", WHOLE, 50, 73, (50, 23, 36)))
    write(tmp_path / "data" / "toy8", toy8=WHOLE + b"a")
    with pytest.raises(CorpusError, match="not the published toy8: md5"):
        load_corpus("toy8")
    write(tmp_path / "data" / "toy8", toy8=WHOLE)
    load_corpus("toy8")
    assert "published figures are per byte: --tokenizer byte" in caplog.text
    with pytest.raises(CorpusError, match="published"):  # the last count is wrong
        load_corpus("toy8", tokenization=Tokenization("byte"))


FROM = """[toy]
title = "Toy"
licence = ""
source = ""
files = ["train.txt"]
vocab_size = 9
lines = {{ train = 4, valid = 4, test = 4 }}
tokens = {{ train = 13, valid = 13, test = 13 }}
{algorithm} = {{ train = "{digest}", valid = "{digest}", test = "{digest}" }}

[toychar]
title = "Toy"
licence = ""
source = ""
files = ["toy.char.train.txt"]
made_from = "toy"
vocab_size = {types}
tokens = {{ train = 33, valid = 33, test = 33 }}
"""


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_corpus_of_characters_is_made_of_the_words_of_another_and_its_own_files_come_first(
    tmp_path, monkeypatch, algorithm
):
    laid_out = cards.published_layout(LINES)
    spelt = "".join(" ".join("_".join(line.split())) + "\n" for line in LINES)
    types = len({*spelt.replace(" ", ""), UNK})  # the newline is <eos>
    digest = hashlib.new(algorithm, laid_out.encode()).hexdigest()
    card = tmp_path / "cards.toml"
    card.write_text(FROM.format(algorithm=algorithm, digest=digest, types=types))
    monkeypatch.setattr(cards, "CARDS_FILE", card)
    words = write(tmp_path / "data" / "toy", **{f"{split}.txt": TEXT for split in SPLITS})
    made = load_corpus("toychar")
    assert (made.name, made.source) == ("toychar", "data/toy, spelt out")
    assert " ".join(made.tokenizer.decode(made.splits["valid"])) == " ".join(spelt.replace("\n", f" {EOS} ").split())
    assert load_corpus("toychar", words).sha256 == made.sha256
    own = write(words, **{f"toy.char.{split}.txt": spelt for split in SPLITS})
    assert load_corpus("toychar", own).source == str(own)
    assert np.array_equal(load_corpus("toychar", own).splits["test"], made.splits["test"])
    assert load_corpus("toy", own).name == "toy"
