"""OSWorld's virtual machines behind our `Provider`: `vmware` and `docker`, over PyPI `desktop-env`'s provider classes.

Invariants
- Only `upstream` imports `desktop_env`; nothing here imports it before a provider is asked for.
- No call of theirs can outlive its time: every command and pause goes through an `Attempt`.
"""
