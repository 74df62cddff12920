"""jobs/train.py for workers that request a GPU of a simulated node, which has none: they compute on the CPU.

It replaces what Ray Train chooses for the resource `GPU`: CUDA as the device and NCCL as the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ray.train.torch

from detect_ai.core.job import run_job
from detect_ai.training.train import train

TorchTrainer = ray.train.torch.TorchTrainer
Loop = Callable[[dict[str, Any]], dict[str, Any]]


def on_cpu(loop: Loop) -> Loop:
    """A training loop whose device is the CPU."""

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        from ray.air._internal import device_manager
        from ray.air._internal.device_manager.cpu import CPUTorchDeviceManager

        device_manager._torch_device_manager = CPUTorchDeviceManager()
        return loop(arguments)

    return run


def trainer(loop: Loop, **options: Any) -> TorchTrainer:
    """Ray Train's trainer with the backend for CPUs."""
    return TorchTrainer(on_cpu(loop), torch_config=ray.train.torch.TorchConfig(backend="gloo"), **options)


if __name__ == "__main__":
    ray.train.torch.TorchTrainer = trainer
    sys.exit(run_job("train", train))
