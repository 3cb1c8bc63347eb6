"""Whole evaluations, comparisons and budgets: what a command calls once."""
