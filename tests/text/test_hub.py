"""A corpus from the Hugging Face hub: a local copy in its layout, and a server that speaks its protocol."""

import functools
import hashlib
import http.server
import json
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

from lm.base.errors import CorpusError
from lm.text import cards
from lm.text.cards import known_corpora
from lm.text.finding import load_corpus
from lm.text.layout import SPLITS
from tests.text.toy import TOY, write, write_card

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.usefixtures("elsewhere")


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
