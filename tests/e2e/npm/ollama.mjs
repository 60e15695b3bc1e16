// npm's ollama package: chat, stream, generate, embed, list.
import assert from "node:assert/strict";
import { Ollama } from "ollama";

const client = new Ollama({ host: process.env.VELO_URL });
const model = process.env.VELO_MODEL;
const options = { temperature: 0, num_predict: 12 };
const messages = [{ role: "user", content: "Say hello." }];

const whole = await client.chat({ model, messages, options });
assert.ok(whole.message.content.trim());

let text = "";
for await (const part of await client.chat({ model, messages, options, stream: true })) text += part.message.content;
assert.equal(text, whole.message.content);

assert.ok((await client.generate({ model, prompt: "Say hello.", options })).response.trim());
assert.ok((await client.embed({ model, input: "a cat" })).embeddings[0].length > 100);
assert.ok((await client.list()).models.some((listed) => listed.name.startsWith(model)));
console.log("ok");
