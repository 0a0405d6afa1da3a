from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run

model = ChatAnthropic(model=MODEL) if API == "messages" else ChatOpenAI(model=MODEL)
forecast = tool(get_weather)


class City(BaseModel):
    name: str
    population: int


def graph(model, tools=()):
    async def answer(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    built = StateGraph(MessagesState)
    built.add_node("answer", answer)
    built.add_edge(START, "answer")
    if tools:
        built.add_node("tools", ToolNode(tools))
        built.add_conditional_edges("answer", tools_condition)
        built.add_edge("tools", "answer")
    else:
        built.add_edge("answer", END)
    return built.compile()


async def ask(content):
    said = await graph(model).ainvoke({"messages": [HumanMessage(content)]})
    return said["messages"][-1].text


async def streamed(prompt):
    chunks = graph(model).astream({"messages": [HumanMessage(prompt)]}, stream_mode="messages")
    return [chunk.text async for chunk, _ in chunks]


async def tools(prompt):
    said = await graph(model.bind_tools([forecast]), [forecast]).ainvoke({"messages": [HumanMessage(prompt)]})
    return said["messages"][-1].text


async def structured(prompt):
    class State(MessagesState):
        city: City

    async def answer(state):
        return {"city": await model.with_structured_output(City).ainvoke(state["messages"])}

    built = StateGraph(State)
    built.add_node("answer", answer)
    built.add_edge(START, "answer")
    said = await built.compile().ainvoke({"messages": [HumanMessage(prompt)]})
    return said["city"].model_dump()


async def image(prompt):
    return await ask([{"type": "text", "text": prompt}, {"type": "image", "base64": PNG, "mime_type": "image/png"}])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
