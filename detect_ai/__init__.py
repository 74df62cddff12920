"""detect_ai: train, judge, serve and look after a detector of AI-generated text, on Ray."""

__version__ = "0.1.0"
