"""Privacy bugs that are planted into a copy of the project, one at a time; each must make a named test fail."""
