// npm's openai package: chat, stream, a forced tool call, embeddings, an error.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.VELO_URL}/v1`, apiKey: "none", maxRetries: 0 });
const ask = { model: process.env.VELO_MODEL, messages: [{ role: "user", content: "Say hello." }], max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(ask);
assert.ok(whole.choices[0].message.content.trim());

let text = "";
for await (const part of await client.chat.completions.create({ ...ask, stream: true })) text += part.choices[0].delta.content ?? "";
assert.equal(text, whole.choices[0].message.content);

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const called = await client.chat.completions.create({
  ...ask, max_tokens: 100, tools: [{ type: "function", function: { name: "get_weather", parameters } }], tool_choice: "required",
});
assert.equal(typeof JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city, "string");

const vectors = await client.embeddings.create({ model: ask.model, input: "a cat" });
assert.ok(vectors.data[0].embedding.length > 100);

await assert.rejects(client.chat.completions.create({ ...ask, messages: [] }), { status: 400 });
console.log("ok");
