"""Whole evaluations, comparisons, releases, audits, sweeps, benchmarks and budgets; a command calls one function."""
