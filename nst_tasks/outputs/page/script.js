// What a reader does with the report's page: filter, sort, look closely. All of its text is there without this script.
"use strict";
const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const outcomes = all(".outcome"), cards = all("li.outcome"), list = $(".pairs"), dialog = $("dialog");

// What waits as text in a <noscript>: a thousand thumbnails are not decoded at once, nor a thousand <details> laid out.
function unfolded(waiting) {
  const holder = document.createElement("template");
  holder.innerHTML = waiting.textContent;
  return holder.content;
}

function show(card) {
  const waiting = $(".strip noscript", card);
  waiting?.replaceWith(unfolded(waiting));
}
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    show(entry.target);
    nearby.unobserve(entry.target);
  }
}, { rootMargin: "100%" });
cards.forEach((card) => nearby.observe(card));
addEventListener("beforeprint", () => cards.filter((card) => !card.hidden).forEach(show));

// Filter and sort; what is chosen is in the address, so that a view can be passed on.
const controls = all(".controls [name]:not(button)");
const chosen = (control) => (control.type === "checkbox" ? (control.checked ? "1" : "") : control.value);
let open = null; // the card in the dialog

function matches({ dataset }, wanted) {
  const names = [dataset.id, dataset.content, dataset.styles].join("\n").toLowerCase();
  return names.includes(wanted.search.trim().toLowerCase())
    && ["status", "recipe"].every((name) => !wanted[name] || dataset[name] === wanted[name])
    && (!wanted.style || dataset.styles.split("\n").includes(wanted.style))
    && (!wanted.flag || (wanted.flag === "none" ? !dataset.flags : dataset.flags.split("\n").includes(wanted.flag)));
}

function apply() {
  const wanted = Object.fromEntries(controls.map((control) => [control.name, chosen(control)]));
  for (const outcome of outcomes) outcome.hidden = !matches(outcome, wanted);
  const key = wanted.sort || "row", direction = (["loss", "seconds"].includes(key) ? -1 : 1) * (wanted.reverse ? -1 : 1);
  const value = ({ dataset }) => (dataset[key] === "" ? Infinity : direction * dataset[key]); // what was not measured comes last
  const sorted = cards.toSorted((a, b) => value(a) - value(b) || a.dataset.row - b.dataset.row);
  if (sorted.some((card, k) => card !== list.children[k])) list.append(...sorted);
  for (const section of all("main section").filter((section) => $(".outcome", section))) {
    section.hidden = !$(".outcome:not([hidden])", section);
  }
  $(".number").textContent = `${outcomes.filter((outcome) => !outcome.hidden).length} of ${outcomes.length} rows shown`;
}

function remember() {
  const view = new URLSearchParams(controls.map((control) => [control.name, chosen(control)]).filter(([, value]) => value));
  if (open) view.set("pair", open.dataset.id);
  history.replaceState(null, "", `#${view}`);
}

function recall() {
  const view = new URLSearchParams(location.hash.slice(1));
  for (const control of controls) {
    const value = view.get(control.name) ?? "";
    if (control.type === "checkbox") control.checked = value !== "";
    else control.value = value;
    if (control.selectedIndex === -1) control.value = ""; // a choice that this page does not have
  }
  apply();
  const card = cards.find((card) => card.dataset.id === view.get("pair"));
  if (card) look(card);
  else dialog?.close();
}

// One pair, closely.
const losses = dialog && new Map(Object.entries(JSON.parse($("#curves").textContent)));
const shown = () => [...list.children].filter((card) => !card.hidden);
const stage = dialog && $(".stage", dialog), slider = dialog && $("input", dialog), result = dialog && $(".result", dialog);

function look(card) {
  open = card;
  show(card);
  $("h2", dialog).textContent = card.dataset.id;
  const strip = $("a.strip", card), full = $("a.name", card).href;
  stage.style.setProperty("--aspect", Math.min(3, card.dataset.aspect));
  stage.classList.remove("moved");
  result.src = full;
  $("figcaption a", dialog).href = full;
  for (const part of all(".before, .line, .slide, .whole", dialog)) part.hidden = !strip;
  if (strip) {
    const use = (src) => { for (const image of all(".before img, .whole img", dialog)) image.src = src; };
    use($("img", strip).src); // small, but here; the file has more pixels
    const file = new Image();
    file.onload = () => { if (open === card) use(file.src); };
    file.src = strip.dataset.strip;
  }
  slide(50);
  $("dl", dialog).replaceChildren(...$("dl", unfolded($(".made", card))).children);
  table(losses.get(card.dataset.id) ?? []);
  if (!dialog.open) {
    dialog.showModal();
    slider.focus(); // by hand: an autofocus of a closed dialog is tried as the page loads, and told of where a reader was faster
  }
  dialog.scrollTop = 0;
  draw();
  const around = shown(), at = around.indexOf(card);
  $("[name=previous]").disabled = !around[at - 1];
  $("[name=next]").disabled = !around[at + 1];
  remember();
}

function slide(percent) {
  slider.value = percent;
  stage.style.setProperty("--at", `${slider.value}%`);
}

function step(by) {
  const around = shown(), card = around[around.indexOf(open) + by];
  if (card) look(card);
}

const TERMS = ["total", "content", "style", "tv"];
const values = (level, term) => level.step.map((_, k) => {
  const parts = [level.content[k], level.style[k], level.tv[k]];
  return term !== "total" ? level[term][k] : parts.includes(null) ? null : parts[0] + parts[1] + parts[2];
});
const brief = (number) => (number === null ? "-" : Number(number.toPrecision(3)).toString());

function table(levels) {
  $(".curves", dialog).hidden = !levels.length;
  $("tbody", dialog).replaceChildren(...levels.map((level, k) => {
    const ends = TERMS.map((term) => values(level, term)).map((of) => `${brief(of[0])} to ${brief(of.at(-1))}`);
    const row = document.createElement("tr");
    row.append(...[k, `${level.width} x ${level.height}`, level.step.at(-1), ...ends].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

// The curves, drawn at the size they have on the screen: a level after the other, each step at its place, losses in powers of ten.
function draw() {
  const levels = losses.get(open?.dataset.id) ?? [], svg = $("svg", dialog);
  svg.replaceChildren();
  const positive = levels.flatMap((level) => TERMS.flatMap((term) => values(level, term))).filter((loss) => loss > 0);
  const { clientWidth: width, clientHeight: height } = svg;
  if (!positive.length || !width) return;
  const left = 48, right = 8, top = 20, bottom = 34;
  const lowest = Math.log10(Math.max(Math.min(...positive), Math.max(...positive) / 1e6)), highest = Math.log10(Math.max(...positive));
  const low = Math.floor(lowest * 2) / 2, high = Math.max(Math.ceil(highest * 2) / 2, low + 0.5);
  const steps = levels.reduce((sum, level) => sum + level.step.at(-1), 0) || 1;
  const x = (step) => left + (width - left - right) * step / steps;
  const y = (loss) => top + (height - top - bottom) * (high - Math.log10(loss)) / (high - low);
  const add = (name, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    svg.append(element);
  };
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (let power = Math.floor(low); power <= high; power++) {
    for (const loss of (high - low > 2 ? [1] : [1, 2, 5]).map((digit) => digit * 10 ** power)) {
      if (Math.log10(loss) < low || Math.log10(loss) > high) continue;
      add("path", { class: "grid", d: `M${left},${y(loss)}H${width - right}` });
      add("text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, loss >= 1e4 || loss < 1e-3 ? loss.toExponential().replace("+", "") : brief(loss));
    }
  }
  let start = 0;
  for (const level of levels) {
    const end = start + level.step.at(-1);
    add("path", { class: "grid", d: `M${x(start)},${top}V${height - bottom}` });
    const name = `${level.width} x ${level.height}`;
    if (x(end) - x(start) > 6.5 * name.length) add("text", { x: (x(start) + x(end)) / 2, y: 12, "text-anchor": "middle" }, name);
    if (x(end) - x(start) > 24) add("text", { x: x(end), y: height - 18, "text-anchor": end === steps ? "end" : "middle" }, end);
    for (const term of TERMS) {
      let d = "", pen = "M";
      values(level, term).forEach((loss, k) => {
        const drawn = Math.log10(loss || 0) >= low;
        if (drawn) d += `${pen}${x(start + level.step[k]).toFixed(1)},${y(loss).toFixed(1)}`;
        pen = drawn ? "L" : "M"; // the line is broken where there is nothing to draw
      });
      add("path", { class: term, d });
    }
    start = end;
  }
  add("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "step");
  const last = levels.at(-1), of = values(last, "total");
  svg.setAttribute("aria-label", `losses over ${steps} steps on ${levels.length} level${levels.length > 1 ? "s" : ""}; on the last the total goes from ${brief(of[0])} to ${brief(of.at(-1))}`);
}

if (dialog) {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-open]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // in a tab of its own, if so asked
    event.preventDefault();
    look(cards.find((card) => card.dataset.id === link.dataset.open));
  });
  dialog.addEventListener("close", () => {
    $("a.name", open).focus(); // where "next" has led, not where the dialog was opened
    open = null;
    remember();
  });
  $("[name=close]").addEventListener("click", () => dialog.close());
  $("[name=previous]").addEventListener("click", () => step(-1));
  $("[name=next]").addEventListener("click", () => step(1));
  slider.addEventListener("input", () => slide(slider.value));
  for (const kind of ["pointerdown", "pointermove"]) {
    stage.addEventListener(kind, (event) => {
      if (!event.buttons || $(".slide", dialog).hidden) return;
      const { left, width } = stage.getBoundingClientRect();
      slide(100 * (event.clientX - left) / width);
    });
  }
  result.draggable = false;
  result.addEventListener("error", () => { // the page was moved away from its output: its own thumbnail is left
    const strip = $("a.strip img", open);
    if (!strip || result.src === strip.src) return;
    stage.classList.add("moved");
    result.src = strip.src;
  });
  new ResizeObserver(draw).observe($("svg", dialog));
}
if (outcomes.length) {
  $(".controls").hidden = false;
  for (const control of controls) control.addEventListener("input", () => { apply(); remember(); });
  $("[name=clear]").addEventListener("click", () => {
    history.replaceState(null, "", "#");
    recall();
  });
  addEventListener("hashchange", recall);
  recall();
}
