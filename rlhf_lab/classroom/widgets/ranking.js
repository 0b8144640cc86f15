// Ranking: cards with buttons, and beside them the order so far, into which replies are dragged.

const EDGE = 40; // pixels from the edge of the page at which it scrolls under what is dragged

// ---- cards -----------------------------------------------------------------------------------------------------

// A reply as text to read, between its letter on the left and its buttons below. `key` is what judges it.
function card(parent, at, reply, key = "") {
  const node = element(parent, "div", { class: "rlhf-card", tabindex: 0, role: "group", "data-position": at, "data-place": `card ${at}` });
  const edge = element(node, "div", { class: "rlhf-edge" });
  element(edge, "span", { class: "rlhf-letter", "aria-hidden": "true", text: reply.letter });
  if (key) keycap(edge, key);
  const main = element(node, "div", { class: "rlhf-main" });
  if (reply.text !== undefined) reading(main, reply.text, reply.nodes);
  node.setAttribute("aria-label", `Reply ${reply.letter}`);
  return { node, edge, main, acts: element(main, "div", { class: "rlhf-acts" }) };
}

// ---- rank --------------------------------------------------------------------------------------------------------

function snippet(text, most) {
  return visible(text.slice(0, cut(text, most))) + (text.length > most ? " …" : "");
}

function tiersOf(ranks) {
  const tiers = [];
  ranks.forEach((rank, at) => rank !== null && (tiers[rank - 1] ||= []).push(at));
  return tiers;
}

function rankForm(parent, { replies }, first, doing) {
  const list = element(parent, "div", { class: "rlhf-cards" });
  const ladder = element(parent, "div", { class: "rlhf-ladder", role: "group", "aria-label": "Your order" });
  const ranks = () => doing.state().ranks;
  const cards = replies.map((reply, at) => {
    const made = card(list, at, reply, at < 9 ? String(at + 1) : "");
    element(made.edge, "span", { class: "rlhf-dots", "aria-hidden": "true", text: "⠿" });
    made.bad = element(made.acts, "span", { class: "rlhf-tag rlhf-bad", text: "✕ Bad" });
    const say = (event, run) => (run(), doing.pointed(event, made.node));
    const tied = () => ranks().some((rank, i) => rank !== null && i !== at);
    made.place = button(made.acts, "", (event) => say(event, () => press(at)), { "data-place": `place ${at}` });
    made.tie = button(made.acts, "", (event) => say(event, () => tied() && doing.ask("tie", [at])), { "data-place": `tie ${at}` });
    made.edge.title = "drag to your order";
    drag(made.edge, at);
    return made;
  });

  function press(at) {
    if (doing.armed()) doing.ask("tie", [at]);
    else doing.ask("toggle", [at]); // Python knows whether it has a rank, also when several keys are on their way
    doing.arm(false);
  }
  function shift(at, step) {
    const tiers = tiersOf(ranks()), rank = ranks()[at];
    if (rank === null) return doing.ask("place", [at]);
    const alone = tiers[rank - 1].length === 1, to = rank - 1 + (alone ? step : Math.max(step, 0));
    if (to < 0 || (alone && to >= tiers.length)) return doing.say(`Reply ${replies[at].letter} is already ${step < 0 ? "first" : "last"}.`);
    doing.ask("move", [at, to]);
  }

  // The order so far: a row for each rank, in it the replies that have it.
  function drawLadder() {
    const tiers = tiersOf(ranks());
    ladder.replaceChildren();
    element(ladder, "div", { class: "rlhf-aside", text: "Your order" });
    if (!tiers.length) element(ladder, "p", { class: "rlhf-quiet", text: "The best first: press the keys of the replies, click their buttons, or drag them here by their letters." });
    tiers.forEach((tier, i) => {
      const row = element(ladder, "div", { class: "rlhf-tier", "data-rank": i + 1 });
      const rank = element(row, "div", { class: "rlhf-rank" });
      element(rank, "div", { class: "rlhf-badge", text: i + 1 });
      if (tier.length > 1) element(rank, "div", { class: "rlhf-hint", text: "tie" });
      const chips = element(row, "div", { class: "rlhf-chips" });
      tier.forEach((at) => chip(chips, at));
    });
    const left = ranks().filter((rank) => rank === null).length;
    if (tiers.length && left) element(ladder, "p", { class: "rlhf-quiet", text: left === 1 ? "1 reply has no rank yet" : `${left} replies have no rank yet` });
  }
  function chip(parent, at) {
    const { letter, text } = replies[at], rank = ranks()[at];
    const node = element(parent, "div", { class: "rlhf-chip", "data-position": at });
    const grip = element(node, "span", { class: "rlhf-grip" });
    element(grip, "span", { class: "rlhf-letter", text: letter });
    element(grip, "span", { class: "rlhf-snippet", dir: "auto", text: snippet(text, 60) });
    const small = (sign, name, run) =>
      button(node, sign, (event) => (run(), doing.pointed(event, cards[at].node)), { name, class: "rlhf-small", "data-place": `${name[0]} ${at}` });
    small("↑", `Up: reply ${letter}, rank ${rank}`, () => shift(at, -1));
    small("↓", `Down: reply ${letter}, rank ${rank}`, () => shift(at, 1));
    small("✕", `Remove reply ${letter}, rank ${rank}`, () => doing.ask("remove", [at]));
    drag(grip, at);
  }

  // ---- dragging ----
  let held = null; // {at, ghost, mark, goal}
  function drag(node, at) {
    node.classList.add("rlhf-draggable");
    node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault(); // no selection of text; the focus is set by hand
      cards[at].node.focus({ preventScroll: true });
      held = { at, x: event.clientX, y: event.clientY, ghost: null, goal: null };
      // On the root, which stays: the ladder is drawn anew when an answer comes.
      doing.root.setPointerCapture(event.pointerId);
    });
  }
  function over({ clientX: x, clientY: y }) {
    const box = ladder.getBoundingClientRect(), slack = 24;
    if (x < box.left - slack || x > box.right + slack || y < box.top - slack || y > box.bottom + slack) return null;
    const rows = [...ladder.querySelectorAll(".rlhf-tier")].filter((row) => row.querySelectorAll(".rlhf-chip").length > 1 || !row.querySelector(`[data-position="${held.at}"]`));
    for (const [i, row] of rows.entries()) {
      const { top, bottom } = row.getBoundingClientRect(), part = (y - top) / (bottom - top);
      if (part < 0.28) return { rank: i, line: top - 3 };
      if (part <= 0.72) return { tie: i, row };
      if (part <= 1) return { rank: i + 1, line: bottom + 3 };
    }
    const last = rows.at(-1)?.getBoundingClientRect().bottom;
    return { rank: rows.length, line: (last ?? box.top + 30) + 3 };
  }
  function moving(event) {
    if (!held) return;
    if (!held.ghost) {
      if (Math.hypot(event.clientX - held.x, event.clientY - held.y) < 4) return;
      held.ghost = element(doing.root, "div", { class: "rlhf-ghost", "aria-hidden": "true" });
      element(held.ghost, "span", { class: "rlhf-letter", text: replies[held.at].letter });
      element(held.ghost, "span", { class: "rlhf-snippet", text: snippet(replies[held.at].text, 40) });
      held.mark = element(doing.root, "div", { class: "rlhf-drop", "aria-hidden": "true" });
      doing.root.classList.add("rlhf-dragging");
    }
    const frame = doing.root.getBoundingClientRect(), goal = (held.goal = over(event));
    held.ghost.style.transform = `translate(${event.clientX - frame.left + 8}px, ${event.clientY - frame.top - 14}px)`;
    for (const row of ladder.querySelectorAll(".rlhf-tier")) row.classList.toggle("rlhf-onto", goal?.row === row);
    show(held.mark, goal?.line !== undefined);
    if (goal?.line !== undefined) {
      const box = ladder.getBoundingClientRect();
      held.mark.style.transform = `translate(${box.left - frame.left + 8}px, ${goal.line - frame.top}px)`;
      held.mark.style.width = `${box.width - 16}px`;
    }
    scrollUnder(doing.root, event.clientY);
  }
  function dropped(event) {
    if (!held) return;
    const { at, ghost, mark, goal } = held, dragged = ghost !== null;
    held = null;
    ghost?.remove();
    mark?.remove();
    doing.root.classList.remove("rlhf-dragging");
    for (const row of ladder.querySelectorAll(".rlhf-onto")) row.classList.remove("rlhf-onto");
    if (!dragged || event.type !== "pointerup") return;
    doing.arm(false);
    if (goal === null) {
      if (ranks()[at] !== null) doing.ask("remove", [at]);
    } else if (goal.tie === undefined) doing.ask("move", [at, goal.rank]);
    else {
      const others = tiersOf(ranks()).map((tier) => tier.filter((other) => other !== at)).filter((tier) => tier.length);
      others[goal.tie].push(at);
      doing.ask("arrange", [others]);
    }
  }
  const listening = { pointermove: moving, pointerup: dropped, pointercancel: dropped };
  for (const [type, run] of Object.entries(listening)) doing.root.addEventListener(type, run);

  return {
    first: () => cards[0].node,
    shift,
    key(event, key) {
      if (key === "=") {
        doing.arm(!doing.armed());
        if (!doing.armed()) doing.say("No tie.");
        return true;
      }
      const at = Number(key) - 1;
      if (!(key >= "1" && key <= "9")) return false;
      if (at < cards.length) {
        if (!event.repeat) press(at);
      } else doing.say(`There is no reply ${key}.`);
      return true;
    },
    refresh(state) {
      const last = Math.max(0, ...state.ranks.filter((rank) => rank !== null));
      cards.forEach(({ node, bad: badTag, place, tie }, at) => {
        const rank = state.ranks[at], { letter } = replies[at], bad = state.status === "all_bad";
        node.classList.toggle("rlhf-placed", rank !== null);
        show(badTag, bad);
        node.setAttribute("aria-label", `Reply ${letter}, ${bad ? "all bad" : rank === null ? "no rank yet" : `rank ${rank}`}`);
        if (rank === null) relabel(place, `Rank ${last + 1}`, `Reply ${letter}, give rank ${last + 1}`);
        else relabel(place, `✓ Rank ${rank}`, `Reply ${letter}, rank ${rank}`);
        place.setAttribute("aria-pressed", String(rank !== null));
        const tied = rank === null && last > 0;
        tie.classList.toggle("rlhf-away", !tied);
        turn(tie, tied);
        tie.tabIndex = tied || document.activeElement === tie ? 0 : -1;
        relabel(tie, `Also rank ${Math.max(last, 1)}`, `Reply ${letter}, also rank ${Math.max(last, 1)}`);
      });
      keepFocus(doing.root, drawLadder, () => cards[0].node);
    },
    stop() {
      for (const [type, run] of Object.entries(listening)) doing.root.removeEventListener(type, run);
      held?.ghost?.remove();
      held?.mark?.remove();
      held = null;
    },
  };
}

// Scroll what holds the widget when something is dragged to the edge of the page.
function scrollUnder(node, y) {
  const step = y < EDGE ? -12 : y > window.innerHeight - EDGE ? 12 : 0;
  for (let at = node.parentElement; step && at; at = at.parentElement) {
    const before = at.scrollTop;
    if (at.scrollHeight > at.clientHeight + 1) at.scrollTop += step;
    if (at.scrollTop !== before) return;
  }
}
