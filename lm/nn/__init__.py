"""The model: recurrent layers with weight drop, dropouts, loss, activation regularization, and their kernels."""
