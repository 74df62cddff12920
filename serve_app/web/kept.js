// What is kept in this browser and nowhere else: light or dark, and, for those who ask for it, texts and verdicts of
// before. Loaded before the page is drawn, so that it has its colours from the start.
"use strict";

const kept = {
  get: (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null; // a browser may allow a page to keep nothing
    }
  },
  // Whether there was room.
  set: (name, value) => {
    try {
      if (value === null) localStorage.removeItem(name);
      else localStorage.setItem(name, value);
      return true;
    } catch {
      return false;
    }
  },
};

const theme = {
  get: () => kept.get("theme") || "",
  set: (name) => {
    kept.set("theme", name || null);
    theme.apply(name);
  },
  apply: (name) => {
    document.documentElement.dataset.theme = name;
  },
};
theme.apply(theme.get());

const past = {
  MOST: 20,
  isKept: () => kept.get("history") !== null,
  begin: () => kept.set("history", "[]"),
  end: () => kept.set("history", null),
  all: () => {
    try {
      const found = JSON.parse(kept.get("history") || "[]");
      return found.filter((entry) => typeof entry.text === "string" && entry.verdict);
    } catch {
      return []; // something else wrote there
    }
  },
  add: (text, verdict) => {
    if (!past.isKept()) return;
    const entries = [{ at: Date.now(), text, verdict }, ...past.all().filter((entry) => entry.text !== text)];
    entries.length = Math.min(entries.length, past.MOST);
    while (!kept.set("history", JSON.stringify(entries)) && entries.length) entries.pop(); // the oldest make room
  },
};
