// Asks novi-bridge, from a browser, whether a UUID belongs to a member.
//
// Only one response denies a person: status 404, as application/problem+json,
// with the code "member_not_found". No other result says anything about the
// person. It may be a rate limit, an outage, the sign-in page of a hotel's Wi-Fi,
// a wrong URL or a bug.
//
// This module logs and stores nothing, and it never retries. The caller decides
// whether to retry, based on `retryAfterSeconds`.

/** The result of a verification. Switch on `outcome`. */
export type Verification =
  /** A member. A part that Novi does not have is null. */
  | { readonly outcome: "verified"; readonly fullName: string | null; readonly email: string | null }
  /** No member has this UUID. */
  | { readonly outcome: "denied" }
  /** Too many requests. Retry after `retryAfterSeconds`, not earlier. */
  | { readonly outcome: "rate_limited"; readonly retryAfterSeconds: number }
  /**
   * Membership is undetermined. Show that the service has a problem, never that
   * the person is not a member. `retryAfterSeconds` is null if the service did
   * not specify it, `code` if the response has none (docs/frontend.md lists
   * them), and `status` if there was no readable response.
   */
  | {
      readonly outcome: "service_error";
      readonly retryAfterSeconds: number | null;
      readonly code: string | null;
      readonly status: number | null;
    };

/** A token (JWT), or a function that returns a fresh one for each request. */
export type TokenSource = string | (() => string | Promise<string>);

/** Identifies the account that the request is made for: by token or by account id. Prefer the token. */
export type AccountContext =
  | { readonly token: TokenSource; readonly accountId?: undefined }
  | { readonly accountId: string; readonly token?: undefined };

export type Options = AccountContext & {
  /** The root URL of the API, including the stage's path, such as `https://api.example.org/prod`. */
  readonly apiRoot: string;
  /** The front end's own key. It is an identifier, not a secret, so never use a `bypass` key. */
  readonly apiKey: string;
  /** Aborts the verification. The promise is then rejected with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** The overall timeout, including the time to get a token. Default: 15 seconds. */
  readonly timeoutMs?: number | undefined;
  /** Replaces the browser's `fetch`, for tests. */
  readonly fetch?: ((url: string, init: RequestInit) => Promise<Response>) | undefined;
};

const PATH = "/v3/action/idaa/novi_member/";
const TIMEOUT_MS = 15_000;
/** The maximum delay of a timer. */
const TIMEOUT_MAX_MS = 2 ** 31 - 1;
/** The wait after a 429 without a usable `Retry-After`. */
const RATE_LIMITED_SECONDS = 30;
/** The maximum size of a body. The API's responses have a few hundred bytes. */
const BODY_MAX_BYTES = 64 * 1024;

/** Verifies a member. The promise is rejected only if `options.signal` aborts. */
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
    // Stops on time even if the token source or a stubbed fetch ignores the signal.
    return await Promise.race([stopped, send(uuid, options, controller.signal)]);
  } catch {
    // The error may contain the request's URL and therefore the UUID, so it is discarded.
    signal?.throwIfAborted();
    return serviceError(null, null, null);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
    // Cancels the rest of a body that was not fully read.
    controller.abort();
  }
}

async function send(uuid: string, options: Options, signal: AbortSignal): Promise<Verification> {
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
  // A 429 means the same from any source, including API Gateway's own throttling.
  if (response.status === 429 && !response.redirected) {
    return { outcome: "rate_limited", retryAfterSeconds: retryAfter ?? RATE_LIMITED_SECONDS };
  }
  const body = parseObject(await readText(response));
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
    // This code has a meaning only in the one response that denies.
    code: code === "member_not_found" ? null : code,
    // An opaque response has the status 0.
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

/** Returns the code of a problem (RFC 9457), if the response is one. */
function problemCode(response: Response, body: Record<string, unknown> | null): string | null {
  const type = response.headers.get("content-type")?.split(";")[0]?.trim().toLowerCase();
  const code = type === "application/problem+json" ? body?.["code"] : null;
  return typeof code === "string" && /^[a-z_]{1,64}$/.test(code) ? code : null;
}

/** Returns the seconds in `Retry-After`. The API always sends whole seconds. */
function retryAfterSeconds(response: Response): number | null {
  const value = response.headers.get("retry-after")?.trim() ?? "";
  return /^\d{1,5}$/.test(value) ? Number(value) : null;
}

/** Returns the body if it is valid text within the size limit. */
async function readText(response: Response): Promise<string | null> {
  try {
    if (response.body === null) {
      return null;
    }
    const reader = response.body.getReader();
    const decoder = new TextDecoder("utf-8", { fatal: true });
    let size = 0;
    let content = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return content + decoder.decode();
      }
      size += value.byteLength;
      if (size > BODY_MAX_BYTES) {
        return null;
      }
      content += decoder.decode(value, { stream: true });
    }
  } catch {
    return null;
  }
}

/** Returns the parsed text if it is a JSON object. */
function parseObject(text: string | null): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text ?? "");
    return typeof value === "object" ? (value as Record<string, unknown> | null) : null;
  } catch {
    return null;
  }
}
