"""Bounds of what is held of pictures and of weights, for who holds it and for who predicts its memory. Needs no torch."""

PATCHES_AT_ONCE = 16_384
"""How many patches it encodes together: one and a half screenshots of 1920×1080."""

FEATURES_KEPT_BYTES = 1 << 30
"""Features of pictures that it remembers, on the device."""

IMAGES_KEPT_BYTES = 1 << 29
"""Preprocessed pictures that an image encoder remembers, in the host's memory."""

WEIGHTS_AT_ONCE_BYTES = 1 << 30
"""Weights that are on their way to a colocated engine together, if no parameter is larger."""
