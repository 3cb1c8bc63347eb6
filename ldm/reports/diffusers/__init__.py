"""Folders of the diffusers library: writing a trained model as one, reading an autoencoder from one."""
