"""Columns and windows: every token is a target once, and variable lengths are those published."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.base.errors import CorpusError
from lm.config.values import make_config
from lm.text.batching import BPTTWindows, batchify
from lm.text.windows import mean_rate_factor, windows_warning

CPU = torch.device("cpu")


def columns(rows, batch=2):
    return batchify(np.arange(rows * batch, dtype=np.int32), batch, CPU)


@given(tokens=st.integers(2, 500), batch=st.integers(1, 20))
def test_columns_joined_are_the_text_without_its_remainder(tokens, batch):
    ids = np.arange(tokens, dtype=np.int32)
    if tokens // batch < 2:
        with pytest.raises(CorpusError, match="too few"):
            batchify(ids, batch, CPU)
        return
    result = batchify(ids, batch, CPU)
    assert result.shape == (tokens // batch, batch)
    assert result.t().flatten().tolist() == list(range(tokens // batch * batch))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
def test_columns_are_the_text_where_it_lies_and_windows_are_the_same_whatever_its_type(tmp_path, dtype):
    np.arange(1000).astype(dtype).tofile(tmp_path / "train.bin")
    ids = np.memmap(tmp_path / "train.bin", dtype, mode="c")
    found = batchify(ids, 3, CPU)
    assert found.data_ptr() == ids.ctypes.data
    for window, expected in zip(BPTTWindows(found, 7), BPTTWindows(columns(333, 3), 7), strict=True):
        assert torch.equal(window.tokens_TB, expected.tokens_TB)
        assert torch.equal(window.targets_TB, expected.targets_TB)


@given(rows=st.integers(2, 400), bptt=st.integers(1, 90), variable=st.booleans(), delta=st.integers(0, 30))
def test_every_token_but_the_first_of_a_column_is_a_target_once_and_follows_its_input(rows, bptt, variable, delta):
    data = columns(rows)
    windows = list(BPTTWindows(data, bptt, variable=variable, max_delta=delta, seed=rows))
    assert torch.equal(torch.cat([w.targets_TB for w in windows]), data[1:].long())
    assert torch.equal(torch.cat([w.tokens_TB for w in windows]), data[:-1].long())
    assert all(w.tokens_TB.dtype == torch.int64 and w.tokens_TB.is_contiguous() for w in windows)
    assert all(1 <= len(w.tokens_TB) <= bptt + delta for w in windows)


@given(seed=st.integers(0, 999), cut=st.integers(0, 12))
def test_an_iterator_restored_from_its_state_hands_out_the_same_windows(seed, cut):
    def fresh():
        return BPTTWindows(columns(300), 20, variable=True, max_delta=20, seed=seed)

    straight, first, second = fresh(), fresh(), fresh()
    taken = [next(first) for _ in range(cut)]
    second.load_state_dict(first.state_dict())
    rest = list(second)
    for expected, window in zip(straight, taken + rest, strict=True):
        assert torch.equal(expected.tokens_TB, window.tokens_TB)
        assert expected[2:] == window[2:]


def test_variable_lengths_follow_the_published_distribution():
    windows = BPTTWindows(columns(400_000), 70, variable=True, max_delta=20, seed=1)
    scales = torch.tensor([w.lr_scale for w in windows]) * 70
    halved = scales < 52  # 35 +- 5 and 70 +- 5 do not meet
    assert abs(halved.float().mean() - 0.05) < 0.01
    assert abs(scales[~halved].mean() - 69.5) < 0.3  # int() cuts half a token off
    assert abs(scales[~halved].std() - 5) < 0.3
    assert abs(scales[halved].mean() - 34.5) < 1
    assert scales.max() <= 90


def test_fixed_windows_keep_the_learning_rate_even_when_the_last_one_is_short():
    windows = list(BPTTWindows(columns(50), 35))
    assert [len(w.tokens_TB) for w in windows] == [35, 14]
    assert [w.lr_scale for w in windows] == [1.0, 1.0]


def test_a_seed_gives_lengths_of_its_own_none_below_five_and_the_drawn_one_scales_the_rate():
    lengths = {
        seed: [len(w.tokens_TB) for w in BPTTWindows(columns(900), 6, variable=True, seed=seed)] for seed in (1, 2)
    }
    assert lengths[1] != lengths[2]
    for found in lengths.values():
        assert min(found[:-1]) == 5
    *others, last = BPTTWindows(columns(100), 70, variable=True, max_delta=20, seed=1)
    assert all(w.lr_scale == len(w.tokens_TB) / 70 for w in others)
    assert last.lr_scale > len(last.tokens_TB) / 70  # cut off by the end of the text


def test_rewinding_starts_another_epoch_with_other_lengths():
    windows = BPTTWindows(columns(2000), 35, variable=True, max_delta=20)
    first = [len(w.tokens_TB) for w in windows]
    windows.rewind()
    second = [len(w.tokens_TB) for w in windows]
    assert sum(first) == sum(second) == 1999
    assert first != second


def test_fraction_is_the_part_of_the_epoch_behind_a_window():
    assert [w.fraction for w in BPTTWindows(columns(41), 10)] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("delta", [0, 20])
@pytest.mark.parametrize("bptt", [1, 2, 5, 7, 10, 35, 70])
def test_the_mean_factor_on_the_rate_is_that_of_the_windows(bptt, delta):
    windows = BPTTWindows(columns(200_000, batch=1), bptt, variable=True, max_delta=delta, seed=1)
    scales = [window.lr_scale for window in windows]
    spread = 3 * np.std(scales) / len(scales) ** 0.5
    assert mean_rate_factor(bptt, delta) == pytest.approx(np.mean(scales), abs=spread + 1e-9)


def test_windows_so_short_that_the_rate_is_another_are_warned_of():
    assert "--bptt 1: drawn windows have at least 5 tokens" in windows_warning(make_config(bptt=1))
    assert "times 5.5 on average; --no-variable-bptt" in windows_warning(make_config(bptt=1))
    for config in (
        make_config(),
        make_config("awd-lstm"),
        make_config(bptt=1, variable_bptt=False),
        make_config(bptt=8),
    ):
        assert windows_warning(config) == ""
    assert mean_rate_factor(2**31 - 1, 0) <= 1
