"""Configuration and scripts to operate the service; not part of the package."""
