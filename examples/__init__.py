"""Short programs that use `lm` as a library; each prints what its first lines promise."""
