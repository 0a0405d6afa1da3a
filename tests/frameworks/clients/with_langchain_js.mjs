import { HumanMessage, createAgent, initChatModel, tool } from "langchain";
import { z } from "zod";
import { API, MODEL, PNG, collect, getWeather, run } from "./scenarios.mjs";

const model = await initChatModel(MODEL, { modelProvider: API === "messages" ? "anthropic" : "openai" });
const City = z.object({ name: z.string(), population: z.number() });

run({
  ask: async (prompt) => (await model.invoke(prompt)).text,
  streamed: async (prompt) => collect(await model.stream(prompt), (chunk) => chunk.text),
  tools: async (prompt) => {
    const schema = z.object({ city: z.string() });
    const weather = tool(async (given) => getWeather(given), { name: "get_weather", description: "Tell the weather.", schema });
    const said = await createAgent({ model, tools: [weather] }).invoke({ messages: [new HumanMessage(prompt)] });
    return said.messages.at(-1).text;
  },
  structured: (prompt) => model.withStructuredOutput(City).invoke(prompt),
  image: async (text) => {
    const content = [{ type: "text", text }, { type: "image", source_type: "base64", data: PNG, mime_type: "image/png" }];
    return (await model.invoke([new HumanMessage({ content })])).text;
  },
});
