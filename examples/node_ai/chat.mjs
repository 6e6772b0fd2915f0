// A streamed answer through the npm package `ai`, and a thumb on it.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const url = process.env.TUNELOOP_URL ?? "http://127.0.0.1:8000";
const apiKey = process.env.TUNELOOP_API_KEY || "none";
const tuneloop = createOpenAICompatible({ name: "tuneloop", baseURL: `${url}/v1`, apiKey });

const answer = streamText({
  model: tuneloop("tuneloop"),
  prompt: process.argv[2] ?? "Tell me a very short story.",
  onError: ({ error }) => {
    throw error;
  },
});
for await (const piece of answer.textStream) process.stdout.write(piece);
process.stdout.write("\n");

const { id } = await answer.response;
const stored = await fetch(`${url}/v1/feedback`, {
  method: "POST",
  headers: { "content-type": "application/json", authorization: `Bearer ${apiKey}` },
  body: JSON.stringify({ kind: "thumb", completion_id: id, value: "up" }),
});
if (!stored.ok) throw new Error(`feedback was refused: ${await stored.text()}`);
console.log(`thumb up for ${id}`);
