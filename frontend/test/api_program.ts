// Starts frontend_api, the real verify function with a simulated Novi.
// FRONTEND_API overrides the path of the program.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { access, constants } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The folder `frontend`. */
export const FRONTEND = fileURLToPath(new URL("../..", import.meta.url));
const PROGRAM = process.env["FRONTEND_API"] ?? join(FRONTEND, "../target/debug/frontend_api");

/** The JSON that frontend_api prints. */
export interface Api {
  api_root: string;
  /** The same API behind a stage. */
  stage_root: string;
  /** The same, where the gateway itself rejects every request. */
  throttled_root: string;
  api_key: string;
  token: string;
  member: { uuid: string; full_name: string; email: string };
  stranger: string;
  failing: string;
  blocked: string;
  limited: { api_root: string; api_key: string; uuid: string; retry_after_seconds: number };
}

/** A running frontend_api. */
export interface ApiProgram {
  api: Api;
  /** Stops the program. It searches its log for private data, and the promise is rejected if it finds any. */
  stop(): Promise<void>;
}

/** Starts frontend_api, open to pages of this origin. */
export async function startApi(origin: string): Promise<ApiProgram> {
  await access(PROGRAM, constants.X_OK).catch(() =>
    assert.fail(
      `${PROGRAM} is not executable. Build it with \`cargo build --workspace --bins\`, or set FRONTEND_API to its path.`,
    ),
  );
  const program = spawn(PROGRAM, [origin], { stdio: ["pipe", "pipe", "inherit"] });
  const failed = once(program, "error").then(([error]) => Promise.reject(error));
  const ended = once(program, "exit").then(([code]) => Promise.reject(new Error(`${PROGRAM} exited with ${code}`)));
  ended.catch(() => undefined);
  failed.catch(() => undefined);
  const line = once(createInterface({ input: program.stdout }), "line");
  const api = JSON.parse((await Promise.race([line, failed, ended]))[0] as string) as Api;
  return {
    api,
    async stop() {
      if (program.exitCode === null && program.signalCode === null) {
        const exit = once(program, "exit");
        program.stdin.end();
        assert.deepEqual(await exit, [0, null]);
      }
    },
  };
}
