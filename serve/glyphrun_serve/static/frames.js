// What each frame says alone, beside its picture where the page has one.
import { UNSURE, bar, element, percent, said } from "./elements.js";

// pictures: {url, name, broken} of images that were chosen; without them a card for each vote. numbers: how the frames are
// counted. remove: what a press on the cross of a picture does.
export function frameCards({ pictures, numbers, votes, remove }) {
  const heaviest = Math.max(...votes.map(({ weight }) => weight), 1e-9);
  if (!pictures) return votes.map((vote) => element("li", { class: "frame" }, [voteOf(vote, numbers[vote.frame], heaviest)])).map(marked(votes));
  return pictures.map((picture, number) => {
    const vote = votes.find(({ frame }) => frame === number);
    const cross = element("button", { type: "button", class: "remove", "aria-label": `Remove frame ${number}`, text: "×" });
    cross.addEventListener("click", () => remove(picture));
    const card = element("li", { class: "frame" }, [shown(picture, number), ...(vote ? [voteOf(vote, number, heaviest)] : []), cross]);
    return vote ? marked([vote])(card, 0) : card;
  });
}

const marked = (votes) => (card, place) => {
  card.classList.toggle("ignored", votes[place].weight === 0);
  card.classList.toggle("unsure", votes[place].confidence < UNSURE);
  return card;
};

function shown(picture, number) {
  const place = element("div", { class: "picture" });
  const giveUp = () => {
    picture.broken = true;
    place.textContent = "no preview";
  };
  if (picture.broken) giveUp();
  else {
    const image = element("img", { src: picture.url, alt: `Frame ${number}: ${picture.file.name}` });
    image.addEventListener("error", giveUp);
    place.append(image);
  }
  return place;
}

function voteOf(vote, number, heaviest) {
  return element("div", { class: "vote" }, [
    element("div", { class: "says" }, [said(vote.text), element("span", { text: percent(vote.confidence) })]),
    bar(vote.weight / heaviest),
    element("p", { class: "weight", text: `frame ${number} · ${vote.weight === 0 ? "not counted" : `weight ${vote.weight.toFixed(2)}`}` }),
  ]);
}
