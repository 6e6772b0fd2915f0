// A model's text as DOM nodes. They are made one by one and never from HTML, so whatever a model
// was led to write stays text.

import { el, icon } from "./dom.js";
import { BlockReader } from "./markdown/blocks.js";

/** Shows a text and keeps showing it as it grows: what did not change keeps its nodes. */
export class MarkdownView {
  /** Headings begin at `level`, whatever the model chose. */
  constructor(level = 2) {
    this.node = el("div", { class: "text" });
    this.reader = new BlockReader(level);
    this.shown = [];
  }

  show(text) {
    const blocks = this.reader.read(text);
    updateChildren(this.node, this.shown, blocks);
    this.shown = blocks;
    return this;
  }
}

/** Returns the element that shows `text`, for a text that does not change. */
export const markdown = (text, level) => new MarkdownView(level).show(text).node;

/** Changes the children of `parent`, which show `before`, to show `after`. */
function updateChildren(parent, before, after) {
  let node = parent.firstChild;
  for (const [index, item] of after.entries()) {
    const next = node?.nextSibling ?? null;
    if (index >= before.length) parent.append(build(item));
    else if (before[index] !== item && !update(node, before[index], item)) {
      node.replaceWith(build(item));
    }
    node = next;
  }
  for (let count = after.length; count < before.length; count += 1) parent.lastChild.remove();
}

/** Changes `node` from `before` to `after`; false where that takes another node. */
function update(node, before, after) {
  if (typeof before === "string" || typeof after === "string") {
    if (typeof before !== typeof after) return false;
    setText(node, before, after);
    return true;
  }
  if (before.tag !== after.tag || before.href !== after.href || before.start !== after.start) {
    return false;
  }
  if (after.tag === "pre") {
    if (before.language !== after.language) languageOf(node).textContent = after.language;
    setText(codeOf(node).firstChild, before.text, after.text);
  } else {
    // A table stands in an element that scrolls.
    const parent = after.tag === "table" ? node.firstChild : node;
    updateChildren(parent, before.children, after.children);
  }
  return true;
}

/** Text that only grows is added to, so that a selection in it stays. */
function setText(node, before, after) {
  if (before === after) return;
  if (after.startsWith(before)) node.appendData(after.slice(before.length));
  else node.data = after;
}

function build(item) {
  if (typeof item === "string") return document.createTextNode(item);
  if (item.tag === "pre") return codeBlock(item);
  const node = el(item.tag, attributesOf(item));
  for (const child of item.children) node.append(build(child));
  if (item.tag !== "table") return node;
  const scrolls = { class: "scrolls", tabindex: 0, role: "group", "aria-label": "Table" };
  return el("div", scrolls, node);
}

function attributesOf({ tag, href, start }) {
  // In a tab of its own, and without telling from where.
  if (tag === "a") return { href, target: "_blank", rel: "noopener noreferrer nofollow" };
  if (tag === "th") return { scope: "col" };
  return { start };
}

/* code */

function codeBlock({ language, text }) {
  const code = el("code");
  code.append(document.createTextNode(text));
  const attributes = { class: "tool copy", "aria-label": "Copy code", title: "Copy code" };
  const copy = el("button", { type: "button", ...attributes }, icon("copy"));
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    copy.replaceChildren(icon("check"));
  });
  const name = el("span", { class: "language" }, language);
  return el("div", { class: "code" }, name, copy, el("pre", { tabindex: 0 }, code));
}

const languageOf = (node) => node.firstChild;
const codeOf = (node) => node.lastChild.firstChild;
