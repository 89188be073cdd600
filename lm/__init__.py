"""AWD-LSTM language models with activation regularization.

The library, each name loaded when it is first used (importing `lm` imports no PyTorch):

- `ActivationPenalty`: AR, TAR or an L1 penalty on the output of any module.
- `WeightDropLSTM`: one recurrent layer with DropConnect on its hidden-to-hidden matrix.
- `AWDLSTM`, with sizes and dropouts from `make_config`: `lm.AWDLSTM(10_000, lm.make_config(emsize=200, nhid=200))`.
- `load`: a trained model out of a run directory or an export, with its tokenizer.

The commands are modules: `python -m lm.train --help`, or `lm-train --help` where the package is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.config.values import make_config
    from lm.nn.lstm import WeightDropLSTM
    from lm.nn.model import AWDLSTM
    from lm.nn.regularization import ActivationPenalty
    from lm.scoring.trained import load

__version__ = "0.1.0"
__all__ = ["AWDLSTM", "ActivationPenalty", "WeightDropLSTM", "load", "make_config"]
_MODULES = {
    "AWDLSTM": "lm.nn.model",
    "ActivationPenalty": "lm.nn.regularization",
    "WeightDropLSTM": "lm.nn.lstm",
    "load": "lm.scoring.trained",
    "make_config": "lm.config.values",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lm' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
