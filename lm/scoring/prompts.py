"""Texts that continue a prompt, as the flags of `python -m lm.generate` ask for them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence

from lm.nn.model import AWDLSTM
from lm.scoring.sampling import Continuation, Limits, Sampling, beam_search, sample
from lm.text.detokenize import detokenize
from lm.text.reading import split_words
from lm.text.tokenizer import EOS, TextTokenizer


def _stopped(
    tokenizer: TextTokenizer, prompt: list[int], start: int, stops: Sequence[str]
) -> Callable[[list[int]], bool]:
    """Whether a continuation of `prompt`, a text of `start` characters, holds one of the strings in its last tokens."""
    last = 4 * max(map(len, stops)) + 2  # a character may be four tokens, the bytes of its UTF-8

    def stopped(ids: list[int]) -> bool:
        text = tokenizer.text([*prompt, *ids])[start:] if len(ids) <= last else tokenizer.text(ids[-last:])
        return any(stop in text for stop in stops)

    return stopped


def continue_prompt(
    arguments: argparse.Namespace, text: str, model: AWDLSTM, tokenizer: TextTokenizer
) -> list[tuple[str, Continuation]]:
    """What a prompt is continued by, as text that begins with the prompt, and as token ids."""
    prompt = tokenizer.encode(text, final_eos=False).tolist()
    context = [tokenizer.eos_id, *prompt]
    start = len(tokenizer.text(prompt))
    limits = Limits(() if arguments.unk or tokenizer.unk_id is None else (tokenizer.unk_id,), arguments.no_repeat_ngram)
    if arguments.stop:
        limits = dataclasses.replace(limits, ended=_stopped(tokenizer, prompt, start, arguments.stop))
    width = 1 if arguments.greedy else arguments.beam
    if width:
        found = beam_search(model, context, arguments.tokens, width, limits)[: arguments.samples]
    else:
        sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
        seeds = range(arguments.seed, arguments.seed + arguments.samples)
        found = sample(model, context, arguments.tokens, sampling, seeds, limits)
    texts = [tokenizer.text(prompt + one.ids) for one in found]
    for stop in arguments.stop:
        texts = [one[:start] + one[start:].partition(stop)[0] for one in texts]
    if arguments.detokenize:
        texts = [detokenize(split_words(text.replace("\n", f" {EOS} "))) for text in texts]
    return list(zip(texts, found, strict=True))
