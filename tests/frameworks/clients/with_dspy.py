import dspy
from pydantic import BaseModel
from scenarios import API, MODEL, PNG_URL, get_weather, run

dspy.configure(lm=dspy.LM(f"{'anthropic' if API == 'messages' else 'openai'}/{MODEL}", cache=False))


class City(BaseModel):
    name: str
    population: int


async def ask(prompt):
    return (await dspy.Predict("question -> answer").acall(question=prompt)).answer


async def streamed(prompt):
    predict = dspy.streamify(
        dspy.Predict("question -> answer"),
        stream_listeners=[dspy.streaming.StreamListener(signature_field_name="answer")],
    )
    told = [piece async for piece in predict(question=prompt)]
    return [piece.chunk for piece in told if isinstance(piece, dspy.streaming.StreamResponse)]


async def tools(prompt):
    return (await dspy.ReAct("question -> answer", tools=[get_weather]).acall(question=prompt)).answer


async def structured(prompt):
    signature = dspy.Signature("question -> city: City", custom_types={"City": City})
    return (await dspy.Predict(signature).acall(question=prompt)).city.model_dump()


async def image(prompt):
    signature = dspy.Signature("question, picture: dspy.Image -> answer")
    return (await dspy.Predict(signature).acall(question=prompt, picture=dspy.Image(url=PNG_URL))).answer


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
