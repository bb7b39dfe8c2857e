(function () {
"use strict";
const svg = document.getElementById("drawing"), tip = document.getElementById("tip"), told = document.getElementById("selection");
const hint = told.textContent;
document.documentElement.classList.add("script");

// -------------------------------------------------------------- the drawing
const nodes = [...svg.querySelectorAll(".node")];
const edges = [...svg.querySelectorAll(".edge")].map(el => ({
  el, from: el.dataset.from, to: el.dataset.to, name: el.dataset.edge,
  size: el.dataset.score === undefined ? null : Math.abs(+el.dataset.score), shown: true,
}));
const named = edges.filter(edge => edge.name !== undefined);
const scored = named.filter(edge => edge.size !== null).sort((a, b) => b.size - a.size);
svg.querySelectorAll("title").forEach(title => title.remove()); // the browser's own tooltip would stand beside ours

// Edges are one stop of the Tab key; the arrows go on to the next strongest.
const order = [...scored, ...named.filter(edge => edge.size === null)];
nodes.forEach(node => { if (!node.hasAttribute("href")) { node.setAttribute("tabindex", 0); node.setAttribute("role", "button"); } });

function step(from, by) {
  const shown = order.filter(edge => edge.shown);
  const at = shown.findIndex(edge => edge.el === from);
  const to = shown[(at + by + shown.length) % shown.length];
  from.setAttribute("tabindex", -1);
  to.el.setAttribute("tabindex", 0);
  to.el.focus();
}

// --------------------------------------------------------------- the tooltip
function describe(el) {
  const data = el.dataset;
  if (data.edge === undefined) return [el.getAttribute("aria-label"), ""];
  if (data.score === undefined) return [data.edge, "no score"];
  const rank = scored.findIndex(edge => edge.el === el) + 1;
  return [data.edge, `score ${el.getAttribute("aria-label").split("score ")[1]}, rank ${rank} of ${scored.length}`];
}

function showTip(el, x, y) {
  const [name, more] = describe(el);
  tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: name }), more ? document.createElement("br") : "", more);
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(x + 14, room))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > window.innerHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
}
const part = event => event.target.closest(".edge[data-edge], .node");
svg.addEventListener("mousemove", event => { const el = part(event); if (el) showTip(el, event.clientX, event.clientY); else tip.hidden = true; });
svg.addEventListener("mouseleave", () => { tip.hidden = true; });
svg.addEventListener("focusin", event => {
  const el = part(event);
  if (!el || !el.matches(":focus-visible")) return;
  const box = el.getBoundingClientRect();
  showTip(el, box.left + box.width / 2, box.top + box.height / 2);
});
svg.addEventListener("focusout", () => { tip.hidden = true; });

// ------------------------------------------------------ upstream and downstream
let selected = null;

// A node, and the parts that it is the sum of.
const within = name => nodes.map(node => node.dataset.node).filter(each => each === name || each.startsWith(`${name}/`));
const any = (set, name) => set.has(name) || within(name).some(each => set.has(each));

function walk(start, near, far) {
  const seen = new Set(), used = new Set(), todo = within(start);
  while (todo.length) {
    const at = todo.pop();
    for (const edge of edges) {
      if (!edge.shown || edge[near] !== at) continue;
      used.add(edge);
      if (!seen.has(edge[far])) { seen.add(edge[far]); todo.push(edge[far]); }
    }
  }
  return [seen, used];
}

function light() {
  const [up, into] = selected ? walk(selected, "to", "from") : [new Set(), new Set()];
  const [down, out] = selected ? walk(selected, "from", "to") : [new Set(), new Set()];
  svg.classList.toggle("lit", nodes.some(node => node.dataset.node === selected));
  for (const node of nodes) {
    const name = node.dataset.node;
    node.classList.toggle("selected", name === selected);
    node.classList.toggle("holds", selected !== null && selected.startsWith(`${name}/`));
    node.classList.toggle("upstream", any(up, name));
    node.classList.toggle("downstream", any(down, name));
    if (node.getAttribute("role") === "button") node.setAttribute("aria-pressed", name === selected);
  }
  for (const edge of edges) {
    edge.el.classList.toggle("upstream", into.has(edge));
    edge.el.classList.toggle("downstream", out.has(edge));
  }
  const drawn = nodes.some(node => node.dataset.node === selected);
  const said = drawn ? `Upstream: ${listed(up)}. Downstream: ${listed(down)}. ` : "It is not in the drawing. ";
  told.textContent = selected ? `${selected}. ${said}` : hint;
  const card = selected && cardOf(selected);
  if (card) told.append(Object.assign(document.createElement("a"), { className: "to-card", href: `#${card.id}`, textContent: "Go to its card" }));
}

function listed(set) {
  const names = nodes.map(node => node.dataset.node).filter(name => set.has(name));
  return names.length > 12 ? `${names.slice(0, 10).join(", ")} and ${names.length - 10} more` : names.join(", ") || "nothing";
}

// --------------------------------------------------------------------- cards
const cards = [...document.querySelectorAll("details.card")];
const cardOf = name => document.getElementById(`card-${name}`);
const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

function choose(name, go = beside()) {
  selected = name;
  light();
  const card = name && cardOf(name);
  cards.forEach(each => each.classList.toggle("current", each === card));
  if (!card) return;
  card.open = true;
  if (go) card.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

// Where the drawing stays in sight beside the cards, a card comes to it; elsewhere a link below leads there.
function beside() { return getComputedStyle(document.querySelector(".picture")).position === "sticky"; }

cards.forEach(card => { card.open = false; });
for (const [id, open] of [["open-all", true], ["close-all", false]]) {
  const button = document.getElementById(id);
  if (button) button.addEventListener("click", () => cards.forEach(card => { card.open = open; }));
}

svg.addEventListener("click", event => {
  const node = event.target.closest(".node");
  if (node) { event.preventDefault(); choose(node.dataset.node); }
  else if (!event.target.closest(".edge")) choose(null);
});
svg.addEventListener("keydown", event => {
  const el = part(event), by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!el) return;
  if (el.dataset.edge !== undefined && by) { event.preventDefault(); step(el, by); }
  if (el.dataset.node !== undefined && (event.key === " " || event.key === "Enter")) { event.preventDefault(); choose(el.dataset.node); }
});
document.addEventListener("keydown", event => { if (event.key === "Escape") { tip.hidden = true; choose(null); } });
document.addEventListener("click", event => {
  const link = event.target.closest("a.to-card");
  if (link) { event.preventDefault(); const name = link.getAttribute("href").slice(6); choose(name, true); cardOf(name).querySelector("summary").focus({ preventScroll: true }); }
});

// -------------------------------------------------------------------- slider
const slider = document.getElementById("weak"), left = document.getElementById("left");

function hide(count) {
  const least = scored.length ? scored[scored.length - 1 - Math.min(count, scored.length - 1)].size : 0;
  for (const edge of named) edge.shown = edge.size === null || edge.size >= least;
  const kept = new Set(named.filter(edge => edge.shown).flatMap(edge => [edge.from, edge.to]));
  for (const edge of edges) { // from a group's keys and values to its heads: while both are left
    if (edge.name === undefined) edge.shown = kept.has(edge.from) && kept.has(edge.to);
    edge.el.classList.toggle("hidden", !edge.shown);
  }
  nodes.forEach(node => node.classList.toggle("faded", !any(kept, node.dataset.node)));
  const stop = order.find(edge => edge.shown && edge.el.getAttribute("tabindex") === "0") || order.find(edge => edge.shown);
  order.forEach(edge => edge.el.setAttribute("tabindex", edge === stop ? 0 : -1));
  const shown = named.filter(edge => edge.shown).length;
  left.textContent = `${shown.toLocaleString("en")} of ${named.length.toLocaleString("en")} edges` + (count ? `, |score| from ${least.toPrecision(2)}` : "");
  if (slider) slider.setAttribute("aria-valuetext", left.textContent);
  light();
}
if (slider) slider.addEventListener("input", () => hide(+slider.value));

// ---------------------------------------------------------------------- zoom
let zoom = 1;
document.querySelectorAll("[data-zoom]").forEach(button => button.addEventListener("click", () => {
  zoom = { in: zoom * 1.3, out: Math.max(zoom / 1.3, 1), fit: 1 }[button.dataset.zoom];
  svg.style.setProperty("--zoom", zoom);
  svg.classList.toggle("zoomed", zoom > 1);
}));

// --------------------------------------------------------------------- print
let before = null;
function forPaper() { if (!before) { before = cards.map(card => card.open); cards.forEach(card => { card.open = true; }); } }
function forScreen() { if (before) { cards.forEach((card, i) => { card.open = before[i]; }); before = null; } }
window.addEventListener("beforeprint", forPaper);
window.addEventListener("afterprint", forScreen);
window.matchMedia("print").addEventListener("change", event => event.matches ? forPaper() : forScreen());

// A browser keeps a slider's place over a reload; the drawing must agree with it.
hide(slider ? +slider.value : 0);
if (location.hash.startsWith("#card-")) choose(decodeURIComponent(location.hash.slice(6)), true);
})();
