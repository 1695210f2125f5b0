"""Flax linen modules: arrays in, arrays out."""
