// The view of a feedback session. What is on the screen follows the state that Python sends; nothing is judged here.
// Replies are named by their position on the screen, from 0.

const KEYS = {
  rank: [["1 to 9", "the reply with this key is next best; again, and it has no rank"], ["=", "then a digit: as good as the one before"],
    ["Alt+↑ Alt+↓", "move the reply that has the focus up or down"], ["b", "all bad: none is acceptable"]],
  rate: [["1 to 9", "give this score"], ["← →", "go through the scores; Space takes one"]],
  edit: [["Ctrl+Enter", "save the text"], ["Esc", "leave the text, so that keys are commands again"]],
  comment: [["Ctrl+Enter", "save the text"], ["Esc", "leave the text, so that keys are commands again"]],
  mark: [["← → ↑ ↓", "go through the words"], ["Space", "mark the word, or take the mark away"], ["Shift+← →", "mark on from here"],
    ["Ctrl+Enter", "save the marks; without any: nothing is wrong"]],
  compare: [["1", "the left one is better"], ["2", "the right one is better"], ["=", "a tie"]],
};
KEYS.segments = [...KEYS.compare, ["p", "play, or pause"]];
const COMMON = [["Enter", "next question"], ["u", "undo"], ["s", "skip"], ["?", "show or hide the keys"], ["Tab", "to the next button"]];
const AGAIN = new Set(["draft", "edit", "comment", "mark", "rate", "compare"]); // twice is the same as once
const STATUS = { open: ["○", "Not judged"], done: ["✓", "Judged"], skipped: ["»", "Skipped"], all_bad: ["✕", "All bad"] };

const HURRY = 600; // ms after it went on by itself in which Enter was meant for the question before

function render({ model, el }) {
  const root = element(el, "div", { class: "rlhf-widget", role: "group", tabindex: -1, "aria-label": "Feedback" });
  let state = model.get("state"), content = null, form = null, shownHelp = false, asksUndo = false, armed = false;
  let wentOn = -Infinity; // when the session went on by itself

  // ---- the frame: it stands still from question to question ----
  const head = element(root, "div", { class: "rlhf-head" });
  const ask = element(head, "div", { class: "rlhf-ask", role: "heading", "aria-level": 3 });
  const progress = element(head, "div", { class: "rlhf-progress" });
  const track = element(root, "div", { class: "rlhf-track", "aria-hidden": "true" });
  const filled = element(track, "div", { class: "rlhf-filled" });
  const bar = element(root, "div", { class: "rlhf-bar", role: "group", "aria-label": "What to do" });
  const left = element(bar, "div", { class: "rlhf-side" }), right = element(bar, "div", { class: "rlhf-side" });
  const act = (parent, text, op, key, keys) =>
    button(parent, text, (event) => (op(), pointed(event, root)), { key, keys, "data-place": text });
  const undo = act(left, "Undo", () => takeBack(), "u");
  const skip = act(left, "Skip", () => doing.skip(), "s");
  const allBad = act(left, "All bad", () => doing.allBad(), "b");
  const previous = act(right, "Previous", () => doing.previous(), "");
  const next = act(right, "Next", () => doing.next(), "Enter");
  const help = button(right, "?", () => toggleHelp(), { name: "Keys", keys: "?", "aria-expanded": "false", class: "rlhf-square" });
  const line = element(root, "div", { class: "rlhf-line" });
  const tag = element(line, "span", { class: "rlhf-tag" });
  const says = element(line, "span", { class: "rlhf-says" });
  const say = announcer(root);
  const notes = element(root, "div", { class: "rlhf-notes" });
  const body = element(root, "div", { class: "rlhf-body" });
  const after = element(root, "div", { class: "rlhf-after" });

  // ---- requests ----
  const ties = link(model, { changed: redraw, lost: showLost });
  const busy = () => ties.waiting().length > 0;
  const doing = {
    ask: ties.ask,
    state: () => state,
    root,
    say(text) {
      says.textContent = text;
      say(text);
    },
    pointed,
    skip() {
      form?.forget?.();
      ties.ask("skip");
    },
    allBad() {
      if (state.form === "rank") ties.ask("all_bad");
      else doing.say("“All bad” is for rankings.");
    },
    previous() {
      form?.keep?.();
      if (state.index > 0) ties.ask("previous");
      else doing.say("This is the first question.");
    },
    next() {
      const handedIn = form?.handIn?.() || false;
      if (handedIn && state.auto_advance && state.status === "open") return; // Python goes on by itself
      const judging = ties.waiting().some(({ op }) => op !== "draft"); // it may be about to
      if (state.auto_advance && (judging || performance.now() - wentOn < HURRY)) return doing.say("It goes on by itself when all is judged.");
      if (state.index + 1 < state.total) ties.ask("next");
      else if (!handedIn) doing.say("This is the last question.");
    },
    armed: () => armed,
    arm(on) {
      armed = on;
      root.classList.toggle("rlhf-armed", on);
      if (on) doing.say("Tie: the next reply gets the same rank as the one before.");
    },
  };

  function takeBack() {
    form?.keep?.();
    if (!state.can_undo && !busy()) doing.say("There is nothing to take back.");
    else if (state.undo_asks) {
      asksUndo = true;
      drawNotes();
      notes.querySelector(".rlhf-yes").focus({ preventScroll: true });
    } else ties.ask("undo");
  }
  function answerUndo(yes) {
    asksUndo = false;
    keepFocus(root, drawNotes, () => undo);
    undo.focus({ preventScroll: true });
    if (yes) ties.ask("undo", [true]);
  }
  // After a click with a pointer the keys are for the card or the whole, so that Enter means "next" and not the button.
  function pointed(event, target) {
    if (event.detail > 0) target.focus({ preventScroll: true });
  }
  function toggleHelp(on = !shownHelp) {
    shownHelp = on;
    help.setAttribute("aria-expanded", String(on));
    keepFocus(root, drawNotes, () => help);
  }

  // ---- keys ----
  // What is typed while the next question is on its way is meant for that one.
  const early = [];
  holdKeys(root, (event) => {
    const going = ties.waiting().some(({ op }) => op === "next" || op === "previous");
    if (!going || writes(event.target) || !plain(event) || event.key === "Tab") return onKey(event, event.target);
    if (!event.repeat) early.push(event);
    return true;
  });
  function onKey(event, target) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const save = key === "Enter" && (event.ctrlKey || event.metaKey);
    if (key === "Escape") {
      if (asksUndo) answerUndo(false);
      else if (shownHelp) toggleHelp(false);
      else if (writes(target)) (form.first?.() || root).focus();
      else if (armed) doing.arm(false), doing.say("No tie.");
      return true;
    }
    if (save) return !event.repeat && (form?.save?.(), true);
    if (writes(target)) return false;
    if (event.altKey && (key === "ArrowUp" || key === "ArrowDown")) {
      const at = target.closest("[data-position]");
      if (at && form.shift) form.shift(Number(at.dataset.position), key === "ArrowUp" ? -1 : 1);
      return true;
    }
    if (!plain(event)) return false;
    const simple = { u: takeBack, s: doing.skip, b: doing.allBad, "?": () => toggleHelp() };
    if (key === "Enter" && !target.closest("button, [role=button]")) simple.Enter = doing.next;
    if (key in simple) {
      if (!event.repeat) simple[key]();
      return true;
    }
    return form?.key?.(event, key, target) || false;
  }

  // ---- drawing ----
  function redraw(fresh, text, answered) {
    const spoken = state.says !== fresh.says || (answered && answered.op !== "look" && answered.op !== "draft");
    state = fresh;
    if (asksUndo && !state.undo_asks) asksUndo = false;
    keepFocus(root, () => {
      if (text !== content) {
        if (answered && !["next", "previous", "undo"].includes(answered.op)) wentOn = performance.now();
        rebuild(text);
      }
      drawFrame();
      form.refresh(state, answered);
    }, () => form.first?.() || root);
    if (answered?.op === "next" || answered?.op === "previous") {
      for (const event of early.splice(0)) onKey(event, root.contains(document.activeElement) ? document.activeElement : root);
    }
    if (spoken) doing.say(state.says);
    if (spoken && state.error) say(state.error);
  }
  function rebuild(text) {
    const moved = content !== null;
    content = text;
    form?.stop?.();
    armed = false;
    body.replaceChildren();
    drawPrompt(body, content.prompt, `Question ${state.index + 1}`);
    form = FORMS[state.form](element(body, "div", { class: `rlhf-form rlhf-form-${state.form}` }), content, state, doing);
    if (moved && root.getBoundingClientRect().top < 0) root.scrollIntoView({ block: "start" });
  }
  function drawFrame() {
    root.dataset.status = state.status;
    ask.textContent = state.ask;
    progress.textContent = howFar(state);
    filled.style.width = `${Math.min(100, (100 * state.judged) / Math.max(state.goal, 1))}%`;
    turn(undo, state.can_undo);
    turn(previous, state.index > 0);
    turn(next, state.index + 1 < state.total);
    turn(allBad, state.form === "rank");
    const [sign, word] = STATUS[state.status];
    tag.replaceChildren();
    element(tag, "span", { "aria-hidden": "true", text: `${sign} ` });
    tag.append(word);
    drawNotes();
    after.replaceChildren();
    if (state.finished) element(after, "p", { class: "rlhf-finished", text: `Done: ${state.judged} of ${state.goal} judged. You may stop here or go on.` });
    if (state.afterwards.length) {
      element(after, "div", { class: "rlhf-aside", text: "Afterwards" });
      for (const sentence of state.afterwards) reading(after, sentence);
    }
  }
  function drawNotes() {
    notes.replaceChildren();
    if (lostText) element(notes, "div", { class: "rlhf-note rlhf-alarm", role: "alert", text: lostText });
    if (state.error) {
      const box = element(notes, "div", { class: "rlhf-note rlhf-alarm", role: "alert" });
      element(box, "div", { text: visible(state.error) });
      if (state.unsaved) button(box, "Try to save again", () => ties.ask("save"), { "data-place": "save again" });
    }
    if (asksUndo) {
      const box = element(notes, "div", { class: "rlhf-note", role: "group", "aria-label": "Undo?" });
      element(box, "div", { text: visible(state.undo_asks) });
      button(box, "Take it back", () => answerUndo(true), { class: "rlhf-yes", "data-place": "yes" });
      button(box, "Keep it", () => answerUndo(false), { key: "Esc", keys: "Escape", "data-place": "no" });
    }
    if (state.notice) element(notes, "div", { class: "rlhf-note", text: visible(state.notice) });
    if (shownHelp) drawKeys(notes, state.form);
  }
  let lostText = "";
  function showLost(gone, waiting) {
    keepUnsent(waiting);
    lostText = gone ? lostMessage(state.stored, state.where, waiting.length) : "";
    root.classList.toggle("rlhf-lost", gone);
    keepFocus(root, drawNotes, () => root);
  }

  // Steps without an answer survive the kernel: the next view of the same question takes them, unless it shows that they
  // were carried out after all.
  const owner = () => JSON.stringify(["feedback", state.study, state.rater]);
  const where = () => JSON.stringify([content.question, state.status, state.ranks, state.answer]);
  function keepUnsent(waiting) {
    if (waiting.length) unsent().set(owner(), { question: JSON.stringify(content.question), where: where(), waiting });
    else unsent().delete(owner());
  }
  function takeUnsent() {
    const kept = unsent().get(owner());
    if (!kept || kept.question !== JSON.stringify(content.question)) return;
    unsent().delete(owner());
    const steps = kept.waiting.filter(({ op }) => kept.where === where() || AGAIN.has(op));
    for (const { op, args } of steps) ties.ask(op, args);
    if (steps.length) form.restore?.(steps);
  }

  rebuild(model.get("content"));
  drawFrame();
  form.refresh(state, null);
  says.textContent = state.says;
  takeUnsent();
  const watch = new IntersectionObserver((seen) => {
    if (!seen.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    ties.ask("look"); // from now on the question is before the reader's eyes
  });
  watch.observe(head);
  return () => {
    watch.disconnect();
    form.keep?.();
    if (busy()) keepUnsent(ties.waiting());
    form.stop?.();
    ties.stop();
  };
}

function howFar(state) {
  const seconds = state.seconds_left;
  const minutes = seconds === null ? "" : seconds < 45 ? "less than a minute left" : `about ${Math.max(1, Math.round(seconds / 60))} min left`;
  const parts = [`${state.judged} of ${state.goal} judged`, state.skipped ? `${state.skipped} skipped` : "", state.judged < state.goal ? minutes : ""];
  return parts.filter(Boolean).join(" · ");
}

function drawKeys(parent, form) {
  const box = element(parent, "div", { class: "rlhf-note rlhf-keys", role: "region", "aria-label": "Keys" });
  const list = element(box, "dl");
  for (const [keys, what] of [...KEYS[form], ...COMMON]) {
    const row = element(list, "div"), names = element(row, "dt");
    for (const key of keys.split(" ")) key === "to" ? names.append(" to ") : element(names, "kbd", { class: "rlhf-key", text: key });
    element(row, "dd", { text: what });
  }
}

function drawPrompt(parent, prompt, title) {
  const box = element(parent, "div", { class: "rlhf-prompt" });
  element(box, "div", { class: "rlhf-aside", text: title });
  for (const turn of prompt) {
    const row = element(box, "div", { class: "rlhf-turn" });
    if (prompt.length > 1) element(row, "div", { class: "rlhf-role", text: turn.role });
    reading(row, turn.text, turn.nodes);
  }
}

const FORMS = {
  rank: rankForm, rate: rateForm, edit: textForm, comment: textForm, mark: markForm, compare: compareForm, segments: segmentsForm,
};

export default { render };
