// The view of chat.py, after shared.js. What was said is drawn anew with each answer of Python; the field in which one
// writes and the buttons around it stay. Nothing is computed here but the places of words in a text.

const SAMPLES = new Set(["say", "again"]); // they take long, and say first that they have begun
const FORMS = { edit: "Edit", mark: "Mark words", comment: "Comment" };

function chatView({ model, el }) {
  const root = element(el, "div", { class: "rlhf-widget rlhf-chat", role: "group", "aria-label": "Chat with the models" });
  let state = {}, content = { turns: [], columns: [] };
  let busy = false; // from sending until the replies are there
  let sent = null; // the message that is under way
  let heard = false; // whether Python has begun with it
  const panels = new Map(); // id of a reply -> the panel that is open below it
  const drafts = new Map(); // id of a field -> what was written there and is not saved
  const pairs = new Map(); // turn -> the two replies that are compared, as indices

  // ---- what stays ----
  const bar = element(root, "div", { class: "rlhf-chat-bar" });
  const colours = element(element(bar, "label", { class: "rlhf-chat-field", text: "Colour tokens by " }), "select", { "data-place": "colour", "aria-label": "Colour tokens by" });
  const oracle = button(bar, "Oracle's verdict", () => ask("show_oracle", [!state.oracle]), { "aria-pressed": "false" });
  const reveal = button(bar, "Reveal the models", () => ask("reveal"), {});
  const fresh = button(bar, "New conversation", () => ask("restart"), {});
  const legend = element(root, "div", { class: "rlhf-chat-legend" });
  const log = element(root, "div", { class: "rlhf-chat-log", role: "region", "aria-label": "Conversation" });
  const offers = element(root, "div", { class: "rlhf-acts rlhf-chat-offers" });
  const line = element(root, "div", { class: "rlhf-chat-line" });
  const input = element(line, "textarea", { rows: 2, class: "rlhf-area", "aria-label": "Your message", placeholder: "Write to the models", "data-place": "input", "aria-keyshortcuts": "Enter" });
  const send = button(line, "Send", () => say(input.value), { key: "Enter", class: "rlhf-yes" });
  const hint = element(root, "div", { class: "rlhf-quiet" });
  const foot = element(root, "div", { class: "rlhf-chat-bar" });
  const undo = button(foot, "Undo", () => ask("undo"), {});
  const again = button(foot, "Try to save again", () => ask("save"), {});
  const saved = element(foot, "span", { class: "rlhf-quiet" });
  const alerts = element(root, "div", { class: "rlhf-chat-alerts" });
  const problem = element(alerts, "div", { class: "rlhf-note rlhf-alarm", role: "alert" });
  const lostBox = element(alerts, "div", { class: "rlhf-note rlhf-alarm", role: "alert" });
  const announce = announcer(root);
  const tell = (box, text) => {
    const now = visible(text);
    if (box.textContent !== now) box.textContent = now; // the same alert is not said again with each answer
    show(box, now !== "");
  };

  for (const [value, text] of [["none", "nothing"], ["log-prob", "log-prob"], ["kl", "KL to the reference"]])
    element(colours, "option", { value, text });
  colours.addEventListener("change", () => ask("colour_by", [colours.value]));
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || !plain(event)) return;
    event.preventDefault();
    say(input.value);
  });
  holdKeys(root, () => false);

  function ask(op, args = []) {
    requests.ask(op, args);
  }
  function say(text) {
    if (busy) return;
    sent = text;
    wait(true);
    ask("say", [text]);
  }
  function wait(on) {
    busy = on;
    const who = several() ? "The models are" : "The model is";
    hint.textContent = on ? `${who} writing …` : "Enter sends, Shift+Enter begins a new line.";
    input.readOnly = on; // and not disabled, which would lose the focus
    turn(send, !on);
    root.setAttribute("aria-busy", on ? "true" : "false");
    if (on) announce(hint.textContent);
  }

  // ---- what is drawn anew ----
  const title = (column) => content.columns[column];
  const several = () => content.columns.length > 1;
  const named = (t, [column, i]) => (content.turns[t].replies[column].length > 1 ? `${title(column)}, reply ${i + 1}` : title(column));

  function drawTurn(parent, said, t) {
    const box = element(parent, "section", { class: "rlhf-chat-turn", "aria-label": `Turn ${t + 1}` });
    if (said.forgotten) element(box, "div", { class: "rlhf-note rlhf-chat-forgotten", text: visible(said.forgotten) });
    const mine = element(box, "div", { class: "rlhf-chat-mine" });
    element(mine, "div", { class: "rlhf-chat-who", text: "You" });
    reading(mine, said.text);
    if (said.warning) element(mine, "div", { class: "rlhf-quiet", text: visible(said.warning) });
    const row = element(box, "div", { class: "rlhf-chat-columns" });
    said.replies.forEach((replies, column) => drawReply(row, replies, t, column));
    drawCompare(box, said, t);
  }

  function drawReply(parent, replies, t, column) {
    const i = state.leaves[t][column], reply = replies[i], place = [t, column, i], id = place.join(".");
    const who = named(t, [column, i]);
    const card = element(parent, "div", { class: "rlhf-chat-reply", role: "group", "aria-label": `Reply of ${who}, turn ${t + 1}` });
    const head = element(card, "div", { class: "rlhf-chat-head" });
    element(head, "span", { class: "rlhf-chat-who", text: visible(title(column)) });
    if (several()) drawGoesOn(head, t, column, i);
    drawText(card, reply);
    if (reply.note) element(card, "div", { class: "rlhf-quiet", text: reply.note });
    if (reply.verdict) element(card, "div", { class: "rlhf-chat-oracle", text: reply.verdict });
    const leaves = element(card, "div", { class: "rlhf-acts" });
    if (replies.length > 1) {
      const to = (j, text, name) => {
        const node = button(leaves, text, () => ask("leaf", [t, column, j]), { name: `${name} reply of ${title(column)}, turn ${t + 1}`, "data-place": `${t}.${column}.${name}` });
        turn(node, j >= 0 && j < replies.length);
      };
      to(i - 1, "‹", "Previous");
      element(leaves, "span", { text: `${i + 1} of ${replies.length}` });
      to(i + 1, "›", "Next");
    }
    button(leaves, "Another reply", () => {
      if (busy) return;
      wait(true);
      ask("again", [t, column]);
    }, { name: `Another reply of ${title(column)}, turn ${t + 1}`, "data-place": `${t}.${column}.another` });
    drawJudge(card, reply, place, id, who);
  }

  function drawGoesOn(parent, t, column, i) {
    const [c, a] = state.goes_on[t], on = c === column && a === i;
    if (t < content.turns.length - 1) {
      if (on) element(parent, "span", { class: "rlhf-tag", text: "✓ the conversation went on with this" });
      return;
    }
    const node = button(parent, on ? "✓ goes on with this" : "Go on with this", () => ask("go_on", [column]), {
      "aria-pressed": on ? "true" : "false", "data-place": `${t}.${column}.on`,
      name: `Go on with the reply of ${title(column)}`,
    });
  }

  function drawText(parent, reply) {
    if (!reply.tokens) {
      reading(parent, reply.text);
      return;
    }
    const box = element(parent, "div", { class: `rlhf-text rlhf-chat-tokens rlhf-chat-${content.legend.kind}`, dir: "auto" });
    for (const token of reply.tokens) {
      const node = element(box, "span", { class: `rlhf-level-${token.level}`, title: numbers(token), text: visible(token.text) });
      if (!token.text) element(node, "small", { text: visible(token.name) }); // the end, or a part of a character
    }
  }

  function numbers({ name, numbers: [logProb, probability, kl] }) {
    return `${visible(name)}: log-prob ${logProb} nats, probability ${probability}${kl ? `, KL ${kl} nats` : ""}`;
  }

  function drawJudge(card, reply, place, id, who) {
    const judged = state.judged[place[0]].replies[place[1]][place[2]];
    const rates = element(card, "div", { class: "rlhf-acts rlhf-chat-rates", role: "group", "aria-label": `Rate ${who}, turn ${place[0] + 1}` });
    element(rates, "span", { text: "Rate (5 is best)" });
    for (let score = 1; score <= 5; score += 1)
      button(rates, judged.score === score ? `✓ ${score}` : `${score}`, () => ask("rate", [...place, score]), {
        "aria-pressed": judged.score === score ? "true" : "false", "data-place": `${id}.rate.${score}`,
        name: `Rate ${who} ${score} of 5`, class: "rlhf-chat-score",
      });
    const acts = element(card, "div", { class: "rlhf-acts" });
    const done = { edit: judged.edited !== null, mark: judged.spans !== null, comment: judged.comment !== null };
    const kinds = { ...FORMS, ...(reply.tokens ? { numbers: "Numbers" } : {}) };
    for (const [kind, text] of Object.entries(kinds)) {
      const open = panels.get(id) === kind;
      button(acts, `${done[kind] ? "✓ " : ""}${text}`, () => {
        panels.set(id, open ? null : kind);
        draw();
        if (!open) log.querySelector(`[data-place="${id}.${kind}.first"]`)?.focus();
      }, { "aria-expanded": open ? "true" : "false", "data-place": `${id}.${kind}`, name: `${text}: ${who}, turn ${place[0] + 1}` });
    }
    const kind = panels.get(id);
    if (!kind || !kinds[kind]) return;
    const panel = element(card, "div", { class: "rlhf-chat-panel" });
    panel.addEventListener("keydown", (event) => {
      const save = event.key === "Enter" && (event.ctrlKey || event.metaKey) && panel.querySelector(`[data-place="${id}.${kind}.save"]`);
      if (event.key !== "Escape" && !save) return;
      event.preventDefault();
      if (save) save.click();
      else close(id, kind);
    });
    if (kind === "numbers") drawNumbers(panel, reply, id, who);
    else if (kind === "mark") drawMarks(panel, reply, place, id, judged);
    else drawWords(panel, reply, place, id, kind, judged);
  }

  function close(id, kind) {
    panels.set(id, null);
    draw();
    log.querySelector(`[data-place="${id}.${kind}"]`)?.focus();
  }

  function drawWords(panel, reply, place, id, kind, judged) {
    const key = `${id}.${kind}`, before = kind === "edit" ? (judged.edited ?? reply.text) : (judged.comment ?? "");
    const label = kind === "edit" ? "How the reply should have been" : "What is good or bad about it";
    const field = element(element(panel, "label", { class: "rlhf-chat-label", text: label }), "textarea", { rows: 3, class: "rlhf-area", "data-place": `${key}.first` });
    field.value = drafts.get(key) ?? before;
    field.addEventListener("input", () => drafts.set(key, field.value));
    const acts = element(panel, "div", { class: "rlhf-acts" });
    button(acts, kind === "edit" ? "Save the edit" : "Save the comment", () => {
      drafts.set(key, field.value);
      ask(kind, [...place, field.value]);
    }, { key: "Ctrl+Enter", keys: "Control+Enter", "data-place": `${key}.save` });
    button(acts, "Close", () => close(id, kind), { key: "Esc", keys: "Escape", "data-place": `${key}.close` });
  }

  // Places are counted in characters as Python counts them, while those of JavaScript's strings are UTF-16 units.
  function words(text) {
    const found = [];
    let at = 0;
    for (const part of text.split(/(\s+)/u)) {
      const length = Array.from(part).length;
      if (part.trim()) found.push([at, at + length, part]);
      at += length;
    }
    return found;
  }

  function drawMarks(panel, reply, place, id, judged) {
    const key = `${id}.mark`;
    if (!drafts.has(key)) {
      const before = judged.spans ?? [];
      drafts.set(key, new Set(words(reply.text).filter(([a, b]) => before.some(([c, d]) => a < d && c < b)).map(([a]) => a)));
    }
    const chosen = drafts.get(key);
    element(panel, "div", { class: "rlhf-chat-label", text: "Press the words that are wrong." });
    const box = element(panel, "div", { class: "rlhf-chat-words", dir: "auto" });
    words(reply.text).forEach(([start, , word], n) => {
      const on = () => (chosen.has(start) ? "true" : "false");
      const node = element(box, "button", { type: "button", class: "rlhf-button rlhf-chat-word", "aria-pressed": on(), text: visible(word), "data-place": n ? `${key}.${start}` : `${key}.first` });
      node.addEventListener("click", () => {
        if (!chosen.delete(start)) chosen.add(start);
        node.setAttribute("aria-pressed", on());
      });
    });
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
      if (!step || !plain(event)) return;
      event.preventDefault();
      event.target[step]?.focus();
    });
    const acts = element(panel, "div", { class: "rlhf-acts" });
    button(acts, "Save the marks", () => {
      const spans = words(reply.text).filter(([a]) => chosen.has(a)).map(([a, b]) => [a, b]);
      ask("mark", [...place, spans]);
    }, { key: "Ctrl+Enter", keys: "Control+Enter", "data-place": `${key}.save` });
    button(acts, "Close", () => close(id, "mark"), { key: "Esc", keys: "Escape", "data-place": `${key}.close` });
    element(acts, "span", { class: "rlhf-quiet", text: "Without any mark, saving says that nothing is wrong." });
  }

  function drawNumbers(panel, reply, id, who) {
    const box = element(panel, "div", { class: "rlhf-chat-scroll", tabindex: 0, role: "region", "aria-label": `Numbers of ${who}`, "data-place": `${id}.numbers.first` });
    element(box, "div", { class: "rlhf-quiet", text: reply.sums });
    const table = element(box, "table");
    const head = element(element(table, "thead"), "tr");
    const names = ["Token", "Log-prob (nats)", "Probability", "KL (nats)"].slice(0, 1 + (reply.tokens[0]?.numbers.length ?? 2));
    for (const text of names) element(head, "th", { scope: "col", text });
    const body = element(table, "tbody");
    for (const token of reply.tokens) {
      const row = element(body, "tr");
      element(row, "th", { scope: "row", text: visible(token.text) || visible(token.name) });
      for (const text of token.numbers) element(row, "td", { text });
    }
  }

  // ---- which of the replies of a turn is better ----
  function drawCompare(parent, said, t) {
    const places = said.replies.flatMap((replies, column) => replies.map((_, i) => [column, i]));
    if (places.length < 2) return;
    const box = element(parent, "div", { class: "rlhf-chat-compare", role: "group", "aria-label": `Compare the replies of turn ${t + 1}` });
    drawPair(element(box, "div", { class: "rlhf-acts" }), t, places);
    drawOrder(box, t, places);
  }

  function drawPair(row, t, places) {
    const shown = state.leaves[t].map((i, column) => places.findIndex(([c, a]) => c === column && a === i));
    const others = places.map((_, n) => n).filter((n) => n !== shown[0]);
    const pair = places.length === 2 ? [0, 1] : (pairs.get(t) ?? [shown[0], shown[1] ?? others[0]]);
    const judged = (outcome) => state.judged[t].choices.some(({ left, right, outcome: o }) => {
      const [a, b] = pair.map((n) => places[n].join());
      return (left.join() === a && right.join() === b && o === outcome) || (left.join() === b && right.join() === a && o === -outcome);
    });
    element(row, "span", { text: "Which is better?" });
    if (places.length > 2)
      [0, 1].forEach((side) => {
        const look = { "aria-label": `${side ? "Second" : "First"} reply to compare, turn ${t + 1}`, "data-place": `${t}.pair.${side}` };
        const choice = element(row, "select", look);
        places.forEach((place, n) => element(choice, "option", { value: n, text: visible(named(t, place)), selected: pair[side] === n }));
        choice.addEventListener("change", () => {
          const wanted = Number(choice.value), other = pair[1 - side];
          const rest = other === wanted ? pair[side] : other; // the same one twice: they change places
          pairs.set(t, side ? [rest, wanted] : [wanted, rest]);
          draw();
        });
      });
    for (const [outcome, text] of [[1, `${named(t, places[pair[0]])} is better`], [0, "Tie"], [-1, `${named(t, places[pair[1]])} is better`]]) {
      const on = judged(outcome);
      button(row, `${on ? "✓ " : ""}${visible(text)}`, () => ask("compare", [t, places[pair[0]], places[pair[1]], outcome]), {
        "aria-pressed": on ? "true" : "false", "data-place": `${t}.compare.${outcome}`,
      });
    }
  }

  function drawOrder(box, t, places) {
    const key = `${t}.order`, judged = state.judged[t], open = panels.get(key);
    const ranked = judged.all_bad || judged.ranks.flat().every((rank) => rank !== null);
    const row = element(box, "div", { class: "rlhf-acts" });
    button(row, `${ranked ? "✓ " : ""}Rank all ${places.length}`, () => {
      panels.set(key, !open);
      draw();
    }, { "aria-expanded": open ? "true" : "false", "data-place": key });
    button(row, `${judged.all_bad ? "✓ " : ""}All bad`, () => ask("all_bad", [t]), { "aria-pressed": judged.all_bad ? "true" : "false", "data-place": `${key}.bad`, name: `All bad, turn ${t + 1}` });
    if (!open) return;
    const panel = element(box, "div", { class: "rlhf-chat-panel" });
    element(panel, "div", { class: "rlhf-chat-label", text: "1 is the best; the same number is a tie." });
    const fields = places.map(([column, i], n) => {
      const field = element(element(panel, "label", { class: "rlhf-chat-field", text: `${visible(named(t, [column, i]))} ` }), "select", { "data-place": `${key}.${n}`, "aria-label": `Rank of ${named(t, [column, i])}, turn ${t + 1}` });
      element(field, "option", { value: "", text: "–" });
      places.forEach((_, rank) => element(field, "option", { value: rank + 1, text: `${rank + 1}` }));
      field.value = drafts.get(`${key}.${n}`) ?? `${judged.ranks[column][i] ?? ""}`;
      field.addEventListener("change", () => drafts.set(`${key}.${n}`, field.value));
      return field;
    });
    button(element(panel, "div", { class: "rlhf-acts" }), "Save the order", () => {
      const tiers = places.map((_, rank) => places.filter((_, n) => fields[n].value === `${rank + 1}`)).filter((tier) => tier.length);
      ask("rank", [t, tiers]);
    }, { "data-place": `${key}.save` });
  }

  // ---- all together ----
  function draw() {
    const at = document.activeElement, place = root.contains(at) && writes(at) ? [at.dataset.place, at.selectionStart, at.selectionEnd] : null;
    keepFocus(root, () => {
      log.replaceChildren();
      if (!content.turns.length && state.kept) element(log, "div", { class: "rlhf-note", text: visible(state.kept) });
      if (!content.turns.length) element(log, "p", { class: "rlhf-quiet", text: "Nothing was said yet." });
      content.turns.forEach((said, t) => drawTurn(log, said, t));
      drawAround();
    }, () => input);
    const now = document.activeElement;
    if (place && now !== at && writes(now) && now.dataset.place === place[0]) now.setSelectionRange(place[1], place[2]);
  }

  function drawAround() {
    colours.value = state.colour;
    [...colours.options].find((option) => option.value === "kl").disabled = !content.with_kl;
    oracle.setAttribute("aria-pressed", state.oracle ? "true" : "false");
    show(reveal, state.blind);
    turn(reveal, content.turns.length > 0);
    turn(fresh, content.turns.length > 0);
    show(legend, Boolean(content.legend));
    show(offers, state.offers.length > 0);
    legend.replaceChildren();
    if (content.legend) {
      element(legend, "div", { text: content.legend.title });
      const row = element(legend, "div", { class: `rlhf-acts rlhf-chat-${content.legend.kind}` });
      content.legend.rows.forEach((text, n) => element(row, "span", { class: `rlhf-level-${n}`, text }));
    }
    offers.replaceChildren();
    if (state.offers.length) element(offers, "span", { class: "rlhf-quiet", text: "Try one:" });
    state.offers.forEach((text, n) => button(offers, text, () => say(text), { "data-place": `offer.${n}` }));
    turn(undo, state.undoes !== "");
    relabel(undo, state.undoes ? `Undo: ${state.undoes}` : "Undo");
    show(again, state.unsaved > 0 && state.error !== "");
    const number = state.count === 1 ? "1 judgement" : `${state.count} judgements`;
    const open = state.unsaved ? `, ${state.unsaved} not saved yet` : "";
    const place = state.where ? `saved in ${state.where}` : "kept in the kernel's memory only";
    const before = state.earlier ? `; ${state.earlier} more from before` : "";
    saved.textContent = state.count || state.unsaved ? `${number}${open || `, ${place}${before}`}` : `Judgements are ${place}`;
    tell(problem, state.error || "");
  }

  function changed(newState, newContent, answered) {
    state = newState;
    content = newContent;
    if (answered && !state.error) settle(answered);
    if (answered && SAMPLES.has(answered.op)) heard = true;
    if (state.writing) return;
    if (busy && heard) {
      if (sent !== null && !state.error && input.value === sent) input.value = "";
      sent = null;
      heard = false;
      wait(false);
    }
    draw();
    announce(state.error ? "" : state.says);
    if (document.activeElement === input) input.scrollIntoView({ block: "nearest" });
  }

  // What was saved is no draft any more, and its panel closes; what Python refused stays as it was written.
  function settle({ op, args }) {
    if (op === "restart") for (const memory of [panels, drafts, pairs]) memory.clear();
    const [t] = args, id = args.slice(0, 3).join(".");
    if (op in FORMS) {
      drafts.delete(`${id}.${op}`);
      panels.set(id, null);
      const inside = root.contains(document.activeElement) && document.activeElement.dataset.place?.startsWith(`${id}.${op}`);
      if (inside) log.querySelector(`[data-place="${id}.${op}"]`)?.focus();
    }
    if (op === "rank" || op === "all_bad") for (const key of [...drafts.keys()]) if (key.startsWith(`${t}.order.`)) drafts.delete(key);
  }

  const requests = link(model, {
    changed,
    lost(on, waiting) {
      const judging = waiting.filter(({ op }) => !SAMPLES.has(op)).length;
      const talk = content.turns.length ? " The chat is empty then: copy from here what you want to keep of it." : "";
      tell(lostBox, on ? lostMessage(state.stored ?? 0, state.where ?? "", judging) + talk : "");
    },
  });
  tell(lostBox, "");
  wait(false);
  changed(model.get("state"), model.get("content"), null);
  // What is being written outlives the kernel: the chat that comes when the cell is run again takes it.
  input.value = unsent().get(state.owner) ?? "";
  unsent().delete(state.owner);
  return () => {
    if (input.value) unsent().set(state.owner, input.value);
    requests.stop();
  };
}

export default { render: chatView };
