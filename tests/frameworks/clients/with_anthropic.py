from anthropic import Anthropic, beta_tool
from pydantic import BaseModel
from scenarios import MODEL, PNG, get_weather, run

client = Anthropic()


class City(BaseModel):
    name: str
    population: int


def ask(content):
    messages = [{"role": "user", "content": content}]
    return client.messages.create(model=MODEL, max_tokens=1024, messages=messages).content[0].text


def streamed(prompt):
    with client.messages.stream(model=MODEL, max_tokens=64000, messages=[{"role": "user", "content": prompt}]) as told:
        return list(told.text_stream)


def tools(prompt):
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=1024,
        tools=[beta_tool(get_weather)],
        messages=[{"role": "user", "content": prompt}],
    )
    return runner.until_done().content[0].text


def structured(prompt):
    messages = [{"role": "user", "content": prompt}]
    answer = client.messages.parse(model=MODEL, max_tokens=1024, messages=messages, output_format=City)
    return answer.parsed_output.model_dump()


def image(prompt):
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    return ask([{"type": "image", "source": source}, {"type": "text", "text": prompt}])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
