r"""A trained model for the transformers library: `lm.evaluate RUN_DIR --export DIR --format transformers`.

The folder holds the weights, `modeling_awd_lstm.py` and a tokenizer that reads text as this project does: `<eos>` comes
first, as before a prompt, and \n is `<eos>` too. Nothing of the library is needed to write it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import Replace, Sequence
from tokenizers.processors import TemplateProcessing

from lm.base.files import json_bytes
from lm.config.schema import TrainConfig
from lm.config.values import as_plain
from lm.text.tokenizer import EOS, UNK, TextTokenizer

_MODELING = Path(__file__).with_name("modeling_awd_lstm.py")
USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)  # <eos> begins a text and ends each of its lines
model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
inputs = tokenizer(["the"], return_tensors="pt", padding=True)
ids = model.generate(**inputs, max_new_tokens=20, do_sample=True, top_k=0, top_p=0.9)
print(tokenizer.batch_decode(ids))
```

Generation goes on after `<eos>`, which ends a line and not the text; `eos_token_id=tokenizer.eos_token_id` ends it
there. `<eos>` is also the padding: give the tokenizer's `attention_mask` on. `--export` wrote `modeling_awd_lstm.py`,
the code that `trust_remote_code` allows to run; transformers 5.24 or later is needed.
"""


def transformers_files(config: TrainConfig, weights: bytes, tokenizer: TextTokenizer) -> dict[str, bytes]:
    """Name -> content of every file but the model card; `config.json`, without which nothing loads, comes last.

    Args:
        config: of the run; `config.json` has it under `training`, beside what the library reads.
        weights: as `safetensors` stores them.
        tokenizer: of the run.
    """
    return {
        "model.safetensors": weights,
        "tokenizer.json": _tokenizer(tokenizer).to_str(pretty=True).encode(),
        "tokenizer_config.json": json_bytes(_tokenizer_config(tokenizer)),
        "generation_config.json": json_bytes(_generation_config(tokenizer)),
        _MODELING.name: _MODELING.read_bytes(),
        "config.json": json_bytes(_config(config, tokenizer)),
    }


def _config(config: TrainConfig, tokenizer: TextTokenizer) -> dict[str, Any]:
    module = _MODELING.stem
    return {
        "architectures": ["AWDLSTMForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.AWDLSTMConfig",
            "AutoModelForCausalLM": f"{module}.AWDLSTMForCausalLM",
        },
        "model_type": "awd-lstm",
        "vocab_size": tokenizer.vocab_size,
        "cell": config.model,
        "emsize": config.emsize,
        "nhid": config.nhid,
        "nlayers": config.nlayers,
        "tie_word_embeddings": config.tied,
        "bos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
        "dtype": "float32",
        "training": as_plain(config),
    }


def _generation_config(tokenizer: TextTokenizer) -> dict[str, Any]:
    """As `lm.generate` has it: no token ends the text, `<unk>` is not drawn, and no cut unless it is asked for."""
    values: dict[str, Any] = {
        "bos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
        "eos_token_id": None,
        "top_k": 0,
    }
    return values if tokenizer.unk_id is None else values | {"suppress_tokens": [tokenizer.unk_id]}


def _tokenizer_config(tokenizer: TextTokenizer) -> dict[str, Any]:
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "padding_side": "left",  # else `generate` would go on after the padding
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return values if tokenizer.unk_id is None else values | {"unk_token": UNK}


def _tokenizer(tokenizer: TextTokenizer) -> Tokenizer:
    r"""The library's tokenizer, which reads \n as `<eos>`, with another `<eos>` before the text."""
    library = Tokenizer.from_str(tokenizer.library().to_str())  # a copy, as it is changed here
    if tokenizer.kind == "word":  # the others have it
        ends = Replace("\n", f" {EOS} ")
        library.normalizer = Sequence([ends, library.normalizer]) if library.normalizer else ends
    library.post_processor = TemplateProcessing(
        single=f"{EOS} $A", pair=f"{EOS} $A $B", special_tokens=[(EOS, tokenizer.eos_id)]
    )
    return library
