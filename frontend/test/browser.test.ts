// The demo page in Chromium, before the real verify function: what a person
// sees in each state. FRONTEND_API and CHROMIUM say where the two programs are.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { access, constants, mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, type IncomingHttpHeaders, request, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { type BrowserContext, chromium, type Page } from "playwright-core";

import type { Verification } from "../verify_novi_uuid.js";

/** What frontend_api prints. */
interface Api {
  api_root: string;
  api_key: string;
  token: string;
  member: { uuid: string; full_name: string; email: string };
  stranger: string;
  failing: string;
  blocked: string;
  limited: { api_root: string; api_key: string; uuid: string; retry_after_seconds: number };
}

/** A request that the proxy has seen. */
interface Seen {
  method: string;
  path: string;
  headers: IncomingHttpHeaders;
}

const FRONTEND = fileURLToPath(new URL("../..", import.meta.url));
const PROGRAM = process.env["FRONTEND_API"] ?? join(FRONTEND, "../target/debug/frontend_api");
const CHROMIUM = process.env["CHROMIUM"] ?? "/usr/bin/chromium";
const FILES: Record<string, string> = {
  "/demo.html": "text/html; charset=utf-8",
  "/dist/demo.js": "text/javascript",
  "/dist/verify_novi_uuid.js": "text/javascript",
};
/** What no service error may say. */
const ABOUT_THE_PERSON = /not a member|denied|nobody|unknown/i;

const servers: Server[] = [];

/** Starts a server on a free port of loopback and gives its port. */
async function listen(handler: RequestListener): Promise<number> {
  const server = createServer(handler).listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

/** An API Gateway stage: passes on what is below /prod, and writes down what was asked. */
function stage(target: string, seen: Seen[]): RequestListener {
  return (incoming, outgoing) => {
    const { method = "", url = "", headers } = incoming;
    seen.push({ method, path: url, headers: incoming.headers });
    const passed = request(target + url.replace(/^\/prod\//, "/"), { method, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(outgoing);
    });
    passed.on("error", () => outgoing.destroy());
    incoming.pipe(passed);
  };
}

/** Answers the same to every page, preflight included. */
function always(status: number, type: string, body: string, more: Record<string, string> = {}): RequestListener {
  return ({ method }, response) => {
    response.writeHead(method === "OPTIONS" ? 204 : status, {
      "access-control-allow-origin": "*",
      "access-control-allow-headers": "*",
      "content-type": type,
      ...more,
    });
    response.end(method === "OPTIONS" ? undefined : body);
  };
}

describe("the page in a browser", { timeout: 120_000 }, () => {
  const seen: Seen[] = [];
  const printed: string[] = [];
  let program: ChildProcess | undefined;
  let api: Api;
  let profile: string | undefined;
  let browser: BrowserContext | undefined;
  let page: Page;
  /** The port of the page's own server. */
  let pages: number;
  /** The API as the page sees it, behind a stage. */
  let root: string;
  let limitedRoot: string;

  before(async () => {
    for (const [path, what] of [
      [PROGRAM, "cargo build --workspace --bins builds it, or FRONTEND_API says where it is"],
      [CHROMIUM, "install Chromium, or let CHROMIUM say where it is"],
    ] as const) {
      await access(path, constants.X_OK).catch(() => assert.fail(`${path} cannot be run; ${what}`));
    }
    pages = await listen((incoming, outgoing) => {
      const path = incoming.url ?? "";
      const type = FILES[path];
      if (type === undefined) {
        outgoing.writeHead(404).end();
        return;
      }
      readFile(join(FRONTEND, path)).then(
        // A cookie of the same host, which the API must not be sent.
        (file) => outgoing.writeHead(200, { "content-type": type, "set-cookie": "session=secret" }).end(file),
        () => outgoing.writeHead(404).end(),
      );
    });

    program = spawn(PROGRAM, [`http://localhost:${pages}`], { stdio: ["pipe", "pipe", "inherit"] });
    const failed = once(program, "error").then(([error]) => Promise.reject(error));
    const ended = once(program, "exit").then(([code]) => Promise.reject(new Error(`${PROGRAM} ended with ${code}`)));
    ended.catch(() => undefined);
    failed.catch(() => undefined);
    const line = once(createInterface({ input: program.stdout! }), "line");
    api = JSON.parse((await Promise.race([line, failed, ended]))[0] as string) as Api;
    root = `http://127.0.0.1:${await listen(stage(api.api_root, seen))}/prod`;
    limitedRoot = `http://127.0.0.1:${await listen(stage(api.limited.api_root, seen))}/prod`;

    profile = await mkdtemp(join(tmpdir(), "novi-bridge-chromium-"));
    browser = await chromium.launchPersistentContext(profile, {
      executablePath: CHROMIUM,
      headless: true,
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
      ],
    });
    page = await browser.newPage();
    page.on("console", (message) => printed.push(message.text()));
    page.on("pageerror", (error) => printed.push(String(error)));
  });

  after(async () => {
    await browser?.close();
    if (profile !== undefined) {
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    }
    if (program !== undefined && program.exitCode === null && program.signalCode === null) {
      const exit = once(program, "exit");
      program.stdin?.end();
      // It looks through its log for what is private, and fails where it finds any.
      assert.deepEqual(await exit, [0, null]);
    }
    for (const server of servers) {
      server.closeAllConnections();
      server.close();
    }
  });

  /** Opens the page anew and gives what it says of a uuid. */
  async function shown(
    uuid: string,
    { apiRoot = root, key = api.api_key, token = "", origin = `http://localhost:${pages}` } = {},
  ): Promise<{ outcome: string | null; text: string }> {
    const account: Record<string, string> = token === "" ? { account_id: "account-1" } : { token };
    const fields = new URLSearchParams({ api_root: apiRoot, api_key: key, ...account, uuid });
    await page.goto("about:blank");
    await page.goto(`${origin}/demo.html#${fields.toString()}`);
    const outcome = page.locator("#outcome[data-outcome]");
    await outcome.waitFor({ timeout: 20_000 });
    return { outcome: await outcome.getAttribute("data-outcome"), text: (await outcome.textContent()) ?? "" };
  }

  /** Asserts that the page says: a service error, and nothing about the person. */
  function assertServiceError(said: { outcome: string | null; text: string }, ends: RegExp): void {
    assert.equal(said.outcome, "service_error", said.text);
    assert.match(said.text, /^We cannot check your membership right now\. The problem is ours, not yours\. /);
    assert.match(said.text, ends);
    assert.doesNotMatch(said.text, ABOUT_THE_PERSON);
  }

  test("a member, by an account id: the browser asks for leave first", async () => {
    const { uuid, full_name, email } = api.member;
    seen.length = 0;
    assert.deepEqual(await shown(uuid), { outcome: "verified", text: `Verified: ${full_name}, ${email}.` });
    const path = `/prod/v3/action/idaa/novi_member/${uuid}`;
    assert.deepEqual(
      seen.map(({ method, path }) => [method, path]),
      [
        ["OPTIONS", path],
        ["GET", path],
      ],
    );
    const [preflight, get] = seen.map(({ headers }) => headers);
    assert.equal(preflight!["access-control-request-method"], "GET");
    assert.equal(preflight!["access-control-request-headers"], "x-account-id,x-api-key");
    assert.equal(get!["x-api-key"], api.api_key);
    assert.equal(get!["x-account-id"], "account-1");
    assert.equal(get!["origin"], `http://localhost:${pages}`);
    assert.deepEqual([get!.cookie, get!.referer, get!.authorization], [undefined, undefined, undefined]);
  });

  test("a member, by a token", async () => {
    seen.length = 0;
    // In upper case it is another address, so another preflight.
    const { outcome } = await shown(api.member.uuid.toUpperCase(), { token: api.token });
    assert.equal(outcome, "verified");
    assert.equal(seen[0]?.headers["access-control-request-headers"], "authorization,x-api-key");
    assert.equal(seen.at(-1)?.headers.authorization, `Bearer ${api.token}`);
    assert.equal(seen.at(-1)?.headers["x-account-id"], undefined);
  });

  test("no member", async () => {
    assert.deepEqual(await shown(api.stranger), {
      outcome: "denied",
      text: "Not a member: nobody is registered under this UUID.",
    });
  });

  test("a rate limit, with the seconds that Novi gave", async () => {
    const { api_key: key, uuid, retry_after_seconds: seconds } = api.limited;
    assert.deepEqual(await shown(uuid, { apiRoot: limitedRoot, key }), {
      outcome: "rate_limited",
      text: `Busy: many people are signing in. Please try again in ${seconds} seconds.`,
    });
  });

  test("an outage of Novi, and a CDN that blocks the service", async () => {
    assertServiceError(await shown(api.failing), /try again in 5 seconds\. \(503 novi_error\)$/);
    assertServiceError(await shown(api.blocked), /try again in 60 seconds\. \(503 novi_blocked\)$/);
  });

  test("a request that the API refuses", async () => {
    assertServiceError(await shown("no-uuid"), /later\. \(400 invalid_uuid\)$/);
    assertServiceError(await shown(api.stranger, { key: "wrong" }), /later\. \(401 api_key_invalid\)$/);
    assertServiceError(await shown(api.stranger, { token: "wrong" }), /later\. \(403 jwt_invalid\)$/);
  });

  test("404 that is no denial: a wrong path, API Gateway, a web server", async () => {
    const wrong = root.replace("/prod", "/wrong");
    assertServiceError(await shown(api.stranger, { apiRoot: wrong }), /later\. \(404 route_not_found\)$/);
    for (const handler of [
      always(404, "application/json", '{"message":"Not Found"}'),
      always(404, "text/html", "<h1>Not found</h1><p>member_not_found</p>"),
    ]) {
      const apiRoot = `http://127.0.0.1:${await listen(handler)}`;
      assertServiceError(await shown(api.stranger, { apiRoot }), /later\. \(404\)$/);
    }
  });

  test("the sign-in page of a hotel's wifi", async () => {
    const portal = "<!doctype html><title>Welcome</title><p>Please accept our terms.</p>";
    const open = `http://127.0.0.1:${await listen(always(200, "text/html", portal))}`;
    assertServiceError(await shown(api.member.uuid, { apiRoot: open }), /later\. \(200\)$/);
    // As most are: without CORS, or by a redirect.
    const closed = await listen((_, response) => response.writeHead(200, { "content-type": "text/html" }).end(portal));
    assertServiceError(await shown(api.member.uuid, { apiRoot: `http://127.0.0.1:${closed}` }), /later\.$/);
    const redirect = always(302, "text/html", "", { location: `${open}/login` });
    const apiRoot = `http://127.0.0.1:${await listen(redirect)}`;
    assertServiceError(await shown(api.member.uuid, { apiRoot }), /later\.$/);
  });

  test("an API that cannot be reached", async () => {
    const port = await listen(() => undefined);
    const server = servers.pop()!;
    server.close();
    await once(server, "close");
    assertServiceError(await shown(api.stranger, { apiRoot: `http://127.0.0.1:${port}` }), /later\.$/);
  });

  test("a page of an origin that is not allowed", async () => {
    const origin = `http://127.0.0.1:${pages}`;
    for (const uuid of [api.member.uuid, api.stranger]) {
      seen.length = 0;
      assertServiceError(await shown(uuid, { origin }), /later\.$/);
      assert.deepEqual(
        seen.map(({ method }) => method),
        ["OPTIONS"],
      );
    }
  });

  test("silence, and a page that is left", async () => {
    await page.goto(`http://localhost:${pages}/demo.html`);
    const silent = `http://127.0.0.1:${await listen(() => undefined)}`;
    // In the page, where the server has the module.
    const outcome = await page.evaluate(async (apiRoot) => {
      const path = "/dist/verify_novi_uuid.js";
      const module = (await import(path)) as typeof import("../verify_novi_uuid.js");
      const options = { apiRoot, apiKey: "key", accountId: "account-1" };
      const late: Verification = await module.verify_novi_uuid("u", { ...options, timeoutMs: 200 });
      const left: unknown = await module
        .verify_novi_uuid("u", { ...options, signal: AbortSignal.timeout(100) })
        .catch((error: unknown) => (error instanceof DOMException ? error.name : error));
      return [late, left];
    }, silent);
    const late: Verification = { outcome: "service_error", retryAfterSeconds: null, code: null, status: null };
    assert.deepEqual(outcome, [late, "TimeoutError"]);
  });

  test("the form, by hand", async () => {
    await page.goto("about:blank");
    await page.goto(`http://localhost:${pages}/demo.html`);
    await page.getByLabel("Root of the API").fill(`${root}/`);
    await page.getByLabel("API key").fill(api.api_key);
    await page.getByLabel("Account id", { exact: true }).fill("account-1");
    for (const [uuid, outcome] of [
      [api.stranger, "denied"],
      [api.member.uuid, "verified"],
    ] as const) {
      await page.getByLabel("UUID").fill(uuid);
      await page.getByRole("button", { name: "Verify" }).click();
      await page.locator(`[role=status][data-outcome=${outcome}]`).waitFor({ timeout: 20_000 });
    }
    assert.equal(page.url(), `http://localhost:${pages}/demo.html`);
  });

  test("nothing was printed but the browser's own lines, and nothing was stored", async () => {
    const own = printed.filter((line) => !/^(Failed to load resource|Access to fetch at)/.test(line));
    assert.deepEqual(own, []);
    const stored = await page.evaluate(async () => [
      localStorage.length,
      sessionStorage.length,
      (await caches.keys()).length,
      (await indexedDB.databases()).length,
    ]);
    assert.deepEqual(stored, [0, 0, 0, 0]);
  });
});
