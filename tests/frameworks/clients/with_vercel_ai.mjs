import { anthropic } from "@ai-sdk/anthropic";
import { openai } from "@ai-sdk/openai";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { API, MODEL, PNG, collect, getWeather, run } from "./scenarios.mjs";

const model = { chat: () => openai.chat(MODEL), responses: () => openai(MODEL), messages: () => anthropic(MODEL) }[API]();
const City = z.object({ name: z.string(), population: z.number() });

run({
  ask: async (prompt) => (await generateText({ model, prompt })).text,
  streamed: async (prompt) => collect(streamText({ model, prompt }).textStream),
  tools: async (prompt) => {
    const get_weather = tool({ inputSchema: z.object({ city: z.string() }), execute: async (given) => getWeather(given) });
    return (await generateText({ model, prompt, tools: { get_weather }, stopWhen: stepCountIs(5) })).text;
  },
  structured: async (prompt) => (await generateText({ model, prompt, output: Output.object({ schema: City }) })).output,
  image: async (prompt) => {
    const content = [{ type: "text", text: prompt }, { type: "image", image: PNG, mediaType: "image/png" }];
    return (await generateText({ model, messages: [{ role: "user", content }] })).text;
  },
});
