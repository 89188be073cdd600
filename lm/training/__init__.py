"""The parts of a training run: state, optimizers, schedules, averaging, checkpoints, logs, CUDA graphs."""
