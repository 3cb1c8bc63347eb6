"""Engines that compute per-record clipped sums: book-keeping, instantiated gradients, and the naive loop."""
