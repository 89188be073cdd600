"""Reading a text with a model: what is told on the way."""

import itertools

import numpy as np
import torch

from lm.config.values import make_config
from lm.nn.model import AWDLSTM
from lm.scoring import reading
from lm.text.batching import batchify


def test_a_long_reading_says_how_far_it_is_and_a_short_one_nothing(monkeypatch, caplog):
    model = AWDLSTM(20, make_config(emsize=4, nhid=4, nlayers=1))
    columns_NB = batchify(np.arange(61) % 20, 3, torch.device("cpu"))
    caplog.set_level("INFO")
    assert len(list(reading.read(model, columns_NB, 5))) == 4
    assert not caplog.records
    clock = itertools.count(0, 40)
    monkeypatch.setattr(reading.time, "monotonic", lambda: next(clock))
    assert len(list(reading.read(model, columns_NB, 5))) == 4
    assert [record.getMessage() for record in caplog.records] == ["reading: 53 % of 19 rows, about 1 min left"]
