"""Finding, verifying, encoding and caching a corpus."""

import functools
import hashlib
import http.server
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from lm.base.errors import ConfigError, CorpusError
from lm.text import cards
from lm.text.cards import known_corpora
from lm.text.finding import corpus_name, load_corpus
from lm.text.layout import SPLITS
from lm.text.tokenization import Tokenization

ROOT = Path(__file__).resolve().parent.parent.parent
# Synthetic text in the layout of the published files: a space before and after, blank lines as one space.
TOY = {
    "train": " \n = a title = \n \n the <unk> sat on the mat . \n the cat ran . \n",
    "valid": " the cat sat . \n \n",
    "test": " a <unk> ran on the mat . \n",
}
TOY_TOKENS = {"train": 20, "valid": 6, "test": 8}


def write(folder: Path, texts: dict[str, str | bytes], pattern: str = "train.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        raw = text if isinstance(text, bytes) else text.encode()
        (folder / pattern.replace("train", split)).write_bytes(raw)
    return folder


def rows(split: str, column: str) -> list[str]:
    """The rows of a hub repository: PTB's are stripped, WikiText's end in a newline unless they are blank."""
    lines = TOY[split].splitlines()
    if column == "sentence":
        return [line.strip() for line in lines]
    return [f"{line}\n" if line.strip() else "" for line in lines]


def write_hub(root: Path, folder: str, column: str, names: str) -> Path:
    """A repository in the hub's layout with the toy corpus in `folder` and another configuration beside it."""
    for place, wrong in ((folder, []), (f"{folder}-raw", ["not this one"])):
        for split, hub_split in zip(SPLITS, ("train", "validation", "test"), strict=True):
            path = root / place / names.format(hub_split)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = wrong or rows(split, column)
            pq.write_table(pa.table({"id": list(range(len(content))), column: content}), path)
    return root


def write_card(path: Path, **hub: str) -> Path:
    """A card file that knows the toy corpus and no other."""
    sha256 = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in TOY.items()}
    lines = {split: text.count("\n") for split, text in TOY.items()}

    def table(values: dict) -> str:
        return f"{{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in values.items())} }}"

    path.write_text(
        f'[toy]\ntitle = "Toy"\nlicence = "CC0"\nsource = "this test"\nvocab_size = 12\n'
        f'files = ["train.txt", "ptb.train.txt", "wiki.train.tokens"]\naliases = ["data/toys"]\n'
        f"lines = {table(lines)}\ntokens = {table(TOY_TOKENS)}\nsha256 = {table(sha256)}\n"
        + (f"hub = {table(hub)}\n" if hub else "")
    )
    return path


# Before the tests take the variable away.
REAL_CORPORA = os.environ.get("LM_CORPORA", "")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and no corpora."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("LM_CORPORA", raising=False)
    return tmp_path


@pytest.fixture
def toy_card(tmp_path, monkeypatch):
    """Make the toy corpus a known one, in the hub repository that the arguments describe."""

    def install(**hub: str) -> None:
        monkeypatch.setattr(cards, "CARDS_FILE", write_card(tmp_path / f"cards{len(hub)}.toml", **hub))

    return install


@pytest.fixture
def warnings_logged(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


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
    assert load_corpus(None, folder).name == corpus_name(None, folder) == "toy"


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
    assert corpus.name == corpus_name(None, folder)
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
    assert corpus_name(None, data) == "toy"
    assert load_corpus(None, data).source == "data/toy"
    assert "no such folder; looking for the corpus toy" in warnings_logged()[-1]
    write(Path("data/toys"), {split: "own\n" for split in SPLITS})
    assert load_corpus(None, data).name == "toys"
    assert known_corpora()["toy"].aliases == ["data/toys"]


def test_an_alias_of_one_corpus_under_the_name_of_another_is_refused(toy_card):
    toy_card()
    with pytest.raises(ConfigError, match="stands for the corpus toy"):
        load_corpus("own", "data/toys")


def test_the_cards_hold_the_published_counts():
    ptb, wikitext = known_corpora()["ptb"], known_corpora()["wikitext-2"]
    assert (ptb.vocab_size, *ptb.tokens.values()) == (10_000, 929_589, 73_760, 82_430)
    assert (wikitext.vocab_size, *wikitext.tokens.values()) == (33_278, 2_088_628, 217_646, 245_569)
    assert (ptb.aliases, wikitext.aliases) == (["data/penn"], ["data/wikitext-2"])
    assert corpus_name("ptb", None) == "ptb"  # without a look at any file


LAYOUTS = {
    "ptb": {"folder": "penn_treebank", "column": "sentence", "names": "{}/0000.parquet"},
    "ptb, older": {"folder": "penn_treebank", "column": "sentence", "names": "ptb_text_only-{}.parquet"},
    "wikitext-2": {"folder": "wikitext-2-v1", "column": "text", "names": "{}-00000-of-00001.parquet"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_hub_rows_give_the_published_bytes(tmp_path, toy_card, layout):
    repository = write_hub(tmp_path / "repository", **layout)
    toy_card(id=str(repository), revision="main", folder=layout["folder"], column=layout["column"])
    corpus = load_corpus("toy")
    assert corpus.source == f"Hugging Face hub, {repository} at main"
    assert corpus.sha256 == known_corpora()["toy"].sha256
    reference = load_corpus("toy", write(tmp_path / "files", TOY))
    for split in SPLITS:
        assert np.array_equal(corpus.splits[split], reference.splits[split])


def test_what_came_from_the_hub_once_needs_it_no_more(tmp_path, toy_card):
    repository = write_hub(tmp_path / "repository", **LAYOUTS["wikitext-2"])
    toy_card(id=str(repository), revision="main", folder="wikitext-2-v1", column="text")
    first = load_corpus("toy")
    repository.rename(tmp_path / "gone")
    assert np.array_equal(load_corpus("toy").splits["train"], first.splits["train"])


def test_a_hub_that_holds_another_text_is_refused(tmp_path, toy_card):
    repository = write_hub(tmp_path / "repository", **LAYOUTS["wikitext-2"])
    pq.write_table(pa.table({"text": ["another text"]}), next(repository.glob("wikitext-2-v1/test*")))
    toy_card(id=str(repository), revision="main", folder="wikitext-2-v1", column="text")
    with pytest.raises(CorpusError, match=r"test: expected 8 tokens.*\n.*test: found 3 tokens"):
        load_corpus("toy")
    assert not Path("data").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "other column"])
def test_a_damaged_hub_is_refused_with_the_remedies(tmp_path, toy_card, damage):
    repository = write_hub(tmp_path / "repository", **LAYOUTS["wikitext-2"])
    path = next(repository.glob("wikitext-2-v1/validation*"))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "missing":
        path.unlink()
    column = "sentence" if damage == "other column" else "text"
    toy_card(id=str(repository), revision="main", folder="wikitext-2-v1", column=column)
    with pytest.raises(CorpusError, match="--dataset pydocs"):
        load_corpus("toy")


@pytest.mark.parametrize("hub", [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_an_unreachable_hub_ends_without_retries_with_exit_code_3_and_the_remedies(cli, tmp_path, hub):
    done = cli("corpus", "--dataset", "ptb", LM_CORPORA="", **hub)
    assert "Retrying" not in done.stderr  # the library's own way, which takes 20 seconds or more
    assert (done.returncode, done.stdout) == (3, "")
    for remedy in ("data/ptb", "--data DIR", "LM_CORPORA", "train.txt", "network", "--dataset pydocs"):
        assert remedy in done.stderr
    assert "Traceback" not in done.stderr


class Hub(http.server.BaseHTTPRequestHandler):
    """The few requests of the hub's protocol that a download makes; `root` holds the repository `lab/toy`."""

    def __init__(self, *args, root: Path):
        self.root = root
        super().__init__(*args)

    def log_message(self, *args) -> None:
        pass

    def reply(self, status: int, content: object = None, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(raw)), "X-Repo-Commit": "0" * 40} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(raw)

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        files = [file for file in self.root.rglob("*") if file.is_file()]
        if path == "/api/datasets/lab/toy/revision/refs/convert/parquet":
            siblings = [{"rfilename": file.relative_to(self.root).as_posix()} for file in files]
            return self.reply(200, {"id": "lab/toy", "sha": "0" * 40, "siblings": siblings, "tags": []})
        tree, resolve = "/api/datasets/lab/toy/tree/refs/convert/parquet/", "/datasets/lab/toy/resolve/"
        if path.startswith(tree):
            folder = self.root / path.removeprefix(tree)
            names = [(file.relative_to(self.root).as_posix(), file) for file in files if file.parent == folder]
            entry = {"type": "file", "oid": "0" * 40}
            return self.reply(200, [entry | {"size": file.stat().st_size, "path": name} for name, file in names])
        file = self.root / path.removeprefix(resolve).removeprefix("refs/convert/parquet/").removeprefix("0" * 40 + "/")
        if path.startswith(resolve) and file.is_file():
            return self.reply(200, file.read_bytes(), ETag=f'"{hashlib.sha1(file.read_bytes()).hexdigest()}"')
        return self.reply(404, {})

    do_HEAD = do_GET


def test_a_corpus_is_downloaded_from_a_hub_server_at_its_revision(tmp_path):
    repository = write_hub(tmp_path / "repository", **LAYOUTS["ptb"])
    card = write_card(
        tmp_path / "cards.toml",
        id="lab/toy",
        revision="refs/convert/parquet",
        folder="penn_treebank",
        column="sentence",
    )
    program = (
        f"import pathlib; from lm.text import cards; cards.CARDS_FILE = pathlib.Path({str(card)!r})\n"
        "from lm.text.finding import load_corpus; print(load_corpus('toy').sha256['train'])"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, root=repository)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
        )
        server.shutdown()
    assert done.stdout.strip() == hashlib.sha256(TOY["train"].encode()).hexdigest(), done.stderr


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


def test_splits_are_memory_maps_of_the_smallest_type_and_never_written_back(tmp_path):
    for corpus in (load_corpus(None, write(tmp_path / "own", TOY)), load_corpus(None, tmp_path / "own")):
        assert corpus.path.parent == Path("data/cache")
        for ids in corpus.splits.values():
            assert isinstance(ids, np.memmap)
            assert (ids.dtype, ids.ndim, ids.mode) == (np.uint16, 1, "c")
    write(tmp_path / "many", TOY | {"train": "".join(f"w{i}\n" for i in range(1 << 16))})
    assert load_corpus(None, tmp_path / "many").splits["train"].dtype == np.uint32


def test_the_second_load_is_from_the_cache_and_equal(tmp_path, caplog):
    caplog.set_level(logging.INFO, "lm")
    folder = write(tmp_path / "own", TOY | {"valid": "an unknown word\n"})
    first = load_corpus(None, folder, tmp_path / "data")
    assert ["encoding the text" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    written = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.path.iterdir()}
    second = load_corpus(None, folder, tmp_path / "data")
    assert not caplog.records
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.path.iterdir()} == written
    assert second.tokenizer.types == first.tokenizer.types
    for split in SPLITS:
        assert np.array_equal(second.splits[split], first.splits[split])
    for name in ("name", "source", "unk", "lines", "sha256", "path"):
        assert getattr(second, name) == getattr(first, name)
    assert second.unk["valid"] == 3


def test_another_text_or_tokenizer_gets_another_cache(tmp_path, monkeypatch):
    folder = write(tmp_path / "own", TOY)
    first = load_corpus(None, folder)
    write(folder, {"valid": " the mat sat . \n \n"})
    second = load_corpus(None, folder)
    assert second.tokenizer.decode(second.splits["valid"])[1] == "mat"
    monkeypatch.setattr("lm.text.words.WordTokenizer.DEFINITION", "another")
    assert len({first.path, second.path, load_corpus(None, folder).path}) == 3


def test_a_cache_that_does_not_count_words_yet_is_read_as_it_is(tmp_path, warnings_logged):
    folder = write(tmp_path / "own", TOY)
    first = load_corpus(None, folder)
    meta = json.loads((first.path / "meta.json").read_text())
    del meta["corpus"]["words"], meta["sha256"]
    meta["sha256"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    (first.path / "meta.json").write_text(json.dumps(meta))
    again = load_corpus(None, folder)
    assert (again.words, again.path, warnings_logged()) == (TOY_TOKENS, first.path, [])
    assert first.words == TOY_TOKENS


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


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "bit flipped": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "other json": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "train.bin", "test.bin"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_rebuilt_with_one_warning(tmp_path, warnings_logged, name, damage):
    folder = write(tmp_path / "own", TOY)
    before = load_corpus(None, folder)
    expected = {path.name: path.read_bytes() for path in before.path.iterdir()}
    damage(before.path / name)
    after = load_corpus(None, folder)
    assert [message for message in warnings_logged() if "is damaged" in message] == warnings_logged()
    assert len(warnings_logged()) == 1
    assert {path.name: path.read_bytes() for path in after.path.iterdir()} == expected
    assert np.array_equal(after.splits["train"], np.frombuffer(expected["train.bin"], np.uint16))
    assert [path.name for path in before.path.parent.iterdir()] == [before.path.name]
    load_corpus(None, folder)
    assert len(warnings_logged()) == 1


def test_a_changed_figure_in_the_cache_is_found_out(tmp_path, warnings_logged):
    folder = write(tmp_path / "own", TOY)
    path = load_corpus(None, folder).path / "meta.json"
    meta = json.loads(path.read_text())
    meta["corpus"]["unk"]["test"] += 1
    path.write_text(json.dumps(meta))
    assert load_corpus(None, folder).unk["test"] == 0
    assert "meta.json is not as it was written" in warnings_logged()[0]


@pytest.mark.parametrize("place", ["data", "data/cache"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, warnings_logged, place):
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("in the way")
    corpus = load_corpus(None, write(tmp_path / "own", TOY))
    assert corpus.path is None
    assert len(corpus.splits["train"]) == TOY_TOKENS["train"]
    assert ["cannot write the token cache" in message for message in warnings_logged()] == [True]


def test_a_full_disk_leaves_no_cache_behind(tmp_path, monkeypatch, warnings_logged):
    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    assert load_corpus(None, write(tmp_path / "own", TOY)).path is None
    assert "No space left on device" in warnings_logged()[0]
    assert list(Path("data/cache").iterdir()) == []


def load_when_told(folder: Path, start: multiprocessing.Event, results: multiprocessing.Queue) -> None:
    start.wait()
    corpus = load_corpus(None, folder)
    results.put([ids.tolist() for ids in corpus.splits.values()])


def test_processes_that_build_one_cache_at_once_all_get_the_corpus(tmp_path):
    folder = write(tmp_path / "own", TOY | {"train": "".join(f"w{i} x\n" for i in range(3000))})
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=load_when_told, args=(folder, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    loaded = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    expected = [ids.tolist() for ids in load_corpus(None, folder).splits.values()]
    assert loaded == [expected] * len(processes)
    assert len(list(Path("data/cache").iterdir())) == 1


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


@pytest.mark.corpora
def test_the_real_corpora_survive_the_hub_s_row_format(environment):
    for dataset, strip in (("ptb", True), ("wikitext-2", False)):
        for split, published in known_corpora()[dataset].sha256.items():
            text = Path(environment["LM_CORPORA"], dataset, f"{split}.txt").read_bytes().decode()
            lines = text.split("\n")[:-1]
            stored = (
                [line.strip() for line in lines] if strip else [f"{line}\n" if line.strip() else "" for line in lines]
            )
            assert hashlib.sha256(cards.published_layout(stored).encode()).hexdigest() == published
