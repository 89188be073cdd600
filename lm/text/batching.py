"""Columns of text and the windows of backpropagation through time that read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import CorpusError
from lm.text.windows import HALF_PROBABILITY, LENGTH_SD, MIN_LENGTH

# Tokens of a window in evaluation: logits of 700 x 33,278 take 93 MB, and longer windows gain nothing.
_EVALUATION_TOKENS = 700
# Longer texts stay in the computer's memory and go to the GPU window by window: these take 1 GiB there.
_ON_GPU_TOKENS = 1 << 27


def evaluation_rows(batch_size: int) -> int:
    """Rows of a window in evaluation, where the length does not change the result: as many as run fast."""
    return max(1, _EVALUATION_TOKENS // batch_size)


def check_columns(tokens: int, batch_size: int, name: str = "a text", flag: str = "columns") -> None:
    """Raise CorpusError if a text of `tokens` tokens gives `batch_size` columns nothing to predict.

    `name` is what the message calls the text, `flag` what sets the columns.
    """
    if tokens // batch_size < 2:
        raise CorpusError(f"{name}: {tokens} tokens are too few for {flag} {batch_size}: each column needs two")


def batchify(ids: np.ndarray, batch_size: int, device: torch.device) -> Tensor:
    """Cut a text into `batch_size` contiguous columns; the remainder is dropped.

    Args:
        ids: word ids of the whole text, in order.
        batch_size: B.
        device: where the columns go. A GPU gets the whole text once, unless that is long, so that windows are views
            without transfers; a CPU reads it where it is, out of the token cache's memory map, say.

    Returns:
        integer tensor (len(ids) // B, B), whose windows `BPTTWindows` makes int64.

    Raises:
        CorpusError: a column would have fewer than two tokens, so nothing could be predicted.
    """
    check_columns(len(ids), batch_size)
    rows = len(ids) // batch_size
    columns = torch.from_numpy(ids[: rows * batch_size]).view(batch_size, rows).t()
    if device.type != "cuda" or len(ids) > _ON_GPU_TOKENS:
        return columns
    return columns.to(torch.int64).contiguous().pin_memory().to(device, non_blocking=True)


class Window(NamedTuple):
    """Inputs and targets (T, B): each target is the token after its input.

    `lr_scale` is drawn length / base length, `fraction` the part of the epoch (0 to 1) that came before.
    """

    tokens_TB: Tensor
    targets_TB: Tensor
    lr_scale: float
    fraction: float


class BPTTWindows:
    """Iterator over the windows of one text; every token but each column's first is a target exactly once.

    One pass of `for window in windows` is an epoch. Iteration can be broken off and continued, in another process
    too, from `state_dict()`, which speaks of the windows not yet handed out.
    """

    def __init__(
        self,
        columns_NB: Tensor,
        bptt: int,
        *,
        variable: bool = False,
        max_delta: int = 0,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Start at the top of the text; lengths are drawn around `bptt` when `variable`, up to bptt + max_delta.

        Windows are on `device`, or where the columns are.
        """
        self._columns = columns_NB
        self._device = device or columns_NB.device
        self._bptt = bptt
        self._variable = variable
        self._max_length = bptt + max_delta
        self._generator = torch.Generator().manual_seed(seed)
        self._position = 0

    def __iter__(self) -> BPTTWindows:
        return self

    def __next__(self) -> Window:
        end = len(self._columns) - 1  # the last row is a target only
        if self.at_end:
            raise StopIteration
        drawn = self._draw_length()
        start, stop = self._position, min(self._position + drawn, end)
        self._position = stop
        rows = self._columns[start : stop + 1].to(torch.int64).contiguous().to(self._device)
        return Window(rows[:-1], rows[1:], drawn / self._bptt, start / end)

    @property
    def at_start(self) -> bool:
        """Whether the next window is the first of an epoch."""
        return self._position == 0

    @property
    def at_end(self) -> bool:
        """Whether no window is left in this epoch."""
        return self._position >= len(self._columns) - 1

    @property
    def rows_read(self) -> int:
        """Targets of each column that this epoch's windows have had."""
        return self._position

    def rewind(self) -> None:
        """Go to the top of the text, for another epoch; lengths go on from where the generator is."""
        self._position = 0

    def _draw_length(self) -> int:
        if not self._variable:
            return self._bptt
        uniform, normal = torch.rand((), generator=self._generator), torch.randn((), generator=self._generator)
        base = self._bptt / 2 if uniform < HALF_PROBABILITY else self._bptt
        return min(max(MIN_LENGTH, int(base + LENGTH_SD * normal.item())), self._max_length)

    def state_dict(self) -> dict[str, Any]:
        """Position (rows) and generator state, for `load_state_dict`."""
        return {"position": self._position, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._position = state["position"]
        self._generator.set_state(state["generator"])
