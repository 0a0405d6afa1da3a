import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { MODEL, PNG, collect, getWeather, run } from "./scenarios.mjs";

const client = new Anthropic();
const model = MODEL;
const City = z.object({ name: z.string(), population: z.number() });
const user = (content) => [{ role: "user", content }];

const ask = async (content) => (await client.messages.create({ model, max_tokens: 1024, messages: user(content) })).content[0].text;

run({
  ask,
  streamed: async (prompt) => {
    const events = await collect(client.messages.stream({ model, max_tokens: 64000, messages: user(prompt) }));
    return events.filter((event) => event.delta?.type === "text_delta").map((event) => event.delta.text);
  },
  tools: async (prompt) => {
    const inputSchema = z.object({ city: z.string() });
    const weather = betaZodTool({ name: "get_weather", description: "Tell the weather.", inputSchema, run: async (given) => getWeather(given) });
    const said = await client.beta.messages.toolRunner({ model, max_tokens: 1024, messages: user(prompt), tools: [weather] });
    return said.content[0].text;
  },
  structured: async (prompt) => {
    const output_config = { format: zodOutputFormat(City) };
    return (await client.messages.parse({ model, max_tokens: 1024, messages: user(prompt), output_config })).parsed_output;
  },
  image: (text) => ask([{ type: "image", source: { type: "base64", media_type: "image/png", data: PNG } }, { type: "text", text }]),
});
