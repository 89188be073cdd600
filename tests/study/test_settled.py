"""What a ledger says of configurations, read without parsing its lines."""

import json

import pytest

import lm.study.settled
from lm.base.errors import ConfigError
from lm.config.values import as_plain, config_from_dict, config_id, make_config
from lm.study.ledger import append_ledger, read_ledger
from lm.study.settled import Settled


def record(status="completed", **values):
    config = make_config("examples-200", "ptb", **values)
    return {"id": config_id(config), "status": status, "config": as_plain(config), "seed": config.seed}


@pytest.fixture
def ledger(tmp_path):
    for seed in (1, 2, 3):
        append_ledger(tmp_path / "runs.jsonl", record(seed=seed))
    return tmp_path / "runs.jsonl"


def test_every_line_of_the_committed_studies_has_the_identity_of_its_configuration():
    from lm.base.files import ROOT

    ledgers = sorted(path.with_name("runs.jsonl") for path in (ROOT / "results").rglob("study.toml"))
    ledgers = [path for path in ledgers if path.exists()]
    assert len(ledgers) > 3
    for path in ledgers:
        for line in path.read_bytes().splitlines(keepends=True):
            parsed = json.loads(line)
            expected = config_id(config_from_dict(parsed["config"])), parsed["status"]
            assert lm.study.settled._glance(line) == expected, path


def test_an_older_line_has_the_identity_that_its_configuration_has_today(tmp_path):
    older = record(seed=5)
    del older["config"]["average_last"], older["config"]["trapezoid_rise"]
    append_ledger(tmp_path / "runs.jsonl", older)
    assert Settled(tmp_path / "runs.jsonl").status(config_id(config_from_dict(older["config"]))) == "completed"


def test_a_sweep_and_a_report_know_a_line_by_the_same_identity(ledger):
    append_ledger(ledger, record(seed=4) | {"id": "0123456789ab"})
    append_ledger(ledger, {"config": record()["config"] | {"of_a_later_version": 1}, "id": "a", "status": "diverged"})
    records = read_ledger(ledger)
    settled = Settled(ledger)
    assert [settled.get(one["id"]) for one in records] == records
    assert [settled.status(one["id"]) for one in records] == [one["status"] for one in records]
    assert settled.status(record(seed=4)["id"]) == ""


def test_lines_that_another_hand_wrote_are_read_as_well(tmp_path):
    by_hand = [record(seed=1), record(seed=2, data='/a {b}, c/"d": e'), record(seed=3, data="\u6f22")]
    lines = [json.dumps(by_hand[0], separators=(",", ":")), json.dumps(by_hand[1]), json.dumps(by_hand[2], indent=None)]
    (tmp_path / "runs.jsonl").write_text("\n\n".join(lines))
    settled = Settled(tmp_path / "runs.jsonl")
    assert [settled.get(one["id"]) for one in by_hand] == by_hand


def test_only_what_was_added_is_read_again_and_all_of_a_file_that_was_edited(ledger, monkeypatch):
    read = []
    glance = lm.study.settled._glance
    monkeypatch.setattr(lm.study.settled, "_glance", lambda line: read.append(line) or glance(line))
    settled = Settled(ledger)
    settled.refresh()
    assert len(read) == 3
    append_ledger(ledger, record(seed=4))
    settled.refresh()
    assert len(read) == 4
    assert settled[record(seed=4)["id"]] == record(seed=4)
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[1:]))
    settled.refresh()
    assert settled.status(record(seed=1)["id"]) == ""
    assert settled.status(record(seed=4)["id"]) == "completed"
    ledger.unlink()
    settled.refresh()
    assert settled.status(record(seed=4)["id"]) == ""


def test_the_last_line_of_a_configuration_wins_and_takes_the_place_of_what_was_entered(ledger):
    settled = Settled(ledger)
    run = record(seed=3)["id"]
    settled.enter(run, record("interrupted", seed=3))
    assert settled.status(run) == settled[run]["status"] == "interrupted"
    append_ledger(ledger, record("diverged", seed=3))
    settled.refresh()
    assert settled.status(run) == settled[run]["status"] == "diverged"


def test_half_a_last_line_is_skipped_until_it_is_whole(ledger, caplog):
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-40])
    settled = Settled(ledger)
    assert "skipped the last line" in caplog.text
    assert settled.status(record(seed=3)["id"]) == ""
    ledger.write_bytes(whole)
    settled.refresh()
    assert settled.status(record(seed=3)["id"]) == "completed"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "runs.jsonl:4: not a JSON object with an id"),
        ("{", "runs.jsonl:4: not a JSON object"),
        ('{"id": "a", "status": 1}', "runs.jsonl:4: status: '1' is no str"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(ledger, line, words):
    ledger.write_text(f"{ledger.read_text()}{line}\n")
    with pytest.raises(ConfigError, match=words):
        Settled(ledger)


def test_a_pipe_in_its_place_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "runs.jsonl")
    with pytest.raises(ConfigError, match="not a regular file"):
        Settled(tmp_path / "runs.jsonl")
