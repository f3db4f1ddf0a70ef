// What is chosen, what it is asked, and where the answers go.
import { showAnswer, showNothing, spoken } from "./answer.js";
import { clipCommand, imagesCommand } from "./curl.js";
import { at } from "./elements.js";
import { frameCards } from "./frames.js";
import { describe, modelAsked, offer } from "./models.js";
import { bearToken, bearsToken, events, json, post, send } from "./server.js";
import { addError, addReading, forgetTracklets } from "./tracklets.js";

const CLIP = /\.(mp4|m4v|mov|mkv|webm|avi)$/i;
const isClip = ({ type, name }) => type.startsWith("video/") || CLIP.test(name);
const isBoxes = ({ type, name }) => type === "application/json" || name.toLowerCase().endsWith(".json");
const path = (route) => (modelAsked() ? `${route}?model=${encodeURIComponent(modelAsked())}` : route);
const boxes = () => at("boxes").value.trim();

let images = []; // {file, url, broken}
let clip = null; // in their place
let votes = [];
let numbers = null; // which frames of the clip the votes are of
let asked = 0; // an answer to anything but the newest question is dropped
let question = new AbortController();

async function take(files, append) {
  const given = [...files];
  if (!given.length) return;
  const clips = given.filter(isClip);
  const lists = given.filter((file) => !isClip(file) && isBoxes(file));
  const pictures = given.filter((file) => !clips.includes(file) && !lists.includes(file));
  if (clips.length > 1 || lists.length > 1 || (clips.length && pictures.length)) {
    return showError("Choose images, or one clip with a JSON file of its boxes if there is one.");
  }
  if (lists.length && !clips.length && (!clip || pictures.length)) {
    return showError("A JSON file of boxes goes with a clip: choose both.");
  }
  const listed = lists.length ? await lists[0].text() : "";
  if (clips.length || pictures.length) {
    if (!append || clips.length) drop();
    clip = clips[0] ?? null;
    images.push(...pictures.map((file) => ({ file, url: URL.createObjectURL(file), broken: false })));
  }
  at("boxes").value = listed;
  read();
}

function drop() {
  for (const { url } of images) URL.revokeObjectURL(url);
  images = [];
  clip = null;
}

function begin() {
  asked += 1;
  question.abort(); // nobody waits for the rest of a clip
  question = new AbortController();
  votes = [];
  numbers = null;
  showError("");
  at("announce").textContent = "";
  forgetTracklets();
  showFrames();
  return asked;
}

function clear() {
  drop();
  at("boxes").value = "";
  begin();
  document.body.classList.remove("reading-now");
  showNothing("Nothing has been read yet.");
  at("choose").focus();
}

async function read() {
  const number = begin();
  document.body.classList.add("reading-now");
  at("confidence").textContent = "Reading…";
  try {
    await (clip ? readClip(number) : readImages(number));
  } catch (error) {
    if (number !== asked) return;
    if (!at("tracklets").children.length) showNothing("Nothing was read.");
    showError(error.message);
  }
  if (number === asked) document.body.classList.remove("reading-now");
}

async function readImages(number) {
  const form = new FormData();
  for (const { file } of images) form.append("frames", file);
  const answer = await json(await post(path("v1/recognize"), form, question.signal, tellToken));
  if (number !== asked) return;
  votes = answer.votes;
  showAnswer(answer);
  at("announce").textContent = `Reading: ${spoken(answer)}`;
  showFrames();
}

async function readClip(number) {
  const form = new FormData();
  form.append("clip", clip);
  if (boxes()) form.append("boxes", boxes());
  showNothing("Reading…");
  const response = await post(path("v1/video"), form, question.signal, tellToken);
  let chosen = false;
  for await (const [name, found] of events(response)) {
    if (number !== asked) return;
    if (name === "done") {
      const pictures = `${found.frames} ${found.frames === 1 ? "picture" : "pictures"}`;
      at("tracklets-note").textContent = `${found.tracklets} read, ${pictures} of them`;
      at("announce").textContent = `The clip has been read: ${found.tracklets} ${found.tracklets === 1 ? "tracklet" : "tracklets"}`;
      if (!chosen) showNothing("No tracklet was read.");
      return;
    }
    if (name === "reading") {
      const press = addReading(found, showTracklet);
      document.body.classList.remove("reading-now");
      if (!chosen) press();
      chosen = true;
    } else if (found.tracklet !== null) addError(found);
    else throw new Error(found.error.message);
  }
  if (number === asked) throw new Error("The answer broke off before the whole clip was read; try again.");
}

function showTracklet({ tracklet, frames, answer }) {
  votes = answer.votes;
  numbers = frames;
  showAnswer(answer, boxes() ? `Reading of tracklet ${tracklet}` : "Reading of the clip");
  showFrames();
}

function showError(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

function showFrames() {
  const count = numbers ? votes.length : images.length;
  const filled = images.length > 0 || clip !== null;
  const windows = votes.some((vote) => vote.frames > 1);
  at("frames-section").hidden = count === 0;
  at("add").hidden = !images.length;
  at("clear").hidden = !filled;
  at("drop").classList.toggle("filled", filled);
  at("clip-block").hidden = clip === null;
  at("clip-name").textContent = clip?.name ?? "";
  at("frames-title").textContent = count === 1 ? (numbers ? "1 frame" : "Image") : `${count} frames`;
  at("frames-note").textContent = count > 1 && votes.length ? (windows ? "What each window of frames says, at its first frame" : "What each frame says alone") : "";
  at("frames").replaceChildren(...frameCards({ pictures: clip ? null : images, numbers, votes, remove }));
  const how = [modelAsked(), bearsToken()];
  at("curl").textContent = clip ? clipCommand(clip.name, boxes(), ...how) : imagesCommand(images.map(({ file }) => file.name), ...how);
}

function remove(image) {
  URL.revokeObjectURL(image.url);
  images = images.filter((kept) => kept !== image);
  if (!images.length) return clear();
  at("add").focus();
  read();
}

// A server that asks for a token is shown the field for it.
function tellToken(status) {
  if (status === 401) at("token-block").hidden = false;
}

async function showModel() {
  try {
    const response = await send("v1/models");
    tellToken(response.status);
    if (response.status === 401) {
      at("model").textContent = bearsToken() ? "another token is needed" : "a token is needed";
      return;
    }
    offer((await response.json()).models);
    at("token-block").hidden = true;
    showFrames(); // the command names the model where there are several
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
at("boxes").addEventListener("change", () => clip && read());
at("models").addEventListener("change", () => {
  describe();
  if (images.length || clip) read();
  else showFrames();
});
at("token").addEventListener("change", async ({ target }) => {
  bearToken(target.value.trim());
  await showModel();
  if (images.length || clip) read();
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
