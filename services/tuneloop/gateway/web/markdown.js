// A model's text as DOM nodes: the Markdown that models write. No innerHTML anywhere, so that
// whatever a model was led to say stays text.

import { el, icon } from "./dom.js";

const FENCE = /^\s*```\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^(#{1,6})\s+(.+?)\s*#*$/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)(?:([-*+•])|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^\s*>\s?(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const INLINE = new RegExp(
  [
    /(?<code>`+)(?<codeText>[^`]|[^`][^]*?[^`])\k<code>(?!`)/,
    /\\(?<escaped>[\\`*_{}[\]()#+.!|>~-])/,
    /\[(?<label>[^\][\n]+)\]\((?<target>[^\s()]+(?:\([^\s()]*\)[^\s()]*)*)\)/,
    /(?<bare>https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}*_])/,
    /(?<strong>\*\*|__)(?=\S)(?<strongText>[^]*?\S)\k<strong>/,
    /(?<em>\*|(?<![\p{L}\p{N}])_)(?=[^\s*_])(?<emText>[^*_\n]*[^\s*_])\k<em>(?![\p{L}\p{N}])/,
    /~~(?=\S)(?<struck>[^~\n]*\S)~~/,
  ]
    .map((pattern) => pattern.source)
    .join("|"),
  "gu",
);

/**
 * The whole text. A fence that is still open, as in a stream, counts as code too. Headings begin at
 * `level`, whatever levels the model chose.
 */
export function markdown(text, level = 2) {
  const fragment = document.createDocumentFragment();
  blocks(text.replace(/\r\n?/g, "\n").split("\n"), fragment);
  const headings = [...fragment.querySelectorAll("[data-level]")];
  const levels = [...new Set(headings.map((heading) => heading.dataset.level))].sort();
  for (const heading of headings) {
    const own = Math.min(6, level + levels.indexOf(heading.dataset.level));
    heading.replaceWith(el(`h${own}`, {}, ...heading.childNodes));
  }
  return fragment;
}

function blocks(lines, parent) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      at = codeBlock(lines, at, fence[1], parent);
    } else if (heading) {
      parent.append(inline(heading[2], el("div", { "data-level": heading[1].length })));
      at += 1;
    } else if (RULE.test(line)) {
      parent.append(el("hr"));
      at += 1;
    } else if (QUOTE.test(line)) {
      at = quote(lines, at, parent);
    } else if (ITEM.test(line)) {
      at = list(lines, at, parent);
    } else if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) {
      at = table(lines, at, parent);
    } else {
      at = paragraph(lines, at, parent);
    }
  }
}

function paragraph(lines, start, parent) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end += 1;
  parent.append(inline(lines.slice(start, end).join("\n").trim(), el("p")));
  return end;
}

const begins = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

function codeBlock(lines, start, language, parent) {
  let end = start + 1;
  while (end < lines.length && !/^\s*```\s*$/.test(lines[end])) end += 1;
  const text = lines.slice(start + 1, end).join("\n");
  const copy = el(
    "button",
    { type: "button", class: "tool copy", "aria-label": "Copy code", title: "Copy code" },
    icon("copy"),
  );
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.replaceChildren(icon("check"));
  });
  const code = el("pre", { tabindex: 0 }, el("code", {}, text));
  parent.append(el("div", { class: "code" }, el("span", { class: "language" }, language), copy, code));
  return end + 1;
}

function quote(lines, start, parent) {
  let end = start;
  const inner = [];
  for (; end < lines.length && QUOTE.test(lines[end]); end += 1) inner.push(QUOTE.exec(lines[end])[1]);
  const node = el("blockquote");
  blocks(inner, node);
  parent.append(node);
  return end;
}

/** Items of one indent; what is indented further belongs to the item before it. */
function list(lines, start, parent) {
  const [, indent, bullet, number] = ITEM.exec(lines[start]);
  const node = el(bullet ? "ul" : "ol", { start: number && number !== "1" ? number : null });
  let at = start;
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length < indent.length || Boolean(item[2]) !== Boolean(bullet)) break;
    const inner = [];
    at += 1;
    while (at < lines.length && belongs(lines, at, indent.length)) {
      inner.push(lines[at].replace(/^ {1,4}|^\t/, ""));
      at += 1;
    }
    const entry = inline(item[4], el("li"));
    blocks(inner, entry);
    node.append(entry);
    // An empty line between two items keeps them in one list.
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
  }
  parent.append(node);
  return at;
}

function belongs(lines, at, indent) {
  const line = lines[at];
  if (!line.trim()) return /^\s{2,}\S/.test(lines[at + 1] ?? "") && !ITEM.test(lines[at + 1]);
  return line.search(/\S/) > indent + 1;
}

function table(lines, start, parent) {
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const row = (line, cell) =>
    el("tr", {}, ...cells(line).map((text) => inline(text, el(cell, cell === "th" ? { scope: "col" } : {}))));
  const body = lines.slice(start + 2, end).map((line) => row(line, "td"));
  const node = el("table", {}, el("thead", {}, row(lines[start], "th")), el("tbody", {}, ...body));
  parent.append(el("div", { class: "scrolls", tabindex: 0, role: "group", "aria-label": "Table" }, node));
  return end;
}

const cells = (line) =>
  line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => cell.trim());

/** Appends `text` to `node`, with emphasis, code and links. */
function inline(text, node) {
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    node.append(text.slice(end, match.index), span(match.groups));
    end = match.index + match[0].length;
  }
  node.append(text.slice(end));
  return node;
}

function span(found) {
  if (found.code) return el("code", {}, found.codeText);
  if (found.escaped) return found.escaped;
  if (found.bare) return link(found.bare, el("a", {}, found.bare));
  if (found.label) return link(found.target, inline(found.label, el("a")));
  if (found.strong) return inline(found.strongText, el("strong"));
  if (found.em) return inline(found.emText, el("em"));
  return inline(found.struck, el("s"));
}

/** Only to the web, in a tab of its own, without telling from where. */
function link(target, node) {
  if (!/^https?:\/\//i.test(target)) return el("span", {}, ...node.childNodes);
  node.href = target;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}
