// What every page does: remember light or dark, fold or show the code, mark the section that is being read.
"use strict";

const root = document.documentElement;

function remembered(name) {
  try { return localStorage.getItem(name); } catch { return null; } // a browser may forbid to store anything
}

function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* then it holds for this page only */ }
}

function setUpTheme() {
  const dark = document.getElementById("dark"), system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const theme = root.dataset.theme;
    dark.checked = theme === "dark" || (theme !== "light" && system.matches);
  };
  dark.addEventListener("change", () => {
    root.dataset.theme = dark.checked ? "dark" : "light";
    remember("theme", root.dataset.theme);
  });
  system.addEventListener("change", show);
  show();
}

function setUpCode() {
  const code = document.getElementById("code");
  const cells = document.querySelectorAll("details.code:not([data-setup])");
  const fold = () => cells.forEach(cell => { cell.open = code.checked; });
  code.checked = remembered("code") !== "folded";
  if (!code.checked) fold();
  code.addEventListener("change", () => {
    remember("code", code.checked ? "shown" : "folded");
    fold();
  });
}

// What scrolls sideways can be reached by keyboard, and only that.
function setUpScrolling() {
  const wide = document.querySelectorAll("pre, .wide, .katex-display");
  const mark = () => wide.forEach(box => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, { capture: true });
  document.fonts.ready.then(mark);
  mark();
}

function setUpContents() {
  const links = new Map([...document.querySelectorAll(".contents a")].map(link => [link.hash.slice(1), link]));
  const headings = [...document.querySelectorAll("main :is(h2, h3)[id]")].filter(heading => links.has(heading.id));
  if (!headings.length) return;
  let current = null;
  const mark = () => {
    const above = headings.filter(heading => heading.getBoundingClientRect().top < innerHeight / 4);
    const link = above.length ? links.get(above.at(-1).id) : null;
    if (link === current) return;
    current?.removeAttribute("aria-current");
    link?.setAttribute("aria-current", "true");
    current = link;
    const list = document.querySelector(".contents"); // keep the mark in sight, without moving the page
    if (link && list.scrollHeight > list.clientHeight) list.scrollTop = link.offsetTop - list.clientHeight / 2;
  };
  new IntersectionObserver(mark, { rootMargin: "0px 0px -75% 0px" }).observe(headings[0]);
  addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
  mark();
  document.querySelector(".contents").addEventListener("click", event => {
    if (event.target.closest("a") && !matchMedia("(min-width: 70em)").matches) document.getElementById("contents").open = false;
  });
}

document.querySelector(".switches").hidden = false;
setUpTheme();
setUpCode();
setUpScrolling();
setUpContents();
