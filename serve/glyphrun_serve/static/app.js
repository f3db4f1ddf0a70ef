const at = (id) => document.getElementById(id);
const percent = (share) => (share > 0.9995 || share === 0 ? `${Math.round(share * 100)} %` : `${(share * 100).toFixed(1)} %`);
const UNSURE = 0.6;

let frames = []; // {file, url, broken}
let votes = [];
let token = ""; // kept by this page alone, until it is closed
let asked = 0; // an answer to anything but the newest question is dropped

function element(tag, { text, ...attributes } = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

// A request to this server, which is shown the token it may ask for.
async function send(path, request = {}) {
  const response = await fetch(path, token ? { ...request, headers: { Authorization: `Bearer ${token}` } } : request);
  if (response.status === 401) at("token-block").hidden = false;
  return response;
}

function bar(share) {
  const fill = element("i");
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return element("div", { class: "bar", "aria-hidden": "true" }, [fill]);
}

function said(text) {
  if (text === "") return element("b", { class: "nothing", text: "unreadable" });
  return element("b", { text, class: text.length > 6 ? "long" : "" });
}

function take(files, append) {
  const images = [...files];
  if (!images.length) return;
  if (!append) drop();
  frames.push(...images.map((file) => ({ file, url: URL.createObjectURL(file), broken: false })));
  read();
}

function drop() {
  for (const frame of frames) URL.revokeObjectURL(frame.url);
  frames = [];
}

function clear() {
  drop();
  asked += 1;
  votes = [];
  document.body.classList.remove("reading-now");
  showError("");
  showNothing("Nothing has been read yet.");
  showFrames();
  at("choose").focus();
}

async function read() {
  const question = ++asked;
  votes = [];
  showError("");
  showFrames();
  document.body.classList.add("reading-now");
  at("confidence").textContent = "Reading…";
  const form = new FormData();
  frames.forEach(({ file }) => form.append("frames", file));
  let answer;
  try {
    const response = await send("v1/recognize", { method: "POST", body: form });
    const isJson = (response.headers.get("content-type") ?? "").includes("json");
    answer = isJson ? await response.json() : { error: { message: `The server answered with status ${response.status}; try again in a few seconds.` } };
  } catch {
    answer = { error: { message: "The server cannot be reached; check that it runs and try again." } };
  }
  if (question !== asked) return;
  document.body.classList.remove("reading-now");
  if (answer.error) {
    showNothing("Nothing was read.");
    showError(answer.error.message);
    return;
  }
  votes = answer.votes;
  showAnswer(answer);
  showFrames();
}

function showError(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

function showNothing(sentence) {
  at("text").textContent = "—";
  at("text").className = "text empty";
  at("confidence").textContent = sentence;
  at("announce").textContent = "";
  for (const id of ["badge", "characters-block", "members-block", "n-best-block", "timings"]) at(id).hidden = true;
}

function showAnswer(answer) {
  const length = [...answer.text].length;
  at("text").textContent = answer.text || "nothing readable";
  at("text").className = `text ${length === 0 ? "empty silent" : length > 40 ? "longest" : length > 6 ? "long" : ""}`;
  at("confidence").replaceChildren(element("b", { text: percent(answer.confidence) }), " confidence");
  const heard = showMembers(answer);
  at("announce").textContent = `Reading: ${answer.text || "nothing readable"}, ${percent(answer.confidence)} confidence${heard && `. ${heard}`}`;
  at("badge").hidden = !answer.abstained;
  at("badge").textContent = "too unsure to answer";

  at("characters-block").hidden = !answer.characters.length;
  at("characters").replaceChildren(
    ...answer.characters.map(({ character, confidence }) =>
      element("li", { class: confidence < UNSURE ? "unsure" : "" }, [
        element("b", { text: character === " " ? "␣" : character }),
        element("span", { text: percent(confidence) }),
        bar(confidence),
      ]),
    ),
  );
  at("n-best-block").hidden = false;
  at("n-best").replaceChildren(
    ...answer.n_best.map(({ text, confidence }) =>
      element("li", {}, [said(text), bar(confidence), element("span", { text: percent(confidence) })]),
    ),
  );
  at("timings").hidden = false;
  at("timings").replaceChildren(
    ...Object.entries(answer.timings_ms).map(([stage, spent]) =>
      element("div", {}, [element("dt", { text: stage }), element("dd", { text: spent.toFixed(1) }, [element("small", { text: " ms" })])]),
    ),
  );
}

// Returns how many members were heard and how many differ, "" for a single recognizer.
function showMembers({ members, text }) {
  at("members-block").hidden = !members.length;
  if (!members.length) return "";
  const averaged = members.some(({ status }) => status === "averaged");
  const heard = members.filter(({ status }) => status === "voted" || status === "averaged");
  const differing = heard.filter((member) => member.text !== text);
  const verb = averaged ? "read as one" : "voted";
  const agreement = averaged ? "" : differing.length ? `, ${differing.length} ${differing.length === 1 ? "differs" : "differ"}` : ", and agree";
  const summary = `${heard.length} of ${members.length} recognizers ${verb}${agreement}`;
  at("members-note").textContent = summary;
  at("members").replaceChildren(...members.map((member) => memberCard(member, heard.includes(member), differing.includes(member))));
  return summary;
}

function memberCard({ member, text, confidence, weight, ms, status }, heard, differs) {
  const name = element("span", { class: "name", text: member });
  if (!heard) {
    return element("li", { class: "silent" }, [element("div", { class: "who" }, [name, element("span", { class: "mark", text: "left out" })]), element("p", { class: "why", text: status === "late" ? "no answer in time" : status })]);
  }
  const mark = differs ? [element("span", { class: "mark", text: "≠ differs" })] : [];
  const spent = ms === null ? "" : ` · ${ms.toFixed(1)} ms`;
  return element("li", { class: differs ? "differs" : "" }, [
    element("div", { class: "who" }, [name, ...mark]),
    element("div", { class: "says" }, [said(text), element("span", { text: percent(confidence) })]),
    bar(confidence),
    element("p", { class: "why", text: (weight === 0 ? "not counted" : `${status}, weight ${weight.toFixed(2)}`) + spent }),
  ]);
}

function showFrames() {
  const count = frames.length;
  at("frames-section").hidden = count === 0;
  at("add").hidden = at("clear").hidden = count === 0;
  at("drop").classList.toggle("filled", count > 0);
  at("frames-title").textContent = count === 1 ? "Image" : `${count} frames`;
  at("frames-note").textContent = count > 1 && votes.length ? (votes.some((vote) => vote.frames > 1) ? "What each window of frames says, at its first frame" : "What each frame says alone") : "";
  const heaviest = Math.max(...votes.map(({ weight }) => weight), 1e-9);
  at("frames").replaceChildren(...frames.map((frame, number) => frameCard(frame, number, votes.find((vote) => vote.frame === number), heaviest)));
  at("curl").textContent = curl();
}

function frameCard(frame, number, vote, heaviest) {
  const picture = element("div", { class: "picture" });
  if (frame.broken) picture.textContent = "no preview";
  else {
    const image = element("img", { src: frame.url, alt: `Frame ${number}: ${frame.file.name}` });
    image.addEventListener("error", () => {
      frame.broken = true;
      picture.textContent = "no preview";
    });
    picture.append(image);
  }
  const remove = element("button", { type: "button", class: "remove", "aria-label": `Remove frame ${number}`, text: "×" });
  remove.addEventListener("click", () => {
    URL.revokeObjectURL(frame.url);
    frames = frames.filter((kept) => kept !== frame);
    if (!frames.length) return clear();
    at("add").focus();
    read();
  });
  const card = element("li", { class: "frame" }, [picture]);
  if (vote) {
    const ignored = vote.weight === 0;
    card.classList.toggle("ignored", ignored);
    card.classList.toggle("unsure", vote.confidence < UNSURE);
    card.append(
      element("div", { class: "vote" }, [
        element("div", { class: "says" }, [said(vote.text), element("span", { text: percent(vote.confidence) })]),
        bar(vote.weight / heaviest),
        element("p", { class: "weight", text: `frame ${number} · ${ignored ? "not counted" : `weight ${vote.weight.toFixed(2)}`}` }),
      ]),
    );
  }
  card.append(remove);
  return card;
}

function curl() {
  const url = new URL("v1/recognize", location.href).href;
  const names = frames.length ? frames.map(({ file }) => file.name) : ["image.png"];
  // Inside curl's double quotes and the shell's single quotes, so that any file name is taken literally.
  const quoted = (name) => `'frames=@"${name.replace(/[\\"]/g, "\\$&").replaceAll("'", "'\\''")}"'`;
  const bearing = token ? ['  -H "Authorization: Bearer $TOKEN"'] : [];
  return ["curl", ...bearing, ...names.map((name) => `  -F ${quoted(name)}`), `  ${url}`].join(" \\\n");
}

async function showModel() {
  try {
    const response = await send("v1/models");
    if (response.status === 401) {
      at("model").textContent = token ? "another token is needed" : "a token is needed";
      return;
    }
    const { models } = await response.json();
    const [model] = models;
    at("token-block").hidden = true;
    at("model").textContent = `${model.name} · v${model.version}`;
    at("model").classList.add("ready");
    const kinds = Object.entries(model.members).map(([name, kind]) => `${name} (${kind})`);
    const who = kinds.length ? `${kinds.join(", ")}, ${model.vote === "average" ? "averaged" : `whose vote is by ${model.vote}`}` : model.kind;
    at("provenance").textContent = `Read by ${who}; ${model.charset.length} characters, at most ${model.max_length} in a row.`;
  } catch {
    at("model").textContent = "not connected";
  }
}

let appending = false;
function pick(append) {
  appending = append;
  at("files").value = "";
  at("files").click();
}

at("choose").addEventListener("click", () => pick(false));
at("add").addEventListener("click", () => pick(true));
at("clear").addEventListener("click", clear);
at("files").addEventListener("change", (event) => take(event.target.files, appending));
at("token").addEventListener("change", async ({ target }) => {
  token = target.value.trim();
  await showModel();
  if (frames.length) read();
  else showFrames();
});
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("curl").textContent);
    at("copy").textContent = "Copied";
  } catch {
    // Browsers allow the clipboard only on https and localhost.
    getSelection().selectAllChildren(at("curl"));
    at("copy").textContent = "Selected";
  }
  setTimeout(() => (at("copy").textContent = "Copy"), 2000);
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  // On the whole window: an image dropped beside the zone would otherwise replace the page.
  addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files, false);
  });
}
addEventListener("paste", (event) => take(event.clipboardData.files, false));
showFrames();
showModel();
