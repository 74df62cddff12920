// Detection page: sends a text and shows the verdict. Text is inserted as text only, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const LEVELS = 5;
const VERDICTS = { human: "No sign of AI", ai: "Likely AI-generated", uncertain: "Uncertain" };
// In a headline, and as a sentence.
const REASONS = {
  too_short: ["too short", "The text is too short:"],
  other_script: ["not in Latin script", "Most of the text is not in Latin script. The model reads English."],
  other_language: ["another language", "Part or all of the text is in another language. The model reads English."],
  not_language: [
    "not recognised as English text",
    "Most of the text is not recognised as English, or characters were lost: check that it was copied or extracted correctly.",
  ],
  mostly_code: ["mostly code", "Most of the text is code. The model reads prose."],
  mostly_tables: ["mostly tables", "Most of the text is tables or numbers. The model reads prose."],
  mostly_quotations: ["mostly quotations", "Most of the text is quotations, which have other authors."],
  not_prose: ["mostly links or references", "Most of the text is links, references or other content that is not prose."],
  hidden_text: ["hidden text", "The file contains a lot of text that a reader cannot see. It was not scored."],
  between_thresholds: ["between human and AI", "The score is in the range of both human and AI texts."],
  unlike_calibration: ["unlike the calibration texts", "Its words are unlike those of the calibration texts, or its score is in the range of neither human nor AI texts."],
  abstaining: ["paused for this kind of writing", "The operator has paused verdicts on this kind of writing: their error rates may not hold at present."],
};
const TAMPERING = {
  invisible: "invisible characters",
  homoglyph: "look-alike letters of another alphabet",
  lookalike_form: "full-width or decorated letters",
  filler: "blank filler characters",
  hidden: "characters of hidden text in the file",
};
const PREVALENCES = [0.01, 0.05, 0.2, 0.5];
const CLASS_SIZE = 30;
const CONTENT = {
  other_script: "another script",
  other_language: "another language",
  not_language: "not recognised as English",
  lost: "lost characters",
};
const MOSTLY_PROSE = 0.9; // at or above this fraction, the content is not shown
let model = null;

function element(name, text, className) {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

const percent = (fraction) => {
  if (fraction > 0 && fraction < 0.01) return "under 1%";
  if (fraction > 0.99 && fraction < 1) return "over 99%";
  return `${Math.round(100 * fraction)}%`;
};

// Natural frequencies such as "3 of 100" are understood better than 0.03.
const outOf100 = (fraction) => {
  const value = 100 * fraction;
  return `${value < 10 ? Number(value.toFixed(1)) : Math.round(value)} of 100`;
};

async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  const type = response.headers.get("Content-Type") || "";
  if (response.ok) return response.json();
  if (response.status === 401) {
    sessionStorage.removeItem("key");
    byId("key-form").hidden = false;
    byId("key").focus();
    throw new Error(key ? "The API key is not valid." : "This service needs an API key.");
  }
  const problem = type.includes("json") ? await response.json() : {};
  const busy = response.status === 503 ? "The service is busy. Try again in a moment." : "";
  throw new Error(problem.detail || busy || `The service returned an error (${response.status}).`);
}

async function loadModel() {
  model = await request("v1/model");
  byId("version").textContent = model.model_version;
  byId("demonstration").hidden = !model.corpus.demonstration;
  byId("population").textContent = `Calibrated for one population: ${model.population}. For other writers the error rates do not hold.`;
  byId("population").hidden = !model.population;
  const select = byId("target");
  select.replaceChildren(
    ...model.thresholds.map((threshold) => {
      const option = element("option", `${outOf100(threshold.target_fpr)} human texts`);
      option.value = threshold.target_fpr;
      option.selected = threshold.target_fpr === model.default_target_fpr;
      return option;
    }),
  );
  select.disabled = model.thresholds.length < 2;
  showAccusations();
}

function showAccusations() {
  const threshold = model.thresholds.find(({ target_fpr }) => target_fpr === Number(byId("target").value));
  const { fpr_upper_bound: fpr, detection_rate: tpr, confidence } = threshold;
  const isKnown = tpr !== null && tpr + fpr > 0;
  const kinds = {
    new_domain: `of a kind of writing that it has never seen (with ${percent(confidence)} confidence)`,
    population: `of this population (${model.population}; with ${percent(confidence)} confidence)`,
    calibration_texts: "like its calibration texts",
  };
  const kind = kinds[model.compared_with];
  const error = `At the selected target the model labels up to ${outOf100(fpr)} human texts ${kind} AI`;
  byId("rates").textContent = isKnown
    ? `It depends on how many of your texts are AI. ${error} and finds ${outOf100(tpr)} AI texts. Then:`
    : `${error}. How many AI texts it finds was not measured, so it is not known how often an accusation is right.`;
  byId("precision-table").hidden = !isKnown;
  const rows = PREVALENCES.map((prevalence) => {
    const row = element("tr", "");
    const right = (prevalence * tpr) / (prevalence * tpr + (1 - prevalence) * fpr);
    row.append(element("td", outOf100(prevalence)), element("td", `${outOf100(right)} times`));
    return row;
  });
  byId("precision").replaceChildren(...(isKnown ? rows : []));
  const anyone = percent(1 - (1 - fpr) ** CLASS_SIZE);
  byId("class-of-30").textContent =
    `In a class of ${CLASS_SIZE} who all wrote their own text, the chance that at least one is labelled AI is up to ${anyone}.`;
  byId("accusations").hidden = false;
}

function showStatus(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function showReasons(verdict) {
  // A verdict from the history may be from a model with other targets.
  const needed = model?.thresholds.find((threshold) => threshold.target_fpr === verdict.target_fpr)?.min_tokens;
  const tokens = ` ${verdict.num_tokens} tokens; the model needs ${needed ? `at least ${needed}` : "more"}.`;
  const texts = verdict.reasons.map((name) => (REASONS[name]?.[1] ?? name) + (name === "too_short" ? tokens : ""));
  byId("reasons").replaceChildren(...texts.map((text) => element("li", text)));
  byId("reasons").hidden = verdict.reasons.length === 0;
}

function meaning(verdict) {
  if (verdict.label === "ai") {
    const bound = outOf100(verdict.fpr_upper_bound);
    if (verdict.compared_with === "new_domain") {
      return `It may still be human. Of a kind of writing that it has never seen, the model labels up to ${bound} human texts AI (with ${percent(verdict.confidence)} confidence; most like this text: ${verdict.nearest_domain}).`;
    }
    if (verdict.compared_with === "population") {
      return `It may still be human. The model was set for one population (${verdict.nearest_domain}): of their human texts it labels up to ${bound} AI (with ${percent(verdict.confidence)} confidence). For other writers this does not hold.`;
    }
    return `It may still be human. Of texts like the ${verdict.num_compared} human calibration texts, the model labels up to ${bound} AI.`;
  }
  if (verdict.label === "human") return "No evidence of AI was found. AI texts can be missed, in particular edited ones.";
  return "The detector abstains, because a wrong verdict would be worse than none:";
}

function showNumbers(verdict) {
  // A probability would be misleading for a text that is out of scope.
  const isScored = verdict.reasons.every((reason) => reason === "between_thresholds");
  byId("numbers").hidden = !isScored;
  byId("scale").style.setProperty("--probability", `${100 * verdict.probability}%`);
  byId("scale").style.setProperty("--threshold", `${100 * verdict.threshold}%`);
  byId("probability").textContent = percent(verdict.probability);
  byId("prevalence").textContent =
    `if ${outOf100(verdict.prevalence)} texts are AI. Labelled AI at ${percent(verdict.threshold)} or higher.`;
  const share = verdict.p_value < 1 ? `up to ${outOf100(verdict.p_value)}` : "more than half of the";
  byId("p-value").textContent =
    verdict.compared_with === "new_domain"
      ? `Of a kind of writing that the model has never seen, ${share} human texts may score this high.`
      : `${verdict.compared_with === "population" ? `Of this population (${verdict.nearest_domain})` : "In calibration"}, ${outOf100(verdict.p_value)} human texts scored this high or higher (n = ${verdict.num_compared}).`;
}

function showTampering(verdict) {
  const counts = Object.entries(verdict.tampering);
  byId("tampering").replaceChildren(...counts.map(([kind, count]) => element("li", `${count} × ${TAMPERING[kind] || kind}`)));
  byId("tampering-block").hidden = counts.length === 0;
}

function showContent({ content = {} }) {
  const kinds = Object.entries(content).sort(([, a], [, b]) => b - a);
  const parts = kinds.map(([kind, fraction]) => `${percent(fraction)} ${CONTENT[kind] || kind}`);
  byId("content").textContent = `Read as: ${parts.join(", ")}.`;
  byId("content").hidden = kinds.length === 0 || content.prose >= MOSTLY_PROSE;
}

function showSentences(text, verdict) {
  const spans = verdict.reasons.length ? [] : verdict.spans;
  const points = Array.from(text); // offsets count code points; JavaScript strings count UTF-16 units
  const level = (span) => `level-${Math.min(LEVELS - 1, Math.floor(span.probability * LEVELS))}`;
  const parts = [];
  const items = [];
  let at = 0;
  for (const span of spans) {
    const sentence = points.slice(span.start, span.end).join("");
    parts.push(points.slice(at, span.start).join(""), element("mark", sentence, level(span)));
    items.push(element("li", `${percent(span.probability)}: ${sentence}`));
    at = span.end;
  }
  byId("sentences").replaceChildren(...parts, points.slice(at).join(""));
  byId("sentence-list").replaceChildren(...items);
  byId("sentences-block").hidden = spans.length === 0;
}

function headline(verdict) {
  const [reason] = verdict.reasons;
  return reason ? `${VERDICTS[verdict.label]}: ${REASONS[reason]?.[0] ?? reason}` : VERDICTS[verdict.label];
}

function show(text, verdict) {
  byId("result").dataset.label = verdict.label;
  byId("verdict").textContent = headline(verdict);
  byId("meaning").textContent = meaning(verdict);
  showReasons(verdict);
  showContent(verdict);
  showNumbers(verdict);
  showTampering(verdict);
  showSentences(text, verdict);
  const windows = verdict.num_windows === 1 ? "one window" : `${verdict.num_windows} windows`;
  byId("facts").textContent = `Read in full: ${verdict.num_tokens} tokens in ${windows}. Model ${verdict.model_version}.`;
  byId("result").hidden = false;
  showStatus(`Done: ${headline(verdict)}.`);
  byId("result").focus({ preventScroll: true });
  byId("result").scrollIntoView({ block: "nearest" });
}

function addResult(text, verdict) {
  past.add(text, verdict);
  showHistory();
  show(text, verdict);
}

function showHistory() {
  byId("keep").checked = past.isEnabled();
  const items = past.all().map(({ at, text, verdict }) => {
    const again = element("button", text.trim().slice(0, 160) || "(blank)", "past");
    again.type = "button";
    again.addEventListener("click", () => {
      byId("text").value = text;
      show(text, verdict);
    });
    const item = element("li", "");
    item.append(again, element("span", `${headline(verdict)} · ${new Date(at).toLocaleString()}`, "quiet"));
    return item;
  });
  byId("past").replaceChildren(...items);
}

async function detectText() {
  const text = byId("text").value;
  const body = { text, target_fpr: Number(byId("target").value), return_spans: true };
  const headers = { "Content-Type": "application/json" };
  addResult(text, (await request("v1/detect", { method: "POST", headers, body: JSON.stringify(body) })).verdicts[0]);
}

async function detectFile(file) {
  const form = new FormData();
  form.append("files", file);
  form.append("target_fpr", byId("target").value);
  form.append("return_spans", "true");
  form.append("return_text", "true");
  const result = (await request("v1/detect/file", { method: "POST", body: form })).files[0];
  if (result.problem) throw new Error(`${result.name}: ${result.problem.detail}`);
  byId("text").value = result.text;
  addResult(result.text, result.verdict);
}

async function check(detect) {
  if (byId("check").disabled) return;
  byId("check").disabled = true;
  byId("result").hidden = true;
  showStatus("Checking…");
  try {
    if (!model) await loadModel();
    await detect();
  } catch (error) {
    showStatus(error instanceof TypeError ? "The service cannot be reached." : error.message, true);
  } finally {
    byId("check").disabled = false;
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  check(detectText);
});
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  showStatus("");
  await loadModel().catch((error) => showStatus(error.message, true));
  if (byId("key-form").hidden) byId("text").focus();
});
byId("target").addEventListener("change", showAccusations);
byId("file").addEventListener("change", () => {
  const [file] = byId("file").files;
  byId("file").value = ""; // allow choosing the same file again
  if (file) check(() => detectFile(file));
});
byId("text").addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  byId("text").classList.add("dropping");
});
byId("text").addEventListener("dragleave", () => byId("text").classList.remove("dropping"));
byId("text").addEventListener("drop", (event) => {
  byId("text").classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (!file) return; // dropped text is handled by the browser
  event.preventDefault();
  check(() => detectFile(file));
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("keep").addEventListener("change", () => {
  if (byId("keep").checked) past.enable();
  else past.disable();
  showHistory();
});
showHistory();
loadModel().catch((error) => showStatus(error.message, true));
