// A box to write in, with a button that sends it and one that does not.

import { el } from "./dom.js";

/**
 * `box` holds the attributes of the text area. `send(text)` is called with what was written.
 * With `enterSends` the Enter key does, and Shift Enter starts a line; else Control Enter does.
 */
export function writingForm(box, { value = "", button, enterSends = false, send, cancel }) {
  const area = el("textarea", { class: "box", ...box });
  area.value = value;
  const form = el(
    "form",
    { class: "write" },
    area,
    el(
      "div",
      { class: "actions" },
      el("button", { type: "button", class: "quiet", onclick: cancel }, "Cancel"),
      el("button", { class: "solid" }, button),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = area.value.trim();
    if (text) send(text);
  });
  for (const event of ["focus", "input"]) area.addEventListener(event, () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
    if (event.key !== "Enter" || event.isComposing) return;
    if (event.ctrlKey || event.metaKey || (enterSends && !event.shiftKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}

function grow(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
