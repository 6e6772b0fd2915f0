// What every page has: the bar at the top, the dialog for the key, and the list of shortcuts.

import { setKey } from "./api.js";
import { $, el, icon, iconButton } from "./dom.js";

const PAGES = [
  ["/", "Chat"],
  ["/dashboard", "Dashboard"],
  ["/feedback", "Feedback"],
];
const THEME = "tuneloop-theme";
const SINGLE_KEYS = "tuneloop-single-keys";

/** Builds the bar; `extras` stand before the buttons. Shortcuts are `[keys, what they do, run?]`. */
export function openShell({ extras = [], shortcuts = [] } = {}) {
  const help = shortcutsDialog([...shortcuts, ["?", "Show this list"]]);
  document.body.prepend(
    el("a", { class: "skip", href: "#main" }, "Skip to content"),
    el(
      "header",
      { class: "bar" },
      brand(),
      navigation(),
      el("div", { class: "extras" }, ...extras),
      themeButton(),
      helpButton(help),
    ),
  );
  document.body.append(
    help,
    keyDialog(),
    el("div", { id: "announcer", class: "hidden", role: "status" }),
  );
  document.addEventListener("keydown", (event) => {
    if (!mayBeShortcut(event)) return;
    if (event.key === "?") {
      event.preventDefault();
      help.showModal();
      return;
    }
    const found = shortcuts.find(
      ([keys, , run]) => run && keys.toLowerCase() === event.key.toLowerCase(),
    );
    if (!found) return;
    event.preventDefault();
    found[2]();
  });
}

/** Single keys act only where nothing is typed, no dialog is open, and they were not switched off. */
function mayBeShortcut(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return false;
  if (localStorage.getItem(SINGLE_KEYS) === "off" || document.querySelector("dialog[open]"))
    return false;
  return !event.target.closest("input, textarea, select, [contenteditable]");
}

function brand() {
  return el("a", { class: "brand", href: "/" }, icon("loop"), "tuneloop");
}

function navigation() {
  const links = PAGES.map(([href, name]) =>
    el("a", { href, "aria-current": href === location.pathname ? "page" : null }, name),
  );
  return el("nav", { "aria-label": "Pages" }, ...links);
}

function themeButton() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const button = iconButton("moon", "Dark theme", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem(THEME, root.dataset.theme);
    show();
  });
  function show() {
    const label = isDark() ? "Light theme" : "Dark theme";
    button.replaceChildren(icon(isDark() ? "sun" : "moon"));
    button.setAttribute("aria-label", label);
    button.title = label;
  }
  system.addEventListener("change", show);
  show();
  return button;
}

function helpButton(help) {
  return iconButton("keyboard", "Keyboard shortcuts", () => help.showModal(), {
    class: "tool wide-only",
  });
}

function shortcutsDialog(shortcuts) {
  const rows = shortcuts.map(([keys, meaning]) =>
    el(
      "div",
      {},
      el("dt", {}, ...keys.split(" ").map((key) => el("kbd", {}, key))),
      el("dd", {}, meaning),
    ),
  );
  const single = el("input", { type: "checkbox", id: "single-keys" });
  single.checked = localStorage.getItem(SINGLE_KEYS) !== "off";
  single.addEventListener("change", () =>
    localStorage.setItem(SINGLE_KEYS, single.checked ? "on" : "off"),
  );
  return el(
    "dialog",
    { "aria-labelledby": "shortcuts-title", id: "shortcuts" },
    el("h2", { id: "shortcuts-title" }, "Keyboard shortcuts"),
    el("dl", { class: "keys" }, ...rows),
    el("label", { class: "choice" }, single, "Use single-key shortcuts when not typing"),
    el("form", { method: "dialog" }, el("button", { class: "solid" }, "Close")),
  );
}

function keyDialog() {
  const input = el("input", {
    id: "key",
    type: "password",
    required: true,
    autocomplete: "off",
    spellcheck: "false",
  });
  const form = el(
    "form",
    { id: "key-form" },
    el("h2", { id: "key-title" }, "This service needs a key"),
    el(
      "p",
      { id: "key-reason" },
      "Ask the people who run the service for one. It stays in this tab.",
    ),
    el("label", { for: "key" }, "Key"),
    input,
    el("button", { class: "solid" }, "Continue"),
  );
  const dialog = el("dialog", { id: "key-dialog", "aria-labelledby": "key-title" }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    setKey(input.value.trim());
    input.value = "";
  });
  document.addEventListener("tuneloop:key-needed", () => askForKey());
  return dialog;
}

/** Opens the dialog for a key; `reason` says why the one at hand does not do. */
export function askForKey(reason) {
  const dialog = $("key-dialog");
  if (reason) $("key-reason").textContent = reason;
  if (!dialog.open) dialog.showModal();
}

/** Asks before something that matters; resolves to whether it was confirmed and done. */
export function confirmAction({ title, text, action, run }) {
  return new Promise((resolve) => {
    const problem = el("p", { class: "failure", role: "alert", hidden: true });
    const confirm = el("button", { type: "button", class: "solid" }, action);
    const cancel = el("button", { type: "button", class: "quiet" }, "Cancel");
    const dialog = el(
      "dialog",
      { "aria-labelledby": "confirm-title", "aria-describedby": "confirm-text" },
      el("h2", { id: "confirm-title" }, title),
      el("p", { id: "confirm-text" }, text),
      problem,
      el("div", { class: "actions" }, cancel, confirm),
    );
    let done = false;
    cancel.addEventListener("click", () => dialog.close());
    confirm.addEventListener("click", async () => {
      confirm.disabled = true;
      try {
        await run();
        done = true;
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
        confirm.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
    cancel.focus();
  });
}
