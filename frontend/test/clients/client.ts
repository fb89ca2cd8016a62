// Calls the API with the types that openapi-typescript generated. clients.test.ts compiles it next to them.

import { text } from "node:stream/consumers";

import createClient from "openapi-fetch";

import type { components, paths } from "./api.js";

type Failure = components["schemas"]["Problem"] | components["schemas"]["GatewayMessage"];

const { description, throttled, api_key, member, stranger, failing } = JSON.parse(await text(process.stdin)) as Record<
  "description" | "throttled" | "api_key" | "member" | "stranger" | "failing",
  string
>;
const { servers } = (await (await fetch(description)).json()) as { servers: { url: string }[] };

/** Returns a client of the API that has its description at this URL. */
function clientOf(url: string) {
  return createClient<paths>({ baseUrl: new URL(servers[0]!.url, url).href });
}

function failureOf(error: Failure): { code: string } | { message: string } {
  return "code" in error ? { code: error.code } : { message: error.message };
}

async function verify(uuid: string, headers: Record<string, string>, url = description) {
  const { data, error, response } = await clientOf(url).GET("/v3/action/idaa/novi_member/{uuid}", {
    params: { path: { uuid } },
    headers,
  });
  return {
    status: response.status,
    ...(data === undefined ? failureOf(error) : { full_name: data.full_name, email: data.email }),
  };
}

const headers = { "x-api-key": api_key, "x-account-id": "account-1" };
const health = await clientOf(description).GET("/health");
console.log(
  JSON.stringify({
    member: await verify(member, headers),
    stranger: await verify(stranger, headers),
    without_key: await verify(member, {}),
    failing: await verify(failing, headers),
    throttled: await verify(member, headers, throttled),
    health: { status: health.response.status, message: health.data?.status },
  }),
);
