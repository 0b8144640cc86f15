// The moving picture of draggable.py: numbers in a sentence that are dragged, and two panels drawn as SVG.
// All text goes in as textContent, never as HTML. Nothing is computed here but places on the screen.

const WIDTH = 740, HEIGHT = 258; // of the drawing, in its own units; it scales to the width of the page
const LEFT = 56, RIGHT = 14, TOP = 30, BOTTOM = 50, GAP = 16;
const FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif";
const PATIENCE = 4000; // ms without an answer after which the reader is told, and the question repeated
const QUIET = 400; // ms without a change after which it is announced: a drag is one announcement

function svg(parent, tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

function html(parent, tag, className = "", text = null) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

// ---- the picture ---------------------------------------------------------------------------------------------

function drawPanel(root, panel, x0, width) {
  const group = svg(root, "g", { transform: `translate(${x0}, 0)` });
  const inner = { left: LEFT, right: width - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM };
  const scale = (axis, from, to) => (v) => from + ((v - axis.low) / (axis.high - axis.low)) * (to - from);
  const X = scale(panel.x, inner.left, inner.right), Y = scale(panel.y, inner.bottom, inner.top);

  svg(group, "text", { x: 4, y: 16, "font-weight": 600, "font-size": 13, fill: "#222" }, panel.title);
  panel.y.ticks.forEach((tick, i) => {
    svg(group, "line", { x1: inner.left, x2: inner.right, y1: Y(tick), y2: Y(tick), stroke: "#e6e6e6" });
    svg(group, "text", { x: inner.left - 6, y: Y(tick) + 4, "text-anchor": "end", fill: "#444" }, panel.y.names[i]);
  });
  const clip = `rlhf-clip-${Math.random().toString(36).slice(2)}`;
  const box = { x: inner.left, y: inner.top - 6, width: inner.right - inner.left, height: inner.bottom - inner.top + 6 };
  svg(svg(group, "clipPath", { id: clip }), "rect", box);
  const marks = svg(group, "g", { "clip-path": `url(#${clip})` });
  for (const mark of panel.marks) drawMark(mark.kind === "text" || mark.kind === "points" ? group : marks, mark, X, Y);

  svg(group, "line", { x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom, stroke: "#888" });
  svg(group, "line", { x1: inner.left, x2: inner.left, y1: inner.top - 4, y2: inner.bottom, stroke: "#888" });
  panel.x.ticks.forEach((tick, i) => {
    panel.x.names[i].split("\n").forEach((name, row) => {
      const at = { x: X(tick), y: inner.bottom + 15 + 12 * row, "text-anchor": "middle", fill: "#444" };
      svg(group, "text", at, name);
    });
  });
  const middle = (inner.left + inner.right) / 2, rows = Math.max(...panel.x.names.map((name) => name.split("\n").length));
  svg(group, "text", { x: middle, y: inner.bottom + 20 + 13 * rows, "text-anchor": "middle", fill: "#444" }, panel.x.label);
  const turn = `translate(13, ${(inner.top + inner.bottom) / 2}) rotate(-90)`;
  svg(group, "text", { transform: turn, "text-anchor": "middle", fill: "#444" }, panel.y.label);
}

function drawMark(group, mark, X, Y) {
  const { kind, colour } = mark;
  if (kind === "line") {
    const points = mark.x.map((x, i) => `${X(x).toFixed(2)},${Y(mark.y[i]).toFixed(2)}`).join(" ");
    const look = { points, fill: "none", stroke: colour, "stroke-width": mark.width, "stroke-linejoin": "round" };
    if (mark.dash.length) look["stroke-dasharray"] = mark.dash.map((d) => d * mark.width).join(" ");
    svg(group, "polyline", look);
  } else if (kind === "bars") {
    mark.x.forEach((x, i) => {
      const [left, right, y] = [X(x - mark.width / 2), X(x + mark.width / 2), Y(mark.y[i])];
      const low = Math.max(y, Y(0)), box = { x: left, y: Math.min(y, Y(0)), width: right - left };
      const look = { fill: mark.filled ? colour : "none", stroke: colour };
      svg(group, "rect", { ...box, height: low - box.y, ...look });
    });
  } else if (kind === "points") {
    mark.x.forEach((x, i) => {
      const look = { fill: mark.filled ? colour : "white", stroke: colour, "stroke-width": 1.6 };
      svg(group, "circle", { cx: X(x), cy: Y(mark.y[i]), r: mark.radius, ...look });
    });
  } else if (kind === "band") {
    const [left, right] = [X(mark.low), X(mark.high)];
    svg(group, "rect", { x: left, y: 0, width: right - left, height: HEIGHT, fill: colour, opacity: 0.13 });
  } else if (kind === "text") {
    const look = { "text-anchor": mark.anchor, fill: colour, "paint-order": "stroke", stroke: "white" };
    svg(group, "text", { x: X(mark.x), y: Y(mark.y) - mark.up, "stroke-width": 3, ...look }, mark.text);
  }
}

function draw(root, scene) {
  root.replaceChildren();
  const width = (WIDTH - GAP * (scene.panels.length - 1)) / scene.panels.length;
  scene.panels.forEach((panel, i) => drawPanel(root, panel, i * (width + GAP), width));
  root.setAttribute("aria-label", scene.says);
}

// ---- the sentence --------------------------------------------------------------------------------------------

// Single letters are variables, and set in italics.
function write(parent, text) {
  for (const part of text.split(/((?<![\p{L}’'])[\p{L}](?![\p{L}’']))/u)) {
    if (part.length === 1 && /\p{L}/u.test(part) && part !== "a") html(parent, "i", "", part);
    else if (part) parent.append(part);
  }
}

function render({ model, el }) {
  const root = html(el, "div", "rlhf-explore");
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", `explorable: ${model.get("topic")}`);
  const sentence = html(root, "div", "rlhf-sentence");
  const picture = svg(root, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "font-family": FONT, "font-size": 11.5 });
  const says = html(root, "div", "rlhf-says");
  const hint = html(root, "div", "rlhf-hint");
  const live = html(root, "div", "rlhf-live");
  live.setAttribute("aria-live", "polite");
  const HINT = "Drag a blue number to the left or right, or use the arrow keys, Page Up, Page Down, Home and End.";
  hint.textContent = HINT;

  const dials = model.get("dials");
  let wanted = { ...model.get("positions") }; // what the hand has set
  let asked = null; // what Python was asked for and has not answered
  let patience = null, quiet = null, requests = 0;

  const shown = []; // [dial, node]: every place of the sentence where a dial stands
  function refresh() {
    for (const [dial, node] of shown) {
      const at = wanted[dial.name];
      node.textContent = dial.texts[at];
      if (node.getAttribute("role") === "slider") {
        node.setAttribute("aria-valuenow", dial.values[at]);
        node.setAttribute("aria-valuetext", dial.texts[at]);
      }
    }
  }

  // One request at a time. What changes while Python computes is sent, as it stands then, after the answer.
  function same(a, b) {
    return dials.every(({ name }) => a[name] === b[name]);
  }
  function ask() {
    if (asked || same(wanted, model.get("scene").positions)) return;
    asked = { ...wanted, request: (requests += 1) }; // numbered, so that asking again is a change and is sent
    patience = setTimeout(() => {
      hint.textContent = "The kernel does not answer. Run the cell again to drag on; the figure below needs no kernel.";
      asked = null;
      ask();
    }, PATIENCE);
    model.set("positions", asked);
    model.save_changes();
  }
  function answered() {
    const scene = model.get("scene");
    const mine = asked && same(asked, scene.positions);
    if (mine) {
      asked = null;
      clearTimeout(patience);
      hint.textContent = HINT;
    } else if (!asked) {
      wanted = { ...scene.positions }; // another view, or Python itself, moved the dials
      refresh();
    }
    draw(picture, scene);
    says.textContent = scene.says;
    announce();
    ask();
  }
  function announce() {
    clearTimeout(quiet);
    quiet = setTimeout(() => (live.textContent = says.textContent), QUIET);
  }
  function move(dial, to) {
    const at = Math.min(Math.max(Math.round(to), 0), dial.values.length - 1);
    if (at === wanted[dial.name]) return;
    wanted = { ...wanted, [dial.name]: at };
    refresh();
    ask();
  }

  function drag(dial, node, slider) {
    const pixels = Math.min(Math.max(320 / dial.values.length, 3), 24); // of a step
    let from = null;
    node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      event.stopPropagation(); // else JupyterLab takes the focus for the cell
      slider.focus({ preventScroll: true });
      node.setPointerCapture(event.pointerId);
      node.classList.add("rlhf-held");
      from = { x: event.clientX, at: wanted[dial.name] };
    });
    node.addEventListener("pointermove", (event) => {
      if (from) move(dial, from.at + (event.clientX - from.x) / pixels);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      node.addEventListener(end, () => {
        from = null;
        node.classList.remove("rlhf-held");
      });
  }

  function slide(dial, node) {
    const last = dial.values.length - 1;
    const look = { role: "slider", tabindex: 0, "data-lm-suppress-shortcuts": "true", "aria-label": dial.label };
    const range = { "aria-valuemin": dial.values[0], "aria-valuemax": dial.values[last], "aria-orientation": "horizontal" };
    for (const [name, value] of Object.entries({ ...look, ...range })) node.setAttribute(name, value);
    const page = Math.max(2, Math.round(last / 10));
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: page, PageDown: -page };
    node.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const at = wanted[dial.name];
      const to = event.key === "Home" ? 0 : event.key === "End" ? last : at + (steps[event.key] ?? NaN);
      if (Number.isNaN(to)) return;
      event.preventDefault();
      move(dial, to);
    });
  }

  const sliders = {};
  for (const part of model.get("sentence").split(/(\{\w+\})/)) {
    const dial = dials.find(({ name }) => part === `{${name}}`);
    if (!dial) {
      write(sentence, part);
      continue;
    }
    const node = html(sentence, "span", "rlhf-dial");
    node.title = "drag to the left or right";
    if (!(dial.name in sliders)) slide(dial, (sliders[dial.name] = node)); // said once, however often it stands there
    else node.setAttribute("aria-hidden", "true");
    drag(dial, node, sliders[dial.name]);
    shown.push([dial, node]);
    // As wide as its longest text, so that the sentence stands still.
    node.style.minWidth = `${Math.max(...dial.texts.map((text) => text.length)) * 0.58}em`;
    node.style.textAlign = "center";
  }
  for (const type of ["keydown", "keyup", "mousedown"]) root.addEventListener(type, (event) => event.stopPropagation());

  refresh();
  draw(picture, model.get("scene"));
  says.textContent = model.get("scene").says;
  model.on("change:scene", answered);
  return () => {
    model.off("change:scene", answered);
    clearTimeout(patience);
    clearTimeout(quiet);
  };
}

export default { render };
