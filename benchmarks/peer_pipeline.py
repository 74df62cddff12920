"""FastAPI and a `transformers` pipeline for `benchmarks/serve.py`, as in the guide of transformers.

One queue, and one loop that passes each text to the pipeline. `python benchmarks/peer_pipeline.py JOB`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Text(BaseModel):
    """The body of a request."""

    text: str


def create_app(job: dict[str, Any]) -> FastAPI:
    """The application."""
    queue: asyncio.Queue[tuple[str, asyncio.Queue[Any]]] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.create_task(serve(queue, job))
        yield
        loop.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/")
    async def classify(body: Text) -> Any:
        answer: asyncio.Queue[Any] = asyncio.Queue()
        await queue.put((body.text, answer))
        return await answer.get()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


async def serve(queue: asyncio.Queue[tuple[str, asyncio.Queue[Any]]], job: dict[str, Any]) -> None:
    """Answer one text after the other."""
    import torch
    from transformers import pipeline

    chosen = {}
    if not job["defaults"]:
        torch.set_num_threads(job["threads"])
        chosen = {"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]}
    pipe = pipeline("text-classification", model=job["folder"], **chosen)
    while True:
        text, answer = await queue.get()
        await answer.put(pipe(text, truncation=True))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job = json.loads(sys.argv[1])
    uvicorn.run(create_app(job), host="127.0.0.1", port=job["port"], log_level="warning")
