// The Markdown that models write, as a tree of plain objects: `{tag, children}` with strings as
// leaves, and `{tag: "pre", language, text}` for a block of code.
//
// Each line is looked at once per level, and levels are limited: the work grows linearly with the
// text.

import { parseInline } from "./inline.js";

/** Quotes and lists deeper than this are shown as text. */
const MAX_DEPTH = 16;

const RULE_CHARS = "*-_";
const BULLETS = "-*+•";

/** Returns the blocks of a whole text; its headings begin at `level`. */
export function parseBlocks(text, level = 2) {
  return new BlockReader(level).read(text);
}

/**
 * Reads a text that grows, as in a stream. Only the last two blocks are read again: an earlier one
 * can no longer change, and is the same object in each result.
 */
export class BlockReader {
  constructor(level = 2) {
    this.level = level;
    this.text = "";
    this.blocks = [];
    /** For each block, where it starts and the headings above it. */
    this.starts = [];
  }

  read(newText) {
    const text = newText.includes("\r") ? newText.replace(/\r\n?/g, "\n") : newText;
    if (text === this.text) return this.blocks;
    const kept = text.startsWith(this.text) ? Math.max(0, this.blocks.length - 2) : 0;
    const { offset, headings } = this.starts[kept] ?? { offset: 0, headings: [] };
    const parser = new Parser(this.level, headings);
    this.blocks = this.blocks.slice(0, kept);
    this.starts.length = kept;
    const lines = text.slice(offset).split("\n");
    let next = offset;
    let line = 0;
    while (line < lines.length) {
      const before = { offset: next, headings: [...parser.headings] };
      const { end, block } = parser.readBlock(lines, line, 0);
      for (; line < end; line += 1) next += lines[line].length + 1;
      if (!block) continue;
      this.blocks.push(block);
      this.starts.push(before);
    }
    this.text = text;
    return this.blocks;
  }
}

class Parser {
  constructor(level, headings) {
    this.level = level;
    /** The numbers of `#` of the headings that the next one stands under. */
    this.headings = [...headings];
  }

  readBlocks(lines, depth) {
    const blocks = [];
    for (let line = 0; line < lines.length; ) {
      const { end, block } = this.readBlock(lines, line, depth);
      if (block) blocks.push(block);
      line = end;
    }
    return blocks;
  }

  /** Reads the block that begins at `lines[start]`; null for an empty line. */
  readBlock(lines, start, depth) {
    const line = lines[start];
    if (!line.trim()) return { end: start + 1, block: null };
    const kind = kindOf(line, depth);
    if (kind === "fence") return readFence(lines, start);
    if (kind === "heading") return { end: start + 1, block: this.readHeading(line) };
    if (kind === "rule") return { end: start + 1, block: { tag: "hr", children: [] } };
    if (kind === "quote") return this.readQuote(lines, start, depth);
    if (kind === "item") return this.readList(lines, start, depth);
    if (startsTable(lines, start)) return readTable(lines, start);
    return readParagraph(lines, start, depth);
  }

  /** A heading is one level below the one it stands under, whichever numbers the model chose. */
  readHeading(line) {
    const { count, title } = headingOf(line);
    while (this.headings.at(-1) >= count) this.headings.pop();
    this.headings.push(count);
    const level = Math.min(6, this.level + this.headings.length - 1);
    return { tag: `h${level}`, children: parseInline(title) };
  }

  readQuote(lines, start, depth) {
    const inner = [];
    let end = start;
    for (; end < lines.length && kindOf(lines[end], depth) === "quote"; end += 1) {
      const text = lines[end].trimStart().slice(1);
      inner.push(text.startsWith(" ") ? text.slice(1) : text);
    }
    return { end, block: { tag: "blockquote", children: this.readBlocks(inner, depth + 1) } };
  }

  /** Reads items of one indent and one kind; what is indented further belongs to the item above. */
  readList(lines, start, depth) {
    const first = itemOf(lines[start]);
    const list = { tag: first.number === null ? "ul" : "ol", children: [] };
    if (first.number !== null && first.number !== "1") list.start = first.number;
    let end = start;
    while (end < lines.length && kindOf(lines[end], depth) === "item") {
      const item = itemOf(lines[end]);
      const isSame = (item.number === null) === (first.number === null);
      if (item.indent < first.indent || !isSame) break;
      const inner = [item.text];
      end += 1;
      for (let next; ; end = next) {
        next = endOfIndented(lines, end, first.indent);
        if (next === end) break;
        for (const line of lines.slice(end, next)) inner.push(withoutIndent(line, item.width));
      }
      list.children.push({ tag: "li", children: this.readItem(inner, depth + 1) });
      const following = skipEmpty(lines, end);
      // An empty line between two items keeps them in one list.
      if (following < lines.length && kindOf(lines[following], depth) === "item") end = following;
    }
    return { end, block: list };
  }

  /** The first paragraph of an item stands in it without a `p`. */
  readItem(lines, depth) {
    const [first, ...rest] = this.readBlocks(lines, depth);
    if (first?.tag === "p") return [...first.children, ...rest];
    return first ? [first, ...rest] : [];
  }
}

/* what a line is */

/** Returns what a line begins, "text" for a paragraph. */
function kindOf(line, depth) {
  const indent = indentOf(line);
  const char = line[indent];
  if (char === undefined) return "empty";
  if ((char === "`" || char === "~") && fenceOf(line)) return "fence";
  if (char === "#" && headingOf(line)) return "heading";
  if (RULE_CHARS.includes(char) && isRule(line)) return "rule";
  if (depth >= MAX_DEPTH) return "text";
  if (char === ">") return "quote";
  return itemOf(line) ? "item" : "text";
}

function indentOf(line) {
  let indent = 0;
  while (line[indent] === " " || line[indent] === "\t") indent += 1;
  return indent;
}

function runLength(line, start) {
  let end = start + 1;
  while (line[end] === line[start]) end += 1;
  return end - start;
}

/** Three or more backticks or tildes, and the language. */
function fenceOf(line) {
  const indent = indentOf(line);
  const char = line[indent];
  if (char !== "`" && char !== "~") return null;
  const count = runLength(line, indent);
  if (count < 3) return null;
  const info = line.slice(indent + count).trim();
  // Otherwise it is code within a line: ```like this```.
  if (char === "`" && info.includes("`")) return null;
  return { indent, char, count, info };
}

function headingOf(line) {
  const indent = indentOf(line);
  const count = runLength(line, indent);
  const rest = line.slice(indent + count);
  if (count > 6 || !(rest.startsWith(" ") || rest.startsWith("\t"))) return null;
  const title = rest.trim();
  if (!title) return null;
  let end = title.length;
  while (title[end - 1] === "#") end -= 1;
  const isClosed = title[end - 1] === " ";
  return { count, title: isClosed ? title.slice(0, end).trimEnd() : title };
}

/** Three or more of one of `*-_`, with or without spaces between them. */
function isRule(line) {
  const char = line[indentOf(line)];
  let count = 0;
  for (const one of line) {
    if (one === char) count += 1;
    else if (one !== " " && one !== "\t") return false;
  }
  return count >= 3;
}

/** A bullet or a number; `width` is how far the item's other lines are indented. */
function itemOf(line) {
  const indent = indentOf(line);
  let end = indent;
  while (end - indent < 9 && line[end] >= "0" && line[end] <= "9") end += 1;
  const number = end > indent ? line.slice(indent, end) : null;
  if (!(number ? ".)" : BULLETS).includes(line[end] ?? "\n")) return null;
  const rest = line.slice(end + 1);
  if (!rest.startsWith(" ") && !rest.startsWith("\t")) return null;
  const text = rest.trimStart();
  return { indent, number, text, width: text ? line.length - text.length : end + 2 };
}

/* where blocks end */

function readFence(lines, start) {
  const { indent, char, count, info } = fenceOf(lines[start]);
  const text = [];
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const fence = fenceOf(lines[end]);
    if (fence && fence.char === char && fence.count >= count && !fence.info) break;
    text.push(withoutIndent(lines[end], indent));
  }
  const [language] = info.split(/\s/, 1);
  // The closing fence belongs to it, where there is one yet.
  if (end < lines.length) end += 1;
  return { end, block: { tag: "pre", language, text: text.join("\n") } };
}

function readParagraph(lines, start, depth) {
  let end = start + 1;
  while (end < lines.length && kindOf(lines[end], depth) === "text") {
    if (startsTable(lines, end)) break;
    end += 1;
  }
  const text = lines.slice(start, end).join("\n").trim();
  return { end, block: { tag: "p", children: parseInline(text) } };
}

/** Returns where the lines end that belong to an item indented by `indent`. */
function endOfIndented(lines, start, indent) {
  const next = skipEmpty(lines, start);
  const belongs = next < lines.length && indentOf(lines[next]) > indent + 1;
  return belongs ? next + 1 : start;
}

function skipEmpty(lines, start) {
  let line = start;
  while (line < lines.length && !lines[line].trim()) line += 1;
  return line;
}

/** Removes up to `width` spaces, or one tab. */
function withoutIndent(line, width) {
  if (line.startsWith("\t")) return line.slice(1);
  return line.slice(Math.min(width, indentOf(line)));
}

/* tables */

function startsTable(lines, start) {
  const rule = lines[start + 1];
  if (!lines[start].includes("|") || !rule?.includes("|")) return false;
  const columns = cellsOf(rule);
  return columns.every(isColumn) && columns.length === cellsOf(lines[start]).length;
}

/** Dashes, with a colon at either end. */
function isColumn(cell) {
  const from = cell.startsWith(":") ? 1 : 0;
  const to = cell.endsWith(":") ? cell.length - 1 : cell.length;
  return to > from && runLength(cell, from) === to - from && cell[from] === "-";
}

function readTable(lines, start) {
  let end = start + 2;
  while (lines[end]?.includes("|")) end += 1;
  const columns = cellsOf(lines[start]).length;
  const row = (line, tag) => ({
    tag: "tr",
    children: cellsOf(line)
      .slice(0, columns)
      .map((cell) => ({ tag, children: parseInline(cell) })),
  });
  const head = { tag: "thead", children: [row(lines[start], "th")] };
  const body = {
    tag: "tbody",
    children: lines.slice(start + 2, end).map((line) => row(line, "td")),
  };
  return { end, block: { tag: "table", children: [head, body] } };
}

/** Splits a row at its pipes; `\|` is a pipe within a cell. */
function cellsOf(line) {
  const cells = [];
  let cell = "";
  const row = line.trim();
  for (let at = row.startsWith("|") ? 1 : 0; at < row.length; at += 1) {
    if (row[at] === "|") {
      cells.push(cell.trim());
      cell = "";
    } else if (row[at] === "\\" && at + 1 < row.length) {
      cell += row[at + 1] === "|" ? "|" : row[at] + row[at + 1];
      at += 1;
    } else cell += row[at];
  }
  if (cell || !row.endsWith("|")) cells.push(cell.trim());
  return cells;
}
