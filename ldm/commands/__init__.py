"""The `dp-ldm` command line: one module per command. It parses the arguments and calls the library once."""
