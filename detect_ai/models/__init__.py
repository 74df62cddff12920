"""Token ids to logits: encoders, tokenizers, batches and inference backends."""
