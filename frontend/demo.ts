// The script of demo.html: verifies a UUID and shows the outcome.

import { type AccountContext, type Verification, verify_novi_uuid } from "./verify_novi_uuid.js";

const form = document.querySelector("form")!;
const button = document.querySelector("button")!;
const outcome = document.querySelector<HTMLOutputElement>("#outcome")!;

/** Returns the message for the user. Only `denied` says anything about the person. */
function message(verification: Verification): string {
  switch (verification.outcome) {
    case "verified": {
      const { fullName, email } = verification;
      return `Verified: ${[fullName, email].filter((part) => part !== null).join(", ") || "a member"}.`;
    }
    case "denied":
      return "Not a member: this UUID is not registered.";
    case "rate_limited":
      return `Busy: many people are signing in. Please try again in ${seconds(verification.retryAfterSeconds)}.`;
    case "service_error": {
      const when = verification.retryAfterSeconds;
      const details = [verification.status, verification.code].filter((part) => part !== null).join(" ");
      return (
        "We cannot check your membership right now. The problem is ours, not yours. " +
        `Please try again ${when === null ? "later" : `in ${seconds(when)}`}.${details && ` (${details})`}`
      );
    }
  }
}

function seconds(count: number): string {
  return count === 1 ? "1 second" : `${count} seconds`;
}

let current = new AbortController();

async function verify(): Promise<void> {
  current.abort();
  const controller = (current = new AbortController());
  const field = (name: string): string => String(new FormData(form).get(name) ?? "").trim();
  const account: AccountContext = field("token") ? { token: field("token") } : { accountId: field("account_id") };
  delete outcome.dataset["outcome"];
  outcome.textContent = "Verifying…";
  try {
    const verification = await verify_novi_uuid(field("uuid"), {
      apiRoot: field("api_root"),
      apiKey: field("api_key"),
      ...account,
      signal: controller.signal,
    });
    outcome.textContent = message(verification);
    outcome.dataset["outcome"] = verification.outcome;
  } catch {
    // Aborted because the form was submitted again. That call will show the outcome.
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void verify();
});
// The fragment (after #) is never sent to a server.
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  const input = form.elements.namedItem(name);
  if (input instanceof HTMLInputElement) {
    input.value = value;
  }
}
button.disabled = false;
if (location.hash.includes("uuid=")) {
  form.requestSubmit();
}
