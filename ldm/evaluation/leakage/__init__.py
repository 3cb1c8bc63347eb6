"""Leakage of training images by generated images and models: nearest neighbours and membership inference."""
