// Streams an answer from the application's backend, and sends a thumb to it.
const at = (id) => document.getElementById(id);
let completionId = null;

async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
}

async function* linesOf(response) {
  let rest = "";
  const decoder = new TextDecoder();
  for (const reader = response.body.getReader(); ; ) {
    const { value, done } = await reader.read();
    const lines = (rest + decoder.decode(value, { stream: !done })).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
    if (done) return;
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("thumbs").hidden = true;
  at("answer").textContent = "";
  const response = await post("/ask", { text: at("question").value });
  if (!response.ok) {
    at("answer").textContent = `That did not work (${response.status}).`;
    return;
  }
  for await (const line of linesOf(response)) {
    if (line.text) at("answer").textContent += line.text;
    if (line.error) at("answer").textContent += ` [${line.error}]`;
    if (line.completion_id) {
      completionId = line.completion_id;
      at("status").textContent = `version ${line.version}`;
      at("thumbs").hidden = false;
    }
  }
});

for (const button of at("thumbs").querySelectorAll("button")) {
  button.addEventListener("click", async () => {
    const response = await post("/thumb", { completion_id: completionId, value: button.value });
    at("status").textContent = response.ok ? "Thank you!" : (await response.json()).error;
  });
}
