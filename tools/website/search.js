// Search in all sections of the site. The index is a script, not JSON, so that it also loads from a disk.
"use strict";

const input = document.querySelector("main input"), results = document.getElementById("results");
const MOST = 40;
const wordsOf = text => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
const rows = searchIndex.map(([page, title, address, text, code]) => ({
  page, title, address, text,
  inTitle: wordsOf(`${page} ${title}`),
  inText: wordsOf(text),
  inCode: wordsOf(code),
}));

// How well a word of the question fits to a section: 0 if it is not there.
function fit(word, row) {
  const count = words => Math.min(5, words.reduce((sum, each) => sum + (each === word ? 1 : each.startsWith(word) ? 0.3 : 0), 0));
  return 10 * count(row.inTitle) + 2 * count(row.inText) + count(row.inCode);
}

function find(question) {
  const words = wordsOf(question), phrase = words.join(" ");
  const found = [];
  for (const row of words.length ? rows : []) {
    const fits = words.map(word => fit(word, row));
    if (!fits.every(value => value > 0)) continue;
    const together = words.length > 1 && row.inText.join(" ").includes(phrase) ? 15 : 0;
    const named = wordsOf(row.title).join(" ") === phrase ? 50 : 0;
    found.push({ row, value: together + named + fits.reduce((sum, value) => sum + value, 0) });
  }
  return found.sort((a, b) => b.value - a.value).map(each => each.row);
}

// A piece of the text around the words that were asked for, with all of them marked.
function excerpt(text, words) {
  const lower = text.toLowerCase();
  const at = [words.join(" "), ...words].map(each => lower.indexOf(each)).find(place => place >= 0) ?? 0;
  const from = at < 60 ? 0 : text.lastIndexOf(" ", at - 60) + 1;
  const to = from + 220 < text.length ? text.lastIndexOf(" ", from + 220) : text.length;
  const piece = (from ? "… " : "") + text.slice(from, to) + (to < text.length ? " …" : "");
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}_])(${words.join("|")})`, "giu");
  const paragraph = document.createElement("p");
  paragraph.append(...piece.split(pattern).map((part, k) => {
    return k % 2 ? Object.assign(document.createElement("mark"), { textContent: part }) : part;
  }));
  return paragraph;
}

function show() {
  const question = input.value.trim(), found = find(question), words = wordsOf(question);
  results.replaceChildren(...found.slice(0, MOST).map(row => {
    const item = document.createElement("li"), link = document.createElement("a"), page = document.createElement("span");
    link.href = row.address;
    link.textContent = row.title;
    page.textContent = row.page === row.title ? "" : row.page;
    item.append(link, " ", page, excerpt(row.text, words));
    return item;
  }));
  const more = found.length > MOST ? `, the best ${MOST} of them here` : "";
  const count = `${found.length || "No"} section${found.length === 1 ? "" : "s"}${more}`;
  document.getElementById("count").textContent = question ? count : "";
}

input.value = new URLSearchParams(location.search).get("q") || "";
input.addEventListener("input", () => {
  show();
  try { history.replaceState(null, "", `?q=${encodeURIComponent(input.value)}`); } catch { /* from a disk */ }
});
show();
if (!input.value) input.focus();
