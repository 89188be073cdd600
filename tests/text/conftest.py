"""Fixtures of tests that look for corpora."""

import logging
from pathlib import Path

import pytest

from lm.text import cards
from tests.text.toy import write_card


@pytest.fixture
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
