// Which tables scroll sideways, and the browser of outputs: it filters, sorts and pages the examples of the JSON block "data".
//
// Texts come from models and data sets. They reach the page as text nodes only (`append` of a
// string), never as HTML. Without this script the page shows a few examples, put there in advance.
"use strict";
(() => {
  const hints = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
    }
  });
  for (const box of document.querySelectorAll(".hint + .scroll")) hints.observe(box);
  if (!document.getElementById("data")) return;

  const PER_PAGE = 10;
  const { systems, names, outputs } = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const pagers = [...document.querySelectorAll(".pager")];
  let page = 0;

  // -- which examples, in which order

  function readChoice() {
    const fields = new FormData(form);
    return {
      shown: fields.getAll("system").map(Number),
      search: fields.get("search").toLowerCase(),
      differ: fields.has("differ"),
      number: Number(fields.get("number") ?? -1),
      first: Number(fields.get("first")),
      second: Number(fields.get("second")),
      higher: fields.has("higher"),
      margin: Number(fields.get("margin")),
      order: fields.get("order") ?? "given",
    };
  }

  // NaN where the system has no such number: no comparison holds for it, and it sorts last.
  function numberOf(output, name, system) {
    return output.numbers[name]?.[system] ?? NaN;
  }

  function gap(output, { number, first, second }) {
    return numberOf(output, number, first) - numberOf(output, number, second);
  }

  function spread(output, { number, shown }) {
    const values = shown.map((system) => numberOf(output, number, system));
    const known = values.filter((value) => !Number.isNaN(value));
    return known.length > 1 ? Math.max(...known) - Math.min(...known) : NaN;
  }

  const SORT_KEYS = {
    descending: gap,
    ascending: (output, choice) => -gap(output, choice),
    spread,
  };

  function matches(output, choice) {
    const texts = choice.shown.map((system) => output.texts[system]);
    if (choice.differ && new Set(texts).size < 2) return false;
    if (choice.higher && !(gap(output, choice) > choice.margin)) return false;
    const searched = [output.id, output.prompt, ...output.references, ...texts];
    return searched.some((text) => text !== null && text.toLowerCase().includes(choice.search));
  }

  function select(choice) {
    if (choice.shown.length === 0) return [];
    const found = outputs.filter((output) => matches(output, choice));
    const key = SORT_KEYS[choice.order];
    if (!key) return found;
    return found
      .map((output) => [key(output, choice), output])
      .sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || b - a)
      .map(([, output]) => output);
  }

  // -- differences against the reference

  // Words with the white space after them, or characters where no reference has more than a word.
  function split(text, byWord) {
    return byWord ? text.match(/\S+\s*|\s+/gu) ?? [] : [...text];
  }

  // The longest common subsequence of two token lists, as the positions [i, j] of its tokens.
  function align(theirs, ours) {
    const [a, b] = [theirs, ours].map((tokens) => tokens.map((token) => token.trim()));
    const width = b.length + 1;
    const longest = new Uint32Array((a.length + 1) * width); // of a[i:], b[j:]
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        const at = i * width + j;
        longest[at] =
          a[i] === b[j]
            ? longest[at + width + 1] + 1
            : Math.max(longest[at + width], longest[at + 1]);
      }
    }
    const pairs = [];
    for (let i = 0, j = 0; i < a.length && j < b.length; ) {
      const at = i * width + j;
      if (a[i] === b[j]) pairs.push([i++, j++]);
      else if (longest[at + width] >= longest[at + 1]) i++;
      else j++;
    }
    return pairs;
  }

  // `text` in pieces [tag, text] against the nearest reference, the first of those as near: "ins"
  // is in the text only, "del" in the reference only, "" in both.
  function compare(text, references) {
    if (references.length === 0) return [["", text]];
    const byWord = references.some((reference) => /\S\s+\S/u.test(reference));
    const ours = split(text, byWord);
    let best = { likeness: -1 };
    for (const reference of references) {
      const theirs = split(reference, byWord);
      const pairs = align(theirs, ours);
      const likeness = (2 * pairs.length) / Math.max(theirs.length + ours.length, 1);
      if (likeness > best.likeness) best = { likeness, theirs, pairs };
    }
    const pieces = [];
    let [i, j] = [0, 0];
    for (const [nextI, nextJ] of [...best.pairs, [best.theirs.length, ours.length]]) {
      const missing = best.theirs.slice(i, nextI).join("");
      const extra = ours.slice(j, nextJ).join("");
      // The space after a word is no mistake.
      pieces.push(["del", missing.trim()], ["ins", extra.trimEnd()]);
      pieces.push(["", extra.slice(extra.trimEnd().length)], ["", ours[nextJ] ?? ""]);
      [i, j] = [nextI + 1, nextJ + 1];
    }
    return pieces.filter(([, piece]) => piece !== "");
  }

  function isReference(text, references) {
    const words = (string) => string.trim().split(/\s+/u).join(" ");
    return references.some((reference) => words(reference) === words(text));
  }

  // -- what is seen

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function format(number) {
    return Number.isInteger(number) ? String(number) : number.toFixed(2);
  }

  function makeText(...children) {
    return make("div", { class: "text", dir: "auto" }, ...children);
  }

  function makeCell(label, ...content) {
    return make("div", { class: "cell" }, make("div", { class: "label" }, ...label), ...content);
  }

  function makeSystem(output, system) {
    const text = output.texts[system];
    // The color of the system is that of its box in the form.
    const swatch = form.querySelector(`[name=system][value="${system}"] + .swatch`);
    const label = [make("bdi", {}, systems[system])];
    if (swatch) label.unshift(swatch.cloneNode());
    if (text === null) return makeCell(label, make("div", { class: "soft" }, "no output"));
    if (isReference(text, output.references)) {
      label.push(make("span", { class: "right", title: "the same as a reference" }, " ✓"));
    }
    const pieces = compare(text, output.references);
    const marked = makeText(...pieces.map(([tag, piece]) => (tag ? make(tag, {}, piece) : piece)));
    const known = names
      .map((name, i) => [name, numberOf(output, i, system)])
      .filter(([, value]) => !Number.isNaN(value))
      .map(([name, value]) => `${name}\u00a0${format(value)}`);
    return makeCell(label, marked, make("div", { class: "note" }, known.join(" · ")));
  }

  function makeExample(output, choice) {
    const heading = make("h3", {}, make("bdi", {}, output.id));
    const difference = gap(output, choice);
    if ((choice.higher || choice.order !== "given") && !Number.isNaN(difference)) {
      const signed = `${difference < 0 ? "−" : "+"}${format(Math.abs(difference))}`;
      const note = `${names[choice.number]}: A − B = ${signed}`;
      heading.append(make("span", { class: "note" }, note));
    }
    return make(
      "article",
      { class: "example" },
      heading,
      make(
        "div",
        { class: "cells" },
        makeCell(["prompt"], makeText(output.prompt)),
        makeCell(["reference"], ...output.references.map((reference) => makeText(reference))),
        ...choice.shown.map((system) => makeSystem(output, system)),
      ),
    );
  }

  function makeEmpty(choice) {
    const reason = choice.shown.length
      ? "No example passes these filters. "
      : "No system is chosen. ";
    const reset = make("button", { type: "reset", form: "filters" }, "Reset");
    return make("p", { class: "empty" }, reason, reset);
  }

  function show() {
    const choice = readChoice();
    const found = select(choice);
    const numPages = Math.max(Math.ceil(found.length / PER_PAGE), 1);
    page = Math.min(Math.max(page, 0), numPages - 1);
    const start = page * PER_PAGE;
    const shown = found.slice(start, start + PER_PAGE);
    list.replaceChildren(
      ...(shown.length ? shown.map((output) => makeExample(output, choice)) : [makeEmpty(choice)]),
    );
    // A box that scrolls must be reached by the keyboard too.
    for (const text of list.querySelectorAll(".text")) {
      if (text.scrollHeight > text.clientHeight) text.tabIndex = 0;
    }
    const range = found.length ? `${start + 1}–${start + shown.length} of ` : "";
    for (const pager of pagers) {
      pager.querySelector(".count").textContent =
        `${range}${found.length} examples (${outputs.length} in all)`;
      // Not `disabled`: that would take the focus away from whoever pages by keyboard.
      pager.querySelector("[value='-1']").setAttribute("aria-disabled", page === 0);
      pager.querySelector("[value='1']").setAttribute("aria-disabled", page === numPages - 1);
    }
  }

  function showFirstPage() {
    page = 0;
    show();
  }

  for (const pager of pagers) {
    pager.hidden = false;
    pager.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || button.getAttribute("aria-disabled") === "true") return;
      page += Number(button.value);
      show();
      pagers[0].scrollIntoView();
    });
  }
  for (const button of form.querySelectorAll("button[name=tick]")) {
    button.addEventListener("click", () => {
      const chosen = button.value === "all";
      for (const box of form.querySelectorAll("[name=system]")) box.checked = chosen;
      showFirstPage();
    });
  }
  form.addEventListener("input", showFirstPage);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(showFirstPage)); // fields are reset afterwards
  form.hidden = false;
  show();
})();
