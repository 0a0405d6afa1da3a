from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool
from pydantic import BaseModel
from scenarios import API, MODEL, PNG_URL, get_weather, run

NAME = f"anthropic/{MODEL}" if API == "messages" else f"openai/{MODEL}"


class City(BaseModel):
    name: str
    population: int


def crew(prompt, *, stream=False, tools=(), **task):
    llm = LLM(model=NAME, stream=stream)
    agent = Agent(role="assistant", goal="answer", backstory="You answer questions.", llm=llm, tools=list(tools))
    task = Task(description=prompt, expected_output="the answer", agent=agent, **task)
    return Crew(agents=[agent], tasks=[task], stream=stream)


async def ask(prompt):
    return (await crew(prompt).kickoff_async()).raw


async def streamed(prompt):
    told = await crew(prompt, stream=True).kickoff_async()
    return [chunk.content async for chunk in told]


async def tools(prompt):
    return (await crew(prompt, tools=[tool("get_weather")(get_weather)]).kickoff_async()).raw


async def structured(prompt):
    return (await crew(prompt, output_pydantic=City).kickoff_async()).pydantic.model_dump()


async def image(prompt):
    content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": PNG_URL}}]
    return LLM(model=NAME).call([{"role": "user", "content": content}])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
