"""Networks and schedules of the diffusion model and of the autoencoder."""
