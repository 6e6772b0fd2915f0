// A model's text as DOM nodes: the little Markdown that small models write. No innerHTML anywhere.

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)/;
const BULLET = /^\s*[-*•]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,3})[.)]\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.*)$/;

export function render(text) {
  const fragment = document.createDocumentFragment();
  const parts = text.split(/^```.*$/m);
  parts.forEach((part, index) => {
    // Odd parts stand between fences; a fence still open in a stream counts as code too.
    if (index % 2) fragment.append(code(part.replace(/^\n|\n$/g, "")));
    else blocks(part, fragment);
  });
  return fragment;
}

function blocks(text, parent) {
  let list = null;
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) parent.append(element("p", paragraph.join("\n")));
    paragraph = [];
  };
  for (const line of text.split("\n")) {
    const bullet = BULLET.exec(line);
    const number = NUMBER.exec(line);
    const heading = HEADING.exec(line);
    if (bullet || number) {
      flush();
      const kind = bullet ? "ul" : "ol";
      if (!list || list.localName !== kind) {
        list = document.createElement(kind);
        if (number) list.start = Number(number[1]);
        parent.append(list);
      }
      list.append(element("li", bullet ? bullet[1] : number[2]));
      continue;
    }
    if (!line.trim()) {
      flush();
      continue;
    }
    list = null;
    if (heading) {
      flush();
      parent.append(element("h3", heading[1]));
    } else {
      paragraph.push(line);
    }
  }
  flush();
}

function element(name, text) {
  const node = document.createElement(name);
  for (const part of text.split(INLINE)) {
    if (!part) continue;
    if (INLINE.test(part)) {
      const bold = part.startsWith("**");
      const inner = document.createElement(bold ? "strong" : "code");
      inner.textContent = part.slice(bold ? 2 : 1, bold ? -2 : -1);
      node.append(inner);
    } else {
      node.append(part);
    }
  }
  return node;
}

function code(text) {
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  const inner = document.createElement("code");
  inner.textContent = text;
  pre.append(inner);
  return pre;
}
