// Past texts and verdicts in localStorage, if the user opts in.
"use strict";

const past = {
  MAX_ENTRIES: 20,
  isEnabled: () => past.read() !== null,
  enable: () => past.write("[]"),
  disable: () => past.isEnabled() && localStorage.removeItem("history"),
  read: () => {
    try {
      return localStorage.getItem("history");
    } catch {
      return null; // storage may be disabled
    }
  },
  // Returns whether the value was stored.
  write: (value) => {
    try {
      localStorage.setItem("history", value);
      return true;
    } catch {
      return false;
    }
  },
  all: () => {
    try {
      const entries = JSON.parse(past.read() || "[]");
      return entries.filter((entry) => typeof entry.text === "string" && entry.verdict);
    } catch {
      return []; // not written by this page
    }
  },
  add: (text, verdict) => {
    if (!past.isEnabled()) return;
    const entries = [{ at: Date.now(), text, verdict }, ...past.all().filter((entry) => entry.text !== text)];
    entries.length = Math.min(entries.length, past.MAX_ENTRIES);
    while (!past.write(JSON.stringify(entries)) && entries.length) entries.pop(); // drop the oldest
  },
};
