// Which of the served models reads, and what is said of it.
import { at, element } from "./elements.js";

let cards = []; // the first one answers those who ask for none

export function offer(served) {
  const before = at("models").value;
  cards = served;
  const names = cards.map(({ name }) => name);
  const options = cards.map(({ name, version }) => {
    const alone = names.indexOf(name) === names.lastIndexOf(name);
    return element("option", { value: alone ? name : `${name}@${version}`, text: `${name} · v${version}` });
  });
  const several = cards.length > 1;
  at("models").replaceChildren(...(several ? options : []));
  if (options.some(({ value }) => value === before)) at("models").value = before;
  at("models-block").hidden = !several;
  describe();
}

// What a request names, "" where there is nothing to choose.
export const modelAsked = () => at("models").value;

export function describe() {
  const model = cards[Math.max(0, at("models").selectedIndex)];
  at("model").textContent = `${model.name} · v${model.version}`;
  at("model").classList.add("ready");
  const kinds = Object.entries(model.members).map(([name, kind]) => `${name} (${kind})`);
  const who = kinds.length ? `${kinds.join(", ")}, ${model.vote === "average" ? "averaged" : `whose vote is by ${model.vote}`}` : model.kind;
  const adapter = model.provenance.adapter ? ` with the adapter ${model.provenance.adapter}` : "";
  at("provenance").textContent = `Read by ${who}${adapter}; ${model.charset.length} characters, at most ${model.max_length} in a row.`;
}
