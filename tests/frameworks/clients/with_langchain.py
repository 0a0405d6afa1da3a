from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain.messages import HumanMessage
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run

model = init_chat_model(MODEL, model_provider="anthropic" if API == "messages" else "openai")


class City(BaseModel):
    name: str
    population: int


async def ask(prompt):
    return (await model.ainvoke(prompt)).text


async def streamed(prompt):
    return [chunk.text async for chunk in model.astream(prompt)]


async def tools(prompt):
    agent = create_agent(model, tools=[get_weather])
    return (await agent.ainvoke({"messages": [HumanMessage(prompt)]}))["messages"][-1].text


async def structured(prompt):
    return (await model.with_structured_output(City).ainvoke(prompt)).model_dump()


async def image(prompt):
    picture = {"type": "image", "base64": PNG, "mime_type": "image/png"}
    return (await model.ainvoke([HumanMessage(content=[{"type": "text", "text": prompt}, picture])])).text


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
