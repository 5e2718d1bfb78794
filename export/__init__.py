"""Reads checkpoints, defines the decoder, lowers it to each target, writes bundles."""
