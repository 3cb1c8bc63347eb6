"""The planted bugs, one module for each of the six rules."""
