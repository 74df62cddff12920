"""Error rates of a run's detector in kinds of writing that its calibration has not seen: `make bench-trust`.

1. Domains of the calibration split, each evaluated with the thresholds of the others, from the scores in the bundle.
2. The same with the domains of further labelled sets, evaluated with the verdicts of the bundle: texts that are too
   short, in another language or not prose count as abstained.
3. Each set by domain (and attack): AUROC, FPR, detection rate, for its texts as they are and cleaned as in training.
4. The fraction of the sets' domains whose FPR exceeds the bound that the verdicts state.

The stage `evaluate` scores the sets, under `runs/<run>-trust`, separate from the evaluations of the promotion gate.
Evaluations are reused for the same bundle, texts and code: a second run scores nothing. The last line is JSON.

    python benchmarks/trust.py run=base
    python benchmarks/trust.py run=base bundle=4f2a --data /data/posts.parquet /data/letters,text=body,domain=kind
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from detect_ai.calibration.leave_one_out import domain_rates, leave_one_domain_out, summary
from detect_ai.core.compose import load_config
from detect_ai.core.config import Config, EvaluationConfig, ScoreConfig
from detect_ai.core.errors import ConfigError, CorpusError, DetectAIError
from detect_ai.core.job import read_result, result_key, run_stage
from detect_ai.core.storage import Storage, parquet
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import Text, texts_of
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.evaluate import evaluate, result_name

PACKAGE = Path(__file__).resolve().parents[1] / "detect_ai"
# Code that decides a verdict: if it changes, the texts are scored again.
CODE = ("calibration", "detector", "models", "text", "corpus/cleaning.py", "corpus/boilerplate.py")
RATES = ("auroc", "fpr_at_target", "tpr_at_target", "cleared_ai_fraction", "abstained_fraction", "n_human", "n_ai")
SEED = 0


def main() -> int:
    """Evaluate and report. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="run=…, storage.root=…, bundle=…, score.…")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="PATH[,OURS=THEIRS…]",
        help="labelled sets with the names of their columns; default: dev_ood/* and essays/test of DETECT_AI_DATA",
    )
    parser.add_argument("--max-per-domain", type=int, default=500, help="texts of each class in a domain; 0: all")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        result = trust(load_config(options.overrides), options.data or default_sets(), options.max_per_domain)
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    show(result)
    print(json.dumps(result), flush=True)
    return 0


def default_sets() -> list[str]:
    """The development sets, and the test split of the corpus `public` with its prompts as domains."""
    folder = Path(os.environ.get("DETECT_AI_DATA", "data"))
    return [*map(str, sorted(folder.glob("dev_ood/*.parquet"))), f"{folder / 'essays/test'},domain=topic"]


def trust(config: Config, sets: list[str], max_per_domain: int) -> dict[str, Any]:
    """All rates, as plain values for JSON."""
    started, storage = time.perf_counter(), Storage(config.storage.root)
    config.storage.root = storage.root
    name = config.bundle or str(read_result(storage, config.run, "calibrate")["bundle"])
    bundle = Registry(storage).resolve(name)
    spec = spec_of(*bundle)
    config = config.model_copy(
        update={
            "run": f"{config.run}-trust",
            "bundle": bundle[0].uri(bundle[1]),
            "evaluation": EvaluationConfig(baseline=False, include_texts=False),
            "tracking": config.tracking.model_copy(update={"mode": "disabled"}),
        }
    )
    target = spec.default_target_fpr
    left_out = leave_one_domain_out(spec.calibration, spec.calibration_config, target, spec.min_tokens_at(target))
    calibrated = left_out["domains"] if left_out else []
    shown, domains = {}, []
    for given in sets:
        path, *pairs = given.split(",")
        if not all("=" in pair for pair in pairs):
            raise ConfigError(f"--data {given}: expected a path, then column names such as ,domain=topic")
        columns = {**config.score.columns, **dict(pair.split("=", 1) for pair in pairs)}
        scoring = config.score.model_copy(update={"columns": columns})
        set_name = "/".join(Path(path).parts[-2:]).partition(".")[0]
        report, verdicts = evaluated(config, storage, sampled(path, set_name, scoring, max_per_domain), set_name, spec)
        shown[set_name] = rates_of_set(report)
        domains += domains_of_set(set_name, verdicts, target)
    all_domains = [*calibrated, *domains]
    bounded = [row for row in domains if row["fpr"] is not None and row["bound"] is not None]
    exceeding = [row["domain"] for row in bounded if row["fpr"] > row["bound"]]
    result = {
        "run": config.run.removesuffix("-trust"),
        "version": spec.version,
        "target_fpr": target,
        "calibration_domains": {"n_domains": len(calibrated), **summary(calibrated, target)},
        "all_domains": {"n_domains": len(all_domains), **summary(all_domains, target)},
        "highest_fprs": sorted(
            ({"domain": row["domain"], "fpr": row["fpr"]} for row in all_domains if row["fpr"]),
            key=lambda row: -row["fpr"],
        )[:10],
        "sets": shown,
        "development_domains": domains,
        "above_bound": {
            "n_domains": len(bounded),
            "fraction": len(exceeding) / len(bounded) if bounded else None,
            "domains": exceeding,
        },
        "hardware": hardware(config.score.use_gpu),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - started),
    }
    rounded: dict[str, Any] = json.loads(json.dumps(result), parse_float=lambda value: round(float(value), 4))
    return rounded


def sampled(path: str, set_name: str, scoring: ScoreConfig, max_per_domain: int) -> pa.Table:
    """Labelled texts with our column names; draws at most `max_per_domain` per class and domain with a fixed seed."""
    pools: dict[tuple[str, int], list[Text]] = defaultdict(list)
    for text in texts_of(path, scoring):
        if text.label is not None:
            pools[text.values["domain"] or set_name, text.label].append(text)
    rng = np.random.default_rng(SEED)
    rows = []
    for (domain, label), pool in sorted(pools.items()):
        drawn = sorted(rng.permutation(len(pool))[: max_per_domain or None].tolist())
        own = [{**pool[i].values, "id": pool[i].id, "text": pool[i].text} for i in drawn]
        rows += [{**row, "domain": domain, "label": label} for row in own]
    if not rows:
        raise CorpusError(f"{path}: no text has a label")
    return pa.Table.from_pylist(rows)


def evaluated(
    config: Config, storage: Storage, texts: pa.Table, set_name: str, spec: DetectorSpec
) -> tuple[dict[str, Any], Verdicts]:
    """The report of an evaluation on these texts and its verdicts, from an earlier run if there is one."""
    digest = hashlib.sha256(json.dumps([spec.version, code_digest(), texts.to_pylist()]).encode()).hexdigest()[:12]
    name = f"{digest}-{re.sub(r'[^a-zA-Z0-9]+', '-', set_name)}"
    key = f"runs/{config.run}/texts/{name}.parquet"  # where workers on other machines can read it
    scoring = config.score.model_copy(update={"columns": {}, "labels": {}})
    config = config.model_copy(update={"data": storage.uri(key), "score": scoring})
    stage = result_name(config)
    if storage.exists(result_key(config.run, stage)):
        result = read_result(storage, config.run, stage)
    else:
        storage.write_bytes(key, parquet(texts))
        try:
            result = run_stage(stage, evaluate, config, storage)
        finally:
            storage.delete(key)
    folder = result["report_json"].rpartition("/")[0]
    return storage.read_json(result["report_json"]), Verdicts.read(storage, f"{folder}/verdicts")


def code_digest() -> str:
    """A hash of the code that decides a verdict."""
    files = [file for name in CODE for file in (sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / name])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def rates_of_set(report: dict[str, Any]) -> dict[str, Any]:
    """`RATES` of the whole set, its domains and its attacks, for the texts as they are (`raw`) and `cleaned`."""
    forms = {"raw": report, "cleaned": report["cleaned"]}

    def main(metrics: dict[str, Any]) -> dict[str, Any]:
        return {name: metrics[name] for name in RATES}

    by_column: dict[str, dict[str, dict[str, Any]]] = {"domain": {}, "attack": {}}
    for form, metrics in forms.items():
        for row in metrics["slices"]:
            if row["column"] in by_column:
                by_column[row["column"]].setdefault(row["value"], {})[form] = main(row)
    return {
        "changed": report["cleaned"]["changed"],
        **{form: main(metrics["overall"]) for form, metrics in forms.items()},
        "domains": by_column["domain"],
        "attacks": by_column["attack"],
    }


def domains_of_set(set_name: str, verdicts: Verdicts, target: float) -> list[dict[str, Any]]:
    """Rows of `domain_rates` from the verdicts, with the mean FPR `bound` that they state for human texts."""
    rows = []
    for domain in np.unique(verdicts.columns["domain"]).tolist():
        own = verdicts[verdicts.columns["domain"] == domain]
        predictions, human = own.predictions[target], own.labels == 0
        stated = own.fpr_bounds[human & ~np.isnan(own.fpr_bounds)]
        name = domain if domain == set_name else f"{set_name}/{domain}"
        rates = domain_rates(name, predictions[human], predictions[~human])
        rows.append({**rates, "bound": float(stated.mean()) if stated.size else None})
    return rows


def hardware(use_gpu: bool) -> str:
    """The hardware that scored the texts."""
    if use_gpu:
        import torch

        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}"


def show(result: dict[str, Any]) -> None:
    """Print the tables."""

    def percent(value: float | None) -> str:
        return "      –" if value is None else f"{100 * value:6.2f}%"

    names = [name for name in result["all_domains"] if name != "n_domains"]
    print(
        f"\n{result['version']} at a target of {100 * result['target_fpr']:g}%; {result['hardware']}, {result['date']}"
    )
    for group in ("calibration_domains", "all_domains"):
        print(f"\n{group.replace('_', ' ')} left out: {result[group]['n_domains']}")
        print("".join(f"  {name:<22} {percent(result[group][name])}\n" for name in names), end="")
    print("\nhighest FPRs")
    print("".join(f"  {row['domain'][:53]:<54} {percent(row['fpr'])}\n" for row in result["highest_fprs"]), end="")
    head = f"{'raw / cleaned':<56} {'AUROC':>13} {'FPR':>17} {'detection':>17} {'abstained':>17}"
    for name, rates in result["sets"].items():
        changed = rates["changed"]
        print(f"\n{name}: cleaning changes {changed['human']} human and {changed['ai']} AI texts\n{head}")
        parts = {"all texts": rates, **rates["domains"], **{f"attack {k}": v for k, v in rates["attacks"].items()}}
        for part, forms in parts.items():
            pair = [forms["raw"], forms["cleaned"]]
            aurocs = " / ".join("–" if form["auroc"] is None else f"{form['auroc']:.3f}" for form in pair)
            cells = [" / ".join(percent(form[rate]) for form in pair) for rate in (*RATES[1:3], RATES[4])]
            print(f"  {part[:53]:<54} {aurocs:>13} {' '.join(f'{cell:>17}' for cell in cells)}")
    above = result["above_bound"]
    print(f"\nFPR above the stated bound: {percent(above['fraction'])} of {above['n_domains']} development domains")
    print("".join(f"  {domain}\n" for domain in above["domains"]))


if __name__ == "__main__":
    sys.exit(main())
