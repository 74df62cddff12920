"""Run the whole operations cycle on this machine: `make circle`.

A service receives texts of another kind than those it was calibrated on; drift is detected; the service abstains; it is
recalibrated on human texts of that kind; a new detector is trained with hard negatives and mirrors, passes the gate and
is deployed. Each step is also refused once. The other kind of writing is the documentation in installed Python
packages, written by people; **the mirrors come from a tiny language model that is trained here in a minute on the AI
half of the sample**: they show that the steps work, not what a good generator would write. Output goes to `.circle/`,
which is emptied first, or to DETECT_AI_STORAGE_ROOT, which must be a new folder. The last line is JSON.
"""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from demo import run_script, say  # in this folder

from detect_ai.core.errors import DetectAIError
from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("scipy", "sklearn", "numpy", "pandas", "matplotlib")
POPULATION = "documentation of Python packages"
WINDOW = 50
TRAINING = ("sweep=grid", "sweep.epochs=1", "train.epochs=2", "train.num_workers=1", "model.layers=4")
# A small test split: one of 45 human texts is an FPR of 2%.
GATE = ("gate.max_auroc_drop=0.1", "gate.max_fpr_increase=1", "gate.max_cleared_increase=1", "gate.max_abstained=1")
MONITORING = (
    *("monitoring.log=true", f"monitoring.drift.window={WINDOW}"),
    *("monitoring.audit_fraction=0.5", "monitoring.text_days=1"),
)
GENERATOR_STEPS, GENERATOR_TOKENS = 150, 128


class Circle:
    """A cluster with a service, and a client that counts failed requests."""

    def __init__(self, cluster: LocalCluster, root: str) -> None:
        self.cluster, self.storage, self.port = cluster, Storage(root), free_port()
        self.service = (f"serve.port={self.port}", "serve.max_replicas=1", *MONITORING)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)
        self.failed = 0

    def job(self, name: str, *overrides: str, allowed: Sequence[int] = (0,), **options: Any) -> dict[str, Any]:
        """Run a job. Returns its result, or {"error": …} if it fails with an allowed exit code."""
        say(" ".join(["python", f"jobs/{name}.py", *overrides]))
        command = [sys.executable, str(CHECKOUT / f"jobs/{name}.py"), f"storage.root={self.storage.root}", *overrides]
        environment = {**self.cluster.environment, "WANDB_MODE": "offline", "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(  # noqa: S603 - our own command
            command, env=environment, capture_output=True, text=True, check=False, **options
        )
        if done.returncode not in allowed:
            raise DetectAIError(f"jobs/{name}.py failed ({done.returncode}):\n{done.stderr[-3000:]}")
        if done.returncode:
            return {"error": next(line for line in done.stderr.splitlines() if line.startswith("error:"))}
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    def detect(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The verdicts of the service."""
        verdicts: list[dict[str, Any]] = []
        for start in range(0, len(texts), 20):
            response = self.client.post("/v1/detect", json={"texts": list(texts[start : start + 20])})
            self.failed += response.status_code != 200
            verdicts += response.json().get("verdicts", [])
        return verdicts

    def alarms(self) -> list[str]:
        """The drift alarms so far, oldest first."""
        return sorted(self.storage.list("monitoring/drift"))

    def fraction_ai(self, texts: Sequence[str]) -> float:
        """The fraction of texts that the service labels AI."""
        labels = [str(verdict["label"]) for verdict in self.detect(texts)]
        return round(labels.count("ai") / len(labels), 4)


def main() -> int:
    """Run the cycle. Returns the exit code."""
    started, own = time.monotonic(), CHECKOUT / ".circle"
    root = os.environ.get("DETECT_AI_STORAGE_ROOT")
    if root is None:
        shutil.rmtree(own, ignore_errors=True)
    elif Path(root).exists():
        raise DetectAIError(f"DETECT_AI_STORAGE_ROOT={root}: expected a folder that does not exist yet")
    say("starting a local Ray cluster")
    cluster = LocalCluster()
    try:
        result = run(Circle(cluster, root or str(own)))
    finally:
        say("stopping the cluster")
        cluster.stop()
    print(json.dumps({**result, "seconds": round(time.monotonic() - started)}), flush=True)
    return 0


def run(circle: Circle) -> dict[str, Any]:
    """Run all steps; returns the values of the last line."""
    folder = Path(circle.storage.root) / "texts"
    folder.mkdir(parents=True)
    docs = documentation(1100)
    sample, held_out, mined = docs[:300], docs[300:500], docs[500:]
    humans = write(folder / "humans.jsonl", [{"text": text} for text in sample])
    refused: list[str] = []

    def refuse(name: str, outcome: dict[str, Any]) -> None:
        if "error" not in outcome:
            raise DetectAIError(f"{name}: expected a refusal")
        say(f"refused: {outcome['error'][:200]}")
        refused.append(name)

    say("1. a detector of the sample corpus, and its service")
    first = circle.job("pipeline", "run=first", *TRAINING, *GATE, *circle.service)
    test = Corpus.open(circle.storage, first["prepare"]["corpus"]).read("test", ["text", "label"]).to_pylist()
    human, ai = ([row["text"] for row in test if row["label"] == label] for label in (0, 1))
    circle.detect([*human, *ai][: WINDOW + 10])
    time.sleep(10)  # a replica writes its log every four seconds, and prepares the comparison
    if circle.alarms():
        raise DetectAIError("drift: expected no alarm in texts of the kind that calibration had")
    refuse("no labels", circle.job("retrain", "run=audited", "retrain.audited=true", *MONITORING, allowed=(1, 2)))

    say("2. texts of another kind, until drift is noticed")
    sent = 0
    while not circle.alarms():
        if sent >= len(mined):
            raise DetectAIError(f"no drift was noticed in {sent} texts of another kind")
        circle.detect(mined[sent : sent + 10])
        sent += 10
        time.sleep(4.5)
    say(" ".join(circle.storage.read_json(f"monitoring/drift/{circle.alarms()[0]}")["sentences"]))
    fpr_before = circle.fraction_ai(held_out)

    say("3. no verdicts while the alarm stands")
    circle.job("abstain", *circle.service, "serve.abstain_domains=['*']")
    if {verdict["label"] for verdict in circle.detect(held_out[:20])} != {"uncertain"}:
        raise DetectAIError("abstain: expected only uncertain verdicts")

    say("4. thresholds for that kind of writing")
    few = write(folder / "few.jsonl", [{"text": text} for text in sample[:18]])
    recalibrate = ("run=ours", f"recalibrate.population={POPULATION}")
    refuse("too few texts", circle.job("recalibrate", *recalibrate, f"recalibrate.humans={few}", allowed=(1, 2)))
    poisoned = [{"text": text, "key": f"k{i % 9}"} for i, text in enumerate(sample[:270])]
    poisoned += [{"text": text, "key": "liar"} for text in ai[:30]]
    outcome = circle.job(
        "recalibrate", *recalibrate, f"recalibrate.humans={write(folder / 'poisoned.jsonl', poisoned)}"
    )
    refuse("poisoned labels", {"error": f"left out {outcome['excluded_keys']}"} if outcome["excluded_keys"] else {})
    full = circle.job(
        *("recalibrate", *recalibrate, f"recalibrate.humans={humans}"), allowed=(1, 2), preexec_fn=limit_file_size
    )
    refuse("full disk", full)
    child = circle.job("recalibrate", *recalibrate, f"recalibrate.humans={humans}")
    circle.job("publish", "run=ours", f"bundle={child['version']}", *GATE)
    circle.job("deploy", *circle.service)  # verdicts stay paused
    circle.job("abstain", *circle.service, "serve.abstain_domains=[]")
    fpr_recalibrated = circle.fraction_ai(held_out)

    say("5. a worse challenger")
    worse = ("run=worse", *TRAINING, "train.from_sweep=false", "train.max_steps=1", *GATE)
    refuse("worse challenger", circle.job("pipeline", *worse, *circle.service, allowed=(1, 2)))

    say("6. a new training with hard negatives and mirrors")
    corpus = write(folder / "mined.jsonl", [{"text": text} for text in mined])
    training = Corpus.open(circle.storage, first["prepare"]["corpus"]).read("train", ["text", "label"]).to_pylist()
    generator = train_generator(folder / "generator", [row["text"] for row in training if row["label"] == 1])
    retrain = ("retrain.hard_negatives=100", "retrain.generator=local", f"retrain.model={generator}")
    second = circle.job(
        *("retrain", "run=second", f"retrain.humans={corpus}", *retrain),
        *(*TRAINING, *GATE, *circle.service),
    )
    return {
        "alarm_after_texts": sent,
        "fpr_before": fpr_before,
        "fpr_after_recalibration": fpr_recalibrated,
        "fpr_after_retraining": circle.fraction_ai(held_out),
        "tpr_after_retraining": circle.fraction_ai(ai),
        "versions": [first["publish"]["champion"], child["version"], second["publish"]["champion"]],
        "collected": second["collected"],
        "refused": refused,
        "failed_requests": circle.failed,
    }


def documentation(number: int) -> list[str]:
    """Prose of the docstrings of installed packages, 80 to 200 words each, in a fixed random order."""
    site, texts = Path(sysconfig.get_paths()["purelib"]), dict[str, None]()
    for package in PACKAGES:
        for file in sorted((site / package).rglob("*.py")):
            paragraphs: list[str] = []
            for docstring in docstrings(file):
                paragraphs += [
                    " ".join(part.split())
                    for part in re.split(r"\n\s*\n", docstring)
                    if part and not re.search(r"^\s*(>>>|\.\.|:|-{3}|={3}|\|)|\s:\s", part, re.MULTILINE)
                ]
            words: list[str] = []
            for paragraph in paragraphs:
                words += paragraph.split() if len(paragraph.split()) >= 12 else []
                if len(words) >= 80:
                    texts[" ".join(words[:200])] = None
                    words = []
    found = list(texts)
    if len(found) < number:
        raise DetectAIError(f"expected {number} texts in the packages {', '.join(PACKAGES)}, found {len(found)}")
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order[:number].tolist()]


def docstrings(file: Path) -> Iterator[str]:
    """The docstrings of a module."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def limit_file_size() -> None:
    """Limit the files that a process writes to 1 MB: its weights do not fit, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def train_generator(folder: Path, texts: Sequence[str]) -> Path:
    """Train a tiny GPT-2, which learns the words of AI texts and little of their order."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from detect_ai.core.config import ModelConfig
    from detect_ai.models import encoder

    say("training a tiny language model")
    tokenizer = encoder.load_tokenizer(ModelConfig())
    ids = torch.as_tensor([token for text in tokenizer.encode(list(texts)) for token in text.tolist()])
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=int(ids.max()) + 1, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(GENERATOR_STEPS):
        starts = torch.randint(0, len(ids) - GENERATOR_TOKENS, (16,)).tolist()
        batch = torch.stack([ids[start : start + GENERATOR_TOKENS] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save(folder, sizes["n_positions"])
    return folder


if __name__ == "__main__":
    run_script(main)
