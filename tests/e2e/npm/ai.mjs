// npm's ai package (Vercel's AI SDK) over an OpenAI-compatible provider: text, stream, a structured object.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "velo", baseURL: `${process.env.VELO_URL}/v1`, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider(process.env.VELO_MODEL);
const ask = { model, prompt: "Say hello.", maxOutputTokens: 12, temperature: 0 };

const whole = await generateText(ask);
assert.ok(whole.text.trim());
assert.ok(whole.usage.outputTokens <= 12);

const streamed = streamText(ask);
let text = "";
for await (const piece of streamed.textStream) text += piece;
assert.equal(text, whole.text);

const { object } = await generateObject({ model, schema: z.object({ name: z.string() }), prompt: "Name the capital of France.", temperature: 0 });
assert.equal(typeof object.name, "string");
console.log("ok");
