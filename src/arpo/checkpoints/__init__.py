"""Folders of checkpoints: which are there, and whether they are whole. Needs no torch."""
