"""How many cores this process may use."""

from __future__ import annotations


def cores() -> int:
    """Cores that this process may use: those of the machine, less what affinity or a container's bound takes away."""
    import joblib

    return int(joblib.cpu_count())
