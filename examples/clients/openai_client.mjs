// OpenAI's client for Node: one question, whole and streamed; exit code 1 if the two differ.
//
//     node examples/clients/openai_client.mjs http://127.0.0.1:8000/v1 tide-tiny
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const asked = {
  model,
  messages: [{ role: "user", content: "What does str.split do?" }],
  temperature: 0,
};
const whole = await client.chat.completions.create(asked);
const answer = whole.choices[0].message.content;
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
}
console.log(answer);
if (!answer || streamed !== answer) {
  console.error("the streamed answer differs");
  process.exitCode = 1;
}
