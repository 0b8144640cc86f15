// What all widgets of this folder share; bridge.py puts it before the script of each widget.
// All text goes in as textContent. There is no other way in: tests/classroom/test_html_sinks.py holds it.

const PATIENCE = 7000; // ms without an answer after which the reader is told; a store waits 5 s for another writer
const PROBE = 1500; // the same after the connection itself says that it broke
const LONG = 3000; // characters of a text that are shown at once; more on request
const MORE = 20000; // characters that each request adds
const DEEP = 40; // levels of markdown; what lies deeper is shown as text

// ---- elements ------------------------------------------------------------------------------------------------

const NATIVE = new Set(["button", "textarea", "input", "select"]);

// An element at the end of `parent`. `look`: attributes; beside them `class` and `text`. JupyterLab takes no key whose
// target carries data-lm-suppress-shortcuts, so whatever can have the focus carries it.
function element(parent, tag, look = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(look)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  if (NATIVE.has(tag) || "tabindex" in look) node.setAttribute("data-lm-suppress-shortcuts", "true");
  if (parent) parent.append(node);
  return node;
}

// A button that says its key. `look.key` is shown; `look.name` is what it is called where its text does not say enough.
function button(parent, text, act, { key = "", name = null, keys = null, ...look } = {}) {
  const node = element(parent, "button", { type: "button", "aria-label": name, "aria-keyshortcuts": keys || key || null, ...look });
  node.classList.add("rlhf-button");
  element(node, "span", { class: "rlhf-label", text });
  if (key) keycap(node, key);
  node.addEventListener("click", (event) => {
    if (node.getAttribute("aria-disabled") !== "true") act(event);
  });
  return node;
}

function keycap(parent, key) {
  return element(parent, "kbd", { class: "rlhf-key", "aria-hidden": "true", text: key });
}

function relabel(node, text, name = null) {
  const label = node.querySelector(".rlhf-label");
  if (label.textContent !== text) label.textContent = text;
  if (name !== null) node.setAttribute("aria-label", name);
}

// A button that is off keeps the focus and its place: it is said to be off, and does nothing.
function turn(node, on) {
  if (on) node.removeAttribute("aria-disabled");
  else node.setAttribute("aria-disabled", "true");
}

function show(node, visible) {
  node.hidden = !visible;
}

// ---- texts of models and people ------------------------------------------------------------------------------

// Characters that act instead of being seen, as their numbers: NUL is [U+0000]. Line breaks and tabs are left to act. So
// are marks of direction, which end with the text; only those that turn letters around are shown.
function visible(text) {
  const shown = (found) => (found === "\r" ? "" : `[U+${found.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202d\u202e]/g, shown);
}

// Where to cut a text so that no pair of surrogates is torn apart.
function cut(text, at) {
  const code = text.charCodeAt(at - 1);
  return at < text.length && code >= 0xd800 && code < 0xdc00 ? at - 1 : at;
}

// A text to read. Its direction is its own, and what overrides directions ends with it. A long one is shown in parts.
function reading(parent, text, nodes = null, look = {}) {
  const box = element(parent, "div", { dir: "auto", ...look });
  box.classList.add("rlhf-text");
  if (nodes && text.length <= MORE) {
    box.classList.add("rlhf-markdown");
    markdown(box, nodes);
    return box;
  }
  if (text.trim() === "") element(box, "em", { class: "rlhf-quiet", text: text === "" ? "(empty)" : "(only blanks)" });
  let shown = cut(text, LONG + 500 >= text.length ? text.length : LONG);
  const body = element(box, "span", { text: visible(text.slice(0, shown)) });
  if (shown === text.length) return box;
  box.classList.add("rlhf-long");
  for (const [name, value] of [["tabindex", 0], ["role", "region"], ["aria-label", "long text, scrolls"]]) box.setAttribute(name, value);
  box.setAttribute("data-lm-suppress-shortcuts", "true");
  const left = () => `Show more (${(text.length - shown).toLocaleString("en")} characters left)`;
  const more = button(parent, left(), () => {
    const to = cut(text, Math.min(shown + MORE, text.length));
    body.append(visible(text.slice(shown, to)));
    shown = to;
    relabel(more, left());
    if (shown === text.length) {
      if (document.activeElement === more) box.focus({ preventScroll: true });
      more.remove();
    }
  }, { class: "rlhf-more" });
  return box;
}

// Markdown was parsed in Python. Only these elements are made of it, without any attribute; a heading is bold text,
// since the outline of the page is not the reply's.
const ALLOWED = new Set("p em strong s code pre ul ol li blockquote br hr table thead tbody tr th td".split(" "));

function markdown(parent, nodes, depth = 0) {
  for (const node of nodes) {
    if (typeof node.text === "string") {
      parent.append(visible(node.text));
      continue;
    }
    const heading = /^h[1-6]$/.test(node.tag);
    const known = heading || ALLOWED.has(node.tag);
    const made = known ? element(parent, heading ? "p" : node.tag, { class: heading ? "rlhf-heading" : null }) : parent;
    markdown(depth < DEEP ? made : parent, node.children || [], depth + 1);
  }
}

// ---- keys, focus, announcements ------------------------------------------------------------------------------

// No key and no press of the mouse leaves the widget. `act(event)` is called for keys outside of fields in which one
// writes, and returns true for those that it takes.
function holdKeys(root, act) {
  for (const type of ["keydown", "keyup", "keypress", "mousedown", "copy", "cut", "paste"])
    root.addEventListener(type, (event) => event.stopPropagation());
  root.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    // Not the browser's own: a dialogue that saves the page, and an undo of what was typed somewhere else.
    const own = event.ctrlKey || event.metaKey ? (writes(event.target) ? "s" : "szy") : "";
    if (event.key.length === 1 && own.includes(event.key.toLowerCase())) event.preventDefault();
    if (act(event)) event.preventDefault();
  });
}

function writes(node) {
  return node.tagName === "TEXTAREA" || (node.tagName === "INPUT" && node.type === "text");
}

function plain(event) {
  return !event.ctrlKey && !event.metaKey && !event.altKey;
}

// Change what is on the screen, and leave the focus where it was: on the same element, on the one that has its
// data-place now, or on `otherwise()`. The browser would put it on the body, and every key would go to JupyterLab.
function keepFocus(root, change, otherwise) {
  const before = document.activeElement;
  const inside = root.contains(before), place = inside ? before.dataset.place : null;
  change();
  if (!inside || (root.contains(before) && before.offsetParent !== null && document.activeElement === before)) return;
  const same = place && [...root.querySelectorAll("[data-place]")].find((n) => n.dataset.place === place && n.offsetParent !== null);
  (same || (root.contains(before) && before.offsetParent !== null && before) || otherwise()).focus({ preventScroll: true });
}

// Said by a screen reader. Two equal sentences in a row are two announcements.
function announcer(parent) {
  const node = element(parent, "div", { class: "rlhf-unseen", "aria-live": "polite", role: "status" });
  return (text) => {
    node.textContent = node.textContent === text && text ? `${text}\u00a0` : text;
  };
}

// ---- requests ------------------------------------------------------------------------------------------------

let links = 0; // of this script, so that two views of one widget tell their answers apart

// Requests to Python, one at a time; those made meanwhile wait. `changed(state, content, answered)` is called with each
// new state; `lost(true)` when there is no answer, `lost(false)` when there is one again. What was not answered is kept.
function link(model, { changed, lost }) {
  const mine = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}-${(links += 1)}`;
  const queue = [];
  let asked = null, timer = null, count = 0, silent = false;

  function wait(ms) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      silent = true;
      lost(true, waiting());
    }, ms);
  }
  function next() {
    if (asked || !queue.length) return;
    asked = { id: `${mine}-${(count += 1)}`, ...queue.shift() };
    try {
      model.send({ id: asked.id, op: asked.op, args: asked.args });
      if (asked.op !== "look") wait(PATIENCE);
    } catch {
      wait(0); // the connection is closed
    }
  }
  function waiting() {
    return [asked, ...queue].filter((request) => request && request.op !== "look");
  }
  function came() {
    const state = model.get("state");
    const answered = asked !== null && state.ack === asked.id ? asked : null;
    if (answered) {
      clearTimeout(timer);
      asked = null;
      if (silent) lost(false, waiting());
      silent = false;
    }
    changed(state, model.get("content"), answered);
    next();
  }
  // Asked again from the start: the kernel was restarted, and what was under way will not be answered.
  function probe() {
    if (!asked) queue.unshift({ op: "look", args: [] });
    next();
    if (asked) wait(PROBE);
  }
  model.on("change:state", came);
  model.on("comm_live_update", probe);
  return {
    ask(op, args = []) {
      queue.push({ op, args });
      if (asked?.op === "look") wait(PATIENCE);
      next();
      if (silent) lost(true, waiting());
    },
    waiting,
    stop() {
      clearTimeout(timer);
      model.off("change:state", came);
      model.off("comm_live_update", probe);
    },
  };
}

// What the reader is told when no answer comes.
function lostMessage(stored, where, unsaved) {
  const number = stored === 1 ? "1 judgement is" : `${stored} judgements are`;
  const kept = where ? `${number} in ${where}` : `This session has no file: what was judged was in the kernel's memory`;
  const open = unsaved ? ` Your last ${unsaved === 1 ? "step is" : `${unsaved} steps are`} not saved.` : "";
  return `The kernel does not answer: it is busy, or it was restarted. If it was restarted, run this cell again; ${kept}.${open}`;
}

// What was not answered when the kernel went away, by the name of what it belongs to: the view that comes when the cell
// is run again takes it. On the window, since the script of each view is a module of its own.
function unsent() {
  return (window.rlhfLabUnsent ||= new Map());
}
