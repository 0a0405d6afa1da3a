import { ChatAnthropic } from "@langchain/anthropic";
import { HumanMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { Annotation, END, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import { ToolNode, toolsCondition } from "@langchain/langgraph/prebuilt";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import { API, MODEL, PNG, collect, getWeather, run } from "./scenarios.mjs";

const model = API === "messages" ? new ChatAnthropic({ model: MODEL }) : new ChatOpenAI({ model: MODEL });
const City = z.object({ name: z.string(), population: z.number() });
const weather = tool(async (given) => getWeather(given), {
  name: "get_weather",
  description: "Tell the weather.",
  schema: z.object({ city: z.string() }),
});

const answering = (llm) => async (state) => ({ messages: [await llm.invoke(state.messages)] });
const plain = new StateGraph(MessagesAnnotation).addNode("answer", answering(model)).addEdge(START, "answer").addEdge("answer", END).compile();
const given = (content) => ({ messages: [new HumanMessage({ content })] });
const ask = async (content) => (await plain.invoke(given(content))).messages.at(-1).text;

run({
  ask,
  streamed: async (prompt) => collect(await plain.stream(given(prompt), { streamMode: "messages" }), ([chunk]) => chunk.text),
  tools: async (prompt) => {
    const graph = new StateGraph(MessagesAnnotation)
      .addNode("answer", answering(model.bindTools([weather])))
      .addNode("tools", new ToolNode([weather]))
      .addEdge(START, "answer")
      .addConditionalEdges("answer", toolsCondition)
      .addEdge("tools", "answer")
      .compile();
    return (await graph.invoke(given(prompt))).messages.at(-1).text;
  },
  structured: async (prompt) => {
    const State = Annotation.Root({ ...MessagesAnnotation.spec, city: Annotation() });
    const describe = async (state) => ({ city: await model.withStructuredOutput(City).invoke(state.messages) });
    const graph = new StateGraph(State).addNode("describe", describe).addEdge(START, "describe").addEdge("describe", END).compile();
    return (await graph.invoke(given(prompt))).city;
  },
  image: (text) => ask([{ type: "text", text }, { type: "image", source_type: "base64", data: PNG, mime_type: "image/png" }]),
});
