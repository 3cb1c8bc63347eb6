"""The `dp-ldm` command line: one module a command, each of which parses its arguments and calls the library once."""
