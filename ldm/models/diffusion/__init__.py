"""Diffusion models, their fine-tuning rules, and their samplers."""
