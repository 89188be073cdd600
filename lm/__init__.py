"""AWD-LSTM language models with activation regularization; see README.md."""
