"""Read a text with a model, window by window: the one loop that carries the hidden state outside of training.

Shapes: N rows of the text in B columns, T rows of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from lm.nn.model import AWDLSTM, Output, detach
from lm.text.batching import BPTTWindows, Window, evaluation_rows


def read(
    model: AWDLSTM, columns_NB: Tensor, rows: int | None = None, before: Callable[[], None] = lambda: None
) -> Iterator[tuple[Window, Output]]:
    """Each window of a text with what the model computes of it, from a zero state on.

    Args:
        model: in the mode, precision and gradient mode that the caller has set.
        columns_NB: the text, from `batchify`.
        rows: length of a window (T), which does not change the outputs; None: as many as run fast.
        before: called before each window; may raise to stop.
    """
    state = model.initial_state(columns_NB.shape[1])
    device = model.decoder.bias.device
    for window in BPTTWindows(columns_NB, rows or evaluation_rows(columns_NB.shape[1]), device=device):
        before()
        output = model(window.tokens_TB, state)
        state = detach(output.state)
        yield window, output
