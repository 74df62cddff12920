"""Text processing: normalisation, sentences, windows, language, content type and attacks."""
