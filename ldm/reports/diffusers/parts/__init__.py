"""Files that an exported folder carries. The diffusers library loads the copies there; nothing here imports them."""
