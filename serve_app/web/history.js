// Settings and history in localStorage: colour theme, and past texts and verdicts if the user opts in. Loaded before
// the page is drawn, so that the theme applies from the start.
"use strict";

const storage = {
  get: (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null; // storage may be disabled
    }
  },
  // Returns whether the value was stored.
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
  get: () => storage.get("theme") || "",
  set: (name) => {
    storage.set("theme", name || null);
    theme.apply(name);
  },
  apply: (name) => {
    document.documentElement.dataset.theme = name;
  },
};
theme.apply(theme.get());

const past = {
  MAX_ENTRIES: 20,
  isEnabled: () => storage.get("history") !== null,
  enable: () => storage.set("history", "[]"),
  disable: () => storage.set("history", null),
  all: () => {
    try {
      const entries = JSON.parse(storage.get("history") || "[]");
      return entries.filter((entry) => typeof entry.text === "string" && entry.verdict);
    } catch {
      return []; // not written by this page
    }
  },
  add: (text, verdict) => {
    if (!past.isEnabled()) return;
    const entries = [{ at: Date.now(), text, verdict }, ...past.all().filter((entry) => entry.text !== text)];
    entries.length = Math.min(entries.length, past.MAX_ENTRIES);
    while (!storage.set("history", JSON.stringify(entries)) && entries.length) entries.pop(); // drop the oldest
  },
};
