// Tests what a person sees on the demo page in each state, in Chromium and
// against the real verify function. CHROMIUM overrides the path of the browser.

import assert from "node:assert/strict";
import { once } from "node:events";
import { access, constants, mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, type IncomingHttpHeaders, request, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { type BrowserContext, chromium, type Page } from "playwright-core";

import { type Api, type ApiProgram, FRONTEND, startApi } from "./api_program.js";
import type { Verification } from "../verify_novi_uuid.js";

/** A request that the proxy has received. */
interface ReceivedRequest {
  method: string;
  path: string;
  headers: IncomingHttpHeaders;
}

const CHROMIUM = process.env["CHROMIUM"] ?? "/usr/bin/chromium";
const FILES: Record<string, string> = {
  "/demo.html": "text/html; charset=utf-8",
  "/dist/demo.js": "text/javascript",
  "/dist/verify_novi_uuid.js": "text/javascript",
};
/** Wordings that a service error must never contain. */
const ABOUT_THE_PERSON = /not a member|not registered|denied|no ?body|unknown/i;

const servers: Server[] = [];

/** Starts a server on a free loopback port and returns the port. */
async function listen(handler: RequestListener): Promise<number> {
  const server = createServer(handler).listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

/** Simulates an API Gateway stage: forwards requests below /prod and records them. */
function stage(target: string, received: ReceivedRequest[]): RequestListener {
  return (incoming, outgoing) => {
    const { method = "", url = "", headers } = incoming;
    received.push({ method, path: url, headers: incoming.headers });
    const forwarded = request(target + url.replace(/^\/prod\//, "/"), { method, headers }, (response) => {
      outgoing.writeHead(response.statusCode ?? 502, response.headers);
      response.pipe(outgoing);
    });
    forwarded.on("error", () => outgoing.destroy());
    incoming.pipe(forwarded);
  };
}

/** Sends the same response to every origin, and allows every preflight. */
function always(status: number, type: string, body: string, extra: Record<string, string> = {}): RequestListener {
  return ({ method }, response) => {
    response.writeHead(method === "OPTIONS" ? 204 : status, {
      "access-control-allow-origin": "*",
      "access-control-allow-headers": "*",
      "content-type": type,
      ...extra,
    });
    response.end(method === "OPTIONS" ? undefined : body);
  };
}

describe("the demo page in a browser", { timeout: 120_000 }, () => {
  const received: ReceivedRequest[] = [];
  const logged: string[] = [];
  let program: ApiProgram | undefined;
  let api: Api;
  let profile: string | undefined;
  let browser: BrowserContext | undefined;
  let page: Page;
  /** The port of the server of the demo page. */
  let pagePort: number;
  /** The root URL of the API, behind a stage. */
  let root: string;
  let limitedRoot: string;

  before(async () => {
    await access(CHROMIUM, constants.X_OK).catch(() =>
      assert.fail(`${CHROMIUM} is not executable. Install Chromium, or set CHROMIUM to its path.`),
    );
    pagePort = await listen((incoming, outgoing) => {
      const path = incoming.url ?? "";
      const type = FILES[path];
      if (type === undefined) {
        outgoing.writeHead(404).end();
        return;
      }
      readFile(join(FRONTEND, path)).then(
        // A cookie for the same host, which must not be sent to the API.
        (file) => outgoing.writeHead(200, { "content-type": type, "set-cookie": "session=secret" }).end(file),
        () => outgoing.writeHead(404).end(),
      );
    });

    program = await startApi(`http://localhost:${pagePort}`);
    api = program.api;
    root = `http://127.0.0.1:${await listen(stage(api.api_root, received))}/prod`;
    limitedRoot = `http://127.0.0.1:${await listen(stage(api.limited.api_root, received))}/prod`;

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
    page.on("console", (message) => logged.push(message.text()));
    page.on("pageerror", (error) => logged.push(String(error)));
  });

  after(async () => {
    await browser?.close();
    if (profile !== undefined) {
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    }
    await program?.stop();
    for (const server of servers) {
      server.closeAllConnections();
      server.close();
    }
  });

  /** Reloads the page and returns the outcome that it shows for a UUID. */
  async function outcomeFor(
    uuid: string,
    { apiRoot = root, key = api.api_key, token = "", origin = `http://localhost:${pagePort}` } = {},
  ): Promise<{ outcome: string | null; text: string }> {
    const account: Record<string, string> = token === "" ? { account_id: "account-1" } : { token };
    const fields = new URLSearchParams({ api_root: apiRoot, api_key: key, ...account, uuid });
    await page.goto("about:blank");
    await page.goto(`${origin}/demo.html#${fields.toString()}`);
    const outcome = page.locator("#outcome[data-outcome]");
    await outcome.waitFor({ timeout: 20_000 });
    return { outcome: await outcome.getAttribute("data-outcome"), text: (await outcome.textContent()) ?? "" };
  }

  /** Asserts that the page shows a service error that says nothing about the person. */
  function assertServiceError(shown: { outcome: string | null; text: string }, ending: RegExp): void {
    assert.equal(shown.outcome, "service_error", shown.text);
    assert.match(shown.text, /^We cannot check your membership right now\. The problem is ours, not yours\. /);
    assert.match(shown.text, ending);
    assert.doesNotMatch(shown.text, ABOUT_THE_PERSON);
  }

  test("a member is verified by account id, after a preflight", async () => {
    const { uuid, full_name, email } = api.member;
    received.length = 0;
    assert.deepEqual(await outcomeFor(uuid), { outcome: "verified", text: `Verified: ${full_name}, ${email}.` });
    const path = `/prod/v3/action/idaa/novi_member/${uuid}`;
    assert.deepEqual(
      received.map(({ method, path }) => [method, path]),
      [
        ["OPTIONS", path],
        ["GET", path],
      ],
    );
    const [preflight, get] = received.map(({ headers }) => headers);
    assert.equal(preflight!["access-control-request-method"], "GET");
    assert.equal(preflight!["access-control-request-headers"], "x-account-id,x-api-key");
    assert.equal(get!["x-api-key"], api.api_key);
    assert.equal(get!["x-account-id"], "account-1");
    assert.equal(get!["origin"], `http://localhost:${pagePort}`);
    assert.deepEqual([get!.cookie, get!.referer, get!.authorization], [undefined, undefined, undefined]);
  });

  test("a member is verified by token", async () => {
    received.length = 0;
    // In upper case, it is a different URL, so the browser sends another preflight.
    const { outcome } = await outcomeFor(api.member.uuid.toUpperCase(), { token: api.token });
    assert.equal(outcome, "verified");
    assert.equal(received[0]?.headers["access-control-request-headers"], "authorization,x-api-key");
    assert.equal(received.at(-1)?.headers.authorization, `Bearer ${api.token}`);
    assert.equal(received.at(-1)?.headers["x-account-id"], undefined);
  });

  test("an unknown UUID is denied", async () => {
    assert.deepEqual(await outcomeFor(api.stranger), {
      outcome: "denied",
      text: "Not a member: this UUID is not registered.",
    });
  });

  test("a rate limit shows the seconds from Novi", async () => {
    const { api_key: key, uuid, retry_after_seconds: seconds } = api.limited;
    assert.deepEqual(await outcomeFor(uuid, { apiRoot: limitedRoot, key }), {
      outcome: "rate_limited",
      text: `Busy: many people are signing in. Please try again in ${seconds} seconds.`,
    });
  });

  test("an outage of Novi and a blocking CDN are service errors", async () => {
    assertServiceError(await outcomeFor(api.failing), /try again in 5 seconds\. \(503 novi_error\)$/);
    assertServiceError(await outcomeFor(api.blocked), /try again in 60 seconds\. \(503 novi_blocked\)$/);
  });

  test("a rejected request is a service error", async () => {
    assertServiceError(await outcomeFor("no-uuid"), /later\. \(400 invalid_uuid\)$/);
    assertServiceError(await outcomeFor(api.stranger, { key: "wrong" }), /later\. \(401 api_key_invalid\)$/);
    assertServiceError(await outcomeFor(api.stranger, { token: "wrong" }), /later\. \(403 jwt_invalid\)$/);
  });

  test("a 404 from a wrong path, API Gateway or a web server is not a denial", async () => {
    const wrongRoot = root.replace("/prod", "/wrong");
    assertServiceError(await outcomeFor(api.stranger, { apiRoot: wrongRoot }), /later\. \(404 route_not_found\)$/);
    for (const handler of [
      always(404, "application/json", '{"message":"Not Found"}'),
      always(404, "text/html", "<h1>Not found</h1><p>member_not_found</p>"),
    ]) {
      const apiRoot = `http://127.0.0.1:${await listen(handler)}`;
      assertServiceError(await outcomeFor(api.stranger, { apiRoot }), /later\. \(404\)$/);
    }
  });

  test("the sign-in page of a hotel's Wi-Fi is a service error", async () => {
    const portal = "<!doctype html><title>Welcome</title><p>Please accept our terms.</p>";
    const open = `http://127.0.0.1:${await listen(always(200, "text/html", portal))}`;
    assertServiceError(await outcomeFor(api.member.uuid, { apiRoot: open }), /later\. \(200\)$/);
    // Most sign-in pages lack CORS headers or are reached by a redirect.
    const closed = await listen((_, response) => response.writeHead(200, { "content-type": "text/html" }).end(portal));
    assertServiceError(await outcomeFor(api.member.uuid, { apiRoot: `http://127.0.0.1:${closed}` }), /later\.$/);
    const redirect = always(302, "text/html", "", { location: `${open}/login` });
    const apiRoot = `http://127.0.0.1:${await listen(redirect)}`;
    assertServiceError(await outcomeFor(api.member.uuid, { apiRoot }), /later\.$/);
  });

  test("an unreachable API is a service error", async () => {
    const port = await listen(() => undefined);
    const server = servers.pop()!;
    server.close();
    await once(server, "close");
    assertServiceError(await outcomeFor(api.stranger, { apiRoot: `http://127.0.0.1:${port}` }), /later\.$/);
  });

  test("an origin that is not allowed gets a service error", async () => {
    const origin = `http://127.0.0.1:${pagePort}`;
    for (const uuid of [api.member.uuid, api.stranger]) {
      received.length = 0;
      assertServiceError(await outcomeFor(uuid, { origin }), /later\.$/);
      assert.deepEqual(
        received.map(({ method }) => method),
        ["OPTIONS"],
      );
    }
  });

  test("a silent server causes a timeout, and an abort rejects the promise", async () => {
    await page.goto(`http://localhost:${pagePort}/demo.html`);
    const silent = `http://127.0.0.1:${await listen(() => undefined)}`;
    // Runs in the page, because its server has the module.
    const outcome = await page.evaluate(async (apiRoot) => {
      const path = "/dist/verify_novi_uuid.js";
      const module = (await import(path)) as typeof import("../verify_novi_uuid.js");
      const options = { apiRoot, apiKey: "key", accountId: "account-1" };
      const timedOut: Verification = await module.verify_novi_uuid("u", { ...options, timeoutMs: 200 });
      const aborted: unknown = await module
        .verify_novi_uuid("u", { ...options, signal: AbortSignal.timeout(100) })
        .catch((error: unknown) => (error instanceof DOMException ? error.name : error));
      return [timedOut, aborted];
    }, silent);
    const timedOut: Verification = { outcome: "service_error", retryAfterSeconds: null, code: null, status: null };
    assert.deepEqual(outcome, [timedOut, "TimeoutError"]);
  });

  test("the form works when it is filled in manually", async () => {
    await page.goto("about:blank");
    await page.goto(`http://localhost:${pagePort}/demo.html`);
    await page.getByLabel("API root URL").fill(`${root}/`);
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
    assert.equal(page.url(), `http://localhost:${pagePort}/demo.html`);
  });

  test("the page logged and stored nothing", async () => {
    // Except for the browser's own messages.
    const messages = logged.filter((line) => !/^(Failed to load resource|Access to fetch at)/.test(line));
    assert.deepEqual(messages, []);
    const stored = await page.evaluate(async () => [
      localStorage.length,
      sessionStorage.length,
      (await caches.keys()).length,
      (await indexedDB.databases()).length,
    ]);
    assert.deepEqual(stored, [0, 0, 0, 0]);
  });
});
