// What every part of the page is made of.
export const UNSURE = 0.6;

export const at = (id) => document.getElementById(id);
export const percent = (share) => (share > 0.9995 || share === 0 ? `${Math.round(share * 100)} %` : `${(share * 100).toFixed(1)} %`);

export function element(tag, { text, ...attributes } = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export function bar(share) {
  const fill = element("i");
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return element("div", { class: "bar", "aria-hidden": "true" }, [fill]);
}

export function said(text) {
  if (text === "") return element("b", { class: "nothing", text: "unreadable" });
  return element("b", { text, class: text.length > 6 ? "long" : "" });
}
