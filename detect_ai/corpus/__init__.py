"""From labelled sources to a corpus: clean, split by group, tokenised, described by a manifest."""
