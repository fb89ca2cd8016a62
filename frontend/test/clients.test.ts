// Tests clients that are generated from /openapi.json of the real verify function behind the stage `prod`. A client gets
// only the URL of the description and credentials, and has to find the API by the `servers` in it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFile, mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { type Api, type ApiProgram, FRONTEND, startApi } from "./api_program.js";

const SOURCES = join(FRONTEND, "test/clients");
/** Below the folder with node_modules, so that the generated TypeScript finds its imports. */
const GENERATED = join(FRONTEND, "dist/clients");
const DESCRIPTION = join(GENERATED, "openapi.json");
const NODE_TOOLS = join(FRONTEND, "node_modules/.bin");
const PYTHON_TOOLS = join(FRONTEND, ".venv/bin");

/** What a client prints for one request: the status, and the parts of the body that it found in its types. */
interface Outcome {
  status: number;
  code?: string;
  message?: string;
  full_name?: string | null;
  email?: string | null;
}

/** Runs a program in the folder of the generated clients and returns its standard output. */
function run(program: string, args: string[], input = "", env: Record<string, string> = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const path = `${PYTHON_TOOLS}:${process.env["PATH"] ?? ""}`;
    const options = { cwd: GENERATED, env: { ...process.env, PATH: path, ...env }, maxBuffer: 1 << 24 };
    const child = execFile(program, args, options, (error, stdout, stderr) => {
      if (error === null) {
        resolve(stdout);
      } else {
        reject(new Error(`${program} failed: ${error.message}\n${stdout}${stderr}`));
      }
    });
    child.stdin?.end(input);
  });
}

describe("clients generated from the description, behind a stage", { timeout: 120_000 }, () => {
  let program: ApiProgram;
  let api: Api;
  let requests: string;

  before(async () => {
    program = await startApi("http://localhost:5555");
    api = program.api;
    assert.match(api.stage_root, /\/prod$/);
    const url = `${api.stage_root}/openapi.json`;
    await rm(GENERATED, { recursive: true, force: true });
    await mkdir(GENERATED, { recursive: true });
    await writeFile(DESCRIPTION, await (await fetch(url)).text());
    requests = JSON.stringify({
      description: url,
      throttled: `${api.throttled_root}/openapi.json`,
      api_key: api.api_key,
      member: api.member.uuid,
      stranger: api.stranger,
      failing: api.failing,
    });
  });

  after(async () => {
    await program?.stop();
  });

  /** Asserts that a client understood every response. */
  function assertOutcomes(printed: string): void {
    const { full_name, email } = api.member;
    const expected: Record<string, Outcome> = {
      member: { status: 200, full_name, email },
      stranger: { status: 404, code: "member_not_found" },
      without_key: { status: 401, code: "api_key_missing" },
      failing: { status: 503, code: "novi_error" },
      // API Gateway's own response, which has no code.
      throttled: { status: 429, message: "Too Many Requests" },
      health: { status: 200, message: "ok" },
    };
    assert.deepEqual(JSON.parse(printed), expected);
  }

  test("the description has no errors and no warnings", async () => {
    const env = { REDOCLY_TELEMETRY: "off", REDOCLY_SUPPRESS_UPDATE_NOTICE: "true" };
    // The recommended rules are the default.
    const printed = await run(join(NODE_TOOLS, "redocly"), ["lint", DESCRIPTION, "--format=json"], "", env);
    const report = JSON.parse(printed) as { totals: object; problems: object[] };
    assert.deepEqual(report.problems, []);
    assert.deepEqual(report.totals, { errors: 0, warnings: 0, ignored: 0 });
  });

  test("openapi-typescript", async () => {
    await run(join(NODE_TOOLS, "openapi-typescript"), [DESCRIPTION, "--output", "api.ts"]);
    await copyFile(join(SOURCES, "client.ts"), join(GENERATED, "client.ts"));
    const config = {
      extends: "../../test/tsconfig.json",
      compilerOptions: { rootDir: ".", outDir: "." },
      files: ["client.ts"],
    };
    await writeFile(join(GENERATED, "tsconfig.json"), JSON.stringify(config));
    await run(join(NODE_TOOLS, "tsc"), ["--project", "."]);
    assertOutcomes(await run(process.execPath, ["client.js"], requests));
  });

  test("openapi-python-client", async () => {
    const args = ["generate", "--path", DESCRIPTION, "--meta", "none", "--output-path", "novi_bridge", "--fail-on-warning"];
    await run(join(PYTHON_TOOLS, "openapi-python-client"), args);
    assertOutcomes(
      await run(join(PYTHON_TOOLS, "python"), [join(SOURCES, "client.py")], requests, { PYTHONPATH: GENERATED }),
    );
  });
});
