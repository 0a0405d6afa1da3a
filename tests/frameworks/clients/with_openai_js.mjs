import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { API, MODEL, PNG_URL, collect, getWeather, run } from "./scenarios.mjs";

const client = new OpenAI();
const model = MODEL;
const City = z.object({ name: z.string(), population: z.number() });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

const complete = async (messages, more) => (await client.chat.completions.create({ model, messages, ...more })).choices[0].message;
const user = (content) => [{ role: "user", content }];

const chat = {
  ask: async (content) => (await complete(user(content))).content,
  streamed: async (prompt) => {
    const stream = await client.chat.completions.create({ model, messages: user(prompt), stream: true });
    return collect(stream, (chunk) => chunk.choices[0]?.delta.content ?? "");
  },
  tools: async (prompt) => {
    const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
    const messages = user(prompt);
    const first = await complete(messages, { tools });
    messages.push(first);
    for (const call of first.tool_calls) {
      messages.push({ role: "tool", tool_call_id: call.id, content: getWeather(JSON.parse(call.function.arguments)) });
    }
    return (await complete(messages, { tools })).content;
  },
  structured: async (prompt) => {
    const response_format = zodResponseFormat(City, "city");
    return (await client.chat.completions.parse({ model, messages: user(prompt), response_format })).choices[0].message.parsed;
  },
  image: (prompt) => chat.ask([{ type: "text", text: prompt }, { type: "image_url", image_url: { url: PNG_URL } }]),
};

const responses = {
  ask: async (input) => (await client.responses.create({ model, input })).output_text,
  streamed: async (input) => {
    const events = await collect(await client.responses.create({ model, input, stream: true }));
    return events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  },
  tools: async (prompt) => {
    const tools = [{ type: "function", name: "get_weather", parameters, strict: false }];
    const input = user(prompt);
    const first = await client.responses.create({ model, input, tools });
    for (const call of first.output) {
      const output = getWeather(JSON.parse(call.arguments));
      input.push(call, { type: "function_call_output", call_id: call.call_id, output });
    }
    return (await client.responses.create({ model, input, tools })).output_text;
  },
  structured: async (input) => {
    return (await client.responses.parse({ model, input, text: { format: zodTextFormat(City, "city") } })).output_parsed;
  },
  image: (text) => responses.ask(user([{ type: "input_text", text }, { type: "input_image", image_url: PNG_URL, detail: "auto" }])),
};

run(API === "chat" ? chat : responses);
