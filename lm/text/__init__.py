"""From text to tensors: corpora, tokenizers, columns and windows; and perplexity in units that compare."""
