// Asks the service and writes into answers as the words come.

import { ApiError, streamChat } from "./api.js";

/**
 * Streams one answer into each of `answers`; calls `onChange(answer)` as they grow and when they
 * end. Answers asked of the same version are one request, so that they are siblings.
 */
export async function stream({ answers, ...request }) {
  const same = answers.every((answer) => answer.asked === answers[0].asked);
  const groups = same ? [answers] : answers.map((answer) => [answer]);
  await Promise.all(groups.map((group) => streamGroup({ ...request, answers: group })));
}

async function streamGroup({ model, messages, sessionId, answers, signal, onChange }) {
  const [{ asked }] = answers;
  const options = { session_id: sessionId };
  if (answers.length > 1) options.n = answers.length;
  if (asked !== null) options.policy_version = asked;
  try {
    for await (const chunk of streamChat(model, messages, options, signal)) {
      for (const choice of chunk.choices) {
        const answer = answers[choice.index];
        take(answer, chunk, choice);
        onChange(answer);
      }
    }
  } catch (error) {
    for (const answer of answers.filter((one) => one.finish === null)) {
      if (signal.aborted) answer.finish = "abort";
      else
        answer.failure =
          error instanceof ApiError ? error.message : "Something went wrong on this page.";
    }
    if (!signal.aborted && !(error instanceof ApiError)) console.error(error);
  }
  for (const answer of answers) {
    if (answer.finish === null && !answer.failure) answer.finish = "stop";
    onChange(answer);
  }
}

function take(answer, chunk, choice) {
  answer.version = chunk.policy_version;
  answer.completionId = choice.completion_id;
  answer.reasoning += choice.delta.reasoning_content ?? "";
  answer.text += choice.delta.content ?? "";
  if (choice.policy_version_spans)
    answer.spans = choice.policy_version_spans.map((span) => span.policy_version);
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}
