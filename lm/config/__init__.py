"""The configuration: its fields with their bounds and help texts, presets, and the command line made from them."""
