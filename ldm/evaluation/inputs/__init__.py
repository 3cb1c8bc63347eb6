"""Sources of images to evaluate: sample files, folders and data sets."""
