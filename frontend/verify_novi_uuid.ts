// Asks novi-bridge whether a UUID is that of a member, from a browser.
//
// A person is denied on one answer alone: status 404, as
// application/problem+json, with the code "member_not_found". Whatever else
// happens says nothing about the person: a rate limit, an outage, the sign-in
// page of a hotel's wifi, a wrong address, a bug.
//
// Nothing here is logged or stored, and nothing is tried again: the caller
// decides, by `retryAfterSeconds`.

/** What came of it. Switch on `outcome`. */
export type Verification =
  /** A member. A part that Novi does not have is null. */
  | { readonly outcome: "verified"; readonly fullName: string | null; readonly email: string | null }
  /** Novi knows no member with this UUID. */
  | { readonly outcome: "denied" }
  /** Too many requests. Ask again after so many seconds, not before. */
  | { readonly outcome: "rate_limited"; readonly retryAfterSeconds: number }
  /**
   * Nobody knows: say that the service has a problem, never that the person is
   * no member. `retryAfterSeconds` is null where the service did not say, `code`
   * where it gave none (docs/frontend.md lists them), `status` where there was
   * no answer that could be read.
   */
  | {
      readonly outcome: "service_error";
      readonly retryAfterSeconds: number | null;
      readonly code: string | null;
      readonly status: number | null;
    };

/** A token (JWT), or what gives a fresh one for each question. */
export type TokenSource = string | (() => string | Promise<string>);

/** On whose behalf is asked: one of the two. Prefer the token. */
export type AccountContext =
  | { readonly token: TokenSource; readonly accountId?: undefined }
  | { readonly accountId: string; readonly token?: undefined };

export type Options = AccountContext & {
  /** Where the API is, a stage's path included, such as `https://api.example.org/prod`. */
  readonly apiRoot: string;
  /** The front end's own key. It identifies and is no secret: never a `bypass` key. */
  readonly apiKey: string;
  /** Aborts; the promise is then rejected with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** The most that it takes in all, a token included. Default: 15 seconds. */
  readonly timeoutMs?: number | undefined;
  /** In place of the browser's own, for tests. */
  readonly fetch?: ((url: string, init: RequestInit) => Promise<Response>) | undefined;
};

const PATH = "/v3/action/idaa/novi_member/";
const TIMEOUT_MS = 15_000;
/** The longest time that a timer takes. */
const TIMEOUT_MAX_MS = 2 ** 31 - 1;
/** What to wait after a 429 that does not say. */
const RATE_LIMITED_SECONDS = 30;
/** An answer of the API has a few hundred bytes. */
const BODY_MAX_BYTES = 64 * 1024;

/** Verifies a member. It is rejected only where `options.signal` aborts. */
export async function verify_novi_uuid(uuid: string, options: Options): Promise<Verification> {
  const { signal, timeoutMs = TIMEOUT_MS } = options;
  signal?.throwIfAborted();

  const controller = new AbortController();
  let stop = (): void => undefined;
  const stopped = new Promise<never>((_, reject) => {
    stop = () => {
      reject(new Error("stopped"));
      controller.abort();
    };
  });
  signal?.addEventListener("abort", stop);
  const timer = setTimeout(stop, timeoutMs > 0 ? Math.min(timeoutMs, TIMEOUT_MAX_MS) : TIMEOUT_MS);
  try {
    // Stopped means stopped, even where a token or a stubbed fetch does not heed the signal.
    return await Promise.race([stopped, ask(uuid, options, controller.signal)]);
  } catch {
    // The error may hold the address that was asked, and so the UUID: it goes nowhere.
    signal?.throwIfAborted();
    return serviceError(null, null, null);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
    // Whatever of a body was not read is let go.
    controller.abort();
  }
}

async function ask(uuid: string, options: Options, signal: AbortSignal): Promise<Verification> {
  const headers: Record<string, string> = {
    accept: "application/json, application/problem+json",
    "x-api-key": options.apiKey,
  };
  if (options.token !== undefined) {
    const token = typeof options.token === "string" ? options.token : await options.token();
    headers["authorization"] = `Bearer ${token}`;
  } else {
    headers["x-account-id"] = options.accountId;
  }
  signal.throwIfAborted();

  const fetch = options.fetch ?? globalThis.fetch;
  const response = await fetch(options.apiRoot.replace(/\/+$/, "") + PATH + encodeURIComponent(uuid), {
    method: "GET",
    headers,
    signal,
    mode: "cors",
    credentials: "omit",
    cache: "no-store",
    redirect: "error",
    referrerPolicy: "no-referrer",
  });

  const retryAfter = retryAfterSeconds(response);
  // Whoever says 429, API Gateway's own throttling included, means the same.
  if (response.status === 429 && !response.redirected) {
    return { outcome: "rate_limited", retryAfterSeconds: retryAfter ?? RATE_LIMITED_SECONDS };
  }
  const body = parsed(await text(response));
  if (!response.redirected) {
    const identity = response.status === 200 ? identityIn(body) : null;
    if (identity !== null) {
      return { outcome: "verified", ...identity };
    }
    if (response.status === 404 && problemCode(response, body) === "member_not_found") {
      return { outcome: "denied" };
    }
  }
  return serviceError(response, retryAfter, problemCode(response, body));
}

function serviceError(response: Response | null, retryAfter: number | null, code: string | null): Verification {
  return {
    outcome: "service_error",
    retryAfterSeconds: retryAfter,
    // This code means nothing but in the one answer that denies.
    code: code === "member_not_found" ? null : code,
    // An opaque answer has the status 0.
    status: response === null || response.status === 0 ? null : response.status,
  };
}

function identityIn(body: Record<string, unknown> | null): { fullName: string | null; email: string | null } | null {
  if (body === null || body["verified"] !== true) {
    return null;
  }
  const { full_name: fullName, email } = body;
  return isStringOrNull(fullName) && isStringOrNull(email) ? { fullName, email } : null;
}

function isStringOrNull(value: unknown): value is string | null {
  return value === null || typeof value === "string";
}

/** The code of a problem (RFC 9457), where the answer is one. */
function problemCode(response: Response, body: Record<string, unknown> | null): string | null {
  const type = response.headers.get("content-type")?.split(";")[0]?.trim().toLowerCase();
  const code = type === "application/problem+json" ? body?.["code"] : null;
  return typeof code === "string" && /^[a-z_]{1,64}$/.test(code) ? code : null;
}

/** The API always gives whole seconds. */
function retryAfterSeconds(response: Response): number | null {
  const value = response.headers.get("retry-after")?.trim() ?? "";
  return /^\d{1,5}$/.test(value) ? Number(value) : null;
}

/** The body, where it ends within its limit and is text. */
async function text(response: Response): Promise<string | null> {
  try {
    if (response.body === null) {
      return null;
    }
    const reader = response.body.getReader();
    const decoder = new TextDecoder("utf-8", { fatal: true });
    let size = 0;
    let read = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return read + decoder.decode();
      }
      size += value.byteLength;
      if (size > BODY_MAX_BYTES) {
        return null;
      }
      read += decoder.decode(value, { stream: true });
    }
  } catch {
    return null;
  }
}

/** The JSON object in a text, where it is one. */
function parsed(text: string | null): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text ?? "");
    return typeof value === "object" ? (value as Record<string, unknown> | null) : null;
  } catch {
    return null;
  }
}
