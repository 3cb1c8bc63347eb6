"""Rendering of public images: fonts and the warps that rendered glyphs go through."""
