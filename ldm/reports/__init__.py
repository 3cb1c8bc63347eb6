"""Whole evaluations, comparisons and budgets; a command calls one of these functions."""
