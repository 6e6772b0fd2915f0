// Emphasis, code and links inside a paragraph, as a tree of plain objects.
//
// Everything moves forward through the text, and few delimiters wait for their other half at a
// time, so the work grows linearly with the text, whatever a model writes.

/** How many delimiters may be open at once. With one more, the oldest becomes text. */
const MAX_OPEN = 16;
/** Longer runs of `*` or `_` are text. Three are bold and italic at once. */
const MAX_RUN = 3;

const ESCAPABLE = "\\`*_{}[]()#+.!|<>~-";
const SCHEMES = ["https://", "http://"];
const NOT_IN_URL = " \t\n<>\"'`";
const NOT_LAST_IN_URL = ".,;:!?}*_";

const isSpace = (char) => /\s/.test(char);
const isWord = (char) => /[\p{L}\p{N}]/u.test(char);

/** Returns the nodes of `text`: strings, and `{tag, children, href?}`. */
export function parseInline(text) {
  return nestTokens(new Tokenizer(text).read(), text, false);
}

/** Splits a text into strings, `{code}`, `{run, count, opens, closes}` and `{href, label, from, to}`. */
class Tokenizer {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.tokens = [];
    /** Where the text begins that is in no token yet. */
    this.plain = 0;
    /** Brackets that may begin a link, innermost last. */
    this.brackets = [];
    /** The index of the last link. A bracket before it that is still open cannot become one. */
    this.lastLink = -1;
    this.codeEnds = text.includes("`") ? findCodeEnds(text) : new Map();
    this.targetEnds = text.includes("](") ? findTargetEnds(text) : new Map();
  }

  read() {
    const { text } = this;
    while (this.at < text.length) {
      const char = text[this.at];
      if (char === "\\") this.readEscape();
      else if (char === "`") this.readCode();
      else if (char === "*" || char === "_" || char === "~") this.readRun(char);
      else if (char === "[") this.openBracket(this.at + 1);
      else if (char === "!" && text[this.at + 1] === "[") this.openBracket(this.at + 2);
      else if (char === "]") this.closeBracket();
      else if (char === "h") this.readUrl();
      else this.at += 1;
    }
    this.flush(text.length);
    return this.tokens;
  }

  flush(end) {
    if (end > this.plain) this.tokens.push(this.text.slice(this.plain, end));
    this.plain = end;
  }

  add(token, end) {
    this.flush(this.at);
    this.tokens.push(token);
    this.at = end;
    this.plain = end;
  }

  readEscape() {
    const next = this.text[this.at + 1];
    if (next && ESCAPABLE.includes(next)) this.add(next, this.at + 2);
    else this.at += 1;
  }

  readCode() {
    const { text, at } = this;
    const start = at + runLength(text, at);
    const end = this.codeEnds.get(at);
    if (end === undefined) this.at = start;
    else this.add({ code: withoutPadding(text.slice(start, end)) }, end + start - at);
  }

  readRun(run) {
    const { text, at } = this;
    const count = runLength(text, at);
    if (count > MAX_RUN || (run === "~" && count !== 2)) {
      this.at += count;
      return;
    }
    const before = text[at - 1] ?? " ";
    const after = text[at + count] ?? " ";
    // Neither snake_case_names nor 2*3*4 are emphasis.
    const opens = !isSpace(after) && !(run === "_" && isWord(before));
    const closes = !isSpace(before) && !((run === "_" || count === 1) && isWord(after));
    this.add({ run, count, opens, closes }, at + count);
  }

  openBracket(label) {
    // A token of its own, so that a link can replace everything from here on.
    this.flush(this.at);
    this.brackets.push({ token: this.tokens.length, label, isImage: label - this.at === 2 });
    this.tokens.push(this.text.slice(this.at, label));
    this.at = label;
    this.plain = label;
  }

  closeBracket() {
    const { text, at } = this;
    const bracket = this.brackets.pop();
    const end = this.targetEnds.get(at + 1);
    const href = text.slice(at + 2, end ?? at + 2);
    const canBegin = bracket && (bracket.isImage || bracket.token > this.lastLink);
    if (!canBegin || !href || (at === bracket.label && !bracket.isImage)) {
      this.at += 1;
      return;
    }
    this.flush(at);
    const label = this.tokens.splice(bracket.token).slice(1);
    // The description of an image stays as it was written.
    const link = { href, label: bracket.isImage ? null : label, from: bracket.label, to: at };
    this.add(link, end + 1);
    this.lastLink = bracket.isImage ? Math.min(this.lastLink, bracket.token) : bracket.token;
  }

  readUrl() {
    const { text, at } = this;
    const scheme = SCHEMES.find((one) => text.startsWith(one, at));
    if (!scheme || isWord(text[at - 1] ?? " ")) {
      this.at += 1;
      return;
    }
    const host = at + scheme.length;
    const end = findUrlEnd(text, host);
    if (end === host) this.at = host;
    else this.add({ href: text.slice(at, end), label: null, from: at, to: end }, end);
  }
}

function runLength(text, start) {
  let end = start + 1;
  while (text[end] === text[start]) end += 1;
  return end - start;
}

/** Maps the start of each run of backticks to the start of the next run of the same length. */
function findCodeEnds(text) {
  const runs = [];
  for (let at = text.indexOf("`"); at >= 0; at = text.indexOf("`", at)) {
    const count = runLength(text, at);
    runs.push({ at, count });
    at += count;
  }
  const ends = new Map();
  const next = new Map();
  for (const { at, count } of runs.reverse()) {
    if (next.has(count)) ends.set(at, next.get(count));
    next.set(count, at);
  }
  return ends;
}

/** Maps each parenthesis after a bracket to the one that closes it, with no space between them. */
function findTargetEnds(text) {
  const ends = new Map();
  let open = [];
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at];
    if (char === "\\") at += 1;
    else if (char <= " ") open = [];
    else if (char === "(") open.push(at);
    else if (char === ")" && open.length) {
      const start = open.pop();
      if (text[start - 1] === "]") ends.set(start, at);
    }
  }
  return ends;
}

/** Returns where a URL ends: before punctuation, and before a bracket that it did not open. */
function findUrlEnd(text, start) {
  const depth = { "(": 0, "[": 0 };
  let end = start;
  for (; end < text.length && !NOT_IN_URL.includes(text[end]); end += 1) {
    const char = text[end];
    if (char === "(" || char === "[") depth[char] += 1;
    const opening = { ")": "(", "]": "[" }[char];
    if (!opening) continue;
    if (depth[opening] === 0) break;
    depth[opening] -= 1;
  }
  while (end > start && NOT_LAST_IN_URL.includes(text[end - 1])) end -= 1;
  return end;
}

function withoutPadding(code) {
  const line = code.replaceAll("\n", " ");
  const isPadded = line.length > 2 && line.startsWith(" ") && line.endsWith(" ") && line.trim();
  return isPadded ? line.slice(1, -1) : line;
}

/* from tokens to a tree */

function nestTokens(tokens, text, isInLink) {
  const nesting = new Nesting();
  for (const token of tokens) {
    if (typeof token === "string") nesting.add(token);
    else if (token.run) nesting.addRun(token);
    else if (token.href) nesting.add(linkNode(token, text, isInLink));
    else nesting.add({ tag: "code", children: [token.code] });
  }
  return nesting.finish();
}

/** Links lead to the web only, and are not put into each other. */
function linkNode({ href, label, from, to }, text, isInLink) {
  const children = label ? nestTokens(label, text, true) : [text.slice(from, to) || href];
  if (isInLink || !/^https?:\/\//i.test(href)) return { tag: "span", children };
  return { tag: "a", href, children };
}

class Nesting {
  constructor() {
    this.root = [];
    /** Runs that opened something, innermost last; each holds what came after it. */
    this.open = [];
  }

  get inner() {
    return this.open.at(-1)?.children ?? this.root;
  }

  add(node) {
    push(this.inner, node);
  }

  addRun(token) {
    let left = token.count;
    while (token.closes && left > 0) {
      const index = this.open.findLastIndex((opener) => pairs(opener, token));
      if (index < 0) break;
      this.giveUp(index + 1);
      left -= this.close(left);
    }
    if (left === 0) return;
    if (!token.opens) {
      this.add(token.run.repeat(left));
      return;
    }
    this.open.push({ ...token, left, children: [] });
    if (this.open.length > MAX_OPEN) moveAll(this.open.shift(), this.root);
  }

  /** Makes an element of the innermost opener; returns how many delimiters that took. */
  close(available) {
    const opener = this.open.at(-1);
    const count = Math.min(2, available, opener.left);
    const tag = opener.run === "~" ? "s" : count === 2 ? "strong" : "em";
    const node = { tag, children: opener.children };
    opener.left -= count;
    opener.children = [];
    if (opener.left === 0) this.open.pop();
    this.add(node);
    return count;
  }

  /** Openers from `index` on were never closed: they are text. */
  giveUp(index) {
    const lost = this.open.splice(index);
    for (const opener of lost) moveAll(opener, this.inner);
  }

  finish() {
    this.giveUp(0);
    return this.root;
  }
}

/** Whether two runs belong together, by CommonMark's rule of three for `*foo**bar*`. */
function pairs(opener, closer) {
  if (opener.run !== closer.run) return false;
  if (!opener.closes && !closer.opens) return true;
  const isThird = (opener.count + closer.count) % 3 === 0;
  return !isThird || (opener.count % 3 === 0 && closer.count % 3 === 0);
}

function moveAll(opener, children) {
  push(children, opener.run.repeat(opener.left));
  for (const child of opener.children) push(children, child);
}

/** Text beside text becomes one string, and so one node on the page. */
function push(children, node) {
  const last = children.length - 1;
  if (typeof node === "string" && typeof children[last] === "string") children[last] += node;
  else children.push(node);
}
