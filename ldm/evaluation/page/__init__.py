"""Evaluation results as self-contained HTML pages."""
