// Before the first paint: the colour scheme that was chosen here, where one was.
// A classic script, as modules run only after the page was drawn.

try {
  const chosen = localStorage.getItem("tuneloop-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden: the system's scheme it is.
}
