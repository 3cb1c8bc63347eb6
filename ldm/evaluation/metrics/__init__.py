"""Scores of generated images: Fréchet and kernel distances, precision and recall, Inception score."""
