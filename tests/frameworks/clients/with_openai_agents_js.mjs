import { Agent, run as runAgent, tool } from "@openai/agents";
import { z } from "zod";
import { PNG_URL, collect, getWeather, run } from "./scenarios.mjs";

// The model is that of OPENAI_DEFAULT_MODEL.
const City = z.object({ name: z.string(), population: z.number() });
const answer = async (prompt, more) => (await runAgent(new Agent({ name: "assistant", ...more }), prompt)).finalOutput;

run({
  ask: answer,
  streamed: async (prompt) => {
    const told = await runAgent(new Agent({ name: "assistant" }), prompt, { stream: true });
    return collect(told.toTextStream());
  },
  tools: (prompt) => {
    const parameters = z.object({ city: z.string() });
    const weather = tool({ name: "get_weather", description: "Tell the weather.", parameters, execute: async (given) => getWeather(given) });
    return answer(prompt, { tools: [weather] });
  },
  structured: (prompt) => answer(prompt, { outputType: City }),
  image: (text) => answer([{ role: "user", content: [{ type: "input_text", text }, { type: "input_image", image: PNG_URL }] }]),
});
