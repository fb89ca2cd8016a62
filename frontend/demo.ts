// The page that demo.html is: it asks and says what came of it.

import { type AccountContext, type Verification, verify_novi_uuid } from "./verify_novi_uuid.js";

const form = document.querySelector("form")!;
const button = document.querySelector("button")!;
const outcome = document.querySelector<HTMLOutputElement>("#outcome")!;

/** What a person is told. Only `denied` speaks of the person. */
function words(verification: Verification): string {
  switch (verification.outcome) {
    case "verified": {
      const { fullName, email } = verification;
      return `Verified: ${[fullName, email].filter((part) => part !== null).join(", ") || "a member"}.`;
    }
    case "denied":
      return "Not a member: nobody is registered under this UUID.";
    case "rate_limited":
      return `Busy: many people are signing in. Please try again in ${seconds(verification.retryAfterSeconds)}.`;
    case "service_error": {
      const when = verification.retryAfterSeconds;
      const what = [verification.status, verification.code].filter((part) => part !== null).join(" ");
      return (
        "We cannot check your membership right now. The problem is ours, not yours. " +
        `Please try again ${when === null ? "later" : `in ${seconds(when)}`}.${what && ` (${what})`}`
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
  const mine = (current = new AbortController());
  const field = (name: string): string => String(new FormData(form).get(name) ?? "").trim();
  const account: AccountContext = field("token") ? { token: field("token") } : { accountId: field("account_id") };
  delete outcome.dataset["outcome"];
  outcome.textContent = "Asking…";
  try {
    const verification = await verify_novi_uuid(field("uuid"), {
      apiRoot: field("api_root"),
      apiKey: field("api_key"),
      ...account,
      signal: mine.signal,
    });
    outcome.textContent = words(verification);
    outcome.dataset["outcome"] = verification.outcome;
  } catch {
    // Aborted, because the form was sent again: that call will say what came of it.
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void verify();
});
// The part after # is not sent to any server.
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
