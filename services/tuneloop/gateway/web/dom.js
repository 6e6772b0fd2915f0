// Small helpers to build and change the page. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element: `on…` members are listeners, `data` its dataset, the rest attributes. */
export function el(name, attributes = {}, ...children) {
  return dress(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const PATHS = {
  up: [
    "M7 10.5v10H4.2A1.2 1.2 0 0 1 3 19.3v-7.6a1.2 1.2 0 0 1 1.2-1.2zM7 10.5 11 3.3c1.5 0 2.7 1.2 2.7 2.7v3.5h5.1a2 2 0 0 1 2 2.3l-1.1 7a2 2 0 0 1-2 1.7H7",
  ],
  down: [
    "M17 13.5v-10h2.8A1.2 1.2 0 0 1 21 4.7v7.6a1.2 1.2 0 0 1-1.2 1.2zM17 13.5 13 20.7c-1.5 0-2.7-1.2-2.7-2.7v-3.5H5.2a2 2 0 0 1-2-2.3l1.1-7a2 2 0 0 1 2-1.7H17",
  ],
  loop: ["M19.5 8.5A8 8 0 1 0 20 12M20 4v5h-5"],
  pencil: ["M4 20h4L19 9a2.1 2.1 0 0 0-3-3L5 17zM14 8l3 3"],
  comment: [
    "M5 4.5h14a1.5 1.5 0 0 1 1.5 1.5v9.5A1.5 1.5 0 0 1 19 17h-7l-5 4v-4H5a1.5 1.5 0 0 1-1.5-1.5V6A1.5 1.5 0 0 1 5 4.5z",
  ],
  copy: ["M9 9h10.5v11.5H9zM15 9V3.5H4.5V15H9"],
  check: ["M5 12.5 10 17.5 19.5 7"],
  left: ["M14.5 6 8.5 12l6 6"],
  right: ["M9.5 6l6 6-6 6"],
  close: ["M6 6l12 12M18 6 6 18"],
  columns: ["M4 5h7v14H4zM13 5h7v14h-7z"],
  sun: [
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
  ],
  moon: ["M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z"],
  keyboard: ["M3 6.5h18v11H3zM7 10h.01M10.5 10h.01M14 10h.01M17.5 10h.01M8 14h8"],
  download: ["M12 4v11M7 10.5l5 5 5-5M5 20h14"],
  plus: ["M12 5v14M5 12h14"],
  scale: ["M12 4v16M7 20h10M5 7h14M5 7l-2.5 6a2.6 2.6 0 0 0 5 0zM19 7l-2.5 6a2.6 2.6 0 0 0 5 0z"],
  list: ["M9 6h11M9 12h11M9 18h11M4.5 6h.01M4.5 12h.01M4.5 18h.01"],
  star: ["M12 4l2.4 5 5.6.8-4 3.9.9 5.5-4.9-2.6-4.9 2.6.9-5.5-4-3.9 5.6-.8z"],
  gauge: ["M4 18a9 9 0 1 1 16 0M12 14l4-5M12 14h.01"],
  send: ["M12 19V5M5.5 11.5 12 5l6.5 6.5"],
};

export function icon(name) {
  const paths = PATHS[name].map((d) => svg("path", { d }));
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" }, ...paths);
}

/** A button that shows only an icon; its name is its label and its tip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return el(
    "button",
    { type: "button", class: "tool", "aria-label": label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/** Sets text only if it differs: a screen reader would repeat it. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Tells screen readers only. */
export function announce(text) {
  say($("announcer"), text);
}

export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
