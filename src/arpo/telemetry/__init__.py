"""What the parts measure about themselves."""
