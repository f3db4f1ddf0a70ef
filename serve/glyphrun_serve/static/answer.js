// The card that shows one reading.
import { UNSURE, at, bar, element, percent, said } from "./elements.js";

const BLOCKS = ["read-by", "badge", "degraded", "characters-block", "members-block", "n-best-block", "timings"];

export function showNothing(sentence) {
  at("reading-title").textContent = "Reading";
  at("text").textContent = "—";
  at("text").className = "text empty";
  at("confidence").textContent = sentence;
  for (const id of BLOCKS) at(id).hidden = true;
}

export function showAnswer(answer, title = "Reading") {
  const length = [...answer.text].length;
  at("reading-title").textContent = title;
  at("text").textContent = answer.text || "nothing readable";
  at("text").className = `text ${length === 0 ? "empty silent" : length > 40 ? "longest" : length > 6 ? "long" : ""}`;
  at("confidence").replaceChildren(element("b", { text: percent(answer.confidence) }), " confidence");
  at("read-by").hidden = false;
  at("read-by").textContent = `read by ${answer.model.name}, version ${answer.model.version}`;
  at("badge").hidden = !answer.abstained;
  at("degraded").hidden = !answer.degraded;

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
  showMembers(answer);
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

// What a screen reader says of an answer.
export function spoken(answer) {
  const marks = [answer.abstained ? "too unsure to answer" : "", answer.degraded ? "not every recognizer answered" : "", heardOf(answer)];
  return [`${answer.text || "nothing readable"}, ${percent(answer.confidence)} confidence`, ...marks.filter(Boolean)].join(". ");
}

function membersOf({ members, text }) {
  const heard = members.filter(({ status }) => status === "voted" || status === "averaged");
  return { heard, differing: heard.filter((member) => member.text !== text) };
}

// How many members were heard and how many differ, "" for a single recognizer.
function heardOf(answer) {
  if (!answer.members.length) return "";
  const { heard, differing } = membersOf(answer);
  const averaged = heard.some(({ status }) => status === "averaged");
  const agreement = averaged ? "" : differing.length ? `, ${differing.length} ${differing.length === 1 ? "differs" : "differ"}` : ", and agree";
  return `${heard.length} of ${answer.members.length} recognizers ${averaged ? "read as one" : "voted"}${agreement}`;
}

function showMembers(answer) {
  const { heard, differing } = membersOf(answer);
  at("members-block").hidden = !answer.members.length;
  at("members-note").textContent = heardOf(answer);
  at("members").replaceChildren(...answer.members.map((member) => memberCard(member, heard.includes(member), differing.includes(member))));
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
