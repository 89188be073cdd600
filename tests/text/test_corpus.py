"""Finding, verifying and encoding a corpus, and its command line."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lm.base.errors import ConfigError, CorpusError
from lm.study.from_flags import study_from_flags
from lm.study.scheduler import Sweep
from lm.study.specification import load_study
from lm.sweep import parse_args
from lm.text import cards
from lm.text.cards import known_corpora
from lm.text.finding import configured_corpus, corpus_place, load_corpus
from lm.text.layout import SPLITS
from lm.text.tokenization import Tokenization
from lm.train import configure
from tests.text.toy import TOY, TOY_TOKENS, write

pytestmark = pytest.mark.usefixtures("elsewhere")
# Before the tests take the variable away.
REAL_CORPORA = os.environ.get("LM_CORPORA", "")


@pytest.mark.parametrize("pattern", ["train.txt", "ptb.train.txt", "wiki.train.tokens"])
def test_a_folder_is_encoded_under_every_file_name_in_use(tmp_path, pattern):
    folder = write(tmp_path / "own", TOY, pattern)
    corpus = load_corpus(None, folder)
    assert (corpus.name, corpus.source, corpus.vocab_size) == ("own", str(folder), 12)
    assert {split: len(ids) for split, ids in corpus.splits.items()} == TOY_TOKENS
    assert corpus.tokenizer.types[:5] == ["<eos>", "=", "a", "title", "the"]
    for split, text in TOY.items():
        assert corpus.sha256[split] == hashlib.sha256(text.encode()).hexdigest()
        assert corpus.lines[split] == text.count("\n")
        assert " ".join(corpus.tokenizer.decode(corpus.splits[split])) == " ".join(text.replace("\n", "<eos>").split())


def test_unknown_words_become_unk_and_are_counted_apart_from_literal_ones(tmp_path):
    folder = write(tmp_path / "own", {"train": "a b\n", "valid": "a c <unk>\nc\n", "test": "<unk>\n"})
    corpus = load_corpus(None, folder)
    assert corpus.unk == {"train": 0, "valid": 2, "test": 0}
    assert corpus.tokenizer.decode(corpus.splits["valid"]) == ["a", "<unk>", "<unk>", "<eos>", "<unk>", "<eos>"]


def test_the_saved_tokenizer_and_arrays_can_be_read_without_this_project(tmp_path):
    corpus = load_corpus(None, write(tmp_path / "own", TOY))
    library = Tokenizer.from_file(str(corpus.path / "tokenizer.json"))
    for split, text in TOY.items():
        ids = np.fromfile(corpus.path / f"{split}.bin", dtype=np.uint16)
        assert ids.tolist() == library.encode(text.replace("\n", " <eos>\n")).ids


@pytest.mark.parametrize(
    "change",
    [lambda text: text.replace("\n", "\r\n"), lambda text: text[:-1], lambda text: "\ufeff" + text, str.strip],
    ids=["crlf", "no last newline", "byte order mark", "no outer space"],
)
def test_line_ends_and_byte_order_marks_change_no_token(tmp_path, change):
    lines = {"train": "b a\nc\n", "valid": "a\n\nb\n", "test": "c\n"}
    plain = load_corpus(None, write(tmp_path / "plain", lines))
    changed = load_corpus(None, write(tmp_path / "changed", {split: change(text) for split, text in lines.items()}))
    assert changed.tokenizer.types == plain.tokenizer.types
    for split in SPLITS:
        assert np.array_equal(changed.splits[split], plain.splits[split])


def test_the_folder_comes_before_the_variable_and_the_variable_before_data(tmp_path, monkeypatch):
    def found() -> str:
        return load_corpus("own").tokenizer.types[0]

    write(Path("data/own"), dict.fromkeys(SPLITS, "in-data\n"))
    assert found() == "in-data"
    monkeypatch.setenv("LM_CORPORA", str(tmp_path / "missing"))
    assert found() == "in-data"
    monkeypatch.setenv("LM_CORPORA", str(tmp_path / "corpora"))
    write(tmp_path / "corpora" / "own", dict.fromkeys(SPLITS, "in-variable\n"))
    assert found() == "in-variable"
    folder = write(tmp_path / "given", dict.fromkeys(SPLITS, "in-folder\n"))
    assert load_corpus("own", folder).tokenizer.types[0] == "in-folder"


def test_a_folder_without_the_files_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "corpora" / "own").mkdir(parents=True)
    monkeypatch.setenv("LM_CORPORA", str(tmp_path / "corpora"))
    write(Path("data/own"), TOY)
    assert load_corpus("own").source == "data/own"


def test_nothing_found_names_every_place_and_every_remedy(monkeypatch):
    monkeypatch.setenv("LM_CORPORA", "/nowhere")
    with pytest.raises(CorpusError) as caught:
        load_corpus("own")
    for part in ("/nowhere/own", "data/own", "--data", "LM_CORPORA", "train.txt", "wiki.valid.tokens", "pydocs", "ptb"):
        assert part in str(caught.value)


def test_a_missing_folder_is_refused_by_name():
    with pytest.raises(CorpusError, match=r"tried nowhere \(--data\)"):
        load_corpus(None, "nowhere")


@pytest.mark.parametrize(
    ("dataset", "data"), [(None, None), ("..", None), ("a/b", None), ("", None), ("pydocs", "folder")]
)
def test_senseless_arguments_are_a_configuration_error(dataset, data):
    with pytest.raises(ConfigError, match="--data"):
        load_corpus(dataset, data)


def test_a_folder_with_a_known_text_gets_its_name(tmp_path, toy_card):
    toy_card()
    folder = write(tmp_path / "whatever", TOY, "ptb.train.txt")
    assert load_corpus(None, folder).name == corpus_place(None, folder)[0] == "toy"


def test_a_known_text_with_other_spacing_is_that_corpus(tmp_path, toy_card):
    toy_card()
    stripped = {split: "\r\n".join(line.strip() for line in text.splitlines()) for split, text in TOY.items()}
    stripped["valid"] += "\r\n"  # its last line is blank, and without an end it would not be one
    corpus = load_corpus("toy", write(tmp_path / "copy", stripped))
    assert corpus.name == "toy"
    assert corpus.sha256 == known_corpora()["toy"].sha256


def test_another_text_under_a_known_name_is_refused_with_what_was_expected_and_found(toy_card):
    toy_card()
    write(Path("data/toy"), TOY | {"valid": TOY["valid"] + " more \n"})
    with pytest.raises(CorpusError) as caught:
        load_corpus("toy")
    message = str(caught.value)
    assert "valid: expected 6 tokens" in message
    assert "valid: found 8 tokens" in message
    assert known_corpora()["toy"].sha256["valid"] in message
    assert "train:" not in message


def test_an_own_text_in_a_folder_of_a_known_name_does_not_take_that_name(tmp_path, toy_card, warnings_logged):
    toy_card()
    folder = write(tmp_path / "toy", TOY | {"train": "another\n"})
    corpus = load_corpus(None, folder)
    assert corpus.name == corpus_place(None, folder)[0]
    assert corpus.name.startswith("toy-")
    assert "not the published corpus" in warnings_logged()[0]
    assert load_corpus(corpus.name, folder).name == corpus.name


def test_counts_other_than_the_published_are_refused(tmp_path, toy_card, monkeypatch):
    toy_card()
    other = tmp_path / "other.toml"
    other.write_text(cards.CARDS_FILE.read_text().replace("vocab_size = 12", "vocab_size = 11"))
    monkeypatch.setattr(cards, "CARDS_FILE", other)
    with pytest.raises(CorpusError, match="published"):
        load_corpus("toy", write(tmp_path / "toy", TOY))


@pytest.mark.parametrize("data", ["data/toys", "./data/toys/"])
def test_a_folder_of_published_command_lines_means_the_known_corpus(toy_card, warnings_logged, data):
    toy_card()
    write(Path("data/toy"), TOY)
    assert corpus_place(None, data)[0] == "toy"
    assert load_corpus(None, data).source == "data/toy"
    assert "no such folder; looking for the corpus toy" in warnings_logged()[-1]
    write(Path("data/toys"), {split: "own\n" for split in SPLITS})
    assert load_corpus(None, data).name == "toys"
    assert known_corpora()["toy"].aliases == ["data/toys"]


def test_a_known_corpus_in_a_usual_place_of_another_name_is_trained_on_and_swept_from_there(toy_card, tmp_path):
    toy_card()
    write(Path("data/mine"), TOY)
    assert corpus_place("mine", None) == ("toy", "data/mine")
    config, _ = configure(["--dataset", "mine"])
    assert (config.dataset, configured_corpus(config).source) == ("toy", "data/mine")
    assert study_from_flags(parse_args("", ["--dataset=mine", "--out=s"])).flags == {"data": "data/mine"}
    study = write(tmp_path / "s", {"study": 'dataset = "mine"\nseeds = [1]\n'}, "train.toml")
    with pytest.raises(ConfigError, match='write dataset = "toy", and data = "data/mine" under'):
        Sweep(load_study(study), parse_args("", [str(study)])).config({}, 1)


def test_an_alias_of_one_corpus_under_the_name_of_another_is_refused(toy_card):
    toy_card()
    with pytest.raises(ConfigError, match="stands for the corpus toy"):
        load_corpus("own", "data/toys")


def test_the_cards_hold_the_published_counts():
    ptb, wikitext = known_corpora()["ptb"], known_corpora()["wikitext-2"]
    assert (ptb.vocab_size, *ptb.tokens.values()) == (10_000, 929_589, 73_760, 82_430)
    assert (wikitext.vocab_size, *wikitext.tokens.values()) == (33_278, 2_088_628, 217_646, 245_569)
    assert (ptb.aliases, wikitext.aliases) == (["data/penn"], ["data/wikitext-2"])
    assert corpus_place("ptb", None)[0] == "ptb"  # without a look at any file


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(range(256)) * 9, "not UTF-8 text: invalid start byte at byte 128"),
        (b"a b\n\xc3", "not UTF-8 text: unexpected end of data at byte 4"),
        ("a b\n".encode("utf-16"), "not UTF-8 text"),
        ("a b\n".encode("utf-16-le"), "NUL at byte 1"),
        (b"a\0b\n", "NUL at byte 1"),
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b" \n\r\n\t\n", "empty"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_a_file_that_is_no_text_is_refused_by_name_and_reason(tmp_path, split, content, reason):
    folder = write(tmp_path / "own", TOY | {split: content})
    with pytest.raises(CorpusError, match=rf"own/{split}\.txt: .*{reason}"):
        load_corpus(None, folder)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
        (lambda path: path.symlink_to("gone"), "No such file"),
    ],
    ids=["folder", "pipe", "link loop", "dangling link"],
)
def test_what_is_no_file_is_refused_by_name_and_reason(tmp_path, obstacle, reason):
    folder = write(tmp_path / "own", TOY)
    (folder / "valid.txt").unlink()
    obstacle(folder / "valid.txt")
    with pytest.raises(CorpusError, match=rf"own/valid\.txt: .*{reason}"):
        load_corpus(None, folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_refused_by_name(tmp_path):
    folder = write(tmp_path / "own", TOY)
    (folder / "test.txt").chmod(0)
    with pytest.raises(CorpusError, match=r"own/test\.txt: cannot be read: Permission denied"):
        load_corpus(None, folder)


def test_a_folder_with_a_part_of_a_corpus_is_refused_with_what_is_missing(tmp_path):
    folder = write(tmp_path / "own", TOY, "wiki.train.tokens")
    (folder / "wiki.valid.tokens").unlink()
    (folder / "train.txt").write_text("a file of another naming\n")
    with pytest.raises(CorpusError, match=r"wiki\.valid\.tokens missing"):
        load_corpus(None, folder)


def test_a_file_given_for_a_folder_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(CorpusError, match="Not a directory"):
        load_corpus(None, tmp_path / "train.txt")


def test_a_link_loop_given_for_a_folder_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CorpusError, match="symbolic links"):
        load_corpus(None, tmp_path / "loop")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_known_corpus_is_held_to_its_checksum_and_not_to_its_types_with_another_tokenizer(tmp_path, toy_card, kind):
    toy_card()
    folder = write(tmp_path / "own", TOY)
    corpus = load_corpus("toy", folder, tokenization=Tokenization(kind, 300))
    assert (corpus.name, corpus.tokenizer.kind, corpus.words) == ("toy", kind, TOY_TOKENS)
    for split, text in TOY.items():
        assert corpus.tokenizer.text(corpus.splits[split]) == text
    write(folder, {"valid": " the cat sat ! \n \n"})
    with pytest.raises(CorpusError, match="does not hold the published toy"):
        load_corpus("toy", folder, tokenization=Tokenization(kind, 300))


def test_the_command_line_prints_one_json_object(cli, tmp_path, work_dir):
    folder = write(tmp_path / "own", TOY | {"valid": "an unknown word\n"})
    done = cli("corpus", "--data", folder, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert list(report) == ["dataset", "vocab_size", "tokens", "unk", "sha256", "path", "tokenizer", "words"]
    assert (report["dataset"], report["vocab_size"]) == ("own", 12)
    assert report["tokens"] == TOY_TOKENS | {"valid": 4}
    assert report["unk"] == {"train": 0, "valid": 3, "test": 0}
    assert report["sha256"]["test"] == hashlib.sha256(TOY["test"].encode()).hexdigest()
    assert (work_dir / report["path"] / "tokenizer.json").is_file()


def test_the_command_line_reports_to_a_reader(cli, tmp_path):
    done = cli("corpus", "--data", write(tmp_path / "own", TOY))
    assert done.returncode == 0
    for part in (str(tmp_path / "own"), "types   12", "sha256", "train", "valid", "test"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--dataset", "a/b"], 2),
        (["--data", "x", "--bpe-vocab-size", "300"], 2),
        (["--what"], 2),
        (["--data", "gone"], 3),
        (["--help"], 0),
    ],
)
def test_exit_codes_of_the_command_line(cli, arguments, code):
    done = cli("corpus", *arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_importing_is_cheap(environment):
    program = "import sys, lm.corpus; print({'torch', 'datasets', 'pyarrow', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.corpora
@pytest.mark.parametrize(
    ("dataset", "vocab_size", "tokens"),
    [("ptb", 10_000, [929_589, 73_760, 82_430]), ("wikitext-2", 33_278, [2_088_628, 217_646, 245_569])],
)
def test_the_real_corpora_have_the_published_counts(cli, dataset, vocab_size, tokens):
    report = json.loads(cli("corpus", "--dataset", dataset, "--json", LM_CORPORA=REAL_CORPORA).stdout)
    assert (report["dataset"], report["vocab_size"]) == (dataset, vocab_size)
    assert list(report["tokens"].values()) == tokens
    assert report["unk"] == dict.fromkeys(SPLITS, 0)
    assert report["sha256"] == known_corpora()[dataset].sha256
