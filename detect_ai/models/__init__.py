"""From token ids to logits: encoders, tokenizers, batches and inference backends."""
