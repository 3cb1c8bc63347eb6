"""Record data sets: every item is ``{"image": HWC float32 in [-1, 1], "class_label": int}``."""
