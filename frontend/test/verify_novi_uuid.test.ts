// Tests every possible response, from stubs and from a real server.

import assert from "node:assert/strict";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, describe, test } from "node:test";

import { type Options, type Verification, verify_novi_uuid } from "../verify_novi_uuid.js";

const UUID = "39120341-3c8e-47b0-9a40-45b5659b2044";
const PROBLEM = "application/problem+json";
const DENIAL = JSON.stringify({
  type: "urn:novi-bridge:problem:member_not_found",
  title: "Not a member",
  status: 404,
  detail: "No member has this UUID.",
  code: "member_not_found",
});
const VERIFIED = JSON.stringify({ verified: true, full_name: "Ada L.", email: "ada+lists@example.org" });

type Stub = NonNullable<Options["fetch"]>;

/** Verifies a UUID with default options and a stub for the network. */
function verifyWith(fetch: Stub, overrides: Partial<Options> = {}, uuid = UUID): Promise<Verification> {
  return verify_novi_uuid(uuid, {
    apiRoot: "https://api.example.org",
    apiKey: "key",
    accountId: "account-1",
    fetch,
    ...overrides,
  } as Options);
}

/** Builds a response. Some statuses can't have a body. */
function response(status: number, body: string, headers: Record<string, string> = {}): Response {
  return new Response([204, 205, 304].includes(status) ? null : body, { status, headers });
}

/** Returns the outcome of a verification that gets this response. */
function outcomeOf(status: number, body: string, headers: Record<string, string> = {}): Promise<Verification> {
  return verifyWith(() => Promise.resolve(response(status, body, headers)));
}

function serviceError(
  status: number | null,
  code: string | null = null,
  retryAfterSeconds: number | null = null,
): Verification {
  return { outcome: "service_error", retryAfterSeconds, code, status };
}

/** Returns a stub and the calls that it has received. */
function recorder(respond: () => Response = () => response(404, DENIAL, { "content-type": PROBLEM })): {
  fetch: Stub;
  calls: { url: string; init: RequestInit }[];
} {
  const calls: { url: string; init: RequestInit }[] = [];
  return {
    calls,
    fetch: (url, init) => {
      calls.push({ url, init });
      return Promise.resolve(respond());
    },
  };
}

describe("outcomes of responses", () => {
  test("a member is verified", async () => {
    assert.deepEqual(await outcomeOf(200, VERIFIED, { "content-type": "application/json" }), {
      outcome: "verified",
      fullName: "Ada L.",
      email: "ada+lists@example.org",
    });
    for (const [full_name, email] of [
      [null, "ada@example.org"],
      ["Élodie ክ.", null],
    ]) {
      const body = JSON.stringify({ verified: true, full_name, email, future_field: ["more"] });
      assert.deepEqual(await outcomeOf(200, body), { outcome: "verified", fullName: full_name, email });
    }
  });

  test("an unknown UUID is denied", async () => {
    for (const type of [PROBLEM, `${PROBLEM}; charset=utf-8`, "Application/Problem+JSON"]) {
      assert.deepEqual(await outcomeOf(404, DENIAL, { "content-type": type }), { outcome: "denied" });
    }
  });

  test("a 404 from another source or about something else is not a denial", async () => {
    const problem = (code: unknown): string => JSON.stringify({ status: 404, code });
    for (const [body, type, code] of [
      [problem("route_not_found"), PROBLEM, "route_not_found"],
      ['{"message":"Not Found"}', "application/json", null],
      ["<!doctype html><title>404</title>", "text/html", null],
      ["", "", null],
      // Almost the denial.
      [DENIAL, "application/json", null],
      [DENIAL, "text/html", null],
      [DENIAL, "application/problem+jsonp", null],
      [DENIAL.slice(0, -1), PROBLEM, null],
      [DENIAL + "}", PROBLEM, null],
      [`[${DENIAL}]`, PROBLEM, null],
      ['"member_not_found"', PROBLEM, null],
      ["member_not_found", PROBLEM, null],
      ["null", PROBLEM, null],
      [problem("MEMBER_NOT_FOUND"), PROBLEM, null],
      [problem(" member_not_found"), PROBLEM, null],
      [problem(["member_not_found"]), PROBLEM, null],
      [problem({ code: "member_not_found" }), PROBLEM, null],
      [JSON.stringify({ problem: { code: "member_not_found" } }), PROBLEM, null],
      [problem("<b>you are not a member</b>"), PROBLEM, null],
      [" ".repeat(70_000) + DENIAL, PROBLEM, null],
    ] as const) {
      assert.deepEqual(await outcomeOf(404, body, { "content-type": type }), serviceError(404, code), body.slice(0, 99));
    }
  });

  test("a 200 from another source is a service error", async () => {
    for (const body of [
      "",
      "<!doctype html><title>Welcome to the Grand Hotel</title>",
      "null",
      "true",
      "[]",
      "{}",
      VERIFIED.slice(0, -1),
      `[${VERIFIED}]`,
      '{"verified":false,"full_name":"Ada L.","email":null}',
      '{"verified":"true","full_name":"Ada L.","email":null}',
      '{"verified":1,"full_name":"Ada L.","email":null}',
      '{"full_name":"Ada L.","email":null}',
      '{"verified":true}',
      '{"verified":true,"full_name":"Ada L."}',
      '{"verified":true,"full_name":5,"email":null}',
      '{"verified":true,"full_name":null,"email":["a@example.org"]}',
      VERIFIED + " ".repeat(70_000),
    ]) {
      assert.deepEqual(await outcomeOf(200, body), serviceError(200), body.slice(0, 99));
    }
    assert.deepEqual(await outcomeOf(200, DENIAL, { "content-type": PROBLEM }), serviceError(200));
    const bytes = new Uint8Array([...new TextEncoder().encode(VERIFIED)].map((byte) => (byte === 0x41 ? 0xff : byte)));
    assert.deepEqual(await verifyWith(() => Promise.resolve(new Response(bytes))), serviceError(200));
  });

  test("a 429 from any source is a rate limit", async () => {
    const limited = (seconds: number): Verification => ({ outcome: "rate_limited", retryAfterSeconds: seconds });
    for (const [header, seconds] of [
      ["17", 17],
      [" 17 ", 17],
      ["0", 0],
      ["86400", 86_400],
      // Invalid values.
      ["", 30],
      ["-1", 30],
      ["1.5", 30],
      ["1e3", 30],
      ["0x10", 30],
      ["soon", 30],
      ["9999999999", 30],
      ["17, 18", 30],
      ["Wed, 21 Oct 2026 07:28:00 GMT", 30],
    ] as const) {
      assert.deepEqual(await outcomeOf(429, "", { "retry-after": header }), limited(seconds), header);
    }
    assert.deepEqual(await outcomeOf(429, '{"message":"Too Many Requests"}'), limited(30));
    assert.deepEqual(await outcomeOf(429, DENIAL, { "content-type": PROBLEM }), limited(30));
  });

  test("every other response is a service error", async () => {
    for (const [status, code, retryAfter] of [
      [400, "invalid_uuid", null],
      [401, "api_key_missing", null],
      [401, "api_key_invalid", null],
      [403, "account_context_missing", null],
      [403, "jwt_expired", null],
      [405, "method_not_allowed", null],
      [500, "internal_error", null],
      [503, "novi_unreachable", 5],
      [503, "novi_blocked", 60],
      [503, "parameters_unavailable", 5],
    ] as const) {
      const headers: Record<string, string> = { "content-type": PROBLEM };
      if (retryAfter !== null) {
        headers["retry-after"] = String(retryAfter);
      }
      const body = JSON.stringify({ type: "about:blank", title: "…", status, detail: "…", code });
      assert.deepEqual(await outcomeOf(status, body, headers), serviceError(status, code, retryAfter));
    }
    assert.deepEqual(await outcomeOf(403, '{"message":"Forbidden"}'), serviceError(403));
    assert.deepEqual(await outcomeOf(502, "<h1>Bad gateway</h1>", { "retry-after": "later" }), serviceError(502));
    // The denial code has no meaning in another response, and is not passed on.
    assert.deepEqual(await outcomeOf(410, DENIAL, { "content-type": PROBLEM }), serviceError(410));
  });

  test("across all statuses and odd bodies, only one response denies and only one verifies", async () => {
    const denials = [DENIAL, JSON.stringify({ verified: true, full_name: null, email: null, code: "member_not_found" })];
    const bodies = [
      ...denials,
      VERIFIED,
      JSON.stringify({ status: 404, code: "route_not_found" }),
      JSON.stringify({ status: 503, code: "novi_blocked" }),
      JSON.stringify({ verified: false, full_name: null, email: null }),
      '{"message":"Not Found"}',
      "<html>member_not_found</html>",
      "member_not_found",
      "{}",
      "null",
      "",
    ];
    const types = [PROBLEM, "application/json", "text/html", ""];
    const counts = { verified: 0, denied: 0, rate_limited: 0, service_error: 0 };
    for (let status = 200; status < 600; status += 1) {
      for (const body of bodies) {
        for (const type of types) {
          const { outcome } = await outcomeOf(status, body, { "content-type": type, "retry-after": "7" });
          counts[outcome] += 1;
          let expected = "service_error";
          if (status === 404 && type === PROBLEM && denials.includes(body)) {
            expected = "denied";
          } else if (status === 429) {
            expected = "rate_limited";
          } else if (status === 200 && (body === VERIFIED || body === denials[1])) {
            expected = "verified";
          }
          assert.equal(outcome, expected, `${status} ${type} ${body}`);
        }
      }
    }
    const perStatus = bodies.length * types.length;
    const [denied, verified, rate_limited] = [denials.length, 2 * types.length, perStatus];
    const service_error = 400 * perStatus - denied - verified - rate_limited;
    assert.deepEqual(counts, { verified, denied, rate_limited, service_error });
  });

  test("an unreadable response or a failed fetch is a service error", async () => {
    const withFields = (fields: object): Response =>
      new Proxy(response(404, DENIAL, { "content-type": PROBLEM }), {
        get: (target, name) => {
          const value: unknown = name in fields ? fields[name as keyof typeof fields] : Reflect.get(target, name, target);
          return typeof value === "function" ? value.bind(target) : value;
        },
      });
    const outcomeWith = (fields: object): Promise<Verification> => verifyWith(() => Promise.resolve(withFields(fields)));
    assert.deepEqual(await outcomeWith({}), { outcome: "denied" });
    const opaque = { type: "opaque", status: 0, body: null, headers: new Headers() };
    assert.deepEqual(await outcomeWith(opaque), serviceError(null));
    assert.deepEqual(await outcomeWith({ redirected: true }), serviceError(404));
    assert.deepEqual(await outcomeWith({ redirected: true, status: 429 }), serviceError(429));
    assert.deepEqual(await verifyWith(() => Promise.resolve(Response.error())), serviceError(null));
    const broken = new ReadableStream({ start: (body) => body.error(new TypeError("network error")) });
    const init = { status: 404, headers: { "content-type": PROBLEM } };
    assert.deepEqual(await verifyWith(() => Promise.resolve(new Response(broken, init))), serviceError(404));
    for (const error of [new TypeError("Failed to fetch"), new DOMException("", "AbortError"), null, "no"]) {
      assert.deepEqual(await verifyWith(() => Promise.reject(error)), serviceError(null));
    }
    assert.deepEqual(
      await verifyWith(() => {
        throw new TypeError("synchronous error");
      }),
      serviceError(null),
    );
  });
});

describe("requests", () => {
  test("the URL contains the root and the encoded UUID", async () => {
    for (const [root, uuid, url] of [
      ["https://api.example.org", UUID, `https://api.example.org/v3/action/idaa/novi_member/${UUID}`],
      ["https://api.example.org/", UUID, `https://api.example.org/v3/action/idaa/novi_member/${UUID}`],
      ["https://api.example.org/prod", UUID, `https://api.example.org/prod/v3/action/idaa/novi_member/${UUID}`],
      ["https://api.example.org/prod//", UUID, `https://api.example.org/prod/v3/action/idaa/novi_member/${UUID}`],
      ["/api", "a/b?c#d e", "/api/v3/action/idaa/novi_member/a%2Fb%3Fc%23d%20e"],
    ] as const) {
      const { fetch, calls } = recorder();
      await verifyWith(fetch, { apiRoot: root }, uuid);
      assert.deepEqual(
        calls.map((call) => call.url),
        [url],
      );
    }
  });

  test("one request is sent, with only the necessary headers and options", async () => {
    const { fetch, calls } = recorder(() => response(503, "", { "retry-after": "1" }));
    await verifyWith(fetch);
    assert.equal(calls.length, 1);
    const { headers, signal, ...init } = calls[0]!.init;
    assert.ok(signal instanceof AbortSignal);
    assert.deepEqual(headers, {
      accept: "application/json, application/problem+json",
      "x-api-key": "key",
      "x-account-id": "account-1",
    });
    assert.deepEqual(init, {
      method: "GET",
      mode: "cors",
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  });

  test("a token replaces the account id", async () => {
    let count = 0;
    for (const token of ["t1", () => "t1", async () => `t${(count += 1)}`]) {
      const { fetch, calls } = recorder();
      await verifyWith(fetch, { token, accountId: undefined } as Partial<Options>);
      const headers = new Headers(calls[0]!.init.headers);
      assert.deepEqual([headers.get("authorization"), headers.get("x-account-id")], ["Bearer t1", null]);
    }
    assert.equal(count, 1);
  });

  test("no request is sent if it can't be built", async () => {
    const { fetch, calls } = recorder();
    const withToken = (token: unknown): Promise<Verification> => verifyWith(fetch, { token } as Partial<Options>);
    assert.deepEqual(await withToken(() => Promise.reject(new Error("signed out"))), serviceError(null));
    assert.deepEqual(
      await withToken(() => {
        throw new Error("signed out");
      }),
      serviceError(null),
    );
    assert.deepEqual(await verifyWith(fetch, {}, "\ud800"), serviceError(null));
    assert.equal(calls.length, 0);
    // With the real fetch.
    for (const invalid of [{ apiRoot: "not a URL" }, { apiRoot: "https://u:p@api.example.org" }, { apiKey: "a\nb" }]) {
      assert.deepEqual(await verifyWith(globalThis.fetch, invalid), serviceError(null));
    }
  });
});

describe("timeouts and aborts", () => {
  const never: Stub = () => new Promise(() => undefined);
  const stuck: Stub = () => Promise.resolve(new Response(new ReadableStream(), { status: 404 }));

  test("a timeout ends the call, whatever hangs", async () => {
    const token = (): Promise<string> => new Promise(() => undefined);
    for (const [fetch, overrides] of [
      [never, {}],
      [stuck, {}],
      [recorder().fetch, { token }],
    ] as const) {
      assert.deepEqual(await verifyWith(fetch, { timeoutMs: 20, ...overrides } as Partial<Options>), serviceError(null));
    }
  });

  test("no request is sent after the timeout", async () => {
    const { fetch, calls } = recorder();
    const token = (): Promise<string> => new Promise((resolve) => setTimeout(resolve, 60, "late"));
    assert.deepEqual(await verifyWith(fetch, { token, timeoutMs: 20 } as Partial<Options>), serviceError(null));
    await new Promise((resolve) => setTimeout(resolve, 80));
    assert.equal(calls.length, 0);
  });

  test("an invalid timeout does not mean zero", async () => {
    for (const timeoutMs of [0, -1, NaN, Infinity, 2 ** 40]) {
      const slow: Stub = () =>
        new Promise((resolve) => setTimeout(resolve, 20, response(404, DENIAL, { "content-type": PROBLEM })));
      assert.deepEqual(await verifyWith(slow, { timeoutMs }), { outcome: "denied" });
    }
  });

  test("an abort by the caller rejects with the caller's reason", async () => {
    const { fetch, calls } = recorder();
    const reason = new Error("the page was left");
    await assert.rejects(verifyWith(fetch, { signal: AbortSignal.abort(reason) }), reason);
    assert.equal(calls.length, 0);
    for (const hanging of [never, stuck]) {
      const controller = new AbortController();
      setTimeout(() => controller.abort(reason), 10);
      await assert.rejects(verifyWith(hanging, { signal: controller.signal }), reason);
    }
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 10);
    await assert.rejects(verifyWith(never, { signal: controller.signal }), { name: "AbortError" });
  });

  test("no listener stays on a signal that never fires", async () => {
    const controller = new AbortController();
    let listeners = 0;
    const { signal } = controller;
    for (const [name, change] of [
      ["addEventListener", 1],
      ["removeEventListener", -1],
    ] as const) {
      const real = signal[name].bind(signal) as (type: string, listener: EventListener) => void;
      signal[name] = (type: string, listener: unknown) => {
        listeners += change;
        real(type, listener as EventListener);
      };
    }
    assert.deepEqual(await verifyWith(recorder().fetch, { signal }), { outcome: "denied" });
    assert.equal(listeners, 0);
  });
});

test("nothing is logged", async () => {
  const logged: unknown[] = [];
  const real = { ...console };
  for (const name of ["log", "info", "warn", "error", "debug", "trace"] as const) {
    console[name] = (...values: unknown[]) => void logged.push(values);
  }
  try {
    await outcomeOf(200, VERIFIED);
    await outcomeOf(404, DENIAL, { "content-type": PROBLEM });
    await outcomeOf(500, "");
    await verifyWith(() => Promise.reject(new TypeError(UUID)));
  } finally {
    Object.assign(console, real);
  }
  assert.deepEqual(logged, []);
});

describe("over real HTTP", () => {
  let root: string;
  let handler: (response: ServerResponse, headers: IncomingHttpHeaders, path: string) => void;
  const server = createServer((request, response) => handler(response, request.headers, request.url ?? ""));

  before(async () => {
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    root = `http://127.0.0.1:${(server.address() as AddressInfo).port}/prod/`;
  });
  after(() => {
    server.closeAllConnections();
    server.close();
  });

  const outcomeFrom = (respond: typeof handler, timeoutMs = 5_000): Promise<Verification> => {
    handler = respond;
    return verify_novi_uuid(UUID, { apiRoot: root, apiKey: "key", accountId: "account-1", timeoutMs });
  };
  const deny = (response: ServerResponse): void => {
    response.writeHead(404, { "content-type": PROBLEM }).end(DENIAL);
  };

  test("a member, an unknown UUID, a rate limit and an outage are told apart", async () => {
    let received: unknown;
    const verified = await outcomeFrom((response, headers, path) => {
      received = [path, headers["x-api-key"], headers["x-account-id"], headers.referer, headers.cookie];
      // In chunks that split a character.
      const bytes = Buffer.from('{"verified":true,"full_name":"Élodie L.","email":null}');
      response.writeHead(200, { "content-type": "application/json" });
      response.write(bytes.subarray(0, 30));
      setTimeout(() => response.end(bytes.subarray(30)), 10);
    });
    assert.deepEqual(verified, { outcome: "verified", fullName: "Élodie L.", email: null });
    assert.deepEqual(received, [`/prod/v3/action/idaa/novi_member/${UUID}`, "key", "account-1", undefined, undefined]);
    assert.deepEqual(await outcomeFrom(deny), { outcome: "denied" });
    assert.deepEqual(await outcomeFrom((response) => response.writeHead(429, { "retry-after": "3" }).end()), {
      outcome: "rate_limited",
      retryAfterSeconds: 3,
    });
    assert.deepEqual(await outcomeFrom((response) => response.writeHead(503, { "retry-after": "5" }).end()), {
      ...serviceError(503, null, 5),
    });
  });

  test("a redirect is not followed, even to a denial", async () => {
    for (const status of [301, 302, 303, 307, 308]) {
      let hits = 0;
      const outcome = await outcomeFrom((response) => {
        hits += 1;
        return hits === 1 ? response.writeHead(status, { location: "/elsewhere" }).end() : deny(response);
      });
      assert.deepEqual([outcome, hits], [serviceError(null), 1]);
    }
  });

  test("a broken connection is a service error", async () => {
    assert.deepEqual(await outcomeFrom((response) => void response.destroy()), serviceError(null));
    const half = await outcomeFrom((response) => {
      response.writeHead(404, { "content-type": PROBLEM, "content-length": DENIAL.length });
      response.write(DENIAL.slice(0, 40), () => response.destroy());
    });
    assert.deepEqual(half, serviceError(404));
    // A complete denial, with a content-length larger than its body.
    const short = await outcomeFrom((response) => {
      response.writeHead(404, { "content-type": PROBLEM, "content-length": DENIAL.length + 9 });
      response.write(DENIAL, () => response.destroy());
    });
    assert.deepEqual(short, serviceError(404));
  });

  test("a silent server, a stalled body and an endless body are service errors", async () => {
    assert.deepEqual(await outcomeFrom(() => undefined, 50), serviceError(null));
    const stalled = outcomeFrom((response) => {
      response.writeHead(404, { "content-type": PROBLEM });
      response.write(DENIAL);
    }, 50);
    assert.deepEqual(await stalled, serviceError(null));
    let closed: (() => void) | undefined;
    const isClosed = new Promise<void>((resolve) => (closed = resolve));
    const endless = outcomeFrom((response) => {
      response.writeHead(404, { "content-type": PROBLEM });
      const write = (): void => {
        while (!response.destroyed && response.write(" ".repeat(16_384)));
      };
      response.on("drain", write).on("close", () => closed?.());
      write();
    });
    assert.deepEqual(await endless, serviceError(404));
    await isClosed;
  });

  test("a rate limit does not wait for its body", async () => {
    const limited = outcomeFrom((response) => {
      response.writeHead(429, { "retry-after": "3" });
      response.write("…");
    });
    assert.deepEqual(await limited, { outcome: "rate_limited", retryAfterSeconds: 3 });
  });
});
