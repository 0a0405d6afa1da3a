import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { PNG, run } from "./scenarios.mjs";

async function claude(prompt, ...more) {
  const running = promisify(execFile)("claude", ["-p", prompt, ...more], { maxBuffer: 2 ** 26 });
  running.child.stdin.end();
  try {
    return (await running).stdout;
  } catch (error) {
    throw new Error(error.stdout + error.stderr);
  }
}

const City = { type: "object", properties: { name: { type: "string" }, population: { type: "integer" } }, required: ["name", "population"] };

run({
  ask: (prompt) => claude(prompt),
  streamed: async (prompt) => {
    const lines = await claude(prompt, "--output-format", "stream-json", "--include-partial-messages", "--verbose");
    const told = lines.trim().split("\n").map((line) => JSON.parse(line));
    return told.filter((line) => line.event?.delta?.type === "text_delta").map((line) => line.event.delta.text);
  },
  tools: async (prompt) => {
    await writeFile("weather.txt", "It is sunny, 21 degrees in Paris.");
    return claude(`${prompt} It is in the file ${process.cwd()}/weather.txt`, "--allowedTools", "Read");
  },
  structured: async (prompt) => JSON.parse(await claude(prompt, "--json-schema", JSON.stringify(City), "--output-format", "json")).structured_output,
  image: async (prompt) => {
    await writeFile("picture.png", Buffer.from(PNG, "base64"));
    return claude(`${prompt} It is in the file ${process.cwd()}/picture.png`, "--allowedTools", "Read");
  },
});
