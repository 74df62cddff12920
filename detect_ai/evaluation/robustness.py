"""Further looks at a detector beside its plain figures: attacked texts, its worst accusations, its explanations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai import metrics
from detect_ai.core.config import Config, ScoreConfig
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.corpus.shards import parquet
from detect_ai.corpus.splits import shuffle_key
from detect_ai.detector.dataset import texts_at
from detect_ai.detector.score import judge
from detect_ai.detector.verdict_table import CALLS, Verdicts
from detect_ai.evaluation import summary
from detect_ai.evaluation.mixed_documents import Mixed, mix, sentence_labels
from detect_ai.evaluation.paired import mcnemar
from detect_ai.text.attacks import ATTACKS, Attack
from detect_ai.text.normalize import normalise

Place = tuple[Storage, str]
SAMPLE_LEAST_TOKENS = 100  # of the texts that mixed documents are made of


def attacked(
    config: Config, where: Place, data: str, out: Place, verdicts: Verdicts, target: float
) -> list[dict[str, Any]]:
    """Figures of the same texts clean and under each attack of `evaluation.attacks`, ratios against the clean ones.

    Both classes are attacked: a detector must not accuse a human whose text was tampered with either. `accused` counts
    the human texts that are called AI only when attacked, `cleared` those only when clean, `accused_p` is the p-value
    of McNemar's exact test that both are as many: where no clean one is called AI, there is no ratio.

    Args:
        config: `evaluation` and `score` are read.
        where: storage and key of the bundle.
        data: the texts.
        out: storage and key of a folder for what is made in between; it is deleted again.
        verdicts: of the clean texts.
        target: the FPR that the ratios are at.
    """
    attacks = _attacks(config)
    if not attacks:
        return []
    clean = verdicts[_sample(verdicts, config.evaluation.attack_texts, config.seed)]
    if not len(clean):
        return []
    texts = texts_at(data, config.score, clean.rows.tolist())
    changed = [
        (row, attack(text, np.random.default_rng(shuffle_key(config.seed, f"{row}\0{name}"))), name)
        for name, attack in attacks.items()
        for row, text in texts.items()
    ]
    found = _judged(config.score, where, (out[0], f"{out[1]}/attacked"), changed)
    labels = dict(zip(clean.rows.tolist(), clean.labels.tolist(), strict=True))
    found = replace(found, labels=np.asarray([labels[name] for name in found.ids.tolist()], np.int64))
    before = _attack_figures(clean, "none", target)
    rows = [_attack_figures(found[found.columns["attack"] == name], name, target) for name in attacks]
    percent = summary.key_of_target(target)
    for row in rows:
        row |= _turned(clean, found[found.columns["attack"] == row["attack"]], target)
    for row in (before, *rows):
        for figure, short in ((f"tpr_at_target_{percent}", "tpr_ratio"), (f"fpr_at_target_{percent}", "fpr_ratio")):
            row[short] = row[figure] / before[figure] if row[figure] is not None and before[figure] else None
    return [before, *rows]


def _attacks(config: Config) -> dict[str, Attack]:
    """The attacks that are asked for, by name."""
    chosen = {name: ATTACKS[name] for name in config.evaluation.attacks}
    if config.evaluation.paraphraser:
        from detect_ai.evaluation.paraphrase import Paraphraser

        chosen["paraphrase"] = Paraphraser(config.evaluation.paraphraser, config.evaluation.paraphrase_template)
    return chosen


def _sample(verdicts: Verdicts, most: int, seed: int) -> NDArray[np.int64]:
    """Positions of at most so many texts of each class that nobody has attacked yet."""
    rng = np.random.default_rng([seed, 3])
    clean = np.isin(verdicts.columns["attack"], ("", "none"))
    picks = [rng.permutation(np.flatnonzero(clean & (verdicts.labels == label)))[:most] for label in (0, 1)]
    return np.sort(np.concatenate(picks))


def _turned(clean: Verdicts, attacked: Verdicts, target: float) -> dict[str, Any]:
    """How many human texts an attack made the detector accuse, and whether that may be chance."""
    called = dict(zip(clean.rows.tolist(), (clean.calls(target) == 1).tolist(), strict=True))
    human = attacked.labels == 0
    before = np.asarray([called[row] for row in attacked.ids[human].tolist()], np.bool_)
    if not before.size:
        return {"accused": None, "cleared": None, "accused_p": None}
    test = mcnemar(attacked.calls(target)[human] == 1, before)
    return {"accused": test["only_a"], "cleared": test["only_b"], "accused_p": test["p_value"]}


def _attack_figures(verdicts: Verdicts, name: str, target: float) -> dict[str, Any]:
    calls = {found: verdicts.calls(found) for found in verdicts.by_target}
    figures = summary.report(verdicts.labels, verdicts.scores, verdicts.probabilities, calls, target, rounds=0)
    return {"attack": name, **figures}


def _judged(
    config: ScoreConfig, where: Place, out: Place, texts: list[tuple[str, str, str]], spans: str = "none"
) -> Verdicts:
    """Verdicts of texts (id, text, attack) that are made here; nothing of them stays in storage."""
    storage, key = out
    try:
        columns = zip(*texts, strict=True)
        table = pa.table(dict(zip(("id", "text", "attack"), map(list, columns), strict=True)))
        storage.write_bytes(f"{key}/texts/texts.parquet", parquet(table, table.schema))
        plain = replace(config, columns={}, labels={}, spans=spans, keep_text=False, format="parquet")
        judge(storage.uri(f"{key}/texts"), where, plain, (storage, f"{key}/verdicts"))
        return Verdicts.read(storage, f"{key}/verdicts")
    finally:
        storage.delete(key)


def worst(
    config: Config, where: Place, data: str, out: Place, verdicts: Verdicts, target: float
) -> list[dict[str, Any]]:
    """The human texts called AI at a target, those of the highest probability first, with the scores of sentences."""
    e = config.evaluation
    accused = np.flatnonzero((verdicts.labels == 0) & (verdicts.calls(target) == 1))
    order = accused[np.argsort(-verdicts.probabilities[accused], kind="stable")][: e.worst]
    if not len(order):
        return []
    chosen = verdicts[order]
    sentences: dict[str, list[dict[str, Any]]] = {}
    if e.show_texts:
        texts = texts_at(data, config.score, chosen.rows.tolist())
        rows = [(row, text, "") for row, text in texts.items()]
        found = _judged(config.score, where, (out[0], f"{out[1]}/worst"), rows, "windows")
        for name, spans in zip(found.ids.tolist(), found.spans.tolist(), strict=True):
            parts_of = [(texts[name][s["start"] : s["end"]], s["probability"]) for s in spans or []]
            sentences[name] = [{"text": text, "probability": p} for text, p in parts_of]
    return [
        {
            "id": name,
            "domain": chosen.columns["domain"][i],
            "source": chosen.columns["source"][i],
            "probability": float(chosen.probabilities[i]),
            "p_value": float(chosen.p_values[i]),
            "num_tokens": int(chosen.num_tokens[i]),
            "sentences": sentences.get(row, []),
        }
        for i, (row, name) in enumerate(zip(chosen.rows.tolist(), chosen.ids.tolist(), strict=True))
    ]


def explained(
    config: Config, where: Place, data: str, out: Place, verdicts: Verdicts, target: float
) -> dict[str, Any] | None:
    """How well the scores of sentences tell the AI's sentences from a human's in documents of both.

    `evaluation.mixed_documents` human texts get sentences of AI texts of the same domain put between theirs: a fifth to
    three fifths of all. What the documents as wholes are called at the default target is told as well, though there is
    no right answer. None where none are asked for, or a class is missing.
    """
    count = config.evaluation.mixed_documents
    if not count:
        return None
    made = _mixed(config, data, verdicts, count)
    if not made:
        return None
    rows = [(str(i), mixed.text, "") for i, mixed in enumerate(made)]
    found = _judged(config.score, where, (out[0], f"{out[1]}/mixed"), rows, "occlusion")
    labels, windows, effects, errors = [], [], [], []
    for name, spans in zip(found.ids.tolist(), found.spans.tolist(), strict=True):
        mixed = made[int(name)]
        places = [(span["start"], span["end"]) for span in spans]
        truth = sentence_labels(places, mixed.ai_spans)
        labels.append(truth)
        windows += [span["probability"] for span in spans]
        effects += [span["effect"] for span in spans]
        sizes = np.asarray([end - start for start, end in places], np.float64)
        said = np.asarray([span["probability"] >= 0.5 for span in spans])
        errors.append(abs(float((sizes * said).sum() - (sizes * truth).sum()) / sizes.sum()))
    truth = np.concatenate(labels)
    both = 0 < truth.sum() < len(truth)
    return {
        "n_documents": len(made),
        "n_sentences": len(truth),
        "sentence_auroc_windows": metrics.auroc(truth, windows) if both else None,
        "sentence_auroc_occlusion": metrics.auroc(truth, effects) if both else None,
        "ai_fraction_error": float(np.mean(errors)),
        "called": {name: float((found.calls(target) == call).mean()) for name, call in CALLS.items()},
    }


def _mixed(config: Config, data: str, verdicts: Verdicts, count: int) -> list[Mixed]:
    """Mixed documents of texts of one domain each, as far as there are pairs."""
    rng = np.random.default_rng([config.seed, 4])
    long = verdicts.num_tokens >= SAMPLE_LEAST_TOKENS
    pairs = []
    for domain in np.unique(verdicts.columns["domain"]).tolist():
        own = long & (verdicts.columns["domain"] == domain)
        human, ai = (rng.permutation(np.flatnonzero(own & (verdicts.labels == label))) for label in (0, 1))
        pairs += list(zip(human.tolist(), ai.tolist(), strict=False))
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    texts = texts_at(data, config.score, [verdicts.rows[i] for pair in pairs for i in pair])
    made = []
    for pair in pairs:
        human_text, ai_text = (normalise(texts[verdicts.rows[i]]).text for i in pair)
        try:
            made.append(mix(human_text, ai_text, rng, share=float(rng.uniform(0.2, 0.6)), runs=2))
        except InputError:  # of fewer than two sentences
            continue
    return made
