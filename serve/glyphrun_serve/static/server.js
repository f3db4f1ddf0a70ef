// Questions to this server, and its answers as they come.
const UNREACHABLE = "The server cannot be reached; check that it runs and try again.";

let token = ""; // kept by this page alone, until it is closed

export const bearsToken = () => token !== "";

export function bearToken(given) {
  token = given;
}

export function send(path, request = {}) {
  return fetch(path, token ? { ...request, headers: { Authorization: `Bearer ${token}` } } : request);
}

// The answer to a form, or an error whose message is the server's sentence. onStatus hears of every status.
export async function post(path, body, signal, onStatus) {
  let response;
  try {
    response = await send(path, { method: "POST", body, signal });
  } catch {
    throw new Error(UNREACHABLE);
  }
  onStatus(response.status);
  if (response.ok) return response;
  const told = await response.json().catch(() => null); // what stands before the server may answer in HTML
  throw new Error(told?.error?.message ?? `The server answered with status ${response.status}; try again in a few seconds.`);
}

export async function json(response) {
  try {
    return await response.json();
  } catch {
    throw new Error("The answer broke off; try again.");
  }
}

// Server-sent events as [name, data], until the answer ends or breaks off. EventSource cannot send a clip.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true }));
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const fields = Object.fromEntries(part.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]));
        yield [fields.event, JSON.parse(fields.data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
