"""Latent diffusion models and differentially private fine-tuning of them."""
