// The tracklets of a clip, each as soon as it has been read; a press on one shows all that was read of it.
import { UNSURE, at, element, percent, said } from "./elements.js";

export function forgetTracklets() {
  at("tracklets").replaceChildren();
  at("tracklets-note").textContent = "";
  at("tracklets-section").hidden = true;
}

// found: {tracklet, frames, answer} of the event `reading`; choose: what a press does.
export function addReading(found, choose) {
  const { tracklet, answer } = found;
  const marks = [answer.abstained ? "too unsure" : "", answer.degraded ? "degraded" : ""].filter(Boolean);
  const button = element("button", { type: "button", class: answer.confidence < UNSURE ? "unsure" : "", "aria-pressed": "false" }, [
    element("span", { class: "name", text: tracklet }),
    said(answer.text),
    element("span", { class: "share", text: [percent(answer.confidence), ...marks].join(" · ") }),
  ]);
  const press = () => {
    for (const other of at("tracklets").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
    choose(found);
  };
  button.addEventListener("click", press);
  add(button);
  return press;
}

export function addError({ tracklet, error }) {
  add(element("p", { class: "failed" }, [element("span", { class: "name", text: tracklet }), element("span", { text: error.message })]));
}

function add(child) {
  at("tracklets-section").hidden = false;
  at("tracklets").append(element("li", {}, [child]));
}
