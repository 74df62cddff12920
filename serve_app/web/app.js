// The page: sends the text, shows the verdict. Text only ever enters the document as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const LEVELS = 5;
const VERDICTS = { human: "No sign of AI", ai: "Likely AI-generated", uncertain: "Can't tell" };
const SHORTLY = {
  too_short: "too short",
  other_script: "not in Latin letters",
  other_language: "in another language",
  mostly_code: "mostly code",
  mostly_tables: "mostly tables",
  mostly_quotations: "mostly quotations",
  between_thresholds: "between human and AI",
};
const TAMPERING = {
  invisible: "invisible characters",
  homoglyph: "letters of another alphabet that look Latin",
  lookalike_form: "full-width or decorated letters",
  filler: "blank fillers",
};
let model = null;

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

const percent = (share) => {
  const value = 100 * share;
  if (value > 0 && value < 1) return "under 1%";
  if (value > 99 && value < 100) return "over 99%";
  return `${Math.round(value)}%`;
};

// Shares of human texts are said as "3 of 100": people read that more safely than 0.03.
const outOf100 = (share) => {
  const value = 100 * share;
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
    throw new Error(key ? "That key is not valid here." : "This service asks for an API key.");
  }
  const problem = type.includes("json") ? await response.json() : {};
  const busy = response.status === 503 ? "The service is busy: try again in a moment." : "";
  throw new Error(problem.detail || busy || `The service answered with an error (${response.status}).`);
}

async function loadModel() {
  model = await request("v1/model");
  byId("version").textContent = model.model_version;
  byId("demonstration").hidden = !model.corpus.demonstration;
  const select = byId("target");
  select.replaceChildren(
    ...model.thresholds.map((threshold) => {
      const option = element("option", `about ${outOf100(threshold.target_fpr)}`);
      option.value = threshold.target_fpr;
      option.selected = threshold.target_fpr === model.default_target_fpr;
      return option;
    }),
  );
  select.disabled = model.thresholds.length < 2;
}

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function showReasons(verdict) {
  // A verdict from the history may be of a model with other targets.
  const needed = model?.thresholds.find((threshold) => threshold.target_fpr === verdict.target_fpr)?.min_tokens;
  const words = {
    too_short: `It is too short: ${verdict.num_tokens} tokens, and the model needs ${needed ? `${needed} or more` : "more"}.`,
    other_script: "Most of it is not in Latin letters. This model reads English.",
    other_language: "It is in another language. This model reads English.",
    mostly_code: "Most of it is code. This model reads prose.",
    mostly_tables: "Most of it is tables or numbers. This model reads prose.",
    mostly_quotations: "Most of it is quoted: who wrote that is another question.",
    between_thresholds: "The score lies between what is usual for human and for AI texts.",
  };
  byId("reasons").replaceChildren(...verdict.reasons.map((reason) => element("li", words[reason] || reason)));
  byId("reasons").hidden = verdict.reasons.length === 0;
}

function meaning(verdict) {
  if (verdict.label === "ai") {
    const bound = verdict.fpr_upper_bound;
    if (bound === null) return "It may still be human: it is of no kind of text that the model was calibrated on, so its false positive rate is not known.";
    return `It may be human all the same: of human texts like the ${verdict.num_compared} it was compared with, about ${outOf100(verdict.target_fpr)} are called AI, and with so few it could be ${outOf100(bound)}.`;
  }
  if (verdict.label === "human") return "Nothing in it stands out as AI writing. AI texts can pass too, above all edited ones.";
  return "The detector does not answer here, and no answer is better than a wrong one:";
}

function showNumbers(verdict) {
  // A probability for a text that cannot be judged would only mislead.
  const isJudged = verdict.reasons.every((reason) => reason === "between_thresholds");
  byId("numbers").hidden = !isJudged;
  byId("scale").style.setProperty("--probability", `${100 * verdict.probability}%`);
  byId("scale").style.setProperty("--threshold", `${100 * verdict.threshold}%`);
  byId("probability").textContent = percent(verdict.probability);
  byId("prevalence").textContent =
    `if ${outOf100(verdict.prevalence)} texts were AI. Called AI from ${percent(verdict.threshold)}.`;
  byId("p-value").textContent =
    `About ${outOf100(verdict.p_value)} score at least this high, to go by the ${verdict.num_compared} that it was compared with.`;
}

function showTampering(verdict) {
  const found = Object.entries(verdict.tampering);
  byId("tampering").replaceChildren(...found.map(([kind, count]) => element("li", `${count} × ${TAMPERING[kind] || kind}`)));
  byId("tampering-block").hidden = found.length === 0;
}

function showSentences(text, verdict) {
  const spans = verdict.reasons.length ? [] : verdict.spans;
  const points = Array.from(text); // offsets count code points, JavaScript's strings do not
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

function inWords(verdict) {
  const [reason] = verdict.reasons;
  return reason ? `${VERDICTS[verdict.label]}: ${SHORTLY[reason] || reason}` : VERDICTS[verdict.label];
}

function show(text, verdict) {
  byId("result").dataset.label = verdict.label;
  const said = inWords(verdict);
  byId("verdict").textContent = said;
  byId("meaning").textContent = meaning(verdict);
  showReasons(verdict);
  showNumbers(verdict);
  showTampering(verdict);
  showSentences(text, verdict);
  const windows = verdict.num_windows === 1 ? "one window" : `${verdict.num_windows} windows`;
  byId("facts").textContent = `All ${verdict.num_tokens} tokens read, in ${windows}. Model ${verdict.model_version}.`;
  byId("result").hidden = false;
  say(`Done: ${said}.`);
  byId("result").focus({ preventScroll: true });
  byId("result").scrollIntoView({ block: "nearest" });
}

function judged(text, verdict) {
  past.add(text, verdict);
  showHistory();
  show(text, verdict);
}

function showHistory() {
  byId("keep").checked = past.isKept();
  const items = past.all().map(({ at, text, verdict }) => {
    const again = element("button", text.trim().slice(0, 160) || "(blank)", "past");
    again.type = "button";
    again.addEventListener("click", () => {
      byId("text").value = text;
      countWords();
      show(text, verdict);
    });
    const item = element("li", "");
    item.append(again, element("span", `${inWords(verdict)} · ${new Date(at).toLocaleString()}`, "quiet"));
    return item;
  });
  byId("past").replaceChildren(...items);
}

async function judgeText() {
  const text = byId("text").value;
  const body = { text, target_fpr: Number(byId("target").value), return_spans: true };
  const headers = { "Content-Type": "application/json" };
  judged(text, (await request("v1/detect", { method: "POST", headers, body: JSON.stringify(body) })).verdicts[0]);
}

async function judgeFile(file) {
  const form = new FormData();
  form.append("files", file);
  form.append("target_fpr", byId("target").value);
  form.append("return_spans", "true");
  form.append("return_text", "true");
  const found = (await request("v1/detect/file", { method: "POST", body: form })).files[0];
  if (found.problem) throw new Error(`${found.name}: ${found.problem.detail}`);
  byId("text").value = found.text;
  countWords();
  judged(found.text, found.verdict);
}

async function check(judge) {
  if (byId("check").disabled) return;
  byId("check").disabled = true;
  byId("result").hidden = true;
  say("Reading…");
  try {
    if (!model) await loadModel();
    await judge();
  } catch (error) {
    say(error instanceof TypeError ? "The service cannot be reached." : error.message, true);
  } finally {
    byId("check").disabled = false;
  }
}

function countWords() {
  const words = byId("text").value.trim().split(/\s+/).filter(Boolean).length;
  byId("length").textContent = words === 1 ? "1 word" : `${words} words`;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  check(judgeText);
});
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  say("");
  await loadModel().catch((error) => say(error.message, true));
  if (byId("key-form").hidden) byId("text").focus();
});
byId("file").addEventListener("change", () => {
  const [file] = byId("file").files;
  byId("file").value = ""; // so that the same file can be chosen again
  if (file) check(() => judgeFile(file));
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
  if (!file) return; // text is dropped as it always is
  event.preventDefault();
  check(() => judgeFile(file));
});
byId("text").addEventListener("input", countWords);
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("keep").addEventListener("change", () => {
  if (byId("keep").checked) past.begin();
  else past.end();
  showHistory();
});
byId("theme").value = theme.get();
byId("theme").addEventListener("change", () => theme.set(byId("theme").value));
showHistory();
loadModel().catch((error) => say(error.message, true));
countWords();
