"""Foreign weights: reading, renaming, adapting."""
