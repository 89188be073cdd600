"""From ledgers to tables, statistics, answers and plots; imports no PyTorch."""
