"""Bounds of what a frozen vision tower holds, for it and for who predicts its memory. Needs no torch."""

PATCHES_AT_ONCE = 16_384
"""How many patches it encodes together: one and a half screenshots of 1920×1080."""

FEATURES_KEPT_BYTES = 1 << 30
"""Features of pictures that it remembers, on the device."""
