import json

from scenarios import API, MODEL, PNG_URL, get_weather, run

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI()


class City(BaseModel):
    name: str
    population: int


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Chat:
    def ask(self, content):
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content

    def streamed(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        chunks = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]

    def tools(self, prompt):
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
        messages = [{"role": "user", "content": prompt}]
        first = client.chat.completions.create(model=MODEL, messages=messages, tools=tools).choices[0].message
        messages.append(first)
        for call in first.tool_calls:
            said = get_weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": said})
        return client.chat.completions.create(model=MODEL, messages=messages, tools=tools).choices[0].message.content

    def structured(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.parse(model=MODEL, messages=messages, response_format=City)
        return answer.choices[0].message.parsed.model_dump()

    def image(self, prompt):
        return self.ask([{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": PNG_URL}}])


class Responses:
    def ask(self, prompt):
        return client.responses.create(model=MODEL, input=prompt).output_text

    def streamed(self, prompt):
        events = client.responses.create(model=MODEL, input=prompt, stream=True)
        return [event.delta for event in events if event.type == "response.output_text.delta"]

    def tools(self, prompt):
        tools = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}]
        given = [{"role": "user", "content": prompt}]
        first = client.responses.create(model=MODEL, input=given, tools=tools)
        given += first.output
        for call in first.output:
            said = get_weather(**json.loads(call.arguments))
            given.append({"type": "function_call_output", "call_id": call.call_id, "output": said})
        return client.responses.create(model=MODEL, input=given, tools=tools).output_text

    def structured(self, prompt):
        return client.responses.parse(model=MODEL, input=prompt, text_format=City).output_parsed.model_dump()

    def image(self, prompt):
        content = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": PNG_URL}]
        return self.ask([{"role": "user", "content": content}])


api = Chat() if API == "chat" else Responses()
run(api.ask, streamed=api.streamed, tools=api.tools, structured=api.structured, image=api.image)
