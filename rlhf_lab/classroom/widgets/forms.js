// The forms beside ranking. Each is a function that draws its part under the prompt and returns what the frame calls:
// refresh(state, answered), key(event, key, target), first() for the focus, and where there is something to type or mark
// save, keep, handIn, forget and restore.

const TYPING = 700; // ms without a key after which what is typed is kept in Python
const FRAME = 50; // ms of a frame of an animation
const WORDS = 1500; // words of a reply that can be marked at once; more on request

// ---- rate and compare: one of several buttons ----------------------------------------------------------------------

// Buttons of which one is chosen. The arrows go through them, Space, Enter or a click takes one.
function choices(parent, name, options, choose, doing) {
  const group = element(parent, "div", { class: "rlhf-choices", role: "radiogroup", "aria-label": name });
  const made = options.map(({ value, text, key, label, hint }) => {
    const node = button(group, text, (event) => (choose(value), doing.pointed(event, doing.root)), {
      key: key === text ? "" : key, keys: key, name: label, role: "radio", "data-place": `choice ${value}`,
    });
    if (hint) element(node, "span", { class: "rlhf-hint", "aria-hidden": "true", text: hint });
    return { value, key, node };
  });
  return {
    nodes: made.map(({ node }) => node),
    key(event, key, target) {
      const found = made.find((option) => option.key === key);
      if (found) {
        if (!event.repeat) choose(found.value);
        return true;
      }
      const at = made.findIndex(({ node }) => node === target);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: made.length - 1 }[key];
      if (at < 0 || to === undefined) return false;
      made[(to + made.length) % made.length].node.focus();
      return true;
    },
    refresh(value) {
      const chosen = made.findIndex((option) => option.value === value);
      made.forEach(({ node }, i) => {
        node.setAttribute("aria-checked", String(i === chosen));
        node.tabIndex = i === Math.max(chosen, 0) ? 0 : -1;
      });
    },
  };
}

function rateForm(parent, { replies }, { scale }, doing) {
  const made = card(parent, 0, replies[0]);
  const [low, high] = scale, options = [];
  for (let score = low; score <= high; score += 1)
    options.push({
      value: score, text: String(score), key: String(score), label: `Score ${score} of ${high}${score === low ? ", worst" : score === high ? ", best" : ""}`,
      hint: score === low ? "worst" : score === high ? "best" : "",
    });
  const scores = choices(parent, "Score", options, (score) => doing.ask("rate", [score]), doing);
  return {
    first: () => made.node,
    key: scores.key,
    refresh(state) {
      scores.refresh(state.answer);
      made.node.setAttribute("aria-label", `Reply ${replies[0].letter}, ${state.answer === null ? "no score yet" : `score ${state.answer}`}`);
    },
  };
}

function outcomes(parent, doing) {
  const options = [
    { value: 1, text: "Left is better", key: "1" }, { value: 0, text: "Tie", key: "=" }, { value: -1, text: "Right is better", key: "2" },
  ];
  return choices(parent, "Which is better?", options, (outcome) => doing.ask("compare", [outcome]), doing);
}

function showChosen(cards, replies, state) {
  cards.forEach(({ node }, i) => {
    const better = state.answer === (i === 0 ? 1 : -1), word = state.answer === null ? "not judged" : better ? "better" : state.answer === 0 ? "tie" : "worse";
    node.classList.toggle("rlhf-placed", better || state.answer === 0);
    node.setAttribute("aria-label", `Reply ${replies[i].letter}, ${i === 0 ? "left" : "right"}, ${word}`);
  });
}

function compareForm(parent, { replies }, first, doing) {
  const pair = element(parent, "div", { class: "rlhf-pair" });
  const cards = replies.map((reply, at) => card(pair, at, reply, String(at + 1)));
  const buttons = outcomes(parent, doing);
  return {
    first: () => cards[0].node,
    key: buttons.key,
    refresh(state) {
      buttons.refresh(state.answer);
      showChosen(cards, replies, state);
    },
  };
}

function segmentsForm(parent, { segments }, first, doing) {
  const pair = element(parent, "div", { class: "rlhf-pair" });
  const replies = segments.map((_, i) => ({ letter: "AB"[i] }));
  const cards = segments.map(({ alt }, at) => {
    const made = card(pair, at, replies[at], String(at + 1));
    made.picture = element(made.main, "img", { class: "rlhf-film", alt });
    return made;
  });
  const frames = segments.map((segment) => segment.frames.filter((frame) => frame.startsWith("data:image/png;base64,")));
  const length = Math.max(1, ...frames.map((list) => list.length));
  let at = 0, timer = null;
  function draw() {
    cards.forEach(({ picture }, i) => {
      const frame = frames[i][Math.min(at, frames[i].length - 1)];
      if (frame) picture.src = frame;
    });
    where.value = at;
  }
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => ((at = (at + 1) % length), draw()), FRAME) : null;
    relabel(toggle, on ? "Pause" : "Play");
  }
  const player = element(parent, "div", { class: "rlhf-player" });
  const toggle = button(player, "Play", (event) => (play(timer === null), doing.pointed(event, doing.root)), { key: "p", "data-place": "play" });
  const where = element(player, "input", { type: "range", min: 0, max: length - 1, step: 1, "aria-label": "Frame", "data-place": "frame" });
  where.addEventListener("input", () => {
    play(false);
    at = Number(where.value);
    draw();
  });
  const buttons = outcomes(parent, doing);
  show(player, length > 1);
  draw();
  play(length > 1 && !window.matchMedia("(prefers-reduced-motion: reduce)").matches);
  return {
    first: () => cards[0].node,
    key(event, key, target) {
      if (key === "p") return play(timer === null), true;
      return buttons.key(event, key, target);
    },
    refresh(state) {
      buttons.refresh(state.answer);
      showChosen(cards, replies, state);
    },
    stop: () => clearInterval(timer),
  };
}

// ---- edit and comment ------------------------------------------------------------------------------------------------

function textForm(parent, { replies }, start, doing) {
  const edits = start.form === "edit", origin = edits ? replies[0].text : "";
  const made = card(parent, 0, replies[0]);
  const label = edits ? "Your version of the reply" : "Your comment";
  const field = element(parent, "div", { class: "rlhf-field" });
  element(field, "div", { class: "rlhf-aside", text: label });
  const area = element(field, "textarea", { class: "rlhf-area", rows: edits ? 4 : 3, "aria-label": label, dir: "auto", "data-place": "text", spellcheck: "true" });
  const row = element(field, "div", { class: "rlhf-acts" });
  const button_ = button(row, "Save", (event) => (save(), doing.pointed(event, made.node)), { key: "Ctrl+Enter", keys: "Control+Enter", "data-place": "save" });
  const note = element(row, "span", { class: "rlhf-quiet" });
  let timer = null, sent = null; // what Python has, as a draft or handed in
  const op = start.form;

  function set(text) {
    area.value = sent = text;
    grow();
  }
  function grow() {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 4, 420)}px`;
  }
  function keep() {
    clearTimeout(timer);
    if (area.value === sent) return;
    sent = area.value;
    doing.ask("draft", [sent]);
  }
  function save() {
    clearTimeout(timer);
    sent = area.value;
    doing.ask(op, [sent]);
  }
  function tell() {
    const state = doing.state(), handed = state.status === "done" && !state.unsent && area.value === sent;
    note.textContent = handed ? "Saved as it stands here." : area.value === origin ? (edits ? "Unchanged: to save it says that it is good as it is." : "") : "Not handed in yet.";
  }
  area.addEventListener("input", () => {
    grow();
    tell();
    clearTimeout(timer);
    timer = setTimeout(keep, TYPING);
  });
  set(start.answer ?? origin);
  requestAnimationFrame(grow);
  return {
    first: () => made.node,
    save() {
      save();
      made.node.focus({ preventScroll: true });
    },
    keep,
    restore: (steps) => set(steps.at(-1).args[0] ?? origin),
    forget: () => clearTimeout(timer),
    handIn() {
      clearTimeout(timer);
      const state = doing.state(), changed = area.value !== sent || state.unsent;
      if (!changed || area.value === origin || !area.value.trim()) return false;
      save();
      return true;
    },
    refresh(state, answered) {
      if (answered && ["undo", "skip"].includes(answered.op)) set(state.answer ?? origin);
      tell();
    },
    stop: () => clearTimeout(timer),
  };
}

// ---- mark ------------------------------------------------------------------------------------------------------------

// Words and what stands between them, with their places in characters: Python counts code points, a script here
// counts UTF-16 units.
function wordsOf(text) {
  const parts = [];
  let at = 0;
  for (const [piece] of text.matchAll(/\s+|[^\s]+/g)) {
    const end = at + Array.from(piece).length;
    parts.push({ piece, start: at, end, word: !/^\s/.test(piece) });
    at = end;
  }
  return parts;
}

function markForm(parent, { replies }, start, doing) {
  const made = card(parent, 0, { letter: replies[0].letter });
  const text = element(made.main, "div", { class: "rlhf-text rlhf-words", dir: "auto", role: "group", "aria-label": "Words of the reply" });
  const row = element(made.main, "div", { class: "rlhf-acts" });
  const save_ = button(row, "Save", (event) => (save(), doing.pointed(event, made.node)), { key: "Ctrl+Enter", keys: "Control+Enter", "data-place": "save" });
  const note = element(row, "span", { class: "rlhf-quiet" });
  const parts = wordsOf(replies[0].text), words = parts.filter(({ word }) => word), marked = new Set();
  let drawn = 0, anchor = 0, sent = "[]", timer = null; // drawn: parts that are on the page

  function more() {
    for (const until = Math.min(parts.length, drawn + 2 * WORDS); drawn < until; drawn += 1) {
      const part = parts[drawn];
      if (part.word) {
        part.node = element(text, "span", { class: "rlhf-word", role: "button", tabindex: -1, text: visible(part.piece) });
      } else part.node = element(text, "span", { class: "rlhf-gap", text: visible(part.piece) });
    }
    if (drawn === parts.length) rest.remove();
    else relabel(rest, `Show more words (${words.filter(({ node }) => !node).length} left)`);
    draw();
  }
  const rest = button(made.main, "", () => more(), { class: "rlhf-more" });
  function draw() {
    let before = false;
    parts.slice(0, drawn).forEach((part, i) => {
      const on = part.word ? marked.has(part) : before && marked.has(parts[i + 1]);
      part.node.classList.toggle("rlhf-marked", on);
      if (part.word) part.node.setAttribute("aria-pressed", String(on));
      before = on;
    });
    const [number] = [marked.size];
    relabel(save_, number === 0 ? "Save: nothing is wrong" : number === 1 ? "Save 1 word" : `Save ${number} words`);
  }
  // Neighbours that are both marked are one span, with what stands between them.
  function spans() {
    const found = [];
    let last = null;
    for (const part of words) {
      if (!marked.has(part)) last = null;
      else if (last) last[1] = part.end;
      else found.push((last = [part.start, part.end]));
    }
    return found;
  }
  function set(answer) {
    marked.clear();
    for (const part of words) if ((answer || []).some(([from, to]) => from < part.end && part.start < to)) marked.add(part);
    sent = JSON.stringify(spans());
    draw();
  }
  function toggle(part, on = !marked.has(part)) {
    if (on) marked.add(part);
    else marked.delete(part);
    draw();
    tell();
    doing.say(`${visible(part.piece)}: ${on ? "marked" : "not marked"}`);
    clearTimeout(timer);
    timer = setTimeout(keep, TYPING);
  }
  function keep() {
    clearTimeout(timer);
    const now = JSON.stringify(spans());
    if (now === sent) return;
    sent = now;
    doing.ask("draft", [spans()]);
  }
  function save() {
    clearTimeout(timer);
    sent = JSON.stringify(spans());
    doing.ask("mark", [spans()]);
  }
  function tell() {
    const state = doing.state(), handed = state.status === "done" && !state.unsent && JSON.stringify(spans()) === sent;
    note.textContent = handed ? "Saved as it stands here." : marked.size ? "Not handed in yet." : "Click the wrong words, or go to them by Tab and arrows and press Space.";
  }
  function to(part, extend) {
    if (!part?.node) return;
    for (const { node } of words) if (node) node.tabIndex = -1;
    part.node.tabIndex = 0;
    part.node.focus();
    if (extend) toggle(part, true);
  }
  function at(node) {
    return words.findIndex((part) => part.node === node);
  }
  text.addEventListener("click", (event) => {
    const i = at(event.target);
    if (i < 0) return;
    if (event.shiftKey && anchor >= 0) {
      const [from, until] = [Math.min(anchor, i), Math.max(anchor, i)];
      for (const part of words.slice(from, until + 1)) toggle(part, true);
      window.getSelection()?.removeAllRanges();
    } else toggle(words[i]);
    anchor = i;
    to(words[i], false);
  });
  // The word above or below: the nearest one of the next line.
  function vertical(i, step) {
    const here = words[i].node.getBoundingClientRect();
    const lines = words.filter(({ node }) => node && (node.getBoundingClientRect().top - here.top) * step > here.height / 2);
    const edge = lines.length && lines.reduce((a, b) => ((b.node.getBoundingClientRect().top - a.node.getBoundingClientRect().top) * step < 0 ? b : a));
    const same = lines.filter(({ node }) => Math.abs(node.getBoundingClientRect().top - edge.node.getBoundingClientRect().top) < here.height / 2);
    return same.sort((a, b) => Math.abs(a.node.getBoundingClientRect().left - here.left) - Math.abs(b.node.getBoundingClientRect().left - here.left))[0];
  }
  more();
  set(start.answer);
  if (words[0]?.node) words[0].node.tabIndex = 0;
  return {
    first: () => made.node,
    key(event, key, target) {
      const i = at(target);
      if (i < 0) return false;
      if (key === " " || key === "Enter") {
        if (!event.repeat) toggle(words[i]);
        anchor = i;
        return true;
      }
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[key];
      if (!step) return false;
      if (event.shiftKey) toggle(words[i], true);
      to(key === "ArrowDown" || key === "ArrowUp" ? vertical(i, step) : words[i + step], event.shiftKey);
      anchor = at(document.activeElement);
      return true;
    },
    save,
    keep,
    restore: (steps) => set(steps.at(-1).args[0]),
    forget: () => clearTimeout(timer),
    handIn() {
      clearTimeout(timer);
      if (JSON.stringify(spans()) === sent && !doing.state().unsent) return false;
      save();
      return true;
    },
    refresh(state, answered) {
      if (answered && ["undo", "skip"].includes(answered.op)) set(state.answer);
      tell();
    },
    stop: () => clearTimeout(timer),
  };
}
