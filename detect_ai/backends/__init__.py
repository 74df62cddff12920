"""Ways to run an encoder: token ids in, log-odds out."""
