// As much of a document as the page's Markdown needs, counting what is made and changed.

export const counts = { made: 0, changed: 0 };

class FakeNode {
  parent = null;
  constructor() {
    counts.made += 1;
  }
  get nextSibling() {
    return this.parent?.childNodes[this.parent.childNodes.indexOf(this) + 1] ?? null;
  }
  remove() {
    counts.changed += 1;
    this.parent.childNodes.splice(this.parent.childNodes.indexOf(this), 1);
    this.parent = null;
  }
  replaceWith(node) {
    counts.changed += 1;
    this.parent.childNodes[this.parent.childNodes.indexOf(this)] = node;
    node.parent = this.parent;
    this.parent = null;
  }
}

class FakeText extends FakeNode {
  constructor(data) {
    super();
    this.value = data;
  }
  get data() {
    return this.value;
  }
  set data(data) {
    counts.changed += 1;
    this.value = data;
  }
  appendData(data) {
    this.data += data;
  }
  get textContent() {
    return this.value;
  }
}

class FakeElement extends FakeNode {
  childNodes = [];
  attributes = {};
  constructor(name) {
    super();
    this.name = name;
  }
  get firstChild() {
    return this.childNodes[0] ?? null;
  }
  get lastChild() {
    return this.childNodes.at(-1) ?? null;
  }
  get textContent() {
    return this.childNodes.map((node) => node.textContent).join("");
  }
  set textContent(text) {
    counts.changed += 1;
    this.childNodes = [];
    this.append(text);
  }
  append(...nodes) {
    counts.changed += nodes.length;
    for (const given of nodes) {
      const node = typeof given === "string" ? new FakeText(given) : given;
      node.parent = this;
      this.childNodes.push(node);
    }
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  addEventListener() {}
}

globalThis.document = {
  createElement: (name) => new FakeElement(name),
  createElementNS: (_, name) => new FakeElement(name),
  createTextNode: (data) => new FakeText(data),
};

/** Returns an element as one would write it; what buttons and icons look like is left out. */
export function written(node) {
  if (node instanceof FakeText) return node.data;
  if (node.name === "button") return "";
  const attributes = Object.entries(node.attributes).map(([name, value]) => ` ${name}="${value}"`);
  const inside = node.childNodes.map(written).join("");
  return `<${node.name}${attributes.join("")}>${inside}</${node.name}>`;
}
