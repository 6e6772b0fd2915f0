// The AI SDK against a running gateway: `node ask.mjs URL [chat|responses|messages]`; prints what
// it got as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";

const [, , url, api = "chat"] = process.argv;
const where = { baseURL: `${url}/v1`, apiKey: "none" };
const providers = {
  chat: () =>
    createOpenAICompatible({
      name: "tuneloop",
      ...where,
      supportsStructuredOutputs: true,
      includeUsage: true,
    }),
  responses: () => createOpenAI(where),
  messages: () => createAnthropic(where),
};
const provider = providers[api]();
const model = provider("tuneloop");
const prompt = "tell me a story";
const place = jsonSchema({
  type: "object",
  properties: { kind: { type: "string", enum: ["river", "sea"] }, deep: { type: "boolean" } },
  required: ["kind", "deep"],
  additionalProperties: false,
});

const whole = await generateText({ model, prompt, maxOutputTokens: 16 });
const asked = { role: "user", content: prompt };
const more = { role: "user", content: "go on" };
const messages = [asked, ...whole.response.messages, more];
const second = await generateText({ model, messages, maxOutputTokens: 16 });

const stream = streamText({
  model,
  prompt,
  maxOutputTokens: 16,
  headers: { "x-tuneloop-train": "false" },
});
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;

const structured = await generateText({ model, prompt, output: Output.object({ schema: place }) });

const tools = { dive: tool({ description: "dive somewhere", inputSchema: place }) };
const toolChoice = { type: "tool", toolName: "dive" };
const called = await generateText({ model, prompt, tools, toolChoice });
const calling = streamText({ model, prompt, tools, toolChoice });
const streamedCalls = await calling.toolCalls;

const result = called.toolCalls.map(({ toolCallId, toolName }) => ({
  type: "tool-result",
  toolCallId,
  toolName,
  output: { type: "text", value: "it was deep" },
}));
const afterCall = await generateText({
  model,
  messages: [asked, ...called.response.messages, { role: "tool", content: result }],
  tools,
  maxOutputTokens: 16,
});

let error;
try {
  await generateText({ model: provider("gpt-5"), prompt, maxRetries: 0 });
} catch ({ statusCode, message }) {
  error = { status: statusCode, message };
}

console.log(
  JSON.stringify({
    text: whole.text,
    usage: whole.usage,
    version: whole.response.headers["x-policy-version"],
    secondUsage: second.usage,
    streamed,
    streamedUsage: await stream.usage,
    streamedReason: await stream.finishReason,
    object: structured.output,
    calls: called.toolCalls.map(({ toolName, input }) => ({ toolName, input })),
    callReason: called.finishReason,
    streamedCalls: streamedCalls.map(({ toolName, input }) => ({ toolName, input })),
    afterCall: afterCall.usage,
    error,
  }),
);
