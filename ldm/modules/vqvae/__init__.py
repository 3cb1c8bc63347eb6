"""Vector quantisation of the first stage's latents."""
