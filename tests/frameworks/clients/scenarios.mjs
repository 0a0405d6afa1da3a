// What the clients are asked to do. Runs the scenarios that the command line names, and prints a line of JSON each.
// node with_NAME.mjs API SCENARIO ...

const [, , API, ...names] = process.argv;
const MODEL = process.env.ALMONER_MODEL;

const HELLO = "Say hello.";
const WEATHER = "What is the weather in Paris? Use the tool.";
const CITY = "Describe the city of Paris.";
const PICTURE = "What is in this picture?";
const PAUSE = "Say hello after a pause.";
const TOGETHER = "Say hello together.";
const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGP4z8CAB+GTG8HSALfKY52fTcuYAAAAAElFTkSuQmCC";
const PNG_URL = `data:image/png;base64,${PNG}`;
const AT_ONCE = 16;

async function collect(stream, piece = (each) => each) {
  const pieces = [];
  for await (const each of stream) pieces.push(piece(each));
  return pieces;
}

const getWeather = ({ city }) => `It is sunny, 21 degrees in ${city}.`;

async function run({ ask, streamed, tools, structured, image, parallel }) {
  const known = {
    plain: () => ask(HELLO),
    streamed: () => streamed(HELLO),
    tools: () => tools(WEATHER),
    structured: () => structured(CITY),
    image: () => image(PICTURE),
    limited: () => ask(PAUSE),
    spent: () => ask(HELLO),
    parallel: parallel ?? (() => Promise.all(Array.from({ length: AT_ONCE }, () => ask(TOGETHER)))),
  };
  for (const name of names) {
    const began = Date.now();
    let line;
    try {
      line = { result: await known[name]() };
    } catch (error) {
      line = { error: `${error?.name}: ${error?.message}` };
      if (name === "spent") process.exitCode = 1;
    }
    console.log("\n" + JSON.stringify({ scenario: name, seconds: (Date.now() - began) / 1000, ...line }));
    if (process.exitCode) return;
  }
}

export { API, MODEL, PNG, PNG_URL, collect, getWeather, run };
