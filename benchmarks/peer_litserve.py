"""LitServe server for `benchmarks/serve.py`, with batches if matched. `python benchmarks/peer_litserve.py JOB`."""

from __future__ import annotations

import json
import sys
from typing import Any

import litserve
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# The fastest of 1, 4, 8 and 16 texts: larger batches of mixed lengths mean more padding.
BATCH, BATCH_SECONDS = 8, 0.01


class Classifier(litserve.LitAPI):
    """Classifies texts; returns the probability of AI."""

    def __init__(self, job: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.job = job

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        chosen = {}
        if not self.job["defaults"]:
            torch.set_num_threads(self.job["threads"])
            chosen = {"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[self.job["dtype"]]}
        self.tokenizer = AutoTokenizer.from_pretrained(self.job["folder"])
        self.model = AutoModelForSequenceClassification.from_pretrained(self.job["folder"], **chosen).to(device).eval()

    def decode_request(self, request: dict[str, str], **_: Any) -> str:
        """The text of a request."""
        return request["text"]

    def predict(self, x: str | list[str], **_: Any) -> float | list[float]:
        """Score one text, or a batch."""
        inputs = self.tokenizer(x, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            scores = self.model(**inputs).logits.float().softmax(-1)[:, 1].tolist()
        return scores[0] if isinstance(x, str) else scores

    def encode_response(self, output: float, **_: Any) -> dict[str, float]:
        """The answer."""
        return {"probability": output}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    batches = {} if job["defaults"] else {"max_batch_size": BATCH, "batch_timeout": BATCH_SECONDS}
    server = litserve.LitServer(Classifier(job, **batches), accelerator="cpu")
    server.run(host="127.0.0.1", port=job["port"], generate_client_file=False, log_level="warning")
