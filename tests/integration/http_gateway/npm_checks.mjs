// The official npm client against a gateway: `node npm_checks.mjs BASE_URL` prints one line a check.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "tide-tiny";
const messages = [{ role: "user", content: "hello" }];
const WHOLE = "The tide comes in.";
let failed = 0;

async function check(name, work) {
  try {
    if ((await work()) !== true) throw new Error("not true");
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`failed ${name}: ${error}`);
  }
}

async function refused(kind, fields) {
  try {
    await client.chat.completions.create({ model, messages, ...fields });
  } catch (error) {
    return error instanceof kind && error.type === "invalid_request_error";
  }
  return false;
}

async function chunksOf(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const chat = (fields) => client.chat.completions.create({ model, messages, ...fields });
const text = (fields) => client.completions.create({ model, prompt: "go", ...fields });
const whole = await chat({});
await check("chat content", () => whole.choices[0].message.content === WHOLE);
await check("chat role", () => whole.choices[0].message.role === "assistant");
await check("chat finish reason", () => whole.choices[0].finish_reason === "stop");
await check("chat object", () => whole.object === "chat.completion");
await check("chat id", () => whole.id.startsWith("chatcmpl-"));
await check("chat request id", () => whole.id === `chatcmpl-${whole._request_id}`);
await check("chat usage", () => whole.usage.total_tokens === 12);
const chunks = await chunksOf(await chat({ stream: true, stream_options: { include_usage: true } }));
await check("one id in a stream", () => new Set(chunks.map((c) => c.id)).size === 1);
await check("role first", () => chunks[0].choices[0].delta.role === "assistant");
await check("usage last", () => chunks.at(-1).usage.completion_tokens === 5);
await check("usage chunk has no choices", () => chunks.at(-1).choices.length === 0);
await check("other usages are null", () => chunks.slice(0, -1).every((c) => c.usage === null));
await check("streamed text", () =>
  chunks.map((c) => c.choices[0]?.delta?.content ?? "").join("") === WHOLE);
await check("one finish reason", () =>
  chunks.filter((c) => c.choices[0]?.finish_reason === "stop").length === 1);
await check("stream helper", async () =>
  (await client.chat.completions.stream({ model, messages }).finalContent()) === WHOLE);
await check("several answers", async () => (await chat({ n: 3 })).choices.length === 3);
await check("several streamed answers", async () =>
  new Set((await chunksOf(await chat({ n: 3, stream: true }))).map((c) => c.choices[0].index))
    .size === 3);
await check("log probabilities", async () => {
  const answer = await chat({ logprobs: true, top_logprobs: 2 });
  const content = answer.choices[0].logprobs.content;
  return content.length === 5 && content.every((entry) => entry.top_logprobs.length === 2);
});
await check("tools accepted", async () =>
  (await chat({ tools: [{ type: "function", function: { name: "tide" } }] })).choices.length === 1);
await check("text format accepted", async () =>
  (await chat({ response_format: { type: "text" } })).choices.length === 1);
await check("json format accepted", async () =>
  (await chat({ response_format: { type: "json_object" } })).choices.length === 1);
const completion = await text({ logprobs: 1 });
await check("completion text", () => completion.choices[0].text === WHOLE);
await check("completion object", () => completion.object === "text_completion");
await check("completion offsets", () => completion.choices[0].logprobs.text_offset[1] === 3);
await check("completion stream", async () =>
  (await chunksOf(await text({ stream: true }))).map((c) => c.choices[0].text).join("") === WHOLE);
await check("echo", async () => (await text({ echo: true })).choices[0].text === `go${WHOLE}`);
await check("prompt list", async () =>
  (await text({ prompt: ["a", "b", "c"] })).choices.length === 3);
await check("token ids", async () => (await text({ prompt: [5, 6] })).choices.length === 1);
await check("lists of token ids", async () =>
  (await text({ prompt: [[5], [6]] })).choices.length === 2);
await check("leaving a stream", async () => {
  for await (const chunk of await chat({ stream: true })) return chunk.choices.length === 1;
  return false;
});
const models = await client.models.list();
await check("models", () => models.data[0].id === model && models.data[0].object === "model");
await check("one model", async () => (await client.models.retrieve(model)).id === model);
await check("unknown model", () => refused(OpenAI.NotFoundError, { model: "gpt-9" }));
const wrong = {
  n: 17, temperature: 3, top_p: 0, top_logprobs: 21, stop: ["a", "b", "c", "d", "e"],
  logit_bias: { five: 1 }, max_tokens: 0, presence_penalty: 3, messages: [],
  response_format: { type: "json_schema" }, tool_choice: "required",
};
for (const [name, value] of Object.entries(wrong)) {
  await check(`wrong ${name}`, () => refused(OpenAI.BadRequestError, { [name]: value }));
}
process.exit(failed === 0 ? 0 : 1);
