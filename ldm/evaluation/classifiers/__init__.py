"""Classifiers that are trained on generated images and scored on real ones, and their protocols."""
