"""Where images to evaluate come from: sample files, folders and data sets."""
