// The AI SDK against a running gateway: `node ask.mjs URL`; prints what it got as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";

const provider = createOpenAICompatible({
  name: "tuneloop",
  baseURL: `${process.argv[2]}/v1`,
  apiKey: "none",
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const model = provider("tuneloop");
const prompt = "tell me a story";
const place = jsonSchema({
  type: "object",
  properties: { kind: { type: "string", enum: ["river", "sea"] }, deep: { type: "boolean" } },
  required: ["kind", "deep"],
  additionalProperties: false,
});

const whole = await generateText({ model, prompt, maxOutputTokens: 16 });

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

console.log(
  JSON.stringify({
    text: whole.text,
    usage: whole.usage,
    version: whole.response.headers["x-policy-version"],
    streamed,
    streamedUsage: await stream.usage,
    streamedReason: await stream.finishReason,
    object: structured.output,
    calls: called.toolCalls.map(({ toolName, input }) => ({ toolName, input })),
    callReason: called.finishReason,
    streamedCalls: streamedCalls.map(({ toolName, input }) => ({ toolName, input })),
  }),
);
