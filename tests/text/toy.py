"""A toy corpus, its files and its card."""

import hashlib
import json
from pathlib import Path

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
