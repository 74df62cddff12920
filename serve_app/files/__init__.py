"""Uploaded files and their parsers."""
