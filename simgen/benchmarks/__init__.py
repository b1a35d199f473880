"""Measurements of what the program can do, on data it never learned from."""
