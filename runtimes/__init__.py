"""Runs artifacts and judges them."""
