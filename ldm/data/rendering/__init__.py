"""Rendering of public images: fonts, warps, pen strokes, garments and drawings."""
