import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { MODEL, PNG, run } from "./scenarios.mjs";

// Codex reads its address from its configuration alone; this is that of docs/frameworks.md, on the command line.
const settings = [
  'model_provider="almoner"',
  'model_providers.almoner.name="Almoner"',
  `model_providers.almoner.base_url="${process.env.OPENAI_BASE_URL}"`,
  'model_providers.almoner.env_key="OPENAI_API_KEY"',
  'model_providers.almoner.wire_api="responses"',
  'web_search="disabled"',
  "analytics.enabled=false",
  "features.plugins=false",
].flatMap((setting) => ["-c", setting]);
let count = 0;

async function codex(prompt, ...more) {
  const last = `last-${count++}.txt`;
  const fixed = ["exec", "--skip-git-repo-check", "-m", MODEL, "-o", last, ...settings];
  const running = promisify(execFile)("codex", [...fixed, ...more, "--", prompt], { maxBuffer: 2 ** 26 });
  running.child.stdin.end();
  try {
    await running;
  } catch (error) {
    throw new Error(error.stdout + error.stderr);
  }
  return readFile(last, "utf8");
}

const City = {
  type: "object",
  properties: { name: { type: "string" }, population: { type: "integer" } },
  required: ["name", "population"],
  additionalProperties: false,
};

run({
  ask: (prompt) => codex(prompt),
  tools: async (prompt) => {
    await writeFile("weather.txt", "It is sunny, 21 degrees in Paris.");
    return codex(`${prompt} It is in the file ${process.cwd()}/weather.txt`, "--dangerously-bypass-approvals-and-sandbox");
  },
  structured: async (prompt) => {
    await writeFile("city.json", JSON.stringify(City));
    return JSON.parse(await codex(prompt, "--output-schema", "city.json"));
  },
  image: async (prompt) => {
    await writeFile("picture.png", Buffer.from(PNG, "base64"));
    return codex(prompt, "--image", "picture.png");
  },
});
