"""Build a corpus from labelled sources: clean, split by group, tokenise and write a manifest."""
