"""Read a text with a model, window by window: the one loop that carries the hidden state outside of training.

Shapes: N rows of the text in B columns, T rows of a window.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator

from torch import Tensor
from tqdm import tqdm

from lm.nn.model import AWDLSTM, Output, detach
from lm.text.batching import BPTTWindows, Window, evaluation_rows

logger = logging.getLogger(__name__)
# Seconds until a reading that is not over shows a bar on a terminal, and between its lines in a log: one of a full-size
# model that learns on the way takes an hour.
_SHOW_S, _REPORT_S = 10, 60


def read(
    model: AWDLSTM, columns_NB: Tensor, rows: int | None = None, before: Callable[[], None] = lambda: None
) -> Iterator[tuple[Window, Output]]:
    """Each window of a text with what the model computes of it, from a zero state on; shows how far a long reading is.

    Args:
        model: in the mode, precision and gradient mode that the caller has set.
        columns_NB: the text, from `batchify`.
        rows: length of a window (T), which does not change the outputs; None: as many as run fast.
        before: called before each window; may raise to stop, which ends the reading.
    """
    state = model.initial_state(columns_NB.shape[1])
    device = model.decoder.bias.device
    total, done, started = len(columns_NB) - 1, 0, time.monotonic()
    report = started + _REPORT_S
    bar = tqdm(
        desc="reading", total=total, unit="row", delay=_SHOW_S, leave=False, dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        for window in BPTTWindows(columns_NB, rows or evaluation_rows(columns_NB.shape[1]), device=device):
            before()
            output = model(window.tokens_TB, state)
            state = detach(output.state)
            yield window, output
            done += len(window.tokens_TB)
            bar.update(len(window.tokens_TB))
            if bar.disable and done < total and (now := time.monotonic()) >= report:
                report = now + _REPORT_S
                left = (now - started) / 60 * (total / done - 1)
                logger.info("reading: %.0f %% of %s rows, about %.0f min left", 100 * done / total, f"{total:,}", left)
